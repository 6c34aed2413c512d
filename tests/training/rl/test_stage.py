"""PPO, RLOO and GRPO on T: what learns and what must not, what an update says of itself, and what comes out."""

from __future__ import annotations

import io
import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefine.data.tokens.store import TokenStore
from prefine.data.tokens.trees import PackedBatch, TokenTree, collate
from prefine.errors import TrainingError
from prefine.generation.answers import write_answers
from prefine.models.forward.packed import LanguageHead
from prefine.models.loading.load import load_model
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.sections import ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.training.loop.optimiser_step import OptimiserStep
from prefine.training.rl import update
from prefine.training.rl.policy import Policy
from prefine.training.rl.stage import PpoObjective, PpoStage
from prefine.training.run.session import Session
from tests.training import tiny

Make = Callable[..., StageRecipe]
QUICK = {**tiny.UNGUARDED, "report.samples": 0, "training.save_every_steps": None, "ppo.max_kl": None}
QUICK |= {"training.evaluate_every_steps": None, "training.sample_every_steps": None, "rollout.heldout_prompts": 2}


# The critic's linear layer among the parameters of the model.
VALUE_HEAD = "head.value.linear"


@dataclass
class Watched:
    """A finished run's objective, and what was there before its first step: all weights, the reference's words."""

    objective: PpoObjective
    before: dict[str, Tensor]
    reference: Tensor
    learning: set[str]

    @property
    def now(self) -> dict[str, Tensor]:
        return dict(self.objective.policy.model.state_dict())

    @property
    def moved(self) -> set[str]:
        return {name for name, weight in self.now.items() if not torch.equal(weight, self.before[name])}


def watched(made: StageRecipe, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Run it to its end; no weight but those that learn may have a gradient at any optimiser step."""
    started: list[Watched] = []
    real_start, real_clip = PpoStage.start, OptimiserStep._clip

    def start(self: PpoStage, session: Session[PpoRecipe]) -> PpoObjective:
        objective = real_start(self, session)
        model = objective.policy.model
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        model.eval()
        reference = by_reference(objective.policy)
        model.train()
        learning = {id(p) for p in objective.parameters().values()}
        named = {name for name, p in model.named_parameters() if id(p) in learning}
        started.append(Watched(objective, before, reference, named))
        return objective

    def clip(self: OptimiserStep) -> float:
        (found,) = started
        named, update = dict(found.objective.policy.model.named_parameters()), found.objective._update
        assert update is not None
        warming = {name for name in found.learning if ".critic." in name or name.startswith(VALUE_HEAD)}
        learning = warming if update.critic_only else found.learning
        assert {name for name, p in named.items() if p.grad is not None} == learning
        return real_clip(self)

    with monkeypatch.context() as patched:
        patched.setattr(PpoStage, "start", start)
        patched.setattr(OptimiserStep, "_clip", clip)
        tiny.train(made)
    (found,) = started
    return found


def rows(made: StageRecipe, kind: str = "train") -> list[dict[str, Any]]:
    return [row for row in tiny.metrics(Path(made.run)) if row["kind"] == kind]


def evaluation(made: StageRecipe) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(made.run) / "evaluation.json").read_text())["heldout"]
    return found


# --- Ratios ----------------------------------------------------------------------------------------------------------


def self_check(made: StageRecipe) -> dict[str, Any]:
    (found,) = [each for each in tiny.manifest(Path(made.run))["self_checks"] if each["name"] == "first ratio"]
    assert isinstance(found, dict)
    return found


HOT: dict[str, dict[str, Any]] = {
    "gae": {"rollout.samples_per_prompt": 3},
    "a critic on an adapter": {"rollout.samples_per_prompt": 3, "ppo.critic": "adapter"},
    "grpo": {"advantage": "grpo", "rollout.samples_per_prompt": 3},
    "all weights": {"lora": None, "rollout.samples_per_prompt": 2},
    "padded rows": {"model.attn_implementation": "sdpa", "rollout.samples_per_prompt": 2},
    "an entropy bonus": {"ppo.entropy_coefficient": 0.1, "rollout.samples_per_prompt": 2},
}


@pytest.mark.parametrize("kind", HOT)
def test_the_first_ratios_are_1(kind: str, make: Make) -> None:
    """Prompts of uneven lengths in several microbatches, a temperature, adapters with dropout."""
    changes = {"rollout.temperature": 0.7, "lora.dropout": 0.5} if "lora" not in HOT[kind] else {}
    changes |= {"training.max_steps": 1, "ppo.epochs": 1, "ppo.minibatches": 1, "rollout.temperature": 0.7}
    made = make("ppo", changes={**QUICK, **changes, **HOT[kind]})
    tiny.train(made)
    (row,) = rows(made)
    assert row["optimiser_steps"] == 1
    assert row["ratio_min"] == pytest.approx(1, abs=1e-5)
    assert row["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert row["clip_fraction"] == 0
    assert self_check(made)["passed"]


def test_in_bf16_the_first_ratios_are_1(make: Make) -> None:
    made = make("ppo", changes={**QUICK, "training.max_steps": 1, "model.dtype": "bfloat16"})
    tiny.train(made)
    assert self_check(made) == {
        "name": "first ratio",
        "value": "0 from 1 at most",
        "rule": "1 within 4.8e-07",
        "passed": True,
    }


@pytest.mark.parametrize(("error", "passes"), [(0.0, True), (5e-6, False)])
def test_the_self_check_is_of_the_first_minibatch(
    error: float, passes: bool, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token measured otherwise than it is trained on."""
    real = update.measure

    def wrong(*args: Any) -> Any:
        found = real(*args)
        next(iter(found.values()))["logprobs"][0] += error
        return found

    monkeypatch.setattr(update, "measure", wrong)
    made = make("ppo", changes={**QUICK, "training.max_steps": 1, "ppo.minibatches": 1})
    if passes:
        tiny.train(made)
        assert self_check(made)["passed"]
        return
    with pytest.raises(
        TrainingError, match=r"self-check failed: first ratio: \S+e-06 from 1 at most, but 1 within 4.8e-07"
    ):
        tiny.train(made)
    assert tiny.manifest(Path(made.run))["status"] == "failed"
    tiny.train(make("ppo", "regardless", {**QUICK, "training.max_steps": 1, "training.self_checks": False}))


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_where_nothing_moves_all_ratios_of_an_update_are_1(critic: str, make: Make) -> None:
    """Every pass over every minibatch, whatever it is computed together with."""
    still = {"training.learning_rate": 1e-30, "ppo.critic_learning_rate": 1e-30, "ppo.critic": critic}
    passes = {"ppo.epochs": 3, "rollout.temperature": 0.7, "training.max_steps": 2, "training.batch_size": 5}
    made = make("ppo", changes={**QUICK, **still, **passes, "lora.dropout": 0.5})
    tiny.train(made)
    for row in rows(made):
        assert row["optimiser_steps"] == 6
        assert row["ratio_min"] == pytest.approx(1, abs=1e-5)
        assert row["ratio_max"] == pytest.approx(1, abs=1e-5)
        assert row["approx_kl"] == pytest.approx(0, abs=1e-9)
        assert row["kl_k1"] == pytest.approx(0, abs=1e-6)


def test_a_critic_on_an_adapter_has_no_dropout_either(make: Make) -> None:
    """Its values are held against those that it gave before, as ratios are."""
    made = make("ppo", changes={"ppo.critic": "adapter", "lora.dropout": 0.5})
    assert isinstance(made, PpoRecipe)
    loaded = PpoStage(made).load(made.model)
    rates = {name: m.p for name, m in loaded.packed.named_modules() if isinstance(m, nn.Dropout) and m.p}
    assert not rates


# --- What learns and what does not -----------------------------------------------------------------------------------


def some_batch() -> PackedBatch:
    """Two answers each to prompts of uneven lengths."""
    draw = torch.Generator().manual_seed(5)
    tokens = [torch.randint(0, 256, (n,), generator=draw).tolist() for n in (9, 4, 7, 3, 5, 8)]
    return collate(
        [TokenTree(tokens[0], (tokens[1], tokens[2]), (None,) * 2), TokenTree(tokens[3], (tokens[4],), (None,))]
    )


@torch.no_grad()
def as_loaded(made: StageRecipe) -> Tensor:
    """Log-probabilities at the recipe's temperature under the model that it names, loaded by itself."""
    assert isinstance(made, PpoRecipe)
    alone = load_model(made.model, None, trainable=False)
    alone.packed.eval()
    logprobs: Tensor = alone.packed(some_batch(), head=LanguageHead(made.rollout.temperature))
    assert logprobs.std() > 0
    return logprobs


@torch.no_grad()
def by_reference(policy: Policy) -> Tensor:
    return policy.reference_logprobs(some_batch())


POLICIES: dict[str, dict[str, Any]] = {
    "a fresh adapter": {},
    "an SFT adapter": {"model.name": "SFT"},
    "an SFT adapter, critic and reward beside it": {"model.name": "SFT", "ppo.critic": "adapter", "reward.name": "RM"},
    "all weights": {"lora": None, "training.learning_rate": 1e-3},
}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_reference_is_the_policy_as_it_was_loaded_and_stays_so(
    policy: str, make: Make, sft_run: Path, reward_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only policy and critic get gradients and move; base, reference and rewards keep their bytes."""
    named = {"SFT": str(sft_run), "RM": str(reward_run)}
    changes = {
        key: named.get(value, value) if isinstance(value, str) else value for key, value in POLICIES[policy].items()
    }
    changes |= {"training.max_steps": 3, "rollout.temperature": 0.7}
    made = make("ppo", changes={**QUICK, **changes})
    run = watched(made, monkeypatch)
    assert torch.equal(by_reference(run.objective.policy), run.reference)
    torch.testing.assert_close(run.reference, as_loaded(made), rtol=0, atol=1e-5)
    assert run.moved == run.learning
    with torch.no_grad():
        assert (run.objective.policy.logprobs(some_batch()) - run.reference).abs().max() > 1e-2
    adapters = {"default", "critic"} if "critic" in policy else {"default"}
    for name in run.learning if "lora" not in changes else ():
        assert name.startswith(VALUE_HEAD) or any(f".{adapter}." in name for adapter in adapters)
    learned = [name for name in run.learning if ".default." in name or "lora" in changes]
    assert all(name in run.moved for name in learned)
    assert learned


@pytest.mark.parametrize(
    "targets",
    [["q_proj", "embed_tokens"], ["lm_head", "v_proj"]],
    ids=["embedding", "head"],
)
@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_the_reference_of_any_adapter_is_that_adapter(targets: list[str], critic: str, make: Make) -> None:
    """Embeddings keep their matrices elsewhere than linear layers do."""
    sft = make("sft", "sft", {"lora.targets": targets, "training.max_steps": 3, "training.learning_rate": 0.1})
    tiny.train(sft)
    made = make("ppo", "ppo", {"model.name": sft.run, "ppo.critic": critic})
    assert isinstance(made, PpoRecipe)
    policy = PpoStage(made).load(made.model).policy
    policy.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(policy.logprobs(some_batch()), as_loaded(made), rtol=0, atol=1e-5)
    torch.testing.assert_close(by_reference(policy), as_loaded(made), rtol=0, atol=1e-5)


WARMING: dict[str, dict[str, Any]] = {
    "shared": {},
    "adapter": {"ppo.critic": "adapter"},
    "all weights": {"lora": None},
    "with an entropy bonus": {"ppo.entropy_coefficient": 0.1},
}


@pytest.mark.parametrize("kind", WARMING)
def test_a_critic_that_warms_up_leaves_the_policy_as_it_is(
    kind: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, while its head moves; after the warm-up all of it does."""
    changes = {**QUICK, "ppo.value_warmup_updates": 2, "training.weight_decay": 0.5, **WARMING[kind]}
    warm = watched(make("ppo", "warm", {**changes, "training.max_steps": 2}), monkeypatch)
    policy = {name for name in warm.learning if ".critic." not in name and not name.startswith(VALUE_HEAD)}
    assert not warm.moved & policy
    assert {f"{VALUE_HEAD}.weight", f"{VALUE_HEAD}.bias"} <= warm.moved
    after = watched(make("ppo", "after", {**changes, "training.max_steps": 4}), monkeypatch)
    assert after.moved == after.learning


def test_the_optimiser_passes_over_the_policy_while_its_critic_warms_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates of two steps, then one of two: fed zeros, the policy's moments would have seen six steps."""
    counts: list[set[float]] = []
    real = OptimiserStep.__call__

    def step(self: OptimiserStep, *arguments: Any) -> dict[str, float]:
        row = real(self, *arguments)
        policy = [p for name, p in self.parameters.items() if not name.startswith("value_head.")]
        counts.append({float(self.optimizer.state[p]["step"]) for p in policy if p in self.optimizer.state})
        return row

    monkeypatch.setattr(OptimiserStep, "__call__", step)
    changes = {"ppo.value_warmup_updates": 2, "training.max_steps": 3, "ppo.epochs": 1}
    tiny.train(make("ppo", changes={**QUICK, **changes}))
    assert counts == [set(), set(), set(), set(), {1.0}, {2.0}]


def test_policy_and_critic_are_clipped_apart_whatever_their_rates(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic's large gradient must not shrink its policy's, also where both have one learning rate."""
    sizes: list[list[int]] = []
    real = OptimiserStep._clip

    def clip(self: OptimiserStep) -> float:
        sizes.append([len(group["params"]) for group in self.optimizer.param_groups])
        return real(self)

    monkeypatch.setattr(OptimiserStep, "_clip", clip)
    for critic in (1e-3, 1e-2):
        tiny.train(make("ppo", f"{critic}", {**QUICK, "training.max_steps": 1, "ppo.critic_learning_rate": critic}))
    assert sizes[0] == sizes[-1]
    assert sorted(sizes[0])[0] == 2  # the head's weight and bias


def test_the_result_is_the_policy_alone(make: Make, reward_run: Path, sft_run: Path) -> None:
    """No critic, no reference, no reward in it; the next stage, and chat, take it as they take any run."""
    changes = {**QUICK, "model.name": str(sft_run), "reward.name": str(reward_run), "ppo.critic": "adapter"}
    made = make("ppo", "ppo", {**changes, "training.max_steps": 2})
    tiny.train(made)
    folder = Path(made.run) / "model"
    assert tiny.weights(Path(made.run)).keys() == tiny.weights(sft_run).keys()
    assert {path.name for path in folder.iterdir()} == {path.name for path in (sft_run / "model").iterdir()}
    whole = make("ppo", "all", {**QUICK, "training.max_steps": 2, "lora": None})
    tiny.train(whole)
    assert not any("value_head" in name for name in tiny.weights(Path(whole.run)))
    for run in (made, whole):
        for stage in ("sft", "dpo", "reward", "ppo"):
            quick = QUICK if stage == "ppo" else {}
            on_it = make(
                stage, f"{stage}-on-{Path(run.run).name}", {**quick, "model.name": run.run, "training.max_steps": 1}
            )
            tiny.train(on_it)
            assert tiny.manifest(Path(on_it.run))["status"] == "finished"

        def speak() -> None:
            sys.stdin = io.StringIO("question 1\n/exit\n")

        code, said = tiny.Command("chat", run.run, "--device", "cpu", "--max-new-tokens", "4", prepare=speak).end()
        assert (code, f"Talking to {run.run}" in said) == (0, True), said


def test_the_saved_policy_writes_what_the_trained_one_wrote(make: Make) -> None:
    made = make("ppo", changes={**QUICK, "training.max_steps": 3, "report.samples": 2})
    tiny.train(made)
    loaded = load_model(ModelSection(name=made.run, dtype="float32", device="cpu"), None, trainable=False)
    samples = [json.loads(line) for line in (Path(made.run) / "samples.jsonl").read_text().splitlines()]
    from prefine.records import Message

    prompts = [loaded.template.prompt_ids(tuple(Message(**m) for m in row["prompt"])) for row in samples]
    answers = write_answers(loaded.packed, loaded.template, prompts, 4, 0.0)
    assert [answer.text for answer in answers] == [row["after"] for row in samples]


# --- Learning --------------------------------------------------------------------------------------------------------


def kind_asked_for(rows: list[dict[str, Any]]) -> list[float]:
    """The share of lower-case letters where the prompt begins with a letter, else that of digits."""

    def share(asked: str, text: str) -> float:
        low, high = ("a", "z") if asked[0].isalpha() else ("0", "9")
        return sum(low <= c <= high for c in text) / max(1, len(text))

    return [share(row["prompt"][-1]["content"], row["response"]) for row in rows]


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_the_optimum_is_learned(advantage: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T writes random bytes; it learns to answer some prompts in letters and others in digits, 95 % of the time."""
    monkeypatch.setattr(tiny, "letters", kind_asked_for)
    prompts = [{"prompt": f"{'123' if i % 2 else 'abc'} {i}"} for i in range(40)]
    changes = {
        "advantage": advantage,
        "data.train": str(tiny.write_rows(tmp_path / "prompts.jsonl", prompts)),
        "training.batch_size": 16,
        "training.epochs": 100,
        "training.max_steps": 32,
        "training.max_tokens_per_microbatch": 4096,
        "training.learning_rate": 6e-3,
        "training.schedule": "cosine",
        "kl.coefficient": 0.0,
        "reward.missing_eos": "none",
        "rollout.samples_per_prompt": 4,
        "rollout.max_new_tokens": 4,
        "rollout.slots": 64,
        "rollout.temperature": 0.25,
        "rollout.heldout_prompts": 8,
    }
    made = make("ppo", changes={**QUICK, **changes})
    tiny.train(made)
    train, (before, after) = rows(made), rows(made, "heldout")
    assert train[0]["score"] < 0.1
    assert before["score"] < 0.1
    assert statistics.fmean(row["score"] for row in train[-4:]) >= 0.95
    assert after["score"] >= 0.95


def test_a_pull_towards_the_reference_keeps_the_policy_near_it(make: Make) -> None:
    reached = {}
    for coefficient in (0.0, 1.0):
        changes = {**QUICK, "training.epochs": 5, "training.max_steps": 10, "training.learning_rate": 3e-3}
        made = make("ppo", f"{coefficient}", {**changes, "kl.coefficient": coefficient})
        tiny.train(made)
        reached[coefficient] = statistics.fmean(row["kl_k3"] for row in rows(made)[-4:])
    assert reached[1.0] < 0.2 * reached[0.0]


def test_gradient_checkpointing_computes_the_same(make: Make) -> None:
    found = []
    for checkpointing in (False, True):
        changes = {
            **QUICK,
            "training.max_steps": 2,
            "training.learning_rate": 1e-3,
            "lora.dropout": 0.0,
        }
        made = make("ppo", f"{checkpointing}", {**changes, "model.gradient_checkpointing": checkpointing})
        tiny.train(made)
        found.append([row["value_loss"] for row in rows(made)] + [row["grad_norm"] for row in rows(made)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# --- What an update says of itself -----------------------------------------------------------------------------------


def test_an_updates_figures_are_those_of_its_answers(make: Make) -> None:
    """Means over all answers of an update, told from those kept in rollouts.jsonl, which here are all."""
    changes = {"training.sample_every_steps": 1, "training.max_steps": 2, "reward.length_penalty": 1.0}
    made = make("ppo", changes={**QUICK, **changes, "rollout.samples_per_prompt": 2, "kl.coefficient": 0.5})
    tiny.train(made)
    kept = [json.loads(line) for line in (Path(made.run) / "rollouts.jsonl").read_text().splitlines()]
    for row in rows(made):
        mine = [answer for answer in kept if answer["step"] == row["step"]]
        assert len(mine) in (6, 8)  # two answers each to an update's three or four prompts
        assert [answer["score"] for answer in mine] == pytest.approx(tiny.letters([_row(a) for a in mine]))
        for answer in mine:
            shaped = answer["score"] - answer["tokens"] / 100 - (not answer["ended"])
            assert answer["reward"] == pytest.approx(shaped, rel=1e-5)
        assert row["score"] == pytest.approx(statistics.fmean(a["score"] for a in mine))
        assert row["response_tokens"] == statistics.fmean(a["tokens"] for a in mine)
        assert row["ended"] == statistics.fmean(a["ended"] for a in mine)
        assert row["kl_sequence"] == pytest.approx(row["kl_k1"] * row["response_tokens"], rel=1e-4, abs=1e-6)
        shaped_mean = statistics.fmean(a["reward"] for a in mine)
        assert row["reward"] == pytest.approx(shaped_mean - 0.5 * row["kl_sequence"], rel=1e-5)
        assert row["tokens"] > sum(a["tokens"] for a in mine) * row["optimiser_steps"] / 2


def _row(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": answer["prompt"], "response": answer["response"]}


def test_only_some_answers_are_kept_and_of_some_updates(make: Make) -> None:
    changes = {"training.sample_every_steps": 2, "training.max_steps": 5, "rollout.samples_per_prompt": 3}
    made = make("ppo", changes={**QUICK, **changes})
    tiny.train(made)
    kept = [json.loads(line)["step"] for line in (Path(made.run) / "rollouts.jsonl").read_text().splitlines()]
    assert kept == [2] * 8 + [4] * 8


# --- Held-out answers ------------------------------------------------------------------------------------------------

STILL = {"training.learning_rate": 1e-30, "ppo.critic_learning_rate": 1e-30}


def test_each_evaluation_asks_the_same_prompts_with_the_same_random_numbers(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what changes in their answers is the policy's doing: of one that does not move, nothing does."""
    asked: list[list[dict[str, Any]]] = []
    real = tiny.letters
    monkeypatch.setattr(tiny, "letters", lambda rows: asked.append(rows) or real(rows))
    still = make("ppo", "still", {**QUICK, **STILL, "training.max_steps": 3, "training.evaluate_every_steps": 1})
    tiny.train(still)
    evaluations = [rows for rows in asked if len(rows) == 2]
    assert len(evaluations) == 4
    assert all(rows == evaluations[0] for rows in evaluations)
    rollouts = [rows for rows in asked if len(rows) > 2]
    assert len({row["response"] for rows in rollouts for row in rows}) > 10  # those are drawn anew
    first, *others = rows(still, "heldout")
    for row in others:
        row.pop("step")
        assert row == pytest.approx({name: value for name, value in first.items() if name != "step"}, abs=1e-6)
    moving = make("ppo", "moving", {**QUICK, "training.max_steps": 3})
    tiny.train(moving)
    assert [r["row"] for r in evaluation(moving)["responses"]] == [r["row"] for r in evaluation(still)["responses"]]
    assert evaluation(moving)["responses"] != evaluation(still)["responses"]


@pytest.mark.parametrize("prompts", [3, 4])
def test_before_and_after_answer_by_answer(prompts: int, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer has a score of its own."""

    def scores_apart(rows: list[dict[str, Any]]) -> list[float]:
        return [sum(map(ord, row["response"])) % 97 / 97 for row in rows]

    monkeypatch.setattr(tiny, "letters", scores_apart)
    made = make(
        "ppo", changes={**QUICK, "training.max_steps": 4, "rollout.heldout_prompts": prompts, "kl.coefficient": 0.5}
    )
    tiny.train(made)
    told, (before, after) = evaluation(made), rows(made, "heldout")
    assert told["count"] == len(told["responses"]) == prompts
    assert told["before"] == {k: v for k, v in before.items() if k not in ("kind", "step")}
    assert told["after"] == {k: v for k, v in after.items() if k not in ("kind", "step")}
    assert all(
        each[f"{when}_degenerate"] in (None, "blank", "stuck", "looping")
        for each in told["responses"]
        for when in ("before", "after")
    )
    store = TokenStore(Path(made.run) / "data" / "heldout.arrow")
    assert all(0 <= row["row"] < len(store) for row in told["responses"])
    for when, row in (("before", before), ("after", after)):
        texts = [{"response": each[f"{when}_text"]} for each in told["responses"]]
        scores = [each[f"{when}_score"] for each in told["responses"]]
        assert scores == pytest.approx(scores_apart(texts))
        assert row["score"] == pytest.approx(statistics.fmean(scores))
        assert row["score_median"] == pytest.approx(statistics.median(scores))
        assert row["response_tokens"] == statistics.fmean(each[f"{when}_tokens"] for each in told["responses"])
        missing = statistics.fmean(not each[f"{when}_ended"] for each in told["responses"])
        penalty = 0.5 * row["kl_k1"] * row["response_tokens"]
        assert row["loss"] == pytest.approx(-(row["score"] - missing - penalty), rel=1e-4)
    changes = [statistics.median(each[f"{when}_score"] for each in told["responses"]) for when in ("before", "after")]
    assert told["median_change"]["value"] == pytest.approx(changes[1] - changes[0])
    assert told["median_change"]["count"] == prompts


def test_several_answers_to_each_held_out_prompt_are_compared_by_prompt(make: Make) -> None:
    """The first of them is the one that a run with a single answer compares; training draws nothing from them."""
    changes = {**QUICK, "training.max_steps": 3, "rollout.heldout_prompts": 3, "kl.coefficient": 0.5}
    one, many = (make("ppo", f"{n}", {**changes, "rollout.heldout_samples": n}) for n in (1, 3))
    tiny.train(one)
    tiny.train(many)
    mine, theirs = tiny.weights(Path(one.run)), tiny.weights(Path(many.run))
    assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())
    told = evaluation(many)
    assert (told["count"], told["samples"], len(told["responses"])) == (3, 3, 9)
    rows_ = [each["row"] for each in told["responses"]]
    assert rows_ == [row for row in dict.fromkeys(rows_) for _ in range(3)]
    assert [each["sample"] for each in told["responses"]] == [0, 1, 2] * 3
    assert len({each["before_text"] for each in told["responses"]}) == 9
    first = [each for each in told["responses"] if each["sample"] == 0]
    for name in ("row", "before_text", "after_text", "before_ended", "after_tokens"):
        assert [each[name] for each in first] == [each[name] for each in evaluation(one)["responses"]]
    means = {
        when: [
            statistics.fmean(each[f"{when}_score"] for each in told["responses"] if each["row"] == row)
            for row in dict.fromkeys(rows_)
        ]
        for when in ("before", "after")
    }
    changed = [now - was for was, now in zip(means["before"], means["after"], strict=True)]
    assert told["mean_change"]["value"] == pytest.approx(statistics.fmean(changed))
    assert told["mean_change"]["count"] == 3
    half = 4.3027 * statistics.stdev(changed) / math.sqrt(3)  # t(0.975, 2)
    assert told["mean_change"]["interval"]["high"] == pytest.approx(statistics.fmean(changed) + half, rel=1e-3)
    before, after = rows(many, "heldout")
    assert before["score"] == pytest.approx(statistics.fmean(means["before"]))
    tokens = [each["after_tokens"] for each in told["responses"]]
    assert after["response_tokens"] == statistics.fmean(tokens)
    assert after["loss"] == pytest.approx(
        -(
            after["score"]
            - statistics.fmean(not each["after_ended"] for each in told["responses"])
            - 0.5 * after["kl_k1"] * statistics.fmean(tokens)
        ),
        rel=1e-4,
    )


def digits(rows: list[dict[str, Any]]) -> list[float]:
    """Another thing to look at."""
    return [10.0 * sum(map(str.isdigit, row["response"])) for row in rows]


def test_a_judge_and_held_out_pairs_are_looked_at_and_never_optimised(make: Make, data: Path, reward_run: Path) -> None:
    """The same run with and without them is the same run."""
    plain = make("ppo", "plain", {**QUICK, "training.max_steps": 2})
    judged = make(
        "ppo", "judged", {**QUICK, "training.max_steps": 2, "reward.judge": str(reward_run), "heldout_pairs": str(data)}
    )
    tiny.train(plain)
    tiny.train(judged)
    mine, theirs = tiny.weights(Path(plain.run)), tiny.weights(Path(judged.run))
    assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())
    before, after = rows(judged, "heldout")
    assert "proxy_gap" not in before
    assert 0 <= before["pair_accuracy"] <= 1
    judgements = [row["after_judge"] for row in evaluation(judged)["responses"]]
    assert after["judge"] == pytest.approx(statistics.fmean(judgements))
    falls = (before["judge"] - after["judge"], 10 * (before["pair_accuracy"] - after["pair_accuracy"]))
    assert after["proxy_gap"] == pytest.approx(max(falls) if after["score"] > before["score"] else 0.0)
    for row in rows(plain, "heldout"):
        assert not {"judge", "pair_accuracy", "proxy_gap"} & row.keys()
    scale = json.loads((reward_run / "model" / "reward.json").read_text())
    assert math.isfinite(scale["std"])


def test_a_function_can_judge_and_is_not_scaled(make: Make) -> None:
    made = make("ppo", changes={**QUICK, "training.max_steps": 1, "reward.judge": f"{__name__}:digits"})
    tiny.train(made)
    for when, row in zip(("before", "after"), rows(made, "heldout"), strict=True):
        wanted = digits([{"response": each[f"{when}_text"]} for each in evaluation(made)["responses"]])
        assert [each[f"{when}_judge"] for each in evaluation(made)["responses"]] == wanted
        assert row["judge"] == statistics.fmean(wanted)


def test_the_judges_scores_are_in_its_own_standard_deviations(make: Make, reward_run: Path, tmp_path: Path) -> None:
    """As a reward of weight 1 that is scaled by its std gives them."""
    judge = shutil.copytree(reward_run, tmp_path / "judge")
    changes = {**QUICK, "training.max_steps": 1, "reward.name": str(reward_run), "reward.judge": str(judge)}
    made = make("ppo", changes=changes)
    tiny.train(made)
    for row in rows(made, "heldout"):
        assert row["judge"] == pytest.approx(row["score"], rel=1e-5)


def test_held_out_pairs_by_hand(make: Make, tmp_path: Path) -> None:
    """The share of pairs whose preferred answer has the larger mean log-probability under the policy as it is."""
    pairs = [
        {"prompt": f"q {i}", "chosen": c, "rejected": r} for i, (c, r) in enumerate([("a", "bcd"), ("xyz", "w")] * 3)
    ]
    changes = {"heldout_pairs": str(tiny.write_rows(tmp_path / "pairs.jsonl", pairs)), "training.max_steps": 1}
    made = make("ppo", changes={**QUICK, **changes})
    tiny.train(made)
    loaded = load_model(made.model, None, trainable=False)
    from prefine.records import Message

    right = 0
    for pair in pairs:
        tree = loaded.template.answers_tree(
            (Message(role="user", content=pair["prompt"]),), (pair["chosen"], pair["rejected"])
        )
        with torch.no_grad():
            chosen, rejected = torch.split(loaded.packed(collate([tree])), list(map(len, tree.answers)))
        right += int(chosen.mean() > rejected.mean())
    assert rows(made, "heldout")[0]["pair_accuracy"] == pytest.approx(right / len(pairs))


def test_ties_are_no_held_out_pairs(make: Make, tmp_path: Path) -> None:
    """Nobody preferred either answer, so there is no order that the policy could get right."""
    ties = [{"prompt": f"q {i}", "response_1": "a", "response_2": f"{i}", "preferred": 0} for i in range(3)]
    decided = [{"prompt": "q", "chosen": "b", "rejected": "c"}]
    shares = []
    for name, pairs in (("with", [*ties, *decided]), ("without", decided)):
        changes = {"heldout_pairs": str(tiny.write_rows(tmp_path / f"{name}.jsonl", pairs)), "training.max_steps": 1}
        made = make("ppo", name, {**QUICK, **changes})
        tiny.train(made)
        shares.append(rows(made, "heldout")[0]["pair_accuracy"])
    assert shares[0] == shares[1]


EVALUATED = {**QUICK, "training.evaluate_every_steps": 1, "training.max_steps": 5, "rollout.heldout_prompts": 6}
EVALUATED |= {"kl.coefficient": 0.0, "reward.missing_eos": "none"}


def train_judged(made: StageRecipe, scores: list[float], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run it with these scores of all six held-out answers, one an evaluation; others are rewarded as ever."""
    real, told = tiny.letters, iter(scores)
    with monkeypatch.context() as patched:
        patched.setattr(tiny, "letters", lambda rows: [next(told)] * 6 if len(rows) == 6 else real(rows))
        return tiny.train(made)


def test_the_best_weights_are_kept_with_their_answers(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run that ends at that step has them; they are evaluated once more."""
    made = make("ppo", "kept", {**EVALUATED, "training.keep_best": True})
    said = train_judged(made, [0.1, 0.3, 0.5, 0.2, 0.4, 0.0, 0.5], monkeypatch)
    assert [row["loss"] for row in rows(made, "heldout")] == pytest.approx([-0.1, -0.3, -0.5, -0.2, -0.4, 0.0])
    assert tiny.manifest(Path(made.run))["kept_step"] == 2
    assert "the weights of step 2 are kept: held-out loss -0.5" in said
    short = make("ppo", "short", {**EVALUATED, "training.max_steps": 2})
    train_judged(short, [0.1, 0.3, 0.5], monkeypatch)
    mine, theirs = tiny.weights(Path(made.run)), tiny.weights(Path(short.run))
    assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())
    assert evaluation(made) == evaluation(short)


def test_early_stopping(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two evaluations in a row that are no better than the best; with its weights, if they are kept."""
    for keeps in (False, True):
        changes = {**EVALUATED, "training.early_stopping_patience": 2, "training.keep_best": keeps}
        made = make("ppo", f"{keeps}", changes)
        said = train_judged(made, [0.1, 0.3, 0.2, 0.3, *([0.3] if keeps else [])], monkeypatch)
        assert "stopped early after step 3: the held-out loss has not fallen since step 1" in said
        assert [row["step"] for row in rows(made, "heldout")] == [0, 1, 2, 3]
        assert tiny.manifest(Path(made.run)).get("kept_step") == (1 if keeps else None)


@pytest.mark.parametrize("changes", [{"data.heldout_fraction": 0.0}, {"rollout.heldout_prompts": 0}])
def test_nothing_held_out(changes: dict[str, Any], make: Make) -> None:
    made = make("ppo", changes={**QUICK, "training.max_steps": 2, **changes})
    tiny.train(made)
    assert len(rows(made)) == 2
    assert tiny.manifest(Path(made.run))["status"] == "finished"


# --- Its report -------------------------------------------------------------------------------------------------------


def test_a_run_ends_with_its_report(real_report: None, make: Make) -> None:
    made = make("ppo", changes={"training.max_steps": 2, "report.samples": 1})
    tiny.train(made)
    page = (Path(made.run) / "report.html").read_text()
    assert "</html>" in page
    assert "KL" in page
