"""Which languages prompts and answers are in, by py3langid's classifier on an even sample."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

from prefine.data.audit.entries import Entry, at, excerpt_of
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, Severity, unchecked
from prefine.data.lengths import EvenSample
from prefine.data.records.selection import Place
from prefine.formatting import listing, percent, plural

MOST_CLASSIFIED = 4_000
"""Records of the even sample."""
_CHARACTERS_READ = 400
_FEWEST_LETTERS = 40
_SURE = 0.8
UNKNOWN = "und"
"""ISO 639 code of a text that is too short or too mixed to tell."""
_SHOWN = 6


class Languages:
    """Classifies the last answer, or the prompt where there is no answer, and whether both are in one language."""

    def __init__(self) -> None:
        self._seen = 0
        self._sample: EvenSample[tuple[str, str, Place]] = EvenSample(MOST_CLASSIFIED)
        self._found: list[tuple[str, str, Place]] | None = None

    def add(self, entry: Entry) -> None:
        """Take a record."""
        if self._sample.wants(self._seen):
            # Of a conversation its end: the answer is in the language of the last question.
            answer = entry.answers[0][:_CHARACTERS_READ] if entry.answers else ""
            self._sample.add((entry.prompt[-_CHARACTERS_READ:], answer, entry.place))
        self._seen += 1

    def _classified(self) -> list[tuple[str, str, Place]]:
        """Languages of prompt and answer of each sampled record; classified once, as that takes 0.2 ms a text."""
        if self._found is None:
            self._found = [
                (asked := language_of(prompt), language_of(answer) if answer else asked, place)
                for prompt, answer, place in self._sample.values
            ]
        return self._found

    @property
    def shares(self) -> dict[str, float]:
        """Share of each language among sampled records whose language is known, the most frequent first."""
        known = Counter(self._language(asked, answered) for asked, answered, _ in self._classified())
        known.pop(UNKNOWN, None)
        return {code: count / known.total() for code, count in known.most_common()}

    @staticmethod
    def _language(asked: str, answered: str) -> str:
        return asked if answered == UNKNOWN else answered

    def finding(self) -> AuditFinding:
        """Of the sample."""
        check, title = "languages", "Languages"
        shares, looked = self.shares, len(self._sample.values)
        if not shares:
            return unchecked(check, title, "No text is long and clear enough to tell its language.")
        found = self._classified()
        differ = [number for number, (asked, answered, _) in enumerate(found) if _differ(asked, answered)]
        known = sum(self._language(asked, answered) != UNKNOWN for asked, answered, _ in found)
        main = next(iter(shares.values()))
        mixed = 1 - main >= 0.02
        answers = len(differ) / looked
        severity = Severity.MEDIUM if answers >= 0.02 else Severity.LOW if mixed else Severity.NONE
        parts = [f"{code} {percent(share, 1)}" for code, share in list(shares.items())[:_SHOWN] if share >= 0.001]
        sampled = f" (a sample of {looked:,})" if looked < self._seen else ""
        says = f"Of {plural(known, 'record')} whose language can be told{sampled}: {listing(parts)}."
        if differ:
            says += f" {plural(len(differ), 'answer is', 'answers are')} in another language than the prompt."
        return AuditFinding(
            check,
            title,
            severity,
            says,
            len(differ),
            looked,
            "sampled records",
            "Read the examples: unless the task is translation, remove them, or the model learns to switch language."
            if severity is Severity.MEDIUM
            else "Check that the mix is intended."
            if mixed
            else "",
            [self._example(number) for number in differ[:MOST_EXAMPLES]],
            {"shares": shares, "unknown": looked - known},
        )

    def _example(self, number: int) -> AuditExample:
        prompt, answer, place = self._sample.values[number]
        asked, answered, _ = self._classified()[number]
        text = f"“{excerpt_of(prompt)}” · answer: “{excerpt_of(answer)}”"
        return AuditExample([at(place)], text, f"{asked} → {answered}")


def _differ(asked: str, answered: str) -> bool:
    return UNKNOWN not in (asked, answered) and asked != answered


def language_of(text: str) -> str:
    """The ISO 639 code of a text's language; UNKNOWN if it has too few letters, or the classifier is not sure."""
    if sum(map(str.isalpha, text)) < _FEWEST_LETTERS and not any(character > "\u2fff" for character in text):
        return UNKNOWN
    code, probability = _identifier().classify(text)
    return str(code) if probability >= _SURE else UNKNOWN


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
