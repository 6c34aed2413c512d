"""What a KTO run's report says, from facts written by hand."""

from __future__ import annotations

from typing import Any

from prefine.report.facts import RunFacts
from prefine.report.page import build_context, render
from prefine.report.stages.registry import STAGE_REPORTS

BEFORE = {"loss": 0.5, "accuracy": 0.0, "margin": 0.0, "reward_up": 0.0, "reward_down": 0.0, "kl_baseline": 0.0}
AFTER = {"loss": 0.4, "accuracy": 0.7, "margin": 0.2, "reward_up": 0.3, "reward_down": -0.4, "kl_baseline": 1.25}


def facts(liked: list[float], disliked: list[float], **changes: Any) -> RunFacts:
    votes = [{"up": up, "shift": shift} for up, shifts in ((True, liked), (False, disliked)) for shift in shifts]
    heldout = {"count": len(votes), "unit": "vote", "before": BEFORE, "after": AFTER, "votes": votes}
    whole: dict[str, Any] = {
        "manifest": {"stage": "kto", "recipe": {"kto": {"desirable_weight": 1.0, "undesirable_weight": 1.0}}},
        "train": [{"kind": "train", "step": step, "loss": 0.5 - 0.02 * step} for step in (1, 2)],
        "heldout": [{"kind": "heldout", "step": 0, **BEFORE}, {"kind": "heldout", "step": 2, **AFTER}],
        "evaluation": {"heldout": heldout},
        "samples": [],
    }
    return RunFacts(name="kto", **(whole | changes))


LEARNED = facts([3.0] * 60 + [-1.0] * 20, [-2.0] * 90 + [1.0] * 10)
REPORT = STAGE_REPORTS["kto"]


def test_the_headline_gives_both_shares_with_their_intervals() -> None:
    found = REPORT.headline(LEARNED)
    assert found is not None
    assert found.sentence == (
        "On held-out votes, 75\u202f% of 80 liked answers became more likely and 90\u202f% of 100 disliked answers "
        "became less likely."
    )
    assert found.standfirst[0].startswith("Liked answers: 60 of 80, 95\u202f% interval ")
    assert "changed by −1.7 nats on average" in found.standfirst[1]
    assert [scale.whiskers[0].share for scale in REPORT.scales(LEARNED)] == [0.75, 0.9]
    assert not list(REPORT.cautions(LEARNED))


def test_tiles_and_charts() -> None:
    tiles = {tile.label: tile.value for tile in REPORT.tiles(LEARNED)}
    assert tiles["Mean reward of liked answers"] == "+0.300"
    assert tiles["Mean reward of disliked answers"] == "−0.400"
    assert tiles["KL baseline"] == "1.25"
    assert [chart.title.partition(":")[0] for chart in REPORT.charts(LEARNED)] == [
        "Loss",
        "Rewards",
        "Margin",
        "KL baseline",
    ]
    assert REPORT.loss_unit(LEARNED).endswith("at the start 0.5")
    page = render(build_context(LEARNED))
    assert "Kahneman-Tversky optimisation" in page
    assert "Liked answers that became more likely" in page


def test_moves_the_wrong_way_and_few_votes_are_warned_of() -> None:
    wrong = list(REPORT.cautions(facts([-3.0, -2.0, -4.0] * 30, [2.0, 3.0] * 40)))
    assert [caution.title.partition(":")[0] for caution in wrong] == [
        "The liked answers became less likely",
        "The disliked answers became more likely",
    ]
    few = [caution.title for caution in REPORT.cautions(facts([1.0, 2.0], [-1.0]))]
    assert few == ["3 held-out votes: the intervals are wide."]


def test_a_run_without_votes_has_its_loss() -> None:
    unmeasured = facts([], [])
    found = REPORT.headline(unmeasured)
    assert found is not None and "0.4" in found.sentence
    assert REPORT.scales(unmeasured) == []
    one_sided = REPORT.headline(facts([1.0], []))
    assert one_sided is not None and "disliked" not in one_sided.sentence
