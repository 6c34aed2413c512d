"""Which of two answers to the same conversation people found better, by the events of a feedback database.

The rules, by what they prove (docs/feedback.md states them for users):

1. `correction`: the corrected text is better than the answer that it corrects (see training_rows).
2. `preferred`: an answer is better than another one to the same conversation, as somebody said.
3. `thumbs`: every answer with a thumb up is better than every answer to the same conversation with a thumb down.
4. `regenerated`: an answer that was asked for in the place of earlier ones, and was then accepted, is better than
   these. It is accepted if its thumb is up, or if the conversation goes on with it.

A pair that two rules give is one pair, under the first of them. A pair that two rules give in opposite directions is
the one of the first of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prefine.feedback.judgements import CUT, REPLACED, WITHDRAWN, Answered, Event, Judgements, Unused

_SAME = Unused("answers", "are the same text")
_ELSEWHERE = Unused("answers", "are not to the same conversation")
_CONTRADICTED = Unused("event", "says the opposite of what people said of the two answers otherwise")
_NO_RIVAL = Unused("thumb", "has no answer to the same conversation with the opposite thumb")
_NOT_ACCEPTED = Unused("regenerated answer", "has no thumb up, and the conversation does not go on with it")


@dataclass(frozen=True)
class Pair:
    """Two completions, the rule that pairs them, and the number of the last event that does."""

    chosen: Answered
    rejected: Answered
    rule: str
    number: int


class Pairs:
    """Rules 2 to 4.

    Args:
        judgements: what the events come to.

    Attributes:
        pairs: by hashes of the conversation, the chosen and the rejected text, so that each is there once.
        unused: why other events gave no pair, by their numbers; the last correction of a completion is not among them.
    """

    def __init__(self, judgements: Judgements) -> None:
        self.pairs: dict[tuple[bytes | None, bytes | None, bytes | None], Pair] = {}
        self.unused: dict[int, Unused] = {}
        self._used: set[int] = set()
        self._completions = judgements.completions
        for each in judgements.completions.values():
            for event in each.superseded:
                self._refuse(event, REPLACED)
        self._compare(judgements.comparisons)
        self._pair_thumbs(judgements)
        self._pair_regenerations(judgements.regenerations)

    def _compare(self, comparisons: list[Event]) -> None:
        last: dict[frozenset[int], Event] = {}
        for event in comparisons:
            two = frozenset(each.number for each in self._two(event))
            if two in last:
                self._refuse(last[two], REPLACED)
            last[two] = event
        for event in last.values():
            self._pair("preferred", *self._two(event), event)

    def _pair_thumbs(self, judgements: Judgements) -> None:
        for answers in judgements.by_conversation().values():
            for chosen in (each for each in answers if each.up):
                for rejected in (each for each in answers if each.down):
                    events = [each.thumb for each in (chosen, rejected) if each.thumb is not None]
                    self._pair("thumbs", chosen, rejected, *events)
        for each in judgements.completions.values():
            if each.thumb is not None:
                withdrawn = WITHDRAWN if each.thumb.kind == "withdrawn" else None
                self._refuse(each.thumb, withdrawn or each.unreadable or _NO_RIVAL)

    def _pair_regenerations(self, regenerations: list[Event]) -> None:
        last = {event.completion: event for event in regenerations}
        for event in regenerations:
            if last[event.completion] is not event:
                self._refuse(event, REPLACED)
        for event in last.values():
            chosen, _ = self._two(event)
            if chosen.unreadable is None and not (chosen.up or chosen.gone_on_with):
                continue
            for link, rejected in self._earlier(event, last):
                if rejected.up or chosen.down:
                    self._refuse(link, _CONTRADICTED)
                else:
                    self._pair("regenerated", chosen, rejected, link)
        for event in regenerations:
            self._refuse(event, _NOT_ACCEPTED)

    def _earlier(self, event: Event, last: dict[int, Event]) -> Iterator[tuple[Event, Answered]]:
        """The answers in the place of which one was asked for, one after the other, with the events that say so."""
        link: Event | None = event
        passed: set[int] = set()
        while link is not None and link.completion not in passed:
            passed.add(link.completion)
            _, rejected = self._two(link)
            if rejected.number not in passed:
                yield link, rejected
            link = last.get(rejected.number)

    def _two(self, event: Event) -> tuple[Answered, Answered]:
        if event.other is None:
            raise TypeError(f"event {event.number} is about one answer")
        return self._completions[event.completion], self._completions[event.other]

    def _pair(self, rule: str, chosen: Answered, rejected: Answered, *events: Event) -> None:
        problem = self._problem(chosen, rejected)
        for event in events:
            if problem is not None:
                self._refuse(event, problem)
                continue
            self._used.add(event.number)
            self.unused.pop(event.number, None)
        if problem is None:
            number = max(event.number for event in events)
            texts = (chosen.conversation, chosen.answer, rejected.answer)
            self.pairs.setdefault(texts, Pair(chosen, rejected, rule, number))

    def _refuse(self, event: Event, why: Unused) -> None:
        """Say why an event gives no pair, unless it gives one or something was said before."""
        if event.number not in self._used:
            self.unused.setdefault(event.number, why)

    def _problem(self, chosen: Answered, rejected: Answered) -> Unused | None:
        if (unreadable := chosen.unreadable or rejected.unreadable) is not None:
            return unreadable
        if chosen.conversation != rejected.conversation:
            return _ELSEWHERE
        if chosen.answer == rejected.answer:
            return _SAME
        if not chosen.is_whole:
            return CUT
        opposite = (chosen.conversation, rejected.answer, chosen.answer)
        return _CONTRADICTED if opposite in self.pairs else None
