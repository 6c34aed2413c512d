"""GPTQ and AWQ exports: what is refused, what auto-round is asked for, and what they are calibrated on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from prefine.data.tokens.store import StoreWriter
from prefine.data.tokens.trees import TokenTree
from prefine.errors import MissingDependencyError, ModelError, RecipeError
from prefine.export import quantized
from prefine.export.child import run_quietly
from prefine.export.formats import ExportOptions
from prefine.export.quantized import (
    AwqFormat,
    GptqFormat,
    QuantizedFormat,
    calibration_rows,
    group_size,
    load_auto_round,
)
from prefine.export.source import BaseFacts, ExportSource
from prefine.models.loading.location import Location
from prefine.runs.directory import RunDirectory
from tests.models.tiny import save_tokenizer


def a_run(folder: Path, trees: int = 40, length: int = 50) -> ExportSource:
    """A run whose rows have `length` tokens, the row's number in each."""
    run = RunDirectory(folder / "dpo")
    run.data.mkdir(parents=True)
    with StoreWriter(run.data / "train.arrow") as store:
        for row in range(trees):
            said = [row] * (length - 10)
            store.add(TokenTree([row] * 10, (said, [999] * 5), (None, None), row), "{}")
    (folder / "config.json").write_text('{"hidden_size": 64}')
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    source = ExportSource("runs/dpo", Location("runs/dpo", str(folder), "base", None, str(folder)), run, {})
    source.__dict__["base"] = BaseFacts(1000, "bfloat16")
    return source


def options(folder: Path, *types: str) -> ExportOptions:
    return ExportOptions(types, None, folder)


def test_rows_are_prompts_with_their_first_answers_end_to_end(tmp_path: Path) -> None:
    rows = calibration_rows(a_run(tmp_path), 128)
    assert rows.shape == (8, 250)  # 2,000 tokens in the fewest rows that will do
    texts = rows.flatten().view(40, 50)  # each row's tokens lie together, the rows in a random order
    assert (texts == texts[:, :1]).all()
    assert sorted(texts[:, 0].tolist()) == list(range(40))
    assert texts[:, 0].tolist() != list(range(40))


def test_no_more_rows_than_needed_are_taken(tmp_path: Path) -> None:
    source = a_run(tmp_path, trees=700, length=200)
    assert calibration_rows(source, 128).shape == (128, 512)
    assert calibration_rows(source, 16).shape == (16, 512)


def test_too_few_rows_and_models_that_are_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has 100 tokens to calibrate on, and 512 are needed"):
        calibration_rows(a_run(tmp_path, trees=2), 128)
    with pytest.raises(ModelError, match="has no training rows"):
        calibration_rows(ExportSource("m", Location("m", "m", "m", None, "m"), None, {}), 128)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"hidden_size": 4096, "intermediate_size": 14336}, 128),
        ({"hidden_size": 576, "intermediate_size": 1536}, 64),
        ({"hidden_size": 4096, "intermediate_size": 4096, "num_attention_heads": 33, "head_dim": 32}, 32),
        ({"text_config": {"hidden_size": 2048}}, 128),
    ],
)
def test_groups_divide_the_inputs_of_every_layer(config: dict[str, Any], size: int) -> None:
    assert group_size(config) == size


def test_what_quantising_would_fail_for_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "installed", lambda module: True)
    source = a_run(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 100}')
    with pytest.raises(ModelError, match="100 inputs, which 32 does not divide"):
        GptqFormat().require(source, options(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    source.__dict__["base"] = BaseFacts(10**9, "bfloat16")
    monkeypatch.setattr("prefine.export.room.available_memory", lambda: 10**10)
    asked = []  # room for the merged model in 16 bits would be 2 GB
    monkeypatch.setattr(quantized, "require_disk", lambda folder, needed: asked.append(needed))
    monkeypatch.setattr("prefine.export.merged.require_disk", lambda folder, needed: None)
    GptqFormat().require(source, options(tmp_path))
    assert asked == [3 * 10**9]


def test_layers_that_no_group_divides_are_refused() -> None:
    with pytest.raises(ModelError, match="100 inputs, which 32 does not divide"):
        group_size({"hidden_size": 100})


def test_what_cannot_be_quantised_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = a_run(tmp_path)
    GptqFormat().require(source, options(tmp_path / "out"))
    with pytest.raises(RecipeError, match="gptq has no types"):
        GptqFormat().require(source, options(tmp_path / "out", "q4"))
    for missing, package in (("auto_round", "auto-round,"), ("auto_round_kernel", "auto-round-lib,")):
        monkeypatch.setattr(quantized, "installed", lambda module, missing=missing: module != missing)
        refused = rf"--to awq needs {package} which.*pip install 'prefine\[quantize\]'"
        with pytest.raises(MissingDependencyError, match=refused):
            AwqFormat().require(source, options(tmp_path / "out"))
    source.scores = True
    with pytest.raises(ModelError, match="is a reward model"):
        GptqFormat().require(source, options(tmp_path / "out"))


@pytest.mark.parametrize(
    ("form", "kind", "symmetric"), [(GptqFormat, "auto_gptq", True), (AwqFormat, "auto_awq", False)]
)
def test_auto_round_is_asked_for_the_files_that_servers_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any, kind: str, symmetric: bool
) -> None:
    source = a_run(tmp_path)
    source.__dict__["loaded"] = SimpleNamespace()

    def save_merged(folder: Path, dtype: str) -> None:
        assert dtype == "float16"
        (folder / "config.json").write_text('{"hidden_size": 576}')
        (folder / "model.safetensors").write_text("whole")
        (folder / "chat_template.jinja").write_text("ours")

    def quantised(module: str, job: Path, what: str) -> None:
        asked = json.loads(job.read_text())
        assert (asked["format"], asked["symmetric"], asked["group_size"]) == (kind, symmetric, 64)
        assert asked["algorithms"] == ([] if symmetric else ["awq", "rtn"])
        assert (asked["device"], asked["iterations"]) == (("cuda:0", 200) if torch.cuda.is_available() else ("cpu", 0))
        assert load_file(asked["tokens"])["rows"].shape == (8, 250)
        made = Path(asked["out"]) / "nested"
        made.mkdir(parents=True)
        (made / "model.safetensors").write_text("four bits")
        (made / "config.json").write_text("{}")
        (made / "chat_template.jinja").write_text("theirs")

    source.save_merged = save_merged  # type: ignore[method-assign]
    monkeypatch.setattr(quantized, "run_quietly", quantised)
    folder = tmp_path / "out"
    folder.mkdir()
    (artefact,) = form().write(source, folder, options(folder))
    assert (artefact.loader, artefact.path) == ("auto-round", ".")
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == {"model.safetensors": "four bits", "config.json": "{}", "chat_template.jinja": "ours"}


@pytest.mark.slow
@pytest.mark.parametrize("form", [GptqFormat(), AwqFormat()], ids=["gptq", "awq"])
def test_real_weights_are_quantised_and_loaded_again(form: QuantizedFormat, tmp_path: Path) -> None:
    """Auto-round writes both formats, and its kernels read them: no layer is left with the weights it was made with."""
    for module in form.packages:
        pytest.importorskip(module)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )
    model.half().save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    save_file({"rows": torch.randint(0, 200, (8, 64))}, tmp_path / "rows.safetensors")
    job = {
        "folder": str(tmp_path / "model"),
        "out": str(tmp_path / "out"),
        "tokens": str(tmp_path / "rows.safetensors"),
        "format": f"auto_{form.name}",
        "symmetric": form.symmetric,
        "algorithms": form.algorithms,
        "group_size": 32,
        "iterations": 0,
        "device": "cpu",
        "half": False,
        "seed": 0,
        "threads": 1,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    run_quietly("prefine.export.quantise_weights", tmp_path / "job.json", "quantising")
    (folder,) = (tmp_path / "out").iterdir()
    loaded: Any = load_auto_round(folder, {})
    ids = torch.randint(0, 200, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = (each(ids).logits.float().flatten() for each in (model.float(), loaded.model))
    assert torch.corrcoef(torch.stack([expected, found]))[0, 1] > 0.98  # 0.7 with other weights in the layers
