"""What `prefine judge` added is there after `prefine evaluate` is repeated, and its gate sees it."""

from __future__ import annotations

import json
from pathlib import Path

from prefine.comparisons.result import AnswerOf, AnswerRow, Winner
from prefine.comparisons.votes import votes_of, write_votes
from prefine.comparisons.win_rate import win_rate
from prefine.evaluation.comparing.evaluate import evaluate
from prefine.evaluation.comparing.judged import judge_comparison
from prefine.evaluation.comparing.judgements import keep_judgements, kept_judgements
from tests.evaluation.comparing.test_evaluate import ROWS, answers_in
from tests.evaluation.comparing.test_evaluate import asked as asked
from tests.evaluation.comparing.test_evaluate import models as models
from tests.evaluation.comparing.test_gathering import Ask


def row(name: str, answer: str, **verdicts: Winner) -> AnswerRow:
    sides = [AnswerOf(text=text, tokens=1, ended=True) for text in (answer, "other")]
    prompt = [{"role": "user", "content": name}]
    return AnswerRow(id=name, prompt=prompt, candidate=sides[0], baseline=sides[1], verdicts=verdicts)


def test_verdicts_on_the_same_answers_are_added(tmp_path: Path) -> None:
    file = tmp_path / "judgements.json"
    judged = [row("a", "x", people="baseline"), row("b", "y")]
    keep_judgements(file, judged, [win_rate("people", ["baseline", None], [])])
    keep_judgements(file, judged, [win_rate("m", [None, None], [])])  # the other judge's are kept
    plain = [row("a", "x", r="candidate"), row("b", "y")]
    rows, rates, warnings = kept_judgements(file, plain, [])
    assert [each.verdicts for each in rows] == [{"r": "candidate", "people": "baseline"}, {}]
    assert ([rate.judge for rate in rates], warnings) == (["people", "m"], [])
    assert [rate.judge for rate in kept_judgements(file, plain, ["m"])[1]] == ["people"]


def test_verdicts_on_other_answers_are_left_out_with_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "judgements.json"
    keep_judgements(file, [row("a", "x", people="baseline")], [win_rate("people", ["baseline"], [])])
    rows, rates, warnings = kept_judgements(file, [row("a", "another")], [])
    assert (rows[0].verdicts, rates) == ({}, [])
    assert warnings == ["The verdicts by people are of other answers and are left out: repeat `prefine judge`."]


def test_verdicts_on_earlier_answers_are_kept_beside_those_on_later_ones(tmp_path: Path) -> None:
    """People who judged the answers of one model do not judge them again when it is compared once more."""
    file = tmp_path / "judgements.json"
    first, second = [row("a", "x", people="baseline")], [row("a", "another", people="candidate")]
    keep_judgements(file, first, [win_rate("people", ["baseline"], [])])
    keep_judgements(file, second, [win_rate("people", ["candidate"], [])])
    for judged in (first, second):
        rows, rates, warnings = kept_judgements(file, [row("a", judged[0].candidate.text)], [])
        assert (rows, len(rates), warnings) == (judged, 1, [])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "judgements.json"
    assert kept_judgements(file, [], []) == ([], [], [])
    file.write_text('{"judgements": [{}]}')
    assert "cannot be read" in kept_judgements(file, [], [])[2][0]


def test_a_repeated_evaluation_has_the_votes_and_its_gate_sees_them(asked: Ask, tmp_path: Path) -> None:
    gate, votes = tmp_path / "gate.yaml", tmp_path / "votes.jsonl"
    gate.write_text("verdict: any\nregression_set: optional\nwin_rate: {judge: people, at_least: 0.5}\n")
    first, folder = evaluate(asked(gate=gate))
    assert not first.gate[-1].passed
    won = [each.model_copy(update={"verdicts": {"ann": "candidate"}}) for each in answers_in(folder)]
    write_votes(votes, votes_of(won, "ann", first.candidate.name, first.baseline.name))
    judge_comparison([folder], votes=votes)
    again, _ = evaluate(asked(gate=gate))
    (rate,) = again.win_rates
    assert (rate.judge, rate.wins, again.verdict.decided_by) == ("people", len(ROWS), "people")
    assert [each.verdicts for each in answers_in(folder)] == [{"people": "candidate"}] * len(ROWS)
    assert again.gate[-1].passed
    assert json.loads((folder / "report.json").read_text())["win_rates"][0]["judge"] == "people"
