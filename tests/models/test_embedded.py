"""The embedded model works without a hub, is converted once, and a conversion that fails leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefine.data.batch import TokenTree, collate
from prefine.errors import CheckpointError, ModelError
from prefine.models import attention, embedded
from prefine.models.embedded import embedded_folder
from prefine.models.forward import probe
from prefine.models.load import LoadedModel, load_model
from prefine.recipe import LoraSection, ModelSection
from prefine.records import Message
from tests.models import tiny
from tests.models.tiny import alone

NAME = "embedded:smollm2-135m"


@pytest.fixture(scope="module")
def loaded(embedded_model: str) -> LoadedModel:
    """The embedded model in bf16 with a LoRA, as the recipes load it."""
    return load_model(ModelSection(name=embedded_model, device="cpu", dtype="bfloat16"), LoraSection())


def test_it_is_packed_in_bf16(loaded: LoadedModel) -> None:
    """The probe accepts it, all its modules are fused, and it is the model that its name says."""
    assert loaded.fallback is None
    assert loaded.faster == {"lora": 210, "norm": 61, "gated_mlp": 30}
    facts = loaded.describe()
    assert facts["parameters"] - facts["trainable_parameters"] == 134_515_008
    assert facts["compute_dtype"] == "bfloat16"


def test_it_speaks_english(loaded: LoadedModel) -> None:
    """It finds what answers a question likelier than what does not: the conversion lost no weight."""
    ask = (Message(role="user", content="What is the capital of France?"),)
    answers = ("The capital of France is Paris.", "The capital of France is banana.")
    tokens = tuple(loaded.template.answer_ids(ask, text) for text in answers)
    batch = collate([TokenTree(loaded.template.prompt_ids(ask), tokens, (None, None))])
    loaded.packed.eval()
    with torch.no_grad():
        values = loaded.packed(batch)
    right, wrong = (values[batch.sequence == which].mean().item() for which in (0, 1))
    assert right > -1.0
    assert right > wrong + 1.0


def test_it_answers_greedily(loaded: LoadedModel) -> None:
    """Generation through transformers' own attention, in words that a reader expects."""
    from prefine.evaluation.sample import write_answers

    ask = (Message(role="user", content="What is the capital of France?"),)
    prompt = loaded.template.prompt_ids(ask)
    (answer,) = write_answers(loaded.packed, loaded.template, [prompt], 16, 0.0)
    assert "Paris" in answer.text


def test_packed_bf16_is_near_alone(loaded: LoadedModel) -> None:
    """On real weights in bf16, packing costs no more than rounding."""
    batch = collate([tiny.tree(40, 30, 20, vocabulary=40_000), tiny.tree(5, 60, vocabulary=40_000)])
    loaded.packed.eval()
    with torch.no_grad():
        apart = (loaded.packed(batch) - alone(loaded.packed, batch)).abs()
    assert apart.mean() <= 0.05


@pytest.mark.parametrize("leak", [1.0, 1e-4])
def test_a_leak_is_found_in_bf16(leak: float, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small: each token also gets a little of the token before it, whosesoever that is."""
    from transformers import AttentionInterface

    def leaky(*args: Any, **kwargs: Any) -> Any:
        out, weights = attention.packed_attention(*args, **kwargs)
        return out + leak * out.roll(1, dims=1), weights

    assert probe(loaded.packed) is None
    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, leaky)
    assert "another sequence" in str(probe(loaded.packed))


def converted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, save: Any) -> Path:
    """Conversion of a package made by hand, with `save` for what writes the model; returns the cache's folder."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.gguf").write_bytes(b"GGUF")
    cache = tmp_path / "cache"
    model = SimpleNamespace(config=SimpleNamespace(quantization_config=1), save_pretrained=save)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(embedded, "cache_directory", lambda: cache)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: tokenizer)
    return cache / "models"


def whole(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")


def test_it_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Under the hash of the package's file, so that a newer package is converted anew."""
    calls: list[Path] = []

    def save(folder: Path) -> None:
        calls.append(folder)
        whole(folder)

    models = converted(monkeypatch, tmp_path, save)
    folder = embedded_folder(NAME)
    assert folder == embedded_folder(NAME)
    assert len(calls) == 1
    assert folder.parent == models
    assert [p.name for p in models.iterdir()] == [folder.name]
    (tmp_path / "package" / "model.gguf").write_bytes(b"GGUF2")
    assert embedded_folder(NAME) != folder


class Killed(BaseException):
    """As abrupt as an exception can be."""


def test_a_conversion_cut_short_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half a folder would be taken for a model by the next run; the next run converts again instead."""

    def dies(folder: Path) -> None:
        whole(folder)
        raise Killed

    models = converted(monkeypatch, tmp_path, dies)
    with pytest.raises(Killed):
        embedded_folder(NAME)
    assert list(models.iterdir()) == []


def test_what_a_killed_conversion_left_hidden_is_swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SIGKILL lets nobody clean up; the next conversion does."""
    models = converted(monkeypatch, tmp_path, whole)
    models.mkdir(parents=True)
    left = models / ".smollm2-135m-0.999999999-0123abcd.tmp"
    whole(left)
    folder = embedded_folder(NAME)
    assert [p.name for p in models.iterdir()] == [folder.name]


def test_two_processes_may_convert_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """accelerate starts several together: who comes second takes what the first has made."""

    def overtaken(folder: Path) -> None:
        whole(folder)
        whole(folder.parent / folder.name.split(".")[1])

    converted(monkeypatch, tmp_path, overtaken)
    assert (embedded_folder(NAME) / "config.json").is_file()


def test_a_full_disk_is_an_error_not_a_half_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, largest_file: Any
) -> None:
    """The remedy is said, and nothing is left."""

    def large(folder: Path) -> None:
        whole(folder)
        (folder / "model.safetensors").write_bytes(b"x" * 100_000)

    models = converted(monkeypatch, tmp_path, large)
    with largest_file(10_000), pytest.raises(CheckpointError, match="could not be written"):
        embedded_folder(NAME)
    assert list(models.iterdir()) == []


def test_a_package_without_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A half-installed package says so."""
    converted(monkeypatch, tmp_path, whole)
    (tmp_path / "package" / "model.gguf").unlink()
    with pytest.raises(ModelError, match="holds no GGUF file"):
        embedded_folder(NAME)
