"""Guard events in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefine.formatting import figure
from prefine.report.facts import RunFacts, count, dictionaries, mapping, number, text


@dataclass(frozen=True)
class GuardEvent:
    """An action of a guard.

    Attributes:
        did: warned, stopped or rolled back, with the step.
        changed: settings that differ since then.
        given_up: the guard's figure over the discarded steps.
    """

    step: str
    did: str
    words: str
    changed: str
    given_up: str


def guard_events(facts: RunFacts) -> list[GuardEvent]:
    """The guards' actions in order."""
    return [_event(event) for event in facts.guard_events]


def _event(event: Mapping[str, Any]) -> GuardEvent:
    back, action = count(event.get("back_to_step")), text(event.get("action"))
    did = {
        "warn": "warned",
        "stop": f"ended the run on the weights of step {back}",
        "roll_back": f"rolled the run back to step {back}",
    }.get(action or "", "acted")
    changed = ", ".join(
        f"{name.replace('_', ' ')} now {figure(number(value))}" for name, value in mapping(event.get("changed")).items()
    )
    rows = dictionaries(event.get("given_up"))
    names = [name for name in (rows[-1] if rows else {}) if name != "step" and name in (text(event.get("words")) or "")]
    path = [" → ".join(figure(number(row.get(name))) for row in rows) for name in names[:1]]
    step = count(event.get("at_step"))
    return GuardEvent(
        "" if step is None else str(step), did, text(event.get("words")) or "", changed, path[0] if path else ""
    )
