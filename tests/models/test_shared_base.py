"""Several models on one set of weights: each is what it would be alone, and what one learns moves no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prefine.data.tokens.trees import TokenTree, collate
from prefine.errors import ModelError
from prefine.models.forward.active_adapter import using_adapter
from prefine.models.loading.heads import IN_ADAPTER
from prefine.models.loading.load import LoadedModel, load_model, save_model
from prefine.models.loading.location import ADAPTER_WEIGHTS, ORIGIN, locate_model
from prefine.models.loading.weights import SCALE_FILE
from prefine.models.scoring.packed_scorer import load_reward, read_scale
from prefine.models.scoring.scorer import Question, ScoreScale
from prefine.models.shared_base import add_copy, has_adapter, join_reward, shares_base
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.records import Message
from tests.models import tiny

SCALE = ScoreScale(bias=(0.5,), std=2.0, answers=9, max_length_tokens=60, compute_dtype="float32")
QUESTIONS = [
    Question((Message(role="user", content="What now?"),), ("This.", "", "That, that and that.")),
    Question((Message(role="user", content="a longer question, cut " * 3),), ("yes", "no")),
]


def section(name: Path, **changes: Any) -> ModelSection:
    return ModelSection(**{"name": str(name), "device": "cpu", "dtype": "float32"} | changes)


def randomised(loaded: LoadedModel, seed: int) -> LoadedModel:
    """With random weights in all that learns: a fresh adapter does nothing."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in loaded.trainable().values():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.2)
    return loaded


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_folder(tmp_path_factory.mktemp("base") / "T")


def saved_reward(folder: Path, base: Path, *, heads: int = 1, lora: LoraSection | None = None, **scale: Any) -> Path:
    """A reward model as a run leaves it: an adapter with its head, and its scale."""
    torch.manual_seed(1)
    quantization = scale.get("quantization", "none")
    loaded = load_model(section(base, quantization=quantization), lora or LoraSection(r=4, alpha=8.0), heads=heads)
    measured = SCALE.model_copy(update={"bias": (0.5,) * heads, **scale})
    save_model(randomised(loaded, 5), folder, {SCALE_FILE: measured.as_json()})
    return folder


def policy(base: Path, *, seed: int = 3, lora: LoraSection | None = None, **changes: Any) -> LoadedModel:
    loaded = load_model(section(base, **changes), lora or LoraSection(r=3, alpha=6.0, targets=["q_proj", "up_proj"]))
    loaded = randomised(loaded, seed)
    loaded.packed.eval()
    return loaded


@torch.no_grad()
def says(loaded: LoadedModel) -> Tensor:
    trees = [TokenTree([5, 6, 7, 8], ([9, 10, 11], [12]), (None,) * 2), TokenTree([20, 21], ([22] * 4,), (None,))]
    logprobs: Tensor = loaded.packed(collate(trees))
    return logprobs


def scored(reward: Any) -> list[float]:
    return [score.score for found in reward.score(QUESTIONS) for score in found]


def learns(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


# --- Switching -------------------------------------------------------------------------------------------------------


def test_inside_one_adapter_is_on_and_outside_all_is_as_it_was(base: Path) -> None:
    """Nested, and after an error; what learns does not change."""
    loaded = policy(base)
    model = loaded.packed.model
    bare = load_model(section(base), None, trainable=False)
    add_copy(model, "other")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".other." in name:
                weight.mul_(-1.5)
    mine, learning = says(loaded), learns(model)
    with using_adapter(model, None):
        torch.testing.assert_close(says(loaded), says(bare), rtol=0, atol=1e-6)
        with using_adapter(model, "other"):
            others = says(loaded)
        torch.testing.assert_close(says(loaded), says(bare), rtol=0, atol=1e-6)
    assert torch.equal(says(loaded), mine)
    assert (others - mine).abs().max() > 1e-3
    with pytest.raises(ZeroDivisionError), using_adapter(model, "other"):
        assert torch.equal(says(loaded), others)
        raise ZeroDivisionError
    assert torch.equal(says(loaded), mine)
    assert learns(model) == learning


# --- Copies ----------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "all linear layers": {"target_modules": "all-linear"},
    "rank-stabilised": {"target_modules": "all-linear", "use_rslora": True},
    "by magnitude and direction": {"target_modules": "all-linear", "use_dora": True},
    "with biases": {"target_modules": "all-linear", "lora_bias": True},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "a head that is trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def adapted(kind: str) -> Any:
    model = get_peft_model(tiny.make("llama"), LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **KINDS[kind]))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.2)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=torch.arange(3, 15)[None]).logits
    return found


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize(
    "kind",
    list(KINDS),
)
def test_a_copy_is_as_the_policy_was(kind: str, learning: bool) -> None:
    """And stays so while the policy learns; it learns itself if it is to, and nothing else begins or ends to."""
    model = adapted(kind)
    before, wanted = learns(model), logits(model)
    added = add_copy(model, "reference", learns=learning)
    assert added
    with using_adapter(model, "reference"):
        assert torch.equal(logits(model), wanted)
    assert torch.equal(logits(model), wanted)
    new = {name for name, _ in model.named_parameters() if name.endswith(".reference") or ".reference." in name}
    assert set(added) == new
    assert learns(model) == before | (new if learning else set())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in before:
                weight.add_(0.1)
    with using_adapter(model, "reference"):
        assert torch.equal(logits(model), wanted)
    assert not torch.equal(logits(model), wanted)


# --- Rewards ---------------------------------------------------------------------------------------------------------

REWARDS: dict[str, dict[str, Any]] = {
    "one head": {},
    "three heads": {"heads": 3},
    "other layers than the policy's": {
        "lora": LoraSection(r=7, alpha=3.0, dropout=0.5, targets=["v_proj", "down_proj"])
    },
    "nf4": {"quantization": "nf4"},
}


@pytest.mark.parametrize("kind", REWARDS)
def test_a_reward_that_joins_scores_as_alone_and_leaves_its_host_alone(kind: str, base: Path, tmp_path: Path) -> None:
    """Bit for bit, whatever the host has learned, in training mode too; none of its weights learns."""
    run = saved_reward(tmp_path / "reward", base, **REWARDS[kind])
    wanted = scored(load_reward(section(run, quantization=REWARDS[kind].get("quantization", "none"))))
    loaded = policy(base, quantization=REWARDS[kind].get("quantization", "none"))
    before, learning = says(loaded), learns(loaded.packed.model)
    joined = join_reward(loaded, locate_model(str(run)), "reward-0")
    assert scored(joined) == wanted
    assert len(set(wanted)) > 3
    assert torch.equal(says(loaded), before)
    assert learns(loaded.packed.model) == learning
    with torch.no_grad():
        for weight in loaded.trainable().values():
            weight.mul_(2)
    after = says(loaded)
    loaded.packed.train()
    assert scored(joined) == wanted
    assert loaded.packed.model.training
    assert all(module.training for module in loaded.packed.model.modules() if isinstance(module, nn.Dropout))
    loaded.packed.eval()
    assert scored(joined) == wanted
    assert torch.equal(says(loaded), after)
    assert not torch.equal(after, before)


def test_two_rewards_on_one_base(base: Path, tmp_path: Path) -> None:
    runs = [saved_reward(tmp_path / f"{r}", base, lora=LoraSection(r=r, alpha=8.0)) for r in (2, 5)]
    loaded = policy(base)
    joined = [join_reward(loaded, locate_model(str(run)), f"reward-{i}") for i, run in enumerate(runs)]
    for each, run in zip(joined, runs, strict=True):  # of so low a rank a product may be rounded otherwise
        assert scored(each) == pytest.approx(scored(load_reward(section(run))), abs=1e-6)
    assert scored(joined[0]) != pytest.approx(scored(joined[1]), abs=1e-2)


def test_its_gradients_reach_nobody(base: Path, tmp_path: Path) -> None:
    loaded = policy(base)
    joined = join_reward(loaded, locate_model(str(saved_reward(tmp_path / "reward", base))), "reward-0")
    tree = joined.trees(QUESTIONS[0])
    assert tree
    score = joined.loaded.packed(collate(tree), head=joined._head, adapter=joined._adapter)
    assert not score.requires_grad


def test_it_is_scaled_and_read_as_its_own(base: Path, tmp_path: Path) -> None:
    """Its scale, its length limit, its tokenizer with its template."""
    run = saved_reward(tmp_path / "reward", base)
    words = json.loads((run / "tokenizer_config.json").read_text())
    loaded = policy(base)
    joined = join_reward(loaded, locate_model(str(run)), "reward-0")
    assert joined.scale == read_scale(run) == SCALE
    assert joined.name == str(run)
    assert joined.tokenizer.eos_token == words["eos_token"]
    long = Question((Message(role="user", content="x" * 500),), ("y",))
    (tree,) = joined.trees(long) or ()
    assert tree.tokens == SCALE.max_length_tokens
    assert joined.trees(Question(long.prompt, ("y" * 60,))) is None


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def without(path: Path, part: str) -> None:
    kept = {name: tensor for name, tensor in load_file(path).items() if part not in name}
    save_file(kept, path)


def with_another(path: Path) -> None:
    save_file(
        {**load_file(path), "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 32)}, path
    )


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a layer is missing": lambda path: without(path, "layers.1.mlp.up_proj"),
    "a layer too many": with_another,
    "cut short": truncated,
    "no head": lambda path: without(path, IN_ADAPTER),
    "empty": lambda path: path.write_bytes(b"") and None,
}


@pytest.mark.parametrize(
    "damage",
    list(DAMAGES),
)
def test_damaged_files_are_an_error(damage: str, base: Path, tmp_path: Path) -> None:
    run = saved_reward(tmp_path / "reward", base)
    DAMAGES[damage](run / ADAPTER_WEIGHTS)
    with pytest.raises(ModelError) as raised:
        join_reward(policy(base), locate_model(str(run)), "reward-0")
    assert "\n" not in str(raised.value)


# --- Whether they can ------------------------------------------------------------------------------------------------


def objection(loaded: LoadedModel, run: Path, **recipe: Any) -> str | None:
    location = locate_model(str(run))
    scale = None if location.adapter is None else read_scale(location.adapter)
    return shares_base(loaded, location, scale, section(run, **recipe))


def test_what_keeps_a_reward_from_joining(base: Path, tmp_path: Path) -> None:
    loaded = policy(base)
    run = saved_reward(tmp_path / "reward", base)
    assert objection(loaded, run) is None
    assert objection(loaded, base) == "it is a whole model, not an adapter of a reward run"
    whole = load_model(section(base), None)
    assert not has_adapter(whole.packed.model)
    assert str(objection(whole, run)).startswith("the policy trains all its weights")
    assert objection(loaded, run, quantization="nf4") == "it was trained on none weights, but the policy's are nf4"
    for changes, told in (
        ({"quantization": "int8"}, "it was trained on int8 weights, but the policy's are none"),
        ({"compute_dtype": "bfloat16"}, "it computes in bfloat16, the policy in float32"),
        ({"compute_dtype": None}, None),
    ):
        (run / SCALE_FILE).write_text(json.dumps(SCALE.model_copy(update=changes).as_json()))
        assert objection(loaded, run) == told
    (run / SCALE_FILE).write_text(json.dumps(SCALE.as_json()))
    origin = json.loads((run / ORIGIN).read_text())
    for digest in ("", None, "0" * 64):
        (run / ORIGIN).write_text(json.dumps({**origin, "base_sha256": digest}))
        assert objection(loaded, run) == "it was trained on another base model"
    (run / ORIGIN).write_text(json.dumps(origin))
    (run / SCALE_FILE).unlink()
    assert objection(loaded, run) == "it is a whole model, not an adapter of a reward run"
