"""What PPO optimises: reward models beside and on the policy's base, functions of the user's, and their sum."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import statistics
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from prefine.errors import ModelError, PrefineError, RewardError, TrainingError
from prefine.export.reward_model import merge_reward
from prefine.models.scoring.packed_scorer import load_reward
from prefine.models.scoring.scorer import Question, ScoreScale
from prefine.recipe.rl import PpoRecipe, PpoRewardSection, RewardSource
from prefine.recipe.sections import ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.records import Message
from prefine.training.display import Display
from prefine.training.rl.load_rewards import load_rewards
from prefine.training.rl.reward_sources import FunctionSource, ModelSource, PromptAnswers, RunningScale
from prefine.training.rl.rewards import Rewards, shape
from prefine.training.rl.stage import PpoObjective, PpoStage, run_ppo
from prefine.training.run.run_stage import run_stage
from prefine.training.run.session import Session
from tests.training import tiny
from tests.training.test_reward_hacking import other_letters

Make = Callable[..., StageRecipe]
# One call of the reward an update, and none besides.
QUICK = {**tiny.UNGUARDED, "report.samples": 0, "data.heldout_fraction": 0.0, "training.max_steps": 2}
ASKED = [
    PromptAnswers((Message(role="user", content="question 3 more"),), ("good answer yes 3", "bad 3 no no no", "")),
    PromptAnswers((Message(role="user", content="question 4"),), ("good answer 4", "bad 4", "neither")),
]


class KeepsItsObjective(PpoStage):
    """For a look at the objective as it is when the run has ended."""

    def start(self, session: Session[PpoRecipe]) -> PpoObjective:
        self.objective = super().start(session)
        return self.objective


def trained(made: StageRecipe, *, force: bool = False) -> tuple[PpoObjective, str]:
    """Run it to its end; the objective as it is then, and what was said."""
    assert isinstance(made, PpoRecipe)
    said, stage = io.StringIO(), KeepsItsObjective(made, force=force)
    run_stage(stage, False, Console(file=said))
    return stage.objective, said.getvalue()


def refused(made: StageRecipe) -> str:
    with pytest.raises(PrefineError) as error:
        tiny.train(made)
    assert "\n" not in str(error.value)
    return f"{type(error.value).__name__}: {error.value}"


# --- Scaled, weighed, added, shaped ----------------------------------------------------------------------------------

scores = st.floats(-100, 100)


@given(st.lists(st.lists(scores, max_size=5), max_size=5))
def test_a_running_scale_is_that_of_all_scores_seen(updates: list[list[float]]) -> None:
    running, seen = RunningScale(), [score for update in updates for score in update]
    for update in updates:
        running.update(update)
    assert running.count == len(seen)
    wanted = statistics.stdev(seen) if len(seen) > 1 else 0.0
    if wanted > 2e-6 * abs(running.mean) and wanted > 1e-6:
        assert running.std == pytest.approx(wanted, rel=1e-9)
    elif len(set(seen)) < 2:
        assert running.std == 1.0
    if seen:
        assert running.mean == pytest.approx(statistics.fmean(seen), abs=1e-9)


def test_scores_that_differ_by_their_rounding_alone_are_not_scaled_up() -> None:
    running = RunningScale()
    running.update([20.0, 20.000002, 20.0])
    assert running.std == 1.0


class Judge:
    """A reward model as far as its source knows it."""

    def __init__(self, std: float | None) -> None:
        self.scale = None if std is None else ScoreScale(bias=(0.0,), std=std, answers=9, max_length_tokens=99)


def source(kind: str, scale: str, weight: float = 1.0) -> Any:
    section = RewardSource.model_validate({"name": kind, "scale": scale, "weight": weight})
    if kind == "function":
        return FunctionSource(section, lambda rows: [0.0] * len(rows))
    return ModelSource(section, Judge(4.0 if kind == "measured" else None), "")  # type: ignore[arg-type]


def combined(sources: Sequence[Any], given: dict[str, list[float]], **section: Any) -> tuple[list[float], list[float]]:
    """Proxy and shaped scores of answers of one token that ended."""
    rewards = Rewards(PpoRewardSection(**section), sources, 100)
    count = len(next(iter(given.values())))
    found = rewards.combined(given, torch.ones(count, dtype=torch.int64), torch.ones(count, dtype=torch.bool))
    return found.proxy.tolist(), found.shaped.tolist()


@pytest.mark.parametrize(
    ("kind", "scale", "wanted"),
    [
        ("measured", "auto", [0.25, 0.75, 1.25]),
        ("measured", "std", [0.25, 0.75, 1.25]),
        ("measured", "running", [-1.0, 0.0, 1.0]),
        ("measured", "none", [1.0, 3.0, 5.0]),
        ("unmeasured", "auto", [-1.0, 0.0, 1.0]),
        ("unmeasured", "running", [-1.0, 0.0, 1.0]),
        ("unmeasured", "none", [1.0, 3.0, 5.0]),
        ("function", "auto", [1.0, 3.0, 5.0]),
        ("function", "running", [-1.0, 0.0, 1.0]),
        ("function", "none", [1.0, 3.0, 5.0]),
    ],
)
def test_how_scores_are_centred_and_scaled(kind: str, scale: str, wanted: list[float]) -> None:
    """1, 3 and 5 have a mean of 3 and a standard deviation of 2; a measured model has subtracted its mean itself."""
    proxy, _ = combined([source(kind, scale)], {kind: [1.0, 3.0, 5.0]}, clip=None)
    assert proxy == pytest.approx(wanted)


@pytest.mark.parametrize("given_scores", [[18.0, 20.0, 22.0], [40.0, 65.0, 90.0], [1e6 - 1, 1e6, 1e6 + 1]])
def test_scores_far_from_0_keep_their_spread_under_the_clip(given_scores: list[float]) -> None:
    """Divided by their standard deviation alone they all lay beyond 5, and so were 5 each."""
    _, shaped = combined([source("unmeasured", "auto")], {"unmeasured": given_scores}, clip=5.0)
    assert shaped == pytest.approx([-1.0, 0.0, 1.0])


def test_the_clipped_share_and_the_spread_of_rewards_by_hand() -> None:
    """7, 6, 5 and 1 clipped to 5, 5, 5 and 1: half are cut; mean 4, squares 1, 1, 1 and 9, deviation sqrt(3)."""
    rewards = Rewards(PpoRewardSection(clip=5.0), [source("function", "none")], 100)
    parts, ends = {"function": [7.0, 6.0, 5.0, 1.0]}, torch.ones(4, dtype=torch.bool)
    scored = rewards.combined(parts, torch.ones(4, dtype=torch.int64), ends)
    found = rewards.metrics(scored, 4)
    assert found["reward_clipped"] == 0.5
    assert found["reward_std"] == pytest.approx(3**0.5)
    # Compared two by two, as answers to one prompt are: deviations 0 (5, 5) and 2 (5, 1), whose mean square is 2.
    assert rewards.metrics(scored, 2)["reward_std"] == pytest.approx(2**0.5)
    assert "reward_std" not in rewards.metrics(scored, 1)


def test_each_source_is_told_by_itself() -> None:
    """A mean of 6 less its own mean 6 is a share of 0; 3 at a weight of -0.5 is a share of -1.5."""
    sources = [source("unmeasured", "auto", 2.0), source("function", "none", -0.5)]
    rewards = Rewards(PpoRewardSection(clip=None), sources, 100)
    parts, ends = {"unmeasured": [4.0, 8.0], "function": [1.0, 5.0]}, torch.ones(2, dtype=torch.bool)
    found = rewards.metrics(rewards.combined(parts, torch.ones(2, dtype=torch.int64), ends), 2)
    told = {name: value for name, value in found.items() if "/" in name}
    assert told == {"score/unmeasured": 6.0, "score/function": 3.0, "share/unmeasured": 0.0, "share/function": -1.5}


@pytest.mark.parametrize("more", [False, True])
def test_a_std_that_was_not_recorded_is_not_taken_for_1(more: bool, make: Make) -> None:
    """It is refused before anything is made, under the name of its field."""
    name = "tests.training.test_reward_hacking:vowels"
    section = (
        {"reward.more": [{"name": name, "scale": "std"}]} if more else {"reward.name": name, "reward.scale": "std"}
    )
    made = make("ppo", changes={**QUICK, **section})
    assert refused(made) == (
        f"RecipeError: reward.{'more[0].' if more else ''}name: {name} has no recorded standard deviation, but its "
        "scale is std. Set its scale to running (the std of all scores so far) or none."
    )
    assert not Path(made.run).exists()


def test_sources_are_weighed_and_added() -> None:
    """4 / 4 * 2 - 10 * 0.5 = -3; a second update's running scale knows of the first."""
    sources = [source("measured", "auto", 2.0), source("function", "none", -0.5)]
    proxy, shaped = combined(sources, {"measured": [4.0, 0.0], "function": [10.0, 1.0]}, clip=2.0)
    assert proxy == [-3.0, -0.5]
    assert shaped == [-2.0, -0.5]
    rewards = Rewards(PpoRewardSection(clip=None), [source("function", "running")], 100)
    one, ends = torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)
    rewards.combined({"function": [0.0, 2.0]}, one, ends)
    second = rewards.combined({"function": [4.0, 6.0]}, one, ends).proxy.tolist()
    std = statistics.stdev([0.0, 2.0, 4.0, 6.0])
    assert second == pytest.approx([1 / std, 3 / std])
    again = Rewards(PpoRewardSection(clip=None), [source("function", "running")], 100)
    again.load_state(json.loads(json.dumps(rewards.state())))
    assert again.sources[0].scaling == rewards.sources[0].scaling


@pytest.mark.parametrize(
    ("section", "ended", "open_ended"),
    [
        ({"missing_eos": "none"}, 3.0, 3.0),
        ({"missing_eos": "none", "clip": 2.5}, 2.5, 2.5),
        ({"missing_eos": "penalty", "missing_eos_value": 2.0}, 3.0, 1.0),
        ({"missing_eos": "replace", "missing_eos_value": 2.0}, 3.0, -2.0),
        ({"missing_eos": "replace", "missing_eos_value": 2.0, "length_penalty": 1.0}, 2.5, -2.0),
        ({"missing_eos": "penalty", "missing_eos_value": 2.0, "length_penalty": 1.0, "clip": 1.0}, 0.5, -1.5),
        ({"missing_eos": "penalty", "missing_eos_value": 9.0, "clip": 1.0}, 1.0, -8.0),  # what is taken off is not cut
        ({"missing_eos": "none", "overlong_tokens": 8}, 3.0, 3.0),  # 50 is less than 60 - 8
        ({"missing_eos": "none", "overlong_tokens": 40, "overlong_penalty": 2.0}, 1.5, 1.5),  # 2 (50 - 20) / 40
    ],
)
def test_shaping_by_hand(section: dict[str, Any], ended: float, open_ended: float) -> None:
    """A score of 3 for an answer of 50 tokens."""
    made = PpoRewardSection.model_validate(section)
    proxy, lengths = torch.tensor([3.0, 3.0]), torch.tensor([50, 50])
    assert shape(proxy, lengths, torch.tensor([True, False]), made, 60).tolist() == [ended, open_ended]
    assert proxy.tolist() == [3.0, 3.0]


def test_the_penalty_of_long_answers_is_trls() -> None:
    """get_soft_overlong_punishment, at every length that an answer can have."""
    from trl.rewards import get_soft_overlong_punishment

    made = PpoRewardSection(missing_eos="none", overlong_tokens=7)
    theirs = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=7)
    lengths = torch.arange(1, 21)
    shaped = shape(torch.zeros(20), lengths, torch.ones(20, dtype=torch.bool), made, 20)
    assert shaped.tolist() == pytest.approx(theirs([[0] * length for length in lengths.tolist()]))
    assert shaped.min() == -1


def test_two_functions_in_a_run(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy is the weighted sum of what each was asked for; the working directory's modules are found."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lengths.py").write_text("def characters(rows):\n    return [len(row['response']) for row in rows]\n")
    more = [{"name": "lengths:characters", "weight": -0.1, "scale": "none"}]
    changes = {"reward.weight": 2.0, "reward.more": more, "training.sample_every_steps": 1, "reward.clip": None}
    made = make("ppo", changes={**QUICK, **changes})
    trained(made)
    kept = [json.loads(line) for line in (Path(made.run) / "rollouts.jsonl").read_text().splitlines()]
    for row in kept:
        wanted = 2 * tiny.letters([row])[0] - 0.1 * len(row["response"])
        assert row["score"] == pytest.approx(wanted, rel=1e-5)


def test_one_name_twice_is_refused(make: Make) -> None:
    made = make("ppo", changes={"reward.more": [{"name": "tests.training.tiny:letters"}]})
    assert refused(made) == (
        "RecipeError: reward: tests.training.tiny:letters is named twice. Name it once, with one weight."
    )


# --- Functions -------------------------------------------------------------------------------------------------------


def asked(function: Callable[[list[dict[str, Any]]], Any], **section: Any) -> list[float]:
    return FunctionSource(RewardSource.model_validate({"name": "mine:score", **section}), function).score(ASKED)


def test_a_function_gets_prompts_as_messages_and_answers_one_by_one() -> None:
    seen: list[dict[str, Any]] = []
    assert asked(lambda rows: seen.extend(rows) or range(len(rows))) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert seen[1] == {"prompt": [{"role": "user", "content": "question 3 more"}], "response": "bad 3 no no no"}
    assert [row["response"] for row in seen] == [answer for each in ASKED for answer in each.answers]


NUMBERS: dict[str, Callable[[int], Any]] = {
    "numpy": lambda n: np.arange(n, dtype=np.float32),
    "numpy's own numbers": lambda n: [np.float64(i) for i in range(n)],
    "torch": torch.arange,
    "torch with gradients": lambda n: torch.arange(float(n), requires_grad=True),
    "tensors": lambda n: [torch.tensor(float(i)) for i in range(n)],
    "a tuple": lambda n: tuple(range(n)),
    "a generator": lambda n: (i for i in range(n)),
    "truths": lambda n: [i > 0 for i in range(n)],
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_all_kinds_are_taken(kind: str) -> None:
    wanted = [min(i, 1.0) if kind == "truths" else float(i) for i in range(6)]
    assert asked(lambda rows: NUMBERS[kind](len(rows))) == wanted


def raising(error: Exception) -> Any:
    raise error


# What a function does, and what is said of it.
BROKEN: dict[str, tuple[Callable[[int], Any], str]] = {
    "raises": (lambda n: 1 / 0, "raised ZeroDivisionError: division by zero"),
    "raises several lines": (lambda n: raising(ValueError("a\nb")), "raised ValueError: a b"),
    "leaves": (lambda n: raising(SystemExit(3)), "raised SystemExit: 3"),  # type: ignore[arg-type]
    "NaN": (lambda n: [0.0] * (n - 1) + [float("nan")], "returned nan for answer 4 of 4"),
    "infinity": (lambda n: [float("-inf")] + [0.0] * (n - 1), "returned -inf for answer 1 of 4"),
    "too few": (lambda n: [0.0] * (n - 1), "returned 3 numbers for 4 answers"),
    "too many": (lambda n: [0.0] * (n + 1), "returned 5 numbers for 4 answers"),
    "none": (lambda n: [], "returned 0 numbers for 4 answers"),
    "strings": (lambda n: ["good"] * n, "not a list of numbers"),
    "Nones": (lambda n: [None] * n, "not a list of numbers"),
    "None": (lambda n: None, "returned NoneType, not a list of numbers"),
    "one number": (lambda n: 0.5, "returned float, not a list of numbers"),
    "one tensor": (lambda n: torch.tensor(0.5), "not a list of numbers"),
    "a column": (lambda n: np.zeros((n, 1)), "not a list of numbers"),
    "a late error": (lambda n: (1 / (i - 2) for i in range(n)), "division by zero"),
    "a huge number": (lambda n: [10**400] * n, "mine"),
    "a text of digits": (lambda n: "1" * n, "returned str, not a list of numbers"),
    "names with numbers": (lambda n: dict.fromkeys(range(n), 0.0), "returned dict, not a list of numbers"),
    "more than fp32 holds": (lambda n: [1e39] * n, "returned 1e+39"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_function_that_fails_is_named_with_what_it_did(kind: str) -> None:
    """In one line, which says how to go on."""
    break_it, told = BROKEN[kind]
    with pytest.raises(TrainingError) as raised:
        FunctionSource(RewardSource(name="mine:score"), lambda rows: break_it(len(rows))).score(
            [PromptAnswers(ASKED[0].prompt, ("a", "b", "c", "d"))]
        )
    assert str(raised.value).startswith("reward: mine:score ")
    assert told.replace("mine", "mine:score") in str(raised.value)
    assert str(raised.value).endswith("continue with --resume: everything before this update is saved.")
    assert "\n" not in str(raised.value)


LATER = ("raises", "NaN")


@pytest.mark.parametrize("kind", LATER)
def test_a_run_goes_on_once_its_function_is_corrected(kind: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails in the second of three updates; what comes of it is what an uninterrupted run gives."""
    changes = {**QUICK, "training.max_steps": 3, "reward.scale": "running", "kl.controller": "adaptive"}
    whole, made = make("ppo", "whole", changes), make("ppo", "broken", changes)
    tiny.train(whole)
    real, calls = tiny.letters, itertools.count(1)
    with monkeypatch.context() as patched:
        patched.setattr(tiny, "letters", lambda rows: BROKEN[kind][0](len(rows)) if next(calls) == 2 else real(rows))
        said = refused(made)
    assert said.startswith("RewardError: reward: tests.training.tiny:letters ")
    assert BROKEN[kind][1] in said
    manifest = tiny.manifest(Path(made.run))
    assert (manifest["status"], f"RewardError: {manifest['ended_by']}") == ("failed", said)
    assert "resuming after step 1\n" in tiny.train(made, resume=True)
    assert not tiny.differences(Path(whole.run), Path(made.run))


@pytest.mark.parametrize("every", [1, 3])
def test_a_reward_that_fails_in_an_evaluation_loses_nothing(
    every: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the one after update 3; --resume makes up for it first. Calls: step 0, updates 1 to 3, evaluations between."""
    changes = {
        **QUICK,
        "data.heldout_fraction": 0.2,
        "rollout.heldout_prompts": 3,
        "training.max_steps": 4,
        "training.evaluate_every_steps": every,
        "training.save_every_steps": None,
    }
    whole, made = make("ppo", "whole", changes), make("ppo", "broken", changes)
    tiny.train(whole)
    real, calls = tiny.letters, itertools.count(1)
    failing = {1: 7, 3: 5}[every]
    with monkeypatch.context() as patched:
        patched.setattr(tiny, "letters", lambda rows: None if next(calls) == failing else real(rows))
        assert refused(made).startswith("RewardError: reward: tests.training.tiny:letters returned NoneType")
    assert [row["step"] for row in tiny.metrics(Path(made.run)) if row["kind"] == "train"] == [1, 2, 3]
    assert "resuming after step 3\n" in tiny.train(made, resume=True)
    assert not tiny.differences(Path(whole.run), Path(made.run))


def test_a_reward_model_whose_scores_are_no_numbers_is_a_failing_reward() -> None:
    class Broken(Judge):
        def score(self, questions: Any) -> Any:
            raise ModelError("a score is nan", "Look at it.")

    with pytest.raises(RewardError, match=r"reward: mine: a score is nan\. Look at it\."):
        ModelSource(RewardSource(name="mine"), Broken(None), "").score(ASKED)  # type: ignore[arg-type]


def test_what_is_found_to_be_wrong_before_the_first_update_leaves_nothing_in_the_way(
    make: Make, tmp_path: Path
) -> None:
    """Pairs that are none: found once the model is there; the corrected recipe of the same name runs."""
    pairs = tiny.write_rows(tmp_path / "pairs.jsonl", [{"prompt": "Q", "chosen": "A"}])
    changes = {**QUICK, "data.heldout_fraction": 0.2, "rollout.heldout_prompts": 3, "report.samples": 1}
    assert refused(make("ppo", changes={**changes, "heldout_pairs": str(pairs)})).startswith("DataError: ")
    tiny.write_rows(pairs, tiny.pairs(3))
    made = make("ppo", changes={**changes, "heldout_pairs": str(pairs)})
    tiny.train(made)
    assert tiny.manifest(Path(made.run))["status"] == "finished"


def test_a_judge_that_nobody_measured_is_told_in_deviations_of_its_first_evaluation(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function stands in for a reward model of the hub."""
    monkeypatch.setattr(FunctionSource, "_default_scale", lambda self: "running")
    judge = "tests.training.test_reward_hacking:other_letters"
    changes = {**QUICK, "data.heldout_fraction": 0.3, "rollout.heldout_prompts": 4, "reward.judge": judge}
    made = make("ppo", changes=changes)
    tiny.train(made)
    told = json.loads((Path(made.run) / "evaluation.json").read_text())["heldout"]
    counts = other_letters([{"response": row["before_text"]} for row in told["responses"]])
    mean, std = statistics.fmean(counts), statistics.stdev(counts)
    assert std not in (0.0, 1.0)
    before = [(count - mean) / std for count in counts]
    assert [row["before_judge"] for row in told["responses"]] == pytest.approx(before, abs=1e-6)
    after = other_letters([{"response": row["after_text"]} for row in told["responses"]])
    now = [(count - mean) / std for count in after]
    assert [row["after_judge"] for row in told["responses"]] == pytest.approx(now, abs=1e-6)


def test_what_is_optimised_is_no_judge(make: Make) -> None:
    assert refused(make("ppo", changes={"reward.judge": "tests.training.tiny:letters"})) == (
        "RecipeError: reward.judge: tests.training.tiny:letters is also optimised. Name another one, or none."
    )


def test_a_function_that_hangs_is_left_behind(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, made = (make("ppo", name, {**QUICK, "reward.timeout_s": 0.7}) for name in ("whole", "hanging"))
    tiny.train(whole)
    real, calls, waiting = tiny.letters, itertools.count(1), threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(tiny, "letters", lambda rows: (next(calls) == 2 and waiting.wait(60)) or real(rows))
        said = refused(made)
    waiting.set()
    assert said.startswith("RewardError: reward: tests.training.tiny:letters did not return within 0.7 s. ")
    assert tiny.manifest(Path(made.run))["status"] == "failed"
    tiny.train(made, resume=True)
    assert not tiny.differences(Path(whole.run), Path(made.run))


def test_all_before_the_update_is_saved(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("ppo", changes={**QUICK, "training.save_every_steps": None})
    real, calls = tiny.letters, itertools.count(1)
    with monkeypatch.context() as patched:
        patched.setattr(tiny, "letters", lambda rows: real(rows) if next(calls) != 2 else None)
        said = refused(made)
    resumed = tiny.train(made, resume=True)
    assert "everything before this update is saved" not in said or "resuming after step 1\n" in resumed


MODULES: dict[str, tuple[str, str, str]] = {
    "no module": ("nowhere_at_all:score", "", r"ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "no function": ("mine_{n}:score", "", r"AttributeError: module 'mine_\d+' has no attribute 'score'"),
    "broken": ("mine_{n}:score", "1 / 0", r"ZeroDivisionError: division by zero"),
    "not Python": ("mine_{n}:score", "def", r"SyntaxError: invalid syntax \(mine_\d+\.py, line 1\)"),
}
COUNT = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """module("mine_{n}:score", text): the name of a function in a new module of the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        named = name.format(n=next(COUNT))
        if "{n}" in name:
            Path(f"{named.partition(':')[0]}.py").write_text(text)
        return named

    return write


@pytest.mark.parametrize("kind", MODULES)
def test_a_function_that_cannot_be_imported(kind: str, make: Make, module: Callable[[str, str], str]) -> None:
    name, text, told = MODULES[kind]
    name = module(name, text)
    said = refused(make("ppo", changes={"reward.name": name}))
    assert said.startswith(f"RecipeError: reward.name: {name} could not be imported (")
    assert re.search(told, said)
    assert said.endswith("Write module:function, with the module in the working directory or installed.")


def test_what_cannot_be_called(make: Make, module: Callable[[str, str], str]) -> None:
    name = module("mine_{n}:score", "score = [1, 2]")
    assert refused(make("ppo", changes={"reward.name": name})) == (
        f"RecipeError: reward.name: {name} is not a function. Name one that takes a list and returns numbers."
    )


def test_a_reward_that_was_refused_does_not_stand_in_the_way(make: Make, module: Callable[[str, str], str]) -> None:
    """Put right, under the same name or another, the same run begins."""
    made = make("ppo", changes={**QUICK, "reward.name": module("mine_{n}:score", "")})
    refused(made)
    right = make("ppo", changes=QUICK)
    assert right.run == made.run
    tiny.train(right)
    assert tiny.manifest(Path(right.run))["status"] == "finished"


# --- Reward models ---------------------------------------------------------------------------------------------------


def alone(name: Path | str) -> list[float]:
    """What a reward model says of ASKED, loaded by itself in fp32."""
    model = load_reward(ModelSection(name=str(name), dtype="float32", device="cpu"))
    given = model.score(Question(each.prompt, each.answers) for each in ASKED)
    return [score.score for found in given for score in found or ()]


POLICIES: dict[str, dict[str, Any]] = {
    "a fresh adapter": {},
    "an SFT adapter": {"model.name": "SFT"},
    "an SFT adapter and a critic's": {"model.name": "SFT", "ppo.critic": "adapter"},
    "another kind of adapter": {"lora.r": 8, "lora.targets": ["q_proj", "down_proj"]},
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_reward_run_on_the_policys_base_is_held_once_and_scores_as_alone(
    policy: str, make: Make, sft_run: Path, reward_run: Path
) -> None:
    """Bit for bit, before the policy has learned anything and after."""
    changes = {name: str(sft_run) if value == "SFT" else value for name, value in POLICIES[policy].items()}
    made = make("ppo", changes={**QUICK, **changes, "reward.name": str(reward_run)})
    assert isinstance(made, PpoRecipe)
    begun = PpoStage(made).load(made.model)
    before = load_rewards(made, begun, Display(Console(file=io.StringIO())))
    assert before.sources[0].score(ASKED) == alone(reward_run)
    objective, said = trained(made)
    assert objective.rewards.sources[0].score(ASKED) == alone(reward_run)
    assert f"reward {reward_run}: an adapter on the policy's base model, which is loaded once\n" in said
    assert "loaded beside" not in said
    assert objective.rewards.sources[0].scale == "std"
    weights = [p for p in objective.policy.model.parameters() if p.numel() > 258 * 30]
    assert len(weights) == 2  # embeddings and head, once each


def test_a_policy_on_its_reward_models_base_trains_as_with_the_model_beside_it(
    make: Make, reward_run: Path, tmp_path: Path
) -> None:
    """The same run, but for where the reward model's weights lie."""
    copied = shutil.copytree(reward_run, tmp_path / "copied")
    (copied / "model" / "prefine.json").unlink()
    shared = make("ppo", "shared", {**QUICK, "reward.name": str(reward_run)})
    beside = make("ppo", "beside", {**QUICK, "reward.name": str(copied)})
    trained(shared)
    _, said = trained(beside)
    assert "loaded as a separate model (it was trained on another base model)" in said
    mine, theirs = tiny.weights(Path(shared.run)), tiny.weights(Path(beside.run))
    assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())


@pytest.fixture(scope="module")
def others(
    finished: Callable[..., Path], reward_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, str]]:
    """Reward models that cannot join T's weights, and why."""
    root = tmp_path_factory.mktemp("others")
    base = finished("reward", tiny.save_model(root / "T", seed=8))
    words = finished("reward", tiny.save_model(root / "words", pad="<|pad|>"))
    merge_reward(str(reward_run), root / "merged")
    rounded = shutil.copytree(reward_run, root / "rounded")
    scale = json.loads((rounded / "model" / "reward.json").read_text())
    (rounded / "model" / "reward.json").write_text(json.dumps({**scale, "compute_dtype": "bfloat16"}))
    return {
        "another base": (base, "it was trained on another base model"),
        "another tokenizer": (words, "it was trained on another base model"),
        "a merged model": (root / "merged", "it is a whole model, not an adapter of a reward run"),
        "another type": (rounded, "it computes in bfloat16, the policy in float32"),
    }


@pytest.mark.parametrize("kind", ["another base", "another tokenizer", "a merged model", "another type"])
def test_a_reward_model_that_cannot_join_is_loaded_beside(
    kind: str, make: Make, others: dict[str, tuple[Path, str]]
) -> None:
    name, why = others[kind]
    objective, said = trained(make("ppo", changes={**QUICK, "reward.name": str(name), "reward.scale": "std"}))
    assert f"reward {name}: loaded as a separate model ({why})\n" in said
    if kind != "another type":
        assert objective.rewards.sources[0].score(ASKED) == alone(name)
    told = f"reward {name}: its tokenizer or template differs from the policy's; answers are passed to it as text\n"
    assert (told in said) == (kind == "another tokenizer")


def test_beside_a_policy_that_trains_all_its_weights(make: Make, reward_run: Path) -> None:
    """Its base does not stay what the reward model knew."""
    objective, said = trained(make("ppo", changes={**QUICK, "reward.name": str(reward_run), "lora": None}))
    assert f"reward {reward_run}: loaded as a separate model (the policy trains all its weights, so that its " in said
    assert objective.rewards.sources[0].score(ASKED) == alone(reward_run)


def test_another_template_on_the_same_weights_is_said_and_kept(make: Make, reward_run: Path, tmp_path: Path) -> None:
    """The reward model reads conversations as it was trained to, whatever the policy's look like."""
    dressed = tiny.save_model(tmp_path / "T", template=tiny.CHATML.replace("\\n", " "))
    objective, said = trained(
        make("ppo", changes={**QUICK, "model.name": str(dressed), "reward.name": str(reward_run)})
    )
    assert "which is loaded once" in said
    assert "its tokenizer or template differs from the policy's; answers are passed to it as text" in said
    assert objective.rewards.sources[0].score(ASKED) == alone(reward_run)


def test_several_models_and_a_function_are_added(make: Make, reward_run: Path, others: dict[str, Any]) -> None:
    other = others["another base"][0]
    more = [{"name": str(other), "weight": 0.5}, {"name": "tests.training.tiny:letters", "weight": -1.0}]
    objective, _ = trained(make("ppo", changes={**QUICK, "reward.name": str(reward_run), "reward.more": more}))
    stds = [json.loads((run / "model" / "reward.json").read_text())["std"] for run in (reward_run, other)]
    parts = objective.rewards.score(ASKED)
    assert [parts[str(run)] for run in (reward_run, other)] == [alone(reward_run), alone(other)]
    lengths, ended = torch.ones(6, dtype=torch.int64), torch.ones(6, dtype=torch.bool)
    letters = tiny.letters([{"response": answer} for each in ASKED for answer in each.answers])
    wanted = [
        a / stds[0] + 0.5 * b / stds[1] - c for a, b, c in zip(alone(reward_run), alone(other), letters, strict=True)
    ]
    assert objective.rewards.combined(parts, lengths, ended).proxy.tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("field", ["reward.name", "reward.more[0].name", "reward.judge"])
def test_what_is_no_reward_model(field: str, make: Make, sft_run: Path, model: Path) -> None:
    """The error names the field that is to be changed."""

    def named(name: str) -> dict[str, Any]:
        return {"reward.more": [{"name": name}]} if "more" in field else {field: name}

    for name in (sft_run, model):
        said = refused(make("ppo", f"on-{name.name}", {**QUICK, "data.heldout_fraction": 0.2, **named(str(name))}))
        assert said.startswith(f"ModelError: {field}: ")
        assert "has no score head" in said
    assert refused(make("ppo", "nowhere", named("./nowhere"))).startswith(
        f"ModelError: {field}: there is no folder './nowhere'. "
    )
    assert refused(make("ppo", "nothing", named("nothing_here:score"))).startswith(
        f"RecipeError: {field}: nothing_here:score could not be imported ("
    )


def test_an_answer_that_is_too_long_for_the_reward_model(make: Make, reward_run: Path) -> None:
    """Bytes that are no text become three bytes each: 150 tokens of the policy are more than 160 of the other's."""
    changes = {"reward.name": str(reward_run), "rollout.max_new_tokens": 150, "data.max_length_tokens": 300}
    made = make("ppo", changes={**QUICK, **changes})
    said = refused(made)
    begin = rf"RewardError: reward: {reward_run} cannot score an answer of \d+ characters: completion "
    assert re.match(begin, said)
    assert tiny.manifest(Path(made.run))["status"] == "failed"


# --- Readiness -------------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(reward_run: Path, tmp_path: Path) -> Callable[[Any], Path]:
    """judged(...): the reward run with another report: None for none, a text as it is, a verdict with two findings."""

    def copied(report: Any) -> Path:
        run = shutil.copytree(reward_run, tmp_path / "judged", dirs_exist_ok=True)
        path = run / "readiness.json"
        path.unlink(missing_ok=True)
        findings = [
            {"name": "held-out accuracy", "level": report, "found": "48 % of 50"},
            {"name": "held-out pairs", "level": "go", "found": "50 pairs"},
            {"name": "blank answers", "level": report, "found": "beat 60 %"},
        ]
        verdicts = ("go", "caution", "no-go")
        if report is not None:
            path.write_text(json.dumps({"verdict": report, "findings": findings}) if report in verdicts else report)
        return run

    return copied


REASONS = "held-out accuracy: 48 % of 50; blank answers: beat 60 %"


def test_a_model_that_is_not_fit_is_refused_and_forced(make: Make, judged: Callable[[Any], Path]) -> None:
    run = judged("no-go")
    changes = {**QUICK, "reward.name": str(run)}
    assert refused(make("ppo", changes=changes)) == (
        f"ModelError: reward.name: {run} is not fit for PPO according to its readiness report ({REASONS}). See "
        f"{run}/readiness.html and train a better one, or add --force to use it anyway."
    )
    forced = make("ppo", "forced", changes)
    _, said = trained(forced, force=True)
    assert f"reward {run}: readiness no-go ({REASONS}), used because of --force\n" in said
    warning = f"The reward model {run} is not fit for PPO according to its readiness report ({REASONS}). "
    warning += "It was used because of --force."
    manifest = tiny.manifest(Path(forced.run))
    assert (manifest["warnings"], manifest["overridden"]) == ([warning], [warning])


def test_a_runs_model_named_by_its_own_folder_is_as_unfit(make: Make, judged: Callable[[Any], Path]) -> None:
    said = refused(make("ppo", changes={**QUICK, "reward.name": str(judged("no-go") / "model")}))
    assert f"is not fit for PPO according to its readiness report ({REASONS})" in said


def test_force_on_the_command_line(make: Make, judged: Callable[[Any], Path], tmp_path: Path) -> None:
    """A run that was forced goes on without being forced again."""
    changes = {**QUICK, "reward.name": str(judged("no-go"))}
    refusing = tiny.Command("ppo", tiny.written(make("ppo", "refused", changes), tmp_path / "refused.yaml"))
    code, said = refusing.end()
    last = said.splitlines()[-1]
    assert (code, last.startswith("error: reward.name: "), REASONS in last) == (2, True, True), said
    assert "Traceback" not in said
    made = make("ppo", "forced", changes)
    assert not Path(made.run).with_name("refused").exists()
    file = tiny.written(made, tmp_path / "forced.yaml")

    def stopping() -> None:
        from prefine.training.loop.loop import Loop

        real = Loop.__post_init__

        def asked_to(loop: Loop) -> None:
            real(loop)
            loop.stop_requested = lambda: loop.position.step == 1

        Loop.__post_init__ = asked_to  # type: ignore[method-assign]

    code, said = tiny.Command("ppo", file, "--force", prepare=stopping).end()
    assert (code, "used because of --force" in said) == (130, True), said
    code, said = tiny.Command("ppo", file, "--force", "--resume").end()
    assert (code, "resuming after step 1" in said) == (0, True), said


def test_resuming_a_start_that_was_refused_forces_nothing(make: Make, judged: Callable[[Any], Path]) -> None:
    made = make("ppo", changes={**QUICK, "reward.name": str(judged("no-go"))})
    assert isinstance(made, PpoRecipe)
    refused(made)
    with pytest.raises(PrefineError):
        run_ppo(made, True, Console(file=io.StringIO()))


def test_what_else_the_report_says_is_said(make: Make, judged: Callable[[Any], Path]) -> None:
    for report, told in (
        ("go", ": readiness go\n"),
        ("caution", f": readiness caution ({REASONS})\n"),
        (None, " has no readiness report; run: prefine reward check "),
    ):
        run = judged(report)
        _, said = trained(make("ppo", f"{report}", {**QUICK, "training.max_steps": 1, "reward.name": str(run)}))
        assert f"reward {run}{told}" in said


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"verdict": "go"}', '{"verdict": "splendid", "findings": []}']
)
def test_a_damaged_report_is_an_error(text: str, make: Make, judged: Callable[[Any], Path]) -> None:
    run = judged(text)
    assert refused(make("ppo", changes={"reward.name": str(run)})) == (
        f"ModelError: reward.name: {run}/readiness.json is not a valid readiness report. "
        f"Run: prefine reward check {run}"
    )


def test_an_unfit_judge_is_refused_as_the_judge(make: Make, judged: Callable[[Any], Path]) -> None:
    changes = {**QUICK, "data.heldout_fraction": 0.2, "reward.judge": str(judged("no-go"))}
    said = refused(make("ppo", changes=changes))
    assert REASONS in said
