"""What the votes of a project show: the win rate, when it is settled, and how far each annotator can be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from prefine.annotation.ratings import Rated, majority, rated
from prefine.annotation.records import TIE, Item, Judgement
from prefine.comparisons.result import Winner, WinRate
from prefine.comparisons.sentences import p_text
from prefine.comparisons.win_rate import win_rate
from prefine.formatting import INTERVAL, percent, percent_range, plural
from prefine.intervals import Interval, Share
from prefine.significance import ALPHA, holm, sign_test

# Silent reading takes 238 words a minute (Brysbaert 2019, Journal of Memory and Language 109), about 24 characters a
# second in English. Nobody reads three times as fast; longer than 15 seconds is never called too fast.
_FASTEST_CHARACTERS_A_SECOND = 72
_ENOUGH_SECONDS = 15.0
_MOST_TOO_FAST = 0.1


@dataclass(frozen=True, slots=True)
class SideBias:
    """How often the answer that was shown first was preferred; 50 % without a bias, as sides are random.

    Attributes:
        annotator: None: all annotators together.
        first: votes for the answer shown first. decided: votes for one of two answers.
        p: exact and two-sided; `p_adjusted` after Holm's correction over annotators.
    """

    annotator: str | None
    first: int
    decided: int
    interval: Interval | None
    p: float
    p_adjusted: float

    @property
    def shown(self) -> bool:
        """Whether the test shows a bias."""
        return self.p_adjusted < ALPHA

    @property
    def sentence(self) -> str:
        """The figure in words."""
        who = self.annotator or "All annotators"
        if not self.decided:
            return f"{who}: no vote for one of two answers."
        finding = "the side counts" if self.shown else "no preference for a side shown"
        share = _share_text(self.first, self.decided, self.interval)
        return f"{who}: the answer shown first was preferred in {share}; {finding}, {p_text(self.p, self.p_adjusted)}."


@dataclass(frozen=True, slots=True)
class Consistency:
    """How often an annotator said the same when an item came a second time.

    Attributes:
        annotator: None: all annotators together.
        same: repeats with the same judgement as the first time; a ranking is the same if all its pairs are.
        repeats: votes on an item that was judged before.
    """

    annotator: str | None
    same: int
    repeats: int
    interval: Interval | None

    @property
    def sentence(self) -> str:
        """The figure in words."""
        who = self.annotator or "All annotators"
        if not self.repeats:
            return f"{who}: no hidden repeats yet."
        return f"{who}: the same judgement on {_share_text(self.same, self.repeats, self.interval, 'hidden repeat')}."


@dataclass(frozen=True, slots=True)
class Standing:
    """How often an annotator agrees with the majority of the others on the same item, beside all other annotators.

    A ranking agrees if more than half of its pairs do.

    Attributes:
        agreed: with the majority of the others. judged: items on which the others have one.
        others_agreed, others_judged: the same of all other annotators together.
        p: of Fisher's exact test that this annotator agrees as often as the others, against less often; one-sided.
        p_adjusted: after Holm's correction over annotators.
    """

    annotator: str
    agreed: int
    judged: int
    others_agreed: int
    others_judged: int
    p: float
    p_adjusted: float

    @property
    def outlier(self) -> bool:
        """Whether the test shows that this annotator agrees less often than the others do."""
        return self.p_adjusted < ALPHA

    @property
    def sentence(self) -> str:
        """The figure in words."""
        if not self.judged or not self.others_judged:
            return f"{self.annotator}: cannot be compared with other annotators: too few common items."
        own = _share_text(self.agreed, self.judged, None, "item")
        rest = percent(self.others_agreed / self.others_judged)
        finding = "less often than the others" if self.outlier else "no difference from the others shown"
        p = p_text(self.p, self.p_adjusted)
        return f"{self.annotator}: agrees with the majority on {own}, the others on {rest}: {finding}, {p}."


@dataclass(frozen=True, slots=True)
class VotingPace:
    """How many of an annotator's votes took less time than reading the answers does.

    Attributes:
        too_fast: such votes. votes: with a measured time.
    """

    annotator: str
    too_fast: int
    votes: int
    interval: Interval | None

    @property
    def hasty(self) -> bool:
        """Whether more than a tenth of the votes is too fast, by the interval."""
        return self.interval is not None and self.interval.low > _MOST_TOO_FAST

    @property
    def sentence(self) -> str:
        """The figure in words."""
        if not self.votes:
            return f"{self.annotator}: no times are known."
        share = _share_text(self.too_fast, self.votes, self.interval, "vote")
        return f"{self.annotator}: too fast to have read the answers: {share}."


def people_win_rate(
    judgements: Sequence[Judgement],
    candidate: str,
    baseline: str,
    criterion: str | None = None,
    lengths: Mapping[str, int] | None = None,
) -> WinRate:
    """How often people preferred the candidate's answer. An item counts once, by the majority of its votes.

    If an item has several answers of a model, all pairs of the two models' answers are taken together.

    Args:
        candidate, baseline: models.
        lengths: of answers, by id, in any unit: for the win rate at equal length.
    """
    items = between(judgements, candidate, baseline, criterion)
    winners = [winner_of(units, candidate, baseline) for units in items]
    differences = []
    if lengths is not None:
        models = models_of(judgements)
        for units in items:
            sizes = [{models[answer]: lengths[answer] for answer in unit.answers} for unit in units]
            differences.append(sum(size[candidate] - size[baseline] for size in sizes) / len(sizes))
    judge = "people" if criterion is None else f"people, {criterion}"
    return win_rate(judge, winners, differences)


def between(
    judgements: Iterable[Judgement], candidate: str, baseline: str, criterion: str | None = None
) -> list[list[Rated]]:
    """What annotators said of pairs of these two models' answers, by item."""
    both = {candidate, baseline}
    found: dict[int, list[Rated]] = {}
    pairs = [each for each in judgements if len(each.models) == 2 and set(each.models) == both]
    for unit in rated(pairs, criterion):
        found.setdefault(unit.item, []).append(unit)
    return list(found.values())


def winner_of(units: Iterable[Rated], candidate: str, baseline: str) -> Winner:
    """Which side the votes on an item's pairs favour; a tie if there are as many for each."""
    balance = sum(value - 0.5 for unit in units for value in unit.values.values())
    balance *= 1 if candidate < baseline else -1
    return "tie" if balance == 0 else "candidate" if balance > 0 else "baseline"


def models_of(judgements: Iterable[Judgement]) -> dict[str, str]:
    """Answer -> model."""
    return {answer: model for each in judgements for answer, model in zip(each.answers, each.models, strict=True)}


def side_bias(judgements: Sequence[Judgement]) -> list[SideBias]:
    """Of all annotators together, and of each. A vote that ranks several answers counts with its first pair."""
    decided = [each for each in _one_a_vote(judgements) if len(each.answers) == 2 and each.winner != TIE]
    names = [None, *sorted({each.annotator for each in judgements})]
    found = []
    for name in names:
        own = [each for each in decided if name is None or each.annotator == name]
        first = sum(each.winner == each.first for each in own)
        p = sign_test(first, len(own) - first)
        found.append(SideBias(name, first, len(own), _interval(first, len(own)), p, p))
    adjusted = _corrected([each.p if each.decided else None for each in found[1:]])
    return found[:1] + [replace(each, p_adjusted=p) for each, p in zip(found[1:], adjusted, strict=True)]


def consistency(judgements: Sequence[Judgement]) -> list[Consistency]:
    """Of all annotators together, and of each."""
    before: dict[tuple[str, int, tuple[str, ...]], str] = {}
    alike: dict[tuple[str, int], bool] = {}  # by annotator and vote: the pairs of a ranking are one observation
    whole = [each for each in judgements if each.criterion is None]
    for each in sorted(whole, key=lambda each: (each.repeat, each.at)):
        key = (each.annotator, each.item, tuple(sorted(each.answers)))
        if not each.repeat:
            before[key] = each.winner
        elif key in before:
            vote = (each.annotator, each.vote)
            alike[vote] = alike.get(vote, True) and before[key] == each.winner
    repeats = Counter(name for name, _ in alike)
    same = Counter(name for (name, _), is_same in alike.items() if is_same)
    total = Consistency(None, same.total(), repeats.total(), _interval(same.total(), repeats.total()))
    names = sorted({each.annotator for each in judgements})
    return [total] + [
        Consistency(name, same[name], repeats[name], _interval(same[name], repeats[name])) for name in names
    ]


def standings(judgements: Sequence[Judgement], criterion: str | None = None) -> list[Standing]:
    """How each annotator stands beside the others. Items on which the others have no majority do not count."""
    from scipy.stats import fisher_exact

    pairs: dict[tuple[str, int], list[bool]] = {}  # those of an item are one observation
    for unit in rated(judgements, criterion):
        for name, value in unit.values.items():
            others = majority([other for who, other in unit.values.items() if who != name])
            if others is not None:
                pairs.setdefault((name, unit.item), []).append(value == others)
    judged = Counter(name for name, _ in pairs)
    agreed = Counter(name for (name, _), found in pairs.items() if 2 * sum(found) > len(found))
    found = []
    for name in sorted({each.annotator for each in judgements}):
        own = (agreed[name], judged[name])
        rest = (agreed.total() - own[0], judged.total() - own[1])
        table = [[hits, total - hits] for hits, total in (own, rest)]
        p = float(fisher_exact(table, alternative="less").pvalue) if own[1] and rest[1] else 1.0
        found.append(Standing(name, *own, *rest, p, p))
    adjusted = _corrected([each.p if each.judged and each.others_judged else None for each in found])
    return [replace(each, p_adjusted=p) for each, p in zip(found, adjusted, strict=True)]


def paces(judgements: Sequence[Judgement], characters: Mapping[int, int]) -> list[VotingPace]:
    """How fast each annotator votes.

    Args:
        characters: item -> characters of its answers; see `characters_of`.
    """
    votes = [each for each in _one_a_vote(judgements, repeats=True) if each.seconds > 0]
    found = []
    for name in sorted({each.annotator for each in judgements}):
        own = [each for each in votes if each.annotator == name]
        fast = sum(each.seconds < fewest_seconds(characters.get(each.item, 0)) for each in own)
        found.append(VotingPace(name, fast, len(own), _interval(fast, len(own))))
    return found


def characters_of(items: Iterable[Item]) -> dict[int, int]:
    """Item -> characters of its answers. The prompt is left out: several items may share it."""
    return {item.id: sum(len(answer.text) for answer in item.answers) for item in items}


def fewest_seconds(characters: int) -> float:
    """What a vote on answers of so many characters takes at least, if they were read."""
    return min(_ENOUGH_SECONDS, characters / _FASTEST_CHARACTERS_A_SECOND)


def _one_a_vote(judgements: Iterable[Judgement], *, repeats: bool = False) -> list[Judgement]:
    """The first judgement of the whole that each vote gives: those of one vote are not independent."""
    found: dict[int, Judgement] = {}
    for each in judgements:
        if each.criterion is None and (repeats or not each.repeat):
            found.setdefault(each.vote, each)
    return list(found.values())


def _corrected(ps: Sequence[float | None]) -> list[float]:
    """Holm's correction over the annotators who have a test (None: no test); 1 for the others."""
    return [1.0 if p is None else p for p in holm(ps)]


def _interval(hits: int, count: int) -> Interval | None:
    return Share(hits / count, count).interval if count else None


def _share_text(hits: int, count: int, interval: Interval | None, noun: str = "decided vote") -> str:
    ends = f" ({INTERVAL} {percent_range(interval)})" if interval else ""
    return f"{hits} of {plural(count, noun)}, {percent(hits / count)}{ends}"
