"""What PPO optimises: reward models and functions, each scaled and weighed, and the shaping of their sum."""

from __future__ import annotations

import importlib
import json
import math
import queue
import re
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from prefine.errors import ModelError, RecipeError, RewardError
from prefine.evaluation.readiness.page import JSON_NAME
from prefine.evaluation.readiness.verdict import Level
from prefine.evaluation.wording import listing
from prefine.models.load import LoadedModel
from prefine.models.location import in_a_line, locate_model
from prefine.models.reward import load_reward, read_scale
from prefine.models.scoring import Question, RewardModel
from prefine.models.shared_base import join_reward, shares_base
from prefine.recipe import ModelSection
from prefine.recipe_ppo import PpoRecipe, PpoRewardSection, RewardSource
from prefine.records import Conversation
from prefine.training.display import Display

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
    """A reward model."""

    def __init__(self, section: RewardSource, model: RewardModel) -> None:
        super().__init__(section)
        self.model = model

    def score(self, answered: Sequence[Answered]) -> list[float]:
        """See Source. Text goes to the model's own tokenizer, whatever wrote it."""
        found = []
        for each, scores in zip(
            answered, self.model.score(Question(a.prompt, a.answers) for a in answered), strict=True
        ):
            if scores is None:
                raise RewardError(
                    f"reward.name: an answer of {max(map(len, each.answers))} characters is too long for "
                    f"{self.section.name}",
                    "Lower rollout.max_new_tokens below the length that the reward model was trained for.",
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


@dataclass(frozen=True)
class Scored:
    """Scores of S answers.

    Attributes:
        proxy: (S,) fp32 weighted sum of the scaled scores: what the sources say.
        shaped: (S,) fp32 what is optimised, before the KL penalty: the sum, clipped, less penalties.
    """

    proxy: Tensor
    shaped: Tensor

    def state(self) -> dict[str, Any]:
        """What JSON holds of them."""
        return {"proxy": self.proxy.tolist(), "shaped": self.shaped.tolist()}

    @staticmethod
    def restored(state: Mapping[str, Any]) -> Scored:
        """What `state` gave."""
        return Scored(torch.tensor(state["proxy"]), torch.tensor(state["shaped"]))


class Rewards:
    """All sources of a recipe.

    Raises:
        RecipeError: a source is to be scaled by a deviation that nobody measured.
    """

    def __init__(self, section: PpoRewardSection, sources: Sequence[Source]) -> None:
        self._section = section
        self.sources = list(sources)
        for source in sources:
            if source.section.scale == "std" and source.measured is None:
                raise RecipeError(
                    f"reward.scale: std, but nobody measured that of {source.section.name}",
                    "Set it to running (that of all scores so far) or none.",
                )

    def score(self, answered: Sequence[Answered]) -> dict[str, list[float]]:
        """Every source's own scores, by its name."""
        return {source.section.name: source.score(answered) for source in self.sources}

    def combined(self, parts: dict[str, list[float]], lengths: Tensor, ended: Tensor, *, learn: bool = True) -> Scored:
        """Scale, weigh, add, clip, and take penalties off.

        Args:
            parts: each source's scores of S answers.
            lengths: (S,) tokens.
            ended: (S,) bool: whether an answer ended by itself.
            learn: whether running statistics take these scores in.
        """
        proxy = torch.zeros(len(lengths))
        for source in self.sources:
            scores = parts[source.section.name]
            if learn:
                source.running.see(scores)
            proxy += torch.tensor(scores) * (source.section.weight / source.std)
        return Scored(proxy, shape(proxy, lengths, ended, self._section))

    def state(self) -> list[dict[str, Any]]:
        """Running statistics, for a checkpoint."""
        return [asdict(source.running) for source in self.sources]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Put them back."""
        for source, found in zip(self.sources, state, strict=True):
            source.running = RunningScale(**found)


def shape(proxy: Tensor, lengths: Tensor, ended: Tensor, section: PpoRewardSection) -> Tensor:
    """(S,) clip the sum of scores, take off the length penalty, then that of answers that do not end.

    An answer without its end of turn has missing_eos_value subtracted (penalty), or scores minus it whatever else it is
    (replace; detail 3 of Huang et al. 2024, arXiv 2403.17031). Only the answer is looked at, never the prompt.
    """
    shaped = proxy if section.clip is None else proxy.clamp(-section.clip, section.clip)
    shaped = shaped - section.length_penalty * lengths / 100
    value = section.missing_eos_value
    if section.missing_eos == "penalty":
        return shaped - value * (~ended)
    return torch.where(ended, shaped, -value) if section.missing_eos == "replace" else shaped


def load_rewards(recipe: PpoRecipe, policy: LoadedModel, display: Display, *, force: bool) -> Rewards:
    """Load every source of a recipe, sharing the policy's weights where that is possible.

    Raises:
        ModelError: a reward model that cannot be loaded, or one that is not ready for PPO, unless `force`.
        RecipeError: a function that cannot be imported; a name that comes twice.
    """
    sections: list[RewardSource] = [recipe.reward, *recipe.reward.more]
    names = [section.name for section in sections]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RecipeError(f"reward: {listing(sorted(twice))} is named twice", "Name it once, with one weight.")
    found = [
        load_source(section, recipe, policy, f"reward-{place}", display, force=force)
        for place, section in enumerate(sections)
    ]
    return Rewards(recipe.reward, found)


def refuse_unfit(recipe: PpoRecipe) -> None:
    """Refuse a reward that is not fit for PPO before anything is made of a run.

    Raises:
        ModelError: a readiness report says no-go.
    """
    for name in (recipe.reward.name, *(section.name for section in recipe.reward.more), recipe.reward.judge):
        if name is not None:
            require_ready(name, Display(Console(), enabled=False), force=False)


def load_source(
    section: RewardSource, recipe: PpoRecipe, policy: LoadedModel, adapter: str, display: Display, *, force: bool
) -> Source:
    """One source; a reward run on the policy's own base becomes an adapter there, of the name given."""
    if _FUNCTION.fullmatch(section.name) and not Path(section.name).exists():
        return FunctionSource(section, _function(section.name))
    require_ready(section.name, display, force=force)
    try:
        model = _reward_model(section.name, recipe, policy, adapter, display)
    except ModelError as error:
        raise ModelError(error.problem.replace("model.name", "reward.name"), error.remedy) from error
    limit = None if model.scale is None else model.scale.max_length_tokens
    if limit is not None and recipe.rollout.max_new_tokens >= limit:
        raise RecipeError(
            f"rollout.max_new_tokens is {recipe.rollout.max_new_tokens}, but {section.name} was trained on at most "
            f"{limit} tokens, prompt and answer together",
            f"Set it to less than {limit}.",
        )
    return ModelSource(section, model)


def _reward_model(name: str, recipe: PpoRecipe, policy: LoadedModel, adapter: str, display: Display) -> RewardModel:
    location = locate_model(name)
    scale = None if location.adapter is None else read_scale(location.adapter)
    objection = shares_base(policy, location, scale, recipe.model)
    model: RewardModel
    if objection is None:
        model = join_reward(policy, location, adapter)
        display.say(f"reward {name}: an adapter on the policy's own base, which is held once")
    else:
        model = load_reward(ModelSection(name=name, device=recipe.model.device))
        display.say(f"reward {name}: loaded beside the policy ({objection})")
    theirs, ours = model.tokenizer, policy.tokenizer
    if theirs.get_vocab() != ours.get_vocab() or theirs.chat_template != ours.chat_template:
        display.say(f"reward {name}: its tokenizer or template is another than the policy's; answers go to it as text")
    return model


def require_ready(name: str, display: Display, *, force: bool) -> None:
    """Refuse a reward run whose readiness report says no-go; say aloud what else it says.

    Raises:
        ModelError: no-go, and not `force`.
    """
    path = Path(name) / JSON_NAME
    if not path.is_file():
        display.say(f"reward {name}: nobody has looked whether it is fit for PPO (prefine reward check {name})")
        return
    try:
        report = json.loads(path.read_bytes())
        verdict = Level(report["verdict"])
        reasons = [f"{found['name']}: {found['found']}" for found in report["findings"] if found["level"] == verdict]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"reward.name: {path} cannot be understood", f"Run: prefine reward check {name}") from None
    told = "; ".join(reasons)
    if verdict is Level.NO_GO and not force:
        raise ModelError(
            f"reward.name: {name} is not fit for PPO, says its readiness report ({told})",
            f"Look at {path.with_suffix('.html')} and train a better one, or add --force to go on regardless.",
        )
    said = f"readiness {verdict.value}" + (f" ({told})" if verdict is not Level.GO else "")
    display.say(f"reward {name}: {said}" + (", going on by --force" if verdict is Level.NO_GO else ""))


def _function(name: str) -> Callable[[list[dict[str, Any]]], Any]:
    """Import `module:function`, the working directory included, as `python -m` does."""
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
