"""A classifier of the words in answers: predicts the preference or the vote of rows that it did not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefine.data.audit.similar import UNSPACED
from prefine.data.records.selection import Place

FEWEST = 200
"""Pairs or votes below which no accuracy of words is given."""
FOLDS = 5
_MOST_WORDS = 20_000
_FEWEST_WITH_A_WORD = 5
_CUES_SHOWN = 8
# Of 0.003 to 0.3, the best on HH-RLHF: weak regularisation learns single rows by heart.
_INVERSE_PENALTY = 0.03
# A word, a character of a script without spaces, or a mark of formatting or tone.
_WORD = rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W\d_])(?:(?![{UNSPACED}])[\w'’])*|[?!:*#]"


@dataclass(frozen=True, slots=True)
class SampledAnswers:
    """What the classifier learns from: of a pair both answers, of a vote its answer and label."""

    place: Place
    fold: int  # the same for all rows of a prompt, so that none is learned in one fold and predicted in another
    texts: tuple[str, ...]
    up: bool


@dataclass(frozen=True)
class LearnedWords:
    """Results of the cross-validation.

    Attributes:
        right: probability of each row's own label, by a classifier that did not see the row, (rows,).
        accuracy: share of rows with more than 0.5; of votes the mean over both labels.
        cues: words with weights, most telling first.
    """

    right: NDArray[np.float64]
    accuracy: float
    cues: list[dict[str, Any]] = field(default_factory=list)


def learned_words(rows: Sequence[SampledAnswers], pairs: bool) -> LearnedWords | None:
    """Cross-validates a classifier of the words in answers.

    Returns None with too few rows, without words that several rows have, or if all rows are in one fold.
    """
    ups = sum(row.up for row in rows)
    if len(rows) < FEWEST or (not pairs and min(ups, len(rows) - ups) < FEWEST // 4):
        return None
    folds = np.array([row.fold for row in rows])
    has_word, words = _words_of(rows)
    if not words or len(set(folds)) < 2:
        return None
    # A pair says the same in either order; every other one is turned, so that there are two classes.
    up = np.array([row.up for row in rows])
    better, worse = (has_word[0::2], has_word[1::2]) if pairs else (has_word[up], has_word[~up])
    sides = [np.asarray(side.sum(axis=0)).ravel() for side in (better, worse)]
    features = better - worse if pairs else has_word
    turned = np.arange(len(rows)) % 2 if pairs else np.zeros(len(rows), dtype=int)
    labels = up.astype(int) ^ turned
    features = features.multiply((1 - 2 * turned)[:, None]).tocsr()
    right = np.full(len(rows), 0.5)
    for fold in range(FOLDS):
        held, kept = folds == fold, folds != fold
        if not held.any() or len(set(labels[kept])) < 2:
            continue
        model = _classifier(pairs).fit(features[kept], labels[kept])
        one = model.predict_proba(features[held])[:, 1]
        right[held] = np.where(labels[held] == 1, one, 1 - one)
    correct = (right > 0.5) + 0.5 * (right == 0.5)
    classes = [correct] if pairs else [correct[labels == value] for value in (0, 1)]
    accuracy = float(np.mean([part.mean() for part in classes]))
    weights = _classifier(pairs).fit(features, labels).coef_[0]
    return LearnedWords(right, accuracy, _cues(weights, words, sides))


def contradicted(right: NDArray[np.float64]) -> NDArray[np.intp]:
    """Rows whose label the words contradict, the most contradicted first.

    Confident learning (Northcutt, Jiang and Chuang 2021, section 3): a label is suspect if the other one is at
    least as probable as given labels are on average.
    """
    found = np.flatnonzero(1 - right >= right.mean())
    order: NDArray[np.intp] = found[np.argsort(right[found], kind="stable")]
    return order


def _cues(weights: NDArray[np.float64], words: Sequence[str], sides: Sequence[Any]) -> list[dict[str, Any]]:
    """The words with the largest weights, with how often each side has them; `sides` are counts by word."""
    order = np.argsort(weights)
    chosen = [int(place) for place in (*order[::-1][:_CUES_SHOWN], *order[:_CUES_SHOWN])]
    return [
        {
            "word": words[place],
            "weight": round(float(weights[place]), 3),
            "with_better": int(sides[0][place]),
            "with_worse": int(sides[1][place]),
        }
        for place in dict.fromkeys(chosen)
    ]


def _words_of(rows: Sequence[SampledAnswers]) -> tuple[Any, list[str]]:
    """Which words each answer has, (answers, words) sparse, and the words."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(
        binary=True, token_pattern=_WORD, max_features=_MOST_WORDS, min_df=_FEWEST_WITH_A_WORD, dtype=np.float32
    )
    try:
        found = vectorizer.fit_transform(text for row in rows for text in row.texts)
    except ValueError:  # no word is in enough answers
        return None, []
    return found, list(map(str, vectorizer.get_feature_names_out()))


def _classifier(pairs: bool) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(
        C=_INVERSE_PENALTY,
        solver="liblinear",
        fit_intercept=not pairs,
        class_weight=None if pairs else "balanced",
        random_state=0,
    )
