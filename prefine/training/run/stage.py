"""Base class of training stages, and the session that a stage works in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from prefine.data.prepare import Prepared
from prefine.data.tokens.trees import TokenTree
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.runs.atomic import JSON, write_json
from prefine.runs.directory import RunDirectory, rows_of_kind
from prefine.training.display import Display
from prefine.training.loop.contract import Loss, State, Steps
from prefine.training.loop.guards import Limit
from prefine.training.loop.processes import Processes
from prefine.training.run.before import Before
from prefine.training.run.user_functions import UserFunction


@dataclass
class Session:
    """An opened run: its folder, model and data, and what its manifest will say.

    Attributes:
        stage: name of the stage.
        recipe: the whole recipe of that stage.
        run: the run's folder.
        display: what the user sees.
        processes: the processes that train together.
        loaded: the model.
        prepared: the token stores of training and held-out rows.
        manifest: what manifest.json holds besides checks and warnings.
        checks: results of the self-checks so far.
        warnings: for the top of the report.
    """

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
        """Write manifest.json with all that is known by now; does nothing in other processes than the main one."""
        if not self.processes.is_main:
            return
        self.run.require_here()
        self.manifest |= {"status": status, "self_checks": self.checks, "warnings": self.warnings}
        write_json(self.run.manifest, self.manifest)

    def record_checks(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep results of self-checks; they take the place of earlier ones of the same name, as after a resume."""
        names = {row["name"] for row in rows}
        self.checks[:] = [*(row for row in self.checks if row["name"] not in names), *rows]

    def override(self, *warnings: str) -> None:
        """Record that the user overrode a check; the report says so at its top, too."""
        self.warnings += warnings
        self.manifest["overridden"] = [*self.manifest.get("overridden", []), *warnings]

    def before_and_after(self) -> dict[str, dict[str, float]]:
        """The first held-out evaluation in the run's metrics, and the one of the weights that are kept."""
        rows = rows_of_kind(self.run.metrics, "heldout")
        kept = next((row for row in rows if row["step"] == self.manifest.get("kept_step")), rows[-1])
        told = [{k: v for k, v in row.items() if k not in ("kind", "step")} for row in (rows[0], kept)]
        return {"before": told[0], "after": told[1]}


class Stage(ABC):
    """Base class of training stages. The loop sees a stage as a LoopStage.

    Attributes:
        name: as in manifests.
        kind: the record type that it learns from.
        before: held-out results before the first step, set by `begin`; None if the stage keeps none.
        answer_tokens: tokens of data.max_length_tokens that rows leave free for generated answers.
    """

    name: str
    kind: Any
    before: Before | None = None
    answer_tokens = 0

    def require(self, display: Display) -> None:  # noqa: B027 - most stages need nothing but data and a model
        """Check for what the stage needs besides data and a model; called before the run's folder is made.

        Raises:
            PrefineError: something is missing or not fit.
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
        """Trainable parameters by name."""
        return loaded.trainable()

    def learning_rate(self, parameter: str) -> float | None:
        """The learning rate of a parameter; None for the recipe's."""
        return None

    def guards(self) -> Sequence[Limit]:
        """What guards check in the metrics of each step and evaluation."""
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
        """Mean held-out metrics of the present model, `loss` among them."""

    def extra_files(self) -> dict[str, JSON]:
        """JSON files to save beside the trained model, by name."""
        return {}

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """The held-out part of evaluation.json, after the last step, in eval mode. Main process only."""
