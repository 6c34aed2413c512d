"""Votes -> files of other programs: arena JSONL, OpenAI Evals, Promptfoo, CSV.

Ties: arena has them as "tie" and "tie (bothbad)"; evaluations of other programs need a right answer, so ties are left
out and counted; a spreadsheet has every vote as it was given. Rows to train on are prefine.annotation.training_rows'.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from prefine.annotation.project import ProjectReader
from prefine.annotation.records import ANSWERS, RANKED, AnnotationItem, CastVote, HumanJudgement, JudgedAnswer
from prefine.annotation.training_rows import annotation_rows
from prefine.comparisons.votes import ArenaTurn, ArenaVote, ArenaWinner
from prefine.exchange.cases import Suite, suite_of_records
from prefine.records import Message, Preference
from prefine.runs.atomic import write_text

_OF_A_PREFERENCE = ("prompt", "chosen", "rejected", "id", "tie")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def arena_votes(project: ProjectReader, left_out: Counter[str]) -> Iterator[ArenaVote]:
    """Every current vote on two answers, in the form of FastChat's arena; model_a was shown on the left.

    Rankings give all their pairs. `judge` is the pseudonym; `run_a` and `run_b` are further fields.

    Args:
        left_out: counts judgements that cannot be written, by reason.
    """
    items: dict[int, AnnotationItem] = {}
    for each in project.judgements():
        if each.criterion is not None:
            continue
        if each.repeat:
            left_out["repeats an earlier vote of the annotator"] += 1
        elif len(each.answers) != 2:
            left_out["is on a single answer"] += 1
        elif len({*each.models}) != 2:
            left_out["both answers are of one model"] += 1
        else:
            if each.item not in items:
                items[each.item] = project.item(each.item)
            yield _arena_vote(items[each.item], each)


def _arena_vote(item: AnnotationItem, judgement: HumanJudgement) -> ArenaVote:
    answers = {answer.id: answer for answer in item.answers}
    left = answers[judgement.first]
    right = next(answers[each] for each in judgement.answers if each != judgement.first)
    winner: ArenaWinner = "tie (bothbad)" if judgement.both_bad else "tie"
    if judgement.winner in answers:
        winner = "model_a" if judgement.winner == left.id else "model_b"
    return ArenaVote(
        question_id=item.name,
        model_a=left.model,
        model_b=right.model,
        winner=winner,
        judge=judgement.annotator,
        conversation_a=_conversation(item, left),
        conversation_b=_conversation(item, right),
        turn=sum(turn.role == "user" for turn in item.prompt),
        tstamp=judgement.at,
        run_a=left.run,
        run_b=right.run,
        category=item.category,
    )


def _conversation(item: AnnotationItem, answer: JudgedAnswer) -> tuple[ArenaTurn, ...]:
    turns = [ArenaTurn(role=turn.role, content=turn.content) for turn in item.prompt]
    return (*turns, ArenaTurn(role="assistant", content=answer.text))


def battles(path: Path) -> Suite:
    """The preferences of a project as battles for OpenAI Evals and Promptfoo; ties are left out and counted.

    Raises:
        DataError: it is not a project, or cannot be read.
    """
    left_out: Counter[str] = Counter()

    def records() -> Iterator[Preference]:
        for row in annotation_rows(path, "preferences"):
            if row.value is None:
                left_out[f"{row.unused.field} {row.unused.reason}" if row.unused else "gives no row"] += 1
                continue
            value = row.value
            yield Preference(
                prompt=tuple(Message(**turn) for turn in value["prompt"]),
                chosen=value["chosen"][0]["content"],
                rejected=value["rejected"][0]["content"],
                id=value["id"],
                tie=value.get("tie", False),
                extra={name: column for name, column in value.items() if name not in _OF_A_PREFERENCE},
            )

    suite = suite_of_records(records())
    suite.left_out.update(left_out)
    return suite


def write_csv(project: ProjectReader, path: Path) -> int:
    """Write every current vote as a line of a spreadsheet; returns how many. Nothing in it runs as a formula.

    Raises:
        CheckpointError: the file cannot be written.
    """
    settings = project.settings
    text = io.StringIO()
    columns = _columns(ANSWERS[settings.kind][1], settings.criteria)
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    count = 0
    for vote, item in project.votes_with_items():
        writer.writerow({name: _cell(value) for name, value in _line(vote, item, settings.criteria).items()})
        count += 1
    # Excel takes a file for UTF-8 only with this mark.
    write_text(path, "\ufeff" + text.getvalue())
    return count


def _columns(most: int, criteria: tuple[str, ...]) -> list[str]:
    answers = [f"{name}_{place}" for place in range(1, most + 1) for name in ("model", "run", "answer")]
    return [
        *("vote", "at", "annotator", "item", "category", "kind", "choice", "model_chosen", "ranking", "strength"),
        *(f"criterion_{name}" for name in criteria),
        *("note", "text", "text_of", "seconds", "repeat", "shown", "session", "prompt", *answers),
    ]


def _line(vote: CastVote, item: AnnotationItem, criteria: tuple[str, ...]) -> Mapping[str, object]:
    """Answers are named by their place in the import: 1, 2, …"""
    ballot = vote.ballot
    places = {answer.id: str(place) for place, answer in enumerate(item.answers, start=1)}
    models = {answer.id: answer.model for answer in item.answers}
    best = ballot.ranking[0] if ballot.choice == RANKED else (ballot.choice,)
    ranking = " > ".join(" = ".join(places[each] for each in group) for group in ballot.ranking)
    line: dict[str, object] = {
        "vote": vote.number,
        "at": datetime.fromtimestamp(vote.at, UTC).isoformat(timespec="milliseconds"),
        "annotator": vote.annotator,
        "item": item.name,
        "category": item.category,
        "kind": vote.kind,
        "choice": places.get(ballot.choice, ballot.choice),
        "model_chosen": " = ".join(models[each] for each in best if each in models),
        "ranking": ranking,
        "strength": ballot.strength,
        **{f"criterion_{name}": places.get(value := ballot.criteria.get(name, ""), value) for name in criteria},
        "note": ballot.note,
        "text": ballot.text,
        "text_of": places.get(ballot.text_of or "", ""),
        "seconds": ballot.seconds,
        "repeat": int(vote.repeat),
        "shown": " ".join(places[each] for each in vote.shown),
        "session": ballot.session,
        "prompt": json.dumps([[turn.role, turn.content] for turn in item.prompt], ensure_ascii=False),
    }
    for place, answer in enumerate(item.answers, start=1):
        line |= {f"model_{place}": answer.model, f"run_{place}": answer.run, f"answer_{place}": answer.text}
    return line


def _cell(value: object) -> object:
    """A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
