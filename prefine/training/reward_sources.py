"""What scores answers: reward models, and functions of the user's."""

from __future__ import annotations

import importlib
import math
import queue
import re
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefine.errors import ModelError, RecipeError, RewardError
from prefine.models.location import in_a_line
from prefine.models.scoring import Question, RewardModel
from prefine.recipe_ppo import RewardSource
from prefine.records import Conversation

# Scores are computed with in fp32.
_LARGEST = torch.finfo(torch.float32).max
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Answered:
    """A prompt and the answers written to it."""

    prompt: Conversation
    answers: tuple[str, ...]


@dataclass
class RunningScale:
    """Mean and variance of all scores seen (Welford 1962), to scale those that nobody measured."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def see(self, scores: Sequence[float]) -> None:
        """Take in more scores."""
        for score in scores:
            self.count += 1
            delta = score - self.mean
            self.mean += delta / self.count
            self.squares += delta * (score - self.mean)

    @property
    def std(self) -> float:
        """Standard deviation; 1 while it cannot be told."""
        found = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return found if found > 0 else 1.0


class Source(ABC):
    """One thing that scores answers.

    Attributes:
        section: what the recipe says of it.
        running: statistics of its scores so far.
    """

    def __init__(self, section: RewardSource) -> None:
        self.section = section
        self.running = RunningScale()

    @abstractmethod
    def score(self, answered: Sequence[Answered]) -> list[float]:
        """A score for every answer, in order, as the source itself gives them.

        Raises:
            RewardError: it fails, or gives anything but finite numbers, one an answer.
        """

    @property
    def std(self) -> float:
        """What its scores are divided by now."""
        return {"std": self.measured or 1.0, "running": self.running.std, "none": 1.0}[self.scale]

    @property
    def scale(self) -> str:
        """How its scores are scaled, settled."""
        if self.section.scale != "auto":
            return self.section.scale
        return "std" if self.measured else self._otherwise()

    @property
    def measured(self) -> float | None:
        """The standard deviation that was measured when it was made; None where nobody did."""
        return None

    def _otherwise(self) -> str:
        return "running"


class ModelSource(Source):
    """A reward model.

    Attributes:
        fingerprint: hash of its weights as they were when it was loaded, "" where they are not local.
    """

    def __init__(self, section: RewardSource, model: RewardModel, fingerprint: str) -> None:
        super().__init__(section)
        self.model = model
        self.fingerprint = fingerprint

    def score(self, answered: Sequence[Answered]) -> list[float]:
        """See Source. Text goes to the model's own tokenizer, whatever wrote it."""
        found = []
        try:
            told = list(self.model.score(Question(each.prompt, each.answers) for each in answered))
        except ModelError as error:  # its scores are no numbers
            raise RewardError(f"reward: {self.section.name}: {error.problem}", error.remedy) from error
        for each, scores in zip(answered, told, strict=True):
            if scores is None:
                raise RewardError(
                    f"reward: an answer of {max(map(len, each.answers))} characters is too long for "
                    f"{self.section.name}",
                    "Start a run of another name with a rollout.max_new_tokens that it was trained for.",
                )
            found += [score.score for score in scores]
        return found

    @property
    def measured(self) -> float | None:
        """See Source."""
        return None if self.model.scale is None else self.model.scale.std


class FunctionSource(Source):
    """A function of the user's: a list of {"prompt": messages, "response": text} in, as many numbers out."""

    def __init__(self, section: RewardSource, function: Callable[[list[dict[str, Any]]], Any]) -> None:
        super().__init__(section)
        self._function = function

    def score(self, answered: Sequence[Answered]) -> list[float]:
        """See Source."""
        rows = [
            {"prompt": [message.model_dump() for message in each.prompt], "response": answer}
            for each in answered
            for answer in each.answers
        ]
        return _numbers(self._called(rows), len(rows), self.section.name)

    def _called(self, rows: list[dict[str, Any]]) -> Any:
        """The function's answer. In a thread, as a call that hangs can be left behind there, but not stopped."""
        answer: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()

        def call() -> None:
            try:
                answer.put((_listed(self._function(rows)), None))
            except BaseException as error:  # noqa: BLE001 (whatever a user's code raises)
                answer.put((None, error))

        threading.Thread(target=call, daemon=True).start()
        try:
            found, error = answer.get(timeout=self.section.timeout_s)
        except queue.Empty:
            raise _failed(self.section.name, f"has not answered within {self.section.timeout_s:g} s") from None
        if error is not None:
            raise _failed(self.section.name, f"raised {in_a_line(error)}") from error
        return found

    def _otherwise(self) -> str:
        return "none"


def _listed(found: Any) -> Any:
    """What a function returned as a list, if it is one of something; arrays and tensors are."""
    if hasattr(found, "tolist"):
        return found.tolist()
    return list(found) if isinstance(found, Iterable) and not isinstance(found, str | bytes | Mapping) else found


def _numbers(found: Any, count: int, name: str) -> list[float]:
    if not isinstance(found, list):
        raise _failed(name, f"returned {type(found).__name__} and not a list of numbers")
    try:
        numbers = [float(value) for value in found if not isinstance(value, str)]
    except (TypeError, ValueError, OverflowError) as error:
        raise _failed(
            name, f"returned a list of something else ({in_a_line(error)}), and not a list of numbers"
        ) from None
    if len(numbers) != len(found):
        raise _failed(name, "returned a list with text in it, and not a list of numbers")
    if len(numbers) != count:
        raise _failed(name, f"returned {len(numbers)} numbers for {count} answers")
    bad = [place for place, number in enumerate(numbers) if not abs(number) <= _LARGEST]
    if bad:
        raise _failed(name, f"returned {numbers[bad[0]]} for answer {bad[0] + 1} of {count}")
    return numbers


def _failed(name: str, what: str) -> RewardError:
    return RewardError(
        f"reward: {name} {what}", "Correct it, then go on with --resume: all before this update is saved."
    )


def is_function(name: str) -> bool:
    """Whether a source's name is that of a function, module:function, and no path."""
    return bool(_FUNCTION.fullmatch(name)) and not Path(name).exists()


def function_of(name: str) -> Callable[[list[dict[str, Any]]], Any]:
    """Import `module:function`, the working directory included, as `python -m` does.

    Raises:
        RecipeError: there is none.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever importing a user's module raises
        raise RecipeError(
            f"reward.name: {name} could not be imported ({in_a_line(error)})",
            "Write module:function, with the module in the working directory or installed.",
        ) from error
    if not callable(function):
        raise RecipeError(f"reward.name: {name} is no function", "Name one that takes a list and returns numbers.")
    found: Callable[[list[dict[str, Any]]], Any] = function
    return found
