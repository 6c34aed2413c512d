"""Guards: what a run's figures must not do, and what happens when they do it: warn, stop, or roll back.

A guard looks at one figure of every step. A step's figures are measured on the weights it began with, so a good step
proves the checkpoint before it. Where guards on held-out figures may take a run back, a checkpoint is healthy once a
good evaluation has followed as well. Everything here is a function of the figures, and is saved with a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefine.evaluation.wording import figure
from prefine.recipe import GuardSection

Act = Literal["warn", "stop", "roll_back"]
_SEVERITY: tuple[Act, ...] = ("warn", "roll_back", "stop")


@dataclass(frozen=True)
class Rule:
    """One guard.

    Attributes:
        name: as in a recipe.
        figure: the figure it looks at; steps without it are passed over.
        section: its limit, patience and action.
        below: whether the figure must not fall below the limit, rather than not rise above it.
        means: what it means when it acts, for the user.
        from_start: whether the limit is on the change since the first step.
        heldout: whether the figure is one of evaluations, and not of steps.
    """

    name: str
    figure: str
    section: GuardSection
    means: str
    below: bool = False
    from_start: bool = False
    heldout: bool = False

    def broken(self, value: float, first: float) -> bool:
        """Whether a figure is beyond the limit; one that is no number is."""
        limit = self.section.limit + (first if self.from_start else 0.0)
        within = value >= limit if self.below else value <= limit
        return not within


@dataclass(frozen=True)
class Alarm:
    """A guard that acts.

    Attributes:
        words: what happened, in plain words.
    """

    guard: str
    action: Act
    step: int
    words: str


@dataclass
class Guards:
    """All guards of a run.

    Args:
        rules: what to look at.
        max_rollbacks: after so many, roll_back means stop.

    Attributes:
        events: what has happened, for metrics and the report.
        rollbacks: how many there have been.
        healthy_step: the newest checkpoint that a guard may go back to, None before the first.
        proven_step: the newest checkpoint that a good step has proven; an evaluation may still have to.
        evaluated_step: the last step whose evaluation was good.
        saved_step: the newest checkpoint, proven or not.
        history: figures since the healthy step, for an event to keep when they are given up.
        ended: a guard has ended the run.
        others: alarms of the last figures besides the worst.
    """

    rules: Sequence[Rule]
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

    def see(self, step: int, row: Mapping[str, float], *, heldout: bool = False) -> Alarm | None:
        """One step's figures, or with `heldout` an evaluation's, in order; the worst alarm, if any. See `others`."""
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
        self._judge(step, heldout)
        alarms.sort(key=lambda alarm: -_SEVERITY.index(alarm.action))
        self.others = alarms[1:]
        return alarms[0] if alarms else None

    def _judge(self, step: int, heldout: bool) -> None:
        """Which checkpoints the last figures prove."""
        acting = [rule for rule in self.rules if rule.section.action in ("stop", "roll_back")]
        sick = any(self._streaks.get(rule.name) for rule in acting if rule.heldout is heldout)
        if heldout and not sick:
            self.evaluated_step = step
        # A step tells of the weights it began with: those of the checkpoint saved before it, if one was.
        elif not heldout and not sick and self.saved_step == step - 1:
            self.proven_step = self.saved_step
        evaluated = self.evaluated_step if any(rule.heldout for rule in acting) else step
        if self.proven_step is not None and (self.healthy_step or 0) <= self.proven_step <= evaluated:
            self.healthy_step = self.proven_step
            self.history = [row for row in self.history if row["step"] > self.healthy_step]

    def last_look(self, step: int, row: Mapping[str, float]) -> list[Alarm]:
        """Guards of steps that an evaluation of a run's last weights breaks: no step will look at those."""
        return [
            self._alarm(rule, step, row[rule.figure], self._first.get(rule.name, 0.0), when=" in the last evaluation")
            for rule in self.rules
            if rule.section.action != "off"
            and not rule.heldout
            and rule.figure in row
            and rule.broken(row[rule.figure], self._first.get(rule.name, 0.0))
        ]

    def non_finite(self, step: int, action: Act, words: str) -> Alarm:
        """An alarm over a loss or gradient that is no number."""
        return Alarm("non_finite", self._allowed(action), step, words)

    def note(self, alarm: Alarm, **facts: Any) -> dict[str, Any]:
        """Keep an event; returns it."""
        event = {"guard": alarm.guard, "action": alarm.action, "at_step": alarm.step, "words": alarm.words, **facts}
        self.events.append(event)
        return event

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
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

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self.events, self.rollbacks = list(state["events"]), state["rollbacks"]
        self.healthy_step, self.saved_step = state["healthy_step"], state["saved_step"]
        self.proven_step, self.evaluated_step = state["proven_step"], state["evaluated_step"]
        self.history, self.ended = list(state["history"]), state["ended"]
        self._streaks, self._first = dict(state["streaks"]), dict(state["first"])

    def gone_back(self, before: Mapping[str, Any]) -> None:
        """After a checkpoint was restored by a roll-back: what was known before it is not forgotten.

        Args:
            before: `state()` of the moment it acted.
        """
        self.events, self.ended = list(before["events"]), before["ended"]
        self.rollbacks = before["rollbacks"]
        self.healthy_step = self.proven_step = before["healthy_step"]
        self._streaks, self.history = {}, []

    def _allowed(self, action: Act) -> Act:
        return "stop" if action == "roll_back" and self.rollbacks >= self.max_rollbacks else action

    def _alarm(self, rule: Rule, step: int, value: float, first: float, when: str = "") -> Alarm:
        section = rule.section
        limit = section.limit + (first if rule.from_start else 0.0)
        found = figure(value) if math.isfinite(value) else str(value)
        when = when or (f" for {section.patience} steps" if section.patience > 1 else "")
        side = "below" if rule.below else "above"
        words = f"{rule.figure} is {found}, {side} {figure(limit)}{when}: {rule.means}"
        action: Act = "warn" if section.action == "off" else section.action
        return Alarm(rule.name, self._allowed(action), step, words)
