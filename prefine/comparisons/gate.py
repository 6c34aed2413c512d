"""A gate: the rules in a YAML file that a candidate must pass to be shipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prefine.comparisons.result import Comparison, Estimate, GateRule, Metric, RegressionGroup, WinRate
from prefine.comparisons.sentences import capital, change_text, interval_text, value_text
from prefine.comparisons.statistics import ALL_CATEGORIES
from prefine.comparisons.win_rate import coverage
from prefine.errors import RecipeError
from prefine.formatting import figure, listing, plural
from prefine.paths import model_name
from prefine.recipe.loading import RecipeSection, checked_recipe, load_recipe

Fraction = Annotated[float, Field(ge=0, le=1)]


class MetricRule(RecipeSection):
    """Limits on a metric. A limit on the change, candidate minus baseline, holds for its whole 95 % interval."""

    change_at_least: float | None = Field(None, description="the lower end of the change's interval must reach this")
    change_at_most: float | None = Field(None, description="the upper end of the change's interval must not exceed it")
    candidate_at_least: float | None = Field(None, description="the candidate's own figure must reach this")
    candidate_at_most: float | None = Field(None, description="the candidate's own figure must not exceed this")

    @model_validator(mode="after")
    def _has_a_limit(self) -> MetricRule:
        if not self.model_dump(exclude_none=True):
            raise ValueError("it has no limit; set change_at_least, for example")
        return self


class WinRateRule(RecipeSection):
    """A limit on a win rate."""

    at_least: Fraction = Field(0.5, description="the lower end of the rate's interval must exceed this")
    kind: Literal["rate", "decided", "length_controlled"] = Field(
        "rate", description="ties as one half, ties left out, or at equal length"
    )
    judge: str | None = Field(None, description="null: every judge")


class RegressionRule(RecipeSection):
    """Limits on a category of the regression set."""

    candidate_at_least: Fraction | None = Field(None, description="share of items that the candidate must pass")
    lost_at_most: Annotated[int, Field(ge=0)] | None = Field(
        None, description="items that the baseline passed and the candidate must not fail"
    )

    @model_validator(mode="after")
    def _has_a_limit(self) -> RegressionRule:
        if not self.model_dump(exclude_none=True):
            raise ValueError("it has no limit; set lost_at_most, for example")
        return self


class Gate(RecipeSection):
    """What a candidate must show to be shipped; each part is a rule, and all must pass."""

    verdict: Literal["better", "not worse", "any"] = Field("better", description="what the verdict must be")
    regressions_allowed: Annotated[int, Field(ge=0)] = Field(0, description="regressions that the verdict may name")
    regression_set: Literal["required", "optional"] = Field(
        "required", description="whether the regression set must have been answered whole by both models"
    )
    answered_at_least: Fraction = Field(
        0.95, description="share of the prompts that both models must answer, and of those that the judge must judge"
    )
    win_rate: WinRateRule | None = None
    metrics: dict[str, MetricRule] = Field(default_factory=dict, description="by the metric's name")
    regression: dict[str, RegressionRule] = Field(default_factory=dict, description="by category")

    def rules(self, comparison: Comparison) -> list[GateRule]:
        """Each rule and what came of it; one whose figure was not computed is not passed."""
        found = [
            self._verdict(comparison),
            self._regressions(comparison),
            *self._regression_set(comparison.regression),
            *_coverage(self.answered_at_least, comparison),
        ]
        if self.win_rate is not None:
            found += _win_rates(self.win_rate, comparison.win_rates)
        known = {metric.name: metric for metric in (*comparison.metrics, *comparison.benchmarks)}
        for name, rule in self.metrics.items():
            found += _metric(name, rule, known)
        groups = {group.category: group for group in comparison.regression}
        for category, limits in self.regression.items():
            found += _group(category, limits, groups)
        return found

    def _verdict(self, comparison: Comparison) -> GateRule:
        decision = comparison.verdict.decision
        decided = bool(comparison.verdict.decided_by)
        not_worse = decided and decision != "worse"
        passed = {"better": decision == "better", "not worse": not_worse, "any": True}[self.verdict]
        text = f"The verdict is {decision}"
        if not passed and not decided:
            text += ", as nothing that was computed decides"
        elif not passed:
            text += f", and the gate asks for {self.verdict}"
        return GateRule(rule=f"verdict: {self.verdict}", value=decision, passed=passed, sentence=f"{text}.")

    def _regressions(self, comparison: Comparison) -> GateRule:
        named = comparison.verdict.regressions
        text = " ".join(named) or "No metric is shown to be worse."
        for group in comparison.regression:
            if group.category == ALL_CATEGORIES and not named:
                text += f" {capital(group.title)}: {group.lost} lost, {group.gained} gained."
        return GateRule(
            rule=f"regressions_allowed: {self.regressions_allowed}",
            value=str(len(named)),
            passed=len(named) <= self.regressions_allowed,
            sentence=text,
        )

    def _regression_set(self, groups: Sequence[RegressionGroup]) -> Iterator[GateRule]:
        if self.regression_set == "optional":
            return
        missing = max((group.missing for group in groups), default=0)
        text = "Both models answered the whole regression set."
        if not groups:
            text = "The regression set was not answered."
        elif missing:
            text = f"{plural(missing, 'item')} of the regression set had no answer of one of the models."
        passed = bool(groups) and not missing
        yield GateRule(rule="regression_set: required", value=str(missing), passed=passed, sentence=text)


def read_gate(path: Path) -> Gate:
    """The gate in a YAML file.

    Raises:
        RecipeError: the file cannot be read, or fields are not valid; lists all errors.
    """
    if not path.exists():
        raise RecipeError(f"There is no gate file {path}", "Check the path.")
    if path.is_dir():
        raise RecipeError(f"{path} is a folder, not a gate file", "Name the YAML file in it.")
    return load_recipe(path, [], Gate)


def gate_of(rules: str | Mapping[str, Any] | None) -> Gate | None:
    """The gate of a recipe: a YAML file's, or the rules themselves; None without one.

    Raises:
        RecipeError: see `read_gate`.
    """
    if rules is None:
        return None
    return read_gate(Path(rules)) if isinstance(rules, str) else checked_recipe(dict(rules), [], Gate, "gate")


def _coverage(least: float, comparison: Comparison) -> Iterator[GateRule]:
    """Whether enough prompts were answered and judged: those that are missing are not missing at random."""
    asked, answered = (comparison.prompts.get(name) for name in ("asked", "count"))
    if not isinstance(asked, int) or not isinstance(answered, int) or not least:
        return
    shares = [answered / asked if asked else 0.0]
    text = f"Both models answered {answered} of {plural(asked, 'prompt')}"
    for rate in comparison.win_rates:
        if rate.judge == comparison.verdict.decided_by:
            judged, there_were = coverage(rate)
            shares.append(judged / there_were if there_were else 0.0)
            text += f", and {rate.judge} gave verdicts on {judged} of {there_were}"
    asked_for = f"at least {value_text(least, 'share')} is required."
    yield GateRule(
        rule=f"answered_at_least: {least:g}",
        value=f"{min(shares):.4g}",
        passed=min(shares) >= least,
        sentence=f"{text}; {asked_for}",
    )


def _win_rates(rule: WinRateRule, rates: Sequence[WinRate]) -> Iterator[GateRule]:
    judge = None if rule.judge is None else model_name(rule.judge)
    chosen = [rate for rate in rates if judge in (None, model_name(rate.judge))]
    name = f"win_rate.{rule.kind} > {rule.at_least:g}"
    if not chosen:
        judges = f"; there are {listing([rate.judge for rate in rates])}" if rates else ""
        why = "No judge compared the answers" if rule.judge is None else f"There is no judge {rule.judge}{judges}"
        yield GateRule(rule=name, value="", passed=False, sentence=f"{why}.")
    for rate in chosen:
        found: Estimate | None = getattr(rate, rule.kind)
        title = f"{_KINDS[rule.kind]} by {rate.judge}"
        if found is None or found.low is None:
            why = " ".join(rate.warnings) or f"{capital(rate.why_not or 'it has no interval')}."
            yield GateRule(rule=name, value="", passed=False, sentence=f"{capital(title)} was not computed. {why}")
            continue
        passed = found.low > rule.at_least
        text = f"{capital(title)} is {value_text(found.value, 'share')} ({interval_text(found, 'share')})"
        low, least = (
            f"{figure(100 * share, _decimals(found.low, rule.at_least))} %" for share in (found.low, rule.at_least)
        )
        yield GateRule(
            rule=name,
            value=f"{found.low:.4g}",
            passed=passed,
            sentence=f"{text}; its lower end is {low}, and more than {least} is required.",
        )


def _decimals(share: float, other: float) -> int:
    """Of two shares in percent: as many as show that they differ."""
    return next((each for each in range(1, 6) if round(100 * share, each) != round(100 * other, each)), 1)


_KINDS = {"rate": "win rate", "decided": "win rate without ties", "length_controlled": "win rate at equal length"}


def _metric(name: str, rule: MetricRule, known: dict[str, Metric]) -> Iterator[GateRule]:
    metric = known.get(name)
    for limit, bound in rule.model_dump(exclude_none=True).items():
        text = f"{name}.{limit}: {bound:g}"
        if metric is None:
            yield _unknown(text, "metric", name, known)
            continue
        of_change = limit.startswith("change")
        found = metric.change if of_change else metric.candidate
        at_least = limit.endswith("at_least")
        value = None if found is None else found.value if not of_change else found.low if at_least else found.high
        if found is None or value is None:
            why = metric.why_not or "there are too few prompts for an interval"
            sentence = f"{capital(metric.title)} was not computed: {why}."
            yield GateRule(rule=text, value="", passed=False, sentence=sentence)
            continue
        passed = value >= bound if at_least else value <= bound
        what = f"the change of {metric.title}" if of_change else f"{metric.title} of the candidate"
        shown = change_text(found, metric.unit) if of_change else value_text(found.value, metric.unit)
        asked = f"at {'least' if at_least else 'most'} {bound:g} is required"
        end = f" of the interval's {'lower' if at_least else 'upper'} end" if of_change else ""
        sentence = f"{capital(what)} is {shown}; {asked}{end}."
        yield GateRule(rule=text, value=f"{value:.4g}", passed=passed, sentence=sentence)


def _group(category: str, rule: RegressionRule, known: dict[str, RegressionGroup]) -> Iterator[GateRule]:
    group = known.get(category)
    for limit, bound in rule.model_dump(exclude_none=True).items():
        text = f"regression.{category}.{limit}: {bound:g}"
        if group is None:
            yield _unknown(text, "category", category, known)
        elif limit == "lost_at_most":
            sentence = f"{capital(group.title)}: {plural(group.lost, 'item')} lost; at most {bound} is allowed."
            yield GateRule(rule=text, value=str(group.lost), passed=group.lost <= bound, sentence=sentence)
        else:
            share, least = group.candidate.value, value_text(bound, "share")
            shown = f"the candidate passed {value_text(share, 'share')}; at least {least} is required."
            sentence = f"{capital(group.title)}: {shown}"
            yield GateRule(rule=text, value=f"{share:.4g}", passed=share >= bound, sentence=sentence)


def _unknown(rule: str, what: str, name: str, known: dict[str, Metric] | dict[str, RegressionGroup]) -> GateRule:
    close = get_close_matches(name, known, 1)
    remedy = f"There are {listing(list(known))}." if known else "None was computed."
    if close:
        remedy = f"Did you mean {close[0]}?"
    return GateRule(rule=rule, value="", passed=False, sentence=f"There is no {what} {name}. {remedy}")
