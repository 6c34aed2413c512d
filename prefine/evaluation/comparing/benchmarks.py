"""Tasks of lm-eval-harness, run on both models through its Python API (docs/evaluation.md, "Benchmarks")."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from prefine.comparisons.result import Direction, Metric
from prefine.comparisons.statistics import corrected_benchmarks, paired_metric
from prefine.errors import PrefineError, RecipeError
from prefine.evaluation.comparing.parts import Parts
from prefine.evaluation.comparing.questions import digest_of
from prefine.evaluation.comparing.request import EvaluationRequest
from prefine.evaluation.comparing.sides import NamedSide
from prefine.evaluation.comparing.task_files import is_task_file, task_files
from prefine.formatting import plural
from prefine.models.loading.load import LoadedModel
from prefine.models.loading.location import one_line
from prefine.runs.atomic import sha256_of_file


def benchmarks(
    request: EvaluationRequest, sides: Mapping[str, NamedSide], parts: Parts, not_computed: dict[str, str]
) -> list[Metric]:
    """The metrics of each task, paired by its examples.

    Args:
        not_computed: receives what cannot be computed, and why.
    """
    tasks = request.lm_eval
    if not tasks:
        return []
    if importlib.util.find_spec("lm_eval") is None:
        missing = PrefineError("lm-eval is not installed", "Install it: pip install 'prefine[lm-eval]'.")
        not_computed["lm-eval"] = "lm-eval is not installed: pip install 'prefine[lm-eval]'"
        parts.note_unfinished(f"lm_eval: {plural(len(tasks), 'task')} did not run", missing)
        return []
    if ends := [role for role in ("candidate", "baseline") if sides[role].endpoint is not None]:
        why = "is an endpoint; run lm-eval's own local-completions on it"
        not_computed["lm-eval"] = f"the {' and the '.join(ends)} {why}"
        return []
    version = importlib.metadata.version("lm-eval")

    def compute(loaded: LoadedModel, chosen: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
        return (_run(loaded, task, request.slots) for task in chosen)

    rows: dict[str, list[dict[str, Any]]] = {"candidate": [], "baseline": []}
    for role, found in rows.items():
        for task in dict.fromkeys(tasks):
            part = f"lm-eval-{digest_of(task)[:12]}"
            settings = {"task": task, "files": _files_of(task), "lm_eval": version}
            found.extend(parts.of_model(role, part, settings, [task], compute, block=1))
            if found[-1].get("failed"):  # perhaps for a passing reason
                parts.folder.forget(f"{role}-{part}")
    metrics: list[Metric] = []
    for now, was in zip(rows["candidate"], rows["baseline"], strict=True):
        if reason := now.get("failed") or was.get("failed"):
            not_computed[f"lm-eval {now['task']}"] = reason
            failed = PrefineError(reason, "Correct that, or leave the task out of lm_eval.")
            parts.note_unfinished(f"the task {now['task']} of lm-eval failed", failed)
            continue
        metrics += _paired(now["results"], was["results"])
        for each in now["results"]:
            for metric in each.get("unread", []):
                not_computed[f"lm-eval {each['name']}, {metric}"] = "it is no number of each example"
    return corrected_benchmarks(metrics)


def require_tasks(tasks: Sequence[str]) -> None:
    """Refuse a task's file that is missing or names no task, before anything is computed.

    Raises:
        RecipeError: see above.
    """
    for task in tasks:
        if is_task_file(task):
            if not Path(task).is_file():
                raise RecipeError(f"there is no file {task!r}", "Name a task of lm-eval, or a task's YAML file.")
            _name_in(task)


def _files_of(task: str) -> str:
    """A hash of a task's files; "" for a task of lm-eval's own."""
    return digest_of([[each.name, sha256_of_file(each)] for each in task_files(task)]) if is_task_file(task) else ""


def _text_of(task: str) -> str:
    return Path(task).read_text(encoding="utf-8") if is_task_file(task) else ""


def _name_in(file: str) -> str:
    """The name of the task in a YAML file. Its tags (!function) are left alone: only lm-eval runs code."""
    try:
        node = yaml.compose(_text_of(file), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{file!r} is not YAML ({one_line(error)})", "Correct it.") from None
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    name = next((value.value for key, value in pairs if key.value == "task" and isinstance(value.value, str)), "")
    if not name:
        raise RecipeError(f"{file!r} names no task", "Add the field task: NAME.")
    return name


def _run(loaded: LoadedModel, task: str, slots: int) -> dict[str, Any]:
    """A task's examples with their metrics; or why it could not be run."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from prefine.evaluation.comparing.harness_model import HarnessModel

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    is_file = is_task_file(task)
    try:
        manager = TaskManager(
            include_path=str(Path(task).resolve().parent) if is_file else None, include_defaults=not is_file
        )
        found = simple_evaluate(
            model=HarnessModel(loaded, slots),
            tasks=[_name_in(task) if is_file else task],
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
        )
    except Exception as error:  # noqa: BLE001 - tasks raise whatever their data and their code raise
        return {"task": task, "failed": one_line(error)}
    if found is None:
        return {"task": task, "failed": "lm-eval gave no result"}
    higher = found.get("higher_is_better", {})
    results = [_samples_of(name, samples, higher.get(name, {})) for name, samples in found["samples"].items()]
    return {"task": task, "results": results}


def _samples_of(name: str, samples: Sequence[Mapping[str, Any]], higher: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of each example by metric; of several filters the first one's."""
    filters = [str(each.get("filter", "")) for each in samples]
    first = filters[0] if filters else ""
    values: dict[str, dict[str, float]] = {}
    unread: set[str] = set()  # perplexities are pairs of numbers
    for each, kind in zip(samples, filters, strict=True):
        for metric in each.get("metrics", []):
            value = each.get(metric)
            if kind == first and isinstance(value, bool | int | float):
                values.setdefault(metric, {})[str(each["doc_id"])] = float(value)
            elif kind == first:
                unread.add(metric)
    found = {"name": name, "values": values, "higher": {metric: higher.get(metric) for metric in values}}
    return found | {"unread": sorted(unread - values.keys())}


def _paired(now: Sequence[Mapping[str, Any]], was: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    by_name = {each["name"]: each for each in was}
    for each in now:
        other = by_name.get(each["name"], {"values": {}})["values"]
        for metric, values in each["values"].items():
            direction: Direction = {True: "higher", False: "lower"}.get(each["higher"].get(metric), "neither")  # type: ignore[assignment]
            before = other.get(metric, {})
            ids = list(values)
            is_share = {*values.values(), *before.values()} <= {0.0, 1.0}
            yield paired_metric(
                f"{each['name']}.{metric}",
                f"{each['name']}, {metric}",
                "share" if is_share else "",
                "benchmark",
                direction,
                [values[doc] for doc in ids],
                [before.get(doc) for doc in ids],
            )
