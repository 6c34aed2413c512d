"""Handles a guard's alarm: a warning, the end of the run, or a roll-back to its last healthy checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prefine.errors import NotFiniteError
from prefine.recipe.guards import GuardsSection
from prefine.training.loop.checkpointer import Checkpointer
from prefine.training.loop.guards import Alarm
from prefine.training.loop.run_log import RunLog
from prefine.training.loop.schedule import slow_down
from prefine.training.loop.state import TrainingState


@dataclass
class Rollback:
    """Handles alarms.

    Args:
        section: the recipe's guards section.
        state: the run's training state.
        checkpoints: the checkpoints to roll back to.
        log: where events are reported.
    """

    section: GuardsSection
    state: TrainingState
    checkpoints: Checkpointer
    log: RunLog

    @property
    def possible(self) -> bool:
        """Whether a guard can roll back at all, so that a checkpoint of the weights as loaded is needed."""
        actions = {str(rule.section.action) for rule in self.state.guards.rules}
        return bool(actions & {"stop", "roll_back"}) or self.section.non_finite.action == "roll_back"

    def handle(self, alarm: Alarm | None) -> bool:
        """Apply the worst alarm and warn of the others; returns whether the run continues from its current position."""
        for other in self.state.guards.others:
            self.warn(other)
        return alarm is None or self._apply(alarm)

    def handle_non_finite(self, error: NotFiniteError, step: int) -> None:
        """Roll back on a non-finite value if the recipe says so; end the run after max_rollbacks.

        Raises:
            NotFiniteError: the recipe says stop, or there is no healthy checkpoint.
        """
        action = self.section.non_finite.action
        if action != "roll_back" or self.state.guards.healthy_step is None:
            raise error
        self._apply(self.state.guards.non_finite(step, action, error.problem))

    def warn(self, alarm: Alarm) -> None:
        """Report an alarm without its action."""
        self.log.say(f"warning at step {alarm.step}: {alarm.words}")
        event = self.state.guards.record(replace(alarm, action="warn"))
        self.log.guard(self.state.position.step, event)

    def _apply(self, alarm: Alarm) -> bool:
        """Take the alarm's action; returns whether the run continues from its current position."""
        guards = self.state.guards
        healthy = guards.healthy_step
        if alarm.action == "warn" or healthy is None:
            self.warn(alarm)
            return True
        given_up = [row for row in guards.history if row["step"] > healthy]
        event = guards.record(alarm, back_to_step=healthy, given_up=given_up)
        guards.ended = alarm.action == "stop"
        guards.rollbacks += alarm.action == "roll_back"
        before = guards.state()
        self.checkpoints.load_step(healthy)
        guards.after_rollback(before)
        if alarm.action == "roll_back":
            factor = self.section.learning_rate_factor
            event["changed"] = {
                "learning_rate": slow_down(self.state.scheduler, self.state.optimizer, factor),
                **self.state.objective.rolled_back(),
            }
        # Before anything is saved: a run killed in between must not find discarded checkpoints.
        self.checkpoints.discard_after(healthy)
        outcome = "the run ends on the weights of" if guards.ended else "the run goes back to"
        self.log.say(f"guard {alarm.guard} at step {alarm.step}: {alarm.words}; {outcome} step {healthy}")
        self.checkpoints.save()
        self.log.cut_after(healthy, guards.events)
        return False
