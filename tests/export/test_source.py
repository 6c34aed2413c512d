"""What can be exported, and what is refused before any work, with the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefine.errors import CheckpointError, ModelError, PrefineError
from prefine.export.manifest import lineage
from prefine.export.source import ExportSource
from tests.training import tiny


def refused(kind: type[PrefineError], name: Path | str, problem: str, remedy: str, *, load: bool = False) -> None:
    with pytest.raises(kind) as caught:
        found = ExportSource.open(str(name))
        assert load
        _ = found.loaded
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert caught.value.field is None
    assert "\n" not in str(caught.value)


def change(path: Path, update: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    update(values)
    path.write_text(json.dumps(values))


def test_a_finished_run_and_its_result_are_the_same_source(dpo_run: Path) -> None:
    for name in (dpo_run, dpo_run / "model"):
        source = ExportSource.open(str(name))
        assert source.run is not None
        assert source.run.path == dpo_run
        assert (source.has_adapter, source.scores, source.quantization) == (True, False, "none")
        assert source.manifest["stage"] == "dpo"
        assert source.base is not None
        assert source.base.stored_dtype == "float32"
        assert source.base.parameters == sum(
            tensor.numel() for tensor in load_file(dpo_run.parent / "base" / "model.safetensors").values()
        )


def test_a_folder_is_a_source_without_a_run(base: Path) -> None:
    source = ExportSource.open(str(base))
    assert (source.run, source.has_adapter, dict(source.manifest)) == (None, False, {})


@pytest.mark.parametrize("status", ["stopped", "failed", "running"])
def test_a_run_that_is_not_finished(dpo_copy: Path, status: str) -> None:
    change(dpo_copy / "manifest.json", lambda values: values.update(status=status))
    refused(CheckpointError, dpo_copy, f"is not finished (its status is {status!r})", f"prefine dpo {dpo_copy}")
    refused(CheckpointError, dpo_copy / "model", "is not finished", "--resume")


def test_a_result_that_was_changed(dpo_copy: Path) -> None:
    weights = dpo_copy / "model" / "adapter_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights)
    refused(CheckpointError, dpo_copy, "was changed since the run ended", "from a copy")
    weights.unlink()
    refused(CheckpointError, dpo_copy, "adapter_model.safetensors is missing", "from a copy")


def test_a_base_that_moved(dpo_copy: Path) -> None:
    (dpo_copy.parent / "base").rename(dpo_copy.parent / "elsewhere")
    # The run remembers the folder of its training, too.
    change(dpo_copy / "manifest.json", lambda values: values["model"].update(base="./gone"))
    change(dpo_copy / "model" / "prefine.json", lambda values: values.update(base="./gone"))
    change(dpo_copy / "manifest.json", lambda values: values["result"].update(model={}))
    refused(ModelError, dpo_copy, "needs its base model", "Restore that folder")


def test_a_base_that_changed(dpo_copy: Path) -> None:
    tiny.save_model(dpo_copy.parent / "base", seed=8)
    refused(ModelError, dpo_copy, "trained on other weights", "Use the base model it was trained on", load=True)


def test_a_base_with_another_config(dpo_copy: Path) -> None:
    change(dpo_copy.parent / "base" / "config.json", lambda values: values.update(rms_norm_eps=0.1))
    refused(ModelError, dpo_copy, "trained on another config", "Use the base model it was trained on", load=True)


def test_a_checkpoint(trained: Callable[..., Path]) -> None:
    run = trained("sft", {"training.save_every_steps": 2})
    step = next(iter(sorted((run / "checkpoints").iterdir())))
    refused(CheckpointError, step, "is a checkpoint", f"Name the run: {run}")


def test_a_value_head(base: Path, tmp_path: Path) -> None:
    """As TRL saves a policy with its value head."""
    shutil.copytree(base, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    save_file(load_file(weights) | {"v_head.summary.weight": torch.zeros(1, 32)}, weights, {"format": "pt"})
    refused(ModelError, tmp_path / "model", "has a value head (v_head.summary.weight)", "Export the policy")


def test_a_run_with_code_of_its_own(dpo_copy: Path) -> None:
    change(dpo_copy / "manifest.json", lambda values: values["recipe"]["model"].update(trust_remote_code=True))
    refused(ModelError, dpo_copy, "trust_remote_code", "by hand")


def test_what_is_not_there(tmp_path: Path) -> None:
    refused(ModelError, tmp_path / "none", "there is no folder", "Name a folder, a run")


def test_a_model_is_merged_once(base: Path, tmp_path: Path) -> None:
    """`loaded` is the merged model afterwards: to merge it again would be a mistake of the caller's."""
    source = ExportSource.open(str(base))
    source.save_merged(tmp_path, "float32")
    with pytest.raises(RuntimeError, match="merged before"):
        source.save_merged(tmp_path, "float32")


def test_the_quantisation_of_training_is_known_outside_the_run(dpo_copy: Path) -> None:
    """Else a merge would put the adapter on weights that it was not trained on, and prove it against the same."""
    change(dpo_copy / "model" / "prefine.json", lambda values: values.update(quantization="nf4"))
    alone = dpo_copy.parent / "elsewhere" / "alone"
    alone.parent.mkdir()
    shutil.move(dpo_copy / "model", alone)
    source = ExportSource.open(str(alone))
    assert (source.quantization, source.reference_dtype) == ("nf4", "float32")
    change(alone / "prefine.json", lambda values: values.update(quantization="int2"))
    refused(ModelError, alone, "quantised as 'int2', which is not known", "newer prefine")


@pytest.fixture
def hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub with the model some/tiny, which is T, and a cache that is empty at first: its folder."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    cache = tmp_path / "snapshots" / "c0ffee"

    def download(name: str, file: str, revision: str | None = None) -> str:
        if name != "some/tiny" or not (base / file).is_file():
            raise LocalEntryNotFoundError("no such file")
        cache.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / file, cache / file)
        return str(cache / file)

    def snapshot(
        name: str, revision: str | None = None, local_files_only: bool = False, allow_patterns: Sequence[str] = ()
    ) -> str:
        if not cache.is_dir():
            raise LocalEntryNotFoundError("not in the cache")
        if not local_files_only:
            assert revision == "c0ffee"
            for file in {file for pattern in allow_patterns for file in base.glob(pattern)}:
                shutil.copyfile(file, cache / file.name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return cache


def test_a_model_of_the_hub_is_fetched_before_it_is_looked_at(hub: Path, base: Path, tmp_path: Path) -> None:
    """Else its type would be guessed, and the hashes that verifying compares would be empty."""
    source = ExportSource.open("some/tiny")
    assert (source.revision, source.base) == ("c0ffee", ExportSource.open(str(base)).base)
    found, same = lineage(source, tmp_path / "out"), lineage(ExportSource.open(str(base)), tmp_path / "out")
    assert found["base_revision"] == "c0ffee"
    for key in ("base_sha256", "base_config_sha256", "tokenizer_sha256", "identity"):
        assert found[key], key
        assert found[key] == same[key]


def test_a_model_that_cannot_be_fetched(hub: Path) -> None:
    refused(ModelError, "some/other", "'some/other' is not on this machine and could not be fetched", "the network")


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", None])
def test_weights_that_are_not_whole(base: Path, dpo_copy: Path, tmp_path: Path, content: bytes | None) -> None:
    """The pointer that Git LFS leaves, and a download that was cut off."""
    shutil.copytree(base, tmp_path / "model")
    shutil.copytree(dpo_copy / "model", dpo_copy.parent / "elsewhere" / "alone")
    for folder, name in (
        (tmp_path / "model", "model.safetensors"),
        (dpo_copy.parent / "elsewhere" / "alone", "adapter_model.safetensors"),
    ):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content or whole[: len(whole) // 2])
        refused(ModelError, folder, f"{name}' is no whole safetensors file", "git lfs pull")
