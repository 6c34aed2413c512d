"""The machine in sentences, for the head of a new pipeline."""

from __future__ import annotations

from prefine.doctor import Diagnosis, diagnose


def machine_sentences(diagnosis: Diagnosis | None = None) -> list[str]:
    """What a run would use here, and what is worth changing.

    Args:
        diagnosis: None examines this machine, which takes about a second.
    """
    found = diagnosis or diagnose()
    device = found.devices[0]
    return [
        f"{device['device']}: {device['name']}, {device['memory_total_gb']:.0f} GB of memory, of which "
        f"{device['memory_free_gb']:.0f} GB are free.",
        f"Number type {found.dtype}: {found.dtype_reason}.",
        f"{found.cache_free_gb:.0f} GB of disk are free for the cache.",
        *found.warnings,
    ]
