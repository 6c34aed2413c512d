"""Trackers run for real: TensorBoard's files, and Weights & Biases offline, are read back."""

from __future__ import annotations

import io
import json
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefine.errors import RecipeError
from prefine.recipe.stage import StageRecipe
from prefine.runs.directory import read_metrics
from prefine.training import tracking
from prefine.training.display import Display
from prefine.training.tracking import Tracker, Trackers, flat, tracked_name
from tests.training import tiny

Make = Callable[..., StageRecipe]
THREE_STEPS = {"training.max_steps": 3, "report.samples": 2, "report.max_new_tokens": 8}


def metrics_of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == kind]


# --- Names and values ----------------------------------------------------------------------------------------------


def test_a_run_is_called_by_its_folder() -> None:
    assert [tracked_name(run) for run in ("runs/dpo", "runs/a/dpo", "/data/runs/dpo", "dpo")] == [
        *("dpo", "a/dpo", "dpo", "dpo")
    ]


def test_nested_fields_become_single_values_with_dotted_names() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": True, "g": "x"}
    assert flat(nested) == {"a.b.c": 1, "a.d": "[1, 2]", "e": "null", "f": True, "g": "x"}


class Failing(Tracker):
    """Fails from the second figure on."""

    def __init__(self) -> None:
        self.calls = self.closed = 0

    def log(self, values: object, step: int) -> None:
        self.calls += 1
        if step > 1:
            raise ConnectionError("no route\nto host")

    def show(self, name: str, rows: object, step: int) -> None:
        self.calls += 1

    def close(self) -> None:
        self.closed += 1
        raise ConnectionError("nor back")


def test_a_tracker_that_fails_is_left_out_and_said_so_once() -> None:
    said, failing, other = io.StringIO(), Failing(), Failing()
    trackers = Trackers({"wandb": failing}, Display(Console(file=said)))
    for step in (1, 2, 3):
        trackers.log({"loss": 1.0}, step)
    trackers.show("samples", [{"a": 1}], 3)
    trackers.close()
    assert (failing.calls, failing.closed) == (2, 1)  # left open, the next run would go on with it
    assert said.getvalue().splitlines() == [
        "warning: wandb failed and is left out from now on: ConnectionError: no route to host"
    ]
    Trackers({"wandb": other}).show("samples", [], 3)
    assert other.calls == 0


def test_a_tracker_that_cannot_start_is_refused_before_anything_is_learned(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Tracker:
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(tracking, "_KINDS", {"tensorboard": refuse})
    made = make("sft", changes={"training.trackers": ["tensorboard"]})
    with pytest.raises(
        RecipeError, match=r"training\.trackers: tensorboard could not be started: RuntimeError: api_key"
    ):
        tiny.train(made)
    assert not (Path(made.run) / "manifest.json").exists()


# --- TensorBoard ---------------------------------------------------------------------------------------------------


def test_tensorboard_has_figures_recipe_samples_and_histograms(make: Make, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    made = make("dpo", changes={**THREE_STEPS, "training.trackers": ["tensorboard"], "dpo.beta": 0.25})
    tiny.train(made)
    run = Path(made.run)
    events = EventAccumulator(str(run / "prefine"), size_guidance={"tensors": 0}).Reload()

    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(row["step"], pytest.approx(row["loss"])) for row in metrics_of(run, "train")]
    heldout = [(event.step, event.value) for event in events.Scalars("heldout/loss")]
    assert heldout == [(row["step"], pytest.approx(row["loss"])) for row in metrics_of(run, "heldout")]

    data = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    fields = data.session_start_info.hparams
    assert fields["dpo.beta"].number_value == 0.25
    assert fields["training.max_steps"].number_value == 3
    assert fields["stage"].string_value == "dpo"

    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    (said,) = events.Tensors("samples/1/text_summary")
    text = said.tensor_proto.string_val[0].decode()
    assert f"    user: {samples[0]['prompt'][-1]['content']}" in text
    assert "**before**" in text and "**after**" in text
    assert events.Histograms("samples/after_tokens")[0].histogram_value.num == 2
    pairs = json.loads((run / "evaluation.json").read_text())["heldout"]["pairs"]
    margins = events.Histograms("heldout_pairs/after_margin")[0].histogram_value
    assert margins.num == len(pairs)
    assert margins.sum == pytest.approx(sum(pair["after_margin"] for pair in pairs))


def test_a_tracker_changes_no_weight(make: Make) -> None:
    results = []
    for name, trackers in (("alone", []), ("tracked", ["tensorboard"])):
        made = make("sft", name, {**THREE_STEPS, "training.trackers": trackers})
        tiny.train(made)
        results.append((Path(made.run) / "model" / "adapter_model.safetensors").read_bytes())
    assert results[0] == results[1]


def test_a_resumed_run_may_have_other_trackers(make: Make) -> None:
    made = make("sft", changes=THREE_STEPS)
    tiny.train(made)
    again = make(
        "sft", changes={**THREE_STEPS, "training.trackers": ["tensorboard"], "training.tracker_project": "other"}
    )
    tiny.train(again, resume=True)


# --- Weights & Biases ----------------------------------------------------------------------------------------------

_BLOCK, _HEADER = 1 << 15, 7


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of an offline run's file, which has the format of LevelDB's log."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, whole = file.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + _HEADER : at + _HEADER + size]
        at += _HEADER + size
        if kind in (1, 4):  # whole, or last
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


@pytest.fixture
def nobody_is_called(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server that Weights & Biases would call is here, and must not be called."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
        yield
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.usefixtures("nobody_is_called")
def test_wandb_offline_has_nested_configuration_project_name_tables_and_histograms(make: Make) -> None:
    made = make(
        "dpo",
        "named",
        {**THREE_STEPS, "training.trackers": ["wandb"], "training.tracker_project": "shop", "dpo.beta": 0.25},
    )
    tiny.train(made)
    run = Path(made.run)
    records = list(wandb_records(run / "prefine"))
    told = [record.run for record in records if record.HasField("run")]
    assert {(each.project, each.display_name, each.run_id, each.job_type) for each in told} == {
        ("shop", "named", tiny.manifest(run)["run_id"], "dpo")
    }
    configuration = {item.key: json.loads(item.value_json) for each in told for item in each.config.update}
    assert configuration["dpo"]["beta"] == 0.25
    assert configuration["training"]["max_steps"] == 3
    assert configuration["stage"] == "dpo"

    history = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    assert losses == [(row["step"], row["loss"]) for row in metrics_of(run, "train")]
    assert [row["step"] for row in history if "heldout/loss" in row] == [
        row["step"] for row in metrics_of(run, "heldout")
    ]
    shown = [key for row in history for key in row]
    assert any(key.startswith("heldout_pairs/after_margin") for key in shown)
    (table,) = run.glob("prefine/wandb/offline-run-*/files/media/table/samples_*.json")
    rows = json.loads(table.read_text())
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [row[rows["columns"].index("after")] for row in rows["data"]] == [sample["after"] for sample in samples]
