"""Reward functions of users: what they are given, and what they may do without harm to the run."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import CheckpointError, RecipeError, RewardError
from prefine.recipe.rl import PpoRewardSection, RewardSource
from prefine.recipe.stage import StageRecipe
from prefine.records import Message
from prefine.runs.directory import RunDirectory
from prefine.training.rl import user_code
from prefine.training.rl.reward_sources import FunctionSource, PromptAnswers, function_of
from prefine.training.rl.rewards import Rewards
from prefine.training.rl.user_code import Call, UserCodeError, preserved
from tests.training import tiny
from tests.training.rl.test_reward_sources import QUICK

Make = Callable[..., StageRecipe]
GOLD = json.dumps({"gold": {"answer": [4]}, "response": "theirs", "id": "row-1"})
ASKED = [PromptAnswers((Message(role="user", content="2 + 2?"),), ("4", "5"), GOLD)]
COUNT = itertools.count()


def source(function: Callable[[list[dict[str, Any]]], Any], name: str = "mine:score", timeout_s: float = 5.0) -> Any:
    return FunctionSource(RewardSource(name=name, timeout_s=timeout_s), function)


# --- What a function is given ----------------------------------------------------------------------------------------


def test_rows_hold_the_other_columns_of_the_data() -> None:
    seen: list[dict[str, Any]] = []
    source(lambda rows: seen.extend(rows) or [0.0] * len(rows)).score(ASKED)
    prompt = [{"role": "user", "content": "2 + 2?"}]
    others = {"gold": {"answer": [4]}, "id": "row-1", "source_response": "theirs"}
    assert seen == [{"prompt": prompt, "response": answer, **others} for answer in ("4", "5")]


def test_a_function_that_changes_its_rows_changes_nothing_else() -> None:
    """Neither the row of a sibling nor what is given to it later; an emptied list is not taken for its length."""

    def spoil(rows: list[dict[str, Any]]) -> list[float]:
        assert rows[-1]["gold"]["answer"] == [4]
        rows[0]["gold"]["answer"].append(5)
        rows[0]["prompt"].clear()
        found = [float(row["response"]) for row in rows]
        rows.clear()
        return found

    mine = source(spoil)
    assert [mine.score(ASKED) for _ in range(2)] == [[4.0, 5.0]] * 2
    with pytest.raises(RewardError, match="returned 0 numbers for 2 answers"):
        source(lambda rows: rows.clear() or rows).score(ASKED)


COLUMNS = [
    {"prompt": "q {n}", "gold": 0},
    {"messages": [{"role": "user", "content": "q {n}"}, {"role": "assistant", "content": "gold 0"}], "gold": 0},
    {"prompt": "q {n}", "chosen": "a", "rejected": "b", "margin": 2.0, "gold": 0},
    {"instruction": "q {n}", "output": "a", "gold": 0},
]


@pytest.mark.parametrize("shape", COLUMNS, ids=",".join)
def test_columns_go_from_the_file_to_the_function(
    shape: dict[str, Any], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows that are trained on and of held-out ones, before and after a run is resumed."""
    seen: list[dict[str, Any]] = []

    def verified(rows: list[dict[str, Any]]) -> list[float]:
        seen.extend(rows)
        return [float(row["prompt"][-1]["content"] == f"q {row['gold']}") for row in rows]

    monkeypatch.setattr(tiny, "letters", verified)
    lines = [json.loads(json.dumps({**shape, "gold": n}).replace("{n}", str(n))) for n in range(12)]
    changes = {**QUICK, "data.heldout_fraction": 0.3, "rollout.heldout_prompts": 2, "reward.missing_eos": "none"}
    made = make("ppo", changes={**changes, "data.train": str(tiny.write_rows(tmp_path / "rows.jsonl", lines))})
    tiny.train(made)
    scores = [row["score"] for row in tiny.metrics(Path(made.run)) if "score" in row]
    assert scores == [1.0] * 4
    by_number = {line["gold"]: line for line in lines}
    for row in seen:
        line = by_number[row["gold"]]
        assert {name: row[name] for name in line if name != "prompt"} == {
            k: v for k, v in line.items() if k != "prompt"
        }


# --- Async functions -------------------------------------------------------------------------------------------------


def test_async_functions_are_awaited_together() -> None:
    """Each waits until both have begun: one after the other they would never end."""
    begun: list[str] = []

    async def scored(name: str, rows: list[dict[str, Any]]) -> list[float]:
        begun.append(name)
        while len(begun) < 2:
            await asyncio.sleep(0.001)
        return [float(len(name))] * len(rows)

    async def second(rows: list[dict[str, Any]]) -> list[float]:
        return await scored("bb", rows)

    both = [source(functools.partial(scored, "a"), "mine:a"), source(second, "mine:b")]
    assert Rewards(PpoRewardSection(), both, 100).score(ASKED) == {"mine:a": [1.0, 1.0], "mine:b": [2.0, 2.0]}


def test_calls_share_one_event_loop() -> None:
    """What a module keeps for its loop, as HTTP clients are, is of use in the next update."""
    loops = []

    async def score(rows: list[dict[str, Any]]) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(rows)

    for _ in range(2):
        source(score).score(ASKED)
    source(functools.partial(lambda call, rows: call(rows), score)).score(ASKED)  # gives a coroutine, but is plain
    assert len(set(map(id, loops))) == 1


async def _sleeping(rows: list[dict[str, Any]]) -> list[float]:
    await asyncio.sleep(30)
    return []


async def _blocking(rows: list[dict[str, Any]]) -> list[float]:
    time.sleep(1.5)
    return []


async def _leaving(rows: list[dict[str, Any]]) -> list[float]:
    sys.exit(0)


async def _late(rows: list[dict[str, Any]]) -> list[float]:
    raise TimeoutError("theirs")


ASYNC = {
    _sleeping: r"mine:score did not return within 0\.2 s",
    _leaving: "mine:score raised SystemExit: 0",
    _late: "mine:score raised TimeoutError: theirs",
    _blocking: r"mine:score did not return within 0\.2 s",
}


@pytest.mark.parametrize("function", ASYNC, ids=lambda function: function.__name__)
def test_an_async_function_that_fails_is_named(function: Callable[..., Any]) -> None:
    with pytest.raises(RewardError, match=ASYNC[function]):
        source(function, timeout_s=0.2).score(ASKED)


# --- What a function may do ------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """module(text): a new module of the working directory; its name with a function `score`."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        name = f"user_module_{next(COUNT)}"
        Path(f"{name}.py").write_text(text + "\ndef score(rows):\n    return [0.0] * len(rows)\n")
        return f"{name}:score"

    yield write


@pytest.mark.parametrize("text", ["import sys; sys.exit(0)", "raise GeneratorExit", "raise SystemExit"])
def test_a_module_that_leaves_is_one_that_cannot_be_imported(text: str, module: Callable[[str], str]) -> None:
    name = module(text)
    with pytest.raises(RecipeError, match=rf"reward.name: {name} could not be imported \((SystemExit|GeneratorExit)"):
        function_of(name)


def test_sys_exit_at_import_ends_the_command_with_an_error(module: Callable[[str], str], make: Make) -> None:
    made = make("ppo", changes={**QUICK, "reward.name": module("import sys; sys.exit(0)")})
    code, said = tiny.Command("ppo", tiny.written(made, Path("recipe.yaml"))).end()
    assert (code, "could not be imported (SystemExit: 0)" in said, "Traceback" in said) == (2, True, False), said


def test_a_changed_directory_loses_no_run(module: Callable[[str], str], make: Make, tmp_path: Path) -> None:
    """At import and in each call: a run named by a relative path lies where it was to lie."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    name = module(f"import os\nos.chdir({str(elsewhere)!r})")
    assert function_of(name)([{}]) == [0.0]
    assert Path.cwd() == tmp_path

    def leave(rows: list[dict[str, Any]]) -> list[float]:
        os.chdir(elsewhere)
        return [0.0] * len(rows)

    source(leave).score(ASKED)
    assert Path.cwd() == tmp_path
    Rewards(PpoRewardSection(), [source(leave)], 100).score(ASKED)
    assert Path.cwd() == tmp_path


def _close_stream() -> None:
    sys.stdout.close()
    sys.stderr.close()


def _close_descriptor() -> None:
    os.close(1)


def _close_original() -> None:
    assert sys.__stdout__ is not None
    sys.__stdout__.close()


@pytest.mark.parametrize("close", [_close_stream, _close_descriptor, _close_original])
def test_what_is_closed_can_be_written_to_afterwards(close: Callable[[], None]) -> None:
    """In a process of its own, whose output goes to a pipe."""
    reading, writing = os.pipe()

    def work() -> None:
        sys.__stdout__ = sys.stdout
        with preserved():
            print("theirs", flush=True)
            close()
        print("ours", flush=True)

    child = tiny.fork(work, writing)
    os.close(writing)
    with os.fdopen(reading) as output:
        said = output.read()
    assert (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said) == (0, "theirs\nours\n")


def test_a_forked_child_does_not_keep_the_runs_lock(tmp_path: Path) -> None:
    """The child lives on while its parent has ended the run; and its own end does not unlock its parent's run."""
    with RunDirectory.create(tmp_path / "run", resume=False) as run:
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
        other = os.fork()
        if other == 0:
            run.close()
            os._exit(0)
        os.waitpid(other, 0)
        with pytest.raises(CheckpointError, match="in use by another process"):
            RunDirectory.create(tmp_path / "run", resume=False)
    try:
        RunDirectory.create(tmp_path / "run", resume=False).close()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_child_of_a_killed_run_does_not_keep_its_lock(tmp_path: Path) -> None:
    """The kernel gives a lock back once nobody has it open; the child must not."""
    reading, writing = os.pipe()

    def work() -> None:
        RunDirectory.create(tmp_path / "run", resume=False)
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
        os.write(writing, str(child).encode())
        os.kill(os.getpid(), 9)

    parent = tiny.fork(work)
    os.waitpid(parent, 0)
    child = int(os.read(reading, 20))
    try:
        RunDirectory.create(tmp_path / "run", resume=True).close()
    finally:
        os.kill(child, 9)
        os.close(reading)
        os.close(writing)


def test_a_call_that_is_left_behind_is_told_by_its_limit() -> None:
    with pytest.raises(UserCodeError, match=r"did not return within 0\.1 s"):
        Call(lambda _: time.sleep(2), None, 0.1).result()


async def _cancelling(rows: list[dict[str, Any]]) -> list[float]:
    task = asyncio.create_task(asyncio.sleep(10))
    task.cancel()
    await task
    return []


def _hidden_exit(rows: list[dict[str, Any]]) -> Any:
    async def leave() -> None:
        sys.exit(0)

    return leave()


@pytest.mark.parametrize(("function", "raised"), [(_cancelling, "CancelledError"), (_hidden_exit, "SystemExit")])
def test_what_a_coroutine_raises_ends_its_own_call_alone(function: Callable[..., Any], raised: str) -> None:
    """A task of its own that is cancelled, and an exit that would end the event loop of all calls."""
    with pytest.raises(UserCodeError, match=f"raised {raised}"):
        Call(function, [], 5.0).result()

    async def fine(rows: list[dict[str, Any]]) -> list[float]:
        await asyncio.sleep(0)
        return [1.0]

    assert Call(fine, [], 5.0).result() == [1.0]


def test_a_call_that_ends_after_its_limit_says_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_code, "_GRACE_S", 0.0)
    ended = threading.Event()

    def slow(_: Any) -> list[float]:
        time.sleep(0.2)
        ended.set()
        return [1.0]

    with pytest.raises(UserCodeError, match="did not return"):
        Call(slow, None, 0.05).result()
    assert ended.wait(5)
    time.sleep(0.1)  # its thread then hands its result to nobody
    assert "Traceback" not in capfd.readouterr().err
