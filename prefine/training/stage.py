"""A stage, and the opened run it works in: what every stage brings, and what each finds there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from prefine.atomic import JSON, write_json
from prefine.data.batch import TokenTree
from prefine.data.prepare import Prepared
from prefine.models.load import LoadedModel, load_model
from prefine.recipe import LoraSection, ModelSection
from prefine.rundir import RunDirectory, rows_of_kind
from prefine.training.before import Before
from prefine.training.contract import Loss, State, Steps
from prefine.training.display import Display
from prefine.training.guards import Rule
from prefine.training.processes import Processes
from prefine.training.user_functions import UserFunction


@dataclass
class Session:
    """An opened run with its parts."""

    stage: str
    recipe: Any
    run: RunDirectory
    display: Display
    processes: Processes
    loaded: LoadedModel
    prepared: Prepared
    manifest: dict[str, Any]
    checks: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def write_manifest(self, status: str) -> None:
        """Write manifest.json with all that is known by now. Main process only."""
        if not self.processes.is_main:
            return
        self.run.require_here()
        self.manifest |= {"status": status, "self_checks": self.checks, "warnings": self.warnings}
        write_json(self.run.manifest, self.manifest)

    def override(self, *warnings: str) -> None:
        """Note that the user has gone on in spite of a check: the report says so at its top, too."""
        self.warnings += warnings
        self.manifest["overridden"] = [*self.manifest.get("overridden", []), *warnings]

    def before_and_after(self) -> dict[str, dict[str, float]]:
        """Two of the held-out evaluations in the run's metrics: the first, and that of the weights which are kept."""
        rows = rows_of_kind(self.run.metrics, "heldout")
        kept = next((row for row in rows if row["step"] == self.manifest.get("kept_step")), rows[-1])
        told = [{k: v for k, v in row.items() if k not in ("kind", "step")} for row in (rows[0], kept)]
        return {"before": told[0], "after": told[1]}


class Stage(ABC):
    """What a training stage brings.

    Attributes:
        name: as in manifests.
        kind: the record type it learns from.
        before: what it keeps of held-out rows as they were before the first step, once begun; None keeps nothing.
    """

    name: str
    kind: Any
    before: Before | None = None
    # Room that rows leave within data.max_length_tokens for answers that are still to be written.
    answer_tokens = 0

    def require(self, display: Display) -> None:  # noqa: B027 - most stages need nothing but data and a model
        """Find what else the stage needs; called before the run's folder is made.

        Raises:
            PrefineError: it is not there, or not fit.
        """

    def functions(self) -> Sequence[UserFunction]:
        """The user's functions that decide the run's result."""
        return ()

    def load(self, section: ModelSection, lora: LoraSection | None) -> LoadedModel:
        """The model to be trained: a language model, unless a stage says otherwise."""
        return load_model(section, lora)

    def usable(self, record: Any) -> bool:
        """Whether the stage can learn from this valid record."""
        return True

    @abstractmethod
    def begin(self, session: Session) -> Loss:
        """Called once the model is loaded, before any step and before a checkpoint is loaded; gives the loss."""

    def parameters(self, loaded: LoadedModel) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        return loaded.trainable()

    def learning_rate(self, parameter: str) -> float | None:
        """A learning rate of this parameter's own; None for the recipe's."""
        return None

    def guards(self) -> Sequence[Rule]:
        """What the guards look at in each step's metrics."""
        return ()

    def step(self, steps: Steps, trees: Sequence[TokenTree]) -> dict[str, float]:
        """Take one step on these trees; gives its metrics."""
        return steps.optimise(trees)

    def state(self) -> State:
        """What the next step depends on besides the model: see LoopStage."""
        return State({}, {})

    def load_state(self, state: State) -> None:  # noqa: B027 - most stages have no state
        """Return to a state that `state` gave."""

    def rolled_back(self) -> dict[str, Any]:
        """Go on more carefully after a roll-back; gives what was changed besides the learning rate, by name."""
        return {}

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Mean held-out metrics of the model as it is now, `loss` among them."""

    def beside_the_model(self) -> dict[str, JSON]:
        """JSON files, by name, that are saved in one folder with the trained model."""
        return {}

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """The held-out part of evaluation.json, after the last step, in eval mode. Main process only."""
