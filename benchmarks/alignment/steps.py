"""Steps of an experiment that are done once: commands, and figures kept as JSON."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefine.runs.atomic import write_text


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kept(path: Path, compute: Callable[[], Any]) -> Any:
    """What `compute` returns, from the file if it is there; else computed and written, as JSON."""
    if not path.is_file():
        write_text(path, json.dumps(compute(), indent=1) + "\n")
    return json.loads(path.read_text())


def require_settings(folder: Path, **settings: Any) -> None:
    """Keep the settings that figures in a folder depend on; end the program if it holds figures of other settings."""
    found = kept(folder / "settings.json", lambda: settings)
    if found != json.loads(json.dumps(settings)):
        sys.exit(f"{folder} holds figures of other settings: {found}, not {settings}. Name another folder with --out.")


def keep_versions(folder: Path, *packages: str) -> None:
    """Write the versions of packages into a folder, once."""
    kept(folder / "versions.json", lambda: {name: version(name) for name in ("prefine", "torch", *packages)})


def apart(compute: Callable[..., Any], *arguments: Any) -> Any:
    """What `compute` returns, in a process of its own: one trainer's memory and threads do not meet the other's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(compute, arguments)


def trained(stage: str, recipe: str, run: Path, *settings: str) -> Path:
    """The folder of a finished run: trained, or resumed, unless it is there.

    Args:
        settings: each as `--set` takes it.
    """
    asked = [word for setting in (f"run={run}", *settings) for word in ("--set", setting)]
    if not (run / "evaluation.json").is_file():
        resume = ["--resume"] if (run / "checkpoints").is_dir() else []
        if run.exists() and not resume:
            shutil.rmtree(run)  # it ended before its first checkpoint
        _command(stage, recipe, *asked, *resume)
    return run


def evaluated(candidate: Path, baseline: str, out: Path, *more: str) -> dict[str, Any]:
    """report.json of the two models."""
    if not (out / "report.json").is_file():
        _command("evaluate", str(candidate), "--against", baseline, "--out", str(out), *more)
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def _command(*words: str) -> None:
    began = time.monotonic()
    print("prefine", *words, flush=True)
    subprocess.run([sys.executable, "-m", "prefine", *words], check=True)
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
