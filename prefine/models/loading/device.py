"""Chooses a run's device and number type, from measurements."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TypedDict

import psutil
import torch
from torch import Tensor

from prefine.errors import ModelError
from prefine.rounding import two_digits

# bfloat16 keeps 8 bits of precision; below this speed-up the loss of precision is not worth it.
_WORTHWHILE_SPEEDUP = 1.3
_MEASURING_BUDGET_S = 0.45
# If a first small product predicts more than this for a full-sized one, the small one is used as the measurement:
# bfloat16 without instructions for it can take a second.
_LONGEST_PRODUCT_S = 0.1
_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
# Several times the number of shapes in one step (about 150): with 256 a step was 6 % slower than without a bound.
_KERNELS_KEPT = 512
_CPU_INFO = Path("/proc/cpuinfo")
_MATRIX_INSTRUCTIONS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "bf16", "svebf16", "sve2")


@dataclass(frozen=True, slots=True)
class Accelerators:
    """Accelerators that this torch can use."""

    cuda_devices: int
    mps: bool


@dataclass(frozen=True, slots=True)
class Launched:
    """This process's rank among those that `accelerate launch` or torchrun started on this machine."""

    local_rank: int
    processes: int


class DeviceReport(TypedDict):
    """Facts about one device; memory in GB (1e9 bytes), cores and threads are null for GPUs."""

    device: str
    type: str
    name: str
    cores: int | None
    threads: int | None
    memory_total_gb: float
    memory_free_gb: float
    instructions: list[str]


def choose_device(asked: str = "auto") -> torch.device:
    """The device to run on: `auto` prefers CUDA, then Apple's MPS, then the CPU.

    A CUDA device always carries its index, so that devices compare equal, and becomes the current one, because
    compiled kernels go there. Under `accelerate launch` each process gets the GPU of its LOCAL_RANK.

    Raises:
        ModelError: `asked` is not a device, or not available.
    """
    found = Accelerators(torch.cuda.device_count() if torch.cuda.is_available() else 0, _mps_available())
    device = torch.device(pick_device(asked, found, launched_as(os.environ)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def pick_device(asked: str, found: Accelerators, launched: Launched | None) -> str:
    """The name of the device to use, as `choose_device` explains it. Raises ModelError."""
    kind, _, index = asked.strip().lower().partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise ModelError(
            f"device: {asked!r} is not a device", "Use auto, cpu, mps, cuda, or cuda:1 for the second GPU."
        )
    if kind == "auto":
        kind = "cuda" if found.cuda_devices else "mps" if found.mps else "cpu"
    if kind == "mps" and not found.mps:
        raise ModelError(
            f"device is {asked!r}, but this torch ({torch.__version__}) cannot use an Apple GPU",
            "Use device: auto, or install torch for macOS on Apple silicon.",
        )
    return _pick_cuda(asked, index, found.cuda_devices, launched) if kind == "cuda" else kind


def _pick_cuda(asked: str, index: str, devices: int, launched: Launched | None) -> str:
    if not devices:
        raise ModelError(
            f"device is {asked!r}, but this torch ({torch.__version__}) finds no CUDA GPU",
            "Use device: auto, or install a CUDA build of torch and check the driver with nvidia-smi.",
        )
    if launched is not None and launched.processes > 1:
        if index:
            raise ModelError(
                f"device: {asked!r} would put all {launched.processes} launched processes on one GPU",
                "Use device: cuda; each process then takes its own.",
            )
        index = str(launched.local_rank)
    if int(index or 0) >= devices:
        wanted = f"{launched.processes} launched processes need as many GPUs" if launched else f"device: {asked!r}"
        raise ModelError(
            f"{wanted}, but there {'is 1 GPU' if devices == 1 else f'are {devices} GPUs'}",
            f"Use an index below {devices}, start no more processes than GPUs, or widen CUDA_VISIBLE_DEVICES.",
        )
    return f"cuda:{int(index or 0)}"


def launched_as(environment: Mapping[str, str]) -> Launched | None:
    """This process's rank among the launched ones, from the variables that torchrun sets; None without them."""
    try:
        processes = environment.get("LOCAL_WORLD_SIZE") or environment.get("WORLD_SIZE", "1")
        return Launched(int(environment["LOCAL_RANK"]), int(processes))
    except (KeyError, ValueError):
        return None


def choose_dtype(asked: str, device: torch.device, rates: Mapping[str, float] | None = None) -> tuple[torch.dtype, str]:
    """The number type of matrix products in training, and the reason. `auto` takes bfloat16 if it is clearly faster.

    Args:
        asked: "auto", "float32" or "bfloat16".
        device: the run's device.
        rates: GFLOP/s by type name; None measures them with `rates_of_one_thread`.

    Raises:
        ModelError: another type, float16 included: see the message.
    """
    name = _NAMES.get(asked.strip().lower(), asked.strip().lower())
    if name == "float16":
        raise ModelError(
            f"dtype: {asked!r} is not supported for training: gradients below 6e-8 become zero in float16 unless the "
            "loss is scaled up, and prefine does not scale it",
            "Use dtype: bfloat16, which has the range of float32, or dtype: auto.",
        )
    if name not in ("auto", "float32", "bfloat16"):
        raise ModelError(f"dtype: {asked!r} is not a number type for training", "Use auto, float32 or bfloat16.")
    if name == "auto" and _native_bfloat16_gpu(device):
        return torch.bfloat16, f"{device} has bfloat16 instructions"
    rates = rates_of_one_thread(device) if rates is None else rates
    speedup = _speedup(rates)
    measured = f"bfloat16 products run at {two_digits(speedup)} times the speed of float32 here"
    best = "bfloat16" if speedup >= _WORTHWHILE_SPEEDUP else "float32"
    if name == "auto":
        why = "" if best == "bfloat16" else f", less than the {_WORTHWHILE_SPEEDUP} that would justify the rounding"
        return getattr(torch, best), measured + why
    # float32 is a sound choice for exactness, so it is called slow only if auto would have chosen another type.
    slow = name != best and (name == "float32" or speedup < 1)
    return getattr(torch, name), f"requested; slow: {measured}" if slow else "requested"


def _speedup(rates: Mapping[str, float]) -> float:
    return rates.get("bfloat16", 0.0) / rates.get("float32", math.inf)


def multiplies_bfloat16(device: torch.device) -> bool:
    return device.type == "cpu" and not {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}.isdisjoint(cpu_instructions())


def _native_bfloat16_gpu(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def matmul_rates(device: torch.device) -> dict[str, float]:
    """Measured speed of square matrix products, GFLOP/s by type: "float32", "bfloat16" and on GPUs "float16".

    The best of as many runs as fit into about half a second. A type that the device cannot multiply is left out.
    """
    side = 1024 if device.type == "cpu" else 4096
    types = [torch.float32, torch.bfloat16] + ([] if device.type == "cpu" else [torch.float16])
    matrices: dict[str, Tensor] = {}
    best: dict[str, float] = {}
    for dtype in types:
        name = str(dtype).removeprefix("torch.")
        # RuntimeError: out of memory; TypeError: MPS before macOS 14 has no bfloat16.
        with contextlib.suppress(RuntimeError, TypeError):
            matrices[name] = _square(side // 4, device, dtype)
            best[name] = min(_seconds(matrices[name]) for _ in range(3))
            # A type with instructions for it is never that slow: another program was using the cores.
            if best[name] * 4**3 <= _LONGEST_PRODUCT_S or (name == "bfloat16" and multiplies_bfloat16(device)):
                full = _square(side, device, dtype)
                best[name], matrices[name] = _seconds(full), full
    until = perf_counter() + _MEASURING_BUDGET_S
    # In turns, so that load from another program slows all types equally and does not change their ratio.
    while perf_counter() < until:
        for name in best:
            best[name] = min(best[name], _seconds(matrices[name]))
    return {name: _gflops(matrices[name], seconds) for name, seconds in best.items()}


@lru_cache
def rates_of_one_thread(device: torch.device) -> dict[str, float]:
    """As `matmul_rates`, with one thread on a CPU, measured once per process: for comparing types.

    Several threads wait for each other: if other programs use the cores, one type may be measured ten times too slow.
    One thread gives the same ratio on an idle and on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return matmul_rates(device)
    finally:
        torch.set_num_threads(threads)


def _square(side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # Not random: measuring must not change the random state of a run.
    return torch.linspace(-1, 1, side * side, device=device).view(side, side).to(dtype)


@torch.inference_mode()
def _seconds(matrix: Tensor) -> float:
    _finish(matrix.device)
    begin = perf_counter()
    torch.mm(matrix, matrix)
    _finish(matrix.device)
    return perf_counter() - begin


def _finish(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _gflops(matrix: Tensor, seconds: float) -> float:
    return 2 * matrix.shape[0] ** 3 / seconds / 1e9


def device_report(device: torch.device) -> DeviceReport:
    """Facts about a device, including its free memory now."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    name, cores, threads = _cpu_name(), None, None
    instructions: list[str] = []
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        instructions = ["sm_{}{}".format(*torch.cuda.get_device_capability(device))]
    elif device.type == "mps":  # it shares the machine's memory
        name = f"{name} GPU"
    else:
        cores, threads = usable_cores(), torch.get_num_threads()
        instructions = cpu_instructions()
    return DeviceReport(
        device=str(device),
        type=device.type,
        name=name,
        cores=cores,
        threads=threads,
        memory_total_gb=total / 1e9,
        memory_free_gb=free / 1e9,
        instructions=instructions,
    )


def usable_cores() -> int:
    """Physical cores that this process may use: a container or taskset can allow fewer than there are."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def cpu_instructions() -> list[str]:
    """The vector instructions that torch's kernels use, then this processor's instructions for 16-bit products."""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpu_info(), re.MULTILINE)
    flags = match[1].split() if match else []
    return [torch.backends.cpu.get_cpu_capability(), *(name for name in _MATRIX_INSTRUCTIONS if name in flags)]


def _cpu_name() -> str:
    match = re.search(r"^model name\s*:\s*(.*)$", _cpu_info(), re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def _cpu_info() -> str:
    return _CPU_INFO.read_text(errors="replace") if _CPU_INFO.exists() else ""


def _mps_available() -> bool:
    return torch.backends.mps.is_available()


def bound_kernel_caches() -> None:
    """Limit torch's CPU caches of matrix-product kernels. Call it before a process's first product.

    oneDNN and torch's bridge to it keep a compiled kernel for each shape, up to 1024 each by default. In packed rows
    nearly every step has new shapes: with SmolLM2-135M this took 0.6 GB more after 60 steps, for kernels that are
    never used again. Values that the user has set in the environment are kept.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(_KERNELS_KEPT))


def return_freed_memory() -> None:
    """Return memory that torch has freed to the system if the C library keeps it (glibc); otherwise do nothing.

    Tensors of changing sizes fragment its heap: over twenty steps, this reduced 3.0 GB resident to 2.4 GB.
    """
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
