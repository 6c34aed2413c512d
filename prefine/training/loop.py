"""The only training loop: accumulate, clip, schedule, log, guard, evaluate, save, resume. A stage brings the loss.

A step is one optimiser step (training/optimiser_step.py), unless the stage makes more of it: PPO's update is many.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from prefine.atomic import discard, storage_errors
from prefine.data.batch import TokenTree, steps_per_epoch
from prefine.errors import NotFiniteError, RewardError, Stopped
from prefine.models.checkpoint import (
    Checkpoint,
    checkpoint_of,
    discard_after,
    save_checkpoint,
)
from prefine.models.device import return_freed_memory
from prefine.models.training_state import rng_tensors
from prefine.recipe import GuardsSection, TrainingSection
from prefine.rundir import MetricsLog, RunDirectory, drop_rows_after, rows_of_kind
from prefine.training.contract import LoopStage, Loss
from prefine.training.display import Display, peak_memory_gb
from prefine.training.guards import Alarm, Guards
from prefine.training.loop_state import Position, checkpoint_to_resume, contents, mend_metrics, put_back
from prefine.training.optimiser_step import OptimiserStep
from prefine.training.processes import Processes
from prefine.training.schedule import advance, new_scheduler, rows_of_step, slow_down
from prefine.training.tracking import Trackers
from prefine.training.watch import HeldoutWatch

# Returning freed memory takes some 20 ms; every few steps it keeps the heap from growing at no cost one can see.
_STEPS_BETWEEN_TRIMS = 4


@dataclass
class Loop:
    """A run of optimiser steps over a sequence of trees.

    Args:
        processes: the processes that train together.
        model: the packed model, as accelerate prepared it.
        parameters: trainable parameters by name.
        optimizer: as accelerate prepared it.
        trees: training rows.
        section: the recipe's training section.
        loss: the stage's loss.
        stage: what it makes of a step, and what else of it must be saved.
        guard_section: what the recipe says of guards.
        guards: look at every step's figures.
        evaluate: held-out metrics, called with the model in eval mode; None where there is nothing held out.
        run: where checkpoints and metrics go.
        trackers: are told what the metrics are told; none in processes but the main one.
        stop_requested: asked after every step; True, in any process, saves and raises Stopped.
        began: when this process began the run, by time.perf_counter.
    """

    processes: Processes
    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    trees: Sequence[TokenTree]
    section: TrainingSection
    loss: Loss
    stage: LoopStage
    guard_section: GuardsSection
    guards: Guards
    evaluate: Callable[[], dict[str, float]] | None
    run: RunDirectory
    display: Display
    trackers: Trackers = field(default_factory=Trackers)
    stop_requested: Callable[[], bool] = lambda: False
    began: float = field(default_factory=time.perf_counter)
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.scheduler = new_scheduler(self.optimizer, self.section, self.total_steps)
        # One writer: a second process that cut the file back on resuming would leave this one writing to a lost file.
        self.metrics = MetricsLog(self.run.metrics) if self.processes.is_main else None
        self._wall_before = 0.0
        self._restored = False
        self.watch = HeldoutWatch(self.section)
        self._optimiser_step = OptimiserStep(
            self.processes, self.model, self.parameters, self.optimizer, self.section, self.loss, self.run.path
        )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        per_epoch = steps_per_epoch(len(self.trees), self.section.batch_size)
        steps = math.ceil(round(self.section.epochs * per_epoch, 6))  # 1.1 * 10 is a little more than 11
        return max(1, steps if self.section.max_steps is None else min(steps, self.section.max_steps))

    def run_to_end(self) -> None:
        """Train from the current position to the last step, saving on the way and at the end.

        The last step is that of the recipe, or the one after which the held-out loss has not fallen for long enough.
        Where the best weights are kept, the model then has those.

        Raises:
            TrainingError: a loss or gradient is not finite; the batch is dumped, no checkpoint is overwritten.
            Stopped: stop_requested said so; a checkpoint is saved.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)  # whatever ran before: the first step begins with no gradients
        if self.position.step == 0 and not self._restored:
            self._log_heldout()
            if self._may_go_back():
                self.guards.healthy_step = 0
                self.save()
        elif self._misses_evaluation():
            self._settle()
        with self.display.progress(self.total_steps, self.position.step):
            while self.position.step < self.total_steps and not self.watch.exhausted and not self.guards.ended:
                row = self._guarded_step()
                if row is None:
                    continue
                if self._is_last or self._due(self.section.log_every_steps):
                    self._log(row)
                self._settle()
        self._end_on_best()

    @property
    def _is_last(self) -> bool:
        return self.position.step == self.total_steps

    def _settle(self) -> None:
        """After a step: evaluate and save where it is time to, and stop where that was asked for.

        Raises:
            Stopped: it was.
        """
        step = self.position.step
        if (self._is_last or self._due(self.section.evaluate_every_steps)) and not self._log_heldout():
            return
        last = self._is_last or self.watch.exhausted
        stop = self._stop_agreed() and not last
        due = last or self._due(self.section.save_every_steps)
        if due or stop:
            self.save(provable=due)
        if stop:
            raise Stopped(f"stopped after step {step} of {self.total_steps}, all saved")

    def _misses_evaluation(self) -> bool:
        """Whether the step that a run goes on from was saved because its evaluation failed."""
        step = self.position.step
        due = self.evaluate is not None and (self._is_last or self._due(self.section.evaluate_every_steps))
        if step == 0 or self.guards.ended or not due:
            return False
        told = (row["step"] for row in rows_of_kind(self.run.metrics, "heldout"))
        return self.processes.from_main(step not in told)

    def _may_go_back(self) -> bool:
        acts = {str(rule.section.action) for rule in self.guards.rules}
        return bool(acts & {"stop", "roll_back"}) or self.guard_section.non_finite.action == "roll_back"

    def _guarded_step(self) -> dict[str, float] | None:
        """One step; None where a guard then took the run back, or ended it on its last healthy weights."""
        step = self.position.step + 1
        try:
            row = self._one_step()
        except NotFiniteError as error:
            self._go_back_or_raise(error, step)
            return None
        except RewardError:  # nothing has been learned since the last step, and all of that is kept
            self.save(provable=False)
            raise
        return row if self._heeded(self.guards.see(step, row)) else None

    def _go_back_or_raise(self, error: NotFiniteError, step: int) -> None:
        """What is no number takes the run back where the recipe says so, and ends it where it has often enough."""
        action = self.guard_section.non_finite.action
        if action != "roll_back" or self.guards.healthy_step is None:
            raise error
        self._act(self.guards.non_finite(step, action, error.problem))

    def _heeded(self, alarm: Alarm | None) -> bool:
        """Act on the worst alarm and tell of the others; whether the run goes on from where it is."""
        for other in self.guards.others:
            self._warn(other)
        return alarm is None or self._act(alarm)

    def _act(self, alarm: Alarm) -> bool:
        """Do what a guard asks for; whether the run goes on from where it is."""
        healthy = self.guards.healthy_step
        if alarm.action == "warn" or healthy is None:
            self._warn(alarm)
            return True
        given_up = [row for row in self.guards.history if row["step"] > healthy]
        event = self.guards.note(alarm, back_to_step=healthy, given_up=given_up)
        self.guards.ended = alarm.action == "stop"
        self.guards.rollbacks += alarm.action == "roll_back"
        before = self.guards.state()
        put_back(self, checkpoint_of(self.run.checkpoints, healthy, self.run.run_id))
        self.guards.gone_back(before)
        if alarm.action == "roll_back":
            event["changed"] = {
                "learning_rate": slow_down(self.scheduler, self.optimizer, self.guard_section.learning_rate_factor),
                **self.stage.rolled_back(),
            }
        if self.processes.is_main:
            # Before anything is saved: a run killed in between must not find what is given up.
            discard_after(self.run.checkpoints, healthy, self.run.run_id)
            if self._within.exists():
                discard(self._within)
        told = "the run ends on the weights of" if self.guards.ended else "the run goes back to"
        self.display.say(f"guard {alarm.guard} at step {alarm.step}: {alarm.words}; {told} step {healthy}")
        self.save()
        self._cut_metrics_after(healthy)
        return False

    def _warn(self, alarm: Alarm) -> None:
        self.display.say(f"warning at step {alarm.step}: {alarm.words}")
        event = self.guards.note(replace(alarm, action="warn"))  # whatever it asked for: nothing more is done
        if self.metrics is not None:
            self.metrics.append({"kind": "guard", "step": self.position.step, **event})

    def safe_point(self) -> None:
        """Between the optimiser steps of one step: if the run was asked to stop, it does so here, with all saved.

        Raises:
            Stopped: it was.
        """
        if self._stop_agreed():
            self.save(within_step=True)
            raise Stopped(f"stopped within step {self.position.step + 1} of {self.total_steps}, all saved")

    def _end_on_best(self) -> None:
        step, best = self.position.step, self.watch.best_step
        if self.guards.ended:
            told = [row["step"] for row in rows_of_kind(self.run.metrics, "heldout")]
            if self.evaluate is not None and step not in told:
                self._log_heldout(guarded=False)
            elif self.evaluate is not None:
                self.model.eval()
                self.evaluate()  # what the stage remembers of held-out rows is of the weights it ends on
        elif step < self.total_steps:
            self.display.say(f"stopped early after step {step}: the held-out loss has not fallen since step {best}")
        if self.watch.put_back(step, self.parameters) and self.evaluate is not None:
            self.display.say(f"the weights of step {best} are kept: held-out loss {self.watch.best_loss:.4g}")
            self.model.eval()
            self.evaluate()  # what the stage remembers of held-out rows is of these weights, as the result is

    def close(self) -> None:
        """Close the metrics file."""
        if self.metrics is not None:
            self.metrics.close()

    @property
    def wall_seconds(self) -> float:
        """Time this run has taken, its earlier parts up to the checkpoint they were resumed from included."""
        return self._wall_before + time.perf_counter() - self.began

    @property
    def _within(self) -> Path:
        """Where the checkpoint of a run is that was stopped within a step."""
        return self.run.checkpoints / "within-step"

    def _due(self, every: int | None) -> bool:
        return every is not None and self.position.step % every == 0

    def _stop_agreed(self) -> bool:
        """Whether any process was asked to stop: a signal reaches them at different steps, but all must stop at one."""
        return self.processes.any(self.stop_requested())

    def _one_step(self) -> dict[str, float]:
        """One optimiser step; returns its metrics, summed over processes."""
        began = time.perf_counter()
        trees = [self.trees[row] for row in rows_of_step(self.position.step, len(self.trees), self.section)]
        rate = float(self.scheduler.get_last_lr()[0])
        row = self.stage.step(self, trees)
        advance(self.scheduler)
        if self.position.step % _STEPS_BETWEEN_TRIMS == 0 and self.processes.device.type == "cpu":
            return_freed_memory()
        seconds, tokens = time.perf_counter() - began, int(row["tokens"])
        self.position.step += 1
        self.position.tokens += tokens
        self.position.seconds += seconds
        return {
            **row,
            "learning_rate": rate,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "peak_memory_gb": peak_memory_gb(self.processes.device),
        }

    @property
    def number(self) -> int:
        """See Steps."""
        return self.position.step

    def optimise(self, trees: Sequence[TokenTree], learning: Collection[str] | None = None) -> dict[str, float]:
        """One optimiser step on these trees: see OptimiserStep."""
        return self._optimiser_step(trees, self.position.step + 1, learning)

    def _log(self, row: dict[str, float]) -> None:
        step = self.position.step
        epoch = step / steps_per_epoch(len(self.trees), self.section.batch_size)
        if self.metrics is not None:
            self.metrics.append({"kind": "train", "step": step, "epoch": epoch, **row})
        self.display.step(step, row)
        self.trackers.log(row, step)

    def _log_heldout(self, *, guarded: bool = True) -> bool:
        """Evaluate; whether the run goes on from where it is, and no guard took it elsewhere."""
        if self.evaluate is None:
            return True
        step = self.position.step
        self.model.eval()
        try:
            row = self.evaluate()
            if not all(map(math.isfinite, row.values())):
                raise NotFiniteError(
                    f"held-out metrics are not finite after step {step}: {row}",
                    "Look for extreme held-out rows, lower training.learning_rate, or set model.dtype to float32.",
                )
        except NotFiniteError as error:
            self._go_back_or_raise(error, step)
            return False
        except RewardError:
            if step > 0:  # what was learned is kept; --resume evaluates it first
                self.save(provable=False)
            raise
        finally:
            self.model.train()
        row = self.processes.from_main(row)  # the last bits may differ, and what is decided on them must not
        self.watch.see(step, row["loss"], self.parameters)
        if self.metrics is not None:
            self.metrics.append({"kind": "heldout", "step": step, **row})
        self.display.heldout(step, row)
        self.trackers.log({f"heldout/{name}": value for name, value in row.items()}, step)
        if not guarded:
            return True
        if not self._heeded(self.guards.see(step, row, heldout=True)):
            return False
        for alarm in self.guards.last_look(step, row) if self._is_last or self.watch.exhausted else ():
            self._warn(alarm)
        return True

    def save(self, *, within_step: bool = False, provable: bool = True) -> None:
        """Save a checkpoint of everything that follows depends on. The main process writes; the others wait.

        Args:
            within_step: it is put apart from those between steps, which guards may go back to.
            provable: whether guards may go back to it, so that they do the same in a run that was never stopped.
        """
        generators = self.processes.gather(rng_tensors())  # dropout draws differently in every process
        if provable and not within_step:
            self.guards.saved_step = self.position.step
        if self.metrics is not None:
            self.run.require_here()
            with storage_errors(self.run.checkpoints):
                self.run.checkpoints.mkdir(exist_ok=True)
            self.metrics.sync()
            tensors, state = contents(self, generators)
            state["metrics"] = self.metrics.seal(self.position.step)
            save_checkpoint(
                self._within if within_step else self.run.checkpoints,
                self.position.step,
                tensors,
                state,
                keep_last=self.section.keep_checkpoints,
                keep={self.guards.healthy_step, self.guards.proven_step},
                run_id=self.run.run_id,
            )
            if not within_step and self._within.exists():
                discard(self._within)
        self.processes.wait()

    def restore(self) -> Checkpoint | None:
        """Go to the newest valid checkpoint, if there is one; metrics of steps after it are dropped.

        Raises:
            CheckpointError: it holds other weights than this run trains; or there are some, but none is valid.
        """
        checkpoint = checkpoint_to_resume(self.run, self._within)
        if checkpoint is None:
            self._cut_metrics_after(-1)
            return None
        state = put_back(self, checkpoint)
        self._wall_before = state["wall_seconds"]
        self._restored = True
        self._cut_metrics_after(checkpoint.step)
        mend_metrics(self, state)
        return checkpoint

    def _cut_metrics_after(self, step: int) -> None:
        """Drop the metrics of steps that were given up; guards' events are written again where they went with them."""
        if self.metrics is None:
            return
        self.metrics.truncate_after(step)
        drop_rows_after(self.run.rollouts, step)
        written = len(rows_of_kind(self.run.metrics, "guard"))
        for event in self.guards.events[written:]:
            self.metrics.append({"kind": "guard", "step": step, **event})
