"""What a PPO run's report says, from facts written by hand."""

from __future__ import annotations

import dataclasses

import pytest

from prefine.report.facts import RunFacts
from prefine.report.page import build_context, render
from prefine.report.parts import Headline
from prefine.report.stages.registry import STAGE_REPORTS
from prefine.report.stages.rl import rollouts, sources

BEFORE = {"score": 0.2, "score_median": 0.1, "kl_k3": 0.0, "entropy": 3.0, "degenerate": 0.0, "response_tokens": 80}
AFTER = {"score": 0.9, "score_median": 0.8, "kl_k3": 0.12, "entropy": 2.5, "degenerate": 0.05, "response_tokens": 70}
FACTS = RunFacts(
    name="ppo",
    manifest={"stage": "ppo", "status": "finished"},
    train=[{"kind": "train", "step": step, "score": 0.1 * step, "kl_k3": 0.01 * step} for step in (1, 2, 3)],
    heldout=[{"kind": "heldout", "step": 0, **BEFORE}, {"kind": "heldout", "step": 3, **AFTER}],
    evaluation={
        "heldout": {
            "before": BEFORE,
            "after": AFTER,
            "count": 4,
            "samples": 2,
            "responses": [{"row": i // 2, "before_score": i, "after_score": i + 1} for i in range(8)],
            "mean_change": {"value": 0.7, "count": 4, "interval": {"low": 0.3, "high": 1.1}},
            "median_change": {"value": 0.7, "count": 4, "interval": {"low": 0.2, "high": 1.1}},
        }
    },
    samples=[],
    guard_events=[
        {"guard": "kl", "action": "warn", "at_step": 1, "words": "kl_k3 is 0.1", "step": 1},
        {
            "guard": "kl",
            "action": "roll_back",
            "at_step": 3,
            "words": "kl_k3 is 0.31, above 0.2 for 2 steps: far",
            "back_to_step": 1,
            "changed": {"learning_rate": 0.0001, "kl_coefficient": 0.1},
            "given_up": [{"step": 2, "kl_k3": 0.25, "entropy": 2.0}, {"step": 3, "kl_k3": 0.31, "entropy": 1.9}],
        },
    ],
    rollouts=[
        {
            "step": step,
            "prompt": [{"role": "user", "content": f"asked {step} <b>"}],
            "response": "" if step == 2 else f"said {step}",
            "score": 0.5,
            "tokens": 7,
        }
        for step in (1, 2, 3)
    ],
)


def headline(**heldout: object) -> Headline:
    found = STAGE_REPORTS["ppo"].headline(
        dataclasses.replace(FACTS, evaluation={"heldout": FACTS.evaluation["heldout"] | heldout})
    )
    assert found is not None
    return found


def test_the_headline_says_what_was_won_and_at_what_distance() -> None:
    found = headline()
    assert found.sentence == "The mean reward of 8 answers to 4 held-out prompts rose from 0.20 to 0.90."
    told = " ".join(found.standfirst)
    assert "Change of the mean: +0.70" in told and "+0.30 to +1.10, paired by prompt" in told
    assert "Change of the median answer (0.10 before, 0.80 after): +0.70" in told
    assert "0.120 nats per token" in told and "Guards stepped in 1 time" in told
    assert "no change shown" not in told


def change(low: float, high: float) -> dict[str, object]:
    return {"value": 0.7, "count": 4, "interval": {"low": low, "high": high}}


def test_a_headline_says_rose_or_fell_only_where_the_interval_excludes_0() -> None:
    """At its very end, too."""
    for ends in ((-0.1, 1.1), (0.0, 1.1), (-1.0, 0.0)):
        found = headline(mean_change=change(*ends))
        assert found.sentence == (
            "No change shown in the mean reward of 8 answers to 4 held-out prompts: 0.20 before, 0.90 after."
        )
        assert "The interval includes 0: no change shown." in found.standfirst[0]
    assert "fell from" in headline(mean_change=change(-1.0, -0.1)).sentence
    assert "rose" not in headline(median_change=change(-1.0, 1.0)).standfirst[1]


def test_a_run_that_recorded_no_paired_change_gives_figures_alone() -> None:
    """As those of older versions."""
    found = headline(mean_change=None, samples=None)
    assert found.sentence == "The mean reward of 4 held-out answers was 0.20 before and is 0.90 after."
    assert any("more than chance is not known" in line for line in found.standfirst)


def test_each_source_is_told_with_its_score_and_share() -> None:
    """On held-out answers, or without those on the first and last update's; and on the page."""
    reward = {"name": "runs/rm", "weight": 1.0, "more": [{"name": "m:f", "weight": -0.5}]}
    parts = ({"score/runs/rm": 1.0, "score/m:f": 2.0, "share/runs/rm": 0.5, "share/m:f": -1.0}, {"score/runs/rm": 3.0})
    before, after = BEFORE | parts[0], AFTER | parts[0] | parts[1]
    facts = dataclasses.replace(
        FACTS,
        manifest=FACTS.manifest
        | {"recipe": {"reward": reward}, "overridden": ["Not fit. It was used because of --force."]},
        evaluation={"heldout": FACTS.evaluation["heldout"] | {"before": before, "after": after}},
        rollouts=[{"step": 1, "score": 0.5, "scores": {"runs/rm": 1.0, "m:f": 2.0}}],
    )
    model, function = sources(facts)
    assert (model.name, model.weight, model.before, model.after) == ("runs/rm", "1.00", "1.00", "3.00")
    assert (function.name, function.weight, function.share_before) == ("m:f", "−0.50", "−1.00")
    updates = [{"step": 1, "score/m:f": 1.0}, {"step": 2, "score/m:f": 5.0}]
    (alone,) = sources(dataclasses.replace(facts, train=updates, heldout=[], evaluation={}))
    assert (alone.before, alone.after) == ("1.00", "5.00")
    (kept,) = rollouts(facts)
    assert kept.scores == "runs/rm 1.00, m:f 2.00"
    page = render(build_context(facts))
    assert "What was rewarded" in page and "runs/rm 1.00, m:f 2.00" in page
    assert page.index("It was used because of --force.") < page.index("What was rewarded")


def test_tiles_and_charts_are_of_what_is_known() -> None:
    assert {tile.label: tile.value for tile in STAGE_REPORTS["ppo"].tiles(FACTS)}["KL per token"] == "0.120"
    titles = [chart.title for chart in STAGE_REPORTS["ppo"].charts(FACTS)]
    assert titles[0] == "Reward: held-out 0.20 → 0.90"
    assert "Held-out rewards: median 3.50 → 4.50" in titles
    assert not any(title.startswith("Judge") for title in titles)


def test_rollouts_are_shown_from_first_to_last() -> None:
    assert [(r.step, r.asked, r.response) for r in rollouts(FACTS)] == [
        ("1", "asked 1 <b>", "said 1"),
        ("2", "asked 2 <b>", ""),
        ("3", "asked 3 <b>", "said 3"),
    ]


@pytest.mark.parametrize("count", [12, 13, 23, 32])
def test_of_many_rollouts_the_last_update_is_among_those_shown(count: int) -> None:
    rows = [{"step": step, "prompt": [], "response": "said", "score": 0.0, "tokens": 1} for step in range(count)]
    shown = [int(each.step) for each in rollouts(dataclasses.replace(FACTS, rollouts=rows))]
    assert (shown[0], shown[-1], len(shown)) == (0, count - 1, 12)


@pytest.mark.parametrize("spoil", [None, "text", [], {}, [1, None], {"a": []}])
def test_a_page_is_made_of_whatever_is_there(spoil: object) -> None:
    page = render(build_context(FACTS))
    assert "What the guards did" in page and "asked 1 &lt;b&gt;" in page
    spoilt = dataclasses.replace(
        FACTS,
        evaluation={"heldout": {"before": spoil, "after": AFTER, "responses": spoil, "median_change": spoil}},
        guard_events=[{"words": spoil, "given_up": spoil, "changed": spoil, "action": "stop"}],
        rollouts=[{"step": spoil, "prompt": spoil, "response": spoil}],
    )
    assert "<html" in render(build_context(spoilt))
