"""The report of a run on votes: how the log-probabilities of liked and of disliked answers changed."""

from __future__ import annotations

from collections.abc import Iterator

from prefine.formatting import INTERVAL, figure, figure_range, percent, percent_range, plural
from prefine.intervals import Share, mean
from prefine.report.answers import answer_cautions, sample_tiles
from prefine.report.charts import Chart, Key, drawn, loss_chart, metric_chart, series
from prefine.report.facts import RunFacts, mapping, number, numbers
from prefine.report.loss import kept_line, loss_headline, loss_rises, loss_tile
from prefine.report.parts import Caution, Headline, ShareScale, Tile, Whisker
from prefine.report.plots import Ink, Line, line_chart
from prefine.report.stages.pairs import WIDE_INTERVAL
from prefine.report.stages.stage_report import StageReport

_SIDES: tuple[tuple[bool, str, Ink], ...] = ((True, "liked", "chosen"), (False, "disliked", "rejected"))


class VotesReport(StageReport):
    """KTO."""

    title = "Kahneman-Tversky optimisation"

    def headline(self, facts: RunFacts) -> Headline | None:
        """How many liked answers became more likely, and how many disliked ones less likely."""
        liked, disliked = (_moved(facts, up) for up in (True, False))
        parts = []
        if liked is not None:
            parts.append(f"{percent(liked.value)} of {plural(liked.count or 0, 'liked answer')} became more likely")
        if disliked is not None:
            less = plural(disliked.count or 0, "disliked answer")
            parts.append(f"{percent(disliked.value)} of {less} became less likely")
        if not parts:
            return loss_headline(facts, noun="vote")
        return Headline(f"On held-out votes, {' and '.join(parts)}.", [*_lines(facts), _few(facts), kept_line(facts)])

    def scales(self, facts: RunFacts) -> list[ShareScale]:
        """Both shares."""
        texts = {
            True: ("Liked answers that became more likely", "Their log-probability rose in training."),
            False: ("Disliked answers that became less likely", "Their log-probability fell in training."),
        }
        return [
            ShareScale(*texts[up], [Whisker("after", share.value, share.interval, percent(share.value))])
            for up, share in ((up, _moved(facts, up)) for up in texts)
            if share is not None and share.interval is not None
        ]

    def tiles(self, facts: RunFacts) -> list[Tile]:
        """Mean rewards of both kinds of answers, the KL baseline, the loss and the sample answers."""
        found = [
            Tile(f"Mean reward of {name} answers", figure(value, 3, signed=True), "nats", before="before 0")
            for key, name in (("reward_up", "liked"), ("reward_down", "disliked"))
            if (value := number(facts.after.get(key))) is not None
        ]
        baseline = number(facts.after.get("kl_baseline"))
        if baseline is not None:
            found.append(Tile("KL baseline", figure(baseline, 2), "nats", note="of answers to other prompts"))
        return [*found, *loss_tile(facts), *sample_tiles(facts)]

    def charts(self, facts: RunFacts) -> list[Chart]:
        """Loss, rewards of both kinds of answers, margin and KL baseline."""
        return drawn(
            loss_chart(facts, self.loss_unit(facts)),
            _reward_chart(facts),
            metric_chart(facts, "margin", "Margin", "mean β(h − KL baseline), negative for disliked answers, nats", 3),
            metric_chart(facts, "kl_baseline", "KL baseline", "mean log-ratio of answers to other prompts, nats"),
        )

    def loss_unit(self, facts: RunFacts) -> str:
        """The unit of the loss chart, and the loss at the start."""
        section = mapping(mapping(facts.manifest.get("recipe")).get("kto"))
        equal = number(section.get("desirable_weight")) == number(section.get("undesirable_weight")) == 1
        return f"from 0 to each vote’s weight{'; at the start 0.5' if equal else ''}"

    def cautions(self, facts: RunFacts) -> Iterator[Caution]:
        """Answers that moved the wrong way, few votes, a loss that rises."""
        yield from _wrong_ways(facts)
        if few := _few(facts):
            yield Caution(
                few, "With so few, small differences between runs cannot be seen. Four times as many halve an interval."
            )
        yield from loss_rises(facts)
        yield from answer_cautions(facts)


def _shifts(facts: RunFacts, up: bool) -> list[float]:
    """Changes of log-probability of the held-out answers with one kind of vote, nats."""
    return numbers((vote for vote in facts.votes if vote.get("up") is up), "shift")


def _moved(facts: RunFacts, up: bool) -> Share | None:
    """The share of answers with one kind of vote whose log-probability moved as voted."""
    shifts = _shifts(facts, up)
    return (
        Share(sum((shift > 0) is up and shift != 0 for shift in shifts) / len(shifts), len(shifts)) if shifts else None
    )


def _lines(facts: RunFacts) -> list[str]:
    found = []
    for up, name, _ in _SIDES:
        share, shift = _moved(facts, up), mean(_shifts(facts, up))
        if share is None or share.interval is None or shift is None:
            continue
        spread = f" ({INTERVAL} {figure_range(shift.interval, 1, signed=True)})" if shift.interval else ""
        found.append(
            f"{name.capitalize()} answers: {share.hits} of {share.count}, {INTERVAL} {percent_range(share.interval)}; "
            f"their log-probability changed by {figure(shift.value, 1, signed=True)} nats on average{spread}."
        )
    return found


def _few(facts: RunFacts) -> str:
    """A warning that there are few votes; empty if no interval is wide."""
    shares = [share for up, *_ in _SIDES if (share := _moved(facts, up)) is not None]
    wide = [share for share in shares if share.interval is not None and share.interval.width > WIDE_INTERVAL]
    if not wide:
        return ""
    count = plural(sum(share.count or 0 for share in shares), "held-out vote")
    return f"{count}: {'the interval is wide' if len(wide) == 1 else 'the intervals are wide'}."


def _wrong_ways(facts: RunFacts) -> Iterator[Caution]:
    # The run itself warns of a large fall of liked answers; a share says it, too.
    remedies = {
        True: ("liked answers became less likely", "kto.desirable_weight"),
        False: ("disliked answers became more likely", "kto.undesirable_weight"),
    }
    for up, (what, weight) in remedies.items():
        shift = mean(_shifts(facts, up))
        if shift is None or shift.interval is None:
            continue
        if shift.interval.high < 0 if up else shift.interval.low > 0:
            yield Caution(
                f"The {what}: their mean log-probability changed by {figure(shift.value, 1, signed=True)} nats.",
                f"Raise {weight}, or lower training.learning_rate. Are thumbs swapped in one of the files?",
            )


def _reward_chart(facts: RunFacts) -> Chart | None:
    """Rewards of held-out liked and disliked answers."""
    lines, keys, ends = [], [], []
    for up, name, ink in _SIDES:
        steps, values = series(facts.heldout, "reward_up" if up else "reward_down")
        if values:
            lines.append(Line(steps, values, ink, "solid" if up else "dashed", markers=True))
            keys.append(Key(ink, "line" if up else "dashed", name))
            ends.append(f"{name} {figure(values[-1], 3, signed=True)}")
    if not lines:
        return None
    return Chart(
        f"Rewards: {', '.join(ends)}",
        "mean β(log π − log π_ref) of held-out answers, nats",
        line_chart("rewards", "Rewards of liked and disliked answers over steps", lines, reference=0),
        keys,
    )
