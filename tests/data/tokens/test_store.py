"""A store holds exactly what was written, or is not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.data.tokens.store import StoreWriter, TokenStore
from prefine.data.tokens.trees import TokenTree
from prefine.errors import CheckpointError, DataError

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8)


@st.composite
def trees(draw: Any) -> TokenTree:
    answers = tuple(draw(st.lists(ids, min_size=1, max_size=2)))
    masks = tuple(
        draw(st.none() | st.lists(st.booleans(), min_size=len(answer), max_size=len(answer))) for answer in answers
    )
    return TokenTree(draw(ids), answers, masks)


def unpacked(tree: TokenTree) -> tuple[Any, ...]:
    return (
        list(tree.prompt),
        [list(answer) for answer in tree.answers],
        [None if mask is None else list(mask) for mask in tree.supervised],
    )


# --- The store -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(trees(), st.text(alphabet=st.characters(exclude_categories=["Cs"]))), max_size=6))
def test_what_is_read_is_what_was_written(tmp_path_factory: Any, rows: list[tuple[TokenTree, str]]) -> None:
    path = tmp_path_factory.mktemp("store") / "a.arrow"
    with StoreWriter(path) as writer:
        for tree, record in rows:
            writer.add(tree, record)
    store = TokenStore(path)
    assert len(store) == writer.rows == len(rows)
    for index, (tree, record) in enumerate(rows):
        assert unpacked(store[index]) == unpacked(tree)
        assert store[index].row == index
        assert store.record_json(index) == record


def tree_number(number: int) -> TokenTree:
    return TokenTree([number, 7], ([number, 1], [2]), (None, [True]))


def test_rows_of_many_blocks_are_found_again(tmp_path: Path) -> None:
    for rows in (0, 1, 255, 256, 257, 512, 600):
        with StoreWriter(tmp_path / "a.arrow") as writer:
            for number in range(rows):
                writer.add(tree_number(number), f'{{"number": {number}}}')
        store = TokenStore(tmp_path / "a.arrow")
        assert len(store) == rows
        assert [tree.prompt[0] for tree in store] == list(range(rows))
        assert [tree.row for tree in store[::-7]] == list(range(rows))[::-7]
        if rows:
            assert store[-1].row == rows - 1
            assert store.record_json(-1) == f'{{"number": {rows - 1}}}'
        for index in (rows, -rows - 1):
            with pytest.raises(IndexError):
                store[index]


def test_a_store_is_mapped_into_memory_not_read(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "a.arrow") as writer:
        for number in range(2_000):
            writer.add(TokenTree([number] * 500, ([number] * 500,), (None,)), "{}")
    before = pa.total_allocated_bytes()
    store = TokenStore(tmp_path / "a.arrow")
    assert store[1_999].prompt[0] == 1_999
    assert pa.total_allocated_bytes() - before < 100_000 < (tmp_path / "a.arrow").stat().st_size / 50


def test_the_digest_follows_ids_and_masks_not_records(tmp_path: Path) -> None:
    def digest(*rows: tuple[TokenTree, str]) -> str:
        with StoreWriter(tmp_path / "a.arrow") as writer:
            for tree, record in rows:
                writer.add(tree, record)
        return writer.digest.hexdigest()

    one, two = TokenTree([1], ([2, 3],), (None,)), TokenTree([1, 2], ([3],), (None,))
    masked = TokenTree([1], ([2, 3],), ([True, False],))
    assert digest((one, "a")) == digest((one, "b"))
    assert len({digest((one, "a")), digest((two, "a")), digest((masked, "a")), digest((one, "a"), (one, "a"))}) == 4


def test_an_exception_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError), StoreWriter(tmp_path / "a.arrow") as writer:
        for number in range(300):
            writer.add(tree_number(number), "{}")
        raise DataError("a", "b")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_the_store_that_was_there(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "a.arrow") as writer:
        writer.add(tree_number(1), "{}")
    with pytest.raises(ZeroDivisionError), StoreWriter(tmp_path / "a.arrow") as writer:
        writer.add(tree_number(2), "{}")
        raise ZeroDivisionError
    assert TokenStore(tmp_path / "a.arrow")[0].prompt == [1, 7]


@pytest.mark.parametrize("rows", [10, 5_000])
def test_a_full_disk_leaves_no_file_whenever_it_fills_up(
    rows: int, tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    """With few rows the file is written as the store is closed, with many while rows are added."""
    with largest_file(200), pytest.raises(CheckpointError, match="could not be written"):  # noqa: SIM117
        with StoreWriter(tmp_path / "a.arrow") as writer:
            for number in range(rows):
                writer.add(tree_number(number), "{}" * 50)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_store(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from prefine.data.tokens.trees import TokenTree
from prefine.data.tokens.store import StoreWriter
with StoreWriter(Path(sys.argv[1])) as writer:
    for number in range(1000):
        writer.add(TokenTree([number], ([1],), (None,)), "{}")
    print("written", flush=True)
    sys.stdin.read()
"""
    path = tmp_path / "a.arrow"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    assert any(entry.stat().st_size > 1_000 for entry in tmp_path.iterdir())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"not arrow", b"ARROW1\0\0 cut short"])
def test_what_is_no_store_says_so(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"is not a token store .* Delete the folder {tmp_path}"):
        TokenStore(path)
    path.unlink()
    with pytest.raises(DataError, match="is not a token store"):
        TokenStore(path)
