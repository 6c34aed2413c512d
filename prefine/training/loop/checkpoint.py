"""Checkpoints that survive a kill at any moment and load bit for bit.

    checkpoints/step-00000042/
      <group>.safetensors    one per group of tensors, named by the caller: weights, optimizer, rng.0
      state.json             everything that is not a tensor
      manifest.json          written last: run, step, format, size and SHA-256 of each file

A checkpoint gets its name by one rename, and older ones are removed only after that. A resumed run takes the newest one
whose files all match their hashes. Nothing here depends on what is being trained.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prefine.errors import CheckpointError
from prefine.json_reading import read_json_object
from prefine.runs.atomic import JSON, atomic_write, discard, json_bytes, sha256_of_file, storage_errors

logger = logging.getLogger(__name__)

FORMAT = 1
_MANIFEST = "manifest.json"
_STATE = "state.json"
_GROUP_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
# The second name is for the old checkpoint while another one of the same step replaces it.
_DIRECTORY_NAME = re.compile(r"step-(?P<step>[0-9]{8,})(?P<aside>\.replaced)?")


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint.

    Attributes:
        path: its directory.
        step: number of steps done when it was saved.
        skipped: one line for each newer checkpoint that is not valid: its path and the reason.
    """

    path: Path
    step: int
    skipped: tuple[str, ...] = ()


def save_checkpoint(
    directory: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, JSON],
    *,
    keep_last: int,
    keep: Collection[int | None] = (),
    run_id: str | None = None,
) -> Checkpoint:
    """Save one checkpoint, then keep only the newest `keep_last` of the directory, and those of the steps `keep`.

    Checkpoints of later steps are removed, too: a roll-back has discarded them.

    Args:
        directory: the run's checkpoint folder; created if missing.
        step: optimiser steps done; a checkpoint of the same step is replaced.
        tensors: groups of tensors by name; on any device, with any strides, sharing memory or not.
        state: values that JSON represents exactly (string keys, no tuples); NaN and infinities are allowed.
        keep_last: how many valid checkpoints stay, this one included; at least 1.
        keep: steps whose checkpoints stay in any case; None is ignored.
        run_id: the run that it belongs to. Checkpoints of other runs are neither counted nor removed.

    Raises:
        CheckpointError: the disk is full or not writable, or a checkpoint of another run has the same name. Valid
            checkpoints stay valid.
        ValueError: a group name that is not lower-case letters, digits, `_`, `.` and `-`; a step below 0.
    """
    if keep_last < 1 or step < 0:
        raise ValueError(f"keep_last must be at least 1 and step at least 0, not {keep_last} and {step}")
    for group in tensors:
        if not _GROUP_NAME.fullmatch(group):
            raise ValueError(f"{group!r} cannot name a tensor group: lower-case letters, digits, _, . and - can")
    path = directory / f"step-{step:08d}"
    aside = path.with_name(path.name + ".replaced")
    with storage_errors(directory):
        directory.mkdir(exist_ok=True)  # not its parents: a deleted run folder must not come back empty
        if path.exists():
            if _is_foreign(path, run_id):
                raise CheckpointError(f"{path} is a checkpoint of another run", "Move it away.")
            if aside.exists():
                discard(aside)
            path.rename(aside)  # newest_valid still finds it there until the new one is complete
    with atomic_write(path) as temporary:
        _write_contents(temporary, step, tensors, state, run_id)
    _rotate(directory, step, keep_last, keep, run_id)
    return Checkpoint(path, step)


def newest_valid(directory: Path, run_id: str | None = None) -> Checkpoint | None:
    """The newest checkpoint whose files all match its manifest; None if there is none.

    Args:
        run_id: the run that it must belong to; None for any.

    Newer ones that are not valid are logged as warnings and listed in the result's `skipped`.
    """
    skipped: list[str] = []
    for step, path in _candidates(directory):
        reason = _flaw(path, step, run_id, read_contents=True)
        if reason is None:
            return Checkpoint(path, step, tuple(skipped))
        skipped.append(f"{path} is skipped: {reason}")
        logger.warning("%s", skipped[-1])
    return None


def load_checkpoint(checkpoint: Checkpoint) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The groups of tensors, as copies on the CPU, and the JSON state.

    Raises:
        CheckpointError: a file cannot be read.
    """
    try:
        files = read_json_object(checkpoint.path / _MANIFEST)["files"]
        groups = [name.removesuffix(".safetensors") for name in files if name != _STATE]
        # load_file maps the file into memory. Copies let rotation delete it on every system.
        tensors = {
            group: {name: tensor.clone() for name, tensor in load_file(_group_path(checkpoint.path, group)).items()}
            for group in groups
        }
        return tensors, read_json_object(checkpoint.path / _STATE)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{checkpoint.path} cannot be read: {error}", "Delete that folder and resume from the checkpoint before it."
        ) from error


def _group_path(directory: Path, group: str) -> Path:
    return directory / f"{group}.safetensors"


def _write_contents(
    directory: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, JSON],
    run_id: str | None,
) -> None:
    directory.mkdir()
    for group, members in tensors.items():
        save_file(_storable(members), _group_path(directory, group), metadata={"format": "pt"})
    # Python's JSON has words for NaN and infinities, and represents every finite float exactly.
    (directory / _STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    files: dict[str, JSON] = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
        for file in sorted(directory.iterdir())
    }
    manifest = json_bytes({"format": FORMAT, "run_id": run_id, "step": step, "files": files}, indent=2)
    (directory / _MANIFEST).write_bytes(manifest)


def _storable(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as safetensors accepts them: contiguous, on the CPU, none sharing memory with another."""
    seen: set[int] = set()
    storable = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        if address in seen:
            plain = plain.clone()
        seen.add(address)
        storable[name] = plain
    return storable


def _candidates(directory: Path) -> Iterator[tuple[int, Path]]:
    """(step, path) of every folder with a checkpoint's name, newest first."""
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        if name := _DIRECTORY_NAME.fullmatch(path.name):
            found.append((int(name["step"]), name["aside"] is None, path))
    for step, _, path in sorted(found, reverse=True):
        yield step, path


def _flaw(path: Path, step: int, run_id: str | None, *, read_contents: bool) -> str | None:
    """Why a checkpoint is not valid; None if it is. Without `read_contents` only names and sizes are checked."""
    try:
        manifest = read_json_object(path / _MANIFEST)
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']!r}; this version of prefine reads {FORMAT}"
        if run_id is not None and manifest["run_id"] != run_id:
            return "it belongs to another run"
        if manifest["step"] != step or _STATE not in manifest["files"]:
            return f"{_MANIFEST} belongs to another checkpoint"
        for name, expected in manifest["files"].items():
            if not _GROUP_NAME.fullmatch(name):
                return f"{_MANIFEST} names {name!r}, which no checkpoint holds"
            file = path / name
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
            if read_contents and sha256_of_file(file) != expected["sha256"]:
                return f"{name} was changed after it was saved"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} is damaged"
    return None


def _is_foreign(path: Path, run_id: str | None) -> bool:
    """Whether a checkpoint belongs to another run."""
    if run_id is None:
        return False
    try:
        return bool(read_json_object(path / _MANIFEST).get("run_id", run_id) != run_id)
    except (OSError, ValueError):
        return False


def checkpoint_of(directory: Path, step: int, run_id: str | None = None) -> Checkpoint:
    """The checkpoint of one step.

    Raises:
        CheckpointError: it is missing or not valid.
    """
    found = next((path for candidate, path in _candidates(directory) if candidate == step), None)
    reason = "it is missing" if found is None else _flaw(found, step, run_id, read_contents=True)
    if found is None or reason is not None:
        raise CheckpointError(
            f"{directory}: the checkpoint of step {step} cannot be used: {reason}", "Restore it from a copy."
        )
    return Checkpoint(found, step)


def discard_after(directory: Path, step: int, run_id: str | None = None) -> None:
    """Remove the run's checkpoints of later steps."""
    for found, path in _candidates(directory):
        if found > step and not _is_foreign(path, run_id):
            discard(path)


def _rotate(directory: Path, newest: int, keep_last: int, keep: Collection[int | None], run_id: str | None) -> None:
    """Remove checkpoints after step `newest`, and all but the last `keep_last` valid ones and those of steps `keep`.

    The validity of old ones is checked by file sizes only: reading gigabytes at each save would take minutes.
    """
    kept: list[int] = []
    for step, path in _candidates(directory):
        if _is_foreign(path, run_id):
            continue
        wanted = len(kept) < keep_last or step in keep
        if step > newest or step in kept or not wanted:
            discard(path)
        elif _flaw(path, step, run_id, read_contents=False) is None:
            kept.append(step)
