"""Each warning appears where it is due, and not on a run without fault."""

from __future__ import annotations

from typing import Any

import pytest

from prefine.report.cautions import cautions
from prefine.report.charts import learning_charts, pair_chart, shift_points, shift_summary
from prefine.report.facts import RunFacts
from prefine.report.headline import headline, scales, tiles

BEFORE = {"loss": 0.6931, "accuracy": 0.0, "margin": 0.0, "logp_chosen": -100.0, "policy_accuracy": 0.5}
AFTER = {"loss": 0.55, "accuracy": 0.8, "margin": 0.5, "logp_chosen": -99.0, "policy_accuracy": 0.7}


def facts(**changes: Any) -> RunFacts:
    heldout = {"count": 500, "before": BEFORE, "after": AFTER} | changes.pop("heldout", {})
    evaluation = {"heldout": heldout, "generation": changes.pop("generation", {})}
    whole: dict[str, Any] = {"train": [], "heldout": [], "samples": [], "manifest": {"stage": "dpo"}}
    given = {"heldout": changes.pop("rows", [])} | changes
    return RunFacts(name="run", evaluation=evaluation, **(whole | given))


def titles(run: RunFacts) -> str:
    return "\n".join(caution.title for caution in cautions(run))


def test_a_run_without_fault_has_no_warning() -> None:
    assert not cautions(facts())


def test_swapped_answers() -> None:
    assert "away from the preferred answers" in titles(facts(heldout={"after": AFTER | {"accuracy": 0.2}}))
    assert "away from" not in titles(facts(heldout={"after": AFTER | {"accuracy": 0.49}}))  # may be chance


def test_few_pairs() -> None:
    assert "20 held-out pairs: the intervals are wide." in titles(facts(heldout={"count": 20}))


@pytest.mark.parametrize(("shifts", "warned"), [([-1.0, -2.0, -1.5, -1.2], True), ([-1.0, 9.0, -12.0, 1.0], False)])
def test_falling_chosen_answers_are_warned_of_unless_chance_explains_them(shifts: list[float], warned: bool) -> None:
    changes = {"after": AFTER | {"logp_chosen": -101.0}, "pairs": [{"chosen_shift": shift} for shift in shifts]}
    assert ("chosen answers became less likely" in titles(facts(heldout=changes))) is warned


def test_what_the_run_said_itself_is_not_said_twice() -> None:
    said = "The chosen answers became less likely: their mean log-probability fell by 9.0 nats."
    run = facts(heldout={"after": AFTER | {"logp_chosen": -109.0}}, manifest={"stage": "dpo", "warnings": [said]})
    assert titles(run) == said


def test_held_out_loss_that_rises_again() -> None:
    rows = [{"step": step, "loss": loss} for step, loss in ((0, 0.69), (10, 0.5), (20, 0.6))]
    assert "lowest at step 10 (0.500); at step 20 it is 0.600" in titles(facts(rows=rows))
    assert not cautions(facts(rows=rows[:2]))


def test_lengths_and_ends() -> None:
    short, long = ({"mean_tokens": tokens, "ended": ended} for tokens, ended in ((40.0, 1.0), (60.0, 0.7)))
    grown = titles(facts(generation={"before": short, "after": long}))
    assert "Answers to the sample prompts are longer: 60 tokens on average, 40 before" in grown
    assert "Fewer answers to the sample prompts end by themselves" in grown
    shrunk = titles(facts(generation={"before": long, "after": short}))
    assert "are shorter: 40 tokens on average, 60 before" in shrunk
    assert "were cut at the limit" in titles(facts(generation={"before": long, "after": long}))


def of_lengths(after: list[int], **more: Any) -> list[dict[str, Any]]:
    return [{"before_tokens": 40, "after_tokens": tokens, **more} for tokens in after]


def test_a_jump_in_length_that_chance_explains_is_not_warned_of() -> None:
    """Means 58 both times; by Student's t of four differences of 18 ± 36 the change may be nothing."""
    assert "are longer" in titles(facts(samples=of_lengths([56, 57, 59, 60])))
    assert "are longer" not in titles(facts(samples=of_lengths([20, 30, 90, 92])))


def test_samples_that_say_nothing() -> None:
    samples = of_lengths([40] * 4, before_degenerate=None)
    for sample, word in zip(samples, (None, "blank", "looping", None), strict=True):
        sample["after_degenerate"] = word
    assert "2 of 4 answers to the sample prompts are blank, stuck or loop, 0 before." in titles(facts(samples=samples))


PPO = {"stage": "ppo", "recipe": {"advantage": "gae"}}


def ppo_run(after: dict[str, Any], prompts: int = 24, spread: int = 1, **changes: Any) -> RunFacts:
    """Two answers each to so many prompts, one with `spread` tokens more and one with as many less."""
    before = {"response_tokens": 80.0, "ended": 1.0, "degenerate": 0.0, "score": 0.2}
    now = before | after
    responses = [
        {
            "row": place // 2,
            "before_tokens": 80,
            "after_tokens": now["response_tokens"] + spread * (1 if place // 2 % 2 else -1),
            "before_ended": True,
            "after_ended": place >= (1 - now["ended"]) * 2 * prompts,
        }
        for place in range(2 * prompts)
    ]
    heldout = {"before": before, "after": now, "count": prompts, "samples": 2, "responses": responses}
    samples = of_lengths([200, 202, 204], before_ended=True, after_ended=False)
    return facts(manifest=PPO, heldout=heldout, samples=samples, **changes)


def test_ppo_is_warned_of_by_its_held_out_answers_and_not_by_its_samples() -> None:
    """Its three samples are five times as long here and do not end."""
    assert not titles(ppo_run({}))
    longer, shorter = titles(ppo_run({"response_tokens": 120.0})), titles(ppo_run({"response_tokens": 40.0}))
    assert longer.startswith("Held-out answers are longer: 120 tokens on average, 80 before (95")
    assert shorter.startswith("Held-out answers are shorter: 40 tokens on average, 80 before (95")
    assert not titles(ppo_run({"response_tokens": 95.0}))  # a jump is more than a quarter
    assert not titles(ppo_run({"response_tokens": 120.0}, spread=400))  # may be chance
    assert "Fewer held-out answers end by themselves: 75" in titles(ppo_run({"ended": 0.75}))
    assert "12 of 48 held-out answers are blank, stuck or loop, 0 before." in titles(ppo_run({"degenerate": 0.25}))


def test_ppo_says_that_few_prompts_show_little() -> None:
    assert "Only 19 held-out prompts" in titles(ppo_run({}, prompts=19))
    assert "held-out prompts" not in titles(ppo_run({}, prompts=20))


@pytest.mark.parametrize(
    ("explained", "advantage", "warned"),
    [
        ([0.5, 0.5, -0.3, -0.2, 0.1], "gae", True),  # the last three: -0.13
        ([-0.5, -0.5, 0.2, 0.1, 0.1], "gae", False),
        ([0.0] * 5, "gae", True),
        ([0.0] * 5, "rloo", False),  # has no critic
        ([-1.0] * 2, "gae", False),  # too few updates to tell
        ([*[-1.0] * 15, *[0.3] * 5], "gae", False),
        ([*[1.0] * 15, *[-0.3] * 5], "gae", True),
    ],
)
def test_a_critic_that_explains_nothing(explained: list[float], advantage: str, warned: bool) -> None:
    train = [{"step": step, "explained_variance": value} for step, value in enumerate(explained, 1)]
    run = facts(manifest={"stage": "ppo", "recipe": {"advantage": advantage}}, train=train)
    assert ("The critic explains nothing" in titles(run)) is warned


def test_ranking_is_compared_pair_by_pair() -> None:
    """12 of 40 pairs are ranked right that were not, and none the other way: certain, though the intervals overlap."""
    pairs = [{"before_ranked": float(i < 16), "after_ranked": float(i < 28)} for i in range(40)]
    shares_ = {"before": BEFORE | {"policy_accuracy": 0.4}, "after": AFTER | {"policy_accuracy": 0.7}, "count": 40}
    paired, alone = facts(heldout={**shares_, "pairs": pairs}), facts(heldout=shares_)
    assert "now ranks the preferred answer first in 70\u202f%, up from 40\u202f%" in headline(paired).sentence
    assert "(40\u202f% before: no change shown)" in headline(alone).sentence
    shuffled = [pair | {"after_ranked": float(12 <= i < 28)} for i, pair in enumerate(pairs)]
    worse = facts(heldout={**shares_, "pairs": shuffled, "after": AFTER | {"policy_accuracy": 0.4}})
    assert "no change shown" in headline(worse).sentence


@pytest.mark.parametrize(
    ("share", "count", "said"),
    [
        (0.8, 100, "Training moved the model towards the preferred answer in 80\u202f% of 100 held-out pairs"),
        (0.55, 100, "No move towards the preferred answers shown: 55\u202f% of 100 held-out pairs moved that way"),
        (0.2, 100, "Training moved the model away from the preferred answers: only 20\u202f% of 100"),
    ],
)
def test_a_move_that_chance_explains_is_not_called_one(share: float, count: int, said: str) -> None:
    run = facts(heldout={"after": AFTER | {"accuracy": share}, "count": count})
    assert headline(run).sentence.startswith(said)


IPO = {"stage": "dpo", "recipe": {"dpo": {"loss": "ipo", "beta": 0.5, "nll_weight": 0.0}}}


def test_ipos_chart_counts_the_pairs_that_its_accuracy_counts() -> None:
    """Summed, the first pair's chosen answer gained less than its rejected one; per token, more."""
    shifts = [(4.0, 5.0, 10, 50), (5.0, 4.0, 50, 10), (-1.0, -2.0, 10, 10)]
    names = ("chosen_shift", "rejected_shift", "chosen_tokens", "rejected_tokens")
    pairs = [dict(zip(names, pair, strict=True)) for pair in shifts]
    per_token = facts(manifest=IPO, heldout={"pairs": pairs})
    assert shift_points(per_token) == [(0.4, 0.1), (0.1, 0.4), (-0.1, -0.2)]
    assert shift_points(facts(heldout={"pairs": pairs})) == [(4.0, 5.0), (5.0, 4.0), (-1.0, -2.0)]
    chart = pair_chart(per_token)
    assert chart is not None
    assert chart.title.startswith("2 of 3 pairs") and "nats per token" in chart.subtitle
    assert "Chosen answers moved by +0.133 nats per token" in shift_summary(per_token)
    assert learning_charts(facts(manifest=IPO, rows=[{"step": 0, "loss": 1.0}]))[0].subtitle.endswith("= 1.000")


def test_a_preference_for_length_alone() -> None:
    pairs = [
        {"after_margin": 1.0 if longer else -1.0, "chosen_tokens": 10 + longer, "rejected_tokens": 10 + (not longer)}
        for longer in [True, False] * 15
    ]
    assert "learned to prefer longer answers" in titles(facts(heldout={"pairs": pairs}))
    assert "prefer longer" not in titles(facts(heldout={"pairs": [p | {"after_margin": 1.0} for p in pairs]}))


def test_a_failed_self_check() -> None:
    checks = [{"name": "first loss", "passed": False}, {"name": "first margin", "passed": True}]
    assert "1 self-check failed: first loss." in titles(facts(manifest={"stage": "dpo", "self_checks": checks}))


def test_accuracy_of_the_untrained_model_is_not_drawn() -> None:
    """Against the model as it was, all its rewards are 0: the 0 % that ties amount to would be a false start."""
    rows = [{"step": 0, "accuracy": 0.0, "margin": 0.0}, {"step": 5, "accuracy": 0.8, "margin": 0.5}]
    with_reference = learning_charts(facts(rows=rows))[0].drawing
    assert with_reference == learning_charts(facts(rows=rows[1:]))[0].drawing
    simpo = {"stage": "dpo", "recipe": {"dpo": {"loss": "simpo"}}}
    assert learning_charts(facts(rows=rows, manifest=simpo))[0].drawing != with_reference


def test_without_a_reference_accuracy_is_the_models_own_ranking() -> None:
    simpo = {"stage": "dpo", "recipe": {"dpo": {"loss": "simpo"}}}
    figures = {"before": {"accuracy": 0.5}, "after": {"accuracy": 0.75}}
    run = facts(manifest=simpo, heldout=figures)
    assert headline(run).sentence.replace("\u202f", " ") == (
        "The model now ranks the preferred answer first in 75 % of 500 held-out pairs, up from 50 %."
    )


def test_shares_stand_on_scales_with_an_interval_and_on_tiles_without() -> None:
    known, unknown = facts(), facts(heldout={"count": None})
    assert [scale.label for scale in scales(known)] == [
        "Moved towards the preferred answer by training",
        "Preferred answer ranked first",
    ]
    assert "Preferred answer ranked first" not in [tile.label for tile in tiles(known)]
    assert not scales(unknown)
    assert "Preferred answer ranked first" in [tile.label for tile in tiles(unknown)]
