"""What annotators said of the same thing: judgements grouped by item, pair of answers and criterion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from prefine.annotation.records import TIE, Judgement

# A judgement from the side of the model that comes first in the alphabet; of a thumb: up and down.
WIN, DRAW, LOSS = 1.0, 0.5, 0.0
_OF_A_THUMB = {"up": WIN, "down": LOSS}


@dataclass(frozen=True, slots=True)
class Rated:
    """One pair of answers, or one answer with thumbs, and what each annotator said of it.

    Attributes:
        values: annotator -> WIN, DRAW or LOSS; of a pair from the side of the model that comes first in the alphabet,
            so that a value means the same in every item.
    """

    item: int
    answers: tuple[str, ...]
    values: dict[str, float] = field(default_factory=dict)


def rated(judgements: Iterable[Judgement], criterion: str | None = None) -> list[Rated]:
    """Judgements of one criterion (None: of the whole) by item and pair of answers. Hidden repeats are left out.

    If an annotator judged the same twice, the later judgement counts.
    """
    found: dict[tuple[int, tuple[str, ...]], Rated] = {}
    for each in judgements:
        if each.criterion != criterion or each.repeat:
            continue
        answers = tuple(sorted(each.answers))
        unit = found.setdefault((each.item, answers), Rated(each.item, answers))
        unit.values[each.annotator] = value_of(each)
    return list(found.values())


def value_of(judgement: Judgement) -> float:
    """What a judgement says, as WIN, DRAW or LOSS; see Rated."""
    if len(judgement.answers) == 1:
        return _OF_A_THUMB[judgement.winner]
    if judgement.winner == TIE:
        return DRAW
    side = min(range(2), key=lambda place: (judgement.models[place], place))
    return WIN if judgement.winner == judgement.answers[side] else LOSS


def majority(values: Sequence[float]) -> float | None:
    """The value that most gave; None if there is no single one."""
    most = Counter(values).most_common(2)
    return None if not most or (len(most) == 2 and most[0][1] == most[1][1]) else most[0][0]
