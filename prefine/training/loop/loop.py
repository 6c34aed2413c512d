"""The only training loop: take steps, log, check guards, evaluate, save, stop.

An objective provides the loss. A step is one optimiser step (training/loop/optimiser_step.py) unless the objective
takes several: an update of PPO takes many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from prefine.data.tokens.trees import TokenTree
from prefine.errors import NotFiniteError, RewardError, Stopped
from prefine.models.loading.device import return_freed_memory
from prefine.recipe.guards import GuardsSection
from prefine.recipe.sections import TrainingSection
from prefine.recipe.steps import steps_per_epoch, total_steps
from prefine.runs.directory import RunDirectory
from prefine.training.display import Display, peak_memory_gb
from prefine.training.loop.checkpointer import Checkpointer
from prefine.training.loop.contract import LoopObjective
from prefine.training.loop.early_stopping import EarlyStopping
from prefine.training.loop.guards import Guards, Limit
from prefine.training.loop.heldout_evaluation import HeldoutEvaluation
from prefine.training.loop.optimiser_step import OptimiserStep
from prefine.training.loop.processes import Processes
from prefine.training.loop.rollback import Rollback
from prefine.training.loop.run_log import RunLog
from prefine.training.loop.schedule import advance, new_scheduler, rows_of_step
from prefine.training.loop.state import Position, TrainingState
from prefine.training.resources import resources
from prefine.training.tracking.trackers import Trackers

# Returning freed memory takes some 20 ms; every few steps it keeps the heap from growing at no measurable cost.
_STEPS_BETWEEN_TRIMS = 4


@dataclass
class Loop:
    """Takes the steps of a run over a sequence of trees; implements Steps for an objective.

    Args:
        state: everything that the rest of the run depends on.
        trees: training rows.
        section: the recipe's training section.
        optimiser_step: takes one optimiser step.
        evaluation: evaluates on held-out rows.
        checkpoints: saves the state.
        rollback: handles guards' alarms.
        log: reports metrics.
        stop_requested: called after every step; True in any process saves and raises Stopped in all.
    """

    state: TrainingState
    trees: Sequence[TokenTree]
    section: TrainingSection
    optimiser_step: OptimiserStep
    evaluation: HeldoutEvaluation
    checkpoints: Checkpointer
    rollback: Rollback
    log: RunLog
    stop_requested: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.total_steps = total_steps(len(self.trees), self.section)

    @property
    def position(self) -> Position:
        """The position of the run."""
        return self.state.position

    @property
    def number(self) -> int:
        """See Steps."""
        return self.position.step

    @property
    def processes(self) -> Processes:
        """See Steps."""
        return self.state.processes

    def run_to_end(self) -> None:
        """Train from the current position to the last step; save on the way and at the end.

        The last step is the recipe's, or the one after which early stopping or a guard ends the run. If the best
        weights are kept, the model ends with them.

        Raises:
            TrainingError: a loss or gradient is not finite. The batch is written to a file; no checkpoint is replaced.
            Stopped: stop_requested returned True; a checkpoint is saved.
        """
        self.optimiser_step.model.train()
        self.state.optimizer.zero_grad(set_to_none=True)  # whatever ran before must not add to the first step
        due = self.position.step > 0 and self._due(self.section.evaluate_every_steps)
        if self.position.step == 0 and not self.checkpoints.resumed:
            self._evaluate()
            if self.rollback.possible:
                self.state.guards.healthy_step = 0
                self.save()
        elif due and not self.state.guards.ended and self.evaluation.missing:
            self._after_step()  # the checkpoint was saved when its evaluation failed
        with self.log.display.progress(self.total_steps, self.position.step):
            while not self._finished:
                row = self._guarded_step()
                if row is None:
                    continue
                if self._due(self.section.log_every_steps):
                    epoch = self.position.step / steps_per_epoch(len(self.trees), self.section.batch_size)
                    self.log.train(self.position.step, epoch, row, self.state.objective.step_details)
                self._after_step()
        self._end()

    @property
    def _finished(self) -> bool:
        state = self.state
        return self.position.step >= self.total_steps or state.early_stopping.exhausted or state.guards.ended

    def _due(self, every: int | None) -> bool:
        """Whether an action that is due every `every` steps, and after the last one, is due now."""
        step = self.position.step
        return step == self.total_steps or (every is not None and step % every == 0)

    def _after_step(self) -> None:
        """Evaluate and save if either is due; stop if that was requested.

        Raises:
            Stopped: it was.
        """
        if self._due(self.section.evaluate_every_steps) and not self._evaluate():
            return
        stop = self.processes.any(self.stop_requested()) and not self._finished
        due = self._finished or self._due(self.section.save_every_steps)
        if due or stop:
            self.save(provable=due)
        if stop:
            raise Stopped(f"stopped after step {self.position.step} of {self.total_steps}, all saved")

    def safe_point(self) -> None:
        """See Steps."""
        if self.processes.any(self.stop_requested()):
            self.save(within_step=True)
            raise Stopped(f"stopped within step {self.position.step + 1} of {self.total_steps}, all saved")

    def save(self, *, within_step: bool = False, provable: bool = True) -> None:
        """Save a checkpoint: see Checkpointer."""
        self.checkpoints.save(within_step=within_step, provable=provable)

    def _guarded_step(self) -> dict[str, float] | None:
        """Take one step; returns its metrics, or None if a guard then rolled the run back or ended it."""
        step = self.position.step + 1
        try:
            row = self._timed_step()
        except NotFiniteError as error:
            self.rollback.handle_non_finite(error, step)
            return None
        except RewardError:  # no weight has changed since the last step, so its state can be saved
            self.save(provable=False)
            raise
        return row if self.rollback.handle(self.state.guards.check(step, row)) else None

    def _timed_step(self) -> dict[str, float]:
        """Take one step; returns its metrics, learning rate, time and use of the machine."""
        began = time.perf_counter()
        trees = [self.trees[row] for row in rows_of_step(self.position.step, len(self.trees), self.section)]
        rate = float(self.state.scheduler.get_last_lr()[0])
        row = self.state.objective.step(self, trees)
        advance(self.state.scheduler)
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
            **resources(self.processes.device),
        }

    def optimise(self, trees: Sequence[TokenTree], learning: Collection[str] | None = None) -> dict[str, float]:
        """See Steps."""
        return self.optimiser_step(trees, self.position.step + 1, learning)

    def _evaluate(self, *, guarded: bool = True) -> bool:
        """Evaluate on held-out rows; returns False if a guard rolled the run back or ended it."""
        step = self.position.step
        try:
            row = self.evaluation.run()
        except NotFiniteError as error:
            self.rollback.handle_non_finite(error, step)
            return False
        except RewardError:
            if step > 0:  # the steps so far are kept; --resume evaluates first
                self.save(provable=False)
            raise
        if row is None or not guarded:
            return True
        if not self.rollback.handle(self.state.guards.check(step, row, heldout=True)):
            return False
        for alarm in self.state.guards.check_last(step, row) if self._finished else ():
            self.rollback.warn(alarm)
        return True

    def _end(self) -> None:
        """Report why the run ended early, if it did; load the best weights, if they are kept."""
        step, early_stopping = self.position.step, self.state.early_stopping
        best = early_stopping.best_step
        if self.state.guards.ended:
            if self.evaluation.missing:
                self._evaluate(guarded=False)
            else:
                self.evaluation.remember()
        elif step < self.total_steps:
            self.log.say(f"stopped early after step {step}: the held-out loss has not fallen since step {best}")
        if early_stopping.load_best(step, self.state.parameters):
            self.log.say(f"the weights of step {best} are kept: held-out loss {early_stopping.best_loss:.4g}")
            self.evaluation.remember()
        elif not self.evaluation.done:  # resumed after the last step: no step of this process has evaluated
            self.evaluation.remember()


def new_loop(
    *,
    processes: Processes,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    trees: Sequence[TokenTree],
    section: TrainingSection,
    objective: LoopObjective,
    guard_section: GuardsSection,
    rules: Sequence[Limit],
    evaluates: bool,
    run: RunDirectory,
    display: Display,
    trackers: Trackers | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    began: float,
) -> Loop:
    """A loop at its first step, with its parts.

    Args:
        processes: the processes that train together.
        model: the packed model, as accelerate prepared it.
        parameters: trainable parameters by name.
        optimizer: as accelerate prepared it.
        trees: training rows.
        section: the recipe's training section.
        objective: computes the loss, takes a step, evaluates, and has its own state.
        guard_section: the recipe's guards section.
        rules: the limits that guards check.
        evaluates: whether rows are held out to evaluate on.
        run: where checkpoints and metrics go.
        display: shows progress to the user.
        trackers: experiment trackers; None for none, and outside the main process.
        stop_requested: see Loop.
        began: when this process began the run, by time.perf_counter.
    """
    scheduler = new_scheduler(optimizer, section, total_steps(len(trees), section))
    guards = Guards(rules, guard_section.max_rollbacks)
    state = TrainingState(parameters, optimizer, scheduler, EarlyStopping(section), guards, objective, processes, began)
    log = RunLog(run, display, trackers or Trackers(), is_main=processes.is_main)
    checkpoints = Checkpointer(state, run, log, section.keep_checkpoints)
    return Loop(
        state=state,
        trees=trees,
        section=section,
        optimiser_step=OptimiserStep(processes, model, parameters, optimizer, section, objective.loss, run.path),
        evaluation=HeldoutEvaluation(model, objective.evaluate if evaluates else None, state, log),
        checkpoints=checkpoints,
        rollback=Rollback(guard_section, state, checkpoints, log),
        log=log,
        stop_requested=stop_requested,
    )
