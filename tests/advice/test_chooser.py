"""The method that fits counts of data, its reasons with the figures, and what may override it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine.advice.chooser import NEEDS, choose, kind_read, weak_signal
from prefine.advice.situation import Situation
from prefine.errors import RecipeError

ALL = ("sft", "reward", "dpo", "orpo", "kto", "ppo")
WITHOUT_KTO = ("sft", "reward", "dpo", "ppo")


def situation(**counts: Any) -> Situation:
    kinds = {"pairs": "preferences", "votes": "votes", "demonstrations": "demonstrations", "prompts": "prompts"}
    return Situation(**counts, sources={kind: ["a.jsonl"] for name, kind in kinds.items() if counts.get(name)})


@pytest.mark.parametrize(
    ("counts", "options", "stages", "figure"),
    [
        ({"pairs": 4120}, {}, ("sft", "dpo"), "4,120 preference pairs"),
        ({"pairs": 900, "votes": 5000}, {}, ("sft", "dpo"), "900 preference pairs"),
        ({"votes": 1200, "thumbs_up": 600}, {}, ("sft", "kto"), "1,200 votes"),
        ({"votes": 1200, "thumbs_up": 600}, {"methods": WITHOUT_KTO}, ("sft", "reward", "ppo"), "1,200 votes"),
        ({"demonstrations": 777}, {}, ("sft",), "777 demonstrations"),
        ({"pairs": 900}, {"goal": "control"}, ("sft", "reward", "ppo"), "900 preference pairs"),
        ({"pairs": 900}, {"goal": "imitate"}, ("sft",), "better answers of 900"),
        ({"prompts": 500, "reward": "mine:score"}, {}, ("ppo",), "500 records with a prompt"),
        ({"pairs": 900, "reward": "mine:score"}, {}, ("sft", "ppo"), "mine:score"),
        ({"pairs": 900}, {"asked": "orpo"}, ("orpo",), "--method orpo was asked for"),
        ({"pairs": 900}, {"asked": "reward"}, ("reward",), "--method reward was asked for"),
    ],
)
def test_the_method_follows_from_the_data(
    counts: dict[str, Any], options: dict[str, Any], stages: tuple[str, ...], figure: str
) -> None:
    choice = choose(situation(**counts), options.pop("methods", ALL), **options)
    assert choice.stages == stages
    assert choice.method == stages[-1]
    assert figure in choice.reasons[0]


def test_a_weak_signal_asks_for_a_larger_beta() -> None:
    """Contradictions from one in twenty on, ties from a quarter on, agreement below 70 %."""
    assert choose(situation(pairs=1000, contradictions=49), ALL).settings == {}
    assert choose(situation(pairs=1000, contradictions=50), ALL).settings == {"dpo.beta": 0.3}
    assert choose(situation(pairs=750, ties=250), ALL).settings == {"dpo.beta": 0.3}
    assert choose(situation(pairs=751, ties=249), ALL).settings == {}
    weak = choose(situation(pairs=1000, agreement=0.62), ALL)
    assert weak.settings == {"dpo.beta": 0.3}
    assert weak.reasons[1:] == (
        "People agree on 62% of the answers that two of them judged: a weak signal.",
        "dpo.beta is 0.3 instead of 0.1: the model stays nearer to where it began.",
    )
    assert weak_signal(situation(pairs=1000, agreement=0.7)) == []


def test_the_rarer_side_of_votes_weighs_more() -> None:
    """The product of weight and count is the same on both sides: 900 * 1 = 300 * 3."""
    assert choose(situation(votes=1200, thumbs_up=900), ALL).settings == {"kto.undesirable_weight": 3.0}
    assert choose(situation(votes=1200, thumbs_up=300), ALL).settings == {"kto.desirable_weight": 3.0}
    assert choose(situation(votes=700, thumbs_up=400), ALL).settings == {}  # 4 to 3 is within the paper's range


def test_shares_of_a_file_that_was_read_in_part_set_nothing() -> None:
    """The first records of a sorted file are all thumbs up, or all of one annotator."""
    part = {"a.jsonl": 20_000}
    votes = choose(situation(votes=20_000, thumbs_up=15_000, read_in_part=part), ALL)
    assert votes.settings == {} and len(votes.reasons) == 1
    assert votes.reasons[0].startswith("There are at least 20,000 votes")
    assert votes.warnings[0].startswith("Of a.jsonl only the first 20,000 records were read")
    assert votes.warnings[1].startswith(
        "15,000 of the votes read are up and 5,000 down: set kto.undesirable_weight to 3.0"
    )
    pairs = choose(situation(pairs=20_000, agreement=0.6, read_in_part=part), ALL)
    assert pairs.settings == {} and "at least 20,000 preference pairs" in pairs.reasons[0]
    assert pairs.warnings[1].startswith("People agree on 60%")
    whole = choose(situation(pairs=20_000, agreement=0.6), ALL)
    assert whole.settings == {"dpo.beta": 0.3} and whole.warnings == ()


def test_only_the_kind_that_was_read_in_part_has_at_least() -> None:
    mixed = Situation(
        pairs=900,
        votes=20_000,
        contradictions=200,
        agreement=0.6,
        sources={"preferences": ["p.jsonl"], "votes": ["v.jsonl"]},
        read_in_part={"v.jsonl": 20_000},
    )
    choice = choose(mixed, ALL, asked="dpo")
    assert choice.reasons[0].endswith("the data have 900 preference pairs and at least 20,000 votes.")
    assert choice.settings == {}  # whose agreement it is, is not known


def test_warnings_have_the_figures() -> None:
    choice = choose(situation(pairs=120, shallow_accuracy=0.81, length_bias=0.9), ALL)
    few, shallow, length = choice.warnings
    assert few.startswith("120 preference pairs are few; below about 300")
    assert "in 81% of cases" in shallow
    assert "the longer one in 90% of pairs" in length
    assert "shorter one in 85%" in choose(situation(pairs=900, length_bias=0.15), ALL).warnings[0]
    assert choose(situation(pairs=900, shallow_accuracy=0.6, length_bias=0.5), ALL).warnings == ()


def test_other_methods_of_the_same_data_are_named() -> None:
    assert [name for name, _ in choose(situation(pairs=900, votes=900), ALL).others] == ["orpo", "kto", "ppo", "sft"]
    assert choose(situation(demonstrations=900), ALL).others == ()


@pytest.mark.parametrize(
    ("counts", "asked", "message"),
    [
        ({"pairs": 60, "reward": "mine:score"}, "dpo", "--reward mine:score has no effect: dpo does not use a reward"),
        ({"prompts": 60}, None, "The data have 60 prompts without an answer: there is nothing to learn from"),
        ({}, None, "The data have no usable record"),
        ({"votes": 60}, "dpo", "--method dpo needs preference pairs, and the data have 60 votes"),
        ({"demonstrations": 60}, "ppo", "--method ppo needs a reward"),
        ({"pairs": 60}, "evaluate", "--method 'evaluate' is not a method. The methods are sft, reward, dpo, orpo"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(counts: dict[str, Any], asked: str | None, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        choose(situation(**counts), ALL, asked=asked)
    assert message in str(caught.value)


def test_a_goal_that_the_data_cannot_serve_is_refused() -> None:
    """It is not replaced by what they can serve."""
    with pytest.raises(RecipeError, match="--goal prefer needs pairs or votes, and the data have 60 demonstrations"):
        choose(situation(demonstrations=60), ALL, goal="prefer")
    with pytest.raises(RecipeError, match="--goal control has no effect with --method dpo"):
        choose(situation(pairs=60), ALL, goal="control", asked="dpo")


@given(
    st.fixed_dictionaries({name: st.integers(0, 2000) for name in ("pairs", "votes", "demonstrations", "prompts")}),
    st.sampled_from(["auto", "imitate", "prefer", "control"]),
    st.booleans(),
)
def test_every_stage_has_data_to_learn_from(counts: dict[str, int], goal: Any, rewarded: bool) -> None:
    data = situation(**counts, thumbs_up=counts["votes"] // 2, reward="mine:score" if rewarded else None)
    judged, scored = counts["pairs"] + counts["votes"], rewarded and sum(counts.values())
    possible = {
        "auto": judged or counts["demonstrations"] or scored,
        "imitate": (counts["pairs"] or counts["demonstrations"] or data.thumbs_up) and not rewarded,
        "prefer": judged and not rewarded,
        "control": judged or scored,
    }
    if not possible[goal]:
        with pytest.raises(RecipeError):
            choose(data, ALL, goal=goal)
        return
    choice = choose(data, ALL, goal=goal)
    for method in choice.stages:
        assert any(data.of(kind) for kind in NEEDS[method])
    assert choice.reasons
    assert choice.method not in {name for name, _ in choice.others}


def test_a_file_that_no_stage_reads_is_named_and_not_counted() -> None:
    """DPO and SFT read the pairs; the reward model learns from pairs, and not from the votes, too."""
    found = Situation(pairs=900, votes=500, thumbs_up=250, sources={"preferences": ["p.jsonl"], "votes": ["v.jsonl"]})
    choice = choose(found, ALL)
    unused = "v.jsonl is not used by any stage: it has votes, and the stages read preference pairs."
    assert unused in choice.warnings
    controlled = choose(found, ALL, goal="control")
    assert "is trained on 900 preference pairs, and PPO" in controlled.reasons[0]
    assert unused in controlled.warnings
    assert not [each for each in choose(situation(pairs=900), ALL).warnings if "not used" in each]


def test_a_kind_without_a_usable_record_is_not_read() -> None:
    """All pairs are ties, or no vote is up: the stage reads what has records."""
    found = Situation(ties=9, votes=500, sources={"preferences": ["p.jsonl"], "votes": ["v.jsonl"]})
    assert kind_read(found, "reward") == "votes"
    shown = Situation(pairs=5, votes=9, sources={"votes": ["v.jsonl"], "preferences": ["p.jsonl"]})
    assert kind_read(shown, "sft") == "preferences"
    scored = Situation(prompts=40, pairs=9, sources={"prompts": ["a"], "preferences": ["p"]}, reward="m:f")
    assert "there are 40 records with a prompt" in choose(scored, ALL).reasons[0]
