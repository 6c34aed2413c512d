"""What could be learned without reading, from single words of the answers; labels that the words contradict.

A logistic regression on the words of the answers predicts the preference (or the vote) of rows that it did not see. Its
accuracy is what a reward model can reach without understanding anything.
"""

from __future__ import annotations

import hashlib

import numpy as np

from prefine.data.audit.entries import Entry, at, excerpt_of
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, Severity, unchecked
from prefine.data.audit.word_classifier import FEWEST, FOLDS, LearnedWords, SampledAnswers, contradicted, learned_words
from prefine.data.lengths import EvenSample
from prefine.data.records.selection import Place, group_of
from prefine.formatting import percent, percent_range, plural
from prefine.intervals import Share
from prefine.records import Preference, Vote

_MOST_LEARNED_FROM = 10_000
_CHARACTERS_READ = 2_000
# Below this accuracy a classifier of words knows too little to call a label wrong.
_ENOUGH_FOR_NOISE = 0.65
_CONFIDENT_TENTH = 0.1
_FEWEST_IN_A_TENTH = 50


class Cues:
    """Shallow cues and suspected label noise of pairs and votes."""

    def __init__(self) -> None:
        self._sample: EvenSample[SampledAnswers] = EvenSample(_MOST_LEARNED_FROM)
        self._judged = 0
        self._is_pairs = True
        self._learned: LearnedWords | None = None

    def add(self, entry: Entry) -> None:
        """Take a record; ties, demonstrations and prompts say nothing about what is better."""
        record = entry.record
        if isinstance(record, Vote):
            self._is_pairs = False
        elif not isinstance(record, Preference) or record.tie:
            return
        if self._sample.wants(self._judged):
            fold = int.from_bytes(hashlib.blake2b(group_of(record).encode(), digest_size=4).digest()) % FOLDS
            texts = tuple(answer[:_CHARACTERS_READ] for answer in entry.answers)
            up = record.label if isinstance(record, Vote) else True
            self._sample.add(SampledAnswers(entry.place, fold, texts, up))
        self._judged += 1

    @property
    def shallow_accuracy(self) -> float | None:
        """Cross-validated accuracy of the words; None before `findings`, or with too few rows."""
        return self._learned.accuracy if self._learned else None

    @property
    def noise_at_most(self) -> float | None:
        """Upper limit of the share of wrong labels; see `_noise`."""
        bound = self._bound()
        return None if bound is None or bound.interval is None else bound.interval.high

    def findings(self) -> list[AuditFinding]:
        """Of all records; trains the classifier."""
        if not self._judged:
            why = "Only pairs and votes say which answers are better."
            return [
                unchecked("shallow_cues", "Shallow cues", why),
                unchecked("label_noise", "Suspected label noise", why),
            ]
        self._learned = learned_words(self._sample.values, self._is_pairs)
        return [self._words(), self._noise()]

    # --- Words -----------------------------------------------------------------------------------------------------

    def _words(self) -> AuditFinding:
        check, title = "shallow_cues", "Shallow cues"
        if self._learned is None:
            what = "pairs" if self._is_pairs else "votes, a quarter of them each way,"
            return unchecked(check, title, f"Fewer than {FEWEST} {what} with different prompts to learn from.")
        accuracy, of = self._learned.accuracy, len(self._sample.values)
        severity = (
            Severity.HIGH
            if accuracy >= 0.9
            else Severity.MEDIUM
            if accuracy >= 0.75
            else Severity.LOW
            if accuracy >= 0.65
            else Severity.NONE
        )
        interval = Share(accuracy, of).interval
        span = f" (95 % interval {percent_range(interval)})" if interval else ""
        what = "the preference" if self._is_pairs else "the vote"
        return AuditFinding(
            check,
            title,
            severity,
            f"Single words of the answers alone predict {what} in {percent(accuracy)} of rows that the classifier did "
            f"not see{span}; 50 % is chance.",
            round(accuracy * of),
            of,
            "pairs" if self._is_pairs else "votes",
            "A model can learn these words instead of quality. Read them; add rows in which they are in the "
            "worse answer. A reward model should be clearly better than this figure."
            if severity is not Severity.NONE
            else "",
            figures={"accuracy": accuracy, "cues": self._learned.cues},
        )

    # --- Label noise -----------------------------------------------------------------------------------------------

    def _bound(self) -> Share | None:
        """Share of labels that the words contradict in the tenth of rows where they are the most confident.

        If labels were wrong at random, no better share could be reached there than that of wrong labels: the upper end
        of its interval is an upper limit of the noise.
        """
        if self._learned is None:
            return None
        right = self._learned.right
        most = int(len(right) * _CONFIDENT_TENTH)
        if most < _FEWEST_IN_A_TENTH:
            return None
        confident = np.argsort(-np.abs(right - 0.5), kind="stable")[:most]
        return Share(float((right[confident] < 0.5).mean()), most)

    def _noise(self) -> AuditFinding:
        check, title = "label_noise", "Suspected label noise"
        bound = self._bound()
        if self._learned is None or bound is None or bound.interval is None:
            return unchecked(check, title, "Too few rows for an estimate.")
        limit = f"If labels were wrong at random, at most about {percent(bound.interval.high)} of them would be."
        if self._learned.accuracy < _ENOUGH_FOR_NOISE:
            return unchecked(
                check,
                title,
                f"Words predict only {percent(self._learned.accuracy)} of the labels, too few to call one wrong. "
                f"{limit}",
                "Read a sample of rows, or have a tenth of them judged again.",
            )
        right = self._learned.right
        suspects = contradicted(right)
        confident = len(suspects) + int((right >= right.mean()).sum())
        share = len(suspects) / confident if confident else 0.0
        worst = suspects[:MOST_EXAMPLES]
        return AuditFinding(
            check,
            title,
            Severity.MEDIUM if share >= 0.1 else Severity.LOW if len(suspects) else Severity.NONE,
            f"The words contradict {plural(len(suspects), 'label')} of {len(right):,} as confidently as they support "
            f"others ({percent(share)} of the confident cases). {limit}",
            len(suspects),
            len(right),
            "labels",
            "Read the suspects: a classifier of words sees only words, so some are right and hard, not wrong."
            if len(suspects)
            else "",
            [self._suspect(int(place)) for place in worst],
            {"share_of_confident": share, "at_most": bound.interval.high},
        )

    def suspects(self) -> list[Place]:
        """Rows with suspected labels, the most suspected first; none before `findings`, or with too few rows."""
        if self._learned is None:
            return []
        return [self._sample.values[int(row)].place for row in contradicted(self._learned.right)]

    def _suspect(self, place: int) -> AuditExample:
        row = self._sample.values[place]
        names = ("chosen", "rejected") if self._is_pairs else ("up" if row.up else "down",)
        said = " · ".join(f"{name}: “{excerpt_of(text)}”" for name, text in zip(names, row.texts, strict=True))
        probability = self._learned.right[place] if self._learned else 0.5
        return AuditExample([at(row.place)], said, f"label is right with probability {probability:.2f}")
