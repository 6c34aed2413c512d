"""The content of a run's folder, read tolerantly: every part may be missing, and any value may have a wrong type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefine.errors import CheckpointError
from prefine.intervals import Interval, Mean
from prefine.json_reading import JsonError, read_json_object
from prefine.runs.directory import RunDirectory, read_metrics

_PAIR_KEYS = ("accuracy", "policy_accuracy", "margin", "logp_chosen", "logp_rejected")


@dataclass(frozen=True)
class RunFacts:
    """The files of one run, as far as they exist.

    Attributes:
        name: of the run's folder.
        manifest: manifest.json.
        train: rows of metrics.jsonl on training steps, by step.
        heldout: its rows on held-out data, by step.
        evaluation: evaluation.json.
        samples: samples.jsonl.
        guard_events: rows of metrics.jsonl on guards.
        rollouts: rollouts.jsonl, answers saved during PPO training.
    """

    name: str
    manifest: Mapping[str, Any]
    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    evaluation: Mapping[str, Any]
    samples: list[dict[str, Any]]
    guard_events: list[dict[str, Any]] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """sft, dpo, …; empty if unknown."""
        return text(self.manifest.get("stage")) or ""

    @property
    def finished(self) -> bool:
        """False only if the manifest names another status."""
        return text(self.manifest.get("status")) in (None, "finished")

    @property
    def before(self) -> Mapping[str, Any]:
        """Held-out figures before training; empty if unknown."""
        measured = mapping(self.evaluation.get("heldout"))
        if mapping(measured.get("before")) or mapping(measured.get("after")):
            return mapping(measured.get("before"))
        # Not mixed key by key with evaluation.json: that may have been measured on other rows.
        first = self.heldout[0] if self.heldout else {}
        return first if count(first.get("step")) == 0 else {}

    @property
    def after(self) -> Mapping[str, Any]:
        """Held-out figures after training; empty if unknown."""
        measured = mapping(self.evaluation.get("heldout"))
        if mapping(measured.get("before")) or mapping(measured.get("after")):
            return mapping(measured.get("after"))
        last = self.heldout[-1] if self.heldout else {}
        return {} if count(last.get("step")) == 0 else last

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """The held-out pairs one by one; empty for stages without pairs."""
        return dictionaries(mapping(self.evaluation.get("heldout")).get("pairs"))

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The held-out answers one by one, with before_loss and after_loss; empty for stages with pairs."""
        return dictionaries(mapping(self.evaluation.get("heldout")).get("rows"))

    @property
    def votes(self) -> list[dict[str, Any]]:
        """The held-out votes one by one, with their answer's shift; empty for stages that do not learn from votes."""
        return dictionaries(mapping(self.evaluation.get("heldout")).get("votes"))

    @property
    def responses(self) -> list[dict[str, Any]]:
        """PPO's answers to held-out prompts one by one, before and after; empty for other stages."""
        return dictionaries(mapping(self.evaluation.get("heldout")).get("responses"))

    @property
    def heldout_samples(self) -> int | None:
        """Answers to each held-out prompt; None for stages without generated answers."""
        return count(mapping(self.evaluation.get("heldout")).get("samples"))

    @property
    def heldout_count(self) -> int | None:
        """Number of held-out records."""
        measured = count(mapping(self.evaluation.get("heldout")).get("count"))
        if measured is not None:
            return measured
        listed = len(self.pairs) or len(self.answers) or None
        return listed or count(mapping(mapping(self.manifest.get("data")).get("heldout")).get("rows"))

    @property
    def judged_by_votes(self) -> bool:
        """Whether the held-out records are votes on single answers, not pairs."""
        return mapping(self.evaluation.get("heldout")).get("unit") == "vote"

    @property
    def kept_step(self) -> int | None:
        """The step of the final weights, if the run kept the best ones."""
        return count(self.manifest.get("kept_step"))

    @property
    def has_pair_figures(self) -> bool:
        """Whether it recorded figures that only pairs of answers have."""
        return any(
            number(row.get(key)) is not None for row in (self.after, *self.train, *self.heldout) for key in _PAIR_KEYS
        )


def read_run(path: Path) -> RunFacts:
    """Read a run directory.

    Raises:
        CheckpointError: there is no run, or one of its files is damaged.
    """
    run = RunDirectory(path)
    if not any(file.exists() for file in (run.manifest, run.metrics, run.evaluation, run.samples)):
        raise CheckpointError(f"{path} holds no run to report on", "Name a run's folder, for example runs/dpo.")
    metrics = sorted(read_metrics(run.metrics), key=lambda row: number(row.get("step")) or 0)
    return RunFacts(
        name=path.resolve().name,
        manifest=_read_object(run.manifest),
        train=[row for row in metrics if row.get("kind") == "train"],
        heldout=[row for row in metrics if row.get("kind") == "heldout"],
        evaluation=_read_object(run.evaluation),
        samples=read_metrics(run.samples),
        guard_events=[row for row in metrics if row.get("kind") == "guard"],
        rollouts=read_metrics(run.rollouts),
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except FileNotFoundError:
        return {}
    except JsonError as error:
        raise CheckpointError(f"{path} {error}", "Remove it, or restore the file.") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}", "Move it away, or restore the file."
        ) from None


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def dictionaries(value: object) -> list[dict[str, Any]]:
    """The objects in a JSON list; empty if it is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(value: object) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def count(value: object) -> int | None:
    """The value if it is a whole number of at least 0, else None."""
    found = number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def text(value: object) -> str | None:
    """The value if it is text that is not blank, else None."""
    return value if isinstance(value, str) and value.strip() else None


def texts(value: object) -> list[str]:
    """The texts in a JSON list that are not blank; empty if it is not a list."""
    return [item for item in value if text(item)] if isinstance(value, list) else []


def numbers(rows: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """The finite numbers under one key."""
    return [found for row in rows if (found := number(row.get(key))) is not None]


def differences(rows: Iterable[Mapping[str, Any]], before: str, after: str) -> list[float]:
    """after − before of rows with both."""
    both = ((number(row.get(before)), number(row.get(after))) for row in rows)
    return [second - first for first, second in both if first is not None and second is not None]


def by_prompt(
    rows: Iterable[Mapping[str, Any]], before: str, after: str
) -> tuple[list[list[float]], list[list[float]]]:
    """Two figures of answers, as a list for each prompt (`row`), without answers that lack one."""
    found: dict[object, tuple[list[float], list[float]]] = {}
    for place, row in enumerate(rows):
        was, now = (number(float(v) if isinstance(v := row.get(key), bool) else v) for key in (before, after))
        if was is not None and now is not None:
            prompt = found.setdefault(count(row.get("row")) if "row" in row else f"row {place}", ([], []))
            prompt[0].append(was)
            prompt[1].append(now)
    return [was for was, _ in found.values()], [now for _, now in found.values()]


def recorded_change(value: object) -> Mean | None:
    """A change with its interval from evaluation.json; None if it is missing."""
    change = mapping(value)
    ends = mapping(change.get("interval"))
    size, low, high = number(change.get("value")), number(ends.get("low")), number(ends.get("high"))
    if size is None:
        return None
    interval = None if low is None or high is None else Interval(low, high)
    return Mean(size, count(change.get("count")) or 0, interval)
