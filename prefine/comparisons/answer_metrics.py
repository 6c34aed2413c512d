"""The metrics of a comparison's answers, from the rows of its answers.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from prefine.comparisons.findings import with_finding
from prefine.comparisons.result import AnswerOf, AnswerRow, Direction, Metric
from prefine.comparisons.statistics import DEGENERATE, paired_median, paired_metric, paired_ratio


@dataclass(frozen=True)
class MetricKind:
    """What a metric is called and means; see Metric."""

    name: str
    title: str
    unit: str
    group: str
    better: Direction

    def of(self, candidate: Sequence[float | None], baseline: Sequence[float | None]) -> Metric:
        """The metric of these values, paired in order."""
        return paired_metric(self.name, self.title, self.unit, self.group, self.better, candidate, baseline)

    def missing(self, why: str) -> Metric:
        """The metric without values."""
        return Metric(
            name=self.name,
            title=self.title,
            unit=self.unit,
            group=self.group,
            better=self.better,
            finding="not computed",
            sentence=f"{self.title[:1].upper()}{self.title[1:]} was not computed: {why}.",
            why_not=why,
        )


REWARD = MetricKind("reward", "reward", "score", "reward", "higher")
REWARD_MEDIAN = MetricKind("reward_median", "median reward", "score", "reward", "neither")
KL = MetricKind("kl_per_token", "KL to the reference", "nats", "divergence", "neither")
ENTROPY = MetricKind("entropy", "entropy per token", "nats", "divergence", "neither")
LENGTH = MetricKind("length_tokens", "answer length", "tokens", "form", "neither")
CHARACTERS = MetricKind("length_characters", "answer length in characters", "", "form", "neither")
PAIR_ACCURACY = MetricKind("pair_accuracy", "preference accuracy", "share", "preference", "higher")
PAIR_MARGIN = MetricKind("pair_margin", "preference margin per token", "nats", "preference", "higher")
DEMONSTRATION_LOSS = MetricKind("demonstration_loss", "loss on demonstrations", "nats", "reference", "lower")

PERPLEXITY = MetricKind("perplexity", "perplexity on demonstrations", "", "reference", "neither")

# In the order of the page. Diversity and length describe: which direction is better depends on what is wanted.
OF_ANSWERS = (
    REWARD,
    KL,
    MetricKind("kl_k3", "KL to the reference, estimator k3", "nats", "divergence", "neither"),
    ENTROPY,
    LENGTH,
    CHARACTERS,
    MetricKind("ended", "answers that end by themselves", "share", "form", "higher"),
    MetricKind(DEGENERATE, "degenerate answers", "share", "form", "lower"),
    MetricKind("distinct_1", "different words in an answer", "", "diversity", "neither"),
    MetricKind("distinct_2", "different word pairs in an answer", "", "diversity", "neither"),
    MetricKind("self_bleu", "self-BLEU", "", "diversity", "neither"),
    MetricKind("rouge_1", "ROUGE-1", "", "reference", "higher"),
    MetricKind("rouge_2", "ROUGE-2", "", "reference", "higher"),
    MetricKind("rouge_l", "ROUGE-L", "", "reference", "higher"),
    MetricKind("bleu", "BLEU", "", "reference", "higher"),
    MetricKind("chrf", "chrF", "", "reference", "higher"),
)


def answer_metrics(rows: Sequence[AnswerRow], prompts: Sequence[int], *, same_tokens: bool = True) -> list[Metric]:
    """Every metric that at least one answer has a value for.

    Args:
        same_tokens: whether both models count tokens alike; if not, lengths are compared in characters, and there is
            no entropy per token.
        prompts: the number of each row's prompt. Several answers to a prompt are averaged: prompts are independent of
            each other, answers to one prompt are not.
    """
    found = []
    uncomparable = (CHARACTERS,) if same_tokens else (LENGTH, ENTROPY)
    for kind in OF_ANSWERS:
        if kind in uncomparable:
            continue
        sides = [[value_of(side, kind.name) for side in column] for column in _columns(rows)]
        if any(value is not None for values in sides for value in values):
            candidate, baseline = (mean_by_prompt(values, prompts) for values in sides)
            found.append(kind.of(candidate, baseline))
            if kind is REWARD:
                median = (REWARD_MEDIAN.name, REWARD_MEDIAN.title, REWARD_MEDIAN.unit, REWARD_MEDIAN.group)
                found.append(paired_median(*median, REWARD_MEDIAN.better, candidate, baseline))
    return found


def perplexity(candidate: Sequence[float], baseline: Sequence[float], tokens: Sequence[float]) -> Metric:
    """The perplexity over all tokens of some answers, exp of the loss per token.

    Its change has the interval of the change of the loss per token (`paired_ratio`), which gives an interval for the
    ratio of the two perplexities, at the baseline's perplexity.

    Args:
        candidate, baseline: the loss of each answer, a sum over its tokens, nats.
        tokens: of the answers, the same for both models.
    """
    about = (PERPLEXITY.name, PERPLEXITY.title, PERPLEXITY.unit, PERPLEXITY.group, PERPLEXITY.better)
    loss = paired_ratio(*about, candidate, baseline, tokens)
    if loss.candidate is None or loss.baseline is None or loss.change is None:
        return loss
    now, was = (side.model_copy(update={"value": _exp(side.value)}) for side in (loss.candidate, loss.baseline))
    ends = {name: getattr(loss.change, name) for name in ("low", "high")}
    change = {name: None if end is None else was.value * math.expm1(min(end, _LARGEST)) for name, end in ends.items()}
    changed = loss.change.model_copy(update={"value": now.value - was.value, **change})
    return with_finding(loss.model_copy(update={"candidate": now, "baseline": was, "change": changed}))


# Larger losses per token, or changes of them, would be no finite perplexity.
_LARGEST = 300.0


def _exp(loss: float) -> float:
    return math.exp(min(loss, _LARGEST))


def value_of(answer: AnswerOf, name: str) -> float | None:
    """An answer's value of a metric; None if it has none."""
    match name:
        case "length_tokens":
            return float(answer.tokens) if answer.tokens else None
        case "ended":
            return float(answer.ended)
        case "degenerate":
            return float(answer.degenerate is not None)
        case "reward" | "kl_per_token" | "entropy":
            value: float | None = getattr(answer, name)
            return value
    return answer.scores.get(name)


def _columns(rows: Iterable[AnswerRow]) -> tuple[list[AnswerOf], list[AnswerOf]]:
    listed = list(rows)
    return [row.candidate for row in listed], [row.baseline for row in listed]


def mean_by_prompt(values: Sequence[float | None], prompts: Sequence[int]) -> list[float | None]:
    """The mean of each prompt's values, in the prompts' order."""
    groups: dict[int, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        known = groups.setdefault(prompt, [])
        if value is not None:
            known.append(value)
    return [fmean(known) if known else None for known in groups.values()]
