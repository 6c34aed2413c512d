"""How long a stage takes, from the work of its forwards and the rates that this machine was measured to have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefine.planning.activations import Forward, Head, TreeLengths, row_tokens
from prefine.planning.stage_facts import StageFacts
from prefine.planning.workload import Workload, mismatched, typical_rows
from prefine.recipe.reward import RewardRecipe

# The share of the measured rate of large products that a whole step reaches, by device and bytes of a number: the rest
# goes to smaller products, attention and what is no product. See docs/planning.md.
_EFFICIENCY = {("cpu", 4): 0.62, ("cpu", 2): 0.42, ("cuda", 4): 0.5, ("cuda", 2): 0.4, ("mps", 4): 0.4, ("mps", 2): 0.4}
# Seconds of a layer for one row of new tokens besides its large products, by device: of its calls, with adapters; and
# of its elementwise work and attention for each slot and number of the hidden state.
_LAYER_CALLS_S = {"cpu": 0.0012, "cuda": 0.00035, "mps": 0.00035}
_LAYER_WORK_S = {"cpu": 8.7e-8, "cuda": 0.0, "mps": 0.0}
# Starting, loading, probing, checking, saving and writing the report.
_REST_S = 20.0
_REPORT_SLOTS = 32
# Answers that the readiness report spoils, each in five ways: about the work of so many pairs.
_SPOILT, _PAIRS_OF_A_SPOILT_ANSWER = 32, 2
# Rows whose lengths stand for all.
_ROWS = 256


@dataclass(frozen=True)
class Duration:
    """Predicted times in seconds.

    Attributes:
        step: of one step (for PPO, of an update), without evaluation.
        total: of the whole run; None if the number of steps is not known.
    """

    step: float
    total: float | None


def duration(stage: StageFacts, workload: Workload) -> Duration | None:
    """How long a stage takes; None without measured rates."""
    rate = stage.machine.gflops.get(stage.dtype, 0.0) * 1e9
    if not rate or not workload.trees:
        return None
    rate *= _EFFICIENCY[stage.machine.device, stage.itemsize]
    step = _update_seconds(stage, workload, rate) if stage.rl is not None else _step_seconds(stage, workload, rate)
    step += _baseline_seconds(stage, workload, stage.rows_per_step, rate)
    if stage.steps is None:
        return Duration(step, None)
    every = stage.recipe.training.evaluate_every_steps
    evaluations = 2 + ((stage.steps - 1) // every if every else 0)
    total = _REST_S + stage.steps * step + evaluations * _evaluation_seconds(stage, workload, rate)
    total += 2 * _sample_seconds(stage, workload, rate) + _readiness_seconds(stage, workload, rate)
    if stage.has_reference:  # its pass over all rows, and over those that the baseline of each step will read
        rows = (workload.rows or 0) + (workload.heldout or 0)
        total += _forward_seconds(stage, workload.trees, rows, rate)
        read = stage.steps * stage.rows_per_step + (workload.heldout or 0)
        total += _baseline_seconds(stage, workload, read, rate)
    return Duration(step, total)


def training_flops(how: Forward, trees: Sequence[TreeLengths], head: Head, passes: int = 1) -> float:
    """Operations of a forward and backward: two for each weight and token forward, two backward for the gradient of the
    input, two for that of the weight, if it is trained. Recomputation by checkpointing counts.
    """
    a, tokens = how.architecture, row_tokens(how, trees)
    adapters = sum(how.rank * (each.inputs + each.outputs) for each in how.targets)
    products = 3 if how.all_weights else 2
    again = 1 if how.checkpointing else 0
    dense = tokens * 2 * ((products + again) * a.linear_parameters + (3 + again) * adapters)
    attention = a.layers * (2 + 4 + 2 * again) * 2 * _keys_seen(trees) * a.query_width
    targets = 0 if head == "score" else sum(sum(tree.answers) for tree in trees)
    return passes * float(dense + attention) + (4 if how.all_weights else 2) * 2 * targets * a.hidden * a.vocabulary


def inference_flops(how: Forward, trees: Sequence[TreeLengths], head: Head) -> float:
    """Operations of a forward without gradients."""
    a, tokens = how.architecture, row_tokens(how, trees)
    targets = 0 if head == "score" else sum(sum(tree.answers) for tree in trees)
    dense = 2 * tokens * a.linear_parameters + 2 * targets * a.hidden * a.vocabulary
    return float(dense + a.layers * 2 * 2 * _keys_seen(trees) * a.query_width)


def _keys_seen(trees: Sequence[TreeLengths]) -> float:
    """Pairs of query and visible key: an answer's rows see their prompt, and themselves and those before."""
    seen = 0.0
    for tree in trees:
        first = tree.prompt + (tree.answers[0] if tree.answers else 0)
        seen += first * (first + 1) / 2
        seen += sum(answer * tree.prompt + answer * (answer + 1) / 2 for answer in tree.answers[1:])
    return seen


def _step_seconds(stage: StageFacts, workload: Workload, rate: float) -> float:
    """One optimiser step on rows of the mean length."""
    trees = typical_rows(workload.trees, _ROWS)
    work = training_flops(stage.forward, trees, stage.head, stage.passes)
    return work * stage.rows_per_step / len(trees) / rate


def _baseline_seconds(stage: StageFacts, workload: Workload, rows: int, rate: float) -> float:
    """Forwards without gradients over so many prompts with the answers of others; 0 without a baseline."""
    if not stage.has_baseline:
        return 0.0
    trees = mismatched(workload.trees, stage.recipe.data.max_length_tokens)
    return _forward_seconds(stage, trees, rows, rate)


def _forward_seconds(stage: StageFacts, trees: Sequence[TreeLengths], rows: int, rate: float) -> float:
    sample = typical_rows(trees, _ROWS)
    return inference_flops(stage.forward, sample, stage.head) * rows / len(sample) / rate


def _update_seconds(stage: StageFacts, workload: Workload, rate: float) -> float:
    """An update of PPO: answers, their scores, log-probabilities under policy and reference, and the steps on them."""
    assert stage.rl is not None  # noqa: S101
    prompts = (
        stage.recipe.training.batch_size if stage.rows is None else min(stage.rows, stage.recipe.training.batch_size)
    )
    learned = _step_seconds(stage, workload, rate) * min(prompts, stage.rl.ppo.minibatches) * stage.rl.ppo.epochs
    forward = _forward_seconds(stage, workload.trees, prompts, rate)
    written = generation_seconds(
        stage, prompts * stage.samples, stage.rl.rollout.slots, stage.rl.rollout.max_new_tokens, rate
    )
    return written + forward * (2 + len(stage.rewards)) + learned


def generation_seconds(stage: StageFacts, sequences: int, slots: int, new_tokens: int, rate: float) -> float:
    """Time to generate sequences of the full length: a row of new tokens at a time, which reads every weight once."""
    a = stage.shapes
    slots = max(1, min(slots, sequences))
    work = 2 * slots * a.parameters / rate
    read = (a.linear_parameters + a.vocabulary * a.hidden) * stage.itemsize / max(stage.machine.bandwidth, 1.0)
    device = stage.machine.device
    row = max(work, read) + a.layers * (_LAYER_CALLS_S[device] + slots * a.hidden * _LAYER_WORK_S[device])
    return row * new_tokens * -(-sequences // slots)


def _evaluation_seconds(stage: StageFacts, workload: Workload, rate: float) -> float:
    """One evaluation on held-out rows; of PPO on answers to some of the held-out prompts."""
    if stage.rl is None:
        rows = workload.heldout or 0
        return _forward_seconds(stage, workload.trees, rows, rate) + _baseline_seconds(stage, workload, rows, rate)
    rollout = stage.rl.rollout
    prompts = min(rollout.heldout_prompts, workload.heldout or 0)
    if not prompts:
        return 0.0
    written = generation_seconds(stage, prompts * rollout.heldout_samples, rollout.slots, rollout.max_new_tokens, rate)
    return written + _forward_seconds(stage, workload.trees, prompts, rate) * 3


def _readiness_seconds(stage: StageFacts, workload: Workload, rate: float) -> float:
    """The readiness report of a reward model: rows that are scored again, and spoilt answers."""
    if not isinstance(stage.recipe, RewardRecipe):
        return 0.0
    limits, heldout = stage.recipe.readiness, workload.heldout or 0
    rows = min(workload.rows or 0, limits.trained_pairs) + min(heldout, limits.heldout_pairs)
    rows += _PAIRS_OF_A_SPOILT_ANSWER * min(heldout, _SPOILT)
    return _forward_seconds(stage, workload.trees, rows, rate)


def _sample_seconds(stage: StageFacts, workload: Workload, rate: float) -> float:
    """The report's samples, before or after training."""
    report = getattr(stage.recipe, "report", None)
    if report is None or not report.samples:
        return 0.0
    return generation_seconds(stage, report.samples, _REPORT_SLOTS, report.max_new_tokens, rate)
