"""The machine of a plan: what counts is the memory that a run can take now."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prefine.errors import ModelError
from prefine.formatting import MISSING
from prefine.planning import machine as module
from prefine.planning.machine import Machine, machine_for
from prefine.planning.plan import room
from tests.planning.test_plan import GPU, plan

GB = 10**9


def test_memory_is_what_is_available_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine's memory a container's limit or other programs may leave less, and that changes."""
    for free in (3 * GB, 5 * GB):
        monkeypatch.setattr(module, "available_memory", lambda free=free: free)
        found = machine_for("cpu", measured=False)
        assert found.usable_bytes == free
        assert found.memory_bytes != free and found.memory_bytes


def test_a_device_that_is_not_here_has_no_memory() -> None:
    assert Machine("cuda", "bfloat16").usable_bytes is None
    assert room(Machine("cuda", "bfloat16")) == MISSING
    with pytest.raises(ModelError):
        machine_for("gpuu")


def test_the_verdict_is_on_free_memory_and_names_both_figures() -> None:
    tight = plan("dpo", replace(GPU, available_bytes=20 * GB))
    assert not tight.fits(20 * GB) and tight.fits(80 * GB)
    assert "  does not fit the 20.00 GB that are free of the 80.00 GB of this machine's cuda" in tight.lines()
    found = tight.as_json()
    assert (found["memory_limit_bytes"], found["memory_total_bytes"], found["fits"]) == (20 * GB, 80 * GB, False)
    assert plan("dpo").as_json()["fits"] is True
    assert "  fits the 80.00 GB of this machine's cuda" in plan("dpo").lines()
