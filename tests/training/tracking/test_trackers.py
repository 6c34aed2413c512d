"""All trackers together: what they are given, and what happens to one that fails."""

from __future__ import annotations

import io
import json
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from prefine.errors import MissingDependencyError, NotFiniteError, RecipeError, Stopped
from prefine.recipe.sft import SftRecipe
from prefine.recipe.stage import StageRecipe
from prefine.runs.directory import RunDirectory
from prefine.training.display import Display
from prefine.training.stages import sft
from prefine.training.tracking import trackers as tracking
from prefine.training.tracking.mlflow_run import MlflowRun
from prefine.training.tracking.tracker import Details, Table, TrackedRun, Tracker, Values
from prefine.training.tracking.trackers import Trackers
from prefine.training.tracking.trackio_run import TrackioRun
from tests.training import tiny
from tests.training.tracking.runs import THREE_STEPS, TWO_UPDATES, metrics_of, only_this_machine

Make = Callable[..., StageRecipe]


class Recorder(Tracker):
    """Records what it is given; fails from step `fails_at` on."""

    def __init__(self, fails_at: int = 99) -> None:
        self.fails_at = fails_at
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.values: list[tuple[int, dict[str, list[float]]]] = []
        self.tables: list[tuple[int, str, Table]] = []
        self.closed: list[bool] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step >= self.fails_at:
            raise ConnectionError("no route\nto host")
        self.logged.append((step, dict(values)))

    def histograms(self, values: Values, step: int) -> None:
        self.values.append((step, {name: list(given) for name, given in values.items()}))

    def table(self, name: str, rows: Table, step: int) -> None:
        self.tables.append((step, name, rows))

    def close(self, *, failed: bool) -> None:
        self.closed.append(failed)
        if self.fails_at < 99:
            raise ConnectionError("nor back")

    def series(self, name: str) -> list[tuple[int, float]]:
        return [(step, values[name]) for step, values in self.logged if name in values]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """What runs with `trackers: [tensorboard]` log to."""
    found = Recorder()
    monkeypatch.setattr(tracking, "_KINDS", {"tensorboard": lambda facts: found})
    return found


def test_a_tracker_that_fails_is_left_out_and_said_so_once() -> None:
    said, failing, other = io.StringIO(), Recorder(fails_at=2), Recorder()
    trackers = Trackers({"wandb": failing, "mlflow": other}, Display(Console(file=said)))
    for step in (1, 2, 3):
        trackers.log({"loss": 1.0}, step)
    trackers.show("samples", [{"a": 1}], 3)
    trackers.close()
    assert [step for step, _ in failing.logged] == [1]
    assert failing.closed == [True]  # left open, the next run would go on with it
    assert ([step for step, _ in other.logged], len(other.tables), other.closed) == ([1, 2, 3], 1, [False])
    assert said.getvalue().splitlines() == [
        "warning: wandb failed and is left out from now on: ConnectionError: no route to host"
    ]


def test_names_are_the_same_in_all_trackers_and_what_is_not_finite_is_left_out() -> None:
    one = Recorder()
    trackers = Trackers({"wandb": one})
    trackers.log({"score/a:b": 1.0}, 1)
    trackers.details("rows", Details({"x": [1.0, float("nan")], "y": [float("inf")], "z": []}, ()), 1)
    trackers.show("samples", [{"n": 1, "t": "a", "b": True}, {"n": None, "t": "b", "b": False}], 1)
    assert one.logged == [(1, {"score/a_b": 1.0})]
    assert one.values == [(1, {"rows/x": [1.0]}), (1, {"samples/n": [1.0]})]
    assert [(name, len(rows)) for _, name, rows in one.tables] == [("samples", 2)]


def test_a_tracker_that_cannot_start_is_refused_before_anything_is_learned(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(facts: TrackedRun) -> Tracker:
        raise RuntimeError("api_key not configured")

    first = Recorder()
    monkeypatch.setattr(tracking, "_KINDS", {"wandb": lambda facts: first, "tensorboard": refuse})
    made = make("sft", changes={"training.trackers": ["wandb", "tensorboard"]})
    with pytest.raises(
        RecipeError, match=r"training\.trackers: tensorboard could not be started: RuntimeError: api_key"
    ):
        tiny.train(made)
    assert not (Path(made.run) / "manifest.json").exists()
    assert first.closed == [True]


def test_a_folder_is_not_an_installed_tracker(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb leaves a folder ./wandb, which Python can import."""
    (tmp_path / "here" / "trackio").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "here")
    real = tracking.importlib.util.find_spec
    monkeypatch.setattr(
        tracking.importlib.util,
        "find_spec",
        lambda name: (
            tracking.importlib.machinery.PathFinder.find_spec(name, [str(tmp_path / "here")])
            if name == "trackio"
            else real(name)
        ),
    )
    with pytest.raises(MissingDependencyError, match="trackio is not installed"):
        tracking.require_trackers(make("sft", changes={"training.trackers": ["trackio"]}))


def test_a_run_that_ends_with_an_error_is_marked_so(
    make: Make, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make("sft", changes={**THREE_STEPS, "training.trackers": ["tensorboard"]})
    monkeypatch.setattr(sft.SftObjective, "evaluate", lambda objective: {"loss": float("nan")})
    with pytest.raises(NotFiniteError):
        tiny.train(made)
    assert recorder.closed == [True]


def test_a_run_is_finished_before_its_trackers_are_closed(
    make: Make, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker may wait for a network, and a user may stop that."""
    made = make("sft", changes={**THREE_STEPS, "training.trackers": ["tensorboard"]})

    def wait(*, failed: bool) -> None:
        recorder.closed.append(failed)
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder, "close", wait)
    with pytest.raises(Stopped):
        tiny.train(made)
    manifest = json.loads((Path(made.run) / "manifest.json").read_text())
    assert (manifest["status"], recorder.closed) == ("finished", [False])
    assert "ended_by" not in manifest


def test_results_that_cannot_be_read_end_no_run(tmp_path: Path) -> None:
    said, one = io.StringIO(), Recorder()
    run = RunDirectory(tmp_path)
    run.evaluation.parent.mkdir(parents=True, exist_ok=True)
    run.evaluation.write_text("[")
    tracking.show_results(run, Trackers(), 3)
    tracking.show_results(run, Trackers({"wandb": one}, Display(Console(file=said, width=500))), 3)
    assert not one.tables
    assert said.getvalue().startswith("warning: the trackers do not get the results, which cannot be read: JsonError")
    run.evaluation.unlink()
    tracking.show_results(run, Trackers(), 3)


def test_rows_that_cannot_be_shown_end_no_run() -> None:
    one = Recorder()
    trackers = Trackers({"wandb": one}, Display(Console(file=io.StringIO())))
    trackers.show("samples", [{"n": 10**400}], 1)
    assert (one.closed, bool(trackers)) == ([True], False)


def test_a_run_of_trackio_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=lambda **given: begun.append(given)))
    for run_id, resumed in (("0123456789abcdef", False), ("0123456789abcdef", True), ("fedcba9876543210", False)):
        TrackioRun(TrackedRun(SftRecipe(run="/a/sft"), "sft", run_id, resumed))
    assert [(given["name"], given["resume"]) for given in begun] == [
        ("sft-01234567", "never"),
        ("sft-01234567", "allow"),
        ("sft-fedcba98", "never"),
    ]


def test_a_run_of_mlflow_that_cannot_begin_does_not_stay_active(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    def refuse(fields: Mapping[str, Any]) -> None:
        raise ConnectionError("no route")

    library = SimpleNamespace(
        set_experiment=lambda name: SimpleNamespace(experiment_id="1"),
        start_run=lambda **given: object(),
        log_params=refuse,
        end_run=ended.append,
    )
    monkeypatch.setitem(sys.modules, "mlflow", library)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with pytest.raises(ConnectionError):
        MlflowRun(TrackedRun(SftRecipe(run="/a/sft"), "sft", "0", False))
    assert ended == ["FAILED"]


def test_updates_show_every_answer_and_rolling_means(make: Make, recorder: Recorder) -> None:
    made = make("ppo", changes={**tiny.UNGUARDED, **TWO_UPDATES, "training.trackers": ["tensorboard"]})
    tiny.train(made)
    run = Path(made.run)
    train, heldout = metrics_of(run, "train"), metrics_of(run, "heldout")
    assert recorder.series("reward") == [(row["step"], row["reward"]) for row in train]
    for name in ("reward", "kl_k1", "entropy", "degenerate_count"):
        first, second = (row[name] for row in train)
        assert recorder.series(f"rolling/{name}") == [(1, first), (2, pytest.approx((first + second) / 2))]
    assert all(row["rss_gb"] > 0.01 for row in train)

    by_step = {step: values for step, values in recorder.values if "rollouts/score" in values}
    for row in train:
        values = by_step[row["step"]]
        for name in ("score", "reward", "response_tokens", "kl_sequence"):
            given = values[f"rollouts/{name}"]
            assert sum(given) / len(given) == pytest.approx(row[name], abs=1e-5), name
        assert len(values["rollouts/score"]) * row["degenerate"] == pytest.approx(row["degenerate_count"])
    shown = [values for _, values in recorder.values if "heldout_rows/score" in values]
    assert len(shown) == len(heldout) == 3
    for row, values in zip(heldout, shown, strict=True):
        for name in ("score", "response_tokens"):
            given = values[f"heldout_rows/{name}"]
            assert sum(given) / len(given) == pytest.approx(row[name], abs=1e-5)
    recorded = tracking.read_metrics(run / "rollouts.jsonl")
    assert [row for _, name, rows in recorder.tables if name == "rollouts" for row in rows] == recorded
    assert {name for _, name, _ in recorder.tables} >= {"rollouts", "samples", "heldout_responses"}
    assert recorder.closed == [False]


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("sft", {"loss", "tokens"}),
        ("dpo", {"margin", "loss"}),
        ("reward", {"margin", "score_chosen"}),
    ],
)
def test_evaluations_show_every_heldout_row(stage: str, names: set[str], make: Make, recorder: Recorder) -> None:
    changes: dict[str, Any] = {"training.max_steps": 1, "training.trackers": ["tensorboard"]}
    made = make(stage, changes=changes | ({} if stage == "reward" else {"report.samples": 0}))
    tiny.train(made)
    heldout = metrics_of(Path(made.run), "heldout")
    shown = [values for _, values in recorder.values if f"heldout_rows/{min(names)}" in values]
    assert len(shown) == len(heldout)
    for row, values in zip(heldout, shown, strict=True):
        assert values.keys() >= {f"heldout_rows/{name}" for name in names}
        for name in names & row.keys() - ({"loss"} if stage == "sft" else set()):  # per token, not per answer
            given = values[f"heldout_rows/{name}"]
            assert sum(given) / len(given) == pytest.approx(row[name], abs=1e-5)


def test_rolling_means_go_on_where_a_resumed_run_does(make: Make, recorder: Recorder, monkeypatch: Any) -> None:
    changes = {**THREE_STEPS, "training.save_every_steps": 1, "training.trackers": ["tensorboard"]}
    whole = make("sft", "whole", changes)
    tiny.train(whole)
    expected = recorder.series("rolling/loss")
    recorder.logged.clear()

    made = make("sft", "stopped", changes)
    real = recorder.log

    def killed(values: Mapping[str, float], step: int) -> None:
        if step == 2 and "loss" in values:
            raise KeyboardInterrupt
        real(values, step)

    monkeypatch.setattr(recorder, "log", killed)
    with pytest.raises(BaseException, match="interrupted"):
        tiny.train(made)
    monkeypatch.setattr(recorder, "log", real)
    tiny.train(made, resume=True)
    assert recorder.series("rolling/loss") == expected
    assert not tiny.differences(Path(whole.run), Path(made.run))


def test_a_tracker_changes_no_weight_and_no_metric(make: Make) -> None:
    runs = []
    for name, trackers in (("alone", []), ("tracked", ["tensorboard"])):
        made = make("dpo", name, {**THREE_STEPS, "report.samples": 0, "training.trackers": trackers})
        tiny.train(made)
        runs.append(Path(made.run))
    assert not tiny.differences(*runs)


def test_a_resumed_run_may_have_other_trackers(make: Make) -> None:
    made = make("sft", changes=THREE_STEPS)
    tiny.train(made)
    again = make(
        "sft", changes={**THREE_STEPS, "training.trackers": ["tensorboard"], "training.tracker_project": "other"}
    )
    tiny.train(again, resume=True)


def test_the_guard_of_connections_sees_them() -> None:
    """Tests that nothing is sent can fail."""
    with only_this_machine() as attempts, closing(socket.socket()) as one:
        for reach in (lambda: one.connect(("192.0.2.1", 80)), lambda: socket.getaddrinfo("example.org", 80)):
            with pytest.raises(OSError, match="is allowed"):
                reach()
    assert len(attempts) == 2
