"""Pipelines whose stages write a file in place of training, and are as quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from prefine.pipeline import running
from prefine.pipeline.running import PipelineResult, run_chosen
from prefine.pipeline.standing import chosen
from prefine.pipeline.view import PipelineView
from prefine.pipeline.work import StageResult
from prefine.recipe.pipeline import Pipeline, load_pipeline
from prefine.recipe.pipeline_stage import PipelineStage

Work = Callable[[PipelineStage], StageResult | None]


class SilentView(PipelineView):
    """Keeps what it would show, and needs no display of a stage."""

    def __init__(self) -> None:
        super().__init__(Console(), enabled=False)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keep one line."""
        self.said.append(text)

    @property
    def display(self) -> Any:
        """None: nothing trains."""
        return None


class Desk:
    """A folder with a pipeline of every kind of stage, its data, and stages that only write a file.

    Args:
        folder: the current one.
        patched: replaces the work of stages.

    Attributes:
        worked: the stages that were run, in order.
        work: may do something in place of writing the file, as a stage's real work would.
        gates: stage -> whether its gate passes.
    """

    def __init__(self, folder: Path, patched: pytest.MonkeyPatch) -> None:
        patched.chdir(folder)
        patched.setattr(running, "run_stage", self._run)
        patched.setattr(running, "_free_memory", lambda: None)  # nothing holds any, and a collection takes a while
        patched.setattr(running, "predicted", lambda recipe, method: {"seconds": 60.0})
        self.worked: list[str] = []
        self.work: Work = lambda stage: None
        self.gates: dict[str, bool] = {"better": True}
        for name in ("demonstrations", "pairs", "questions"):
            Path(f"{name}.jsonl").write_text(f'{{"name": "{name}"}}\n')
        Path("gate.yaml").write_text("verdict: any\n")
        data = {"train": "pairs.jsonl"}
        sft = {"name": "stage:sft"}
        self.values: dict[str, Any] = {
            "pipeline": "desk",
            "folder": "out",
            "stages": {
                "sft": {"method": "sft", "data": {"train": "demonstrations.jsonl"}},
                "reward": {"method": "reward", "model": sft, "data": data},
                "dpo": {"method": "dpo", "model": sft, "data": data},
                "ppo": {"method": "ppo", "model": sft, "data": data, "reward": {"name": "stage:reward"}},
                "better": {
                    **{"method": "evaluate", "candidate": "stage:dpo", "against": "stage:sft"},
                    **{"prompts": "questions.jsonl", "gate": "gate.yaml"},
                },
                "served": {"method": "export", "model": "stage:dpo"},
                "all": {"method": "report"},
            },
        }

    def pipeline(self, *overrides: str) -> Pipeline:
        """The pipeline, read from its file."""
        Path("p.yaml").write_text(yaml.safe_dump(self.values, sort_keys=False))
        return load_pipeline(Path("p.yaml"), overrides)

    def run(
        self, *overrides: str, start: str | None = None, only: str | None = None, force: bool = False
    ) -> PipelineResult:
        """Run it; `worked` begins anew."""
        self.worked = []
        self.view = SilentView()
        made = self.pipeline(*overrides)
        return run_chosen(made, chosen(made, start, only, force), self.view)

    def _run(self, pipeline: Pipeline, stage: PipelineStage, display: None, digests: Any) -> StageResult:
        self.worked.append(stage.name)
        stage.folder.mkdir(parents=True, exist_ok=True)
        if stage.method != "export":
            (stage.folder / ".lock").write_text(f"prefine {'evaluation' if stage.method == 'evaluate' else 'run'}")
        if (result := self.work(stage)) is not None:
            return result
        name = {"evaluate": "parts/weights", "export": "merged/weights"}.get(stage.method, "weights")
        file = stage.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(stage.name)
        if stage.method == "export":
            (file.parent / "export.json").write_text('{"files": {"weights": {}}}')
        return StageResult({name: digests.of_file(file)}, (), self.gates.get(stage.name))


STAGES = ("sft", "reward", "dpo", "ppo", "better", "served", "all")
"""In the order of a run."""
