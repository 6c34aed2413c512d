"""A checkpoint loads bit for bit, and whatever happens while one is written, an acknowledged one still loads."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.errors import CheckpointError
from prefine.training.loop.checkpoint import Checkpoint, checkpoint_of, load_checkpoint, newest_valid, save_checkpoint

Tensors = dict[str, dict[str, torch.Tensor]]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit, NaNs included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat_a, flat_b = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (a, b))
    return torch.equal(flat_a, flat_b)


def save(directory: Path, step: int, *, keep_last: int = 3, size: int = 100, keep: int | None = None) -> Checkpoint:
    """A checkpoint whose contents tell its step."""
    tensors = {"weights": {"w": torch.full((size,), float(step))}, "optimizer": {"m": torch.tensor(step)}}
    return save_checkpoint(directory, step, tensors, {"step": step}, keep_last=keep_last, keep={keep})


def check_contents(checkpoint: Checkpoint) -> None:
    tensors, state = load_checkpoint(checkpoint)
    assert state == {"step": checkpoint.step}
    assert torch.all(tensors["weights"]["w"] == checkpoint.step)
    assert tensors["optimizer"]["m"] == checkpoint.step


def steps(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@st.composite
def any_tensor(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    bits = draw(st.binary(min_size=math.prod(shape) * 8, max_size=math.prod(shape) * 8))
    if not bits:
        return torch.zeros(shape, dtype=dtype)
    raw = torch.frombuffer(bytearray(bits), dtype=torch.uint8)
    if dtype is torch.bool:
        raw = raw % 2
    return raw[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda name: name != "__metadata__")


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(
        st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,9}", fullmatch=True), st.dictionaries(names, any_tensor(), max_size=3)
    ),
    state=st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    ),
)
def test_what_is_loaded_is_what_was_saved_bit_for_bit(tensors: Tensors, state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), 1, tensors, state, keep_last=1)
        found = newest_valid(Path(folder))
        assert found is not None
        loaded, loaded_state = load_checkpoint(found)
    assert loaded_state == state
    assert {group: set(members) for group, members in loaded.items()} == {
        group: set(members) for group, members in tensors.items()
    }
    for group, members in tensors.items():
        assert all(same_bits(loaded[group][name], tensor) for name, tensor in members.items())


def test_shared_strided_and_zero_dimensional_tensors_are_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    group = {"a": base, "same": base, "t": base.t(), "row": base[1], "every": base[:, ::2], "s": torch.tensor(1.5)}
    checkpoint = save_checkpoint(tmp_path, 0, {"g": group, "none": {}}, {"best": math.inf}, keep_last=1)
    loaded, state = load_checkpoint(checkpoint)
    assert loaded["none"] == {}
    assert state == {"best": math.inf}
    assert all(same_bits(loaded["g"][name], tensor.detach()) for name, tensor in group.items())


def test_loaded_tensors_outlive_their_file(tmp_path: Path) -> None:
    loaded, _ = load_checkpoint(save(tmp_path, 7))
    file = tmp_path / "step-00000007" / "weights.safetensors"
    os.truncate(file, 0)  # a mapped tensor would end the process here
    assert torch.all(loaded["weights"]["w"] == 7)


@pytest.mark.parametrize("group", ["../x", "a/b", "", ".hidden", "A", "a\n"])
def test_a_group_cannot_leave_its_checkpoint(tmp_path: Path, group: str) -> None:
    with pytest.raises(ValueError, match="cannot name a tensor group"):
        save_checkpoint(tmp_path / "c", 1, {group: {}}, {}, keep_last=1)
    assert not (tmp_path / "c").exists()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        assert save(tmp_path, step, keep_last=2) == Checkpoint(tmp_path / f"step-{step:08d}", step)
    assert steps(tmp_path) == ["step-00000004", "step-00000005"]
    save(tmp_path, 123_456_789, keep_last=2)  # a ninth digit does not disturb the order
    save(tmp_path, 123_456_790, keep_last=1)
    assert steps(tmp_path) == ["step-123456790"]


def test_invalid_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    save(tmp_path, 4, keep_last=2)
    assert steps(tmp_path) == ["step-00000002", "step-00000003", "step-00000004"]
    save(tmp_path, 5, keep_last=2)
    assert steps(tmp_path) == ["step-00000004", "step-00000005"]


def test_saving_a_step_again_replaces_it_and_drops_the_given_up_future(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    replaced = save_checkpoint(tmp_path, 2, {}, {"again": True}, keep_last=3)
    assert steps(tmp_path) == ["step-00000001", "step-00000002"]
    assert newest_valid(tmp_path) == replaced
    assert load_checkpoint(replaced) == ({}, {"again": True})


def test_one_that_is_wanted_stays_beside_the_newest(tmp_path: Path) -> None:
    """It takes no newer one's place, and goes once another is wanted."""
    for step in range(1, 9):
        save(tmp_path, step, keep_last=2, keep=2)
    assert steps(tmp_path) == ["step-00000002", "step-00000007", "step-00000008"]
    save(tmp_path, 9, keep_last=2, keep=8)
    assert steps(tmp_path) == ["step-00000008", "step-00000009"], "wanted or not, it is one of the newest"
    save(tmp_path, 10, keep_last=1, keep=8)
    assert steps(tmp_path) == ["step-00000008", "step-00000010"]
    save(tmp_path, 11, keep_last=1)
    assert steps(tmp_path) == ["step-00000011"]


def test_one_that_is_wanted_but_of_a_given_up_future_goes(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, keep_last=9)
    save(tmp_path, 3, keep_last=1, keep=5)
    assert steps(tmp_path) == ["step-00000003"]


@settings(max_examples=40, deadline=None)
@given(
    saves=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 3), st.sets(st.none() | st.integers(0, 9), max_size=2)),
        min_size=1,
        max_size=8,
    )
)
def test_what_stays_is_what_its_rule_says(saves: list[tuple[int, int, set[int | None]]]) -> None:
    """Nothing later than what was saved last; of the rest the newest few, and those that are wanted."""
    there: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        for step, keep_last, keep in saves:
            save_checkpoint(Path(folder), step, {}, {}, keep_last=keep_last, keep=keep)
            past = sorted(each for each in {*there, step} if each <= step)
            there = {*past[-keep_last:], *(keep & set(past))}
            assert steps(Path(folder)) == [f"step-{each:08d}" for each in sorted(there)]


def test_the_checkpoint_of_a_step_is_found_whatever_the_others_are_like(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    (tmp_path / "step-00000001" / "state.json").unlink()
    found = checkpoint_of(tmp_path, 2)
    assert found == Checkpoint(tmp_path / "step-00000002", 2)
    check_contents(found)


def test_a_checkpoint_that_was_about_to_be_replaced_is_still_that_of_its_step(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000002.replaced")  # as a kill leaves it
    check_contents(checkpoint_of(tmp_path, 2))
    save(tmp_path, 2)
    assert checkpoint_of(tmp_path, 2).path.name == "step-00000002"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: None, "the checkpoint of step 7 cannot be used: it is missing"),
        (lambda path: _flip(path / "weights.safetensors"), "weights.safetensors was changed after it was saved"),
        (lambda path: _truncate(path / "state.json"), r"state.json has \d+ bytes instead of \d+"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json: No such file or directory"),
    ],
)
def test_a_checkpoint_that_is_gone_or_damaged_is_refused_with_a_remedy(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    """Another step's would be another run: none is taken in its place."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    damage(tmp_path / "step-00000002")
    asked = 7 if "7" in reason else 2
    with pytest.raises(CheckpointError, match=rf"{reason}. Restore it from a copy\."):
        checkpoint_of(tmp_path, asked)


def test_a_failed_replacement_leaves_the_one_before(
    tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    for _ in range(2):
        with pytest.raises(CheckpointError), largest_file(2000):
            save(tmp_path, 2, size=10_000)
        found = newest_valid(tmp_path)
        assert found is not None
        assert found.step == 2
        check_contents(found)
    save(tmp_path, 2)
    assert steps(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_full_disk_is_said_and_the_earlier_checkpoint_still_loads(
    tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    save(tmp_path, 1)
    for limit_bytes in (0, 30, 300, 1500, 39_000):  # in the state, in a tensor file, in the manifest
        with pytest.raises(CheckpointError) as caught, largest_file(limit_bytes):
            save(tmp_path, 2, size=10_000, keep_last=1)
        assert str(caught.value) == (
            f"{tmp_path / 'step-00000002'} could not be written: the file would be larger than its file system or a "
            "process limit allows. Raise the limit (ulimit -f), or write to another disk."
        )
        assert steps(tmp_path) == ["step-00000001"]
    found = newest_valid(tmp_path)
    assert found is not None
    check_contents(found)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [_flip, _truncate, _empty, Path.unlink])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_aloud(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "step-00000002" / name)
    with caplog.at_level(logging.WARNING):
        found = newest_valid(tmp_path)
    assert found is not None
    check_contents(found)
    assert found.step == 1
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith(f"{tmp_path / 'step-00000002'} is skipped: ")
    assert caplog.messages == [found.skipped[0]]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"format": 1', '"format": 2', "its format is 2; this version of prefine reads 1"),
        ('"step": 1', '"step": 3', "manifest.json belongs to another checkpoint"),
        ('"weights.safetensors"', '"../../etc/passwd"', "manifest.json names '../../etc/passwd', which no"),
        ('"files": {', '"files": [{', "manifest.json is damaged"),
    ],
)
def test_a_manifest_is_believed_only_if_it_makes_sense(tmp_path: Path, old: str, new: str, reason: str) -> None:
    manifest = save(tmp_path, 1).path / "manifest.json"
    save_checkpoint(tmp_path, 0, {}, {}, keep_last=1)
    save(tmp_path, 1)
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))
    found = newest_valid(tmp_path)
    assert found is not None
    assert found.step == 0
    assert reason in found.skipped[0]


def test_where_nothing_is_valid_nothing_is_found(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "nowhere") is None
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000002").write_text("a file")
    (tmp_path / "notes").mkdir()
    assert newest_valid(tmp_path) is None


def test_a_checkpoint_that_vanished_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read: .*Delete that folder"):
        load_checkpoint(Checkpoint(tmp_path / "step-00000001", 1))


def acknowledged_before_a_kill(work: Callable[[int], None], steps: int, then_s: float) -> list[int]:
    """Steps that a forked process said it had saved: at least so many, then it is killed a moment later.

    `work` writes each step as a line to the file descriptor it is given, and never ends.
    """
    reader, writer = os.pipe()
    child = os.fork()  # a fresh interpreter would spend most of the test importing torch
    if child == 0:
        try:
            os.close(reader)
            work(writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as lines:
        seen = [int(lines.readline()) for _ in range(steps)]
        time.sleep(then_s)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return seen + [int(line) for line in lines]


def test_killed_at_any_moment_the_wanted_one_is_never_lost(tmp_path: Path) -> None:
    """Saved and replaced beside it, again and again, as after roll-backs, with one checkpoint kept."""
    save(tmp_path, 3)

    def saving(acknowledge: int, wanted: int = 3) -> None:
        while True:
            for step in (4, 5, 6, wanted):
                save(tmp_path, step, keep_last=1, keep=wanted, size=20_000)
                os.write(acknowledge, b"%d\n" % step)

    randomness = random.Random(1)
    beside: set[str] = set()
    for _ in range(25):
        acknowledged_before_a_kill(saving, randomness.randrange(5), randomness.uniform(0.001, 0.02))
        check_contents(checkpoint_of(tmp_path, 3))
        beside |= {name for name in steps(tmp_path) if name.startswith("step-")}
    assert {"step-00000004", "step-00000005", "step-00000006"} & beside


def test_killed_at_any_moment_no_acknowledged_checkpoint_is_lost(tmp_path: Path) -> None:
    randomness = random.Random(0)
    last = 0

    def saving(acknowledge: int) -> None:
        step = last
        while True:
            step += 1
            for keep_last in (1 + step % 3, 1)[: 2 if step % 5 == 0 else 1]:  # now and then a step is saved twice
                save(tmp_path, step, keep_last=keep_last, size=20_000)
            os.write(acknowledge, b"%d\n" % step)

    for _ in range(50):
        acknowledged = acknowledged_before_a_kill(saving, randomness.randrange(4), randomness.uniform(0.001, 0.03))
        found = newest_valid(tmp_path)
        for path in tmp_path.glob("step-*"):  # older ones too: what is being deleted is not half there
            assert steps(path) == ["manifest.json", "optimizer.safetensors", "state.json", "weights.safetensors"]
        if found is None:
            assert last == 0
            assert not acknowledged
            continue
        assert found.skipped == ()
        assert found.step >= max([last, *acknowledged])
        check_contents(found)
        last = found.step
    assert last > 50
