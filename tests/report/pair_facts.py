"""A DPO run's facts, written by hand."""

from __future__ import annotations

from typing import Any

from prefine.report.facts import RunFacts

BEFORE = {"loss": 0.6931, "accuracy": 0.0, "margin": 0.0, "logp_chosen": -100.0, "policy_accuracy": 0.5}
AFTER = {"loss": 0.55, "accuracy": 0.8, "margin": 0.5, "logp_chosen": -99.0, "policy_accuracy": 0.7}


def facts(**changes: Any) -> RunFacts:
    heldout = {"count": 500, "before": BEFORE, "after": AFTER} | changes.pop("heldout", {})
    evaluation = {"heldout": heldout, "generation": changes.pop("generation", {})}
    whole: dict[str, Any] = {"train": [], "heldout": [], "samples": [], "manifest": {"stage": "dpo"}}
    given = {"heldout": changes.pop("rows", [])} | changes
    return RunFacts(name="run", evaluation=evaluation, **(whole | given))
