"""Reward sources: reward models, and functions that users write."""

from __future__ import annotations

import copy
import importlib
import json
import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefine.errors import ModelError, RecipeError, RewardError
from prefine.models.loading.location import one_line
from prefine.models.scoring.scorer import Question, RewardModel
from prefine.recipe.rl import RewardSource
from prefine.records import Conversation
from prefine.training.rl.user_code import Call, UserCodeError, is_async, preserved
from prefine.training.run.user_functions import GIVEN, found_function

# Scores are used in fp32.
_LARGEST = torch.finfo(torch.float32).max
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class PromptAnswers:
    """A prompt and the answers generated for it.

    Attributes:
        columns: JSON of the other columns of the prompt's data row.
        tools: definitions of the tools that the assistant may call.
    """

    prompt: Conversation
    answers: tuple[str, ...]
    columns: str = "{}"
    tools: tuple[dict[str, Any], ...] = ()

    def other_columns(self) -> dict[str, Any]:
        """A fresh copy of the other columns."""
        found: dict[str, Any] = json.loads(self.columns)
        return found


@dataclass(frozen=True)
class Scaling:
    """How scores are centred and scaled: (score - mean) / std."""

    mean: float = 0.0
    std: float = 1.0

    def weighted(self, scores: Sequence[float], weight: float) -> Tensor:
        """(S,) fp32 scores, centred, scaled and weighted; computed in float64, as a mean may be large."""
        return ((torch.tensor(scores, dtype=torch.float64) - self.mean) * (weight / self.std)).float()


@dataclass
class RunningScale:
    """Mean and variance of all scores so far (Welford 1962), for sources without a recorded standard deviation."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, scores: Sequence[float]) -> None:
        """Include more scores."""
        for score in scores:
            self.count += 1
            delta = score - self.mean
            self.mean += delta / self.count
            self.squares += delta * (score - self.mean)

    @property
    def std(self) -> float:
        """Standard deviation; 1 if the scores vary by no more than their rounding."""
        found = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return found if found > 1e-6 * abs(self.mean) else 1.0

    @property
    def scaling(self) -> Scaling:
        """The scaling by all scores so far."""
        return Scaling(self.mean, self.std)


class Source(ABC):
    """Scores answers: a reward model or a function.

    Attributes:
        section: its settings in the recipe.
        running: statistics of its scores so far.
    """

    def __init__(self, section: RewardSource) -> None:
        self.section = section
        self.running = RunningScale()

    @abstractmethod
    def score(self, questions: Sequence[PromptAnswers]) -> list[float]:
        """The source's own score of every answer, in order.

        Raises:
            RewardError: it fails, or does not return one finite number per answer.
        """

    def begin(self, questions: Sequence[PromptAnswers]) -> Callable[[], list[float]]:
        """Start scoring, in the background if the source can. The returned function waits for the scores."""
        return lambda: self.score(questions)

    @property
    def scaling(self) -> Scaling:
        """How its scores are centred and scaled now."""
        if self.scale == "running":
            return self.running.scaling
        # A reward model with a recorded standard deviation already subtracts its recorded mean.
        return Scaling(0.0, (self.recorded_std or 1.0) if self.scale == "std" else 1.0)

    @property
    def scale(self) -> str:
        """The recipe's scale, with auto resolved."""
        if self.section.scale != "auto":
            return self.section.scale
        return "std" if self.recorded_std else self._default_scale()

    @property
    def recorded_std(self) -> float | None:
        """The standard deviation recorded when the reward model was trained; None without one."""
        return None

    def _default_scale(self) -> str:
        return "running"


class ModelSource(Source):
    """A reward model.

    Attributes:
        fingerprint: hash of its files when it was loaded; "" if they are not local.
    """

    def __init__(self, section: RewardSource, model: RewardModel, fingerprint: str) -> None:
        super().__init__(section)
        self.model = model
        self.fingerprint = fingerprint

    def score(self, questions: Sequence[PromptAnswers]) -> list[float]:
        """See Source. The model's own tokenizer encodes the text, whichever model generated it."""
        found = []
        try:
            scored = list(self.model.score(Question(each.prompt, each.answers, each.tools) for each in questions))
        except ModelError as error:  # its scores are not finite
            raise RewardError(f"reward: {self.section.name}: {error.problem}", error.remedy) from error
        for each, scores in zip(questions, scored, strict=True):
            if scores is None:
                problem = self.model.problem(Question(each.prompt, each.answers, each.tools))
                raise RewardError(
                    f"reward: {self.section.name} cannot score an answer of {max(map(len, each.answers))} characters: "
                    f"{problem.field} {problem.reason}",
                    "Start a run under another name whose rollout.max_new_tokens and prompts fit the reward model.",
                )
            found += [score.score for score in scores]
        return found

    @property
    def recorded_std(self) -> float | None:
        """See Source."""
        return None if self.model.scale is None else self.model.scale.std


class FunctionSource(Source):
    """A user's function, plain or async: takes a list of rows and returns a number for each.

    A row holds the prompt's messages, the response, and all other columns of the prompt's data row.
    """

    def __init__(self, section: RewardSource, function: Callable[[list[dict[str, Any]]], Any]) -> None:
        super().__init__(section)
        self._function = function

    def score(self, questions: Sequence[PromptAnswers]) -> list[float]:
        """See Source."""
        with preserved():
            return self.begin(questions)()

    def begin(self, questions: Sequence[PromptAnswers]) -> Callable[[], list[float]]:
        """See Source. A coroutine runs while other sources score."""
        rows = [_row(each, answer) for each in questions for answer in each.answers]
        count = len(rows)  # counted first: the function may empty its list
        if not is_async(self._function):
            return lambda: self._numbers(Call(self._function, rows, self.section.timeout_s), count)
        call = Call(self._function, rows, self.section.timeout_s)
        return lambda: self._numbers(call, count)

    def _numbers(self, call: Call, count: int) -> list[float]:
        try:
            return _numbers(call.result(), count, self.section.name)
        except UserCodeError as error:
            raise _failed(self.section.name, str(error)) from error

    def _default_scale(self) -> str:
        return "none"


def _row(each: PromptAnswers, answer: str) -> dict[str, Any]:
    """A new row, which the function may change."""
    own: dict[str, Any] = {"prompt": [message.model_dump() for message in each.prompt], "response": answer}
    own |= {"tools": copy.deepcopy(list(each.tools))} if each.tools else {}
    return {**{f"source_{name}" if name in own else name: value for name, value in each.other_columns().items()}, **own}


def _numbers(found: Any, count: int, name: str) -> list[float]:
    if not isinstance(found, list):
        raise _failed(name, f"returned {type(found).__name__}, not a list of numbers")
    try:
        numbers = [float(value) for value in found if not isinstance(value, str)]
    except (TypeError, ValueError, OverflowError) as error:
        raise _failed(name, f"returned a list of other values ({one_line(error)}), not a list of numbers") from None
    if len(numbers) != len(found):
        raise _failed(name, "returned a list that contains text, not a list of numbers")
    if len(numbers) != count:
        raise _failed(name, f"returned {len(numbers)} numbers for {count} answers")
    bad = [place for place, number in enumerate(numbers) if not abs(number) <= _LARGEST]
    if bad:
        raise _failed(name, f"returned {numbers[bad[0]]} for answer {bad[0] + 1} of {count}")
    return numbers


def _failed(name: str, what: str) -> RewardError:
    return RewardError(
        f"reward: {name} {what}", "Correct it, then continue with --resume: everything before this update is saved."
    )


def is_function(name: str) -> bool:
    """Whether a source's name is module:function and not an existing path."""
    return found_function(name) is not None or (bool(_FUNCTION.fullmatch(name)) and not Path(name).exists())


def function_of(name: str) -> Callable[[list[dict[str, Any]]], Any]:
    """Import `module:function`; the working directory is searched, too, as with `python -m`.

    Raises:
        RecipeError: it cannot be imported, or is not a function.
    """
    if (given := found_function(name)) is not None:
        return given
    if name.startswith(GIVEN):
        raise RecipeError(
            f"{name} was passed from Python, and this process does not have it",
            "Pass the same function again: prefine.ppo(recipe, reward=function).",
            field="reward.name",
        )
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with preserved():
            function = getattr(importlib.import_module(module_name), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever importing a user's module raises, sys.exit included
        raise RecipeError(
            f"{name} could not be imported ({one_line(error)})",
            "Write module:function, with the module in the working directory or installed.",
            field="reward.name",
        ) from error
    if not callable(function):
        raise RecipeError(
            f"{name} is not a function", "Name one that takes a list and returns numbers.", field="reward.name"
        )
    found: Callable[[list[dict[str, Any]]], Any] = function
    return found
