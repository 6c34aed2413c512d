"""Prepares a run's data: from its recipe to the token stores in its folder."""

from __future__ import annotations

from typing import Any

from prefine.data.prepare import Preparation, Prepared
from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.stream import remarks
from prefine.data.tokens.template import ChatTemplate
from prefine.recipe.stage import StageRecipe
from prefine.runs.directory import RunDirectory
from prefine.runs.ownership import PREPARED_FILES
from prefine.training.run.session import Session
from prefine.training.run.stage import Recipe, Record, Stage


def prepare(
    stage: Stage[Recipe, Record],
    run: RunDirectory,
    template: ChatTemplate,
    previous: dict[str, Any] | None,
    is_main_process: bool,
) -> Prepared:
    """The run's token stores; made if they are missing or damaged.

    Args:
        previous: the manifest of a run that is resumed; None for a new run.

    Raises:
        PrefineError: see Preparation.stores.
    """
    if is_main_process and previous is None:  # left by a preparation that was interrupted or refused
        for path in (*(run.data / name for name in PREPARED_FILES), run.quarantine):
            path.unlink(missing_ok=True)
    with Quarantine(run.quarantine) as quarantine:
        rows = preparation(stage, run, template, quarantine)
        return rows.stores(None if previous is None else previous["prepared"])


def preparation(
    stage: Stage[Recipe, Record], run: RunDirectory, template: ChatTemplate, quarantine: Quarantine
) -> Preparation[Record]:
    """How the stage makes token stores from its recipe's data."""
    return Preparation(
        run.data,
        stage.recipe.data,
        stage.record_type,
        template,
        stage.recipe.data.seed,
        quarantine,
        stage.usable,
        answer_tokens=stage.answer_tokens,
    )


def say_data(session: Session[StageRecipe], answer_tokens: int) -> None:
    """Show how many rows were read, left out and cut.

    Args:
        answer_tokens: tokens that answers still to be generated add to a row.
    """
    run, prepared, display = session.run, session.prepared, session.display
    budget = session.recipe.training.max_tokens_per_microbatch
    if prepared.made_again is not None:
        display.say(f"warning: {run.data}: {prepared.made_again}; its rows were prepared again from their sources")
    if prefill := session.loaded.template.traits.prefill:
        display.say(
            f"the chat template begins a new answer with {prefill!r}, but renders answers in the data without it: they "
            "are learned as they appear in a conversation"
        )
    for name, counts in prepared.counts.items():
        details = ", ".join(
            f"{counts[key]} {text}"
            for key, text in (
                ("rows_in", "rows read"),
                ("quarantined", "quarantined"),
                ("left_out", "valid, but left out"),
                ("duplicates", "duplicates"),
                ("leaks_removed", "left out because their prompt is held out"),
                ("dropped_too_long", "too long"),
                ("dropped_identical", "identical after tokenization"),
                ("dropped_unusable", "not usable by this stage"),
            )
            if counts.get(key)
        )
        display.say(f"{name}: {counts['rows']} rows" + (f" ({details})" if details else ""))
        for line in [*_about_turns(counts), *remarks(counts)]:
            display.say(f"{name}: {line}")
        longest = counts.get("longest_row_tokens", 0) + answer_tokens
        if longest > budget:
            display.say(
                f"{name}: the longest row has up to {longest} tokens, more than training.max_tokens_per_microbatch "
                f"({budget}): it is computed alone and needs more memory"
            )
    if any(counts.get("quarantined") for counts in prepared.counts.values()):
        display.say(f"quarantined rows, with line and reason, are in {run.quarantine}")


def _about_turns(counts: dict[str, Any]) -> list[str]:
    """Lines on cut rows and on turns that are not learned; counts of earlier releases have neither."""
    lines = []
    if cut := counts.get("rows_cut"):
        turns, texts = counts["turns_dropped"], counts["texts_cut"]
        what = [f"{turns} turns left out, the oldest first"] if turns else []
        what += [f"{texts} user turns shortened at their start"] if texts else []
        lines.append(f"{cut} rows cut to data.max_length_tokens: {', '.join(what)}")
    if turns := counts.get("turns_not_learned"):
        lines.append(
            f"{turns} assistant turns are context and not learned, because the chat template renders them differently "
            "once later turns follow"
        )
    return lines
