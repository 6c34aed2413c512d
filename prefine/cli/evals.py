"""prefine evals write and prefine evals read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefine.cli.options import Columns, Delimiter, Encoding, text_form
from prefine.terminal import echo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefine.exchange.cases import Suite
    from prefine.exchange.results import ResultLog
    from prefine.row_rules import RowRules
    from prefine.text_form import TextForm


class EvalFormat(StrEnum):
    """Programs whose evaluations are written."""

    openai_evals = "openai-evals"
    promptfoo = "promptfoo"


class AnswerCheck(StrEnum):
    """How an answer is compared with the expected ones."""

    starts = "starts"
    contains = "contains"


def write(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Preferences, demonstrations, prompts with a column reference; or the folder of an evaluation.",
            show_default=False,
        ),
    ],
    to: Annotated[EvalFormat, typer.Option(help="The program that will run it.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Write the files to this folder.")],
    name: Annotated[str, typer.Option(help="Name of the evaluation.")] = "prefine",
    check: Annotated[
        AnswerCheck, typer.Option(help="An answer is right if it starts with an expected one, or contains one.")
    ] = AnswerCheck.starts,
    model: Annotated[
        str, typer.Option(help="promptfoo: name of the model, or of the judge, at the endpoint.")
    ] = "prefine",
    url: Annotated[
        str | None,
        typer.Option(help="promptfoo: an OpenAI-compatible endpoint, http://127.0.0.1:8000/v1; default: OpenAI's."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face dataset; files are read completely.")] = "train",
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    column: Columns = None,
) -> None:
    """Write an evaluation that OpenAI Evals or Promptfoo runs.

    Prompts with an expected answer become checks; pairs of answers become questions to a judge.
    """
    from prefine.errors import RecipeError
    from prefine.exchange.openai_evals import write_registry
    from prefine.exchange.promptfoo import write_config
    from prefine.formatting import plural
    from prefine.row_rules import RowRules, columns_named

    if to is EvalFormat.openai_evals and (url is not None or model != "prefine"):
        raise RecipeError(
            "--model and --url: a registry of OpenAI Evals names no model", "Leave them out; oaieval takes the model."
        )
    suite = _suite(sources, split, text_form(delimiter, encoding), RowRules(columns_named(column or ())))
    if to is EvalFormat.openai_evals:
        found = write_registry(suite, out, name, check.value)
        commands = [f"oaieval MODEL {each} --registry_path {out}" for each in found]
    else:
        files = write_config(suite, out, name, check.value, model=model, url=url)
        commands = [f"promptfoo eval -c {each} -o results.json" for each in files]
    for reason, count in suite.left_out.most_common():
        echo(f"{plural(count, 'row')} left out: {reason}", err=True)
    echo(f"{plural(len(suite.cases), 'case')} and {plural(len(suite.battles), 'battle')} in {out}; run:")
    for command in commands:
        echo(f"  {command}")


def _suite(sources: Sequence[str], split: str, text: TextForm, rules: RowRules) -> Suite:
    """Cases and battles of an evaluation's folder, or of rows."""
    from prefine.data.reading.quarantine import Quarantine
    from prefine.data.records.kinds import KINDS, kind_of_sources
    from prefine.data.records.stream import read_records
    from prefine.errors import DataError
    from prefine.exchange.cases import suite_of_answers, suite_of_records
    from prefine.report.comparison.reading import ANSWERS_NAME, read_answers

    folders = [Path(each).parent if Path(each).name == ANSWERS_NAME else Path(each) for each in sources]
    evaluations = [folder for folder in folders if (folder / ANSWERS_NAME).is_file()]
    if evaluations and len(sources) > 1:
        raise DataError("an evaluation and further sources cannot be one suite", "Name one evaluation alone.")
    if evaluations:
        return suite_of_answers(read_answers(evaluations[0]))
    kind = kind_of_sources(sources, split=split, text=text, rules=rules)
    if kind == "votes":
        raise DataError(
            "these rows are votes, which say neither a right answer nor which of two is better",
            "Give preferences, demonstrations, or prompts with a column reference.",
        )
    stream = read_records(sources, KINDS[kind], quarantine=Quarantine(), split=split, text=text, rules=rules)
    suite = suite_of_records(stream)
    suite.left_out.update(stream.counts.reasons)
    return suite


def read(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG", help="A log of oaieval, or a result file of promptfoo eval -o FILE.json.", show_default=False
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JSON lines here; else print.")] = None,
    registry: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="OpenAI Evals: the folder that evals write has made, for ids and sides."),
    ] = None,
) -> None:
    """Read what OpenAI Evals or Promptfoo has logged: one row for each case or battle, and the totals."""
    import json
    import sys

    from prefine.runs.atomic import require_writable
    from prefine.runs.row_file import RowFile
    from prefine.terminal import visible_json

    found = _read(log, registry)
    if out is None:
        for row in found.rows:
            sys.stdout.write(visible_json(json.dumps(row.as_json(), ensure_ascii=False)) + "\n")
    else:
        require_writable(out)
        with RowFile(out, resume=False) as file:
            for row in found.rows:
                file.append(row.as_json())
            file.finish()
    for line in _totals(found):
        echo(line, err=True)


def _read(log: Path, registry: Path | None) -> ResultLog:
    """The log of whichever program has written it."""
    from prefine.errors import RecipeError
    from prefine.exchange.openai_evals import read_log
    from prefine.exchange.promptfoo import read_results

    if log.suffix == ".json":
        if registry is not None:
            raise RecipeError("--registry: promptfoo's results hold ids and sides themselves", "Leave it out.")
        return read_results(log)
    return read_log(log, registry)


def _totals(found: ResultLog) -> list[str]:
    """Counts and the log's own report, in lines."""
    from collections import Counter

    from prefine.formatting import plural

    checks = f", {found.passed} of {found.checked} passed" if found.checked else ""
    lines = [f"{found.name}: {plural(len(found.rows), 'row')}{checks}"]
    if winners := Counter(row.winner for row in found.rows if row.winner):
        lines.append("preferred: " + ", ".join(f"{side} {count}" for side, count in sorted(winners.items())))
    if failed := sum(bool(row.error) for row in found.rows):
        lines.append(f"{failed} without a result")
    if found.report:
        lines.append(", ".join(f"{name} {value}" for name, value in found.report.items()))
    return lines + found.remarks
