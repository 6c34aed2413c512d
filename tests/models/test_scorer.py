"""A packed score is what transformers' own classifier says of the answer alone, wherever padding and other answers lie.

"Alone" is transformers' plain implementation on one unpadded sequence, read at its last token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from prefine.data.tokens.trees import PackedBatch, TokenTree, collate
from prefine.models.forward import attention
from prefine.models.forward.packed import PackedModel, ScoreHead, in_fp32, standard_attention, unpack
from prefine.models.forward.path_probe import choose_path, probe, take_padded_path
from tests.models import tiny
from tests.models.tiny import BATCH, assert_same_gradients, tree

PAD, END = 0, 2  # as in tiny's configs; tiny.tree draws neither
# Those of tiny.ARCHITECTURES whose sequence classifier has a linear score head.
ARCHITECTURES = [name for name in tiny.ARCHITECTURES if name not in ("ctrl", "granite", "cohere2")]
UNPACKABLE = ["bloom", "falcon", "gpt_neo", "mpt", "stablelm", "gpt_oss", "phimoe"]


def classifier(architecture: str, heads: int = 1, **overrides: Any) -> Any:
    """A random fp32 sequence classifier as transformers makes it, which reads whatever token is last."""
    config = tiny.make(architecture, **overrides).config
    config.num_labels = heads
    model = AutoModelForSequenceClassification.from_config(config).float()
    tiny.random_weights(model)
    model.config.pad_token_id = None
    return model.eval()


def packed(architecture: str, heads: int = 1, **overrides: Any) -> PackedModel:
    scorer = PackedModel(classifier(architecture, heads, **overrides), torch.float32, ScoreHead())
    assert choose_path(scorer) is None
    return scorer


def alone(scorer: PackedModel, batch: PackedBatch = BATCH) -> Tensor:
    """(S, k) what transformers says of each sequence by itself."""
    ids, mask, *_ = unpack(batch)
    with standard_attention(scorer, "eager"):
        rows = [scorer.causal(input_ids=one[None, : int(m.sum())]).logits[0] for one, m in zip(ids, mask, strict=True)]
    return torch.stack(rows)


def gradients(scorer: PackedModel, scores: Tensor) -> dict[str, Tensor]:
    """Gradients of all trainable weights for a loss in which each score counts differently."""
    named = {name: weight for name, weight in scorer.named_parameters() if weight.requires_grad}
    loss = (scores * torch.linspace(-1.0, 2.0, scores.numel()).view_as(scores)).sum()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


# --- Equal to transformers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_is_alone(architecture: str) -> None:
    """Scores to 1e-5 and gradients of all weights, with windows shorter than the sequences."""
    scorer = packed(architecture)
    ours, theirs = scorer(BATCH), alone(scorer)
    assert ours.shape == (BATCH.sequences, 1)
    assert ours.dtype == torch.float32
    assert theirs.std() > 0.1  # the random weights do make a difference
    assert (ours - theirs).abs().max() <= 1e-5
    found, right = gradients(scorer, ours), gradients(scorer, theirs)
    assert "model.score.weight" in found
    assert_same_gradients(found, right)


@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma2"])
def test_each_head_gives_a_column_of_its_own(architecture: str) -> None:
    scorer = packed(architecture, heads=3)
    ours, theirs = scorer(BATCH), alone(scorer)
    assert ours.shape == (BATCH.sequences, 3)
    assert (ours - theirs).abs().max() <= 1e-5
    assert_same_gradients(gradients(scorer, ours), gradients(scorer, theirs))
    by_hand = torch.stack([alone_hidden(scorer, row) @ scorer.causal.score.weight.T for row in range(BATCH.sequences)])
    assert (ours - by_hand).abs().max() <= 1e-5


def alone_hidden(scorer: PackedModel, row: int) -> Tensor:
    """(H,) the trunk's output at the last token of one sequence by itself."""
    ids, mask, *_ = unpack(BATCH)
    with standard_attention(scorer, "eager"):
        out = scorer.causal.base_model(input_ids=ids[row : row + 1, : int(mask[row].sum())])
    return out.last_hidden_state[0, -1]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_adapter_and_head_gradients_are_those_alone(architecture: str) -> None:
    """A trained LoRA on frozen weights with the head beside it, as most reward runs are."""
    scorer = packed(architecture, heads=2)
    scorer.model = tiny.with_lora(scorer.model, task_type="SEQ_CLS", modules_to_save=["score"])
    ours, theirs = scorer(BATCH), alone(scorer)
    assert (ours - theirs).abs().max() <= 1e-5
    found = gradients(scorer, ours)
    assert {name.split(".")[-3] for name in found if "lora_" in name} == {"lora_A", "lora_B"}
    (head,) = [name for name in found if "lora_" not in name]
    assert "score.modules_to_save" in head
    assert_same_gradients(found, gradients(scorer, theirs))


@pytest.mark.parametrize("architecture", UNPACKABLE)
def test_what_cannot_be_packed_is_padded(architecture: str) -> None:
    """The probe says why; padded rows give each sequence's own scores and gradients."""
    scorer = PackedModel(classifier(architecture, heads=2), torch.float32, ScoreHead())
    reason = choose_path(scorer)
    assert reason is not None
    assert tiny.UNPACKABLE[architecture][1] in reason
    assert not scorer.path.packed
    assert scorer.causal.config._attn_implementation != attention.NAME
    scorer.eval()
    ours, theirs = scorer(BATCH), alone(scorer)
    assert ours.shape == (BATCH.sequences, 2)
    assert (ours - theirs).abs().max() <= 1e-5
    assert_same_gradients(gradients(scorer, ours), gradients(scorer, theirs), 1e-4)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2", "opt"])
def test_the_padded_path_is_right_for_what_can_be_packed(architecture: str) -> None:
    """For who asks for sdpa or eager."""
    scorer = PackedModel(classifier(architecture, heads=2), torch.float32, ScoreHead())
    take_padded_path(scorer)
    assert not scorer.path.packed
    assert (scorer(BATCH) - alone(scorer)).abs().max() <= 1e-5


def leaky(*args: Any, **kwargs: Any) -> Any:
    """Right attention, then each token gets a thousandth of the token before it, whosesoever that is."""
    out, weights = attention.packed_attention(*args, **kwargs)
    return out + 1e-3 * out.roll(1, dims=1), weights


def test_the_probe_finds_a_leak_in_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in log-probabilities: what a score depends on is looked at, not only what it is."""
    from transformers import AttentionInterface

    scorer = packed("llama", heads=2)
    assert probe(scorer) is None
    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, leaky)
    assert "another sequence" in str(probe(scorer))


def skewed(*args: Any, **kwargs: Any) -> Any:
    """Attention a hundredth too strong."""
    out, weights = attention.packed_attention(*args, **kwargs)
    return out * 1.01, weights


@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_large_scores_are_packed_too(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head a thousand times as large rounds a thousand times as coarsely, and is as right; or as wrong."""
    from transformers import AttentionInterface

    scorer = PackedModel(classifier("llama"), torch.float32, ScoreHead())
    with torch.no_grad():
        scorer.causal.score.weight.mul_(size)
    assert choose_path(scorer) is None
    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, skewed)
    assert "differ by" in str(probe(scorer))


# --- Where a score is read (pitfall 9) -------------------------------------------------------------------------------


def scores_of(scorer: PackedModel, *trees: TokenTree) -> Tensor:
    with torch.no_grad():
        scores: Tensor = scorer(collate(list(trees)))
    return scores


def ended(prompt: list[int], *answers: list[int]) -> TokenTree:
    """Answers that end with the end of turn."""
    return TokenTree(prompt, tuple([*answer, END] for answer in answers), (None,) * len(answers))


PROMPT, ANSWERS = [5, 9, 31, 7, 22], ([11, 40, 8], [17], [60, 61, 62, 63, 64, 65])


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2"])
def test_a_score_does_not_change_with_company(architecture: str) -> None:
    """Alone, beside its siblings, between other trees, in another order: the same."""
    scorer = packed(architecture, heads=2)
    separate = torch.cat([scores_of(scorer, ended(PROMPT, answer)) for answer in ANSWERS])
    assert separate.std(0).min() > 0.05
    together = scores_of(scorer, ended(PROMPT, *ANSWERS))
    among = scores_of(scorer, tree(9, 8, 7), ended(PROMPT, *reversed(ANSWERS)), tree(3, 30))[2:5].flip(0)
    assert (together - separate).abs().max() <= 1e-5
    assert (among - separate).abs().max() <= 1e-5


@contextmanager
def path(scorer: PackedModel, packing: bool) -> Iterator[None]:
    """Inside, the scorer takes the packed path or the padded one."""
    scorer.path.packed = packing
    with nullcontext() if packing else standard_attention(scorer):
        yield


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("pad", [None, PAD, END])
def test_a_score_does_not_change_with_the_padding_token(pad: int | None, packing: bool) -> None:
    """Where padding is the end of turn, no pad token is there, or padding has a token of its own: the same numbers."""
    scorer = packed("llama")
    trees = [ended(PROMPT, *ANSWERS), tree(3, 12)]
    expected = alone(scorer, collate(trees))
    scorer.causal.config.pad_token_id = pad
    with path(scorer, packing):
        assert (scores_of(scorer, *trees) - expected).abs().max() <= 1e-5


def padded_by_transformers(scorer: PackedModel, trees: list[TokenTree], side: str, amount: int, pad: int) -> Tensor:
    """(S, k) transformers' scores of rows padded to their longest and `amount` further tokens."""
    rows = [[*tree.prompt, *answer] for tree in trees for answer in tree.answers]
    length = max(map(len, rows)) + amount
    ids, mask = torch.full((len(rows), length), pad), torch.zeros(len(rows), length, dtype=torch.int64)
    for number, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(len(row))
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    scorer.causal.config.pad_token_id = pad
    with standard_attention(scorer), torch.no_grad():
        logits: Tensor = scorer.causal(input_ids=ids, attention_mask=mask).logits
    return logits


@pytest.mark.parametrize("amount", [0, 1, 7])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_transformers_reads_the_same_place_under_any_padding(architecture: str, side: str, amount: int) -> None:
    """With a padding token apart, the classifier that is saved scores alike elsewhere."""
    scorer = packed(architecture, heads=2)
    trees = [ended(PROMPT, *ANSWERS), tree(3, 12)]
    ours = scores_of(scorer, *trees)
    assert (padded_by_transformers(scorer, trees, side, amount, PAD) - ours).abs().max() <= 1e-5


def test_padding_with_the_end_of_turn_would_move_transformers_but_not_us() -> None:
    """The pitfall is real: it reads the token before the end of turn, as soon as the pad token is the end of turn."""
    scorer = packed("llama")
    trees = [ended(PROMPT, *ANSWERS)]
    ours = scores_of(scorer, *trees)
    theirs = padded_by_transformers(scorer, trees, "right", 1, END)
    early = scores_of(scorer, TokenTree(PROMPT, tuple(ANSWERS), (None,) * 3))
    assert (theirs - early).abs().max() <= 1e-5
    assert (theirs - ours).abs().min() > 1e-3
    assert (scores_of(scorer, *trees) - ours).abs().max() == 0


@pytest.mark.parametrize("packing", [True, False])
def test_an_end_of_turn_or_padding_in_the_prompt_or_the_answer_is_a_token_like_others(packing: bool) -> None:
    """The score stays that of the last token, which sees them."""
    scorer = packed("llama")
    inside = [
        ended([5, END, 31, END, 22], *ANSWERS),
        ended([END, END], [11, END, 8]),
        ended([5, PAD, 31], [PAD, 40, PAD], [END]),
        TokenTree([5, 9], ([END, 11, 12],), (None,)),
        TokenTree([5, 9], ([11, END, PAD],), (None,)),
    ]
    expected = alone(scorer, collate(inside))
    clean = scores_of(scorer, ended(PROMPT, *ANSWERS))
    scorer.causal.config.pad_token_id = END
    with path(scorer, packing):
        ours = scores_of(scorer, *inside)
    assert (ours - expected).abs().max() <= 1e-5
    assert (ours[:3] - clean).abs().min() > 1e-3


def test_a_score_sees_its_last_token_and_no_later_one() -> None:
    """Another end changes it; what follows in the row does not."""
    scorer = packed("llama")
    one = scores_of(scorer, TokenTree(PROMPT, ([11, 40, END],), (None,)))
    other = scores_of(scorer, TokenTree(PROMPT, ([11, 40, 41],), (None,)))
    assert (one - other).abs() > 1e-3
    followed = scores_of(scorer, TokenTree(PROMPT, ([11, 40, END], [77] * 5), (None, None)))[:1]
    assert (followed - one).abs() <= 1e-5


def test_masks_of_supervision_do_not_move_a_score() -> None:
    """The place comes from lengths, not from what counts in a loss."""
    scorer = packed("llama")
    whole = tree(5, 6, 4)
    some = TokenTree(whole.prompt, whole.answers, ([False] * 6, [True, False, False, False]))
    assert torch.equal(scores_of(scorer, some), scores_of(scorer, whole))


# --- Number types ----------------------------------------------------------------------------------------------------


def test_the_head_computes_in_fp32_whatever_the_trunk_does() -> None:
    """bf16 scores have three digits; here equal hidden states give scores exact to fp32."""
    scorer = packed("llama", heads=2)
    rounded = PackedModel(scorer.model, torch.bfloat16, ScoreHead())
    hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), rounded.autocast():
        scores = in_fp32(rounded.causal.score, hidden)
    assert scores.dtype == torch.float32
    assert (scores - hidden @ scorer.causal.score.weight.T).abs().max() <= 1e-5
    with torch.no_grad():
        ours, exact = rounded(BATCH), scorer(BATCH)
    assert ours.dtype == torch.float32
    assert 0 < (ours - exact).abs().max() <= 0.1 * exact.std()


def test_gradient_checkpointing_changes_no_gradient() -> None:
    scorer = packed("llama", heads=2)
    scorer.model = tiny.with_lora(scorer.model, task_type="SEQ_CLS", modules_to_save=["score"])
    scorer.train()
    kept = gradients(scorer, scorer(BATCH))
    scorer.causal.activation_checkpointing_enable({"use_reentrant": False})
    with attention.watched() as traffic:
        again = gradients(scorer, scorer(BATCH))
    assert traffic.calls == 4  # two layers, twice
    assert_same_gradients(again, kept, 1e-6)
