"""Identity of a model: hashes of all files that affect its outputs, so that a changed model is recognised.

Paths, version numbers and storage types are not included: they differ between copies that compute the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefine.json_reading import JsonError, read_json
from prefine.models.loading.location import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Location, base_hash, local_folder
from prefine.models.loading.stops import GENERATION_CONFIG
from prefine.models.loading.weights import SCALE_FILE
from prefine.runs.atomic import sha256_of_file

_CONFIG = "config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = ("*token*.json", "vocab*", "merges*", "*.model", "*.vocab", "*.bpe*", "*.jinja", "*.tiktoken")
_SAYS_NOTHING = {
    "_commit_hash",
    "_from_model_config",
    "_name_or_path",
    "auto_mapping",
    "base_model_name_or_path",
    "dtype",
    "inference_mode",
    "peft_version",
    "revision",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_NAMES = {
    "weights": "the base's weights",
    "config": "the base's config",
    "generation": "the generation settings or token ids",
    "adapter": "the adapter",
    "scale": "the score's scale",
}


@dataclass(frozen=True)
class Identity:
    """Hashes in hexadecimal; "" for a part that the model does not have, or whose files are not on this machine.

    Attributes:
        weights: the base's weight files.
        config: the base's config.json without token ids, and the Python code that comes with it.
        generation: what decides where answers end: generation_config.json of base and adapter, and the config's token
            ids.
        adapter: the adapter's config and weights.
        scale: the scale of a reward model's scores.
    """

    weights: str
    config: str
    generation: str
    adapter: str = ""
    scale: str = ""

    @property
    def logprobs(self) -> str:
        """One hash of all that log-probabilities of given tokens depend on; "" if the weights are not known."""
        return _hash([self.weights, self.config, self.adapter]) if self.weights else ""

    @property
    def digest(self) -> str:
        """One hash of everything."""
        return _hash(asdict(self))

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Names of the parts that differ from `before`, the fields of another identity."""
        return [_NAMES[name] for name, value in asdict(self).items() if before.get(name, "") != value]


def identity_of(location: Location, revision: str | None = None, weights: str | None = None) -> Identity:
    """Read and hash the files of a located model.

    Args:
        weights: the hash of the base's weights, if the caller has it: reading them takes seconds per gigabyte. By
            default the hash that an adapter recorded of its base is used, which loading compares with the files.
    """
    folder = local_folder(location.base, revision)
    if weights is None:
        weights = location.base_sha256 or base_hash(location.base, revision)
    config, generation = ("", "") if folder is None else _config_hashes(folder, location.adapter)
    own = location.adapter or (Path(location.base) if Path(location.base).is_dir() else None)
    scale = "" if own is None or not (own / SCALE_FILE).is_file() else sha256_of_file(own / SCALE_FILE)
    return Identity(weights, config, generation, _adapter_hash(location.adapter), scale)


def tokenizer_hash(location: Location, revision: str | None = None) -> str:
    """Hash of a model's tokenizer files and chat template; "" if they are not on this machine."""
    folder = local_folder(location.tokenizer, revision)
    if folder is None:
        return ""
    files = sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()})
    settings = _cleaned(_read(folder / _TOKENIZER_CONFIG))
    rest = [[file.name, sha256_of_file(file)] for file in files if file.name != _TOKENIZER_CONFIG]
    return _hash([settings, rest])


def scores_digest(location: Location, revision: str | None = None) -> str:
    """One hash of all that a reward model's scores of a text depend on: its identity and its tokenizer."""
    return _hash([identity_of(location, revision).digest, tokenizer_hash(location, revision)])


def _config_hashes(folder: Path, adapter: Path | None) -> tuple[str, str]:
    tokens, rest = _without_token_ids(_cleaned(_read(folder / _CONFIG)))
    code = [sha256_of_file(file) for file in sorted(folder.glob("*.py"))]
    ends = [tokens, *(_cleaned(_read(each / GENERATION_CONFIG)) for each in (folder, adapter) if each is not None)]
    return _hash([rest, code]), _hash(ends)


def _adapter_hash(folder: Path | None) -> str:
    if folder is None:
        return ""
    return _hash([_cleaned(_read(folder / ADAPTER_CONFIG)), sha256_of_file(folder / ADAPTER_WEIGHTS)])


def _read(path: Path) -> Any:
    """A file's JSON; a hash of its bytes if it is not JSON; None if there is no file."""
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except JsonError:
        return sha256_of_file(path)


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items() if key not in _SAYS_NOTHING}
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


def _without_token_ids(value: Any) -> tuple[Any, Any]:
    """The token ids of a config, nested sections included, and the config without them."""
    if not isinstance(value, dict):
        return {}, value
    tokens, rest = {}, {}
    for key, item in value.items():
        if key.endswith("_token_id"):
            tokens[key] = item
        elif isinstance(item, dict):
            inner, rest[key] = _without_token_ids(item)
            tokens |= {f"{key}.{name}": each for name, each in inner.items()}
        else:
            rest[key] = item
    return tokens, rest


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
