"""Where rotary frequencies follow the length of a sequence, no answer's numbers depend on the others in its batch.

"Alone" is transformers' plain implementation on one unpadded sequence, by a model that has seen no other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefine.data.tokens.trees import PackedBatch, collate
from prefine.models.actor_critic import ActorCritic, ValueHead
from prefine.models.forward.packed import LanguageHead, PackedModel, ScoreHead, unpack
from prefine.models.forward.path_probe import choose_path, take_padded_path
from prefine.models.forward.rotary import LengthRule, forget_lengths, length_rule
from tests.models import tiny
from tests.models.test_scorer import classifier
from tests.models.tiny import tree

TRAINED = 12
_HALF = 4  # half of a head's width
ROTARIES: dict[str, dict[str, Any]] = {
    "dynamic": {
        "max_position_embeddings": TRAINED,
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
    },
    "longrope": {
        "max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "short_factor": [1.0] * _HALF,
            "long_factor": [5.0] * _HALF,
            "original_max_position_embeddings": TRAINED,
        },
    },
}
# Short and long answers to one prompt, several long ones, one of exactly the trained length, all in one batch.
_TREES = [tree(5, 4, 20, 7), tree(3, 2), tree(6, 25, 19), tree(8, 2)]
_BEGINNING = list(tree(9, 1).prompt)
BATCHES = {
    "trees": collate(_TREES),
    "common beginning": collate([replace(each, prompt=[*_BEGINNING, *each.prompt[:1]]) for each in _TREES]),
}


def make(rotary: str, *, is_packed: bool, scores: bool = False) -> PackedModel:
    if scores:
        model = PackedModel(classifier("llama", **ROTARIES[rotary]), torch.float32, ScoreHead())
    else:
        model = PackedModel(tiny.make("llama", **ROTARIES[rotary]), torch.float32)
    if is_packed:
        assert choose_path(model) is None
    else:
        take_padded_path(model)
    return model


def alone(rotary: str, batch: PackedBatch) -> Tensor:
    """(R,) log-probabilities, a new model for each sequence."""
    ids, mask, row, column = unpack(batch)
    logprobs = []
    for one, own in zip(ids, mask, strict=True):
        causal = tiny.make("llama", attn_implementation="eager", **ROTARIES[rotary])
        with torch.no_grad():
            logprobs.append(torch.log_softmax(causal(input_ids=one[None, : int(own.sum())]).logits[0], -1))
    places = zip(row.tolist(), column.tolist(), batch.targets.tolist(), strict=True)
    return torch.stack([logprobs[r][c, target] for r, c, target in places])


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("rotary", ROTARIES)
def test_every_answer_has_the_numbers_that_it_has_alone(rotary: str, is_packed: bool) -> None:
    """Whatever else is in the batch, and whatever was computed before; so do PPO's log-probabilities."""
    model = make(rotary, is_packed=is_packed)
    for batch in BATCHES.values():
        right = alone(rotary, batch)
        with torch.no_grad():
            assert (model(batch) - right).abs().max() <= 1e-5
            assert (model(batch) - right).abs().max() <= 1e-5  # after longer sequences
            policy = ActorCritic(LanguageHead(), ValueHead(model))
            assert (model(batch, head=policy).logprobs - right).abs().max() <= 1e-5
    assert_it_matters(rotary)


def assert_it_matters(rotary: str) -> None:
    """Together in one call, the short answers would have other numbers."""
    causal = tiny.make("llama", **ROTARIES[rotary])
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        short = causal(ids).logits[0]
        padded = torch.nn.functional.pad(ids, (0, 30)).repeat(2, 1)
        together = causal(padded, attention_mask=torch.ones_like(padded)).logits[0, :6]
    assert (short - together).abs().max() > 1e-3


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("rotary", ROTARIES)
@pytest.mark.parametrize("layout", BATCHES)
def test_gradients_are_the_sum_of_each_answers_own(layout: str, rotary: str, is_packed: bool) -> None:
    """Training: the gradient of a batch is that of its answers one by one."""
    model = make(rotary, is_packed=is_packed)
    batch = BATCHES[layout]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    together = torch.autograd.grad(model(batch).sum(), weights)
    apart = [torch.zeros_like(weight) for weight in weights]
    for sequence in range(batch.sequences):
        part, _ = batch.part([sequence])
        for total, gradient in zip(apart, torch.autograd.grad(model(part).sum(), weights), strict=True):
            total.add_(gradient)
    for ours, theirs in zip(together, apart, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("rotary", ROTARIES)
@pytest.mark.parametrize("layout", BATCHES)
def test_scores_do_not_depend_on_other_answers(layout: str, rotary: str, is_packed: bool) -> None:
    """A reward model's score of an answer is the one it has alone."""
    scorer, batch = make(rotary, is_packed=is_packed, scores=True), BATCHES[layout]
    with torch.no_grad():
        together = scorer(batch)
        apart = torch.cat([scorer(batch.part([sequence])[0]) for sequence in range(batch.sequences)])
    assert (together - apart).abs().max() <= 1e-5


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1),
    beginning=st.sampled_from([[], _BEGINNING]),
    data=st.data(),
)
def test_a_part_of_a_batch_is_the_batch_of_those_answers(
    lengths: list[tuple[int, list[int]]], beginning: list[int], data: st.DataObject
) -> None:
    """Each answer stands behind its prompt, with its positions, targets and order."""
    trees = [tree(prompt, *answers) for prompt, answers in lengths]
    batch = collate([replace(each, prompt=[*beginning, *each.prompt]) for each in trees])
    chosen = sorted(data.draw(st.sets(st.integers(0, batch.sequences - 1), min_size=1)))
    part, targets = batch.part(chosen)
    ids, mask, *_ = unpack(batch)
    own_ids, own_mask, row, column = unpack(part)
    width = own_ids.shape[1]
    assert torch.equal(own_ids * own_mask, (ids * mask)[chosen, :width])
    assert part.whole_lengths() == [batch.whole_lengths()[sequence] for sequence in chosen]
    assert torch.equal(part.targets, batch.targets[targets])
    assert torch.equal(own_ids[row, column + 1], part.targets)
    assert torch.equal(part.position_ids[0, part.last_tokens()], batch.position_ids[0, batch.last_tokens()][chosen])


def test_groups_by_hand() -> None:
    """Up to the limit together; beyond it all together (two sets of frequencies), or each length for itself."""
    lengths = [3, 13, 12, 40, 13]
    assert LengthRule("longrope", 12).groups(lengths) == [[0, 2], [1, 3, 4]]
    assert LengthRule("dynamic", 12).groups(lengths) == [[0, 2], [1, 4], [3]]


def test_only_lengths_that_matter_make_a_rule() -> None:
    """yarn, llama3 and linear scaling have the same frequencies for every length."""
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 100.0, "original_max_position_embeddings": TRAINED}
    for parameters in (yarn, {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}):
        assert length_rule(tiny.make("llama", rope_parameters=parameters).config) is None
    assert length_rule(tiny.make("gpt2").config) is None
    assert length_rule(tiny.make("llama", **ROTARIES["dynamic"]).config) == LengthRule("dynamic", TRAINED)
    assert length_rule(tiny.make("llama", **ROTARIES["longrope"]).config) == LengthRule("longrope", TRAINED)


def test_forgetting_brings_the_trained_frequencies_back() -> None:
    """Frequencies of a long sequence stay in the module until then."""
    causal = tiny.make("llama", **ROTARIES["dynamic"])
    rotary = causal.model.rotary_emb
    before = rotary.inv_freq.clone()
    with torch.no_grad():
        causal(torch.arange(3, 33)[None])
    assert not torch.equal(rotary.inv_freq, before)
    forget_lengths(causal)
    assert torch.equal(rotary.inv_freq, before)
    assert rotary.max_seq_len_cached == TRAINED
