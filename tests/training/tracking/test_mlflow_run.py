"""MLflow: its local store is read back with its own client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.recipe.stage import StageRecipe
from tests.training import tiny
from tests.training.tracking.runs import THREE_STEPS, metrics_of, only_this_machine

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")

Make = Callable[..., StageRecipe]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a store of files; the other local store needs a database library."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield mlflow.MlflowClient(uri)
    mlflow.set_tracking_uri(before)


def test_mlflow_has_figures_parameters_quantiles_and_tables_and_a_resumed_run_goes_on(
    make: Make, client: Any, tmp_path: Path
) -> None:
    changes = {**THREE_STEPS, "training.save_every_steps": 1, "training.trackers": ["mlflow"]}
    changes |= {"training.tracker_project": "shop", "dpo.beta": 0.25}
    made = make("dpo", "named", changes)
    with only_this_machine() as attempts:
        tiny.train(made)
    assert not attempts
    run = Path(made.run)
    experiment = client.get_experiment_by_name("shop").experiment_id
    (found,) = client.search_runs([experiment])
    assert (found.info.run_name, found.info.status) == ("named", "FINISHED")
    assert (found.data.params["dpo.beta"], found.data.params["stage"]) == ("0.25", "dpo")

    def series(name: str) -> list[tuple[int, float]]:
        return [(each.step, each.value) for each in client.get_metric_history(found.info.run_id, name)]

    train, heldout = metrics_of(run, "train"), metrics_of(run, "heldout")
    assert series("loss") == [(row["step"], pytest.approx(row["loss"])) for row in train]
    assert series("heldout/loss") == [(row["step"], pytest.approx(row["loss"])) for row in heldout]
    assert [step for step, _ in series("heldout_rows/margin/p50")] == [row["step"] for row in heldout]
    assert len(series("rolling/loss")) == len(series("rss_gb")) == 3
    bins = mlflow.artifacts.load_dict(f"runs:/{found.info.run_id}/heldout_rows/margin/step_3.json")
    pairs = json.loads((run / "evaluation.json").read_text())["heldout"]["pairs"]
    assert sum(bins["counts"]) == len(pairs)
    table = mlflow.load_table("samples.json", run_ids=[found.info.run_id])
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert table["after"].tolist() == [sample["after"] for sample in samples]
    assert set(table["step"]) == {3}

    (run / "report.html").unlink(missing_ok=True)
    (run / "evaluation.json").unlink()
    tiny.train(made, resume=True)
    assert len(client.search_runs([experiment])) == 1
