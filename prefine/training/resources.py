"""What a training process uses of its machine now."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch


def resources(device: torch.device) -> dict[str, float]:
    """Memory and use now.

    Returns: `rss_gb`, the process's resident memory (10^9 bytes). On a GPU also `gpu_memory_gb`, memory in use by all
        programs, and `gpu_utilisation`, the share of the last moments (up to 1 s) in which it computed, as the driver
        counts them; both are left out where the driver does not say.
    """
    found = {"rss_gb": psutil.Process().memory_info().rss / 1e9}
    if device.type != "cuda":
        return found
    asked: dict[str, Callable[[], float]] = {
        "gpu_memory_gb": lambda: torch.cuda.device_memory_used(device) / 1e9,
        "gpu_utilisation": lambda: torch.cuda.utilization(device) / 100,
    }
    for name, ask in asked.items():
        try:
            found[name] = float(ask())
        except Exception:  # noqa: BLE001, S112 - no NVML, or a part of a GPU, which has no such figure
            continue
    return found
