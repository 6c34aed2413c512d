"""What a forward and its backward hold in memory, in bytes, derived from the code of models/forward.

Each function says which tensors it counts; tests/planning/test_activations.py counts those that live while a real model
trains. Names in comments: H is the hidden width, I that of the MLP, r the rank of adapters, b the bytes of a number of
the compute type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prefine.models.forward.blockwise import BLOCK_ROWS, KEEP_PROBABILITIES_UP_TO, KNOWN_BIASES
from prefine.models.forward.logprobs import rows_per_chunk
from prefine.planning.architecture import Architecture, LinearShape

Kernel = Literal["blockwise", "flash", "flex", "padded"]
Head = Literal["language", "score", "actor_critic"]

_FP32 = 4


@dataclass(frozen=True, slots=True)
class TreeLengths:
    """Tokens of a prompt and of each answer to it.

    Attributes:
        shared: of the prompt, those that a microbatch computes once for all its prompts.
    """

    prompt: int
    answers: tuple[int, ...]
    shared: int = 0

    @property
    def tokens(self) -> int:
        """Tokens in a packed row, with the prompt once."""
        return self.prompt + sum(self.answers)

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return self.prompt + max(self.answers, default=0)


@dataclass(frozen=True)
class Forward:
    """How a model's forward runs.

    Attributes:
        architecture: its shapes.
        device: type of the device: cpu, cuda or mps.
        itemsize: bytes of a number of the compute type, b.
        kernel: of the attention.
        rank: of the adapters; 0 trains all weights.
        targets: the layers with adapters.
        fused: whether adapters are on plain linear layers, whose forward is prefine's own (models/forward/fused.py).
        checkpointing: whether layers are recomputed in the backward pass.
        quantized: whether the linear layers are 4 or 8 bits wide.
    """

    architecture: Architecture
    device: str
    itemsize: int
    kernel: Kernel
    rank: int = 0
    targets: tuple[LinearShape, ...] = ()
    fused: bool = True
    checkpointing: bool = False
    quantized: bool = False

    @property
    def all_weights(self) -> bool:
        """Whether all weights are trained."""
        return self.rank == 0

    @property
    def widened(self) -> bool:
        """Whether the residual stream is wider than the compute type: fp32 weights under autocast."""
        return self.all_weights and self.itemsize < _FP32

    def learns(self, role: str) -> bool:
        """Whether layers of a role keep their input for a gradient."""
        return self.all_weights or any(each.role == role for each in self.targets)

    def reading(self, role: str) -> int:
        """Linear layers of a role in one layer."""
        found = sum(each.role == role for each in self.architecture.linears)
        return max(1, round(found / self.architecture.layers))


@dataclass(frozen=True, slots=True)
class Step:
    """Bytes of a microbatch.

    Attributes:
        saved: by the forward for the backward, of all layers.
        scores: of those, attention probabilities, which grow with the square of sequence lengths.
        passing: in addition at the worst moment after that: while the head is computed, or a layer's backward.
        weights: casts and products of weights that are saved once a microbatch.
        masks: of attention, kept between microbatches.
    """

    saved: int
    scores: int
    passing: int
    weights: int
    masks: int

    @property
    def peak(self) -> int:
        """The most at any moment."""
        return self.saved + self.scores + self.weights + self.masks + self.passing


def step_bytes(
    how: Forward, trees: Sequence[TreeLengths], head: Head, *, entropy: bool = False, passes: int = 1
) -> Step:
    """A forward and its backward over the trees of one microbatch.

    Args:
        how: the model's forward.
        trees: the microbatch.
        head: what reads the hidden states.
        entropy: whether the loss needs entropies.
        passes: trunks computed in one forward: 2 for a critic with an adapter of its own.
    """
    shapes = how.architecture
    tokens = row_tokens(how, trees)
    layer, scores = tokens * saved_per_token(how), kept_scores(how, trees)
    rotary = 2 * tokens * shapes.head_size * _residual(how)
    # With frozen embeddings, the first norm need not save its input, and the last norm saves its own.
    rest = rotary + (tokens * 2 * shapes.hidden * _residual(how) if how.all_weights else 0)
    at_head = head_bytes(how, trees, head, learns=True, entropy=entropy)
    within = max(backward_bytes(how, trees), forward_bytes(how, trees))
    if how.checkpointing:
        saved, kept = shapes.layers * tokens * _residual(how) * shapes.hidden, 0
        passing = max(at_head, layer + scores + within)
    else:
        saved, kept = shapes.layers * layer, shapes.layers * scores
        passing = max(at_head, within)
    return Step(
        saved=passes * saved + rest,
        scores=passes * kept,
        passing=passing,
        weights=passes * weight_casts(how),
        masks=mask_bytes(how, trees),
    )


def _residual(how: Forward) -> int:
    """Bytes of a number of the residual stream."""
    return _FP32 if how.widened else how.itemsize


def row_tokens(how: Forward, trees: Sequence[TreeLengths]) -> int:
    """Tokens that the trunk computes: each prompt once; on the padded path each answer after its prompt, padded."""
    if how.kernel != "padded":
        return shared_tokens(trees) + sum(tree.tokens - tree.shared for tree in trees)
    return sum(max(1, len(tree.answers)) for tree in trees) * max(tree.longest for tree in trees)


def shared_tokens(trees: Sequence[TreeLengths]) -> int:
    """Tokens that all prompts of a microbatch begin with, which it computes once."""
    return trees[0].shared if trees else 0


def saved_per_token(how: Forward) -> int:
    """Bytes that one layer's forward saves per token, without attention probabilities.

    Adapters on frozen layers (fused.py): the two norms save their inputs, H each, and 1 / rms in fp32; `_LoraLinear`
    saves its input, which layers that read the same one share, and the r numbers of its branch; attention saves rotated
    queries and keys, and values; `_SiluGate` saves gate and up, I each.

    All weights: norms are transformers' own, which save the normed row before the weight as well; every linear layer
    saves its input. Under autocast the residual stream and the norms are in fp32, and each linear layer saves its own
    cast of its input.
    """
    a, b = how.architecture, how.itemsize
    attention = (a.query_width + 2 * a.kv_width) * b
    if how.kernel == "padded":  # transformers repeats keys and values for the query heads
        attention = 3 * a.query_width * b
    output = a.query_width * b if how.learns("attention output") or how.kernel in ("flash", "flex") else 0
    attention += a.heads * _FP32 if how.kernel in ("flash", "flex", "padded") else 0  # log-sum-exp of each row
    return norms_per_token(how) + attention + output + _mlp_per_token(how) + _branches(how)


def _mlp_per_token(how: Forward) -> int:
    """Bytes that an MLP saves per token besides its normed input: gate, up and their product; without a gate, the
    activation function's input and output. bitsandbytes' layers are not fused: silu(gate) is saved, too."""
    kept = 2 if not how.architecture.gated else 3 if how.quantized else 2
    kept += how.architecture.gated and how.learns("mlp output")
    return kept * how.architecture.intermediate * how.itemsize


def norms_per_token(how: Forward) -> int:
    """Bytes of the two norms of a layer and of what they give, per token; see saved_per_token."""
    a, b = how.architecture, how.itemsize
    inverses = 2 * _FP32
    if how.widened:
        casts = (how.reading("attention") + how.reading("mlp")) * a.hidden * b
        return inverses + 2 * 2 * a.hidden * _FP32 + casts
    normed = sum(how.learns(role) for role in ("attention", "mlp"))
    own = 2 if how.all_weights else 0  # transformers' norm keeps x / rms(x) besides its product with the weight
    return inverses + (2 + normed + own) * a.hidden * b


def _branches(how: Forward) -> int:
    """Bytes of the r numbers between the two matrices of each adapter of a layer, per token."""
    return round(len(how.targets) / how.architecture.layers * how.rank * how.itemsize)


def weight_casts(how: Forward) -> int:
    """Forms of weights that a forward saves for its backward.

    An adapter's scaled second matrix, and in bf16 both matrices as casts; with all weights trained in bf16, the casts
    of all linear layers, which autocast keeps.
    """
    if how.all_weights:
        return how.architecture.linear_parameters * how.itemsize if how.widened else 0
    outputs = sum(each.outputs for each in how.targets)
    inputs = sum(each.inputs for each in how.targets) if how.itemsize < _FP32 else 0
    return how.rank * (outputs + inputs) * how.itemsize if how.fused else 0


# --- Attention -------------------------------------------------------------------------------------------------------


def blocks(trees: Sequence[TreeLengths]) -> list[tuple[int, int]]:
    """Rows of queries and of keys of each block of the blockwise kernel (see data/tokens/trees.runs)."""
    runs = [(shared_tokens(trees), 0)]
    for tree in trees:
        first = tree.answers[0] if tree.answers else 0
        runs.append((tree.prompt - tree.shared + first, tree.shared))
        runs += [(answer, tree.prompt) for answer in tree.answers[1:]]
    found = []
    for own, before in runs:
        for start in range(0, own, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, own - start)
            found.append((rows, before + start + rows))
    return found


def kept_scores(how: Forward, trees: Sequence[TreeLengths]) -> int:
    """Bytes of the attention probabilities that one layer saves.

    The blockwise kernel keeps those of a block with at most KEEP_PROBABILITIES_UP_TO and recomputes larger ones, so
    that this grows with the square of a sequence's length up to a limit, and falls to nothing above it. With a soft cap
    autograd keeps capped scores and fp32 probabilities of all blocks.
    """
    if how.kernel != "blockwise":
        return 0
    sizes = [how.architecture.heads * rows * keys for rows, keys in blocks(trees)]
    if how.architecture.softcap:
        return sum(sizes) * (_FP32 + how.itemsize * (2 if how.itemsize < _FP32 else 1))
    return sum(size for size in sizes if size <= KEEP_PROBABILITIES_UP_TO) * how.itemsize


def passing_scores(how: Forward, trees: Sequence[TreeLengths], *, backward: bool) -> int:
    """Bytes of the scores that are held for a moment while one layer's attention is computed, besides those it keeps.

    A loop's names still hold the block before while the next one is computed. Forward: its probabilities, and the next
    block's scores and probabilities. Backward: its probabilities, if recomputed, and two gradients; then the same of
    the next block.
    """
    if how.kernel != "blockwise":
        return 0
    most = before = before_again = 0
    for rows, keys in blocks(trees):
        size = how.architecture.heads * rows * keys
        again = size if size > KEEP_PROBABILITIES_UP_TO else 0
        if backward:
            recomputing = before_again + 2 * before + 2 * size if again else 0
            most = max(most, recomputing, again + size + 2 * before, again + 2 * size + before)
        else:
            most = max(most, before_again + 2 * size)
        before, before_again = size, again
    return most * how.itemsize


def mask_bytes(how: Forward, trees: Sequence[TreeLengths]) -> int:
    """The masks of blocks, one for each shape; the kernel keeps the last KNOWN_BIASES."""
    if how.kernel != "blockwise":
        return 0
    shapes = sorted({rows * keys for rows, keys in blocks(trees)}, reverse=True)
    return sum(shapes[:KNOWN_BIASES]) * how.itemsize


# --- What is held for a moment ---------------------------------------------------------------------------------------


def head_bytes(how: Forward, trees: Sequence[TreeLengths], head: Head, *, learns: bool, entropy: bool) -> int:
    """What the head holds at once: hidden states of the targets, their gradient, and logits.

    A frozen language head computes logits in chunks (logprobs.py), and the names of its loop still hold the chunk
    before. In fp32 a chunk is one matrix, which becomes the exponentials in place, or two with entropies; in bf16 the
    logits, the same in fp32, and for the gradient a cast back. A head that is trained recomputes each chunk in the
    backward pass: logits, shifted logits, exponentials and their gradient; then two gradients of its whole matrix.
    """
    a, b = how.architecture, how.itemsize
    if head == "score":
        return sum(max(1, len(tree.answers)) for tree in trees) * a.hidden * _FP32
    targets = sum(sum(tree.answers) for tree in trees)
    hidden = targets * a.hidden * b * ((3 if entropy else 2) if learns else 1)
    hidden += targets * a.hidden * _FP32 if head == "actor_critic" else 0
    most = rows_per_chunk(a.vocabulary, how.device)
    logits = min(targets, most) * a.vocabulary
    if how.all_weights and learns:
        return hidden + logits * 4 * _FP32 + 2 * a.vocabulary * a.hidden * _FP32
    own = 2 * _FP32 if entropy else _FP32  # logits that became exponentials in place; with entropies, both
    if targets > most:
        passing = 2 * own + (0 if b == _FP32 else b)
    elif b == _FP32:
        passing = own + (_FP32 if entropy else 0)
    else:
        passing = own + b + (_FP32 if entropy else b if learns else 0)
    return hidden + logits * passing


def forward_bytes(how: Forward, trees: Sequence[TreeLengths]) -> int:
    """What attention holds for a moment in the last layer's forward, when its MLP has saved nothing yet."""
    return passing_scores(how, trees, backward=False) - row_tokens(how, trees) * _mlp_per_token(how)


def backward_bytes(how: Forward, trees: Sequence[TreeLengths]) -> int:
    """What the backward of a layer holds besides what was saved.

    The MLP's: gradients of its product, of gate and up, and silu(gate), I each, less the input of its last layer, which
    is freed by then. Attention's: gradients of queries, keys and values, and scores, when what the MLP saved is freed.
    """
    a, b, tokens = how.architecture, how.itemsize, row_tokens(how, trees)
    mlp = (4 if a.gated else 2) * tokens * a.intermediate * b
    if how.learns("mlp output"):
        mlp -= tokens * a.intermediate * b
    attention = tokens * (a.query_width * b + 2 * a.kv_width * _FP32 + a.hidden * _residual(how))
    attention += passing_scores(how, trees, backward=True) - tokens * _mlp_per_token(how)
    return max(mlp, attention) + unpacked_weight(how)


def unpacked_weight(how: Forward) -> int:
    """The largest weight of a quantised model in the compute type, which a product needs for a moment."""
    if not how.quantized:
        return 0
    return max(each.inputs * each.outputs for each in how.architecture.linears) * how.itemsize


def inference_bytes(how: Forward, trees: Sequence[TreeLengths], head: Head | None, *, entropy: bool = False) -> int:
    """The most that a forward without gradients holds: one layer at a time, then the head."""
    a, b, tokens = how.architecture, how.itemsize, row_tokens(how, trees)
    stream = 2 * tokens * a.hidden * _residual(how)
    mlp = 2 * tokens * a.intermediate * b
    attention = tokens * (2 * a.query_width + 3 * a.kv_width) * b + passing_scores(how, trees, backward=False)
    last = 0 if head is None else head_bytes(how, trees, head, learns=False, entropy=entropy)
    return max(stream + max(mlp, attention) + unpacked_weight(how), tokens * a.hidden * b + last)
