"""What is set aside survives a kill between any two steps, and is never taken for that of other inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import Paused
from prefine.judges.cache import Reply, ReplyCache
from prefine.pipeline import earlier, running
from prefine.pipeline.records import PipelineRecords, StageAside, StageRecord
from prefine.runs import atomic
from prefine.runs.tags import change_tags
from tests.pipeline.fake import Desk

BETA = "stages.dpo.dpo.beta="
# More steps than any call here takes: the last ones kill nothing.
STEPS = range(11)


class Killed(BaseException):
    """In place of the end of the process."""


def killing(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Let the process end before its step number `step` that changes files. Returns the steps that were reached."""
    reached: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if len(reached) == step:
                raise Killed
            reached.append(name)
            return real(*given, **named)

        return call

    monkeypatch.setattr(earlier, "discard", counted("discard", atomic.discard))
    monkeypatch.setattr(Path, "rename", counted("rename", Path.rename))
    for name in ("write", "write_earlier", "forget_earlier"):
        monkeypatch.setattr(PipelineRecords, name, counted(name, getattr(PipelineRecords, name)))
    return reached


def killed_at(desk: Desk, step: int, beta: float) -> list[str] | None:
    """A call that ends at this step; the steps that it took if it ended before."""
    with pytest.MonkeyPatch.context() as patched:
        reached = killing(patched, step)
        try:
            desk.run(f"{BETA}{beta}")
        except Killed:
            return None
        return reached


@pytest.fixture(autouse=True)
def two_stages(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages, which leave what their recipe says, and count how often they began to write; without a page."""
    monkeypatch.setattr(running, "write_summary", lambda *given: None)
    desk.values["stages"] = {name: desk.values["stages"][name] for name in ("sft", "dpo")}

    def work(stage: Any) -> None:
        beta = stage.recipe.dpo.beta if stage.name == "dpo" else ""
        with (stage.folder / "of").open("a") as file:
            file.write(f"{stage.name} {beta};")

    desk.work = work


def interrupt(desk: Desk, beta: float) -> None:
    """An attempt that is interrupted after it has written something."""
    work = desk.work

    def ending(stage: Any) -> None:
        work(stage)
        if stage.name == "dpo":
            raise KeyboardInterrupt

    desk.work = ending
    with pytest.raises(Paused):
        desk.run(f"{BETA}{beta}")
    desk.work = work


def left() -> list[str]:
    """What is in the stage's folder and in those that were set aside, in alphabetical order."""
    folders = [Path("out/dpo"), *Path("out/.pipeline/old").glob("dpo.*")]
    return sorted((folder / "of").read_text() for folder in folders if (folder / "of").is_file())


def is_done(beta: float, attempts: int = 1) -> bool:
    """Whether dpo is done, and its files are those of at least so many attempts with this beta and no others."""
    record = PipelineRecords(Path("out")).read("dpo")
    assert record is not None
    if record.status != "done" or record.inputs["recipe dpo.beta"] != beta:
        return False
    of = Path("out/dpo/of").read_text()
    assert of == f"dpo {beta};" * of.count(";")
    return of.count(";") >= attempts


@pytest.mark.parametrize("then", [0.1, 0.3])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_while_a_result_is_replaced(desk: Desk, step: int, then: float) -> None:
    desk.run()
    steps = killed_at(desk, step, 0.3)
    assert steps in (None, ["write_earlier", "rename", "write", "write", "discard", "rename", "forget_earlier"])
    is_replaced = Path("out/dpo/of").is_file() and is_done(0.3)
    assert is_replaced or "dpo 0.1;" in left()
    again = desk.run(f"{BETA}{then}")
    assert is_done(then)
    if then == 0.1 and not is_replaced:
        assert again.ran == () and Path("out/dpo/of").read_text() == "dpo 0.1;"


@pytest.mark.parametrize("then", [0.1, 0.3])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_while_an_attempt_is_set_aside_loses_nothing_of_it(desk: Desk, step: int, then: float) -> None:
    interrupt(desk, 0.1)
    killed_at(desk, step, 0.3)
    is_replaced = Path("out/dpo/of").is_file() and is_done(0.3)
    assert is_replaced or "dpo 0.1;" in left()
    desk.run(f"{BETA}{then}")
    assert is_done(then, 2 if then == 0.1 and not is_replaced else 1)  # it went on
    assert is_replaced or len(left()) == 1


@pytest.mark.parametrize("then", [0.1, 0.3])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_result", [True, False])
def test_a_kill_while_something_is_put_back(desk: Desk, step: int, then: float, is_result: bool) -> None:
    if is_result:
        desk.run()
    else:
        interrupt(desk, 0.1)
    interrupt(desk, 0.3)
    assert left() == ["dpo 0.1;", "dpo 0.3;"]
    steps = killed_at(desk, step, 0.1)
    back = ["write_earlier", "rename", "write", "rename", "forget_earlier"]
    done = ["write", "write", "discard", "rename", "forget_earlier"]
    assert steps in (None, back if is_result else [*back, *done])
    is_whole = Path("out/dpo/of").is_file() and is_done(0.1)
    assert is_whole or left() in (["dpo 0.1;", "dpo 0.3;"], ["dpo 0.1;dpo 0.1;", "dpo 0.3;"])
    again = desk.run(f"{BETA}{then}")
    assert is_done(then, 1 if is_whole or (is_result and then == 0.1) else 2)
    if is_result:
        assert again.ran == (() if then == 0.1 else ("dpo",))
        assert Path("out/dpo/of").read_text() == ("dpo 0.1;" if then == 0.1 else "dpo 0.3;dpo 0.3;")


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_never_deletes_a_result_with_a_tag(desk: Desk, step: int) -> None:
    desk.run()
    Path("out/dpo/manifest.json").write_text("{}")
    change_tags(Path("out/dpo"), ["best"], [])
    killed_at(desk, step, 0.3)
    tagged = [path.parent for path in Path("out").rglob("tags.json")]
    assert len(tagged) == 1 and (tagged[0] / "of").read_text() == "dpo 0.1;"
    desk.run(f"{BETA}0.3")
    assert [path.parent.name for path in Path("out").rglob("tags.json")] == ["dpo.kept-1"]
    assert Path("out/dpo.kept-1/of").read_text() == "dpo 0.1;"


def test_what_was_set_aside_is_listed_by_age_and_without_what_is_gone(desk: Desk) -> None:
    interrupt(desk, 0.1)
    records = PipelineRecords(Path("out"))
    record = records.read("dpo")
    assert record is not None
    for number in (10, 9, 2):
        aside = StageAside(records.old / f"dpo.{number}", record)
        records.write_earlier(aside)
        aside.folder.mkdir()
    records.write_earlier(StageAside(records.old / "dpo.1", record))  # as after a kill before the folder was moved
    (records.old / "dpo-2.3").mkdir()
    records.write_earlier(StageAside(records.old / "dpo-2.3", record))
    assert [each.folder.name for each in records.earlier("dpo")] == ["dpo.2", "dpo.9", "dpo.10"]
    assert records.free_place("dpo").name == "dpo.11"  # dpo.1 would count as older than the others


@pytest.mark.parametrize("forced", [None, False, True])
def test_of_several_attempts_the_newest_replies_are_taken_over(desk: Desk, forced: bool | None) -> None:
    """The second of four attempts was forced: the compared endpoint's replies to the first are of an earlier model. If
    the evaluation that is done was forced (None: none is done), all are. Afterwards, what was set aside is deleted.
    """
    desk.values["stages"] = {"better": {"method": "evaluate", "candidate": "a", "prompts": "questions.jsonl"}}
    pipeline = desk.pipeline()
    stage, records = pipeline.stages["better"], PipelineRecords(pipeline.folder)
    records.old.mkdir(parents=True)
    for number in range(1, 5):
        aside = StageAside(records.free_place("better"), StageRecord("failed", "key", {}, forced=number == 2))
        records.write_earlier(aside)
        aside.folder.mkdir()
        for name in ("judge.db", "replies.db"):
            with ReplyCache(aside.folder / name) as cache:
                for key in ("same", f"of {number}"):
                    cache.put(key, "m", Reply(str(number), "stop"))
        (aside.folder / ".lock").write_text("prefine evaluation")
    if forced is None:
        earlier.take_over(stage, records, compared=True)
    else:
        records.stages.mkdir()
        records.write("better", StageRecord("done", "key", {}, forced=forced))
        assert earlier.drop_earlier(stage, records, attempts=True) == []
    assert len(records.earlier("better")) == (4 if forced is None else 0)
    expected = {"same": "4", "of 1": "1", "of 2": "2", "of 3": "3", "of 4": "4"}
    for name, lacks in (("judge.db", []), ("replies.db", list(expected) if forced else ["of 1"])):
        with ReplyCache(stage.folder / name) as cache:
            found = {key: None if (reply := cache.get(key)) is None else reply.text for key in expected}
        assert found == {key: None if key in lacks else text for key, text in expected.items()}
