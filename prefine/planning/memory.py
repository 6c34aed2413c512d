"""The peak memory of a stage, as a sum of terms at each moment of its run. docs/planning.md explains every term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from prefine.generation.slot_forward import SlotForward
from prefine.generation.slot_writer import ROW_TOKENS
from prefine.models.scoring.packed_scorer import MAX_TOKENS
from prefine.planning.activations import TreeLengths, inference_bytes, step_bytes
from prefine.planning.other_models import other_models_bytes, other_models_why
from prefine.planning.stage_facts import StageFacts
from prefine.planning.weights import frozen_bytes
from prefine.planning.workload import Workload, largest_microbatch, microbatch_count, mismatched

# Resident memory of a process that has imported what a run needs, before it loads a model, and of one that has loaded
# and probed it, read its data and compiled kernels. Measured on Linux, x86-64, torch 2.13: see docs/planning.md.
LOADING_BASE = 480_000_000
CPU_BASE = 620_000_000
# The heap of the C library (glibc): temporaries of a layer leave holes that later aligned blocks do not fit. It is a
# measured share of what a step holds. Blocks above the largest threshold are mapped apart and leave none.
HEAP_HOLES_SHARE = 0.25
_MAPPED_APART = 32 << 20
# Not measured on a GPU: the driver's context with the libraries' own buffers, and the share of memory that torch's
# allocator holds in blocks that it cannot use.
GPU_BASE = 700_000_000
GPU_UNUSED_SHARE = 0.05

_FP32 = 4
_SHARE_FOR_PACKING = 0.25


@dataclass(frozen=True, slots=True)
class Term:
    """A part of the memory at one moment.

    Attributes:
        name: short.
        bytes: how much.
        why: how it was computed, for people.
    """

    name: str
    bytes: int
    why: str


@dataclass(frozen=True)
class Moment:
    """What is in memory at one moment of a run."""

    name: str
    terms: tuple[Term, ...]

    @property
    def bytes(self) -> int:
        """The sum of its terms."""
        return sum(term.bytes for term in self.terms)


def moments(stage: StageFacts, workload: Workload) -> tuple[Moment, ...]:
    """The moments of a stage's run at which its memory may be highest.

    Args:
        stage: what is trained, and how.
        workload: its rows, cut to the recipe's length.
    """
    held = _held(stage, workload)
    learned = _trained(stage)
    found = [Moment("training step", (*held, *learned, *_step(stage, workload)))]
    if (loading := _loading(stage)) is not None:
        found.append(loading)
    found.append(Moment("optimiser step", (*held, *learned, _gradients(stage))))
    if stage.has_baseline:
        found.append(Moment("baseline", (*held, *learned, _baseline(stage, workload))))
    if stage.generates:
        found.append(Moment("generation", (*held, *learned, *_generation(stage, workload))))
    if stage.rl is not None:
        found.append(Moment("scoring and measuring", (*held, *learned, _scoring(stage, workload))))
    if stage.machine.device == "cuda":
        found = [_with_unused(moment) for moment in found]
    return tuple(found)


def peak(found: Sequence[Moment]) -> Moment:
    """The moment of the most memory."""
    return max(found, key=lambda moment: moment.bytes)


def weight_bytes(stage: StageFacts) -> int:
    """The weights of the model in the type that they are loaded in."""
    if stage.all_weights:
        return stage.base_parameters * _FP32
    return frozen_bytes(stage.shapes, stage.score_heads, stage.quantization, stage.dtype)


def _held(stage: StageFacts, workload: Workload) -> list[Term]:
    """What is in memory during the whole of training."""
    base = CPU_BASE if stage.machine.device != "cuda" else GPU_BASE
    what = "Python, torch and libraries" if stage.machine.device != "cuda" else "driver and libraries on the GPU"
    dtype = "float32" if stage.all_weights else stage.dtype
    named = dtype if stage.quantization == "none" else f"{stage.quantization}, the rest {dtype}"
    found = [
        Term("process", base, what),
        Term("weights", weight_bytes(stage), f"{stage.base_parameters / 1e6:,.0f} million in {named}"),
    ]
    if stage.adapter_parameters:
        found.append(
            Term(
                "adapters",
                stage.adapter_parameters * _FP32,
                f"rank {stage.rank} on {len(stage.targets)} layers, float32"
                + (", half of which holds the start" if stage.on_principal else ""),
            )
        )
    if others := other_models_bytes(stage):
        found.append(Term("other models", others, other_models_why(stage)))
    if stage.recipe.training.keep_best:
        found.append(Term("best weights", stage.trainable * _FP32, "training.keep_best: a copy of what is trained"))
    if rows := workload.rows:
        touched = min(rows, stage.recipe.training.batch_size * (stage.steps or rows))
        size = round(touched * workload.mean_tokens * 8)
        if stage.machine.device != "cuda" and size:
            found.append(Term("rows", size, f"{touched:,} rows of {workload.mean_tokens:.0f} tokens, mapped from disk"))
    return found


def _trained(stage: StageFacts) -> list[Term]:
    return [
        Term("optimiser", stage.trainable * 2 * _FP32, f"AdamW: two float32 for each of {stage.trainable:,} weights")
    ]


def _gradients(stage: StageFacts) -> Term:
    return Term("gradients", stage.trainable * _FP32, "float32, of what is trained")


def step_trees(stage: StageFacts, workload: Workload) -> tuple[TreeLengths, ...]:
    """The largest microbatch of an optimiser step."""
    trees = workload.trees
    budget = stage.recipe.training.max_tokens_per_microbatch
    if stage.rl is not None:  # an answer is independent of its prompt's others: a large tree is computed in parts
        trees = tuple(_part(tree, budget) for tree in trees)
    count = stage.rows_per_step * (stage.samples if stage.rl is not None else 1)
    return largest_microbatch(trees, count, budget, workload.shared)


def _part(tree: TreeLengths, budget: int) -> TreeLengths:
    """The largest part of a tree within the budget."""
    answers = tree.answers
    while len(answers) > 1 and tree.prompt + sum(answers) > budget:
        answers = answers[:-1]
    return TreeLengths(tree.prompt, answers)


def _step(stage: StageFacts, workload: Workload) -> list[Term]:
    trees = step_trees(stage, workload)
    entropy = stage.rl is not None and stage.rl.ppo.entropy_coefficient > 0
    step = step_bytes(stage.forward, trees, stage.head, entropy=entropy, passes=stage.passes)
    tokens, longest = sum(tree.tokens for tree in trees), max(tree.longest for tree in trees)
    several = microbatch_count(workload.trees, stage.rows_per_step, stage.recipe.training.max_tokens_per_microbatch) > 1
    kept = "one layer at a time, recomputed" if stage.forward.checkpointing else f"{stage.shapes.layers} layers"
    found = [
        Term("activations", step.saved, f"{tokens:,} tokens in a microbatch, {kept}"),
        Term("attention", step.scores + step.masks, f"scores of sequences of up to {longest:,} tokens"),
        Term("head or backward", step.passing, "logits of a chunk, or what a layer's backward holds for a moment"),
    ]
    if step.weights:
        found.append(Term("casts", step.weights, "of trained matrices, kept for the backward pass"))
    if several or stage.all_weights:
        found.append(_gradients(stage))
    width = sum(tree.tokens for tree in trees) * stage.shapes.hidden * stage.itemsize
    if stage.machine.device == "cpu" and width < _MAPPED_APART:
        held = step.saved + step.scores + step.passing
        found.append(Term("heap", round(HEAP_HOLES_SHARE * held), "holes that the C library leaves: a measured share"))
    return [term for term in found if term.bytes]


def _loading(stage: StageFacts) -> Moment | None:
    """Loading, when the file is mapped into memory besides the weights made of it."""
    if stage.machine.device == "cuda":
        return None
    terms = (
        Term("process", LOADING_BASE, "Python, torch and libraries"),
        Term("weights", weight_bytes(stage), "as they are held"),
        Term("weight files", stage.model.file_bytes, "mapped while they are read"),
    )
    return Moment("loading", terms)


def _generation(stage: StageFacts, workload: Workload) -> list[Term]:
    a, b = stage.shapes, stage.itemsize
    slots, new = stage.generated
    prompt = max((tree.prompt for tree in workload.trees), default=1)
    longest = prompt + new
    room = SlotForward(cast(Any, None), slots).room(longest, slots)
    cache = a.layers * 2 * a.kv_width * b * room
    prompts = max(1, min(slots, ROW_TOKENS // prompt))
    row = inference_bytes(stage.forward, (TreeLengths(prompt, ()),) * prompts, None)
    logits = slots * a.vocabulary * (b + 3 * _FP32)
    found = [
        Term("keys and values", cache, f"{slots} slots of up to {longest:,} tokens, and an eighth more"),
        Term("new tokens", max(row, logits), f"a row of up to {ROW_TOKENS:,} prompt tokens, or {slots} rows of logits"),
    ]
    packed = (a.linear_parameters + a.vocabulary * a.hidden) * b
    free = stage.machine.usable_bytes or 0
    if stage.machine.packs and b < _FP32 and not stage.all_weights and packed < free * _SHARE_FOR_PACKING:
        found.append(Term("packed weights", packed, "a second copy in the layout of bfloat16 products"))
    return found


def _scoring(stage: StageFacts, workload: Workload) -> Term:
    """Forwards without gradients over an update's answers: by the reward model, the policy and its reference."""
    measured = inference_bytes(stage.forward, step_trees(stage, workload), "actor_critic", entropy=True)
    trees = largest_microbatch(workload.trees, stage.recipe.training.batch_size, MAX_TOKENS, workload.shared)
    scored = inference_bytes(stage.forward, trees, None)
    return Term("answers", max(measured, scored), "one layer at a time, over the largest microbatch")


def _baseline(stage: StageFacts, workload: Workload) -> Term:
    """A forward without gradients over prompts with the answers of others: at worst each with the longest one."""
    training = stage.recipe.training
    longest = max(workload.trees, key=lambda tree: sum(tree.answers)).answers
    paired = [replace(tree, answers=longest) for tree in workload.trees]
    trees = mismatched(paired, stage.recipe.data.max_length_tokens)
    chosen = largest_microbatch(trees, stage.rows_per_step, training.max_tokens_per_microbatch, workload.shared)
    size = inference_bytes(stage.forward, chosen, stage.head)
    return Term("answers of others", size, "one layer at a time, over the largest microbatch")


def _with_unused(moment: Moment) -> Moment:
    size = round(GPU_UNUSED_SHARE * moment.bytes)
    return Moment(moment.name, (*moment.terms, Term("allocator", size, "blocks that cannot be used; not measured")))
