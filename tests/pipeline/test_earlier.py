"""A result that is set aside survives a kill between any two steps, and is never taken for that of other inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.pipeline import earlier
from prefine.pipeline.records import PipelineRecords
from prefine.runs import atomic
from tests.pipeline.fake import Desk

BETA = "stages.dpo.dpo.beta=0.3"


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
    for owner, name in ((Path, "rename"), (PipelineRecords, "write"), (PipelineRecords, "write_old")):
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    monkeypatch.setattr(PipelineRecords, "forget_old", counted("forget_old", PipelineRecords.forget_old))
    return reached


def weights(desk: Desk) -> None:
    """Stages leave what their recipe says."""

    def work(stage: Any) -> None:
        beta = stage.recipe.dpo.beta if stage.name == "dpo" else ""
        (stage.folder / "of").write_text(f"{stage.name} {beta}")

    desk.work = work


def stands(desk: Desk, beta: float) -> bool:
    """Whether dpo is done, and its files are of this beta."""
    record = PipelineRecords(Path("out")).read("dpo")
    return (
        record is not None
        and record.status == "done"
        and record.inputs["recipe dpo.beta"] == beta
        and Path("out/dpo/of").read_text() == f"dpo {beta}"
    )


@pytest.mark.parametrize("then", [0.1, 0.3])
@pytest.mark.parametrize("step", range(2, 7))
def test_a_kill_between_two_steps(desk: Desk, step: int, then: float) -> None:
    desk.values["stages"] = {name: desk.values["stages"][name] for name in ("sft", "dpo")}
    weights(desk)
    desk.run()
    with pytest.MonkeyPatch.context() as patched:
        killing(patched, step)
        try:
            desk.run(BETA)
        except Killed:
            kept = [Path("out/dpo/of"), Path("out/.pipeline/old/dpo/of")]
            assert [each for each in kept if each.is_file() and each.read_text() in ("dpo 0.1", "dpo 0.3")]
    desk.run(f"stages.dpo.dpo.beta={then}")
    assert stands(desk, then)


@pytest.mark.parametrize("then", [0.1, 0.3])
@pytest.mark.parametrize("step", range(1, 4))
def test_a_kill_while_a_result_is_put_back(desk: Desk, step: int, then: float) -> None:
    desk.values["stages"] = {name: desk.values["stages"][name] for name in ("sft", "dpo")}
    weights(desk)
    desk.run()
    work = desk.work

    def interrupted(stage: Any) -> None:
        work(stage)
        raise KeyboardInterrupt

    desk.work = interrupted
    with pytest.raises(BaseException, match="interrupted"):
        desk.run(BETA)
    desk.work = work
    with pytest.MonkeyPatch.context() as patched:
        reached = killing(patched, step)
        try:
            assert desk.run().ran == ()
        except Killed:
            assert len(reached) == step
    again = desk.run(f"stages.dpo.dpo.beta={then}")
    assert stands(desk, then)
    assert again.ran == (() if then == 0.1 else ("dpo",))
    assert list(Path("out/.pipeline/old").iterdir()) == []
