"""Charts of the answers of both models: rewards, lengths, KL and entropy, side by side and paired by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefine.comparisons.answer_metrics import mean_by_prompt
from prefine.comparisons.result import AnswerOf, AnswerRow, prompt_numbers
from prefine.formatting import figure, plural, tokens
from prefine.intervals import median
from prefine.report.charts import Chart, Key, drawn
from prefine.report.plots import Bars, histogram

Read = Callable[[AnswerOf], float | None]


def answer_charts(rows: Sequence[AnswerRow], *, in_tokens: bool) -> list[Chart]:
    """The charts that have figures.

    Args:
        in_tokens: whether lengths are in tokens, else in characters.
    """
    unit = "tokens" if in_tokens else "characters"
    return drawn(
        *_pair_of_charts(rows, "reward", "Reward", lambda answer: answer.reward, _score),
        *_pair_of_charts(rows, unit, "Answer length", _tokens if in_tokens else _characters, tokens),
        _both(rows, "kl", "KL per token", lambda answer: answer.kl_per_token, _nats, "nats, to the reference"),
        _both(rows, "entropy", "Entropy", lambda answer: answer.entropy, _nats, "nats, mean over an answer’s tokens"),
    )


def _tokens(answer: AnswerOf) -> float:
    return float(answer.tokens)


def _characters(answer: AnswerOf) -> float:
    return float(len(answer.text))


def _score(value: float | None) -> str:
    return figure(value, 2)


def _nats(value: float | None) -> str:
    return figure(value, 3)


def _pair_of_charts(
    rows: Sequence[AnswerRow], name: str, title: str, read: Read, told: Callable[[float | None], str]
) -> list[Chart | None]:
    """The distributions of both models, and that of the paired change."""
    return [_both(rows, name, title, read, told), _shift(rows, name, title, read, told)]


def _both(
    rows: Sequence[AnswerRow],
    name: str,
    title: str,
    read: Read,
    told: Callable[[float | None], str],
    unit: str = "",
) -> Chart | None:
    """Both distributions with their medians; None if a model has no figure."""
    before = [value for row in rows if (value := read(row.baseline)) is not None]
    after = [value for row in rows if (value := read(row.candidate)) is not None]
    if not before or not after:
        return None
    was, now = told(median(before)), told(median(after))
    noun = unit.split(",")[0] or name
    counted = plural(len(after), "answer") if len(after) == len(before) else f"{len(before)} and {len(after)} answers"
    return Chart(
        f"{title}: median {was} → {now}",
        f"{counted} of each model{f', {unit}' if unit else ''}" if len(after) == len(before) else counted,
        histogram(
            name,
            f"{title} of both models; medians {was} and {now}",
            [Bars(before, "before", median(before), filled=True), Bars(after, "after", median(after), filled=False)],
            xlabel=noun,
            ylabel="answers",
        ),
        [Key("before", "block", f"baseline, median {was}"), Key("after", "line", f"candidate, median {now}")],
        "Dashed lines: medians.",
    )


def _shift(
    rows: Sequence[AnswerRow], name: str, title: str, read: Read, told: Callable[[float | None], str]
) -> Chart | None:
    """The distribution of candidate − baseline over prompts, whose answers are averaged; None without pairs."""
    both = [(read(row.candidate), read(row.baseline)) for row in rows]
    of_rows = [None if now is None or was is None else now - was for now, was in both]
    changes = [change for change in mean_by_prompt(of_rows, prompt_numbers(rows)) if change is not None]
    middle = median(changes)
    if middle is None:
        return None
    up, down = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    same = len(changes) - up - down
    size = told(abs(middle))
    shown = size if middle == 0 else f"{'+' if middle > 0 else '−'}{size}"
    return Chart(
        f"{title}, paired change: median {shown}",
        f"candidate − baseline, by prompt: {up} higher, {down} lower, {same} same",
        histogram(
            f"{name}-change",
            f"{title}, candidate minus baseline; median {shown}",
            [Bars(changes, "after", middle, filled=True)],
            xlabel=f"change of {name}",
            ylabel="prompts",
            reference=0,
        ),
        [Key("text", "line", "no change"), Key("after", "dashed", f"median {shown}")],
    )
