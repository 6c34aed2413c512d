"""Win rates added to a comparison, by a model and by people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.comparisons.gate import Gate
from prefine.comparisons.result import Comparison
from prefine.comparisons.statistics import paired_metric
from prefine.comparisons.votes import read_votes
from prefine.comparisons.win_rate import win_rate
from prefine.errors import CheckpointError, DataError, RecipeError
from prefine.evaluation.comparing.judged import AskedJudge, _names, judge_comparison, with_win_rates
from prefine.judges.endpoint_judge import JudgeSettings
from prefine.judges.template import JudgeTemplate
from prefine.report.comparison.reading import read_answers, read_comparison
from tests.judges.fake import Answer, Fake, prefers_good, refusal, running


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Ten prompts; the candidate's answers are good, the baseline's bad."""
    made = []
    for name, word in (("dpo", "good"), ("sft", "bad")):
        rows = [{"prompt": f"question {number}", "completion": f"{word} {number}", "tokens": 2} for number in range(10)]
        made.append(tmp_path / f"{name}.jsonl")
        made[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return made[0], made[1]


def by(fake: Fake, model: str = "m") -> AskedJudge:
    return AskedJudge(fake.endpoint(attempts=2), JudgeSettings(model), JudgeTemplate())


def test_two_files_become_a_comparison_with_a_win_rate(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(prefers_good) as fake:
        found = judge_comparison(files, judge=by(fake), out=out, votes_out=tmp_path / "votes.jsonl")
        asked = len(fake.asked)
        again = judge_comparison(files, judge=by(fake), out=out)
        from_folder = judge_comparison([out], judge=by(fake))
        assert len(fake.asked) == asked == 20
    comparison = read_comparison(out)
    assert comparison == from_folder.comparison
    assert again.win_rates[0].spent["requests_now"] == 0
    assert (comparison.candidate.name, comparison.baseline.name) == ("dpo", "sft")
    assert comparison.prompts["count"] == 10
    assert [(rate.judge, rate.wins) for rate in comparison.win_rates] == [("m", 10)]
    assert (comparison.verdict.decision, comparison.verdict.decided_by) == ("better", "m")
    assert {row.verdicts["m"] for row in read_answers(out)} == {"candidate"}
    assert "good 3" in (out / "report.html").read_text(encoding="utf-8")
    votes, refused = read_votes(tmp_path / "votes.jsonl")
    assert (len(votes), refused, votes[0].judge, votes[0].winner) == (10, [], "m", "model_a")
    assert found.problem is None


def test_votes_of_people_and_a_judge_stand_side_by_side(files: tuple[Path, Path], tmp_path: Path) -> None:
    out, votes = tmp_path / "out", tmp_path / "votes.jsonl"
    with running(prefers_good) as fake:
        judge_comparison(files, judge=by(fake), out=out, votes_out=votes)
    lines = votes.read_text(encoding="utf-8").splitlines()
    changed = [json.loads(line) | {"judge": "ann", "winner": "model_b"} for line in lines[:8]]
    text = "".join(json.dumps(each) + "\n" for each in [*changed, changed[0] | {"question_id": "none"}])
    votes.write_text(text + '{"winner": "A"}\n', encoding="utf-8")
    found = judge_comparison([out], votes=votes)
    (rate,) = found.win_rates
    assert (rate.judge, rate.losses, rate.failed, rate.finding) == ("people", 8, {"without a vote": 2}, "worse")
    assert [str(each) for each in found.refused] == [f"{votes}, line 10: question_id: Field required"]
    assert "1 of 9 votes are not used" in rate.warnings[0]
    assert "1 line of votes.jsonl is not a vote" in rate.warnings[1]
    comparison = read_comparison(out)
    assert [rate.judge for rate in comparison.win_rates] == ["m", "people"]
    assert comparison.verdict.decided_by == "m"  # as before
    assert any("people" in each for each in comparison.verdict.regressions)
    assert [row.verdicts.get("people") for row in read_answers(out)] == ["baseline"] * 8 + [None] * 2


def test_an_endpoint_that_goes_down_leaves_a_report_and_what_was_paid_for(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with running(lambda body, number: prefers_good(body, number) if number <= 12 else refusal(402, "no money")) as fake:
        request = AskedJudge(fake.endpoint(), JudgeSettings("m"), JudgeTemplate(), at_once=1)
        found = judge_comparison(files, judge=request, out=out)
    assert found.problem is not None and "no money" in str(found.problem)
    (rate,) = read_comparison(out).win_rates
    assert (rate.wins, sum(rate.failed.values())) == (6, 4)
    with running(lambda body, number: refusal(500)) as fake:
        other = judge_comparison([out], judge=by(fake, "other"))
    assert other.win_rates[0].finding == "not computed"
    assert "status 500" in other.win_rates[0].why_not
    assert read_comparison(out).verdict.decided_by == "m"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "status 500" in page and "no money" in page


def test_a_win_rate_decides_only_where_nothing_did() -> None:
    metric = paired_metric("reward", "reward", "score", "reward", "higher", [1.0] * 20, [0.0] * 20)
    lost = win_rate("m", ["baseline"] * 20, [0.0] * 20)
    comparison = Comparison.model_validate(
        {
            "prefine": "0",
            "made_at": "2026-01-01",
            **{side: {"name": side, "kind": "run"} for side in ("candidate", "baseline")},
            "prompts": {},
            "sampling": {},
            "verdict": {"decision": "better", "decided_by": "reward", "sentence": "better"},
            "metrics": [metric.model_dump()],
        }
    )
    gated = comparison.model_copy(update={"gate": Gate().rules(comparison)})
    found = with_win_rates(with_win_rates(gated, [lost]), [lost])
    assert (found.verdict.decided_by, found.verdict.decision) == ("reward", "better")
    assert len(found.verdict.regressions) == len(found.win_rates) == 1
    assert [each for each in found.warnings if "gate" in each] == found.warnings != []
    undecided = comparison.model_copy(
        update={"verdict": comparison.verdict.model_copy(update={"decided_by": "", "decision": "no difference shown"})}
    )
    nothing = win_rate("none", [None], [0.0])
    assert with_win_rates(undecided, [nothing]).verdict == undecided.verdict
    assert with_win_rates(undecided, [nothing, lost]).verdict.decision == "worse"


def test_names_that_are_none(files: tuple[Path, Path]) -> None:
    with pytest.raises(RecipeError, match="NUL"):
        judge_comparison([Path("a\0b")])


@pytest.mark.parametrize("names", [[], ["a", "b", "c"], ["folder", "sft.jsonl"], ["sft.jsonl"]])
def test_other_answers_are_refused(files: tuple[Path, Path], tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecipeError, match="the answers are"):
        judge_comparison([tmp_path / name for name in names])


def test_files_of_one_name_are_told_apart_by_their_folders(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Their names stand in votes, which hold for one of the two only."""
    for name, file in zip(("a", "b"), files, strict=True):
        (tmp_path / name).mkdir()
        file.rename(tmp_path / name / "answers.jsonl")
    places, votes = [tmp_path / name / "answers.jsonl" for name in "ab"], tmp_path / "votes.jsonl"
    with running(prefers_good) as fake:
        found = judge_comparison(places, judge=by(fake), out=tmp_path / "out", votes_out=votes)
    assert (found.comparison.candidate.name, found.comparison.baseline.name) == ("a/answers", "b/answers")
    assert judge_comparison([tmp_path / "out"], votes=votes).win_rates[0].wins == 10
    with pytest.raises(RecipeError, match="is named twice"):
        judge_comparison([places[0], places[0]], out=tmp_path / "other")
    assert _names([Path("a.jsonl"), Path("a.csv")]) == ["a.jsonl", "a.csv"]


def test_votes_that_cannot_be_written_are_refused_before_a_judge_is_paid(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    with running(prefers_good) as fake:
        judge_comparison(files, judge=by(fake), out=tmp_path / "out")
        report = tmp_path / "out" / "report.json"
        report.write_text(report.read_text().replace('"name": "sft"', '"name": "dpo"'))
        asked = len(fake.asked)
        with pytest.raises(DataError, match="both models are called"):
            judge_comparison([tmp_path / "out"], judge=by(fake, "m2"), votes_out=tmp_path / "v.jsonl")
        assert len(fake.asked) == asked


def test_folders_that_hold_something_else_are_refused_and_left_alone(files: tuple[Path, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="holds no comparison"):
        judge_comparison([empty])
    assert list(empty.iterdir()) == []
    with pytest.raises(RecipeError, match="--out"):
        judge_comparison([empty], out=tmp_path / "x")
    out = tmp_path / "out"
    judge_comparison(files, out=out)
    files[0].write_text(json.dumps({"prompt": "question 1", "completion": "new"}), encoding="utf-8")
    with pytest.raises(RecipeError, match="other settings"):
        judge_comparison(files, out=out)


def test_a_verdict_that_failed_this_time_is_not_kept_from_the_last(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Another endpoint is another question: its failures must not show the verdicts of the first."""
    out = tmp_path / "out"
    with running(prefers_good) as fake:
        judge_comparison(files, judge=by(fake), out=out)
    with running(lambda body, number: Answer("well")) as fake:
        judge_comparison([out], judge=by(fake))
    assert [row.verdicts for row in read_answers(out)] == [{}] * 10
    comparison = read_comparison(out)
    assert [(rate.judge, rate.finding) for rate in comparison.win_rates] == [("m", "not computed")]
    assert comparison.verdict.decision == "no difference shown"
