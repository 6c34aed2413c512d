from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from prefine.comparisons.gate import Gate, MetricRule, RegressionRule, WinRateRule, gate_of, read_gate
from prefine.comparisons.result import Comparison
from prefine.comparisons.statistics import paired_metric, regression_group
from prefine.comparisons.win_rate import win_rate
from prefine.errors import PrefineError
from tests.comparisons.planted import comparison
from tests.comparisons.test_verdict import EQUAL, GOOD

REWARD = paired_metric(
    "reward", "reward", "score", "reward", "higher", [1.0, 2.0, 3.0, 4.0] * 5, [0.5, 1.0, 1.5, 2.0] * 5
)
JSON = regression_group("json", "JSON", [False] * 9 + [True] * 16, [True] * 25, [str(i) for i in range(25)])
FOUND = comparison("judge", [REWARD], [win_rate("judge", GOOD, [])], [JSON])


def written(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_a_gate_is_read_from_yaml(tmp_path: Path) -> None:
    text = """
verdict: not worse
regressions_allowed: 1
win_rate: {at_least: 0.55, kind: decided}
metrics:
  reward: {change_at_least: 0.1}
regression:
  json: {lost_at_most: 2}
"""
    assert read_gate(written(tmp_path / "gate.yaml", text)) == Gate(
        verdict="not worse",
        regressions_allowed=1,
        win_rate=WinRateRule(at_least=0.55, kind="decided"),
        metrics={"reward": MetricRule(change_at_least=0.1)},
        regression={"json": RegressionRule(lost_at_most=2)},
    )


def test_the_documented_gate_has_all_fields_and_their_defaults(tmp_path: Path) -> None:
    """The lines that are comments are examples: they are valid in the place of the defaults."""
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8")
    block = re.findall(r"```yaml\n(verdict: .*?)```", page, re.DOTALL)[0]
    assert read_gate(written(tmp_path / "gate.yaml", block)) == Gate()
    assert list(yaml.safe_load(block)) == list(Gate.model_fields)
    examples = re.sub(r": (?:null|\{\}) ", ": ", block).replace("\n#   ", "\n  ")
    gate = read_gate(written(tmp_path / "gate.yaml", examples))
    assert gate.win_rate == WinRateRule()
    assert set(gate.metrics) == {"reward", "length_tokens", "degenerate"}
    assert gate.regression == {"json": RegressionRule(lost_at_most=1, candidate_at_least=0.8)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("verdict: good", "verdict is \"good\", but must be 'better'"),
        ("win_rate: {at_least: 55}", "win_rate.at_least is 55, but must be less than or equal to 1"),
        ("colour: red", "colour is not a field. The fields of the gate are verdict, regressions_allowed, "),
        ("metrics: {reward: {}}", "metrics.reward"),
        ("regression: {json: {}}", "it has no limit; set lost_at_most"),
        ("metrics: {reward: {change_at_lest: 1}}", "Did you mean metrics.reward.change_at_least?"),
    ],
)
def test_mistakes_are_answered(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PrefineError) as found:
        read_gate(written(tmp_path / "gate.yaml", text))
    assert message in str(found.value)


def test_a_gate_may_be_written_in_a_recipe(tmp_path: Path) -> None:
    rules = {"verdict": "not worse", "metrics": {"reward": {"change_at_least": 0.1}}}
    file = written(tmp_path / "gate.yaml", yaml.safe_dump(rules))
    assert gate_of(rules) == gate_of(str(file)) == read_gate(file)
    assert gate_of({}) == Gate() and gate_of(None) is None
    with pytest.raises(PrefineError, match='gate: verdict is "no worse", but must be '):
        gate_of({"verdict": "no worse"})


def test_a_missing_gate_is_answered(tmp_path: Path) -> None:
    with pytest.raises(PrefineError, match=r"There is no gate file .*none\.yaml"):
        read_gate(tmp_path / "none.yaml")
    with pytest.raises(PrefineError, match="is a folder, not a gate file"):
        read_gate(tmp_path)


def passed(gate: Gate) -> dict[str, bool]:
    return {rule.rule: rule.passed for rule in gate.rules(FOUND)}


def test_without_more_rules_a_candidate_must_be_better_and_lose_nothing() -> None:
    whole = {"regression_set: required": True, "answered_at_least: 0.95": True}
    assert passed(Gate()) == {"verdict: better": True, "regressions_allowed: 0": False} | whole
    assert passed(Gate(regressions_allowed=1)) == {"verdict: better": True, "regressions_allowed: 1": True} | whole


def test_limits_on_a_change_hold_for_the_whole_interval() -> None:
    """The change is 0.5, 1, 1.5 or 2, five each: 1.25 with an interval of about ± 0.27."""
    rules = {"reward": MetricRule(change_at_least=0.9, change_at_most=1.4, candidate_at_least=2.5, candidate_at_most=2)}
    assert passed(Gate(metrics=rules, regressions_allowed=1)) == {
        "verdict: better": True,
        "regressions_allowed: 1": True,
        "regression_set: required": True,
        "answered_at_least: 0.95": True,
        "reward.change_at_least: 0.9": True,
        "reward.change_at_most: 1.4": False,
        "reward.candidate_at_least: 2.5": True,
        "reward.candidate_at_most: 2": False,
    }


def test_limits_on_categories() -> None:
    rules = Gate(regression={"json": RegressionRule(lost_at_most=9, candidate_at_least=0.65)}).rules(FOUND)
    assert [rule.passed for rule in rules[4:]] == [False, True]
    assert "64.0" in rules[4].sentence


def test_a_lower_end_just_below_the_limit_is_shown_with_enough_digits() -> None:
    (rate,) = FOUND.win_rates
    assert rate.rate is not None
    close = rate.model_copy(update={"rate": rate.rate.model_copy(update={"low": 0.49996})})
    rule = Gate(win_rate=WinRateRule()).rules(FOUND.model_copy(update={"win_rates": [close]}))[-1]
    assert (rule.passed, rule.value) == (False, "0.5")
    assert "its lower end is 49.996" in rule.sentence
    none = Gate(metrics={"reward": MetricRule(change_at_least=0)}).rules(FOUND.model_copy(update={"metrics": []}))[-1]
    assert none.sentence == "There is no metric reward. None was computed."


def test_what_is_unknown_or_was_not_computed_is_not_passed() -> None:
    gate = Gate(
        metrics={"rewards": MetricRule(change_at_least=0)},
        regression={"yaml": RegressionRule(lost_at_most=9)},
        win_rate=WinRateRule(kind="length_controlled"),
    )
    rules = gate.rules(FOUND)[4:]
    assert not any(rule.passed for rule in rules)
    text = " ".join(rule.sentence for rule in rules)
    assert "lengths of the answers are not known" in text
    assert "There is no metric rewards. Did you mean reward?" in text
    assert "There is no category yaml" in text
    other = Gate(win_rate=WinRateRule(judge="people")).rules(FOUND)[-1]
    assert not other.passed
    assert other.sentence == "There is no judge people; there are judge."


def test_a_judge_has_one_name_however_it_is_typed() -> None:
    """`--reward runs/judge/`, as a shell completes it."""
    found = comparison("runs/judge/", [], [win_rate("runs/judge/", ["candidate"] * 20, [])])
    (rule,) = [each for each in Gate(win_rate=WinRateRule(judge="runs/judge")).rules(found) if "win_rate" in each.rule]
    assert rule.passed


def test_equal_models_are_not_shipped_as_better() -> None:
    equal = comparison("judge", [], [win_rate("judge", EQUAL, [])])
    first = Gate().rules(equal)[0]
    assert not first.passed
    assert "no difference shown" in first.sentence
    assert all(rule.passed for rule in Gate(verdict="not worse", regression_set="optional").rules(equal))


def failed(gate: Gate, found: Comparison) -> dict[str, str]:
    return {rule.rule: rule.sentence for rule in gate.rules(found) if not rule.passed}


def test_without_evidence_nothing_is_shipped() -> None:
    """Nothing decides, the regression set was not run: "not worse" is not shown."""
    equal = comparison("judge", [], [win_rate("judge", EQUAL, [])])
    undecided = equal.verdict.model_copy(update={"decided_by": "", "decision": "no difference shown"})
    found = failed(Gate(verdict="not worse"), equal.model_copy(update={"verdict": undecided}))
    assert set(found) == {"verdict: not worse", "regression_set: required"}
    assert "nothing that was computed decides" in found["verdict: not worse"]


def test_prompts_without_answers_or_verdicts_fail_the_gate() -> None:
    gate = Gate(verdict="any", regression_set="optional")
    some = comparison("judge", [], [win_rate("judge", EQUAL, [])])
    assert failed(gate, some) == {}
    few = some.model_copy(update={"prompts": {"asked": 110, "count": 100}})
    assert failed(gate, few)["answered_at_least: 0.95"].startswith("Both models answered 100 of 110 prompts")
    judged = comparison("judge", [], [win_rate("judge", [*EQUAL[:90], *[None] * 10], [])])
    assert "judge gave verdicts on 90 of 100" in failed(gate, judged)["answered_at_least: 0.95"]
    assert failed(gate.model_copy(update={"answered_at_least": 0.9}), judged) == {}


def test_items_of_the_regression_set_without_an_answer_fail_the_gate() -> None:
    ids = [str(i) for i in range(5)]
    group = regression_group("json", "JSON", [True] * 5, [True] * 5, ids, missing=3)
    found = comparison("judge", [], [win_rate("judge", EQUAL, [])], [group])
    assert failed(Gate(verdict="any"), found) == {
        "regression_set: required": "3 items of the regression set had no answer of one of the models."
    }


def test_the_gate_says_how_much_of_the_regression_set_was_lost() -> None:
    lost = regression_group(
        "all", "the regression set", [False] * 4 + [True] * 21, [True] * 25, list(map(str, range(25)))
    )
    found = comparison("judge", [], [win_rate("judge", EQUAL, [])], [lost])
    rule = next(rule for rule in Gate().rules(found) if rule.rule == "regressions_allowed: 0")
    assert rule.passed
    assert rule.sentence == "No metric is shown to be worse. The regression set: 4 lost, 0 gained."
