"""Answers to the same prompts before and after a run, for its report."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from typing import Any

from prefine.data.prepare import Prepared
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.source_names import source_names
from prefine.data.records.stream import read_records
from prefine.data.tokens.fitting import fit_prompt
from prefine.errors import CheckpointError, TemplateError
from prefine.generation.answers import Answer, room_for_samples, write_answers
from prefine.intervals import evenly_chosen
from prefine.models.loading.load import LoadedModel
from prefine.recipe.sections import ReportSection
from prefine.records import Message, Prompt
from prefine.runs.atomic import atomic_write, json_bytes
from prefine.runs.directory import RunDirectory, read_metrics
from prefine.training.display import Display
from prefine.training.run.checks import record_prompt


class Samples:
    """Side-by-side samples of one run.

    The answers from before the run are written to samples.jsonl at once, so that a resumed run has them.
    """

    def __init__(
        self, run: RunDirectory, section: ReportSection, loaded: LoadedModel, prepared: Prepared, display: Display
    ) -> None:
        self._run = run
        self._section = section
        self._loaded = loaded
        self._prepared = prepared
        self._display = display

    def before(self, known: str | None = None) -> str | None:
        """Sample from the model as loaded, unless an earlier part of this run has done so and its answers are intact.

        Args:
            known: the hash that this method returned in an earlier part of the run.

        Returns: a hash of the answers, for the manifest; None if no samples are requested.
        """
        if not self._section.samples:
            return None
        rows = self._kept()
        if rows is not None and known is not None and _hash(rows) == known:
            return known
        if known is not None:
            self._display.say(f"warning: {self._run.samples} was lost or changed: its answers are generated again")
        rows = self._prompts()
        rows = [row | _answer_row("before", a) for row, a in zip(rows, self._answers(rows), strict=True)]
        self._write(rows)
        return _hash(rows)

    def after(self) -> dict[str, Any] | None:
        """Sample from the trained model; returns a summary of the lengths, None if no samples are requested."""
        rows = self._kept() if self._section.samples else None
        if rows is None:
            return None
        rows = [row | _answer_row("after", a) for row, a in zip(rows, self._answers(rows), strict=True)]
        self._write(rows)
        return {when: _summary(rows, when) for when in ("before", "after")} if rows else None

    def _kept(self) -> list[dict[str, Any]] | None:
        """The rows of samples.jsonl; None if it is missing or damaged."""
        try:
            return read_metrics(self._run.samples) if self._run.samples.exists() else None
        except (OSError, CheckpointError):
            return None

    def _answers(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        template = self._loaded.template
        prompts = [self._prompt_ids(row) for row in rows]
        with self._display.progress(len(prompts), 0, "samples"):
            return write_answers(
                self._loaded.packed,
                template,
                prompts,
                self._section.max_new_tokens,
                self._section.temperature,
                progress=self._display.advance,
            )

    def _prompts(self) -> list[dict[str, Any]]:
        """Prompts from the recipe's source, else held-out ones; at most `samples`, evenly spaced."""
        found = self._own_prompts() if self._section.prompts is not None else self._heldout_prompts()
        chosen = [found[place] for place in evenly_chosen(len(found), self._section.samples)]
        return [row for row in chosen if self._is_rendered(row)]

    def _is_rendered(self, row: dict[str, Any]) -> bool:
        try:
            self._prompt_ids(row)
        except TemplateError as error:
            self._display.say(
                f"warning: {row['id']} is left out of the samples, as the chat template refuses it: {error}"
            )
            return False
        return True

    def _prompt_ids(self, row: dict[str, Any]) -> list[int]:
        """Token ids of a sample's prompt, cut if it leaves no room for an answer in the model's context."""
        template, room = self._loaded.template, room_for_samples(self._loaded.packed, self._section.max_new_tokens)
        messages = tuple(Message.model_validate(m) for m in row["prompt"])
        tools = tuple(row.get("tools", ()))
        fitted = fit_prompt(template, messages, room, tools)
        return template.prompt_ids(messages, tools) if fitted is None else list(fitted.tree.prompt)

    def _own_prompts(self) -> list[dict[str, Any]]:
        with Quarantine(None) as quarantine:
            records = list(read_records(source_names(self._section.prompts or []), Prompt, quarantine=quarantine))
        return [
            {
                "id": record.id or f"prompt-{number}",
                "category": record.extra.get("category"),
                "prompt": [m.model_dump() for m in record.prompt],
                **({"tools": list(record.tools)} if record.tools else {}),
            }
            for number, record in enumerate(records, start=1)
        ]

    def _heldout_prompts(self) -> list[dict[str, Any]]:
        rows = []
        for index in range(len(self._prepared.heldout)):
            record = json.loads(self._prepared.heldout.record_json(index))
            messages = record.get("messages")
            reference = record.get("chosen") or (messages[-1]["content"] if messages else None)
            rows.append(
                {
                    "id": record.get("id") or f"held-out-{index + 1}",
                    "category": record.get("extra", {}).get("category"),
                    "prompt": record_prompt(record),
                    **({"tools": record["tools"]} if record.get("tools") else {}),
                    "reference": reference,
                }
            )
        return rows

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with atomic_write(self._run.samples) as temporary:
            temporary.write_bytes(b"".join(json_bytes(row) for row in rows))


def _hash(rows: list[dict[str, Any]]) -> str:
    """A hash of what the rows held before training, without what was added after it."""
    kept = [{name: value for name, value in row.items() if not name.startswith("after")} for row in rows]
    return hashlib.sha256(json_bytes(kept)).hexdigest()


def _answer_row(when: str, answer: Answer) -> dict[str, Any]:
    return {
        when: answer.text,
        f"{when}_tokens": answer.tokens,
        f"{when}_ended": answer.ended,
        f"{when}_degenerate": answer.looks.word,
    }


def _summary(rows: list[dict[str, Any]], when: str) -> dict[str, float]:
    tokens = [row[f"{when}_tokens"] for row in rows]
    return {
        "mean_tokens": statistics.fmean(tokens),
        "median_tokens": statistics.median(tokens),
        "ended": statistics.fmean(row[f"{when}_ended"] for row in rows),
        "degenerate": statistics.fmean(row.get(f"{when}_degenerate") is not None for row in rows),
    }
