"""Weights & Biases, offline: its file is read back."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefine.recipe.stage import StageRecipe
from tests.training import tiny
from tests.training.tracking.runs import THREE_STEPS, metrics_of

Make = Callable[..., StageRecipe]
_BLOCK, _HEADER = 1 << 15, 7


def wandb_records(folder: Path) -> list[Any]:
    """The records of an offline run's file. Another process writes it, and may still do so when the run is over."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 30
    while True:
        records = list(_records_in(file))
        if any(record.HasField("exit") for record in records) or time.monotonic() > until:
            return records
        time.sleep(0.1)


def _records_in(file: Path) -> Iterator[Any]:
    """The whole records in a file of LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        if at + _HEADER + size > len(data):
            return
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
    records = wandb_records(run / "prefine")
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
    for name in ("heldout_pairs/after_margin", "heldout_rows/margin", "rolling/loss", "rss_gb"):
        assert any(key.startswith(name) for key in shown), name
    (table,) = run.glob("prefine/wandb/offline-run-*/files/media/table/samples_*.json")
    rows = json.loads(table.read_text())
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [row[rows["columns"].index("after")] for row in rows["data"]] == [sample["after"] for sample in samples]
