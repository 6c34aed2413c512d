"""A model's identity changes with every file that decides its numbers, and with nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import ModelError
from prefine.models.loading.identity import Identity, identity_of, scores_digest, tokenizer_hash
from prefine.models.loading.load import load_model, save_model
from prefine.models.loading.location import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ORIGIN, locate_model
from prefine.recipe.sections import LoraSection, ModelSection
from tests.training import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("T") / "base")


def section(model: Path) -> ModelSection:
    return ModelSection(name=str(model), dtype="float32", device="cpu")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A fresh adapter on a copy of the base."""
    shutil.copytree(base, tmp_path / "base")
    loaded = load_model(section(tmp_path / "base"), LoraSection(r=2))
    save_model(loaded, tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(file: Path, **values: Any) -> None:
    old = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**old, **values}))


def spoil(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "a weight": (lambda f: spoil(f / "model.safetensors"), {"weights"}),
    "rope_theta": (lambda f: rewrite(f / "config.json", rope_theta=1234.0), {"config"}),
    "an unknown setting": (lambda f: rewrite(f / "config.json", made_up=1), {"config"}),
    "code": (lambda f: (f / "modeling_x.py").write_text("x = 1") and None, {"config"}),
    "end of text": (lambda f: rewrite(f / "config.json", eos_token_id=3), {"generation"}),
    "generation settings": (lambda f: rewrite(f / "generation_config.json", eos_token_id=[1, 2]), {"generation"}),
    "versions": (lambda f: rewrite(f / "config.json", transformers_version="9", dtype="float16"), set()),
    "a readme": (lambda f: (f / "README.md").write_text("x") and None, set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_a_base_is_seen_where_it_is(change: str, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(base, folder)
    before = identity_of(locate_model(str(folder)))
    made, expected = CHANGES[change]
    made(folder)
    location = locate_model(str(base))
    after = identity_of(type(location)(**{**vars(location), "base": str(folder)}))
    fields = {name for name in vars(before) if getattr(before, name) != getattr(after, name)}
    assert fields == expected
    assert (before.digest != after.digest) == bool(expected)
    assert (before.logprobs != after.logprobs) == bool(expected & {"weights", "config"})
    assert len(after.differences(vars(before))) == len(expected)


def test_a_config_that_is_not_json_is_refused_or_a_change(base: Path, tmp_path: Path) -> None:
    """It may name the weight files, so without it their hash is unknown. Where that is known, the config differs."""
    folder = tmp_path / "copy"
    shutil.copytree(base, folder)
    location = locate_model(str(folder))
    before = identity_of(location)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"copy/config\.json' is not valid JSON.*Download the model again"):
        identity_of(location)
    after = identity_of(location, weights=before.weights)
    assert {name for name in vars(before) if getattr(before, name) != getattr(after, name)} == {"config", "generation"}
    assert (before.digest != after.digest, before.logprobs != after.logprobs) == (True, True)
    assert len(after.differences(vars(before))) == 2


def test_an_adapter_has_its_own_part(adapter: Path) -> None:
    before = identity_of(locate_model(str(adapter)))
    rewrite(adapter / ADAPTER_CONFIG, lora_alpha=99)
    scaled = identity_of(locate_model(str(adapter)))
    assert scaled.differences(vars(before)) == ["the adapter"]
    spoil(adapter / ADAPTER_WEIGHTS)
    assert identity_of(locate_model(str(adapter))).adapter not in (before.adapter, scaled.adapter)
    (adapter / "reward.json").write_text("{}")
    assert identity_of(locate_model(str(adapter))).scale != ""


def test_where_an_adapter_says_answers_end_is_part_of_it(adapter: Path) -> None:
    """`declared_ends` reads the adapter's own generation_config.json, too."""
    before = identity_of(locate_model(str(adapter)))
    rewrite(adapter / "generation_config.json", transformers_version="9")
    assert not identity_of(locate_model(str(adapter))).differences(vars(before))
    rewrite(adapter / "generation_config.json", eos_token_id=[7])
    assert identity_of(locate_model(str(adapter))).differences(vars(before)) == ["the generation settings or token ids"]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.txt"])
def test_scores_depend_on_the_tokenizer_and_its_template(name: str, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(base, folder)
    location = locate_model(str(folder))
    tokens, scores, model = tokenizer_hash(location), scores_digest(location), identity_of(location).digest
    rewrite(folder / "tokenizer_config.json", transformers_version="9")
    (folder / "README.md").write_text("x")
    assert (tokenizer_hash(location), scores_digest(location)) == (tokens, scores)
    if name.endswith("json"):
        rewrite(folder / name, made_up=1)
    else:
        (folder / name).write_text("{{ messages }}")
    assert tokenizer_hash(location) != tokens
    assert scores_digest(location) != scores
    assert identity_of(location).digest == model


def test_an_adapter_refuses_its_base_with_another_config(adapter: Path) -> None:
    load_model(section(adapter), None, trainable=False)
    rewrite(adapter.parent / "base" / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    with pytest.raises(ModelError, match="was trained on another config than"):
        load_model(section(adapter), None, trainable=False)
    origin = json.loads((adapter / ORIGIN).read_text())
    del origin["base_config_sha256"]  # of adapters saved before it was recorded
    (adapter / ORIGIN).write_text(json.dumps(origin))
    load_model(section(adapter), None, trainable=False)


def test_what_is_not_on_this_machine_has_no_identity() -> None:
    found = identity_of(locate_model("nobody/nothing"))
    assert found == Identity("", "", "")
    assert found.logprobs == ""
