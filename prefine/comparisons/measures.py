"""Figures of answers that need no model: length, degeneration, diversity, and overlap with references.

ROUGE is rouge-score's (Lin 2004), BLEU and chrF are sacrebleu's (Post 2018, arXiv 1804.08771; Popović 2015). Both
packages are optional: pip install "prefine[evaluate]".
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from prefine.degeneration import distinct, look_at
from prefine.intervals import evenly_chosen

_WORDS = re.compile(r"\w+|[^\w\s]")
# Self-BLEU compares an answer with at most so many others, evenly spaced: the cost is quadratic.
_MOST_OTHERS = 20
PACKAGES = {"rouge": "rouge_score", "bleu": "sacrebleu"}


def words(text: str) -> list[str]:
    """Words and punctuation marks. They do not depend on a model's tokenizer."""
    return _WORDS.findall(text)


def degenerate_word(text: str, tokens: Sequence[int] | None) -> str | None:
    """blank, stuck or looping; None if an answer is none of these.

    Args:
        tokens: ids; None if only the text is known: then words count as tokens.
    """
    if tokens is None:
        numbers: dict[str, int] = {}
        tokens = [numbers.setdefault(word, len(numbers)) for word in words(text)]
    return look_at(text, tokens).word


def distinct_share(text: str, n: int) -> float | None:
    """Different n-grams of words over all n-grams of an answer (Li et al. 2016, arXiv 1510.03055); None if it has none.

    Longer answers repeat more, so lengths matter for a comparison.
    """
    numbers: dict[str, int] = {}
    ids = [numbers.setdefault(word, len(numbers)) for word in words(text)]
    return distinct([ids], n) if len(ids) >= n else None


def why_missing(package: str) -> str:
    """Why figures of an optional package cannot be computed; "" if they can.

    Args:
        package: a key of PACKAGES.
    """
    if importlib.util.find_spec(PACKAGES[package]) is not None:
        return ""
    return f"{PACKAGES[package].replace('_', '-')} is not installed: pip install 'prefine[evaluate]'"


def self_bleu(texts: Sequence[str], prompts: Sequence[int]) -> list[float | None]:
    """BLEU of each answer against the same model's answers to other prompts, 0 to 100 (Zhu et al. 2018, arXiv
    1802.01886).

    High values mean that answers to different prompts are alike. Blank answers have none, and are no references.

    Args:
        prompts: the number of each answer's prompt.

    Returns: one value for each text; None for blank texts, and for all if there are fewer than two others.
    """
    written = [place for place, text in enumerate(texts) if text.strip()]
    found: list[float | None] = [None] * len(texts)
    if len(written) < 2:
        return found
    for place in written:
        others = [other for other in written if prompts[other] != prompts[place]]
        if not others:
            continue
        chosen = [texts[others[each]] for each in evenly_chosen(len(others), _MOST_OTHERS)]
        found[place] = float(_bleu().sentence_score(texts[place], chosen).score)
    return found


def overlap(text: str, reference: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L (F1, 0 to 1), BLEU and chrF (0 to 100) of an answer, as far as the packages are installed.

    rouge-score knows Latin letters and digits only, so it has no figure for a reference in another script.
    """
    found: dict[str, float] = {}
    if not why_missing("rouge") and re.search("[a-z0-9]", reference.lower()):
        scores = _rouge().score(reference, text)
        found |= {f"rouge_{name.removeprefix('rouge').lower()}": each.fmeasure for name, each in scores.items()}
    if not why_missing("bleu"):
        found["bleu"] = float(_bleu().sentence_score(text, [reference]).score)
        found["chrf"] = float(_chrf().sentence_score(text, [reference]).score)
    return found


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


@cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()
