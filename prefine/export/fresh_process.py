"""Runs reload.py in a process of its own, with what it says of its progress."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from prefine.errors import CheckpointError, ModelError
from prefine.export.reload import Reloaded, ReloadSpec
from prefine.models.loading.embedded import not_launched
from prefine.runs.atomic import storage_errors


def reload_in_fresh_process(spec: ReloadSpec, progress: Callable[[int], None] = lambda done: None) -> Reloaded:
    """Load an artefact and ask it, in a Python process that has loaded nothing before.

    Args:
        spec: what and how.
        progress: called with the number of probes that are done.

    Raises:
        ModelError: it could not be loaded, or the process ended early.
        CheckpointError: there is no room for its results.
    """
    with tempfile.TemporaryDirectory(prefix="prefine-export-") as name:
        given, out = Path(name) / "spec.json", Path(name) / "out.safetensors"
        spec.write(given)
        with storage_errors(out), (Path(name) / "stderr").open("w+", encoding="utf-8", errors="replace") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own code in our own interpreter
                [sys.executable, "-P", "-m", "prefine.export.reload", str(given), str(out)],
                env=not_launched(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            try:
                assert process.stdout is not None  # noqa: S101 - it is a pipe
                for line in process.stdout:
                    if line.strip().isdigit():
                        progress(int(line))
                process.wait()
            finally:
                process.kill()
                process.wait()
            if process.returncode:
                errors.seek(0)
                _raise(spec, process.returncode, errors.read())
            return Reloaded.read(out)


def _raise(spec: ReloadSpec, code: int, said: str) -> None:
    last = next((line for line in reversed(said.strip().splitlines()) if line.strip()), f"exit code {code}")
    if code < 0:
        last = f"it was ended by signal {-code}; was memory short?"
    if "os error 28" in last or "Errno 28" in last:
        raise CheckpointError(
            f"the comparison's figures do not fit into {tempfile.gettempdir()}: the disk is full",
            "Free some space there, or name a folder on another disk in the environment variable TMPDIR.",
        )
    raise ModelError(
        f"{spec.loader} could not load or run the export ({last.strip()[:300]})",
        "If the message names a package, install it; otherwise the format does not suit this model: choose another.",
    )
