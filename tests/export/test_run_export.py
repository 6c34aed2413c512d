"""Exports appear whole, proven and listed, or not at all; a damaged one fails its proof."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from prefine.cli.app import main
from prefine.errors import CheckpointError, ModelError, PrefineError, RecipeError
from prefine.export import merging, reward_export
from prefine.export.formats import ExportOptions
from prefine.export.manifest import write_manifest
from prefine.export.merged import MergedFormat
from prefine.export.reload import Reloaded, ReloadSpec, reload
from prefine.export.reward_export import RewardExport
from prefine.export.run_export import Exported, export_run, note_export, verify_export
from prefine.export.source import ExportSource
from prefine.models.forward.packed import standard_attention
from prefine.named_model import load
from prefine.records import Message
from prefine.run import Run
from tests.export.here import PROBES, reload_here
from tests.training import tiny

WEIGHTS = "model.safetensors"
in_this_process = pytest.mark.usefixtures("in_this_process")


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refused(
    kind: type[PrefineError], problem: str, remedy: str, name: Path, *, to: str = "merged", **asked: Any
) -> None:
    """Refused in one line, and nothing is left behind."""
    root = name.parent
    before = files(root)
    with pytest.raises(kind) as caught:
        export_run(str(name), to, **asked)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)
    assert files(root) == before


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], object]], None]:
    """damaged(change): `change` does something to each merged folder after it was written."""
    rightly = MergedFormat.write

    def set_change(change: Callable[[Path], object]) -> None:
        def write(self: MergedFormat, source: ExportSource, folder: Path, options: ExportOptions) -> Any:
            artefacts = rightly(self, source, folder, options)
            change(folder)
            return artefacts

        monkeypatch.setattr(MergedFormat, "write", write)

    return set_change


# --- What users get --------------------------------------------------------------------------------------------------


@in_this_process
def test_a_merged_export(dpo_copy: Path) -> None:
    exported = export_run(str(dpo_copy), "merged")
    folder = dpo_copy / "export" / "merged"
    assert exported.folder == folder
    assert exported.failures == []
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    run = load(dpo_copy, device="cpu", dtype="float32").language_model
    ids = run.template.prompt_ids((Message(role="user", content="Hello"),))
    with torch.no_grad():
        with standard_attention(run.packed) as ours_in_rows:
            ours = ours_in_rows(input_ids=torch.tensor([ids])).logits
        theirs = model(input_ids=torch.tensor([ids])).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert tokenizer.chat_template == run.tokenizer.chat_template
    assert set(run.template.stop_ids) == {model.generation_config.eos_token_id}
    values = json.loads((folder / "export.json").read_text())
    (proof,) = values["proof"]
    assert values["proven"] is True
    assert values["forced"] is False
    assert (proof["prompts"], proof["prompts_equal"]) == (PROBES, PROBES)
    assert proof["heldout"] >= 8
    assert proof["kl_mean"] < 1e-6
    assert proof["kept"] == pytest.approx(1, abs=1e-3)
    assert set(values["files"]) == {path.name for path in folder.iterdir()} - {"README.md", "export.json"}
    assert values["lineage"]["model"] == "../.."
    assert values["lineage"]["base"] == "../../../base"
    assert str(dpo_copy) not in (folder / "export.json").read_text() + (folder / "README.md").read_text()


@in_this_process
def test_an_export_is_listed_in_its_run(dpo_copy: Path) -> None:
    export_run(str(dpo_copy), "merged", dtype="bf16")
    export_run(str(dpo_copy), "adapter")
    shutil.rmtree(dpo_copy / "export" / "adapter")
    export_run(str(dpo_copy), "adapter")
    manifest = json.loads((dpo_copy / "manifest.json").read_text())
    assert [each["path"] for each in manifest["exports"]] == ["export/merged-bfloat16", "export/adapter"]
    assert all(each["proven"] and each["proof"][0]["kl_mean"] < 0.005 for each in manifest["exports"])
    assert manifest["status"] == "finished"
    ExportSource.open(str(dpo_copy))
    (dpo_copy / "manifest.json").write_text(json.dumps({**manifest, "exports": manifest["exports"][:1]}))
    for _ in range(2):  # as after a kill before the last line
        note_export(str(dpo_copy), dpo_copy / "export" / "adapter")
        assert json.loads((dpo_copy / "manifest.json").read_text()) == manifest


@in_this_process
def test_the_card_has_the_hubs_header(dpo_copy: Path) -> None:
    (dpo_copy.parent / "base" / "README.md").write_text("---\nlicense: mit\ntags: []\n---\n# T\n")
    folder = export_run(str(dpo_copy), "merged").folder
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(header)
    assert values["license"] == "mit"
    assert values["library_name"] == "transformers"
    assert values["tags"] == ["prefine", "dpo"]
    assert "base_model" not in values  # a folder is nothing that the hub has
    for part in (
        "## Where it comes from",
        "## Held-out figures",
        "## Proof",
        "## How to load it",
        f"of {PROBES} prompts",
    ):
        assert part in text


@in_this_process
def test_what_a_killed_export_left_is_removed(dpo_copy: Path) -> None:
    left = dpo_copy / "export" / f".merged.{2**22 + 1}-0123abcd.tmp"  # no process has such a number
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    export_run(str(dpo_copy), "merged")
    assert [path.name for path in (dpo_copy / "export").iterdir()] == ["merged"]


def test_what_killed_exports_left_is_removed_before_room_is_asked_for(
    dpo_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left() -> bool:
        return any(each.exists() for each in (in_run, beside))

    def no_room(folder: Path, needed: int) -> None:
        raise CheckpointError("there is no room", "Free some.") if left() else RecipeError("none is left", "Good.")

    in_run = dpo_copy / "export" / f".gguf.{2**22 + 1}-0123abcd.tmp"
    beside = dpo_copy.parent / f".mine.{2**22 + 1}-0123abcd.tmp"
    another = dpo_copy.parent / f".another.{2**22 + 1}-0123abcd.tmp"
    monkeypatch.setattr("prefine.export.merged.require_disk", no_room)
    in_run.mkdir(parents=True)
    with pytest.raises(RecipeError, match="none is left"):
        export_run(str(dpo_copy), "merged")
    for each in (beside, another):
        each.mkdir()
    with pytest.raises(RecipeError, match="none is left"):
        export_run(str(dpo_copy), "merged", out=dpo_copy.parent / "mine")
    assert another.exists()


@in_this_process
def test_a_model_is_exported_from_python(dpo_copy: Path) -> None:
    assert (
        Run(dpo_copy).model.export("merged", dtype="bf16", out=str(dpo_copy.parent / "mine"))
        == dpo_copy.parent / "mine"
    )


@in_this_process
def test_an_adapter_export(dpo_copy: Path) -> None:
    exported = export_run(str(dpo_copy), "adapter", out=dpo_copy.parent / "out" / "adapter")
    folder = exported.folder
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../../base"
    origin = json.loads((folder / "prefine.json").read_text())
    assert origin["base_sha256"] == json.loads((folder / "export.json").read_text())["lineage"]["base_sha256"]
    base = AutoModelForCausalLM.from_pretrained(dpo_copy.parent / "base")
    model = PeftModel.from_pretrained(base, folder)
    saved, ours = (load_file(each / "adapter_model.safetensors") for each in (folder, dpo_copy / "model"))
    assert saved.keys() == ours.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in ours.items())
    assert model.peft_config["default"].r == 4
    assert load(folder, device="cpu").language_model.location.adapter == folder


@in_this_process
def test_a_reward_run_becomes_a_classifier(
    trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("reward")
    folder = tmp_path / "merged"
    exported = export_run(str(run), "merged", out=folder)
    assert exported.failures == []
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1
    assert exported.values["proof"][0]["scores_apart"] < 1e-3
    assert verify_export(folder).failures == []
    refused(ModelError, "is a reward model", "--to merged", run, to="adapter", out=tmp_path / "no")

    # Prompts as others render them count as much as the scores of given tokens, and a batch as much as one by one.
    def other(spec: ReloadSpec, progress: Callable[[int], None]) -> Reloaded:
        found = reload(spec, progress)
        return replace(found, rendered=[ids[1:] for ids in found.rendered])

    monkeypatch.setattr(reward_export, "scores_by_transformers", lambda folder, trees: torch.tensor([math.nan] * 5))
    exporter = RewardExport(ExportSource.open(str(run)), other)
    artefacts = exporter.artefacts(MergedFormat(), folder, ExportOptions((), None, folder))
    (proven,) = exporter.again(folder, artefacts, lambda what, done, total: None)
    assert [text.split(":")[0] for text in proven.failures] == [
        "5 of 5 prompts have other token ids",
        "scores are nan standard deviations from the run's, over 0.001",
    ]


@in_this_process
@pytest.mark.parametrize("quantization", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_run_on_a_quantised_base(trained: Callable[..., Path], tmp_path: Path, quantization: str) -> None:
    """Merged, it computes what it computed in training; as an adapter, on the base quantised again."""
    pytest.importorskip("bitsandbytes")
    run = trained("sft", {"model.quantization": quantization})
    exported = export_run(str(run), "merged", dtype="float32", out=tmp_path / "merged")
    (proof,) = exported.values["proof"]
    if quantization == "nf4":
        assert proof["kl_mean"] < 1e-8
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert verify_export(tmp_path / "merged").failures == []
    adapter = export_run(str(run), "adapter", out=tmp_path / "adapter")
    assert adapter.failures == []
    assert adapter.values["artefacts"][0]["options"]["quantization"] == quantization
    alone = ExportSource.open(str(adapter.folder))  # a folder, whose run is no longer known
    assert (alone.run, alone.quantization, alone.reference_dtype) == (None, quantization, "float32")
    assert "quantization_config=quantised" in (adapter.folder / "README.md").read_text()


@in_this_process
def test_a_run_with_a_variant_of_lora(trained: Callable[..., Path], tmp_path: Path) -> None:
    """Merged, DoRA on principal components computes what it computed in training; as an adapter, on the same base."""
    run = trained("sft", {"lora.init": "pissa", "lora.dropout": 0.0, "lora.dora": True, "lora.rslora": True})
    said = json.loads((run / "manifest.json").read_text())["model"]["adapter_form"]
    assert said == "PiSSA: starts on 4 principal components, saved as rank 8 on the original base; " + (
        "rank-stabilised scale; DoRA"
    )
    exported = export_run(str(run), "merged", out=tmp_path / "merged")
    (proof,) = exported.values["proof"]
    assert proof["kl_mean"] < 1e-6
    assert proof["kept"] == pytest.approx(1, abs=1e-3)
    assert export_run(str(run), "adapter", out=tmp_path / "adapter").failures == []


@in_this_process
def test_a_run_without_answers_is_compared_on_its_own(trained: Callable[..., Path], tmp_path: Path) -> None:
    """PPO's rows are prompts."""
    run = trained("ppo", {"training.max_steps": 1, **tiny.UNGUARDED})
    (proof,) = export_run(str(run), "merged", out=tmp_path / "merged").values["proof"]
    assert proof["heldout"] >= 8
    assert proof["positions"] >= 8 * proof["prompts"]


@in_this_process
def test_a_model_without_a_run_is_found_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path from the export's folder, whatever the working directory was."""
    monkeypatch.chdir(base.parent)
    folder = export_run("base", "merged", out=tmp_path / "merged").folder
    monkeypatch.chdir(tmp_path)
    assert verify_export(folder).failures == []


@in_this_process
def test_all_weights_are_exported_merged(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained("sft", {"lora": None})
    exported = export_run(str(run), "merged", dtype="float16", out=tmp_path / "out")
    (proof,) = exported.values["proof"]
    assert (proof["kept"], proof["dtype"]) == (None, "float16")
    refused(ModelError, "holds all weights", "--to merged", run, to="adapter", out=tmp_path / "no")


# --- Damage is found -------------------------------------------------------------------------------------------------


def wrong_template(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\\n", "assistant"))


def lost_ends(folder: Path) -> None:
    for name in ("generation_config.json", "config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "eos_token_id": 0}))


def other_base(folder: Path) -> None:
    """The same deltas on weights of another seed: here, the embedding's."""
    weights = load_file(folder / WEIGHTS)
    noise = torch.randn(weights["model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(3))
    save_file(weights | {"model.embed_tokens.weight": 0.1 * noise}, folder / WEIGHTS, {"format": "pt"})


@in_this_process
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrong_template, f"{PROBES} of {PROBES} prompts are rendered to other token ids"),
        (lost_ends, "generation does not end at token"),
        (other_base, "mean KL"),
    ],
)
def test_a_damaged_export_is_refused(
    change: Callable[[Path], None],
    said: str,
    dpo_copy: Path,
    damaged: Callable[[Callable[[Path], object]], None],
) -> None:
    damaged(change)
    refused(ModelError, said, "--force", dpo_copy)


@pytest.fixture(scope="module")
def slight_run(trained: Callable[..., Path]) -> Path:
    """A run that changed its model so little that KL and perplexity hardly tell it from its base."""
    return trained("dpo", {"lora.dropout": 0.0, "training.learning_rate": 1e-3})


@in_this_process
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_deltas_that_are_lost_or_added_twice_are_refused(
    slight_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, dtype: str
) -> None:
    rightly = merging._separate_shared

    def scaled(model: torch.nn.Module) -> None:
        rightly(model)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.mul_(factor)

    monkeypatch.setattr(merging, "_separate_shared", scaled)
    with pytest.raises(ModelError) as caught:
        export_run(str(slight_run), "merged", dtype=dtype, out=tmp_path / "out")
    kept = re.search(r"it keeps (\S+) of the trained change", caught.value.problem)
    assert kept is not None
    assert float(kept[1]) == pytest.approx(factor, abs=0.25)
    hint = "--dtype float32 keeps it" if (factor, dtype) == (0.0, "bfloat16") else "Choose another format or type"
    assert hint in caught.value.remedy
    assert not (tmp_path / "out").exists()


@in_this_process
def test_force_keeps_it_marked(dpo_copy: Path, damaged: Callable[[Callable[[Path], object]], None]) -> None:
    damaged(lost_ends)
    exported = export_run(str(dpo_copy), "merged", force=True)
    assert any("does not end" in each for each in exported.failures)
    values = json.loads((exported.folder / "export.json").read_text())
    assert (values["proven"], values["forced"]) == (False, True)
    assert "Kept with `--force`" in (exported.folder / "README.md").read_text()
    assert json.loads((dpo_copy / "manifest.json").read_text())["exports"][0]["proven"] is False
    edit(exported, lambda values: values.update(proven=True, failures=[]))
    verified = verify_export(exported.folder)
    assert verified.failures == exported.failures
    assert (verified.values["proven"], verified.values["forced"]) == (False, True)


# --- Verify ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported_once(dpo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An export beside its run. Read only."""
    top = tmp_path_factory.mktemp("exported") / "copy"
    shutil.copytree(dpo_run.parent, top)
    with pytest.MonkeyPatch.context() as patched:
        reload_here(patched)
        return export_run(str(top / "run"), "merged", out=top / "out")


@pytest.fixture
def exported(exported_once: Exported, in_this_process: None, tmp_path: Path) -> Exported:
    """The same to change."""
    shutil.copytree(exported_once.folder.parent, tmp_path / "copy")
    return replace(exported_once, folder=tmp_path / "copy" / "out")


def test_verify_repeats_the_proof(exported: Exported) -> None:
    again = verify_export(exported.folder)
    assert again.failures == []
    assert again.table[0] == exported.table[0]
    (exported.folder / "README.md").write_text("Mine.")  # which users may
    assert verify_export(exported.folder).values["proof"][0]["kl_mean"] < 1e-6


def test_verify_finds_changed_and_missing_files(exported: Exported) -> None:
    weights = exported.folder / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    (exported.folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors was changed, tokenizer.json is missing"):
        verify_export(exported.folder)


def test_verify_wants_the_run_that_was_exported(
    exported: Exported, trained: Callable[..., Path], tmp_path: Path
) -> None:
    other = trained("sft")
    with pytest.raises(ModelError, match=r"is not what .* was exported from"):
        verify_export(exported.folder, str(other))
    moved = tmp_path / "elsewhere"
    shutil.move(exported.folder, moved)
    with pytest.raises(CheckpointError, match=r"files of .* are as they were exported.* Or name the run with --run"):
        verify_export(moved)
    assert verify_export(moved, str(tmp_path / "copy" / "run")).failures == []


def test_verify_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        verify_export(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"export.json cannot be read"):
        verify_export(tmp_path)
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is of another release, or damaged"):
        verify_export(tmp_path)


def edit(exported: Exported, change: Callable[[dict[str, Any]], object]) -> None:
    path = exported.folder / "export.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_verify_runs_nothing_that_export_json_says(exported: Exported, tmp_path: Path) -> None:
    """An export may come from anybody: its loader, options, path and limits are those of this release."""
    ran = tmp_path / "ran"
    hostile = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    (exported.folder / "hostile.py").write_text(hostile + "from transformers import LlamaForCausalLM as Hostile\n")
    config = json.loads((exported.folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "hostile.Hostile", "AutoConfig": "hostile.Hostile"}
    (exported.folder / "config.json").write_text(json.dumps(config))
    write_manifest(exported.folder, {k: v for k, v in exported.values.items() if k != "files"})

    def change(values: dict[str, Any]) -> None:
        values["artefacts"][0] |= {"path": "../elsewhere", "loader": "peft", "options": {"trust_remote_code": True}}
        values["artefacts"][0]["limits"] |= {"kl_mean": 1e9, "kept": [-9, 9]}

    edit(exported, change)
    verified = verify_export(exported.folder)
    assert not ran.exists()
    (artefact,) = verified.values["artefacts"]
    assert (artefact["path"], artefact["loader"], artefact["options"]) == (".", "transformers", {})
    assert artefact["limits"] == exported.values["artefacts"][0]["limits"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda values: values.update(artefacts=[]), r"damaged \(artefacts"),
        (lambda values: values.update(files={}), r"damaged \(files"),
        (lambda values: values.update(files={"config.json": 3}), r"damaged \(files.config.json"),
        (lambda values: values.pop("lineage"), r"damaged \(lineage"),
        (lambda values: values.update(format="zip"), "there is no format 'zip'"),
        (lambda values: values["artefacts"][0].update(name="merged int2"), "lists 'merged int2', which --to merged"),
        (lambda values: values["files"].pop("config.json"), "config.json is not of the export"),
    ],
)
def test_verify_of_an_altered_export_json(
    exported: Exported, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    edit(exported, change)
    with pytest.raises(CheckpointError, match=problem):
        verify_export(exported.folder)


def test_verify_flags_files_that_are_not_listed(exported: Exported) -> None:
    (exported.folder / ".gitattributes").touch()  # which hubs add
    (exported.folder / "model-00001-of-00001.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"exported: model-00001-of-00001.safetensors is not of the export\."):
        verify_export(exported.folder)


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_formats_types_and_dtypes_that_are_not_there(dpo_run: Path) -> None:
    refused(RecipeError, "no format 'onnx'", "adapter, merged", dpo_run, to="onnx")
    refused(RecipeError, "merged has no types", "Write --to merged", dpo_run, to="merged:a")
    refused(RecipeError, "names a type twice or none", "once", dpo_run, to="merged:a,a")
    refused(RecipeError, "--dtype is 'int8'", "bfloat16", dpo_run, dtype="int8")


def test_a_folder_that_is_taken(dpo_copy: Path) -> None:
    for make in (Path.mkdir, Path.touch):
        taken = dpo_copy.parent / make.__name__
        make(taken)
        refused(CheckpointError, "is there already", "--out", dpo_copy, out=taken)
        refused(CheckpointError, "is there already", "--out", dpo_copy.parent / "none", out=taken)  # at once
    (dpo_copy / "export" / "merged").mkdir(parents=True)
    refused(CheckpointError, "is there already", "--out", dpo_copy)


def test_a_folder_without_a_run_needs_a_name_for_its_export(base: Path) -> None:
    refused(RecipeError, "--out is missing", "with --out", base)


def test_no_room(dpo_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
        for to in ("merged", "adapter"):
            refused(CheckpointError, "of disk, and 5e-09 GB are free", "--out", dpo_copy, to=to)
    memory = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    for to in ("merged", "adapter"):
        refused(ModelError, "of memory, and 1e-06 GB are available", "more memory", dpo_copy, to=to)


@in_this_process
def test_a_full_disk_leaves_nothing(dpo_copy: Path, largest_file: Callable[[int], Any]) -> None:
    with largest_file(20_000):
        refused(CheckpointError, "", "", dpo_copy)


def test_a_run_in_use_is_exported_and_not_changed(
    dpo_copy: Path, in_this_process: None, caplog: pytest.LogCaptureFixture
) -> None:
    from prefine.runs.directory import RunDirectory

    before = (dpo_copy / "manifest.json").read_bytes()
    with RunDirectory.create(dpo_copy, resume=True):
        exported = export_run(str(dpo_copy), "merged")
    assert exported.failures == []
    assert (dpo_copy / "manifest.json").read_bytes() == before
    assert "is not listed" in caplog.text


# --- The command line, in fresh processes ----------------------------------------------------------------------------


def test_the_command_line(dpo_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main(words)
        shown = capsys.readouterr()
        return leaving.value.code, shown.out, shown.err

    code, out, err = run("export", str(dpo_copy), "--to", "merged", "--dtype", "bf16")
    folder = dpo_copy / "export" / "merged-bfloat16"
    assert code == 0, err
    assert out.endswith(f"done: {folder}, proven\n")
    assert "merged bfloat16" in out
    assert "32 of 32 equal" in out
    (folder / "config.json").write_text("{}")
    assert run("export", "verify", str(folder)) == (
        2,
        "",
        f"error: {folder} is not what was exported: config.json was changed. Copy it again, or export the run again.\n",
    )


def test_an_export_that_cannot_be_loaded(dpo_copy: Path, damaged: Callable[[Callable[[Path], object]], None]) -> None:
    """Also with --force: nobody could use it. In a fresh process, whose last line becomes the reason."""
    damaged(lambda folder: (folder / WEIGHTS).write_bytes(b"nothing"))
    refused(ModelError, "could not load or run the export (", "choose another", dpo_copy, force=True)
