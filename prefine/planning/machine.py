"""The machine that a plan is for: its device, memory, number type and measured rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from time import perf_counter

import torch

from prefine.errors import ModelError
from prefine.export.room import available_memory
from prefine.models.forward.attention import choose_kernel, flash_attention_installed
from prefine.models.loading.device import (
    choose_device,
    choose_dtype,
    device_report,
    matmul_rates,
    multiplies_bfloat16,
    rates_of_one_thread,
)

# More than the caches of a server's processor hold.
_READ_BYTES = 1 << 28
_ELSEWHERE = {"cuda": "bfloat16", "mps": "float32"}


@dataclass(frozen=True)
class Machine:
    """A device.

    Attributes:
        device: its type: cpu, cuda or mps.
        dtype: what model.dtype auto becomes on it.
        memory_bytes: its memory; None if the plan is for a device that this machine does not have.
        gflops: measured speed of matrix products by type; empty for such a device, and a plan then has no times.
        bandwidth: measured speed of reading memory, bytes/s; 0 likewise.
        packs: whether weights are packed a second time while text is generated (see fused.packed_weights).
        flash: whether FlashAttention is installed.
        available_bytes: what a process can take of its memory now, within a container's limit; None if not known.
    """

    device: str
    dtype: str = "float32"
    memory_bytes: int | None = None
    gflops: Mapping[str, float] = field(default_factory=dict)
    bandwidth: float = 0.0
    packs: bool = False
    flash: bool = False
    available_bytes: int | None = None

    @property
    def usable_bytes(self) -> int | None:
        """What a run can take: what is available, or all memory where that is not known; None for another machine's."""
        return self.memory_bytes if self.available_bytes is None else self.available_bytes

    def kernel(self, dtype: str) -> str:
        """The attention kernel for a compute type."""
        return choose_kernel(self.device, getattr(torch, dtype), 0.0, self.flash)


def machine_for(asked: str, *, measured: bool = True) -> Machine:
    """The machine for a recipe's model.device: this one, or by formula a GPU that this machine does not have.

    Args:
        measured: whether to measure rates, which takes about a second once.

    Raises:
        ModelError: `asked` is not a device.
    """
    kind = asked.strip().lower().partition(":")[0]
    try:
        device = choose_device(asked)
    except ModelError:
        if kind not in _ELSEWHERE:
            raise
        return Machine(kind, _ELSEWHERE[kind])
    return replace(_this_machine(device, measured), available_bytes=_available(device))


@lru_cache(maxsize=4)
def _this_machine(device: torch.device, measured: bool) -> Machine:
    dtype, _ = choose_dtype("auto", device, rates_of_one_thread(device) if device.type == "cpu" else None)
    return Machine(
        device.type,
        str(dtype).removeprefix("torch."),
        round(device_report(device)["memory_total_gb"] * 1e9),
        gflops=matmul_rates(device) if measured else {},
        bandwidth=_bandwidth(device) if measured else 0.0,
        packs=multiplies_bfloat16(device),
        flash=flash_attention_installed(),
    )


def _available(device: torch.device) -> int:
    """Bytes that are free now: of a GPU its own, else the machine's within the limits of its control groups."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # of torch's allocator
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return available_memory()


@torch.inference_mode()
def _bandwidth(device: torch.device) -> float:
    """Bytes of memory read each second: the best of a few sums over more than a cache holds."""
    numbers = torch.ones(_READ_BYTES // 4, device=device)
    best = 1.0
    for _ in range(4):
        began = perf_counter()
        float(numbers.sum())
        best = min(best, perf_counter() - began)
    return _READ_BYTES / best
