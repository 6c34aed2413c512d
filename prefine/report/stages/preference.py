"""The report of a run on pairs: which answers the model ranks first, and how log-probabilities changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefine.formatting import INTERVAL, MISSING, figure, figure_range, percent, percent_range, whole
from prefine.intervals import Share, mean
from prefine.recipe.dpo import DpoSection, keeps_chosen_likely
from prefine.report.answers import answer_cautions, sample_tiles
from prefine.report.charts import Chart, drawn, loss_chart, metric_chart
from prefine.report.facts import RunFacts, mapping, number, numbers, texts
from prefine.report.loss import held_out, kept_line, loss_headline, loss_rises, loss_tile
from prefine.report.parts import NO_CHANGE, Caution, Headline, ShareScale, TableRow, Tile, Whisker, as_before
from prefine.report.stages.pair_charts import (
    accuracy_chart,
    directions,
    logp_chart,
    margin_chart,
    pair_chart,
    shift_summary,
)
from prefine.report.stages.pairs import (
    Shares,
    chosen_falls,
    few_pairs,
    length_split,
    nats,
    per_token,
    ranked_change,
    record,
    shares,
)
from prefine.report.stages.stage_report import StageReport

_FEWEST_FOR_LENGTH_BIAS = 10


class PreferenceReport(StageReport):
    """DPO.

    Attributes:
        ranking: condition for ranking the preferred answer first.
        accuracy: meaning of accuracy without a reference model.
    """

    title = "Direct preference optimisation"
    ranking = "The model’s own log-probability per token is higher than the other answer’s."
    accuracy = "share of pairs whose preferred answer has the higher log-probability per token"

    def against_a_fall(self, facts: RunFacts) -> str:
        """What keeps the chosen answers likely."""
        loss = mapping(mapping(facts.manifest.get("recipe")).get("dpo")).get("loss")
        return f"use a smaller learning rate, a larger dpo.beta, or {keeps_chosen_likely(loss)}"

    def against_length(self, facts: RunFacts) -> str:
        """What keeps the model from learning length."""
        loss = mapping(mapping(facts.manifest.get("recipe")).get("dpo")).get("loss")
        beta = DpoSection(length_normalized=True).beta  # on means over tokens, the beta of sums is far too small
        means = f", or set dpo.length_normalized: true and dpo.beta: {beta:g}"
        normalise = "" if per_token(facts) or loss == "function" else means
        return f"Balance the lengths in the training data{normalise}."

    def has_reference(self, facts: RunFacts) -> bool:
        """Whether rewards are measured against the model as it was, so that at step 0 all are 0."""
        return mapping(mapping(facts.manifest.get("recipe")).get("dpo")).get("loss") != "simpo"

    def shares(self, facts: RunFacts) -> Shares:
        """The shares of held-out pairs that the run recorded."""
        return shares(facts, has_reference=self.has_reference(facts))

    def headline(self, facts: RunFacts) -> Headline | None:
        """In how many pairs training moved the model towards the preferred answer, and how many it ranks right."""
        return _headline(facts, self.shares(facts)) or loss_headline(facts, noun="pair")

    def scales(self, facts: RunFacts) -> list[ShareScale]:
        """Both shares."""
        found = self.shares(facts)
        moved = ShareScale(
            "Moved towards the preferred answer by training",
            f"Its log-probability {'per token ' if per_token(facts) else ''}gained on that of the other answer.",
            _whiskers(None, found.moved),
        )
        ranked = ShareScale(
            "Preferred answer ranked first", self.ranking, _whiskers(found.ranked_before, found.ranked_after)
        )
        return [scale for scale in (moved, ranked) if scale.whiskers]

    def tiles(self, facts: RunFacts) -> list[Tile]:
        """Shares without intervals, the reward margin, the loss and the sample answers."""
        found = [*_tiles(facts, self.shares(facts)), *loss_tile(facts), *sample_tiles(facts)]
        return [tile for tile in found if tile is not None]

    def charts(self, facts: RunFacts) -> list[Chart]:
        """Loss, accuracy and margin."""
        meaning, has_reference = self.accuracy, self.has_reference(facts)
        if has_reference:
            meaning = f"share of pairs moved towards the preferred answer{', per token' if per_token(facts) else ''}"
        return drawn(
            loss_chart(facts, self.loss_unit(facts)),
            accuracy_chart(facts, meaning, has_reference=has_reference),
            margin_chart(facts),
            *_loss_charts(facts),
        )

    def loss_unit(self, facts: RunFacts) -> str:
        """The unit of the loss chart, and the loss at the start."""
        return f"the objective’s own unit{_loss_at_the_start(facts)}"

    def sections(self, facts: RunFacts) -> dict[str, Any]:
        """How log-probabilities changed, and whether the length of an answer alone decides."""
        return {
            "shifts": drawn(logp_chart(facts), pair_chart(facts)),
            "shift_summary": shift_summary(facts),
            "directions": directions(facts),
            "chosen_falls": chosen_falls(facts),
            "length_split": _length_split_rows(facts),
        }

    def cautions(self, facts: RunFacts) -> Iterator[Caution]:
        """A move the wrong way, few pairs, chosen answers that fall, a preference for length."""
        yield from _accuracy(facts, self.shares(facts))
        yield from _chosen_falls(facts, self.against_a_fall(facts))
        yield from loss_rises(facts)
        yield from answer_cautions(facts)
        yield from _length_bias(facts, self.against_length(facts))


def _loss_charts(facts: RunFacts) -> list[Chart | None]:
    """Each loss of several."""
    losses = mapping(mapping(mapping(facts.manifest.get("recipe")).get("dpo")).get("loss"))
    return [
        metric_chart(facts, f"loss_{name}", f"Loss {name}", f"without its weight {figure(number(weight))}")
        for name, weight in losses.items()
    ]


def _loss_at_the_start(facts: RunFacts) -> str:
    """The objective's value while policy and reference agree; empty if other terms are added."""
    section = mapping(mapping(facts.manifest.get("recipe")).get("dpo"))
    loss, beta = section.get("loss"), number(section.get("beta"))
    if number(section.get("nll_weight")):
        return ""
    if loss == "ipo" and beta:
        return f"; at the start 1 / (4 β²) = {figure(0.25 / beta**2)}"
    starts = {"sigmoid": "ln 2", "conservative": "ln 2", "robust": "ln 2", "hinge": "1"}
    return f"; at the start {starts[loss]}" if isinstance(loss, str) and loss in starts else ""


def _headline(facts: RunFacts, found: Shares) -> Headline | None:
    pairs = held_out(facts, record(facts))
    moved = "" if found.moved is None else _moved(found.moved, pairs)
    if found.moved and found.ranked_after:
        sentence = f"{moved}; it {_ranking(facts, found)}."
    elif found.moved:
        sentence = f"{moved}."
    elif found.ranked_after:
        sentence = f"The model {_ranking(facts, found, of=f' of {pairs}')}."
    else:
        return None
    return Headline(
        sentence, [*_moved_lines(found), *_ranked_lines(facts, found), few_pairs(facts, found), kept_line(facts)]
    )


def _moved(share: Share, pairs: str) -> str:
    """In how many pairs training moved the model towards the preferred answer, with the case that chance explains
    it.
    """
    moved, interval = percent(share.value), share.interval
    if interval is not None and interval.contains(0.5):
        return f"No move towards the preferred answers shown: {moved} of {pairs} moved that way"
    if interval is not None and interval.high < 0.5:
        return f"Training moved the model away from the preferred answers: only {moved} of {pairs} moved towards them"
    return f"Training moved the model towards the preferred answer in {moved} of {pairs}"


def _ranking(facts: RunFacts, found: Shares, of: str = "") -> str:
    judges = "agrees with people on" if facts.judged_by_votes else "ranks the preferred answer first in"
    before, after = found.ranked_before, found.ranked_after
    if after is None:
        return ""
    share = f"{percent(after.value)}{of}"
    if before is None:
        return f"{judges} {share}"
    change = ranked_change(facts, found)
    if change is None or change.interval is None:
        return f"{judges} {share} ({percent(before.value)} before)"
    if change.interval.contains(0):
        return f"{judges} {share} ({percent(before.value)} before: no change shown)"
    way = "up" if change.interval.low > 0 else "down"
    return f"now {judges} {share}, {way} from {percent(before.value)}"


def _moved_lines(found: Shares) -> list[str]:
    if found.moved is None or found.moved.interval is None:
        return []
    return [f"Moved towards it: {_hits(found.moved)}; without any effect it would be {percent(0.5)}."]


def _ranked_lines(facts: RunFacts, found: Shares) -> list[str]:
    before, after = found.ranked_before, found.ranked_after
    right = "Rated as people did" if facts.judged_by_votes else "Ranked first"
    if after is None or after.interval is None:
        return []
    if before is None or before.interval is None:
        return [f"{right}: {_hits(after)}."]
    line = f"{right}: {_hits(after)} now, {_hits(before)} before."
    change = ranked_change(facts, found)
    if change is None or change.interval is None:
        return [line]
    ends = f"{_points(change.interval.low)} to {_points(change.interval.high)}"
    line += f" Change: {_points(change.value)} points ({INTERVAL} {ends})."
    return [f"{line} {NO_CHANGE}" if change.interval.contains(0) else line]


def _points(share: float) -> str:
    return figure(100 * share, 0, signed=True)


def _hits(share: Share) -> str:
    of = "" if share.hits is None else f"{share.hits} of {share.count}, "
    return f"{of}{INTERVAL} {percent_range(share.interval)}" if share.interval else of.rstrip(", ")


def _whiskers(before: Share | None, after: Share | None) -> list[Whisker]:
    return [
        Whisker(when, share.value, share.interval, percent(share.value))
        for when, share in (("before", before), ("after", after))
        if share is not None and share.interval is not None
    ]


def _tiles(facts: RunFacts, found: Shares) -> list[Tile | None]:
    margin = number(facts.after.get("margin"))
    spread = mean(numbers(facts.pairs, "after_margin"))
    interval = spread.interval if spread and margin is not None else None
    return [
        _share_tile("Moved towards the preferred answer", found.moved, f"{percent(0.5)} without effect"),
        _share_tile(
            "Preferred answer ranked first",
            found.ranked_after,
            as_before(percent(found.ranked_before.value)) if found.ranked_before else "",
        ),
        None
        if margin is None
        else Tile(
            "Mean reward margin",
            figure(margin, 2, signed=True),
            nats(facts),
            before=as_before(figure(number(facts.before.get("margin")), 2)),
            note=f"{INTERVAL} {figure_range(interval)}" if interval else "",
        ),
    ]


def _share_tile(label: str, now: Share | None, was: str) -> Tile | None:
    # A share with an interval is on a scale, in larger type.
    return None if now is None or now.interval is not None else Tile(label, percent(now.value), before=was)


def _length_split_rows(facts: RunFacts) -> list[TableRow]:
    split = length_split(facts)
    if split is None:
        return []
    sides: tuple[tuple[str, Share], ...] = (("longer", split.chosen_longer), ("shorter", split.chosen_shorter))
    return [
        TableRow(
            name,
            [whole(side.count), percent(side.value), percent_range(side.interval) if side.interval else MISSING],
        )
        for name, side in sides
    ]


def _accuracy(facts: RunFacts, found: Shares) -> Iterator[Caution]:
    main = found.moved or found.ranked_after
    if main is None or main.interval is None:
        return
    if found.moved and main.interval.high < 0.5:
        yield Caution(
            f"Training moved the model away from the preferred answers: {percent(main.value)} of held-out pairs.",
            "Are chosen and rejected swapped in one of the files? Otherwise the training data may contradict itself.",
        )
    if few := few_pairs(facts, found):
        yield Caution(
            few, "With so few, small differences between runs cannot be seen. Four times as many halve an interval."
        )


def _chosen_falls(facts: RunFacts, remedy: str) -> Iterator[Caution]:
    # The run itself warns of a large fall; once is enough.
    said = any("chosen answers became less likely" in line for line in texts(facts.manifest.get("warnings")))
    if chosen_falls(facts) and not said:
        before, after = number(facts.before.get("logp_chosen")), number(facts.after.get("logp_chosen"))
        yield Caution(
            f"The chosen answers became less likely: mean log-probability {figure(before)} before, "
            f"{figure(after)} after.",
            "The objective only widens the gap to the rejected answers; both can fall. If the samples read worse, "
            f"{remedy}.",
        )


def _length_bias(facts: RunFacts, remedy: str) -> Iterator[Caution]:
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
            remedy,
        )
