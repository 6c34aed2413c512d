"""OpenAI Evals (github.com/openai/evals): registries that `oaieval --registry_path` runs, and the logs that it writes.

A registry is `evals/NAME.yaml` and `data/NAME/samples.jsonl`. Cases become class Match (the answer begins with an
expected one) or Includes; battles become ModelBasedClassify with the package's own specification `battle`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from prefine.errors import DataError
from prefine.exchange.cases import Battle, Suite
from prefine.exchange.files import write_files
from prefine.exchange.results import ResultLog, ResultRow
from prefine.json_reading import parse_json
from prefine.runs.atomic import json_bytes

Check = Literal["starts", "contains"]

_CLASSES: dict[Check, str] = {
    "starts": "evals.elsuite.basic.match:Match",
    "contains": "evals.elsuite.basic.includes:Includes",
}
_JUDGE = "evals.elsuite.modelgraded.classify:ModelBasedClassify"
_RESERVED = ("key", "group", "cls")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SPLIT = "dev"  # names must have two dotted parts
_CHOICES = ("Yes", "No")  # the battle asks whether the first answer is better


def write_registry(suite: Suite, folder: Path, name: str, check: Check = "starts") -> list[str]:
    """Write a registry; returns the names of its evals, for `oaieval`.

    Args:
        suite: what to write; battles go to an eval `NAME-battle` if there are cases, too.
        folder: of the registry; further evals in it stay.
        name: of the eval: letters, digits, _ and -.
        check: how an answer is compared with the expected ones.

    Raises:
        DataError: a name that the package does not accept, or that exists; nothing to write.
        CheckpointError: the files cannot be written.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise DataError(
            f"--name: {name!r} cannot be the name of an eval",
            f"Use letters, digits, _ and -, and none of {', '.join(_RESERVED)}.",
        )
    suite.require()
    entries: dict[str, Any] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    if suite.cases:
        entries |= _entries(name, ["accuracy"], "Answers against expected ones", _CLASSES[check], {})
        samples[name] = [
            {"input": [*case.prompt], "ideal": [*case.expected], "id": case.id, "category": case.category}
            for case in suite.cases
        ]
    if suite.battles:
        battle = f"{name}-battle" if suite.cases else name
        known = all(each.better for each in suite.battles)
        settings = {"modelgraded_spec": "battle", "eval_type": "cot_classify", **({"metaeval": True} if known else {})}
        title = "A judge's choices against people's" if known else "A judge's choices between two answers"
        entries |= _entries(battle, ["metascore"] if known else ["score"], title, _JUDGE, settings)
        samples[battle] = [_battle_sample(each) for each in suite.battles]
    listing = folder / "evals" / f"{name}.yaml"
    _require_new(folder, listing, [*samples])
    files = {folder / "data" / each / "samples.jsonl": _as_lines(rows) for each, rows in samples.items()}
    write_files({**files, listing: yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)})
    return [*samples]


def _require_new(folder: Path, listing: Path, names: Sequence[str]) -> None:
    """Raise DataError if the registry has one of these evals, or its samples; the package refuses two of one name."""
    remedy = "Choose another --name, or another folder."
    for path in (listing, *(folder / "data" / name for name in names)):
        if path.exists():
            raise DataError(f"--out: {path} exists already", remedy)
    key = re.compile(rf"^[\"']?({'|'.join(names)})(?:\.{_SPLIT}\.v0)?[\"']?[ \t]*:", re.MULTILINE)
    for path in sorted((folder / "evals").rglob("*.yaml")):
        try:
            found = key.search(path.read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            raise DataError(f"--out: {path} cannot be read: {error.strerror}", remedy) from None
        if found:
            raise DataError(f"--out: {path} has an eval {found[1]} already", remedy)


def _as_lines(rows: Sequence[dict[str, Any]]) -> str:
    return b"".join(map(json_bytes, rows)).decode()


def _entries(name: str, metrics: list[str], title: str, cls: str, settings: dict[str, Any]) -> dict[str, Any]:
    full = f"{name}.{_SPLIT}.v0"
    return {
        name: {"id": full, "description": f"{title}; written by prefine", "metrics": metrics},
        full: {"class": cls, "args": {"samples_jsonl": f"{name}/samples.jsonl", **settings}},
    }


def _battle_sample(battle: Battle) -> dict[str, Any]:
    prompt, (first, second) = [*battle.prompt], battle.answers
    choice = {} if battle.better is None else {"choice": "Yes" if battle.better == battle.sides[0] else "No"}
    fields = {"input1": prompt, "input2": prompt, "completion1": first, "completion2": second, **choice}
    origin = {"metadata": dict(battle.origin)} if battle.origin else {}
    return {**fields, "id": battle.id, "category": battle.category, "sides": [*battle.sides], **origin}


def read_log(path: Path, registry: Path | None = None) -> ResultLog:
    """Read a log of `oaieval`.

    Args:
        path: the log.
        registry: the folder that `write_registry` has written: gives rows their ids, and battles their sides.

    Raises:
        DataError: it is not a log, a line of it cannot be read, or the registry's samples are not the log's.
    """
    spec: dict[str, Any] = {}
    report: dict[str, Any] = {}
    events: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for number, line in _lines(path):
        if number == 1:
            if not isinstance(line.get("spec"), dict):
                raise DataError(f"{path}: line 1 has no field spec", "Give a log that oaieval has written.")
            spec = line["spec"]
        elif isinstance(line.get("final_report"), dict):  # events may follow it
            report = line["final_report"]
        elif isinstance(line.get("sample_id"), str) and isinstance(line.get("data"), dict):
            found = events.setdefault(line["sample_id"], {})
            found.setdefault(str(line.get("type")), []).append(line["data"])
    if not spec:
        raise DataError(f"{path} is empty", "Give a log that oaieval has written.")
    samples = _samples(registry, str(spec.get("base_eval"))) if registry is not None else []
    if registry is not None:
        for name, found in events.items():
            _require_same(name, found, samples)
    model = ", ".join(map(str, spec.get("completion_fns") or ()))
    rows = [_row(name, found, model, samples) for name, found in sorted(events.items(), key=lambda e: _number(e[0]))]
    remarks = [] if report else ["the log has no final report: the evaluation was stopped, or is going on"]
    return ResultLog(str(spec.get("eval_name") or path.stem), rows, report, remarks)


def _row(
    name: str, events: dict[str, list[dict[str, Any]]], model: str, samples: Sequence[dict[str, Any]]
) -> ResultRow:
    """The last match or metrics of a sample, with what the model wrote."""
    number = _number(name)
    sample = samples[number] if 0 <= number < len(samples) else {}
    match, metrics, error = ((events.get(kind) or [{}])[-1] for kind in ("match", "metrics", "error"))
    sampled = match.get("sampled", (events.get("sampling") or [{}])[-1].get("sampled"))
    sampled = sampled[0] if isinstance(sampled, list) and sampled else sampled
    score = metrics.get("score")
    choice = metrics["choice"] if isinstance(metrics.get("choice"), str) else None
    sides = sample.get("sides")
    return ResultRow(
        id=str(sample.get("id", name)),
        model=model,
        answer=sampled if isinstance(sampled, str) else None,
        expected=_listed(match.get("expected")),
        passed=match.get("correct", metrics.get("metascore")),
        score=float(score) if isinstance(score, int | float) else None,
        choice=choice,
        winner=sides[_CHOICES.index(choice)] if sides and choice in _CHOICES else None,
        error=f"{error.get('type', 'error')}: {error.get('message', '')}" if error and not (match or metrics) else "",
    )


def _require_same(name: str, events: dict[str, list[dict[str, Any]]], samples: Sequence[dict[str, Any]]) -> None:
    """Raise DataError if the log shows that another sample stood in this place: ids and sides would be wrong."""
    number = _number(name)
    match, metrics = ((events.get(kind) or [{}])[-1] for kind in ("match", "metrics"))
    fits = 0 <= number < len(samples)
    if fits and match.get("expected") is not None:
        fits = _listed(match["expected"]) == _listed(samples[number].get("ideal"))
    if fits and isinstance(metrics.get("metascore"), bool) and metrics.get("choice") in _CHOICES:
        fits = metrics["metascore"] == (metrics["choice"] == samples[number].get("choice"))
    if not fits:
        raise DataError(
            f"--registry: its sample for {name} is not the one that the log is about",
            "Name the folder that the log was made with, or leave --registry out.",
        )


def _listed(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value if isinstance(value, list) else [value] if value else []))


def _number(sample: str) -> int:
    """The line of samples.jsonl, from 0: the end of a sample's name; -1 if it has another form."""
    end = sample.rpartition(".")[2]
    return int(end) if end.isdecimal() else -1


def _samples(registry: Path, name: str) -> list[dict[str, Any]]:
    if not _NAME.fullmatch(name):
        raise DataError(f"the log's eval {name!r} is not one that prefine wrote", "Leave --registry out.")
    path = registry / "data" / name / "samples.jsonl"
    if not path.is_file():
        raise DataError(f"--registry: {path} does not exist", "Name the folder that was given to --out.")
    return [row for _, row in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with their line numbers. A last line that was cut off is left out.

    Raises:
        DataError: the file cannot be read, or another line is not an object.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except (OSError, ValueError) as error:  # ValueError: the name holds NUL
        raise DataError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", "Name a log file."
        ) from None
    for number, line in enumerate(lines, start=1):
        try:
            value = parse_json(line)
        except ValueError:
            if number == len(lines) > 1 and not line.endswith(b"\n"):
                return
            value = None
        if not isinstance(value, dict):
            raise DataError(f"{path}: line {number} is not a JSON object", "Give a log that oaieval has written.")
        yield number, value
