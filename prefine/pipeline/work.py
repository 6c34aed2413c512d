"""How each method's stage is run, and which files are its result."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefine.comparisons.gate import gate_of
from prefine.json_reading import JsonError, read_json_object
from prefine.pipeline.digests import KnownDigests, files_below
from prefine.pipeline.evaluating import answers_result, judge_of, run_evaluation
from prefine.recipe.pipeline import Pipeline, runs_of
from prefine.recipe.pipeline_methods import EvaluateRecipe, ExportRecipe, ReportRecipe, as_list
from prefine.recipe.pipeline_stage import STAGE, PipelineStage
from prefine.runs.atomic import storage_errors
from prefine.runs.ownership import is_ours

if TYPE_CHECKING:
    from prefine.training.display import Display

_EXPORT = "export.json"
# Users edit it.
_README = "README.md"
_PAGE = "report.html"


@dataclass(frozen=True)
class StageResult:
    """What a stage left.

    Attributes:
        results: hashes of the files that its inputs decide, by path from its folder.
        others: paths of files that also hold times.
        gate: of an evaluation with a gate: whether it passed.
    """

    results: dict[str, str]
    others: tuple[str, ...]
    gate: bool | None = None


def require_stage(stage: PipelineStage) -> None:
    """Check, before any stage runs, what can be checked without a model.

    Raises:
        PrefineError: a gate, a format, a type or a task cannot be used.
    """
    recipe = stage.recipe
    if isinstance(recipe, EvaluateRecipe):
        from prefine.evaluation.comparing.benchmarks import require_tasks

        gate_of(recipe.gate)
        require_tasks(tuple(recipe.lm_eval))
        judge_of(recipe)
    if isinstance(recipe, ExportRecipe):
        from prefine.export.formats import dtype_named, format_named

        dtype_named(recipe.dtype)
        for each in as_list(recipe.to):
            format_named(each)


def run_stage(pipeline: Pipeline, stage: PipelineStage, display: Display, digests: KnownDigests) -> StageResult:
    """Run a stage to its end, or on from where it was.

    Raises:
        PrefineError: it cannot go on. Stopped: it was asked to stop.
    """
    recipe = pipeline.in_place(stage.name)
    if isinstance(recipe, EvaluateRecipe):
        return _evaluated(stage.folder, recipe, display, digests)
    if isinstance(recipe, ExportRecipe):
        return _exported(stage.folder, recipe, display, digests)
    if isinstance(recipe, ReportRecipe):
        return _reported(pipeline, stage)
    return _trained(stage, recipe, display, digests)


def _trained(stage: PipelineStage, recipe: Any, display: Display, digests: KnownDigests) -> StageResult:
    from prefine import api

    train: Callable[..., Any] = getattr(api, stage.method)
    # A process that was killed in the first moments leaves nothing, or an empty lock, which is no run to resume.
    begun = is_ours(stage.folder)
    train(recipe, resume=begun, display=display, **({"force": True} if stage.force else {}))
    model = stage.folder / "model"
    files = {f"model/{name}": file for name, file in files_below(model).items() if name != _README}
    files["evaluation.json"] = stage.folder / "evaluation.json"
    return StageResult({name: digests.of_file(file) for name, file in files.items()}, ("manifest.json",))


def _evaluated(folder: Path, recipe: EvaluateRecipe, display: Display, digests: KnownDigests) -> StageResult:
    with _shown(display) as progress:
        gate = run_evaluation(folder, recipe, display.say, progress)
    return StageResult(answers_result(folder, digests), ("report.json", _PAGE), gate)


def _exported(folder: Path, recipe: ExportRecipe, display: Display, digests: KnownDigests) -> StageResult:
    from prefine.export.run_export import export_run, note_export

    results: dict[str, str] = {}
    others: list[str] = []
    for to in as_list(recipe.to):
        name = re.sub(r"[^\w.\-]+", "-", to)
        out = folder / name
        if _is_export(out):
            note_export(recipe.model, out)
        else:
            with _shown(display) as progress:
                exported = export_run(
                    recipe.model, to, out=out, dtype=recipe.dtype, force=recipe.force, progress=progress
                )
            for failure in exported.failures:
                display.say(f"warning: kept with force: {failure}")
        files = files_below(out)
        results |= {f"{name}/{file}": digests.of_file(path) for file, path in files.items() if _is_decided(file)}
        others.append(f"{name}/{_EXPORT}")
    return StageResult(results, tuple(others))


def _is_export(folder: Path) -> bool:
    """Whether an export was finished there; one appears whole or not at all."""
    try:
        return bool(read_json_object(folder / _EXPORT))
    except (OSError, JsonError):
        return False


def _is_decided(name: str) -> bool:
    return name not in (_EXPORT, _README)


def _reported(pipeline: Pipeline, stage: PipelineStage) -> StageResult:
    from prefine.report.overview.page import write_overview

    names = runs_of(stage.recipe, pipeline) if isinstance(stage.recipe, ReportRecipe) else []
    folders = [
        pipeline.stages[name.removeprefix(STAGE)].folder if name.startswith(STAGE) else Path(name) for name in names
    ]
    with storage_errors(stage.folder):
        stage.folder.mkdir(parents=True, exist_ok=True)
    write_overview(folders, stage.folder / _PAGE)
    return StageResult({}, (_PAGE,))


@contextmanager
def _shown(display: Display) -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows how much of a part is done, each part on the display's own bar."""
    with ExitStack() as bars:
        current = ""

        def show(what: str, done: int, total: int) -> None:
            nonlocal current
            if what != current:
                bars.close()
                bars.enter_context(display.progress(total, done, what))
                current = what
            display.advance(done)

        yield show
