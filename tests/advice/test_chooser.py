"""The method that fits counts of data, its reasons with the figures, and what may override it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefine.advice.chooser import choose
from prefine.advice.looking import look
from prefine.advice.signals import NEEDS, kind_read, weak_signal
from prefine.advice.situation import Signal, Situation
from prefine.errors import RecipeError

ALL = ("sft", "reward", "dpo", "orpo", "kto", "ppo")
WITHOUT_KTO = ("sft", "reward", "dpo", "ppo")


def situation(**counts: Any) -> Situation:
    """A situation with one file; what its judgements say is that of the first kind of judgements."""
    kinds = {"pairs": "preferences", "votes": "votes", "demonstrations": "demonstrations", "prompts": "prompts"}
    signal = {name: counts.pop(name) for name in Signal.__dataclass_fields__ if name in counts}
    if "agreement" in signal:  # of so many comparisons that it is certain
        signal = {"agreement_at_most": signal["agreement"], **signal}
    sources = {kind: ["a.jsonl"] for name, kind in kinds.items() if counts.get(name)}
    signals = {next(iter(sources)): Signal(**signal)} if signal else {}
    return Situation(**counts, sources=sources, signals=signals)


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
    assert weak_signal(situation(pairs=1000, agreement=0.7), "dpo") == []


def test_low_agreement_of_few_comparisons_is_a_warning_and_sets_nothing() -> None:
    """6 of 10 is at most 83 % by Wilson's interval."""
    choice = choose(situation(pairs=5000, agreement=0.6, agreement_at_most=0.83), ALL)
    assert choice.settings == {}
    assert choice.warnings == (
        "People agree on 60% of the answers that two of them judged; of all it may be up to 83%, so no setting is "
        "derived from it. Have more answers judged by two people.",
    )


def test_files_of_annotators_who_contradict_each_other_are_read_together(tmp_path: Path) -> None:
    """Each file alone has nothing against it; a stage trains on both."""
    for name, better in (("one", "good"), ("two", "bad")):
        worse = "bad" if better == "good" else "good"
        rows = (
            {"prompt": f"question {n}", "chosen": f"{better} {n}", "rejected": f"{worse} {n}", "annotator": name}
            for n in range(60)
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    assert choose(look(files[:1]), ALL).settings == {}
    choice = choose(look(files), ALL)
    assert choice.settings == {"dpo.beta": 0.3}
    assert "120 of 120 judgements are contradicted by another one: a weak signal." in choice.reasons


def test_the_length_of_answers_voted_up_is_warned_about(tmp_path: Path) -> None:
    rows = (
        {"prompt": f"q{n}", "completion": f"word {n} " * (30 if n % 2 else 3), "label": bool(n % 2)} for n in range(80)
    )
    file = tmp_path / "votes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = (
        "Of a vote up and one down, the answer voted up is the longer one in 100% of pairs: a model can learn length."
    )
    assert any(said in each for each in choose(look([str(file)]), ALL).warnings)


def test_copies_are_not_judgements_of_their_own() -> None:
    """1,000 records of which 500 repeat others: 25 of 500 are one in twenty."""
    assert choose(situation(pairs=1000, duplicates=500, contradictions=25), ALL).settings == {"dpo.beta": 0.3}
    assert choose(situation(pairs=1000, duplicates=500, contradictions=24), ALL).settings == {}


def pairs_with_contradictions(count: int, opposed: int) -> Iterator[dict[str, str]]:
    """So many pairs; the last ones say the opposite of the first ones."""
    for number in range(count - opposed):
        yield {"prompt": f"question {number}", "chosen": f"good {number}", "rejected": f"bad {number}"}
    for number in range(opposed):
        yield {"prompt": f"question {number}", "chosen": f"bad {number}", "rejected": f"good {number}"}


@pytest.mark.parametrize(("opposed", "settings"), [(10, {"dpo.beta": 0.3}), (9, {})])
def test_one_judgement_in_twenty_is_counted_from_rows(tmp_path: Path, opposed: int, settings: dict[str, Any]) -> None:
    """Of 400 pairs, 10 and the 10 that they contradict are one in twenty."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs_with_contradictions(400, opposed)))
    choice = choose(look([str(file)]), ALL)
    assert choice.settings == settings
    said = f"{2 * opposed} of 400 judgements are contradicted by another one: a weak signal."
    assert (said in choice.reasons) == bool(settings)


def test_a_weak_signal_has_a_remedy_in_every_method() -> None:
    kto = choose(situation(votes=1200, thumbs_up=600, agreement=0.46), ALL)
    assert kto.settings == {"kto.beta": 0.3} and not kto.warnings
    assert "kto.beta is 0.3 instead of 0.1: the model stays nearer to where it began." in kto.reasons
    for method in ("sft", "orpo", "reward", "ppo"):
        choice = choose(situation(pairs=1200, agreement=0.46), ALL, asked=method)
        (warning,) = choice.warnings
        assert warning.startswith("People agree on 46%") and "more judgements of each item" in warning
        assert "beta" not in " ".join(choice.settings)


def test_judgements_that_a_method_does_not_learn_from_say_nothing_about_it() -> None:
    mixed = Situation(
        pairs=900,
        votes=900,
        thumbs_up=450,
        demonstrations=900,
        sources={"preferences": ["p"], "votes": ["v"], "demonstrations": ["d"]},
        signals={"votes": Signal(agreement=0.5, agreement_at_most=0.5, shallow_accuracy=0.9, contradictions=400)},
    )
    assert choose(mixed, ALL).settings == {}
    assert not [each for each in choose(mixed, ALL).warnings if "not used" not in each]
    assert choose(mixed, ALL, goal="imitate").settings == {}
    assert choose(mixed, ALL, asked="kto").settings == {"kto.beta": 0.3}


def test_length_has_a_remedy_that_the_method_knows() -> None:
    """On means over tokens DPO's beta is 5.0, three times that for a weak signal; other methods have no dpo.*."""
    plain = choose(situation(pairs=900, length_bias=0.9), ALL)
    assert "set dpo.length_normalized: true and dpo.beta: 5 together" in plain.warnings[0]
    weak = choose(situation(pairs=900, length_bias=0.9, agreement=0.5), ALL)
    assert weak.settings == {"dpo.beta": 0.3}
    assert "set dpo.length_normalized: true and dpo.beta: 15 together" in weak.warnings[0]
    for method in ("ppo", "reward", "orpo"):
        other = choose(situation(pairs=900, length_bias=0.9), ALL, asked=method)
        assert "dpo." not in "".join(other.warnings) and "Balance the lengths" in "".join(other.warnings)
    assert choose(situation(pairs=900, length_bias=0.9), ALL, goal="imitate").warnings == ()


def test_that_a_weak_signal_was_not_looked_for_is_said() -> None:
    part = {"a.jsonl": 20_000}
    for method, counts in (("dpo", {"pairs": 20_000}), ("kto", {"votes": 20_000, "thumbs_up": 10_000})):
        (warning,) = choose(situation(**counts, read_in_part=part), ALL).warnings
        assert f"a weak signal was not checked either, and {method}.beta stays 0.1: set it to 0.3 if" in warning
    (warning,) = choose(situation(demonstrations=20_000, read_in_part=part), ALL).warnings
    assert "weak signal" not in warning


def test_what_is_not_read_is_a_warning_and_part_of_a_refusal() -> None:
    unread = "a.jsonl: A column that looks like answers is not read: response (9 rows)."
    assert unread in choose(situation(pairs=900, not_read=(unread,)), ALL).warnings
    for options in ({}, {"asked": "dpo"}, {"goal": "prefer"}):
        with pytest.raises(RecipeError) as caught:
            choose(situation(prompts=400, not_read=(unread,)), ALL, **options)  # type: ignore[arg-type]
        assert unread in str(caught.value)


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
        signals={"preferences": Signal(contradictions=200), "votes": Signal(agreement=0.6, agreement_at_most=0.6)},
        sources={"preferences": ["p.jsonl"], "votes": ["v.jsonl"]},
        read_in_part={"v.jsonl": 20_000},
    )
    choice = choose(mixed, ALL, asked="dpo")
    assert choice.reasons[0].endswith("the data have 900 preference pairs and at least 20,000 votes.")
    assert choice.settings == {"dpo.beta": 0.3}  # the pairs were read as a whole
    assert choose(mixed, ALL, asked="kto").settings == {}


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
        ({"votes": 60}, "sft", "--method sft needs demonstrations or preference pairs or answers with a thumb up"),
        ({"votes": 60}, "ppo", "All 60 votes are thumbs down: a reward model learns from both"),
        ({"votes": 60, "thumbs_up": 60}, "reward", "All 60 votes are thumbs up: a reward model learns from both"),
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
    counts["votes"] *= 2
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


def test_votes_of_one_side_train_no_reward_model() -> None:
    """Unless they are only the first of a file, or the reward model learns from pairs."""
    for thumbs_up in (0, 900):
        with pytest.raises(RecipeError, match="a reward model learns from both"):
            choose(situation(votes=900, thumbs_up=thumbs_up), ALL, goal="control")
    part = choose(situation(votes=900, read_in_part={"a.jsonl": 900}), ALL, goal="control")
    assert part.stages == ("reward", "ppo")
    assert "All votes that were read are the same: a reward model needs both, thumbs up and thumbs down." in (
        part.warnings
    )
    choose(situation(votes=900, pairs=900), ALL, goal="control")
    choose(situation(votes=900, reward="mine:score"), ALL, goal="control")
    assert "All votes are the same: KTO needs both, thumbs up and thumbs down." in (
        choose(situation(votes=900), ALL).warnings
    )


def test_records_that_do_not_fit_are_warned_about() -> None:
    """1.25 * 1,638 = 2,047.5 tokens fit 2,048."""
    for tokens in (10, 1638):
        assert choose(replace(situation(pairs=900), longest_tokens={"preferences": tokens}), ALL).warnings == ()
    (warning,) = choose(replace(situation(pairs=900), longest_tokens={"preferences": 1639}), ALL).warnings
    assert warning == (
        "sft and dpo: the longest record has about 1,639 tokens, as estimated from characters (tokenizers differ by a "
        "quarter), and data.max_length_tokens is 2,048: longer rows lose their oldest turns, or are left out. Raise it "
        "if the memory allows that."
    )
    short = replace(situation(pairs=900), longest_tokens={"preferences": 600})
    (warning,) = choose(short, ALL, context=512).warnings
    assert "data.max_length_tokens is 512, the context of the model" in warning
    assert warning.endswith("Shorten them, or take a model with a longer context.")
    assert choose(short, ALL, context=1024).warnings == ()


def test_prompts_that_leave_an_answer_no_room_are_warned_about() -> None:
    """1.25 * 1,510 + 160 = 2,047.5."""
    data = situation(prompts=900, reward="mine:score")
    assert choose(replace(data, longest_prompts={"prompts": 1510}), ALL).warnings == ()
    (warning,) = choose(replace(data, longest_prompts={"prompts": 1511}), ALL).warnings
    assert "ppo: the longest prompt has about 1,511 tokens, and answers have 160, as estimated" in warning
