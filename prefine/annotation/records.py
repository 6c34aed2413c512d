"""What a project holds: settings, items with answers, tasks, votes, and the judgements that votes give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["compare", "rank", "thumb", "rewrite"]
Order: TypeAlias = Literal["stratified", "given", "priority"]

TIE, BOTH_BAD, SKIP = "tie", "both_bad", "skip"
UP, DOWN = "up", "down"
RANKED, REWRITTEN = "ranked", "rewritten"

# How many answers an item of a kind has: fewest and most.
ANSWERS: dict[Kind, tuple[int, int]] = {"compare": (2, 2), "rank": (2, 4), "thumb": (1, 1), "rewrite": (1, 1)}


@dataclass(frozen=True, slots=True)
class PromptTurn:
    """One turn of a prompt. `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """One model's answer.

    Attributes:
        id: random, unique in the project; says nothing about the model, so that a browser may have it.
        text: markdown, as the model wrote it.
        model: its name. Never sent to a browser.
        run: the run's folder or hash; "" if unknown. Never sent to a browser.
    """

    id: str
    text: str
    model: str = ""
    run: str = ""


@dataclass(frozen=True, slots=True)
class AnnotationItem:
    """A prompt with the answers to be judged, in the order of the import.

    Attributes:
        id: number in the project, from 1.
        name: the id that the imported row had, or the number as text.
        prompt: ends with a user's turn.
        category: "" if the row has none.
    """

    id: int
    name: str
    prompt: tuple[PromptTurn, ...]
    category: str
    answers: tuple[JudgedAnswer, ...]


@dataclass(frozen=True, slots=True)
class ProjectSettings:
    """What a project asks of its annotators. Fixed once the project is made, but `order`.

    Attributes:
        title: shown on top of the page.
        instructions: markdown; "" for none.
        kind: what is done with every item of the project.
        criteria: names such as helpful or harmless; each may be judged besides the whole.
        overlap: how many annotators judge each item.
        repeats: share (0 to 1) of an annotator's items that come a second time, unmarked, for self-consistency.
        order: stratified: categories in turn, random within; given: as imported; priority: highest first.
        lease_minutes: an item that was handed out and not voted on in this time goes to somebody else.
        allow_ties: whether "tie" and "both_bad" may be chosen, and ties be ranked.
        allow_notes: whether a note may be written.
        seed: of orders, sides and repeats.
    """

    title: str = "Comparison"
    instructions: str = ""
    kind: Kind = "compare"
    criteria: tuple[str, ...] = ()
    overlap: int = 1
    repeats: float = 0.0
    order: Order = "stratified"
    lease_minutes: float = 30.0
    allow_ties: bool = True
    allow_notes: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """An item handed to an annotator.

    Attributes:
        token: the lease; `Project.vote` asks for it.
        shown: ids of the answers in the order in which they are shown. It stays when the page is loaded again.
        repeat: whether the annotator has judged this item before. The page does not say so.
        done: how many tasks the annotator has voted on.
        total: how many tasks there will be for this annotator, as far as is known now; at least `done` + 1.
    """

    item: AnnotationItem
    token: str
    shown: tuple[str, ...]
    repeat: bool
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Ballot:
    """What an annotator says about a task. The rest of a vote (item, sides, repeat) is the lease's to say.

    Attributes:
        key: chosen by the client, 8 to 100 characters; a ballot sent twice with the same key counts once.
        choice: compare: an answer's id, "tie", "both_bad"; rank: "ranked"; thumb: "up", "down"; rewrite: "rewritten".
            Of every kind: "skip".
        ranking: of "ranked": groups of answers' ids, best first; a group of several is a tie. All answers are in it.
        text: an edited answer; required of "rewritten", allowed with any other choice but "skip".
        text_of: the id of the answer that `text` edits.
        strength: how much better, 1 (slightly) to 3 (much); of a choice of one of two answers only.
        criteria: criterion -> answer's id, "tie" (compare, rank) or "up", "down" (thumb). Some may be left out.
        seconds: from when the item was shown to the vote, without time in which the page was hidden.
        session: a random name of the visit; groups the votes of one sitting.
    """

    key: str
    choice: str
    ranking: tuple[tuple[str, ...], ...] = ()
    text: str | None = None
    text_of: str | None = None
    strength: int | None = None
    note: str = ""
    criteria: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    session: str = ""


@dataclass(frozen=True, slots=True)
class CastVote:
    """A vote as it is stored.

    Attributes:
        number: the event's, growing in the order of writing.
        annotator: the pseudonym.
        shown: ids of the answers in the order in which they were shown.
        at: Unix time.
        undone: whether the annotator took it back later.
    """

    number: int
    item: int
    annotator: str
    kind: Kind
    ballot: Ballot
    shown: tuple[str, ...]
    repeat: bool
    at: float
    undone: bool = False


@dataclass(frozen=True, slots=True)
class HumanJudgement:
    """One comparison or thumb that a current vote gives; undone votes and skips give none, a ranking all its pairs.

    Attributes:
        vote: the vote's number; the judgements of one vote share it.
        answers: ids of the two answers, in the order of the import; of a thumb the only one.
        models: of `answers`, in that order.
        winner: the id of one of `answers`, or "tie"; of a thumb "up" or "down".
        both_bad: whether the tie was chosen as "both bad".
        criterion: None for the whole.
        first: the id of the one of `answers` that was shown first (left).
        repeat: whether the annotator had judged the item before; such judgements count for self-consistency only.
        strength: 1 to 3 if given.
        seconds: time that the vote took.
        at: Unix time.
    """

    vote: int
    item: int
    annotator: str
    answers: tuple[str, ...]
    models: tuple[str, ...]
    winner: str
    both_bad: bool
    criterion: str | None
    first: str
    repeat: bool
    strength: int | None
    seconds: float
    at: float


@dataclass(frozen=True, slots=True)
class AnnotatorProgress:
    """How far an annotator is.

    Attributes:
        votes: current ones, repeats and skips included.
        skipped, repeats: how many of them are skips and repeats.
        seconds: median time of a vote; 0 without votes.
        paused: whether the annotator gets no tasks now.
        last: Unix time of the last vote; None without one.
    """

    name: str
    votes: int
    skipped: int
    repeats: int
    seconds: float
    paused: bool
    last: float | None


@dataclass(frozen=True, slots=True)
class ProjectProgress:
    """How far a project is.

    Attributes:
        items: in the project.
        complete: items with `overlap` current votes that are not skips or repeats.
        votes: such votes; `wanted` of them are needed: items times overlap. `missing`: how many are not given yet.
    """

    items: int
    complete: int
    votes: int
    wanted: int
    missing: int
    annotators: tuple[AnnotatorProgress, ...]


# Short names, for modules that deal with nothing else of these names.
Settings = ProjectSettings
Turn = PromptTurn
Answer = JudgedAnswer
Item = AnnotationItem
Vote = CastVote
Judgement = HumanJudgement
Progress = ProjectProgress
