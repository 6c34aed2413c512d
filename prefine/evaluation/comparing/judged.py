"""Win rates added to a comparison: by models behind endpoints, and by people's votes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from prefine import __version__
from prefine.comparisons.missing import with_missing
from prefine.comparisons.result import AnswerRow, Comparison, Side, Verdict, WinRate, prompt_numbers
from prefine.comparisons.statistics import corrected
from prefine.comparisons.verdict import verdict
from prefine.comparisons.votes import RefusedVote, require_votable, votes_of, write_votes
from prefine.errors import EndpointError, RecipeError
from prefine.evaluation.comparing.answer_files import AnswerPairs, paired_answers
from prefine.evaluation.comparing.folder import EvaluationFolder
from prefine.evaluation.comparing.judgements import keep_judgements
from prefine.evaluation.comparing.people import find_votes, judged_by_people
from prefine.judges.cache import ReplyCache
from prefine.judges.endpoint import Endpoint
from prefine.judges.endpoint_judge import EndpointJudge, JudgeSettings
from prefine.judges.judging import judge_answers
from prefine.judges.template import JudgeTemplate
from prefine.report.comparison.page import write_comparison
from prefine.report.comparison.reading import read_answers, read_comparison
from prefine.runs.atomic import sha256_of_file, write_json

_FOLDER = Path("evaluations")


@dataclass(frozen=True)
class AskedJudge:
    """A judge behind an endpoint, and how to ask it.

    Attributes:
        endpoint: of the judge.
        settings: its model, and the rest of a request.
        template: the text that asks.
        at_once: the most requests at a time.
    """

    endpoint: Endpoint
    settings: JudgeSettings
    template: JudgeTemplate
    at_once: int = 8


@dataclass
class Judgement:
    """What judging came to.

    Attributes:
        folder: that holds it.
        comparison: as in its report.json now.
        judges: the names of those who judged in this call.
        refused: lines of the file of votes that are none.
        problem: what ended the judge's work early; all verdicts before it are kept.
    """

    folder: Path
    comparison: Comparison
    judges: list[str] = field(default_factory=list)
    refused: list[RefusedVote] = field(default_factory=list)
    problem: EndpointError | None = None

    @property
    def win_rates(self) -> list[WinRate]:
        """Those of this call."""
        return [rate for rate in self.comparison.win_rates if rate.judge in self.judges]


def judge_comparison(
    answers: Sequence[Path],
    *,
    judge: AskedJudge | None = None,
    votes: Path | None = None,
    votes_out: Path | None = None,
    out: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Judgement:
    """Judge answers, and write the win rates into the comparison's folder.

    Args:
        answers: an evaluation's folder, or two files of answers, the candidate's first.
        judge: a model that judges.
        votes: people's votes: arena JSONL, an annotation project, or the folder of one.
        votes_out: where to write all verdicts as arena JSONL.
        out: the folder for two files; None for evaluations/CANDIDATE-against-BASELINE.
        progress: receives the number of pairs that are judged.

    Raises:
        PrefineError: the answers, the votes or the folder cannot be used.
    """
    pairs = _pairs(answers, out)
    path = answers[0] if pairs is None else (out or _FOLDER / "-against-".join(map(_short, _names(answers))))
    if pairs is None:
        read_comparison(path)  # before anything is made there
    with EvaluationFolder(path) as folder:
        if pairs is not None:
            folder.begin({"answers": [sha256_of_file(each) for each in answers]}, "Name a new folder with --out.")
            if not folder.report.exists():
                _write(folder, _of_files(answers, pairs), pairs.rows)
        found = Judgement(path, read_comparison(path))
        rows, rates = read_answers(path), []
        names = (found.comparison.candidate.name, found.comparison.baseline.name)
        if votes_out is not None:  # before a judge is paid
            require_votable(rows, *names)
        if votes is not None:
            voted = find_votes(votes)
            found.refused = voted.refused
            rows, rate = judged_by_people(rows, voted, found.comparison)
            rates.append(rate)
        if judge is not None:
            with ReplyCache(folder.judge_replies) as cache:
                asked = EndpointJudge(judge.endpoint, judge.settings, cache, judge.template)
                judged = judge_answers(rows, asked, at_once=judge.at_once, progress=progress)
            rows, found.problem = judged.rows, judged.problem
            rates.append(judged.win_rate)
        found.judges = [rate.judge for rate in rates]
        if rates:
            found.comparison = with_win_rates(found.comparison, rates)
            keep_judgements(folder.judgements, rows, rates)
            _write(folder, found.comparison, rows)
        if votes_out is not None:
            judges = sorted({name for row in rows for name in row.verdicts})
            write_votes(votes_out, [vote for name in judges for vote in votes_of(rows, name, *names)])
    return found


def with_win_rates(comparison: Comparison, rates: Sequence[WinRate]) -> Comparison:
    """A comparison with further win rates; they replace those of the same judges. The verdict follows.

    If nothing decided before, the first of them decides. Rules of a gate that were checked before are left as they are.
    """
    new = {rate.judge: rate for rate in rates}
    old = [rate for rate in comparison.win_rates if rate.judge not in new]
    decided_by = comparison.verdict.decided_by or next(
        (rate.judge for rate in rates if rate.finding != "not computed"), ""
    )
    metrics, win_rates, regression = corrected(comparison.metrics, [*old, *rates], comparison.regression, decided_by)
    update = {"metrics": metrics, "win_rates": win_rates, "regression": regression}
    if decided_by:
        update["verdict"] = verdict(decided_by, metrics, win_rates, regression, comparison.benchmarks)
    stale = "The gate was checked before these win rates were added; repeat `prefine evaluate --gate`."
    warnings = [each for each in comparison.warnings if each != stale]
    warnings += [stale] if comparison.gate else []
    return with_missing(comparison.model_copy(update=update | {"warnings": warnings}))


def _pairs(answers: Sequence[Path], out: Path | None) -> AnswerPairs | None:
    """The answers of two files; None for a folder."""
    for each in (*answers, *([out] if out is not None else [])):
        if "\0" in str(each):
            raise RecipeError(f"{str(each)!r:.60} names no file: a name cannot hold NUL", "Name another one.")
    if len(answers) == 1 and not answers[0].is_file():
        if out is not None:
            raise RecipeError("--out is given, and the answers have a folder already", "Leave --out out.")
        return None
    if len(answers) != 2 or any(each.is_dir() for each in answers):
        raise RecipeError(
            f"the answers are {', '.join(map(str, answers))}",
            "Name the folder of an evaluation, or two files of answers: the candidate's, then the baseline's.",
        )
    return paired_answers(*answers)


def _of_files(answers: Sequence[Path], pairs: AnswerPairs) -> Comparison:
    """A comparison without any figures yet."""
    candidate, baseline = (
        Side(name=name, kind="answers", identity=sha256_of_file(each), facts={"file": str(each)})
        for name, each in zip(_names(answers), answers, strict=True)
    )
    categories = Counter(row.category for row in pairs.rows if row.category)
    prompts = len({*prompt_numbers(pairs.rows)})
    return Comparison(
        prefine=__version__,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        candidate=candidate,
        baseline=baseline,
        prompts={
            "source": f"{answers[0]}, {answers[1]}",
            "count": prompts,
            "left_out": pairs.left_out,
            "categories": dict(categories),
            "with_reference": 0,
        },
        sampling={},
        verdict=Verdict(decision="no difference shown", decided_by="", sentence="No judge has compared the answers."),
        warnings=pairs.warnings,
        command=["prefine", "judge", *map(str, answers)],
    )


def _write(folder: EvaluationFolder, comparison: Comparison, rows: Sequence[AnswerRow]) -> None:
    folder.write_rows(folder.answers, [row.model_dump(mode="json") for row in rows])
    write_json(folder.report, comparison.model_dump(mode="json"))
    write_comparison(folder.path)


def _names(files: Sequence[Path]) -> list[str]:
    """What two files of answers are called: by their names without the endings of their form, and as few of their
    folders as tell them apart.

    Raises:
        RecipeError: they are one file.
    """
    places = [file.resolve() for file in files]
    if places[0] == places[1]:
        raise RecipeError(f"{files[0]} is named twice", "Name two files of answers.")
    for size in range(max(len(place.parts) for place in places)):
        names = ["/".join([*place.parts[-1 - size : -1], _name(place)]) for place in places]
        if names[0] != names[1]:
            return names
    return [place.name for place in places]  # a.jsonl and a.csv


def _name(file: Path) -> str:
    return re.sub(r"(\.(jsonl|json|csv|tsv|parquet|gz))+$", "", file.name) or file.name


def _short(name: str) -> str:
    return re.sub(r"[^\w.\-]+", "-", name).strip("-.") or "answers"
