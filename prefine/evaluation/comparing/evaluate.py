"""Compares two models on the same prompts: the one function behind `prefine evaluate` and `prefine.evaluate`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from prefine import __version__
from prefine.comparisons.answer_metrics import answer_metrics
from prefine.comparisons.gate import read_gate
from prefine.comparisons.missing import with_missing
from prefine.comparisons.result import Comparison
from prefine.comparisons.statistics import corrected
from prefine.comparisons.verdict import verdict
from prefine.errors import DataError, Paused, PrefineError, Stopped
from prefine.evaluation.comparing.benchmarks import require_tasks
from prefine.evaluation.comparing.folder import EvaluationFolder, Progress
from prefine.evaluation.comparing.gathered import Gathered
from prefine.evaluation.comparing.gathering import gather
from prefine.evaluation.comparing.overlap import trained_on_warnings
from prefine.evaluation.comparing.parts import Parts
from prefine.evaluation.comparing.questions import Questions, from_files, from_run, read_demonstrations, read_pairs
from prefine.evaluation.comparing.request import EvaluationRequest, default_folder
from prefine.evaluation.comparing.rewards import require_reward
from prefine.evaluation.comparing.sides import NamedSide, Sides, as_section, named_side, starting_side, with_dtype
from prefine.report.comparison.page import write_comparison
from prefine.runs.atomic import sha256_of_file, write_json


class Evaluation(NamedTuple):
    """A finished comparison.

    Attributes:
        comparison: the content of report.json.
        folder: that it was written to, with report.html and answers.jsonl.
    """

    comparison: Comparison
    folder: Path


class Evaluated(NamedTuple):
    """What a call came to.

    Attributes:
        evaluation: the comparison, as far as it could be computed.
        unfinished: what was asked for and could not be computed now, and may be by the same call later: an endpoint did
            not answer, or a benchmark failed.
    """

    evaluation: Evaluation
    unfinished: list[PrefineError]


def evaluate(request: EvaluationRequest, progress: Progress = lambda what, done, total: None) -> Evaluation:
    """Compare a candidate with a baseline.

    A call that was interrupted continues where it was when it is made again.

    Raises:
        PrefineError: a model, a file or a setting cannot be used; what was computed stays in the folder.
        Paused: interrupted by Ctrl-C; likewise.
    """
    return evaluate_as_far_as_possible(request, progress).evaluation


def evaluate_as_far_as_possible(
    request: EvaluationRequest, progress: Progress = lambda what, done, total: None
) -> Evaluated:
    """As `evaluate`, and what another call may add."""
    gate = read_gate(request.gate) if isinstance(request.gate, Path) else request.gate
    require_tasks(request.lm_eval)
    candidate = named_side("candidate", request.candidate)
    baseline = named_side("baseline", request.baseline) if request.baseline else starting_side(candidate)
    sides = {"candidate": candidate, "baseline": baseline}
    if request.reference is not None:
        sides["reference"] = named_side("reference", request.reference)
    require_reward(request.reward)
    questions = _questions(request, candidate)
    for side in sides.values():
        side.fetch()
    path = request.out or default_folder(candidate.name, baseline.name)
    with EvaluationFolder(path, request.force, request.renew) as folder:
        folder.begin(_settings(request, sides, questions))
        section = with_dtype(as_section(request.device, request.dtype, request.chat_template), folder.dtype)
        parts = Parts(request, sides, Sides(sides, section, folder.note_dtype), folder, progress)
        try:
            gathered = gather(request, sides, questions, parts)
        except (Stopped, KeyboardInterrupt) as error:
            raise Paused(f"interrupted; what was computed is kept in {path}") from error
        gathered.warnings += trained_on_warnings(sides, questions)
        comparison = _compared(request, sides, questions, gathered, parts)
        if gate is not None:
            comparison = comparison.model_copy(update={"gate": gate.rules(comparison)})
        folder.write_rows(folder.answers, [row.model_dump(mode="json") for row in gathered.rows])
        folder.write_rows(folder.regression, [row.model_dump(mode="json") for row in gathered.regression_rows])
        write_json(folder.report, comparison.model_dump(mode="json"))
        write_comparison(folder.path)
    return Evaluated(Evaluation(comparison, path), parts.unfinished)


def _questions(request: EvaluationRequest, candidate: NamedSide) -> Questions:
    """The prompts and the held-out rows; those of the candidate's run unless the request names sources."""
    held = None if candidate.run is None else from_run(candidate.run, request.limit)
    if not request.prompts and held is None:
        raise DataError(
            f"{candidate.name} has no held-out rows, so there are no prompts to answer",
            "Name a file with --prompts.",
            field="prompts",
        )
    questions = held or from_files(request.prompts, request.limit)
    if request.prompts and held is not None:
        questions = from_files(request.prompts, request.limit)
        questions.pairs, questions.demonstrations = held.pairs, held.demonstrations
        questions.pairs_left_out = held.pairs_left_out
    if request.pairs:
        questions.pairs, questions.pairs_left_out = read_pairs(request.pairs)
    if request.demonstrations:
        questions.demonstrations, questions.demonstrations_left_out = read_demonstrations(request.demonstrations)
    return questions


def _settings(request: EvaluationRequest, sides: dict[str, NamedSide], questions: Questions) -> dict[str, Any]:
    """What decides the answers. Parts that can be added to a comparison (a judge, a reward model) are not among it."""
    return {
        **{role: sides[role].settings for role in ("candidate", "baseline")},
        "prompts": questions.digest,
        "sampling": asdict(request.sampling),
        "samples": request.samples,
        "slots": request.slots,
        "device": request.device,
        "dtype": request.dtype,
        "chat_template": _template_text(request.chat_template),
    }


def _template_text(named: str | None) -> str | None:
    """What a chat template is told apart by: the hash of its file, or its name if it is none."""
    if named is None or not Path(named).is_file():
        return named
    return sha256_of_file(Path(named))


def _compared(
    request: EvaluationRequest, sides: dict[str, NamedSide], questions: Questions, found: Gathered, parts: Parts
) -> Comparison:
    metrics = [*answer_metrics(found.rows, found.places, same_tokens=found.same_tokens), *found.metrics]
    metrics, win_rates, regression = corrected(metrics, found.win_rates, found.regression, found.decided_by)
    comparison = Comparison(
        prefine=__version__,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        candidate=sides["candidate"].described(parts.folder.dtype),
        baseline=sides["baseline"].described(parts.folder.dtype),
        prompts={
            "source": questions.source,
            "asked": len(questions.prompts),
            "count": len({*found.places}),
            "left_out": dict(questions.all_left_out + found.left_out),
            "categories": dict(Counter(each.category for each in questions.prompts if each.category)),
            "with_reference": sum(bool(each.reference) for each in questions.prompts),
        },
        sampling={**asdict(request.sampling), "samples": request.samples},
        verdict=verdict(found.decided_by, metrics, win_rates, regression, found.benchmarks),
        metrics=metrics,
        win_rates=win_rates,
        regression=regression,
        benchmarks=found.benchmarks,
        warnings=found.warnings,
        not_computed=found.not_computed,
        command=list(request.command),
        recipes={role: side.recipe for role, side in sides.items() if side.recipe and role != "reference"},
        seconds=parts.folder.seconds,
    )
    return with_missing(comparison)
