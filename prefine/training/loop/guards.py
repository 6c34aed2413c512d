"""Guards: limits on a run's metrics, and the action when one is exceeded: warn, stop, or roll back.

A guard checks one metric of every step. A step's metrics are measured on the weights it began with, so a good step
proves the checkpoint before it. If guards on held-out metrics may roll a run back, a checkpoint is healthy only after a
good evaluation as well. The state depends on the metrics alone, and is saved with a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefine.formatting import figure
from prefine.recipe.guards import GuardSection
from prefine.training.loop.contract import State

Act = Literal["warn", "stop", "roll_back"]
_SEVERITY: tuple[Act, ...] = ("warn", "roll_back", "stop")


@dataclass(frozen=True)
class Limit:
    """One guard.

    Attributes:
        name: as in a recipe.
        figure: the metric it checks; steps without it are skipped.
        section: its limit, patience and action.
        means: what exceeding the limit means, for the user.
        below: whether the limit is a lower one.
        from_start: whether the limit is on the change since the first step.
        heldout: whether the metric belongs to evaluations, not to steps.
    """

    name: str
    figure: str
    section: GuardSection
    means: str
    below: bool = False
    from_start: bool = False
    heldout: bool = False

    def broken(self, value: float, first: float) -> bool:
        """Whether a value is beyond the limit; NaN is."""
        limit = self.section.limit + (first if self.from_start else 0.0)
        within = value >= limit if self.below else value <= limit
        return not within


@dataclass(frozen=True)
class Alarm:
    """A guard whose limit was exceeded for as many steps as its patience.

    Attributes:
        words: description for the user.
    """

    guard: str
    action: Act
    step: int
    words: str


@dataclass
class Guards:
    """All guards of a run.

    Args:
        rules: the limits to check.
        max_rollbacks: after this many roll-backs, roll_back means stop.

    Attributes:
        events: all alarms so far, for metrics and the report.
        rollbacks: roll-backs so far.
        healthy_step: the newest checkpoint that a guard may roll back to; None before the first.
        proven_step: the newest checkpoint that a good step has proven; an evaluation may still have to.
        evaluated_step: the last step whose evaluation was good.
        saved_step: the newest checkpoint, proven or not.
        history: metrics since the healthy step, which an event records when a roll-back discards them.
        ended: whether a guard has ended the run.
        others: alarms of the last check besides the worst.
    """

    rules: Sequence[Limit]
    max_rollbacks: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    rollbacks: int = 0
    healthy_step: int | None = None
    proven_step: int | None = None
    evaluated_step: int = 0
    saved_step: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False
    others: list[Alarm] = field(default_factory=list)
    _streaks: dict[str, int] = field(default_factory=dict)
    _first: dict[str, float] = field(default_factory=dict)

    def check(self, step: int, row: Mapping[str, float], *, heldout: bool = False) -> Alarm | None:
        """Check one step's metrics, or with `heldout` an evaluation's; returns the worst alarm, if any. See `others`.

        All steps and evaluations must be checked, in order.
        """
        alarms = []
        kept = {}
        for rule in self.rules:
            if rule.section.action == "off" or rule.heldout is not heldout or rule.figure not in row:
                continue
            value = row[rule.figure]
            first = self._first.setdefault(rule.name, value)
            kept[rule.figure] = value
            beyond = rule.broken(value, first)
            self._streaks[rule.name] = self._streaks.get(rule.name, 0) + 1 if beyond else 0
            if self._streaks[rule.name] == rule.section.patience:
                alarms.append(self._alarm(rule, step, value, first))
        if kept:
            self.history.append({"step": step, **kept})
        self._update_healthy(step, heldout)
        alarms.sort(key=lambda alarm: -_SEVERITY.index(alarm.action))
        self.others = alarms[1:]
        return alarms[0] if alarms else None

    def _update_healthy(self, step: int, heldout: bool) -> None:
        """Update which checkpoints are proven and healthy, after the metrics of `step`."""
        acting = [rule for rule in self.rules if rule.section.action in ("stop", "roll_back")]
        broken = any(self._streaks.get(rule.name) for rule in acting if rule.heldout is heldout)
        if heldout and not broken:
            self.evaluated_step = step
        # A step's metrics belong to the weights it began with: those of the checkpoint saved before it, if any.
        elif not heldout and not broken and self.saved_step == step - 1:
            self.proven_step = self.saved_step
        evaluated = self.evaluated_step if any(rule.heldout for rule in acting) else step
        if self.proven_step is not None and (self.healthy_step or 0) <= self.proven_step <= evaluated:
            self.healthy_step = self.proven_step
            self.history = [row for row in self.history if row["step"] > self.healthy_step]

    def check_last(self, step: int, row: Mapping[str, float]) -> list[Alarm]:
        """Alarms from the evaluation of a run's last weights, for guards on steps: no step measures those weights."""
        return [
            self._alarm(rule, step, row[rule.figure], self._first.get(rule.name, 0.0), when=" in the last evaluation")
            for rule in self.rules
            if rule.section.action != "off"
            and not rule.heldout
            and rule.figure in row
            and rule.broken(row[rule.figure], self._first.get(rule.name, 0.0))
        ]

    def non_finite(self, step: int, action: Act, words: str) -> Alarm:
        """An alarm about a loss, gradient or metric that is not finite."""
        return Alarm("non_finite", self._allowed(action), step, words)

    def record(self, alarm: Alarm, **facts: Any) -> dict[str, Any]:
        """Record an alarm as an event; returns the event."""
        event = {"guard": alarm.guard, "action": alarm.action, "at_step": alarm.step, "words": alarm.words, **facts}
        self.events.append(event)
        return event

    def state(self) -> State:
        """See Stateful."""
        json = {
            "events": self.events,
            "rollbacks": self.rollbacks,
            "healthy_step": self.healthy_step,
            "proven_step": self.proven_step,
            "evaluated_step": self.evaluated_step,
            "saved_step": self.saved_step,
            "history": self.history,
            "ended": self.ended,
            "streaks": self._streaks,
            "first": self._first,
        }
        return State({}, json)

    def load_state(self, state: State) -> None:
        """See Stateful."""
        json = state.json
        self.events, self.rollbacks = list(json["events"]), json["rollbacks"]
        self.healthy_step, self.saved_step = json["healthy_step"], json["saved_step"]
        self.proven_step, self.evaluated_step = json["proven_step"], json["evaluated_step"]
        self.history, self.ended = list(json["history"]), json["ended"]
        self._streaks, self._first = dict(json["streaks"]), dict(json["first"])

    def after_rollback(self, before: State) -> None:
        """Correct the state that a roll-back has loaded: events since the checkpoint are not forgotten.

        Args:
            before: `state()` when the alarm was handled.
        """
        json = before.json
        self.events, self.ended, self.rollbacks = list(json["events"]), json["ended"], json["rollbacks"]
        self.healthy_step = self.proven_step = json["healthy_step"]
        self._streaks, self.history = {}, []

    def _allowed(self, action: Act) -> Act:
        return "stop" if action == "roll_back" and self.rollbacks >= self.max_rollbacks else action

    def _alarm(self, rule: Limit, step: int, value: float, first: float, when: str = "") -> Alarm:
        section = rule.section
        limit = section.limit + (first if rule.from_start else 0.0)
        found = figure(value) if math.isfinite(value) else str(value)
        when = when or (f" for {section.patience} steps" if section.patience > 1 else "")
        side = "below" if rule.below else "above"
        words = f"{rule.figure} is {found}, {side} {figure(limit)}{when}: {rule.means}"
        action: Act = "warn" if section.action == "off" else section.action
        return Alarm(rule.name, self._allowed(action), step, words)
