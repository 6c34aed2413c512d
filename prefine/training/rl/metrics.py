"""Metrics of an update; docs/ppo.md defines each."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from prefine.data.tokens.trees import TokenTree
from prefine.degeneration import distinct, look_at
from prefine.objectives import kl
from prefine.objectives.advantage import explained_variance
from prefine.objectives.masked import padded
from prefine.training.rl.algorithms import Targets
from prefine.training.rl.rollouts import Rollouts, Timings

# Metrics of an update that took no optimiser step.
_NO_STEP = dict.fromkeys(("loss", "grad_norm", "policy_loss", "approx_kl", "clip_fraction"), 0.0)


def update_metrics(
    rollouts: Rollouts,
    targets: Targets,
    rows: Sequence[dict[str, float]],
    ratios: tuple[float, float],
    timings: Timings,
    kl_coefficient: float,
) -> dict[str, float]:
    """Metrics of one update.

    Args:
        rows: metrics of its optimiser steps; may be empty.
        ratios: smallest and largest ratio pi / pi_old of its tokens.
        kl_coefficient: the one that its rewards were shaped with.
    """
    scored, k1, k3 = rollouts.scored, rollouts.kl, kl.k3(rollouts.logprobs, rollouts.reference)
    of_answers = padded(k1, rollouts.lengths)[0].sum(1)
    names = [name for name in rows[0] if name != "tokens"] if rows else []
    means = {name: statistics.fmean(row[name] for row in rows) for name in names} or _NO_STEP
    trained = sum(row["tokens"] for row in rows)
    seconds = timings.seconds
    new_tokens = int(rollouts.lengths.sum())
    return {
        **means,
        "score": float(scored.proxy.mean()),
        "score_median": statistics.median(scored.proxy.tolist()),
        "reward": float((scored.shaped - kl_coefficient * of_answers).mean()),
        "kl_k1": float(k1.mean()),
        "kl_k3": float(k3.mean()),
        "kl_sequence": float(of_answers.mean()),
        "kl_coefficient": kl_coefficient,
        "entropy": float(rollouts.entropy.mean()),
        "explained_variance": explained_variance(rollouts.values, targets.returns),
        "ratio_min": ratios[0] if rows else 1.0,
        "ratio_max": ratios[1] if rows else 1.0,
        **text_metrics(rollouts.texts, rollouts.trees, rollouts.ended.tolist()),
        "optimiser_steps": len(rows),
        "tokens": trained,
        **{f"seconds_{phase}": value for phase, value in seconds.items()},
        "generated_tokens_per_s": new_tokens / max(seconds.get("generate", 0.0), 1e-9),
        "scored_tokens_per_s": new_tokens / max(seconds.get("score", 0.0), 1e-9),
        "trained_tokens_per_s": trained / max(seconds.get("train", 0.0), 1e-9),
    }


def extremes(ranges: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The smallest and the largest number of several ranges."""
    lows, highs = zip(*ranges, strict=True)
    return min(lows), max(highs)


def text_metrics(texts: Sequence[str], trees: Sequence[TokenTree], ended: Sequence[bool]) -> dict[str, float]:
    """Mean length, share that ended, share that is degenerate, and diversity of answers."""
    answers = [list(answer) for tree in trees for answer in tree.answers]
    looks = [look_at(text, answer) for text, answer in zip(texts, answers, strict=True)]
    count = len(answers)
    return {
        "response_tokens": sum(map(len, answers)) / count,
        "ended": sum(ended) / count,
        "blank": sum(look.blank for look in looks) / count,
        "stuck": sum(look.stuck for look in looks) / count,
        "looping": sum(look.looping for look in looks) / count,
        "degenerate": sum(look.degenerate for look in looks) / count,
        "degenerate_count": sum(look.degenerate for look in looks),
        "distinct_1": distinct(answers, 1),
        "distinct_2": distinct(answers, 2),
    }
