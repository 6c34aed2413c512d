"""Runs a stage: opens the run, loads the model, prepares the data, checks, trains, evaluates and reports."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from prefine.data.prepare import require_sources
from prefine.data.reading.quarantine import Quarantine
from prefine.data.tokens.decoded import marked_example
from prefine.errors import (
    CheckpointError,
    DataError,
    ModelError,
    PrefineError,
    RecipeError,
    Stopped,
)
from prefine.models.loading.device import choose_device
from prefine.models.loading.identity import identity_of
from prefine.models.loading.load import LoadedModel, load_tokenizer, save_model
from prefine.models.loading.location import base_hash, locate_model
from prefine.models.loading.weights import saved_weights
from prefine.recipe.loading import resolved_yaml
from prefine.recipe.stage import StageRecipe, WritingRecipe
from prefine.report.facts import read_run
from prefine.report.page import write_report
from prefine.report.summary import closing_lines
from prefine.runs.atomic import write_json, write_text
from prefine.runs.directory import RunDirectory, run_provenance
from prefine.runs.ownership import RECIPE_MARK, is_own_recipe
from prefine.training.display import Display, forget_peak_memory
from prefine.training.loop.guards import Limit
from prefine.training.loop.launch import fewer_processes, lost_processes
from prefine.training.loop.loop import Loop, new_loop
from prefine.training.loop.optimiser_step import adamw
from prefine.training.loop.processes import Processes
from prefine.training.run.before import Before
from prefine.training.run.card import about_run
from prefine.training.run.checks import check_leaks, check_tokens, require
from prefine.training.run.interrupts import stop_on_signal
from prefine.training.run.preparing import preparation, prepare, say_data
from prefine.training.run.report_samples import Samples
from prefine.training.run.resume import (
    is_whole,
    new_run_id,
    read_manifest,
    require_same_model,
    require_same_recipe,
    result_hashes,
)
from prefine.training.run.session import Session
from prefine.training.run.stage import Objective, Recipe, Record, Stage
from prefine.training.run.user_functions import continued_code
from prefine.training.tracking.trackers import Trackers, require_trackers, show_results, start_trackers

_KEPT = "; what was saved before is kept"
_NOTHING_YET = " before a step was saved; the run begins at its first step"


def run_stage(stage: Stage[Recipe, Record], resume: bool, display: Display | Console) -> Path:
    """Run a stage from its recipe to its report; returns the run's folder.

    In a launch of several processes every process calls this; only the main one writes files.

    Raises:
        PrefineError: the run cannot go on. It can be resumed from what was saved.
        Stopped: Ctrl-C or SIGTERM; the run can be resumed.
    """
    began = time.perf_counter()
    recipe = stage.recipe
    if not resume:
        require_sources(recipe.data)
    require_trackers(recipe)
    # Joined first, so that each process loads to its own device.
    processes = Processes.start(cpu=choose_device(recipe.model.device).type == "cpu")
    forget_peak_memory(processes.device)
    display = display if isinstance(display, Display) else Display(display)
    if not processes.is_main:
        display.leave_to_main_process()
    if warning := fewer_processes(processes.count):
        display.say(f"warning: {warning}")
    overridden = stage.require(display)
    with _run_directory(Path(recipe.run), resume, processes) as run:
        previous = read_manifest(run)
        run.run_id = processes.from_main(new_run_id() if previous is None else previous["run_id"])
        if previous is not None and previous["status"] == "finished":
            _require_same_beginning(stage, run, previous)
            if is_whole(run, previous):
                if processes.is_main:
                    stage.renew(run, display)
                    if not run.report.exists():  # it was renewed, or killed between the last two writes
                        write_report(run.path)
                display.say(f"{run.path} is finished already: model in {run.model}, report in {run.report}")
                return run.path
            display.say(f"{run.path} is finished, but parts of its result are missing: they are made again")
        try:
            with lost_processes(processes.count):
                session = _open(stage, run, previous, processes, display, overridden)
            _train(stage, session, began, fresh=previous is None)
        except KeyboardInterrupt:
            saved = any(run.checkpoints.glob("*"))
            raise Stopped(f"interrupted{_KEPT if saved else _NOTHING_YET}") from None
        if processes.is_main:
            page = write_report(run.path)
            for line in closing_lines(read_run(run.path)):
                display.say(line)
            display.say(f"done: model in {run.model}, report in {page}")
    return run.path


@contextmanager
def _run_directory(path: Path, resume: bool, processes: Processes) -> Iterator[RunDirectory]:
    """The run's folder. Only the main process opens and locks it; a refusal is raised in all processes."""
    opened = processes.all_or_raise(lambda: RunDirectory.create(path, resume) if processes.is_main else None)
    with opened or RunDirectory(path) as run:
        yield run


def _open(
    stage: Stage[Recipe, Record],
    run: RunDirectory,
    previous: dict[str, Any] | None,
    processes: Processes,
    display: Display,
    overridden: Sequence[str],
) -> Session[Recipe]:
    """Load the model and the data. A resumed run must have the same recipe; it computes in the same number type."""
    recipe = stage.recipe
    section = recipe.model
    code, changed = continued_code(previous, stage.functions())
    if previous is not None:
        require_same_recipe(previous, stage.name, recipe)
        # A measured type is chosen once per run: measuring again could choose another one and change the result.
        section = section.model_copy(update={"dtype": previous["model"]["compute_dtype"]})
    torch.manual_seed(recipe.training.seed)  # every process starts with the same adapter
    loaded = stage.load(section)
    if previous is not None:
        require_same_model(previous, loaded.identity, section.name)
    torch.manual_seed(recipe.training.seed + processes.rank)  # and draws its own dropout
    for line in _about(loaded):
        display.say(line)
    with processes.main_first():
        prepared = prepare(stage, run, loaded.template, previous, processes.is_main)
    manifest = {
        "run_id": run.run_id,
        "stage": stage.name,
        "status": "running",
        **run_provenance(sys.argv),
        "seed": recipe.training.seed,
        "recipe": recipe.model_dump(mode="json"),
        "device": {
            "type": loaded.packed.device.type,
            "dtype": str(loaded.packed.compute_dtype).removeprefix("torch."),
            "processes": processes.count,
        },
        "model": loaded.describe(),
        "data": prepared.counts,
        "prepared": {"key": prepared.key, "digests": prepared.digests},
        "code": code,
        "samples_before": None if previous is None else previous.get("samples_before"),
    }
    session = Session(stage.name, recipe, run, display, processes, loaded, prepared, manifest)
    if previous is not None:  # some checks are made once per run
        session.record_checks(previous.get("self_checks", []))
    session.override(*changed)
    for line in changed:
        display.say(f"warning: {line}")
    say_data(session, stage.answer_tokens)
    if recipe.training.self_checks:
        rows = check_tokens(loaded.template, prepared.train, answered=not stage.answer_tokens)
        found = [*rows, check_leaks(prepared.train, prepared.heldout)]
        session.record_checks(require(found))
    else:
        session.override("training.self_checks is false: this run did not check its templates, masks and losses.")
    session.override(*overridden)
    session.manifest["example"] = marked_example(loaded.template, prepared.train[0])
    session.write_manifest("running")
    if processes.is_main and (not run.recipe.exists() or is_own_recipe(run.recipe)):
        write_text(run.recipe, RECIPE_MARK + resolved_yaml(recipe))
    return session


def _require_same_beginning(stage: Stage[Recipe, Record], run: RunDirectory, previous: dict[str, Any]) -> None:
    """Raise if a finished run had another recipe, other data or another model than those given now.

    Raises:
        PrefineError: it had, or the model or the data are missing, so that they cannot be compared.
    """
    recipe = stage.recipe
    require_same_recipe(previous, stage.name, recipe)
    continued_code(previous, stage.functions())
    location, revision = locate_model(recipe.model.name), recipe.model.revision
    require_same_model(previous, identity_of(location, revision, base_hash(location.base, revision)), location.name)
    template = load_tokenizer(location, recipe.model)
    preparation(stage, run, template, Quarantine()).require_same(previous["prepared"])


def _train(stage: Stage[Recipe, Record], session: Session[Recipe], began: float, *, fresh: bool) -> None:
    """Train from the last checkpoint, or from the first step, to the end, and write the results."""
    objective = None
    with ExitStack() as tracked:  # trackers may wait for a network: they end after the manifest says how the run ended
        try:
            with lost_processes(session.processes.count):
                trackers = tracked.enter_context(_trackers(session, fresh))
                objective = stage.start(session)
                loop = _run_loop(objective, stage.guards(), session, began, trackers)
                if session.processes.is_main:
                    _write_results(objective, session)
                    show_results(session.run, trackers, loop.position.step)
        except (PrefineError, Stopped, KeyboardInterrupt) as error:
            if fresh and objective is None and isinstance(error, RecipeError | DataError | ModelError):
                if session.processes.is_main:
                    for path in (session.run.manifest, session.run.recipe):
                        path.unlink(missing_ok=True)  # a corrected recipe starts from the beginning
                raise
            _note_end(session, "failed" if isinstance(error, PrefineError) else "stopped", str(error) or "interrupted")
            raise
        except Exception as error:  # from a callback, or a bug in prefine
            _note_end(session, "failed", f"{type(error).__name__}: {error}")
            raise
        session.processes.end()
        session.manifest |= {
            "tokens": loop.position.tokens,
            "training_seconds": round(loop.position.seconds, 3),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(loop.state.wall_seconds, 1),
            "result": result_hashes(session.run) if session.processes.is_main else {},
        }
        session.write_manifest("finished")


def _note_end(session: Session[StageRecipe], status: str, reason: str) -> None:
    session.manifest["ended_by"] = reason
    with suppress(CheckpointError):  # on a full disk, the error that ended the run matters more
        session.write_manifest(status)


def _trackers(session: Session[StageRecipe], fresh: bool) -> Trackers:
    """The recipe's trackers; none outside the main process."""
    if not session.processes.is_main:
        return Trackers()
    return start_trackers(session.recipe, session.stage, session.manifest["run_id"], not fresh, session.display)


def _run_loop(
    objective: Objective[StageRecipe],
    rules: Sequence[Limit],
    session: Session[StageRecipe],
    began: float,
    trackers: Trackers,
) -> Loop:
    """Train from the last checkpoint, or from the first step, to the last step."""
    recipe, processes, loaded = session.recipe, session.processes, session.loaded
    samples = _samples(session)
    if samples is not None:
        session.manifest["samples_before"] = samples.before(session.manifest["samples_before"])
    parameters = objective.parameters()
    optimizer = adamw(objective.learning_rate, parameters, recipe.training, loaded.packed.device)
    model, prepared_optimizer = processes.accelerator.prepare(loaded.packed, optimizer)
    with stop_on_signal(session.display) as asked:
        loop = new_loop(
            processes=processes,
            model=model,
            parameters=parameters,
            optimizer=prepared_optimizer,
            trees=session.prepared.train,
            section=recipe.training,
            objective=objective,
            guard_section=recipe.guards,
            rules=rules,
            evaluates=len(session.prepared.heldout) > 0,
            run=session.run,
            display=session.display,
            trackers=trackers,
            stop_requested=lambda: asked["stop"],
            began=began,
        )
        with closing(loop.log):
            _measure_again(objective.before, session, loop)
            checkpoint = loop.checkpoints.resume()
            if checkpoint is not None:
                for line in checkpoint.skipped:
                    session.display.say(f"warning: {line}")
                session.display.say(f"resuming after step {checkpoint.step}")
            session.manifest["total_steps"] = loop.total_steps
            session.write_manifest("running")
            try:
                loop.run_to_end()
            finally:
                session.manifest["guard_events"] = loop.state.guards.events
    best = loop.state.early_stopping
    if best.best_weights and best.best_step is not None:
        session.manifest["kept_step"] = best.best_step
    return loop


def _measure_again(before: Before | None, session: Session[StageRecipe], loop: Loop) -> None:
    """Evaluate the model as loaded again, if a resumed run has lost its evaluation before the first step."""
    lost = before is not None and before.value is None and len(session.prepared.heldout)
    if lost and any(session.run.checkpoints.glob("*")):
        session.display.say(f"warning: {session.run.heldout_before} was lost or damaged: it is measured again")
        loop.evaluation.remember()


def _write_results(objective: Objective[StageRecipe], session: Session[StageRecipe]) -> None:
    """Save the model, then its held-out results and samples. Main process only."""
    session.run.require_here()
    session.loaded.packed.eval()
    _save_result(objective, session)
    heldout = objective.finish() if len(session.prepared.heldout) else None
    samples = _samples(session)
    generation = None if samples is None else samples.after()
    write_json(session.run.evaluation, {"heldout": heldout, "generation": generation})


def _samples(session: Session[StageRecipe]) -> Samples | None:
    """None if the stage's model generates no text, and outside the main process."""
    recipe = session.recipe
    if not isinstance(recipe, WritingRecipe) or not session.processes.is_main:
        return None
    return Samples(session.run, recipe.report, session.loaded, session.prepared, session.display)


def _save_result(objective: Objective[StageRecipe], session: Session[StageRecipe]) -> None:
    """Save the model, then read it back and compare it with the one in memory."""
    if not session.run.model.exists():  # it exists if the run was killed between saving and finishing
        save_model(session.loaded, session.run.model, objective.extra_files(), about_run(session))
    from peft import PeftModel, get_peft_model_state_dict

    model = session.loaded.packed.model
    adapter = isinstance(model, PeftModel)
    held = get_peft_model_state_dict(model) if adapter else model.state_dict()
    saved = saved_weights(session.run.model)
    # The file of a whole model leaves out tied weights; for a few architectures its names differ from those in memory.
    compared = held.keys() & saved.keys()
    complete = held.keys() == saved.keys() if adapter else bool(compared)
    passed = complete and all(torch.equal(saved[name], held[name].cpu()) for name in compared)
    row = {"name": "saved model", "value": f"{len(compared)} tensors read back", "rule": "equal to those in memory"}
    session.record_checks([{**row, "passed": passed}])
    if not passed:
        raise CheckpointError(f"{session.run.model}: the file differs from what was saved", "Check the disk.")


def _about(loaded: LoadedModel) -> list[str]:
    facts = loaded.describe()
    share = facts["trainable_parameters"] / facts["parameters"]
    return [
        f"model {facts['name']}: {facts['parameters'] / 1e6:.0f} M parameters, {share:.1%} trained, "
        f"{facts['compute_dtype']} on {loaded.packed.device} ({facts['dtype_reason']}), {facts['forward']} forward",
        *([] if facts["adapter_form"] is None else [f"adapter: {facts['adapter_form']}"]),
    ]
