"""The interface of all reward models, from text to scores, and the scale of their scores."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from prefine.data.reading.rows import Problem
from prefine.errors import ModelError
from prefine.records import Conversation
from prefine.runs.atomic import JSON


class ScoreScale(BaseModel):
    """The scale of a model's raw scores, measured on held-out answers when it was trained.

    Attributes:
        bias: mean raw score of each head; it is subtracted, so that 0 is an average answer.
        std: standard deviation of the centred scores; PPO divides by it.
        answers: number of answers that both were measured on.
        max_length_tokens: limit of prompt and answer in training; longer prompts are cut (see
            prefine.data.tokens.fitting).
        quantization: quantization of the base weights, as in a recipe.
        compute_dtype: compute dtype of the measurement.
        format: format of this file.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    bias: Annotated[tuple[float, ...], Field(min_length=1)]
    std: Annotated[float, Field(gt=0)]
    answers: Annotated[int, Field(ge=2)]
    max_length_tokens: Annotated[int, Field(ge=2)]
    quantization: Literal["none", "nf4", "int8"] = "none"
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    format: Literal[1] = 1

    def as_json(self) -> dict[str, JSON]:
        """Contents of `reward.json`."""
        found: dict[str, JSON] = self.model_dump(mode="json")
        return found

    @staticmethod
    def of(raw: Tensor, max_length_tokens: int, **settings: Any) -> ScoreScale:
        """Measure raw scores (N, k) of held-out answers, N at least 2 (Huang et al. 2024, arXiv 2403.17031).

        Args:
            raw: the scores, fp32.
            max_length_tokens: see the attribute.
            settings: other attributes.

        Raises:
            ModelError: the scores do not differ, or are not finite.
        """
        bias = raw.double().mean(0)
        std = float((raw.double() - bias).mean(1).std())
        if not (std > 0 and math.isfinite(std)):
            raise ModelError(
                f"the held-out scores do not differ (standard deviation {std:g}): the reward model has learned nothing",
                "Check the training loss; raise training.learning_rate, or use more or cleaner pairs.",
            )
        measured = {"bias": tuple(bias.tolist()), "std": std, "answers": len(raw)}
        return ScoreScale.model_validate({**measured, "max_length_tokens": max_length_tokens, **settings})


@dataclass(frozen=True)
class Question:
    """A prompt and the answers to score; the prompt is computed once for all of them.

    `tools` are the definitions of the tools that the assistant may call.
    """

    prompt: Conversation
    answers: Sequence[str]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Score:
    """One answer's score.

    Attributes:
        score: centred score, the mean over heads.
        heads: centred score of each head.
        tokens: number of tokens in the answer.
    """

    score: float
    heads: tuple[float, ...]
    tokens: int

    @property
    def disagreement(self) -> float:
        """Standard deviation over heads; 0 with one head."""
        return statistics.pstdev(self.heads)


class RewardModel(ABC):
    """Scores answers.

    Attributes:
        name: the name that the user gave.
        scale: the recorded scale; None without one: its scores are then raw.
        tokenizer: the model's transformers tokenizer, which encodes all text.
    """

    name: str
    scale: ScoreScale | None
    tokenizer: Any

    @abstractmethod
    def score(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        """Scores of each question's answers, in order, lazily; None if they cannot be scored: see `problem`."""

    @abstractmethod
    def lengths(self, question: Question) -> list[int] | None:
        """For each of a question's answers, the tokens of it and its prompt as they are scored; None as in `score`."""

    @property
    @abstractmethod
    def network(self) -> Any:
        """transformers' model, with its config, device and dtype."""

    def score_padded(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        """The same scores, on padded rows as in other libraries; for checks."""
        return self.score(questions)

    def problem(self, question: Question) -> Problem:
        """Why a question cannot be scored."""
        return Problem("completion", "leaves its prompt no room within the model's length")

    def _centred(self, raw: Tensor, tokens: Sequence[int]) -> list[Score]:
        bias = torch.zeros(raw.shape[1]) if self.scale is None else torch.tensor(self.scale.bias)
        heads = (raw.float().cpu() - bias).tolist()
        if not torch.isfinite(raw).all():
            raise ModelError(
                f"{self.name} gives scores that are not finite", "Load it with dtype float32, or train it again."
            )
        return [Score(statistics.fmean(own), tuple(own), n) for own, n in zip(heads, tokens, strict=True)]
