"""The result of a comparison in lines, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefine.comparisons.result import Comparison


def comparison_lines(comparison: Comparison, folder: Path) -> Iterator[str]:
    """The verdict, what got worse, what is missing, the gate, and where the report is.

    Args:
        folder: of the comparison.
    """
    yield f"{comparison.verdict.decision}: {comparison.verdict.sentence}"
    yield from (f"worse: {sentence}" for sentence in comparison.verdict.regressions)
    for what, why in comparison.not_computed.items():
        yield f"not computed: {what}: {why}"
    yield from (f"warning: {warning}" for warning in comparison.warnings)
    for rate in comparison.win_rates:
        yield from (f"warning: judged by {rate.judge}: {warning}" for warning in rate.warnings)
    left_out = comparison.prompts.get("left_out", {})
    for reason, count in left_out.items():
        yield f"left out: {count}: {reason}"
    for rule in comparison.gate:
        yield f"gate: {'passed' if rule.passed else 'failed'}: {rule.sentence}"
    if comparison.gate:
        yield "gate: ship" if all(rule.passed for rule in comparison.gate) else "gate: don't ship"
    yield f"report: {folder / 'report.html'}"
