"""The result of reading a row: its records, a reason why it is left out, or a problem."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, cast

from prefine.data.reading.rows import Problem, Row, RowError
from prefine.data.records.convert import R, records_of, require_bounded
from prefine.data.records.layouts.shape import LeftOut, Shape
from prefine.data.records.layouts.trees import FLAT, MOST_MESSAGES, read_flat, tree_id
from prefine.row_rules import RowRules


@dataclass
class Reading(Generic[R]):
    """A row that was read.

    Attributes:
        row: as it was read.
        records: of the row; none if it is only context of others.
        problem: why it cannot be used.
        left_out: why it gives no record although it is valid.
        message: its columns, if it is one message of a tree: its records depend on the other rows of the tree.
        shape_is_known: whether its columns fit any layout.
    """

    row: Row
    records: list[R] = field(default_factory=list)
    problem: Problem | None = None
    left_out: Problem | None = None
    message: Mapping[str, Any] | None = None
    shape_is_known: bool = True


def read_row(row: Row, value: Mapping[str, Any], kind: type[R], rules: RowRules, shape: Shape) -> Reading[R]:
    """The reading of a row whose columns, under prefine's names, are `value`."""
    if shape.name == FLAT:
        return Reading(row, message=value)
    try:
        return Reading(row, records_of(value, kind, rules, shape))
    except LeftOut as error:
        return Reading(row, left_out=error.problem)
    except RowError as error:
        return Reading(row, problem=error.problem)


def in_trees(readings: Iterable[Reading[R]], kind: type[R], rules: RowRules) -> Iterator[Reading[R]]:
    """The readings, with the records of trees: consecutive rows of one tree are read together."""
    tree: list[Reading[R]] = []
    for reading in readings:
        goes_on = reading.message is not None and len(tree) < MOST_MESSAGES
        if tree and not (goes_on and _name(reading) == _name(tree[0])):
            yield from _of_tree(tree, kind, rules)
            tree = []
        if reading.message is None:
            yield reading
        else:
            tree.append(reading)
    if tree:
        yield from _of_tree(tree, kind, rules)


def _name(reading: Reading[R]) -> Any:
    return None if reading.message is None else tree_id(reading.message)


def _of_tree(tree: Sequence[Reading[R]], kind: type[R], rules: RowRules) -> Iterator[Reading[R]]:
    nodes = read_flat([reading.message or {} for reading in tree], kind, rules.pairs)
    for reading, node in zip(tree, nodes, strict=True):
        try:
            for record in node.records:
                require_bounded(record)
        except RowError as error:
            node.records, node.problem = [], error.problem
        yield Reading(reading.row, cast(list[R], node.records), node.problem, node.left_out)
