"""Options of `prefine annotate` that say what a project asks of people, and the project that they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prefine.cli.options import LARGEST_SEED
from prefine.terminal import echo

if TYPE_CHECKING:
    from prefine.annotation.importing import ImportedItems
    from prefine.annotation.records import ProjectSettings

KindOption = Annotated[
    Literal["compare", "rank", "thumb", "rewrite"] | None,
    typer.Option(help="What people do with an item [default: compare]."),
]
Title = Annotated[str | None, typer.Option(help="Shown on top of the page.")]
Instructions = Annotated[Path | None, typer.Option(metavar="FILE", help="Instructions to annotators, a Markdown file.")]
Criteria = Annotated[
    list[str] | None,
    typer.Option("--criterion", metavar="NAME", help="Judged besides the whole: helpful, harmless. Repeatable."),
]
Overlap = Annotated[int | None, typer.Option(min=1, max=1000, help="Annotators for each item [default: 1].")]
Repeats = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of items that come to an annotator a second time [default: 0]."),
]
OrderOption = Annotated[
    Literal["stratified", "given", "disagreement"] | None,
    typer.Option(help="Of items: categories in turn, as imported, or by --reward [default: stratified]."),
]
RewardOption = Annotated[
    str | None,
    typer.Option(
        "--reward",
        metavar="MODEL",
        help="First what the heads of this reward model disagree on: the order disagreement.",
    ),
]
LeaseMinutes = Annotated[
    float | None,
    typer.Option(min=0.1, max=100_000, help="An item not voted on in this time goes to others [default: 30]."),
]
Ties = Annotated[bool | None, typer.Option("--ties/--no-ties", help="Whether ties may be chosen.")]
Notes = Annotated[bool | None, typer.Option("--notes/--no-notes", help="Whether notes may be written.")]
ProjectSeed = Annotated[
    int | None, typer.Option(min=0, max=LARGEST_SEED, help="Of order, sides and repeats [default: 0].")
]


def given_settings(
    kind: str | None,
    title: str | None,
    instructions: Path | None,
    criteria: Sequence[str] | None,
    overlap: int | None,
    repeats: float | None,
    order: str | None,
    reward: str | None,
    lease_minutes: float | None,
    ties: bool | None,
    notes: bool | None,
    seed: int | None,
) -> dict[str, object]:
    """The settings that were given, by their names in ProjectSettings.

    The order "disagreement" is none of them: `order_by_reward` sets it once the items are there.
    """
    from prefine.errors import DataError

    told = None
    if instructions is not None:
        try:
            told = instructions.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{instructions}: cannot be read: {getattr(error, 'strerror', None) or error}",
                "Name a Markdown file in UTF-8.",
                field="--instructions",
            ) from None
    values: dict[str, object] = {
        "kind": kind,
        "title": title,
        "instructions": told,
        "criteria": tuple(criteria) if criteria else None,
        "overlap": overlap,
        "repeats": repeats,
        "order": _order_setting(order, reward),
        "lease_minutes": lease_minutes,
        "allow_ties": ties,
        "allow_notes": notes,
        "seed": seed,
    }
    return {name: value for name, value in values.items() if value is not None}


def _order_setting(order: str | None, reward: str | None) -> str | None:
    from prefine.errors import DataError

    if order == "disagreement" and reward is None:
        raise DataError(
            "the order disagreement is that of a reward model's heads, and none is named",
            "Name one with --reward, or choose another order.",
            field="--order",
        )
    if reward is not None and order not in (None, "disagreement"):
        raise DataError(
            f"{order!r} leaves the reward model without effect", "Leave out --order or --reward.", field="--order"
        )
    return None if order == "disagreement" else order


_REWARD = {"reward": "--reward", "model.name": "--reward", "model.device": "--device"}
_OPTIONS = {"criteria": "--criterion", "allow_ties": "--ties", "allow_notes": "--notes"}


def _option(name: str) -> str:
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}")


def kind_of_project(path: Path, given: dict[str, object]) -> Literal["compare", "rank", "thumb", "rewrite"]:
    """The kind of the project at `path`, or of the one that will be made there.

    Raises:
        DataError: a setting that cannot be, or another one than the project has.
    """
    from prefine.annotation.project import ProjectReader, is_begun, require_settings
    from prefine.errors import DataError, about

    if is_begun(path):
        there = ProjectReader(path).settings
        for name, value in given.items():
            if getattr(there, name) != value:
                raise DataError(
                    f"{path} has {str(getattr(there, name))[:60]!r}, and a project's settings stay as they are",
                    "Leave it out, or name a new project with --project.",
                    field=_option(name),
                )
        return there.kind
    settings = _made(given)
    with about(None, {name: _option(name) for name in given}):
        require_settings(settings)
    return settings.kind


def _made(given: dict[str, object]) -> ProjectSettings:
    from prefine.annotation.records import ProjectSettings

    return ProjectSettings(**given)  # type: ignore[arg-type]


def add_items(path: Path, given: dict[str, object], found: Sequence[ImportedItems]) -> None:
    """Add items to the project, made if there is none; says how many, and what was left out."""
    from prefine.annotation.project import Project, is_begun
    from prefine.formatting import plural

    left_out: Counter[str] = Counter()
    items = [item for each in found for item in each.items]
    for each in found:
        left_out += each.left_out
    with Project(path) if is_begun(path) else Project.create(path, _made(given)) as project:
        added = project.add_items(items)
        total = project.progress().items
    for reason, count in left_out.most_common():
        echo(f"{plural(count, 'row')} left out: {reason}", err=True)
    if added < len(items):
        echo(f"{plural(len(items) - added, 'item')} that the project has already", err=True)
    echo(f"{plural(added, 'item')} added to {path}, which has {total}", err=True)


def require_order(kind: Literal["compare", "rank", "thumb", "rewrite"], reward: str | None) -> None:
    """Refuse a reward model that cannot order a project's items, before any work.

    Raises:
        PrefineError: it has one head, or the items of this kind have one answer.
    """
    if reward is None:
        return
    from prefine.errors import about
    from prefine.evaluation.active_choice import require_heads, require_pairs

    with about(None, _REWARD):
        require_pairs(kind)
        require_heads(reward)


def order_by_reward(path: Path, reward: str | None, device: str) -> None:
    """Hand out first what a reward model's heads disagree on; nothing without one."""
    if reward is None:
        return
    from prefine import api
    from prefine.annotation.project import Project
    from prefine.cli.progress import counting
    from prefine.errors import about
    from prefine.evaluation.active_choice import order_by_disagreement
    from prefine.formatting import plural

    with Project(path) as project, counting("scoring") as progress, about(None, _REWARD):
        require_order(project.settings.kind, reward)
        without = order_by_disagreement(project, api.load(reward, device=device).reward_model, progress)
        total = project.progress().items
    echo(f"{plural(total, 'item')} ordered by the disagreement of {reward}", err=True)
    if without:
        echo(f"{plural(without, 'item')} without a score come last: an answer leaves its prompt no room", err=True)
