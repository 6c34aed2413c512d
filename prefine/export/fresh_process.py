"""Runs reload.py in a process of its own, which ends with this one, with what it says of its progress."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from prefine.engines.leash import leashed
from prefine.errors import CheckpointError, ModelError
from prefine.export.reload import Reloaded, ReloadSpec
from prefine.export.room import refuse_full_disk
from prefine.models.loading.embedded import not_launched
from prefine.runs.atomic import storage_errors, temporary_folder


def reload_in_fresh_process(spec: ReloadSpec, progress: Callable[[int], None] = lambda done: None) -> Reloaded:
    """Load an artefact and ask it, in a Python process that has loaded nothing before.

    Args:
        spec: what and how.
        progress: called with the number of probes that are done.

    Raises:
        ModelError: it could not be loaded, or the process ended early.
        CheckpointError: there is no room for its results.
    """
    with temporary_folder("prefine-export") as folder:
        given, out = folder / "spec.json", folder / "out.safetensors"
        spec.write(given)
        with storage_errors(out), (folder / "stderr").open("w+", encoding="utf-8", errors="replace") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own code in our own interpreter
                leashed([sys.executable, "-P", "-m", "prefine.export.reload", str(given), str(out)]),
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
                _raise(spec, process.returncode, errors.read(), folder)
            return Reloaded.read(out)


def _raise(spec: ReloadSpec, code: int, said: str, folder: Path) -> None:
    try:
        refuse_full_disk(folder, said, "what the comparison computes")
    except CheckpointError as error:
        remedy = "Free some space there, or name a folder on another disk in the environment variable TMPDIR."
        raise CheckpointError(error.problem, remedy) from None
    last = next((line for line in reversed(said.strip().splitlines()) if line.strip()), f"exit code {code}")
    if code < 0:
        last = f"it was ended by signal {-code}; was memory short?"
    raise ModelError(
        f"{spec.loader} could not load or run the export ({last.strip()[:300]})",
        "If the message names a package, install it; otherwise the format does not suit this model: choose another.",
    )
