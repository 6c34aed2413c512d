"""Whether compared models were trained on what they are asked: figures on such prompts say little of others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefine.data.prepare import open_stores
from prefine.errors import DataError
from prefine.evaluation.comparing.questions import (
    EvaluationPrompt,
    Questions,
    is_run,
    prompt_digest,
    prompt_of_json,
    prompts_of,
)
from prefine.evaluation.comparing.sides import NamedSide
from prefine.formatting import listing
from prefine.json_reading import read_json_object
from prefine.paths import expanded
from prefine.runs.directory import RunDirectory


def trained_on_warnings(sides: Mapping[str, NamedSide], questions: Questions) -> list[str]:
    """A warning for each run behind a compared model that was trained on some of what is asked.

    Prompts count as the same if all turns and tools are.
    """
    asked = {
        "prompts": questions.prompts,
        "pairs": prompts_of(questions.pairs),
        "demonstrations": prompts_of(questions.demonstrations),
    }
    digests = {what: [prompt_digest(each) for each in prompts] for what, prompts in asked.items()}
    found = []
    for role in ("candidate", "baseline"):
        for run in _runs_behind(sides[role].run):
            try:
                seen = _trained_on(run, [each for prompts in asked.values() for each in prompts])
            except DataError as error:
                found.append(f"Whether {run} was trained on these prompts is not known: {error.problem}.")
                continue
            counts = {what: sum(digest in seen for digest in each) for what, each in digests.items()}
            said = [f"{count} of {len(digests[what])} {what}" for what, count in counts.items() if count]
            if said:
                found.append(
                    f"The {role} was trained on {listing(said)} ({run}): its figures on them are better than on others."
                )
    return found


def _runs_behind(run: Path | None) -> Iterator[Path]:
    """A run, the run that it began with, and so on."""
    seen: set[Path] = set()
    while run is not None and run.resolve() not in seen and is_run(run):
        seen.add(run.resolve())
        yield run
        model = read_json_object(RunDirectory(run).manifest)["recipe"].get("model")
        name = model.get("name") if isinstance(model, Mapping) else None
        run = Path(expanded(name)) if isinstance(name, str) else None


def _trained_on(run: Path, prompts: Iterable[EvaluationPrompt]) -> set[str]:
    """Digests of those prompts that are in a run's training data.

    Raises:
        DataError: the data are damaged.
    """
    if not RunDirectory(run).data.is_dir():
        return set()
    wanted = {prompt_digest(each): _first_words(each.turns) for each in prompts}
    words = {*wanted.values()}
    store = open_stores(RunDirectory(run).data)[0]
    found: set[str] = set()
    for row in range(len(store)):
        text = store.record_json(row)
        record = json.loads(text)
        if _first_words(record.get("messages") or record.get("prompt") or []) in words:  # cheap; the rest is not
            found.add(prompt_digest(prompt_of_json(text)))
    return found & wanted.keys()


def _first_words(turns: Iterable[Mapping[str, Any]]) -> str:
    """What the user said first."""
    return next((str(turn.get("content")) for turn in turns if turn.get("role") == "user"), "")
