"""What a reader of a run's results should be warned of, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefine.formatting import figure, listing, percent, plural
from prefine.intervals import Share, mean
from prefine.report.facts import RunFacts, count, dictionaries, mapping, number, numbers, text, texts
from prefine.report.headline import few_pairs, shares
from prefine.report.length_cautions import answer_cautions
from prefine.report.parts import Caution
from prefine.report.rl_cautions import ppo_cautions

_RISE_OF_LOSS = 0.02
_FEWEST_FOR_LENGTH_BIAS = 10


def cautions(facts: RunFacts) -> list[Caution]:
    """What the run itself warned of, then what its figures give away."""
    return [
        *(Caution(line) for line in _recorded(facts)),
        *_unfinished(facts),
        *_failed_checks(facts),
        *_accuracy(facts),
        *_chosen_falls(facts),
        *_loss_rises(facts),
        *ppo_cautions(facts),
        *answer_cautions(facts),
        *_length_bias(facts),
        *_not_finite(facts),
        *_rows_lost(facts),
    ]


def _recorded(facts: RunFacts) -> list[str]:
    return texts(facts.manifest.get("warnings"))


def _unfinished(facts: RunFacts) -> Iterator[Caution]:
    if not facts.finished:
        reason = text(facts.manifest.get("ended_by"))
        yield Caution(
            f"The run is not finished: its status is “{text(facts.manifest.get('status'))}”.",
            f"The figures are those of the last step recorded.{f' It ended by: {reason}' if reason else ''}",
        )


def _failed_checks(facts: RunFacts) -> Iterator[Caution]:
    checks = dictionaries(facts.manifest.get("self_checks"))
    failed = [text(check.get("name")) or "one without a name" for check in checks if check.get("passed") is False]
    if failed:
        yield Caution(
            f"{plural(len(failed), 'self-check')} failed: {listing(failed)}.",
            "Do not trust the results before the cause is found.",
        )


def _accuracy(facts: RunFacts) -> Iterator[Caution]:
    if not facts.is_preference:
        return
    found = shares(facts)
    main = found.moved or found.ranked_after
    if main is None or main.interval is None:
        return
    if found.moved and main.interval.high < 0.5:
        yield Caution(
            f"Training moved the model away from the preferred answers: {percent(main.value)} of held-out pairs.",
            "Are chosen and rejected swapped in one of the files? Otherwise the training data may contradict itself.",
        )
    if few := few_pairs(facts):
        yield Caution(
            few, "Small differences between runs cannot be seen with so few. Four times as many halve an interval."
        )


def _chosen_falls(facts: RunFacts) -> Iterator[Caution]:
    # The run itself says so of a large fall; once is enough.
    said = any("chosen answers became less likely" in line for line in _recorded(facts))
    if chosen_falls(facts) and not said:
        before, after = number(facts.before.get("logp_chosen")), number(facts.after.get("logp_chosen"))
        yield Caution(
            f"The chosen answers became less likely: mean log-probability {figure(before)} before, "
            f"{figure(after)} after.",
            "The objective only widens the gap to the rejected answers; both can fall. If the samples read worse, "
            "use a smaller learning rate, a larger dpo.beta, or dpo.nll_weight.",
        )


def chosen_falls(facts: RunFacts) -> bool:
    """Whether held-out chosen answers lost log-probability: DPO's likelihood displacement (arXiv 2402.13228).

    Where the pairs are known, only if chance does not explain it.
    """
    before, after = number(facts.before.get("logp_chosen")), number(facts.after.get("logp_chosen"))
    if not facts.is_preference or before is None or after is None:
        return False
    shift = mean(numbers(facts.pairs, "chosen_shift"))
    return after < before and (shift is None or shift.interval is None or shift.interval.high < 0)


def _loss_rises(facts: RunFacts) -> Iterator[Caution]:
    measured = [
        (loss, step)
        for row in facts.heldout
        if (loss := number(row.get("loss"))) is not None and (step := count(row.get("step"))) is not None
    ]
    if len(measured) < 3:
        return
    (least, best), (last, step) = min(measured), measured[-1]
    if facts.kept_step != best and last > least + _RISE_OF_LOSS * abs(least):
        yield Caution(
            f"The held-out loss was lowest at step {best} ({figure(least)}); at step {step} it is {figure(last)}.",
            "If it stays higher, the later steps learned the training rows by heart. Train for fewer steps, with a "
            "smaller learning rate, or with training.keep_best.",
        )


@dataclass(frozen=True)
class LengthSplit:
    """Held-out pairs by which answer is longer, and the share of each moved the right way (arXiv 2310.03716)."""

    chosen_longer: Share
    chosen_shorter: Share


def length_split(facts: RunFacts) -> LengthSplit | None:
    """None if the pairs do not say, or lie all on one side."""
    sides: dict[bool, list[bool]] = {True: [], False: []}
    for pair in facts.pairs:
        margin = number(pair.get("after_margin"))
        chosen, rejected = number(pair.get("chosen_tokens")), number(pair.get("rejected_tokens"))
        if margin is not None and chosen is not None and rejected is not None and chosen != rejected:
            sides[chosen > rejected].append(margin > 0)
    if not (sides[True] and sides[False]):
        return None
    longer, shorter = (Share(sum(sides[side]) / len(sides[side]), len(sides[side])) for side in (True, False))
    return LengthSplit(longer, shorter)


def _length_bias(facts: RunFacts) -> Iterator[Caution]:
    split = length_split(facts)
    if split is None:
        return
    longer, shorter = split.chosen_longer, split.chosen_shorter
    if min(longer.count or 0, shorter.count or 0) < _FEWEST_FOR_LENGTH_BIAS:
        return
    if longer.interval and shorter.interval and not longer.interval.overlaps(shorter.interval):
        better = "longer" if longer.value > shorter.value else "shorter"
        yield Caution(
            f"The model learned to prefer {better} answers: right in {percent(longer.value)} of the pairs whose chosen "
            f"answer is longer, in {percent(shorter.value)} of those where it is shorter.",
            "Balance the lengths in the training data, or set dpo.length_normalized.",
        )


def _not_finite(facts: RunFacts) -> Iterator[Caution]:
    for key, name in (("loss", "loss"), ("grad_norm", "gradient norm")):
        found = len(numbers(facts.train, key))
        rows = sum(key in row for row in facts.train)
        if rows > 0 and found < rows:
            yield Caution(
                f"{plural(rows - found, 'training step')} of {rows:,} recorded no finite {name}.",
                "They are gaps in the curves.",
            )


def _rows_lost(facts: RunFacts) -> Iterator[Caution]:
    for part, value in mapping(facts.manifest.get("data")).items():
        if rows_add_up(mapping(value)) is False:
            yield Caution(
                f"The counts of the {part} data do not add up: rows in are not kept + quarantined + left out.",
                "This is an error in prefine. Please report it.",
            )


def rows_add_up(counts: Mapping[str, Any]) -> bool | None:
    """Whether rows in = kept + quarantined + left out; None if one of the first three is not known."""
    rows_in, *parts = (count(counts.get(key)) for key in ("rows_in", "kept", "quarantined"))
    if rows_in is None or None in parts:
        return None
    left_out = count(counts.get("left_out")) or 0  # runs of earlier releases quarantined these rows
    return rows_in == sum(part for part in parts if part is not None) + left_out
