"""Optimisers and random generators as tensors and JSON, bit for bit and without pickle.

A checkpoint needs both besides weights, so that a resumed run equals an uninterrupted one. The pairs
`optimizer_tensors` / `restore_optimizer` and `rng_tensors` / `restore_rng` return and accept the two parts that
`save_checkpoint` stores: a group of tensors, and a JSON value.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from prefine.errors import CheckpointError
from prefine.runs.atomic import JSON

logger = logging.getLogger(__name__)

_SAME_RECIPE = "Resume with the recipe that started the run."


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, JSON]]:
    """An optimiser's state as tensors and JSON: moments, step counts and every hyper-parameter, without the weights.

    The tensors are the optimiser's own, not copies: save them before the next step.

    Raises:
        TypeError: the optimiser keeps something other than tensors and plain values (torch's LBFGS does).
    """
    snapshot = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, JSON]] = {}
    for index, entries in snapshot["state"].items():
        values[str(index)] = _split(entries, f"state.{index}", tensors)
    groups: list[JSON] = []
    for number, group in enumerate(snapshot["param_groups"]):
        hyper = {name: value for name, value in group.items() if name != "params"}
        groups.append(_split(hyper, f"group.{number}", tensors))
    return tensors, {
        "kind": _kind(optimizer),
        "parameters": _parameter_shapes(optimizer),
        "groups": groups,
        "state": values,
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> None:
    """Load the values of `optimizer_tensors` into an optimiser that was built like the saved one.

    Raises:
        CheckpointError: the saved optimiser is of another kind, or its parameter groups have other sizes or shapes.
    """
    kind = _kind(optimizer)
    if state["kind"] != kind:
        raise CheckpointError(f"The checkpoint holds the state of {state['kind']}, not of {kind}", _SAME_RECIPE)
    if state["parameters"] != _parameter_shapes(optimizer):
        raise CheckpointError(
            "The checkpoint's optimiser has other parameters or parameter groups than this run's",
            "Resume with the recipe and the release of prefine that started the run.",
        )
    entries: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in state["state"].items()}
    groups: list[dict[str, Any]] = [dict(group) for group in state["groups"]]
    for key, tensor in tensors.items():
        section, number, name = key.split(".", 2)
        owner = entries[int(number)] if section == "state" else groups[int(number)]
        owner[name] = tensor.clone()  # load_state_dict keeps the tensors that it gets
    current = optimizer.state_dict()
    for group, present in zip(groups, current["param_groups"], strict=True):
        group["params"] = present["params"]
        for name, value in group.items():
            if isinstance(present.get(name), tuple):
                group[name] = tuple(value)  # JSON has no tuples
    optimizer.load_state_dict({**current, "state": entries, "param_groups": groups})
    _undo_casts(optimizer, entries)


def _split(entries: Mapping[str, Any], prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, JSON]:
    """Move the tensors among `entries` into `tensors`; returns the other entries, which are plain values."""
    plain: dict[str, JSON] = {}
    for name, value in entries.items():
        if isinstance(value, torch.Tensor):
            tensors[f"{prefix}.{name}"] = value
        elif _is_plain(value):
            plain[name] = list(value) if isinstance(value, tuple) else value
        else:
            raise TypeError(f"{prefix}.{name} is a {type(value).__name__}: it cannot be saved without pickle")
    return plain


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _kind(optimizer: torch.optim.Optimizer) -> str:
    return type(getattr(optimizer, "optimizer", optimizer)).__name__  # accelerate wraps the real one


def _parameter_shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _undo_casts(optimizer: torch.optim.Optimizer, entries: Mapping[int, Mapping[str, Any]]) -> None:
    """Restore the saved dtypes: on loading, torch casts floating-point state to the dtype of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in entries.items():
        loaded = optimizer.state[parameters[index]]
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)


def rng_tensors() -> tuple[dict[str, torch.Tensor], dict[str, JSON]]:
    """The state of every global random generator: torch's on each device in use, NumPy's and Python's."""
    tensors = {"cpu": torch.get_rng_state()}
    # Unused CUDA devices have drawn nothing, and reading their state would take memory on every GPU.
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return tensors, {
        "python": [version, list(words), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def restore_rng(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Set every generator to the values of `rng_tensors`.

    A device that this machine does not have is named in a warning: its generator's draws cannot be repeated here.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    for device, generator in tensors.items():
        if device == "cpu":
            torch.set_rng_state(generator)
        elif device == "mps" and torch.backends.mps.is_available():
            torch.mps.set_rng_state(generator)
        elif device.startswith("cuda.") and int(device[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(generator, int(device[5:]))
        else:
            logger.warning("The random state of %s is not restored: this machine has no such device.", device)
