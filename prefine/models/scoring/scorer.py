"""Text in, scores out: what every reward model does, whatever made it, and what makes its scores mean something."""

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
    """What makes raw scores mean something: measured on held-out answers when the model was trained.

    Attributes:
        bias: mean raw score of each head there; it is subtracted, so that 0 is an average answer.
        std: standard deviation of the centred scores there; PPO divides by it.
        answers: on how many answers both were measured.
        max_length_tokens: prompt and answer as the model was trained; longer prompts are cut (see
            prefine.data.tokens.fitting).
        quantization: of the base weights, as in a recipe.
        compute_dtype: of the products that they were measured with.
        format: of this file.
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
        """What `reward.json` holds."""
        found: dict[str, JSON] = self.model_dump(mode="json")
        return found

    @staticmethod
    def of(raw: Tensor, max_length_tokens: int, **settings: Any) -> ScoreScale:
        """Measure raw scores (N, k) of held-out answers, N at least 2 (Huang et al. 2024, arXiv 2403.17031).

        Args:
            raw: fp32.
            max_length_tokens: as the attribute; `settings` are the other ones.

        Raises:
            ModelError: the scores do not differ, or are not finite.
        """
        bias = raw.double().mean(0)
        std = float((raw.double() - bias).mean(1).std())
        if not (std > 0 and math.isfinite(std)):
            raise ModelError(
                f"the held-out scores do not differ (standard deviation {std:g}): the reward model has learned nothing",
                "Look at the training loss; raise training.learning_rate, or give more or cleaner pairs.",
            )
        measured = {"bias": tuple(bias.tolist()), "std": std, "answers": len(raw)}
        return ScoreScale.model_validate({**measured, "max_length_tokens": max_length_tokens, **settings})


@dataclass(frozen=True)
class Question:
    """A prompt and the answers to be scored; the prompt is computed once for all of them.

    `tools` are definitions of the tools that the assistant may call.
    """

    prompt: Conversation
    answers: Sequence[str]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Score:
    """One answer's score.

    Attributes:
        score: centred; the mean over heads.
        heads: each head's own centred score.
        tokens: of the answer.
    """

    score: float
    heads: tuple[float, ...]
    tokens: int

    @property
    def disagreement(self) -> float:
        """Standard deviation over heads; 0 with one head."""
        return statistics.pstdev(self.heads)


class RewardModel(ABC):
    """Gives scores to answers.

    Attributes:
        name: as the user said.
        scale: None for a model that nobody measured: its scores are as they come.
        tokenizer: the transformers tokenizer; text is tokenized by it, whatever wrote the text.
    """

    name: str
    scale: ScoreScale | None
    tokenizer: Any

    @abstractmethod
    def score(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        """Scores of each question's answers, in order, lazily; None where they cannot be scored: see `problem`."""

    def score_padded(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        """The same scores on padded rows, as other libraries compute them; for checks."""
        return self.score(questions)

    def problem(self, question: Question) -> Problem:
        """Why a question is not scored."""
        return Problem("completion", "leaves its prompt no room within the model's length")

    def _centred(self, raw: Tensor, tokens: Sequence[int]) -> list[Score]:
        bias = torch.zeros(raw.shape[1]) if self.scale is None else torch.tensor(self.scale.bias)
        heads = (raw.float().cpu() - bias).tolist()
        if not torch.isfinite(raw).all():
            raise ModelError(
                f"{self.name} gives scores that are not finite", "Load it with dtype float32, or train it again."
            )
        return [Score(statistics.fmean(own), tuple(own), n) for own, n in zip(heads, tokens, strict=True)]
