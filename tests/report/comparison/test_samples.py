"""Which answers are shown first, and what is called better."""

from __future__ import annotations

from typing import Any

from prefine.comparisons.result import AnswerRow, Verdict
from prefine.report.comparison.pictures import answer_charts
from prefine.report.comparison.samples import AnswerSections, shown_samples
from tests.report.comparison.made_up import answer_rows, comparison


def shown(rows: list[AnswerRow], decided_by: str = "reward") -> AnswerSections:
    verdict = Verdict(decision="better", decided_by=decided_by, sentence="")
    return shown_samples(comparison(answer_rows()).model_copy(update={"verdict": verdict}), rows)


def ids(samples: AnswerSections, title: str) -> list[str]:
    return [row.id for selection in samples.selections if selection.title == title for row in selection.rows]


def changed(row: AnswerRow, **both: Any) -> AnswerRow:
    return row.model_copy(update=both)


def test_most_improved_and_most_worsened_by_the_figure_that_decides() -> None:
    rows = answer_rows()
    changes = {row.id: (row.candidate.reward or 0) - (row.baseline.reward or 0) for row in rows}
    ordered = sorted(changes, key=lambda name: changes[name])
    samples = shown(rows)
    assert ids(samples, "Most improved") == ordered[::-1][:4]
    assert ids(samples, "Most worsened") == ordered[:4]
    assert len(ids(samples, "Random")) == 4 and samples.by == "reward"
    assert {row.outcome for category in samples.categories for row in category.rows} == {"better", "worse"}


def test_where_less_is_better_a_fall_improves() -> None:
    rows = [
        changed(
            row,
            candidate=row.candidate.model_copy(update={"scores": {"self_bleu": float(place)}}),
            baseline=row.baseline.model_copy(update={"scores": {"self_bleu": 10.0}}),
        )
        for place, row in enumerate(answer_rows()[:20])
    ]
    samples = shown(rows, "self_bleu")
    assert ids(samples, "Most improved") == [row.id for row in rows[:4]]
    assert samples.by == "self-BLEU"


def test_without_rewards_the_verdicts_decide() -> None:
    bare = {"reward": None}
    rows = [
        changed(
            row,
            candidate=row.candidate.model_copy(update=bare),
            baseline=row.baseline.model_copy(update=bare),
            verdicts={"judge": winner},
        )
        for row, winner in zip(answer_rows(), ("candidate", "baseline", "tie"), strict=False)
    ]
    samples = shown(rows)
    assert ids(samples, "Preferred") == [rows[0].id] and ids(samples, "Not preferred") == [rows[1].id]
    assert samples.by == "the verdicts of judge"


def test_a_reward_model_that_judges_says_how_much() -> None:
    rows = [
        changed(
            row,
            verdicts={"rm": "candidate" if (row.candidate.reward or 0) > (row.baseline.reward or 0) else "baseline"},
        )
        for row in answer_rows()
    ]
    assert (shown(rows, "rm").by, ids(shown(rows, "rm"), "Most improved")) == (
        "reward",
        ids(shown(rows, "reward"), "Most improved"),
    )
    rows[0] = changed(rows[0], verdicts={"rm": "tie"})
    assert shown(rows, "rm").by == "the verdicts of rm"


def test_without_any_figure_only_chance_selects() -> None:
    rows = [
        changed(
            row,
            candidate=row.candidate.model_copy(update={"reward": None}),
            baseline=row.baseline.model_copy(update={"reward": None}),
            verdicts={},
        )
        for row in answer_rows()[:3]
    ]
    samples = shown(rows)
    assert [selection.title for selection in samples.selections] == ["Random"] and samples.by == ""


def test_many_and_long_answers_do_not_swell_the_page() -> None:
    row = answer_rows()[0]
    long = changed(row, candidate=row.candidate.model_copy(update={"text": "x" * 20_000}))
    samples = shown([long] * 500)
    assert (samples.count, samples.left_out) == (500, 100)
    answer = samples.categories[0].rows[0].answers[1]
    assert answer.content.endswith("… [14,000 more characters in answers.jsonl]")


def test_lengths_are_in_tokens_only_if_those_of_both_models_compare() -> None:
    rows = answer_rows()[:1]
    found = comparison(answer_rows())
    other = found.model_copy(update={"metrics": []})
    facts = [shown_samples(each, rows).categories[0].rows[0].answers[0].facts[0] for each in (found, other)]
    assert facts[0].endswith(" tokens")
    assert facts[1] == f"{len(rows[0].baseline.text)} characters"
    titles = [[chart.title for chart in answer_charts(rows, in_tokens=tokens)] for tokens in (True, False)]
    assert titles[0] != titles[1]


def test_the_paired_change_is_one_a_prompt() -> None:
    """Two answers to one prompt, with changes of +3 and -1, are one prompt with a change of +1."""
    one = answer_rows()[0]
    rows = [
        one.model_copy(
            update={
                "candidate": one.candidate.model_copy(update={"reward": change}),
                "baseline": one.baseline.model_copy(update={"reward": 0.0}),
            }
        )
        for change in (3.0, -1.0)
    ]
    (shift,) = [chart for chart in answer_charts(rows, in_tokens=True) if chart.title.startswith("Reward, paired")]
    assert shift.title == "Reward, paired change: median +1.00"
    assert "1 higher, 0 lower, 0 same" in str(shift)
