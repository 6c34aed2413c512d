"""Which weight files a model is loaded from, and whether its config fits them, checked before memory is allocated.

Anyone can upload a model to the hub. Its index may name a pickle or a file outside its folder, and its config may ask
for a million layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor, nn

from prefine.errors import ModelError
from prefine.json_reading import JsonError, read_json_object

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# A file that a reward model adds: how its scores are centred and scaled.
SCALE_FILE = "reward.json"
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# What of a hub's model counts besides weights: settings, tokenizers, templates, and the card for its license.
_BESIDE_WEIGHTS = ["*.json", "*.jinja", "*.txt", "*.model", "README.md"]

# Counts in a config for which lists or modules are created before their weights are read.
_COUNTED = re.compile(r"num_labels|n_layers?|n_heads?|(\w+_)?num_\w*(layers|heads|experts|blocks)|\w*_layers")
_MOST_COUNTED = 10_000
# A weight takes at least one bit in its file, and few modules share a file's tensor. The rest allows for a score head
# and for what a library adds.
_WEIGHTS_A_BYTE = 8
_MORE_WEIGHTS = 1 << 24
_WEIGHTS_A_TENSOR = 16
_MORE_TENSORS = 10_000


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a model.

    Raises:
        ModelError: it does not hold a JSON object, or one that is too large to parse safely.
    """
    try:
        return read_json_object(path)
    except JsonError as error:
        raise ModelError(f"{str(path)!r} {error}", "Download the model again.", field="model.name") from None
    except OSError as error:
        raise ModelError(
            f"{str(path)!r} cannot be read: {error.strerror or error}",
            "Check its permissions and the disk.",
            field="model.name",
        ) from error


def config_of(base: str, revision: str | None = None) -> dict[str, Any]:
    """The content of a base's config.json; of a hub model only that file is fetched.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    path = Path(base) / CONFIG if Path(base).is_dir() else _fetch(base, CONFIG, revision)
    if path is None or not path.is_file():
        raise ModelError(
            f"{base!r} has no {CONFIG} on this machine, and it could not be fetched",
            "Check the name and the network, and HF_HUB_OFFLINE.",
            field="model.name",
        )
    return read_object(path)


def weight_files(folder: Path) -> list[Path]:
    """The files that a folder's weights are loaded from, sorted by name; empty if none are in safetensors format.

    They are those that transformers and peft choose: an adapter's one file; otherwise the file or index that the config
    names, model.safetensors, or all files of its index.

    Raises:
        ModelError: the index or the config names a file that is not in safetensors format, or is outside the folder.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return [folder / ADAPTER_WEIGHTS] if (folder / ADAPTER_WEIGHTS).is_file() else []
    config = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    named = config.get("transformers_weights")
    if named is not None:
        _require_inside(folder / CONFIG, str(named))
        return _of_index(folder / named) if str(named).endswith(".json") else [folder / named]
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    return _of_index(folder / _INDEX) if (folder / _INDEX).is_file() else []


def fetched(base: str, revision: str | None) -> Path | None:
    """The folder of a base: itself, or that of a hub model after its weights are downloaded.

    None if it cannot be downloaded; the loader then reports why.

    Raises:
        ModelError: see weight_files; nothing that a hub model's index names wrongly is downloaded.
    """
    if Path(base).is_dir():
        return Path(base)
    config = _fetch(base, CONFIG, revision)
    if config is None:
        return None
    folder = config.parent
    if read_object(config).get("transformers_weights") is None:
        # As transformers does: the index counts only where there is no single file.
        if _fetch(base, _WHOLE, revision) is not None:
            return folder
        if _fetch(base, _INDEX, revision) is None:
            return None
    for file in weight_files(folder):
        _fetch(base, str(file.relative_to(folder).as_posix()), revision)
    return folder


def fetched_whole(base: str, revision: str | None) -> Path:
    """The folder of a base with all that belongs to it: itself, or a hub model's in the hub's cache, after fetching.

    Raises:
        ModelError: a hub's model could not be fetched; see weight_files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = fetched(base, revision)
    files = [] if folder is None else weight_files(folder)
    if folder is None or not files or not all(file.is_file() for file in files):
        at = "" if revision is None else f" at revision {revision!r}"
        raise ModelError(
            f"{base!r}{at} is not on this machine and could not be fetched, or has no safetensors weights",
            "Check the name and the network, and HF_HUB_OFFLINE.",
            field="model.name",
        )
    if not Path(base).is_dir():
        with suppress(HfHubHTTPError, HFValidationError, OSError):  # offline: what is in the cache must do
            # Of the same commit as the weights, though a branch may have moved on since.
            snapshot_download(base, revision=folder.name, allow_patterns=_BESIDE_WEIGHTS)
    return folder


@contextmanager
def opened_weights(file: Path) -> Iterator[Any]:
    """safetensors' handle of a weight file.

    Raises:
        ModelError: it is damaged, cut off, or the pointer that Git LFS leaves in a file's place.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{str(file)!r} is no whole safetensors file ({error})",
            "Fetch it again; in a Git repository with LFS: git lfs pull.",
            field="model.name",
        ) from None


def require_plausible_config(base: str, revision: str | None = None) -> None:
    """Refuse a config whose counts would fill memory before any weight is read.

    Raises:
        ModelError: a count is larger than in any model; the config cannot be read.
    """
    path = Path(base) / CONFIG if Path(base).is_dir() else _fetch(base, CONFIG, revision)
    if path is None or not path.is_file():
        return  # the loader reports what is missing
    for name, value in _numbers(read_object(path)):
        if _COUNTED.fullmatch(name) and value > _MOST_COUNTED:
            raise ModelError(
                f"{base!r}: {name} is {value} in its {CONFIG}, and no model has more than {_MOST_COUNTED}",
                "Download the model again, or correct its config.",
                field="model.name",
            )


@contextmanager
def within_files(base: str, revision: str | None, config: Any) -> Iterator[None]:
    """Inside, building a model on torch's meta device is refused if it needs more weights than its files can hold.

    Args:
        base: a folder or hub id.
        revision: revision of the hub id.
        config: transformers' config of the model.

    Raises:
        ModelError: a module needs more weights than the files can hold; see weight_files.
        SafetensorError, OSError: the files are damaged.
    """
    from safetensors import safe_open
    from torch.nn.modules.module import (
        register_module_buffer_registration_hook,
        register_module_parameter_registration_hook,
    )

    folder = fetched(base, revision)
    if folder is None:  # the loader reports why
        yield
        return
    tensors = held = 0
    for file in weight_files(folder):
        held += file.stat().st_size
        with safe_open(file, "pt") as opened:
            tensors += len(opened.keys())
    room = {"weights": _WEIGHTS_A_BYTE * held + _MORE_WEIGHTS, "tensors": _WEIGHTS_A_TENSOR * tensors + _MORE_TENSORS}

    def count(module: nn.Module, name: str, tensor: Any) -> None:
        if tensor is None or tensor.device.type != "meta":
            return
        room["weights"] -= tensor.numel()
        room["tensors"] -= 1
        if min(room.values()) < 0:
            shape = tuple(tensor.shape)
            asked = [f"{key} is {value}" for key, value in _numbers(config.to_dict()) if value in shape and value > 1]
            asked += [f"{key} is {value}" for key, value in _numbers(config.to_dict()) if _COUNTED.fullmatch(key)]
            raise ModelError(
                f"{base!r}: its {CONFIG} asks for more weights than its files hold, {held:,} bytes in "
                f"{tensors} tensors ({'; '.join(dict.fromkeys(asked[:4]))})",
                "The config and the weights do not match: download the model again.",
                field="model.name",
            )

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def largest_dimension(file: Path) -> int:
    """The largest dimension of all tensors in a safetensors file, read from its header."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return max((max(opened.get_slice(key).get_shape(), default=1) for key in opened.keys()), default=0)  # noqa: SIM118


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield str(name), int(min(value, 1 << 62)) if value == value else 0


def _of_index(index: Path) -> list[Path]:
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(
            f"{str(index)!r} has no weight_map of file names", "Download the model again.", field="model.name"
        )
    for name in sorted(set(names.values())):
        _require_inside(index, name)
    return sorted(index.parent / name for name in set(names.values()))


def _require_inside(source: Path, name: str) -> None:
    """Refuse a name outside its folder, or of a file that is not safetensors or an index of such files."""
    outside = ".." in PureWindowsPath(name).parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if outside:
        raise ModelError(
            f"{str(source)!r} names the weights {name!r}, which are outside its folder",
            "Download the model again from its source; prefine reads only files in the model's folder.",
            field="model.name",
        )
    if not name.endswith((".safetensors", ".safetensors.index.json")):
        raise ModelError(
            f"{str(source)!r} names the weights {name!r}, which is not a safetensors file",
            "Convert the weights to safetensors: prefine does not read pickled ones, which can run code.",
            field="model.name",
        )


def _fetch(base: str, name: str, revision: str | None) -> Path | None:
    """A file of a hub model, in the cache; None if it does not exist or cannot be downloaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(base, name, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError):
        return None


def saved_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors in a folder that `save_model` wrote, by name, on the CPU."""
    from safetensors.torch import load_file

    return {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
