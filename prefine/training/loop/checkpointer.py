"""Saves and loads checkpoints of a run's training state, with a hash of its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefine.errors import CheckpointError
from prefine.runs.atomic import discard, storage_errors
from prefine.runs.directory import RunDirectory
from prefine.training.loop.checkpoint import (
    Checkpoint,
    checkpoint_of,
    discard_after,
    load_checkpoint,
    newest_valid,
    save_checkpoint,
)
from prefine.training.loop.contract import State
from prefine.training.loop.run_log import RunLog
from prefine.training.loop.state import TrainingState


@dataclass
class Checkpointer:
    """Saves a run's training state in its folder, and loads it again.

    Attributes:
        state: the state to save.
        run: the run's folder.
        log: the metrics; a checkpoint stores a hash of them.
        keep_last: how many checkpoints stay.
        resumed: whether the run continues from a checkpoint of an earlier process.
    """

    state: TrainingState
    run: RunDirectory
    log: RunLog
    keep_last: int
    resumed: bool = False

    def save(self, *, within_step: bool = False, provable: bool = True) -> None:
        """Save a checkpoint. The main process writes; the others wait for it.

        Args:
            within_step: save it separately from the checkpoints between steps, which guards may roll back to.
            provable: whether guards may roll back to it; False for one that an uninterrupted run would not have.
        """
        guards, step = self.state.guards, self.state.position.step
        if provable and not within_step:
            guards.saved_step = step
        tensors, json = self.state.state()
        if self.state.processes.is_main:
            self.run.require_here()
            with storage_errors(self.run.checkpoints):
                self.run.checkpoints.mkdir(exist_ok=True)
            save_checkpoint(
                _within_step(self.run) if within_step else self.run.checkpoints,
                step,
                tensors,
                json | {"metrics": self.log.seal(step)},
                keep_last=self.keep_last,
                keep={guards.healthy_step, guards.proven_step},
                run_id=self.run.run_id,
            )
            if not within_step:
                self._discard_within_step()
        self.state.processes.wait()

    def resume(self) -> Checkpoint | None:
        """Load the newest valid checkpoint, if there is one, and drop the metrics of later steps.

        Raises:
            CheckpointError: it holds other weights than this run trains, or there are checkpoints but none is valid.
        """
        checkpoint = checkpoint_to_resume(self.run)
        if checkpoint is None:
            self.log.cut_after(-1, self.state.guards.events)
            return None
        json = self._load(checkpoint)
        self.state.seconds_before = json["wall_seconds"]
        self.resumed = True
        self.log.cut_after(checkpoint.step, self.state.guards.events)
        self.log.mend(json["metrics"])
        return checkpoint

    def load_step(self, step: int) -> None:
        """Load the checkpoint of a step. Later ones are not removed.

        Raises:
            CheckpointError: it is missing or not valid.
        """
        self._load(checkpoint_of(self.run.checkpoints, step, self.run.run_id))

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        if self.state.processes.is_main:
            discard_after(self.run.checkpoints, step, self.run.run_id)
            self._discard_within_step()

    def _discard_within_step(self) -> None:
        if _within_step(self.run).exists():
            discard(_within_step(self.run))

    def _load(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Load the state; returns the checkpoint's JSON. Raises CheckpointError."""
        tensors, json = load_checkpoint(checkpoint)
        try:
            if set(tensors["weights"]) != set(self.state.parameters):
                raise CheckpointError(
                    f"{checkpoint.path} holds other weights than this recipe trains",
                    "Resume with the recipe and the model that the run began with.",
                )
            self.state.load_state(State(tensors, json))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"{checkpoint.path} does not hold what this run saves ({type(error).__name__}: {error})",
                "Another version of prefine or of its libraries saved it: resume with those, or start a new run.",
            ) from error
        saved, now = len(json["rng"]), self.state.processes.count
        if saved != now:
            self.log.say(
                f"warning: {saved} processes saved the checkpoint and {now} resume it: the result will differ from "
                "that of an uninterrupted run"
            )
        return json


def checkpoint_to_resume(run: RunDirectory) -> Checkpoint | None:
    """The newest valid checkpoint of the run, between steps or within one; None if there is none.

    Raises:
        CheckpointError: there are some, but none is valid.
    """
    folders = (run.checkpoints, _within_step(run))
    checkpoint, inner = (newest_valid(folder, run.run_id) for folder in folders)
    if inner is not None and (checkpoint is None or inner.step >= checkpoint.step):
        checkpoint = inner
    if checkpoint is None and any(any(folder.glob("step-*")) for folder in folders):
        raise CheckpointError(
            f"{run.checkpoints} holds checkpoints, but none is valid (see the warnings above)",
            "Restore one from a copy, or delete that folder to start again from the first step.",
        )
    return checkpoint


def _within_step(run: RunDirectory) -> Path:
    """The folder for the checkpoint of a run that was stopped within a step."""
    return run.checkpoints / "within-step"
