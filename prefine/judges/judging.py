"""Asks a judge about many pairs of answers, each in both orders, and what that comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

from prefine.comparisons.estimates import estimate
from prefine.comparisons.result import AnswerRow, Winner, WinRate, prompt_numbers
from prefine.comparisons.win_rate import length_difference, win_rate
from prefine.errors import EndpointError
from prefine.judges.judge import Judge, NoVerdictError, Preferred

_NOT_ASKED = "the judge could not be asked"


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge said of one pair.

    Attributes:
        winner: None if it gave no verdict in one of the orders.
        is_consistent: whether it said the same in both orders; None without a verdict, and for equal answers, which
            are a tie that nobody is asked about.
        failure: why there is no verdict, to be counted; "" if there is one.
        is_refused: whether the judge refused a request about it.
    """

    winner: Winner | None
    is_consistent: bool | None = None
    failure: str = ""
    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class JudgedAnswers:
    """Answers with a judge's verdicts.

    Attributes:
        rows: with the judge's verdicts, where there are any.
        win_rate: over the prompts; of several answers to a prompt the first is judged.
        problem: what ended the judging early; None if every pair was asked about.
        not_asked: pairs that the judge could not be asked about.
        refused: pairs that it refused to judge for what the request holds.
    """

    rows: list[AnswerRow]
    win_rate: WinRate
    problem: EndpointError | None = None
    not_asked: int = 0
    refused: int = 0


def judge_answers(
    rows: Sequence[AnswerRow], judge: Judge, *, at_once: int = 8, progress: Callable[[int], None] = lambda done: None
) -> JudgedAnswers:
    """Ask a judge about each prompt's answers in both orders. If the two verdicts disagree, the pair is a tie.

    What the judge does not answer is counted by reason and raises nothing. Interrupted, it waits for the requests under
    way, so that what was paid for is kept.

    Args:
        rows: prompts with both answers.
        judge: threads call it.
        at_once: the most requests at a time.
        progress: receives the number of pairs done.
    """
    places = first_of_each_prompt(rows)
    opinions, problem = _opinions([rows[place] for place in places], judge, at_once, progress)
    judged = list(rows)
    for place, opinion in zip(places, opinions, strict=True):
        others = {name: winner for name, winner in rows[place].verdicts.items() if name != judge.name}
        own: dict[str, Winner] = {} if opinion.winner is None else {judge.name: opinion.winner}
        judged[place] = rows[place].model_copy(update={"verdicts": others | own})
    differences = [length_difference(rows[place]) for place in places]
    not_asked = sum(each.failure.startswith(_NOT_ASKED) for each in opinions)
    refused = sum(each.is_refused for each in opinions)
    return JudgedAnswers(judged, _win_rate(judge, opinions, differences, problem), problem, not_asked, refused)


def first_of_each_prompt(rows: Sequence[AnswerRow]) -> list[int]:
    """Places of the rows whose prompt no earlier row has: several answers to a prompt are not independent."""
    places: dict[int, int] = {}
    for place, number in enumerate(prompt_numbers(rows)):
        places.setdefault(number, place)
    return list(places.values())


def agreed(one: Preferred, other: Preferred) -> Winner:
    """The winner by two verdicts, the candidate's answer being the first one in `one` and the second one in `other`."""
    if (one, other) == ("first", "second"):
        return "candidate"
    return "baseline" if (one, other) == ("second", "first") else "tie"


def _opinions(
    rows: Sequence[AnswerRow], judge: Judge, at_once: int, progress: Callable[[int], None]
) -> tuple[list[Opinion], EndpointError | None]:
    found: dict[int, Opinion] = {}
    asked: dict[int, tuple[Future[Preferred], Future[Preferred]]] = {}
    with _pool(judge, at_once) as pool:
        for place, row in enumerate(rows):
            first, second = row.candidate.text, row.baseline.text
            if first == second:
                found[place] = Opinion("tie")
                continue
            asked[place] = (
                pool.submit(judge.prefer, row.asked, first, second, row.reference),
                pool.submit(judge.prefer, row.asked, second, first, row.reference),
            )
        waiting = {future: place for place, two in asked.items() for future in two}
        for future in as_completed(waiting):
            one, other = asked[waiting[future]]
            if one.done() and other.done():
                found[waiting[future]] = _opinion(one, other)
                progress(len(found))
    problems = [error for future in waiting if isinstance(error := future.exception(), EndpointError)]
    problems.sort(key=lambda error: (not error.ends_all, not error.may_pass))  # the one that says most comes first
    return [found[place] for place in range(len(rows))], next(iter(problems), None)


def _opinion(one: Future[Preferred], other: Future[Preferred]) -> Opinion:
    """Raises what neither a judge's silence nor an endpoint explains."""
    for future in (one, other):
        error = future.exception()
        if isinstance(error, NoVerdictError):
            return Opinion(None, failure=error.reason, is_refused=error.is_refusal)
        if isinstance(error, EndpointError):
            return Opinion(None, failure=f"{_NOT_ASKED}: {error.problem}")
    winner = agreed(one.result(), other.result())
    return Opinion(winner, winner != "tie" or one.result() == other.result() == "tie")


@contextmanager
def _pool(judge: Judge, at_once: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that ask. An exception ends all waiting; requests under way are finished first."""
    pool = ThreadPoolExecutor(at_once, "judge")
    try:
        yield pool
    except BaseException:
        judge.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _win_rate(
    judge: Judge, opinions: Sequence[Opinion], differences: Sequence[float], problem: EndpointError | None
) -> WinRate:
    failed = Counter(each.failure for each in opinions if each.failure)
    asked = [each.is_consistent for each in opinions if each.is_consistent is not None]
    winners = [each.winner for each in opinions]
    extra = {
        "consistency": estimate([float(same) for same in asked], True),
        "spent": judge.spent(),
        "failed": dict(failed),
    }
    found = win_rate(judge.name, winners, differences, **extra)
    if any(winners):
        return found
    why = str(problem) if problem is not None else _most_common(failed)
    return found.model_copy(update={"why_not": why, "sentence": f"{judge.name} gave no verdict: {why}"})


def _most_common(failed: Counter[str]) -> str:
    return failed.most_common(1)[0][0] if failed else "there are no prompts"
