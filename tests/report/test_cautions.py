"""Each warning appears where it is due, and not on a run without fault."""

from __future__ import annotations

from typing import Any

import pytest

from prefine.report.cautions import cautions
from prefine.report.facts import RunFacts
from tests.report.pair_facts import AFTER, facts


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
