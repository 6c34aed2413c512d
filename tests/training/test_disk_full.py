"""A disk that fills up at any part of a run: one line, exit code 2; once there is room, the run ends like any other.

RLIMIT_FSIZE stands for the full disk: no file can grow past a limit that is set in the middle of the run.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from prefine.data.prepare import Preparation
from prefine.recipe.stage import StageRecipe
from prefine.training.loop.checkpoint import load_checkpoint, newest_valid
from prefine.training.loop.loop import Loop
from prefine.training.loop.run_log import RunLog
from prefine.training.run import report_samples as samples
from prefine.training.run import run_stage as session
from prefine.training.stages import reference
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("warm", "real_report")

Make = Callable[..., StageRecipe]
SHORT = {"training.max_steps": 6}

# What is called at that moment, the how manieth call finds the disk full, and how many bytes still fit in one file.
MOMENTS: dict[str, tuple[Any, str, int, int]] = {
    "rows": (Preparation, "stores", 1, 1_000),
    "manifest": (session.Session, "write_manifest", 1, 1_000),
    "samples": (samples, "write_answers", 1, 100),
    "reference": (reference, "reference_logprobs", 1, 60),
    "checkpoint": (Loop, "save", 4, 20_000),
    "metrics": (RunLog, "train", 4, 900),
    "result": (session, "save_model", 1, 10_000),
    "report": (session, "write_report", 1, 20_000),
}


@pytest.fixture(scope="module")
def whole(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with room enough."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert tiny.forked(lambda: tiny.train(tiny.recipe("dpo", run, model, data, SHORT))) == 0
    return run


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_disk_fills_up(moment: str, whole: Path, make: Make, tmp_path: Path) -> None:
    full = make("dpo", "full", SHORT)
    file = tiny.written(full, tmp_path / "full.yaml")

    def filling() -> None:
        place, name, calls, limit = MOMENTS[moment]
        tiny.os.environ["PREFINE_CACHE"] = str(tmp_path / "own-cache")
        real, count = getattr(place, name), iter(range(calls - 1, -1, -1))

        def no_room(*args: Any, **kwargs: Any) -> Any:
            if next(count, -1) == 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            return real(*args, **kwargs)

        setattr(place, name, no_room)

    code, said = tiny.Command("dpo", file, prepare=filling).end()
    assert code == 2, said
    error = said.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "could not be written: the file would be larger than" in error
    assert "Traceback" not in said
    run = Path(full.run)
    assert not any(run.rglob("*.tmp"))
    checkpoint = newest_valid(run / "checkpoints")
    assert (checkpoint.step if checkpoint else 0) == {"checkpoint": 3, "metrics": 3, "result": 6, "report": 6}.get(
        moment, 0
    )
    if checkpoint is not None:
        tensors, _ = load_checkpoint(checkpoint)
        assert set(tensors) == {"weights", "optimizer", "rng.0"}
    again = ["--resume"] if (run / "manifest.json").exists() else []
    code, said = tiny.Command("dpo", file, *again).end()
    assert code == 0, said
    assert not tiny.differences(whole, run)
    assert (run / "report.html").exists()


def test_the_limit_is_felt_in_this_process_too(
    make: Make, largest_file: Callable[[int], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library raises what the command line prints, and is whole again once there is room."""
    from prefine.errors import CheckpointError

    made = make("sft", changes=SHORT)
    real = Loop.save

    def saving(loop: Loop, **asked: bool) -> None:
        if loop.position.step < 3:
            return real(loop, **asked)
        with largest_file(20_000):
            return real(loop, **asked)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "save", saving)
        with pytest.raises(CheckpointError, match=r"step-00000003 could not be written: .*ulimit -f"):
            tiny.train(made)
    assert tiny.manifest(Path(made.run))["status"] == "failed"
    assert "step-00000003 could not be written" in tiny.manifest(Path(made.run))["ended_by"]
    assert "resuming after step 2" in tiny.train(made, resume=True)
