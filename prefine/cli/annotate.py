"""prefine annotate import, open, export, status and compare."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefine.cli.annotation_settings import (
    Criteria,
    Instructions,
    KindOption,
    LeaseMinutes,
    Notes,
    OrderOption,
    Overlap,
    ProjectSeed,
    Repeats,
    RewardOption,
    Ties,
    Title,
    add_items,
    given_settings,
    kind_of_project,
    order_by_reward,
    require_order,
)
from prefine.cli.options import (
    LARGEST_COUNT,
    LARGEST_SEED,
    AsJson,
    Device,
    MaxNewTokens,
    ModelTemplate,
    Slots,
    Temperature,
    TopK,
    TopP,
    sampling_options,
)
from prefine.terminal import echo

if TYPE_CHECKING:
    from socket import socket

    from prefine.annotation.importing import ImportedItems
    from prefine.evaluation.comparing.request import EvaluationRequest
    from prefine.web.policy import AccessPolicy

_PASSWORD_VARIABLE = "PREFINE_PASSWORD"  # noqa: S105 - a name
_DEFAULT_PROJECT = Path("project.db")
_OF_COMPARISON = {"baseline": "BASELINE", "candidate": "CANDIDATE", "prompts": "--prompts"}


class AnnotationFormat(StrEnum):
    """What votes are exported as."""

    preferences = "preferences"
    votes = "votes"
    arena = "arena"
    openai_evals = "openai-evals"
    promptfoo = "promptfoo"
    csv = "csv"


ProjectPath = Annotated[Path, typer.Argument(metavar="PROJECT", help="A project: project.db.")]
ProjectOut = Annotated[
    Path, typer.Option("--project", metavar="FILE", help="The project; made if there is none, else added to.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; others than this machine's own need a password.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
Password = Annotated[
    str | None,
    typer.Option(envvar=_PASSWORD_VARIABLE, help="Asked of annotators without a personal link; set it as a variable."),
]
AllowedNames = Annotated[
    list[str] | None,
    typer.Option("--allow-host", metavar="NAME", help="Another name that people call this machine by; repeat it."),
]
LinksFor = Annotated[
    list[str] | None,
    typer.Option("--link", metavar="PSEUDONYM", help="Print a new personal link for this annotator. Repeatable."),
]
Browser = Annotated[bool, typer.Option(help="Open the page in this machine's browser.")]


def import_(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Pairs, rows with prompt and answers, files of prefine generate, or the folder of an evaluation.",
            show_default=False,
        ),
    ],
    project: ProjectOut = _DEFAULT_PROJECT,
    kind: KindOption = None,
    title: Title = None,
    instructions: Instructions = None,
    criterion: Criteria = None,
    overlap: Overlap = None,
    repeats: Repeats = None,
    order: OrderOption = None,
    reward: RewardOption = None,
    lease_minutes: LeaseMinutes = None,
    ties: Ties = None,
    notes: Notes = None,
    seed: ProjectSeed = None,
    device: Device = "auto",
) -> None:
    """Put items to be judged into a project. Which answer a pair prefers is not shown; the same rows again add nothing.

    Files of answers to the same prompts are joined: each prompt becomes an item with the answers of all of them.
    """
    from prefine.annotation.importing import import_items, items_of_comparison
    from prefine.report.comparison.reading import ANSWERS_NAME, read_answers, read_comparison

    settings = given_settings(
        kind, title, instructions, criterion, overlap, repeats, order, reward, lease_minutes, ties, notes, seed
    )
    wanted = kind_of_project(project, settings)
    require_order(wanted, reward)
    folders = [Path(each) for each in sources if (Path(each) / ANSWERS_NAME).is_file()]
    files = [each for each in sources if Path(each) not in folders]
    found: list[ImportedItems] = [import_items(files, wanted)] if files else []
    for folder in folders:
        comparison = read_comparison(folder)
        names = comparison.candidate.name, comparison.baseline.name
        found.append(items_of_comparison(read_answers(folder), *names, wanted))
    add_items(project, settings, found)
    order_by_reward(project, reward, device)


def open_(
    project: ProjectPath = _DEFAULT_PROJECT,
    reward: RewardOption = None,
    device: Device = "auto",
    host: Host = "127.0.0.1",
    port: Port = 8010,
    password: Password = None,
    allow_host: AllowedNames = None,
    link: LinksFor = None,
    browser: Browser = True,
) -> None:
    """Open the page on which people judge. Ctrl-C ends it. A vote that the page has taken is on the disk."""
    with _listening(host, port, password, allow_host or ()) as (policy, sock):
        order_by_reward(project, reward, device)
        _open(project, policy, sock, password, allow_host or (), link or (), browser=browser)


def export(
    to: Annotated[
        AnnotationFormat,
        typer.Option(help="Rows to train on, arena JSONL, a spreadsheet, or the files of another program."),
    ],
    project: ProjectPath = _DEFAULT_PROJECT,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="File, or folder of openai-evals and promptfoo; default: print JSON lines."),
    ] = None,
) -> None:
    """Write a project's votes. What a format cannot hold, such as ties, is counted with the reason.

    Training reads the project itself, too: prefine dpo RECIPE --set data.train=project.db.
    """
    from prefine.annotation.project import ProjectReader
    from prefine.cli.annotation_export import export_arena, export_csv, export_evals, export_rows, refuse_project

    reader = ProjectReader(project)
    refuse_project(project, out)
    if to is AnnotationFormat.preferences:
        lines = export_rows(project, "preferences", out)
    elif to is AnnotationFormat.votes:
        lines = export_rows(project, "votes", out)
    elif to is AnnotationFormat.arena:
        lines = export_arena(reader, out)
    elif to is AnnotationFormat.csv:
        lines = export_csv(reader, out)
    else:
        lines = export_evals(project, to.value, out)
    for line in lines:
        echo(line, err=True)


def status(project: ProjectPath = _DEFAULT_PROJECT, as_json: AsJson = False) -> None:
    """Show how far a project is, how well annotators agree, and which model is preferred, with intervals."""
    from dataclasses import asdict

    from prefine.annotation.project import ProjectReader
    from prefine.annotation.summary import summary
    from prefine.cli.annotation_status import progress_lines

    reader = ProjectReader(project)
    progress, judgements = reader.progress(), reader.judgements()
    findings = summary(judgements, reader.items()) if judgements else []
    if as_json:
        value = {"progress": asdict(progress), "findings": findings}
        echo(json.dumps(value, ensure_ascii=False))
        return
    for line in (*progress_lines(progress), *findings):
        echo(line)


def compare(
    candidate: Annotated[
        str, typer.Argument(metavar="CANDIDATE", help="A run, a folder, a hub id, embedded:… or an endpoint.")
    ],
    baseline: Annotated[str, typer.Argument(metavar="BASELINE", help="The other model.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Rows with a prompt. Repeatable; default: the run's held-out rows."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_COUNT, help="At most so many prompts, evenly spaced; default: all.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For the answers; default: evaluations/CANDIDATE-against-BASELINE."),
    ] = None,
    project: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The project; made if there is none [default: project.db in that folder]."),
    ] = None,
    title: Title = None,
    instructions: Instructions = None,
    criterion: Criteria = None,
    overlap: Overlap = None,
    repeats: Repeats = None,
    order: OrderOption = None,
    reward: RewardOption = None,
    lease_minutes: LeaseMinutes = None,
    ties: Ties = None,
    notes: Notes = None,
    seed: ProjectSeed = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    sampling_seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the first answer.")] = 0,
    slots: Slots = 64,
    chat_template: ModelTemplate = None,
    device: Device = "auto",
    host: Host = "127.0.0.1",
    port: Port = 8010,
    password: Password = None,
    allow_host: AllowedNames = None,
    link: LinksFor = None,
    browser: Browser = True,
) -> None:
    """Let two models answer the same prompts, and open the page on which people judge the answers without the names.

    The answers and their report are those of prefine evaluate. The same command continues after an interruption.
    """
    from prefine.evaluation.comparing.request import EvaluationRequest, default_folder
    from prefine.generation.sampling import Sampling

    settings = given_settings(
        "compare", title, instructions, criterion, overlap, repeats, order, reward, lease_minutes, ties, notes, seed
    )
    path = project or (out or default_folder(candidate, baseline)) / _DEFAULT_PROJECT
    kind_of_project(path, settings)  # refuses settings that do not fit before any work
    require_order("compare", reward)
    with sampling_options("annotate compare"):
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed=sampling_seed)
    request = EvaluationRequest(
        *(candidate, baseline, tuple(prompts or ()), limit),
        sampling=sampling,
        slots=slots,
        regression=False,
        out=out,
        device=device,
        chat_template=chat_template,
        command=("prefine", *sys.argv[1:]),
    )
    with _listening(host, port, password, allow_host or ()) as (policy, sock):  # refused before any work
        add_items(path, settings, [_answered(request, candidate, baseline)])
        order_by_reward(path, reward, device)
        _open(path, policy, sock, password, allow_host or (), link or (), browser=browser)


def _answered(request: EvaluationRequest, candidate: str, baseline: str) -> ImportedItems:
    """Both models' answers as items."""
    from prefine.annotation.importing import items_of_comparison
    from prefine.cli.evaluation_output import evaluation_progress
    from prefine.errors import about
    from prefine.evaluation.comparing.evaluate import evaluate
    from prefine.report.comparison.reading import read_answers

    with evaluation_progress() as progress, about(None, _OF_COMPARISON | {"chat_template": "--chat-template"}):
        _, folder = evaluate(request, progress)
    return items_of_comparison(read_answers(folder), candidate, baseline, "compare")


@contextmanager
def _listening(
    host: str, port: int, password: str | None, names: Sequence[str]
) -> Iterator[tuple[AccessPolicy, socket]]:
    """Inside, the page's address is taken; who may come in is settled."""
    from prefine.web.policy import session_policy
    from prefine.web.server import listening_socket

    policy = session_policy(host, password or None, other_names=names)
    with listening_socket(host, port) as sock:
        yield policy, sock


def _open(
    path: Path,
    policy: AccessPolicy,
    sock: socket,
    password: str | None,
    names: Sequence[str],
    links: Sequence[str],
    *,
    browser: bool,
) -> None:
    """Serve the page of a project until it is interrupted."""
    import webbrowser

    from prefine.annotation.page.access import link_path
    from prefine.annotation.page.app import create_app
    from prefine.annotation.project import Project
    from prefine.web.policy import is_loopback
    from prefine.web.server import address_for_others, run_app

    with Project(path) as project:
        address = address_for_others(sock, names)
        lines = [f"{path} is open at {address} (Ctrl-C ends it)"]
        lines += [f"{name}: {address}{link_path(project.annotator(name))}" for name in links]

        def ready() -> None:
            echo("\n".join(lines), err=True)
            if browser and is_loopback(policy.host) and sys.stderr.isatty():
                webbrowser.open(address)

        sessions = path.with_name(f"{path.name}.sessions")
        run_app(create_app(project, policy, password or None, sessions), sock, ready)
