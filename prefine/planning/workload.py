"""The rows that a stage will compute: how many, and how long, counted in the data or assumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from prefine.data.lengths import EvenSample
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.source_names import source_names
from prefine.data.records.kinds import KINDS, kind_of_sources
from prefine.data.records.selection import group_of, is_heldout, sample_of
from prefine.data.records.stream import read_records
from prefine.data.tokens.fitting import whole_row
from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.trees import TokenTree, worth_sharing
from prefine.errors import DataError, TemplateError
from prefine.intervals import evenly_chosen
from prefine.planning.activations import TreeLengths
from prefine.recipe.sections import DataSection
from prefine.records import Demonstration, Preference, Prompt, Record, Vote

# What each method's rows are read as; of those without an entry, as what they are.
_READ_AS: dict[str, type[Record]] = {
    "sft": Demonstration,
    "dpo": Preference,
    "orpo": Preference,
    "kto": Vote,
    "ppo": Prompt,
}
_ANSWERS = {"dpo": 2, "orpo": 2, "reward": 2, "ppo": 0}
_TOKENIZED = 400


@dataclass(frozen=True)
class Workload:
    """The training rows of a stage.

    Attributes:
        rows: how many; None if they are not known.
        heldout: held-out rows, likewise.
        trees: lengths of some of them, evenly chosen, before they are cut.
        source: what the lengths are from, for people.
        shared: tokens that all prompts begin with, such as a system turn.
    """

    rows: int | None
    heldout: int | None
    trees: tuple[TreeLengths, ...]
    source: str
    shared: int = 0

    def cut(self, most: int, answer_tokens: int = 0, answers: int = 0) -> Workload:
        """With rows cut to a length as data/tokens/fitting.py cuts them: the prompt is shortened, answers are not.

        Args:
            most: data.max_length_tokens.
            answer_tokens: of answers that will be generated, which count towards the length.
            answers: how many to each prompt.
        """
        fitting = [_cut(tree, most - answer_tokens) for tree in self.trees]
        kept = [tree for tree in fitting if tree is not None]
        share = len(kept) / max(1, len(fitting))
        rows = None if self.rows is None else round(self.rows * share)
        if answers:
            kept = [replace(tree, answers=(answer_tokens,) * answers) for tree in kept]
        return replace(self, rows=rows, trees=tuple(kept))

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of a row."""
        return sum(tree.tokens for tree in self.trees) / max(1, len(self.trees))


def _cut(tree: TreeLengths, most: int) -> TreeLengths | None:
    room = most - max(tree.answers, default=0)
    return replace(tree, prompt=min(tree.prompt, room)) if room >= 1 else None


def longest_rows(method: str, most: int) -> Workload:
    """Rows of the full length, for data that are not there yet: half of each is the prompt."""
    half = max(1, most // 2)
    tree = TreeLengths(most - half, (half,) * _ANSWERS.get(method, 1))
    return Workload(None, None, (tree,), f"assumed: every row has {most} tokens (data.max_length_tokens)")


def record_type(method: str, section: DataSection) -> type[Record]:
    """What a method reads the rows of a recipe's data as.

    Raises:
        DataError: the data cannot be found or read.
    """
    return (
        _READ_AS.get(method)
        or KINDS[
            kind_of_sources(
                source_names(section.train), split=section.split, text=section.text_form, rules=section.row_rules
            )
        ]
    )


def counted_rows(kind: type[Record], section: DataSection, template: ChatTemplate) -> Workload:
    """Count the rows of a recipe's data, and the tokens of some of them.

    Args:
        kind: see `record_type`.

    Raises:
        DataError: the data cannot be found or read.
    """
    if kind not in (Demonstration, Preference, Prompt, Vote):
        raise DataError("the data are of no kind that can be trained on", "Name other data.", field="data.train")
    sample: EvenSample[Record] = EvenSample(_TOKENIZED)
    rows = apart = 0
    for record in _limited(section, kind):
        if section.heldout is None and is_heldout(group_of(record), section.seed, section.heldout_fraction):
            apart += 1
            continue
        if sample.wants(rows):
            sample.add(record)
        rows += 1
    if section.heldout is not None:
        apart = sum(1 for _ in _records(section.heldout, section, kind, section.heldout_split))
    found = list(_trees(sample.values, template))
    trees = tuple(TreeLengths(len(tree.prompt), tuple(map(len, tree.answers))) for tree in found)
    shared = worth_sharing([tree.prompt for tree in found])
    return Workload(rows, apart, trees, f"counted: {rows:,} rows, tokens of {len(trees):,} of them", shared)


def _limited(section: DataSection, kind: type[Record]) -> Iterator[Record]:
    """The training source's records; with data.limit those that the run draws, before some are held out."""
    records = _records(section.train, section, kind, section.split)
    if section.limit is None:
        return records
    placed = ((record, ("", 0)) for record in records)
    return (record for record, _ in sample_of(placed, kind, section.limit, section.seed))


def _records(sources: str | list[str], section: DataSection, kind: type[Record], split: str) -> Iterator[Record]:
    with Quarantine() as quarantine:
        yield from read_records(
            source_names(sources),
            kind,
            quarantine=quarantine,
            split=split,
            deduplicate=section.deduplicate,
            text=section.text_form,
            rules=section.row_rules,
        )


def _trees(records: Sequence[Record], template: ChatTemplate) -> Iterator[TokenTree]:
    for record in records:
        try:
            yield whole_row(template, record).tree
        except TemplateError:  # the run sets such rows aside
            continue


def largest_microbatch(
    trees: Sequence[TreeLengths], count: int, budget: int, shared: int = 0
) -> tuple[TreeLengths, ...]:
    """The microbatch of the most tokens, then of the longest rows, that an optimiser step of `count` rows can have.

    Its prompts share `shared` tokens if they are several. A row longer than the budget is a microbatch of its own. If
    fewer rows are known than a step has, they stand for the others.
    """
    ordered = sorted(trees, key=lambda tree: (tree.tokens, tree.longest), reverse=True)
    ordered = [tree for tree in ordered for _ in range(-(-count // len(ordered)))][: max(count, len(ordered))]
    taken: list[TreeLengths] = []
    room = budget
    for tree in ordered:
        if len(taken) < count and (tree.tokens <= room or not taken):
            taken.append(tree)
            room -= tree.tokens
    if len(taken) == 1:
        return tuple(taken)
    least = min(shared, *(tree.prompt - 1 for tree in taken))
    return tuple(replace(tree, shared=max(0, least)) for tree in taken)


def mismatched(trees: Sequence[TreeLengths], most: int) -> tuple[TreeLengths, ...]:
    """Each prompt with the answer of the row before, cut to `most` tokens, as KTO's baseline has them."""
    return tuple(
        replace(tree, answers=(min(trees[place - 1].answers[0], max(1, most - tree.prompt)),))
        for place, tree in enumerate(trees)
    )


def microbatch_count(trees: Sequence[TreeLengths], count: int, budget: int) -> int:
    """Microbatches of an optimiser step of `count` rows of the mean length."""
    mean = sum(tree.tokens for tree in trees) / max(1, len(trees))
    return max(1, -(-round(mean * count) // budget))


def typical_rows(trees: Sequence[TreeLengths], most: int) -> tuple[TreeLengths, ...]:
    """Evenly chosen rows, at most so many."""
    return tuple(trees[place] for place in evenly_chosen(len(trees), most))
