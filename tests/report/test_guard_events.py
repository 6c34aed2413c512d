"""Guard events in words."""

from __future__ import annotations

from prefine.report.facts import RunFacts
from prefine.report.guard_events import guard_events

EVENTS = [
    {"guard": "kl", "action": "warn", "at_step": 1, "words": "kl_k3 is 0.1", "step": 1},
    {
        "guard": "kl",
        "action": "roll_back",
        "at_step": 3,
        "words": "kl_k3 is 0.31, above 0.2 for 2 steps: far",
        "back_to_step": 1,
        "changed": {"learning_rate": 0.0001, "kl_coefficient": 0.1},
        "given_up": [{"step": 2, "kl_k3": 0.25, "entropy": 2.0}, {"step": 3, "kl_k3": 0.31, "entropy": 1.9}],
    },
]
FACTS = RunFacts("run", {}, [], [], {}, [], guard_events=EVENTS)


def test_guards_are_told_in_words() -> None:
    warned, back = guard_events(FACTS)
    assert (warned.step, warned.did, warned.given_up) == ("1", "warned", "")
    assert back.did == "rolled the run back to step 1"
    assert "kl coefficient now 0.1" in back.changed
    assert back.given_up.count("→") == 1
