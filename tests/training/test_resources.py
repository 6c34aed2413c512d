"""What a process uses of its machine."""

from __future__ import annotations

import psutil
import pytest
import torch

from prefine.training.resources import resources

GPU = torch.device("cuda", 0)


def test_a_cpu_has_resident_memory_alone() -> None:
    found = resources(torch.device("cpu"))
    assert found.keys() == {"rss_gb"}
    assert found["rss_gb"] == pytest.approx(psutil.Process().memory_info().rss / 1e9, rel=0.5)


def test_a_gpu_also_has_its_memory_and_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_memory_used", lambda device: 3_000_000_000)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 40)
    found = resources(GPU)
    assert (found["gpu_memory_gb"], found["gpu_utilisation"]) == (3.0, 0.4)


def test_what_the_driver_does_not_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> int:
        raise RuntimeError("Not Supported")

    monkeypatch.setattr(torch.cuda, "device_memory_used", lambda device: 1_000_000_000)
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert resources(GPU).keys() == {"rss_gb", "gpu_memory_gb"}
