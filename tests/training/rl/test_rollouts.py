"""Rollouts: what is written, measured, split and kept of an update's answers."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from prefine.data.tokens.store import StoreWriter, TokenStore
from prefine.data.tokens.trees import TokenTree, collate, parts_of
from prefine.generation import writer as writer_module
from prefine.models.actor_critic import ActorCritic
from prefine.models.forward.packed import LanguageHead, PackedModel
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.sections import ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.training.rl import rollouts as rollout
from prefine.training.rl.measure import measure
from prefine.training.rl.metrics import text_metrics
from prefine.training.rl.rewards import Scored
from prefine.training.rl.rollouts import Generations, Rollouts, Timings, minibatches, prompt_answers, seed_of
from prefine.training.rl.stage import PpoStage
from prefine.training.run.run_stage import run_stage
from tests.training import tiny

Make = Callable[..., StageRecipe]
STOP = tiny.make_tokenizer().eos_token_id


# --- Values ----------------------------------------------------------------------------------------------------------

tokens = st.lists(st.integers(0, 255), min_size=1, max_size=6)
# Any fp32 number that a model may give; a checkpoint must carry each of them exactly.
numbers = st.floats(width=32, allow_nan=False)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollouts:
    """One to four prompts of one to three answers each."""
    prompts, each = draw(st.lists(tokens, min_size=1, max_size=4)), draw(st.integers(1, 3))
    answers = [tuple(draw(st.lists(tokens, min_size=each, max_size=each))) for _ in prompts]
    lengths = [len(answer) for own in answers for answer in own]

    def column() -> Tensor:
        return torch.tensor(draw(st.lists(numbers, min_size=sum(lengths), max_size=sum(lengths))))

    def of_answers(strategy: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(strategy, min_size=len(lengths), max_size=len(lengths)))

    return Rollouts(
        tuple(
            TokenTree(p, own, (None,) * each, i, apart=True)
            for i, (p, own) in enumerate(zip(prompts, answers, strict=True))
        ),
        tuple(draw(st.integers(0, 10**9)) for _ in prompts),
        tuple(of_answers(st.text(max_size=3))),
        torch.tensor(lengths),
        torch.tensor(of_answers(st.booleans())),
        Scored(
            torch.tensor(of_answers(numbers)),
            torch.tensor(of_answers(numbers)),
            {"a": 0.5, "b:c": draw(st.floats(allow_nan=False))},
            {name: of_answers(st.floats(allow_nan=False, allow_infinity=False)) for name in ("a", "b:c")},
        ),
        *(column() for _ in range(4)),
    )


@settings(deadline=None, max_examples=50)
@given(rollouts())
def test_a_checkpoint_gives_them_back_as_they_were(held: Rollouts) -> None:
    """Through JSON and tensors, to the last bit."""
    through_json = (json.loads(json.dumps(state)) for state in (held.state(), held.scored.state()))
    back = Rollouts.from_state(held.tensors(), *through_json)
    assert back.trees == held.trees
    assert (back.rows, back.texts, back.scored.scores) == (held.rows, held.texts, held.scored.scores)
    assert back.scored.shares == held.scored.shares
    for name in ("proxy", "shaped"):
        assert torch.equal(getattr(back.scored, name), getattr(held.scored, name))
    for name in ("lengths", "ended", "logprobs", "reference", "entropy", "values"):
        assert torch.equal(getattr(back, name), getattr(held, name))
        assert getattr(back, name).dtype == getattr(held, name).dtype


@settings(deadline=None, max_examples=50)
@given(rollouts(), st.data())
def test_places_are_where_a_trees_tokens_lie(held: Rollouts, data: st.DataObject) -> None:
    """Token by token: whatever trees are asked for, in whatever order."""
    flat = [(t, a, i) for t, tree in enumerate(held.trees) for a, x in enumerate(tree.answers) for i in range(len(x))]
    asked = data.draw(st.lists(st.sampled_from(held.trees), min_size=1, max_size=5))
    budget = data.draw(st.integers(1, 30))
    batch = collate([part for tree in asked for part in parts_of(tree, budget)])
    found = [flat[place] for place in held.places(batch.answers_of_rows).tolist()]
    assert found == [token for tree in asked for token in flat if token[0] == tree.row]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9), st.integers(0, 9), st.integers(0, 3))
def test_minibatches_are_equal_parts_of_an_order_of_their_own(
    trees: int, count: int, seed: int, update: int, epoch: int
) -> None:
    parts = minibatches(trees, count, seed, update, epoch)
    assert sorted(place for part in parts for place in part) == list(range(trees))
    assert len(parts) == min(count, trees)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == minibatches(trees, count, seed, update, epoch)


def test_epochs_updates_and_seeds_have_other_orders() -> None:
    orders = [minibatches(20, 1, *where)[0] for where in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
    assert len({tuple(order) for order in orders}) == 4


parts = st.lists(st.one_of(st.integers(0, 99), st.text(max_size=3)), min_size=1, max_size=4)


@given(parts, parts)
def test_seeds_depend_on_all_of_their_parts_and_on_nothing_else(one: list[int | str], other: list[int | str]) -> None:
    assert (seed_of(*one) == seed_of(*other)) == (one == other)
    assert 0 <= seed_of(*one) < 2**56


def test_seeds_are_the_same_in_every_release() -> None:
    """A resumed run draws the numbers that the one before it would have drawn."""
    assert seed_of(0, 0, 0, 0) == 47583566798767485
    assert seed_of(0, "held-out", 3, 0) != seed_of(0, 0, 3, 0)


def test_answers_go_to_rewards_with_their_own_prompts_and_columns(tmp_path: Path) -> None:
    """Two answers each to rows 1 and 0 of a store."""
    with StoreWriter(tmp_path / "store.arrow") as writer:
        for number in range(2):
            said = [{"role": "user", "content": f"question {number}"}]
            row = {"prompt": said, "extra": {"gold": number}, "id": None if number else "first"}
            writer.add(TokenTree([5], (), ()), json.dumps(row))
    store = TokenStore(tmp_path / "store.arrow")
    asked = prompt_answers(Generations([], ["a", "b", "c", "d"], [True] * 4), store, [1, 0])
    assert [each.prompt[0].content for each in asked] == ["question 1", "question 0"]
    assert [each.answers for each in asked] == [("a", "b"), ("c", "d")]
    assert [each.other_columns() for each in asked] == [{"gold": 1}, {"gold": 0, "id": "first"}]
    assert prompt_answers(Generations([], [], []), store, []) == []


def test_how_answers_look_by_hand() -> None:
    """Four answers: one blank, one stuck on a token, one of two different tokens, one of a single token."""
    trees = [TokenTree([0], ([STOP], [7] * 9), (None,) * 2), TokenTree([0], ([1, 2], [1]), (None,) * 2)]
    found = text_metrics(["", "7" * 9, "ab", "a"], trees, [True, False, False, True])
    assert found == {
        "response_tokens": 13 / 4,
        "ended": 0.5,
        "blank": 0.25,
        "stuck": 0.25,
        "looping": 0.0,
        "degenerate": 0.5,
        "degenerate_count": 2,
        "distinct_1": 4 / 13,  # STOP, 7, 1, 2
        "distinct_2": 2 / 9,  # eight times (7, 7), and (1, 2)
    }


def test_phases_add_up() -> None:
    timings = Timings({"train": 1.0})
    with pytest.raises(ZeroDivisionError), timings.of("train"):
        raise ZeroDivisionError  # what failed took its time, too
    assert 1.0 < timings.seconds["train"] < 2.0


# --- Written and measured --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    return load_model(ModelSection(name=str(model), dtype="float32", device="cpu"), None, trainable=False)


def policy_of(loaded: LoadedModel, temperature: float) -> PackedModel:
    loaded.packed.head = ActorCritic(LanguageHead(temperature))
    return loaded.packed


def prompts(count: int) -> list[TokenTree]:
    """Of uneven lengths."""
    words = tiny.make_tokenizer()
    return [TokenTree(words.encode(f"{'say ' * (i % 3)}{i}"), (), (), 10 + i) for i in range(count)]


def recipe(make: Make, changes: dict[str, Any] | None = None) -> PpoRecipe:
    made = make("ppo", changes=changes)
    assert isinstance(made, PpoRecipe)
    return made


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_what_is_written_depends_on_prompt_and_seed_alone(slots: int, make: Make, loaded: LoadedModel) -> None:
    """Not on how many are written at once, nor on what else is."""
    policy = policy_of(loaded, 0.7)

    def write(trees: Sequence[TokenTree], made: PpoRecipe) -> Generations:
        seeds = {tree.row: i for i, tree in enumerate(prompts(5))}
        return rollout.generate_answers(
            policy, loaded.template, made, trees, lambda place, sample: seed_of(seeds[trees[place].row], sample), 2
        )

    made = recipe(make, {"rollout.temperature": 0.7, "rollout.slots": slots})
    together = write(prompts(5), made)
    alone = [write([tree], made) for tree in prompts(5)]
    assert [tree.answers for tree in together.trees] == [each.trees[0].answers for each in alone]
    assert together.texts == [text for each in alone for text in each.texts]
    assert together.ended == [ended for each in alone for ended in each.ended]
    assert len({tree.answers for tree in together.trees}) == 5
    assert all(tree.answers[0] != tree.answers[1] for tree in together.trees)
    assert together.lengths == [len(answer) for tree in together.trees for answer in tree.answers]


@torch.no_grad()
def by_transformers(loaded: LoadedModel, tree: TokenTree, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of a tree's answers' tokens, each answer alone."""
    from transformers import AutoModelForCausalLM

    alone: Any = AutoModelForCausalLM.from_pretrained(loaded.location.base, dtype=torch.float32).eval()
    logprobs, entropies = [], []
    for answer in tree.answers:
        every = alone(input_ids=torch.tensor([[*tree.prompt, *answer]])).logits[0] / temperature
        every = every.log_softmax(-1)[len(tree.prompt) - 1 : -1]
        logprobs.append(every[torch.arange(len(answer)), torch.tensor(answer)])
        entropies.append(-(every.exp() * every).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def test_measured_are_the_temperatures_own_logprobs_and_entropies(loaded: LoadedModel) -> None:
    """Against transformers on one answer at a time, whatever they are computed together with."""
    policy = policy_of(loaded, 0.7)
    trees = [
        TokenTree(t.prompt, ([5, 6, STOP], [9] * (1 + i)), (None,) * 2, t.row, apart=True)
        for i, t in enumerate(prompts(4))
    ]
    policy.train()
    whole = measure(policy, lambda batch: batch.targets.float(), [trees], 10_000)
    split = measure(policy, lambda batch: batch.targets.float(), [trees[:1], trees[1:]], 16)
    assert policy.training
    for tree in trees:
        logprobs, entropy = by_transformers(loaded, tree, 0.7)
        for found in (whole[tree.row], split[tree.row]):
            torch.testing.assert_close(found["logprobs"], logprobs, rtol=0, atol=1e-5)
            torch.testing.assert_close(found["entropy"], entropy, rtol=0, atol=1e-5)
            assert found["values"].tolist() == [0.0] * 3 + [0.0] * (len(logprobs) - 3)
            assert found["reference"].tolist() == [float(t) for answer in tree.answers for t in answer]


def test_tokens_are_drawn_from_the_distribution_that_is_measured(make: Make, loaded: LoadedModel) -> None:
    """At the temperature, so that the mean of -log p is the entropy: of 600 draws, to four standard errors."""
    policy = policy_of(loaded, 0.3)
    made = recipe(make, {"rollout.temperature": 0.3, "rollout.max_new_tokens": 1})
    written = rollout.generate_answers(
        policy, loaded.template, made, prompts(1), lambda _, sample: seed_of(sample), 600
    )
    (found,) = measure(policy, lambda batch: policy(batch).logprobs, [written.trees], 10_000).values()
    surprise = -found["logprobs"]
    error = float(surprise.std()) / math.sqrt(len(surprise))
    assert error < 0.1
    assert float(surprise.mean()) == pytest.approx(float(found["entropy"][0]), abs=4 * error)
    assert float(found["entropy"][0]) < 4.5  # at temperature 1 it is 5.4


# --- The end of turn -------------------------------------------------------------------------------------------------

SCRIPTS = {"first": [STOP], "last": [5, 6, STOP], "none": [5, 6, 7]}


def writes(script: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model writes these tokens from now on, all answers in step."""
    real, calls = writer_module.choose, iter(range(10_000))

    def chosen(logits: Tensor, rows: Any) -> tuple[Tensor, Tensor]:
        token, logprobs = script[next(calls) % len(script)], real(logits, rows)[1]
        return torch.full((len(rows),), token), logprobs

    monkeypatch.setattr(writer_module, "choose", chosen)


@pytest.mark.parametrize("missing_eos", ["none", "penalty", "replace"])
@pytest.mark.parametrize("end", SCRIPTS)
def test_an_answer_without_its_end_of_turn(
    end: str, missing_eos: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Score 0.5, 10 less for 100 tokens; a missing end costs 2, or makes it -2. Prompts are full of ends of turns."""
    script = SCRIPTS[end]
    writes(script, monkeypatch)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(tiny, "letters", lambda rows: seen.extend(rows) or [0.5] * len(rows))
    changes: dict[str, Any] = {"reward.missing_eos": missing_eos, "reward.length_penalty": 10.0}
    changes |= {} if missing_eos == "none" else {"reward.missing_eos_value": 2.0}
    changes |= {"rollout.max_new_tokens": 3, "rollout.slots": 64, "training.max_steps": 1, "report.samples": 0}
    made = recipe(make, {**tiny.UNGUARDED, **changes, "training.sample_every_steps": 1})
    run_stage(PpoStage(made), False, Console(file=io.StringIO()))
    shaped = 0.5 - len(script) / 10
    wanted = {"none": shaped, "penalty": shaped - 2, "replace": -2.0}[missing_eos] if end == "none" else shaped
    train = next(row for row in tiny.metrics(Path(made.run)) if row["kind"] == "train")
    assert (train["ended"], train["response_tokens"]) == (float(end != "none"), len(script))
    assert train["reward"] == pytest.approx(wanted, abs=1e-6)
    assert train["score"] == 0.5
    assert train["blank"] == (end == "first")
    assert {row["response"] for row in seen} == {{"first": "", "last": "&'", "none": "&'("}[end]}
    kept = [json.loads(line) for line in (Path(made.run) / "rollouts.jsonl").read_text().splitlines()]
    assert {(row["ended"], row["tokens"]) for row in kept} == {(end != "none", len(script))}
    store = TokenStore(Path(made.run) / "data" / "train.arrow")
    assert all(STOP in tree.prompt for tree in store)
