"""A reload without a process of its own, for tests of all else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from prefine.export import probes, run_export
from prefine.export.language_export import LanguageExport
from prefine.export.reload import Reloaded, ReloadSpec, reload
from prefine.export.reward_export import RewardExport

PROBES = 12


def reload_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports be loaded again in this process, and compared on few prompts, until the test ends."""

    def here(spec: ReloadSpec, progress: Callable[[int], None]) -> Reloaded:
        return reload(spec, progress)

    monkeypatch.setattr(probes, "PROBES", PROBES)
    monkeypatch.setattr(run_export, "LanguageExport", partial(LanguageExport, reload=here))
    monkeypatch.setattr(run_export, "RewardExport", partial(RewardExport, reload=here))
