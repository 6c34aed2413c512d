"""What PPO optimises: scores of reward models and functions, scaled, weighted, added and shaped."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from prefine.recipe.rl import PpoRewardSection
from prefine.training.rl.reward_sources import ModelSource, PromptAnswers, RunningScale, Source
from prefine.training.rl.user_code import preserved


@dataclass(frozen=True)
class Scored:
    """Scores of S answers.

    Attributes:
        proxy: (S,) fp32, the weighted sum of the scaled scores.
        shaped: (S,) fp32, the sum clipped, minus penalties: what is optimised, before the KL penalty.
        shares: by source, the mean of its part of the sum.
        scores: by source, S scores as the source returned them.
    """

    proxy: Tensor
    shaped: Tensor
    shares: dict[str, float]
    scores: dict[str, list[float]]

    def state(self) -> dict[str, Any]:
        """JSON, without `scores`."""
        return {"proxy": self.proxy.tolist(), "shaped": self.shaped.tolist(), "shares": self.shares}

    @staticmethod
    def from_state(state: Mapping[str, Any], scores: dict[str, list[float]]) -> Scored:
        """Rebuild from the value of `state`, and `scores`."""
        return Scored(torch.tensor(state["proxy"]), torch.tensor(state["shaped"]), dict(state["shares"]), scores)


class Rewards:
    """All reward sources of a recipe.

    Args:
        max_new_tokens: the most tokens that an answer can have.
    """

    def __init__(self, section: PpoRewardSection, sources: Sequence[Source], max_new_tokens: int) -> None:
        self._section = section
        self._max_new_tokens = max_new_tokens
        self.sources = list(sources)

    def score(self, questions: Sequence[PromptAnswers]) -> dict[str, list[float]]:
        """Every source's own scores, by its name."""
        if not questions:  # a process may have no prompts; functions are not called with an empty list
            return {source.section.name: [] for source in self.sources}
        with preserved():
            waiting = [(source.section.name, source.begin(questions)) for source in self.sources]
            return {name: scores() for name, scores in waiting}

    def combined(self, parts: dict[str, list[float]], lengths: Tensor, ended: Tensor) -> Scored:
        """Centre, scale, weight, add and clip the scores, and subtract penalties.

        Args:
            parts: each source's scores of S answers.
            lengths: (S,) tokens.
            ended: (S,) bool, whether an answer ended its turn itself.
        """
        for source in self.sources:
            source.running.update(parts[source.section.name])
        weighted = {
            source.section.name: source.scaling.weighted(parts[source.section.name], source.section.weight)
            for source in self.sources
        }
        proxy = sum(weighted.values(), torch.zeros(len(lengths)))
        shares = {name: float(values.mean()) for name, values in weighted.items()}
        shaped = shape(proxy, lengths, ended, self._section, self._max_new_tokens)
        return Scored(proxy, shaped, shares, parts)

    def metrics(self, scored: Scored, compared: int) -> dict[str, float]:
        """Metrics of each source, of the spread of the rewards and of clipping.

        Args:
            compared: how many answers are compared with each other: those to one prompt, or all of the update.
        """
        spread = scored.shaped.view(-1, compared).var(1, correction=0).mean().sqrt()
        return {
            **({"reward_std": float(spread)} if compared > 1 else {}),
            "reward_clipped": float(clipped(scored.proxy, self._section).float().mean()),
            **source_metrics(scored.scores, scored.shares),
        }

    def state(self) -> list[dict[str, Any]]:
        """Running statistics, for a checkpoint."""
        return [asdict(source.running) for source in self.sources]

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the reward models' weights by name; functions have none."""
        return {s.section.name: s.fingerprint for s in self.sources if isinstance(s, ModelSource)}

    def load_state(self, state: Sequence[dict[str, Any]]) -> None:
        """Restore the value of `state`."""
        for source, found in zip(self.sources, state, strict=True):
            source.running = RunningScale(**found)


def source_metrics(parts: Mapping[str, Sequence[float]], shares: Mapping[str, float]) -> dict[str, float]:
    """Mean score of each source, and the mean of its part of the sum."""
    return {
        **{f"score/{name}": statistics.fmean(parts[name]) for name in shares},
        **{f"share/{name}": share for name, share in shares.items()},
    }


def clipped(proxy: Tensor, section: PpoRewardSection) -> Tensor:
    """(S,) bool: sums of scores beyond reward.clip."""
    return torch.zeros_like(proxy, dtype=torch.bool) if section.clip is None else proxy.abs() > section.clip


def shape(proxy: Tensor, lengths: Tensor, ended: Tensor, section: PpoRewardSection, max_new_tokens: int) -> Tensor:
    """(S,) clip the sum of scores, then subtract the penalties of long answers and of those that do not end.

    An answer of more than L = max_new_tokens - overlong_tokens tokens loses overlong_penalty times its tokens beyond L
    over overlong_tokens (Yu et al. 2025, arXiv 2503.14476, eq. 13). An answer without its end of turn has
    missing_eos_value subtracted (penalty), or scores -missing_eos_value (replace; detail 3 of Huang et al. 2024, arXiv
    2403.17031). Only the answer counts, never the prompt.
    """
    shaped = proxy if section.clip is None else proxy.clamp(-section.clip, section.clip)
    shaped = shaped - section.length_penalty * lengths / 100
    if section.overlong_tokens is not None:
        beyond = (lengths - (max_new_tokens - section.overlong_tokens)).clamp(min=0)
        shaped = shaped - section.overlong_penalty * beyond / section.overlong_tokens
    value = section.missing_eos_value
    if section.missing_eos == "penalty":
        return shaped - value * (~ended)
    return torch.where(ended, shaped, -value) if section.missing_eos == "replace" else shaped
