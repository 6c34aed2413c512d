"""What could be learned without reading, from single words of the answers; labels that the words contradict.

A logistic regression on the words of the answers predicts the preference (or the vote) of rows that it did not see. Its
accuracy is what a reward model can reach without understanding anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefine.data.audit.entries import Entry, at, excerpt_of
from prefine.data.audit.findings import MOST_EXAMPLES, AuditExample, AuditFinding, Severity, unchecked
from prefine.data.lengths import EvenSample
from prefine.data.records.selection import Place, group_of
from prefine.formatting import percent, percent_range, plural
from prefine.intervals import Share
from prefine.records import Preference, Vote

FEWEST = 200
"""Pairs or votes below which no accuracy of words is given."""
_MOST_LEARNED_FROM = 20_000
_CHARACTERS_READ = 2_000
_FOLDS = 5
_MOST_WORDS = 20_000
_FEWEST_WITH_A_WORD = 5
_CUES_SHOWN = 8
# Weak regularisation learns single rows by heart; see docs/data_audit.md for what was compared.
_INVERSE_PENALTY = 0.03
_WORD = r"(?u)\b[^\W\d_][\w'’]*\b|[?!:*#]"
# Below this accuracy a classifier of words knows too little to call a label wrong.
_ENOUGH_FOR_NOISE = 0.65
_CONFIDENT_TENTH = 0.1
_FEWEST_IN_A_TENTH = 50


@dataclass(frozen=True, slots=True)
class _Sampled:
    """What the classifier learns from: of a pair both answers, of a vote its answer and label."""

    place: Place
    fold: int
    texts: tuple[str, ...]
    up: bool
    prompt: str


@dataclass(frozen=True)
class _Learned:
    """Results of the cross-validation.

    Attributes:
        right: probability of each row's own label, by a classifier that did not see the row, (rows,).
        accuracy: share of rows with more than 0.5; of votes the mean over both labels.
        cues: words with weights, most telling first.
    """

    right: NDArray[np.float64]
    accuracy: float
    cues: list[dict[str, Any]] = field(default_factory=list)


class Cues:
    """Shallow cues and suspected label noise of pairs and votes."""

    def __init__(self) -> None:
        self._sample: EvenSample[_Sampled] = EvenSample(_MOST_LEARNED_FROM)
        self._judged = 0
        self._is_pairs = True
        self._learned: _Learned | None = None

    def add(self, entry: Entry) -> None:
        """Take a record; ties, demonstrations and prompts say nothing about what is better."""
        record = entry.record
        if isinstance(record, Vote):
            self._is_pairs = False
        elif not isinstance(record, Preference) or record.tie:
            return
        if self._sample.wants(self._judged):
            fold = int.from_bytes(hashlib.blake2b(group_of(record).encode(), digest_size=4).digest()) % (2 * _FOLDS)
            texts = tuple(answer[:_CHARACTERS_READ] for answer in entry.answers)
            up = record.label if isinstance(record, Vote) else True
            self._sample.add(_Sampled(entry.place, fold, texts, up, entry.prompt[:_CHARACTERS_READ]))
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
        self._learned = self._learn()
        return [self._words(), self._noise()]

    # --- Words -----------------------------------------------------------------------------------------------------

    def _learn(self) -> _Learned | None:
        rows = self._sample.values
        ups = sum(row.up for row in rows)
        if len(rows) < FEWEST or (not self._is_pairs and min(ups, len(rows) - ups) < FEWEST // 4):
            return None
        features, words = _features(rows, self._is_pairs)
        # A pair counts in either order; the order is drawn, so that both classes are learned.
        turned = np.array([row.fold % 2 for row in rows]) if self._is_pairs else np.zeros(len(rows), dtype=int)
        labels = np.array([row.up for row in rows], dtype=int) ^ turned
        features = features.multiply((1 - 2 * turned)[:, None]).tocsr()
        folds = np.array([row.fold // 2 for row in rows])
        right = np.full(len(rows), 0.5)
        for fold in range(_FOLDS):
            held, kept = folds == fold, folds != fold
            if not held.any() or len(set(labels[kept])) < 2:
                continue
            model = _classifier(self._is_pairs).fit(features[kept], labels[kept])
            up = model.predict_proba(features[held])[:, 1]
            right[held] = np.where(labels[held] == 1, up, 1 - up)
        correct = (right > 0.5) + 0.5 * (right == 0.5)
        classes = [correct] if self._is_pairs else [correct[labels == value] for value in (0, 1)]
        accuracy = float(np.mean([part.mean() for part in classes]))
        weights = _classifier(self._is_pairs).fit(features, labels).coef_[0]
        return _Learned(right, accuracy, self._cues(weights, words))

    def _cues(self, weights: NDArray[np.float64], words: Sequence[str]) -> list[dict[str, Any]]:
        """The words with the largest weights, with how often each side has them."""
        order = np.argsort(weights)
        chosen = [int(place) for place in (*order[::-1][:_CUES_SHOWN], *order[:_CUES_SHOWN])]
        sides = self._texts_by_side()
        said = [[set(re.findall(_WORD, text.lower())) for text in side] for side in sides]
        return [
            {
                "word": words[place],
                "weight": round(float(weights[place]), 3),
                "with_better": sum(words[place] in each for each in said[0]),
                "with_worse": sum(words[place] in each for each in said[1]),
            }
            for place in chosen
        ]

    def _texts_by_side(self) -> tuple[list[str], list[str]]:
        rows = self._sample.values
        if self._is_pairs:
            return [row.texts[0] for row in rows], [row.texts[1] for row in rows]
        return [row.texts[0] for row in rows if row.up], [row.texts[0] for row in rows if not row.up]

    def _words(self) -> AuditFinding:
        check, title = "shallow_cues", "Shallow cues"
        if self._learned is None:
            what = "pairs" if self._is_pairs else "votes, a quarter of them each way,"
            return unchecked(check, title, f"Fewer than {FEWEST} {what} to learn from.")
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
            "A model can learn these words instead of quality. Read the words below; add rows in which they are in the "
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
        # Confident learning (Northcutt, Jiang and Chuang 2021, section 3): a label is suspect if the other one is at
        # least as probable as given labels are on average.
        threshold = right.mean()
        suspects = np.flatnonzero(1 - right >= threshold)
        confident = len(suspects) + int((right >= threshold).sum())
        share = len(suspects) / confident if confident else 0.0
        worst = suspects[np.argsort(right[suspects], kind="stable")][:MOST_EXAMPLES]
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

    def _suspect(self, place: int) -> AuditExample:
        row = self._sample.values[place]
        names = ("chosen", "rejected") if self._is_pairs else ("up" if row.up else "down",)
        said = " · ".join(f"{name}: “{excerpt_of(text)}”" for name, text in zip(names, row.texts, strict=True))
        probability = self._learned.right[place] if self._learned else 0.5
        return AuditExample([at(row.place)], said, f"label is right with probability {probability:.2f}")


def _features(rows: Sequence[_Sampled], pairs: bool) -> tuple[Any, list[str]]:
    """Which words an answer has, (rows, words) sparse; of a pair the chosen answer's minus the rejected one's."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(
        binary=True, token_pattern=_WORD, max_features=_MOST_WORDS, min_df=_FEWEST_WITH_A_WORD, dtype=np.float32
    )
    counts = vectorizer.fit_transform(text for row in rows for text in row.texts)
    words = list(map(str, vectorizer.get_feature_names_out()))
    return (counts[0::2] - counts[1::2] if pairs else counts), words


def _classifier(pairs: bool) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(
        C=_INVERSE_PENALTY,
        solver="liblinear",
        fit_intercept=not pairs,
        class_weight=None if pairs else "balanced",
        random_state=0,
    )
