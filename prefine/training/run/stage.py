"""Base classes of training methods: a `Stage` is used before a run begins, its `Objective` from then to the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from torch import nn

from prefine.data.tokens.trees import PackedBatch, TokenTree
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.sections import ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.records import Demonstration, Prompt
from prefine.runs.atomic import JSON
from prefine.runs.directory import RunDirectory
from prefine.training.display import Display
from prefine.training.loop.contract import State, Steps, Sums
from prefine.training.loop.guards import Limit
from prefine.training.run.before import Before
from prefine.training.run.session import R_co, Session
from prefine.training.run.user_functions import UserFunction
from prefine.training.tracking.tracker import Details

Recipe = TypeVar("Recipe", bound=StageRecipe)
Record = TypeVar("Record", bound=Prompt | Demonstration)


class Objective(ABC, Generic[R_co]):
    """What one run optimises. `Stage.start` makes it; the loop (see LoopObjective) and the run's results use it.

    The constructor of a subclass sets all of its fields.

    Args:
        session: the opened run.

    Attributes:
        before: held-out results before the first step; None if the objective keeps none.
    """

    before: Before | None = None

    def __init__(self, session: Session[R_co]) -> None:
        self._session = session

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""
        return self._session.loaded.trainable()

    def learning_rate(self, parameter: str) -> float | None:
        """The learning rate of a parameter; None for the recipe's."""
        return None

    @abstractmethod
    def loss(self, model: nn.Module, batch: PackedBatch) -> Sums:
        """The loss of one microbatch."""

    def step(self, steps: Steps, trees: Sequence[TokenTree]) -> dict[str, float]:
        """Take one step on these trees; returns its metrics."""
        return steps.optimise(trees)

    def state(self) -> State:
        """All that the next step depends on besides the model: see LoopObjective."""
        return State({}, {})

    def load_state(self, state: State) -> None:
        """Restore a value of `state`."""

    def rolled_back(self) -> dict[str, float]:
        """Adapt to a roll-back, for more careful steps; returns what changed besides the learning rate, by name."""
        return {}

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Mean held-out metrics of the current model, including `loss`."""

    def step_details(self) -> Details:
        """What trackers show of the last step besides its metrics: see LoopObjective."""
        return Details()

    def heldout_details(self) -> Details:
        """What trackers show of the last evaluation besides its metrics: see LoopObjective."""
        return Details()

    def extra_files(self) -> dict[str, JSON]:
        """JSON files to save beside the trained model, by name."""
        return {}

    @abstractmethod
    def finish(self) -> dict[str, JSON]:
        """The held-out part of evaluation.json, after the last step, in eval mode. Main process only."""


class Stage(ABC, Generic[Recipe, Record]):
    """One training method with its recipe. No method changes the stage, and only `start` gets the opened run.

    Args:
        recipe: the whole recipe of the run.

    Attributes:
        name: as in manifests.
        record_type: the type of records that it learns from.
        answer_tokens: tokens of data.max_length_tokens that rows leave free for generated answers.
    """

    name: str
    record_type: type[Record]
    answer_tokens = 0

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def require(self, display: Display) -> list[str]:
        """Check what the stage needs besides data and a model. Called before the run's folder is created.

        Returns: a warning for each check whose result the user has overridden.

        Raises:
            PrefineError: something is missing or unsuitable.
        """
        return []

    def functions(self) -> Sequence[UserFunction]:
        """User functions that affect the run's result."""
        return ()

    def load(self, section: ModelSection) -> LoadedModel:
        """Load the model to train: a language model, unless a stage overrides this.

        Args:
            section: the recipe's, with the number type that a resumed run began with.
        """
        return load_model(section, self.recipe.lora)

    def usable(self, record: Record) -> bool:
        """Whether the stage can learn from this valid record."""
        return True

    def guards(self) -> Sequence[Limit]:
        """Limits that guards check on the metrics of each step and evaluation."""
        return ()

    def renew(self, run: RunDirectory, display: Display) -> None:
        """Make again what in a finished run depends on fields of the recipe that have changed, without training.

        Main process only. Such fields decide neither the model nor the evaluation: see prefine.recipe.deciding.
        """

    @abstractmethod
    def start(self, session: Session[Recipe]) -> Objective[Recipe]:
        """Check what needs the opened run, and make the objective.

        Called before any step and before a checkpoint is loaded.
        """
