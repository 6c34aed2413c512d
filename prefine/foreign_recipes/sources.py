"""Data sets of other trainers as sources that prefine reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from prefine.foreign_recipes.data_keys import CHOOSING, CHOOSING_ON_HUB, MAIN, UNKNOWN, about
from prefine.foreign_recipes.mover import Mover
from prefine.foreign_recipes.settings import Setting, Written

_FILES = frozenset((".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".gz"))
# Names of load_dataset's readers of files, which are no data sets.
_READERS = frozenset(("json", "csv", "parquet", "text"))
NO_DATA = "./data.jsonl"
# Of each field: the file that is not there where no data can be named, the field of the split, and its default.
_FIELDS = {
    "data.train": (NO_DATA, "data.split", "train"),
    "data.heldout": ("./heldout.jsonl", "data.heldout_split", "test"),
}


@dataclass(frozen=True)
class ForeignData:
    """A data set as another trainer names it.

    Attributes:
        label: its name in messages.
        sources: the names that prefine reads it by; empty if it names no file or data set.
        split: of it, as the other trainer writes it; None: its default.
        keys: what else it says, by name.
        unknown: arguments that may choose among its rows, and are known only when a script runs.
    """

    label: str
    sources: tuple[str, ...] = ()
    split: Setting | None = None
    keys: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def source_name(path: str, configuration: str | None = None) -> str:
    """A data set's name as a source: a file or folder as it is, `hf:owner/name#configuration` for one of the hub."""
    if "://" in path or _is_file(path) or path.startswith(("hf:", "sample:")):
        return path
    if path.startswith((".", "/", "~")) and not configuration:
        return path
    return f"hf:{path}#{configuration}" if configuration else f"hf:{path}"


def _is_file(path: str) -> bool:
    return PurePath(path).suffix in _FILES


def data_of(label: str, value: Any) -> ForeignData:
    """A data set that is given by its name, or by a mapping of load_dataset's arguments."""
    if isinstance(value, str):
        return ForeignData(label, (source_name(value),))
    if not isinstance(value, dict):
        return ForeignData(label)
    keys = dict(value)
    path, part, unknown = keys.pop("path", None), keys.pop("split", None), tuple(keys.pop(UNKNOWN, ()))
    split = None if part is None else Setting(f"{label}.split", str(part))
    sources: tuple[str, ...] = ()
    if path is None or path in tuple(_READERS):
        sources = _files(keys, "train" if split is None else _name_of(split))
    elif isinstance(path, str):
        named = None if _is_file(path) else keys.pop("name", None)
        names = named if isinstance(named, list) and named else [named or None]
        sources = tuple(source_name(path, name) for name in names)
    else:
        keys["path"] = path
    if keys.get("name") is None:
        keys.pop("name", None)
    return ForeignData(label, sources, split, keys, unknown)


def _name_of(split: Setting) -> str:
    """The split that `train[:100]` is a part of."""
    return str(split.value).partition("[")[0]


def _files(keys: dict[str, Any], wanted: str) -> tuple[str, ...]:
    """The files that a reader reads for a split; the keys that name them are taken out."""
    files, folder = keys.pop("data_files", None), keys.pop("data_dir", None)
    if isinstance(files, dict) and files:
        chosen = wanted if wanted in files else next(iter(files))
        keys.update({f"data_files.{name}": each for name, each in files.items() if name != chosen})
        files = files[chosen]
    if not files:
        return () if folder is None else (str(folder),)
    names = [str(each) for each in (files if isinstance(files, list) else [files])]
    return tuple(name if folder is None or "://" in name else str(PurePath(str(folder)) / name) for name in names)


def write_sources(
    mover: Mover, path: str, data: Sequence[ForeignData], *settings: Setting, split: str | None = None
) -> bool:
    """Write data sets to data.train or data.heldout, and list what else they say.

    Args:
        mover: of the configuration.
        path: the field.
        data: the data sets.
        settings: that name them.
        split: what the other trainer reads where a data set has no split; None: what prefine reads.

    Returns:
        whether the field is written.
    """
    for each in data:
        for key, value in each.keys.items():
            mover.leave(Setting(f"{each.label}.{key}", value), about(key, value))
    if not any(each.sources for each in data):
        for setting in settings:
            mover.leave(setting, f"it names no file or data set: set {path}")
        return False
    read = [(each, _readable(mover, path, each)) for each in data]
    sources = list(dict.fromkeys(source for _, found in read for source in found))
    mover.write(path, sources[0] if len(sources) == 1 else sources, *settings)
    _write_split(mover, path, read, split)
    return True


def _readable(mover: Mover, path: str, data: ForeignData) -> tuple[str, ...]:
    """The sources of a data set; a file that is not there where prefine would read other rows than are meant."""
    missing = _FIELDS[path][0]
    if not data.sources:
        mover.todo(f"Set {path}: {data.label} names no file or data set; {missing} stands for it.")
        return (missing,)
    choosing = CHOOSING_ON_HUB if any(source.startswith("hf:") for source in data.sources) else CHOOSING
    lost = [key for key in choosing if data.keys.get(key) not in (None, MAIN)] + list(data.unknown)
    if lost:
        mover.todo(
            f"Set {path}: prefine would read {', '.join(data.sources)} without {', '.join(lost)}. Save the rows that "
            f"are meant to files, and name them instead of {missing}."
        )
        return (missing,)
    for source in data.sources:
        if "://" in source or "*" in source:
            mover.todo(f"Set {path}: {source} is an address or a pattern, and prefine reads neither. Name the files.")
    if any(data.keys.get(key) is not None for key in ("shards", "shards_idx")):
        mover.todo(f"Set data.limit: {data.label} is one of several shards of the rows.")
    return data.sources


def _write_split(mover: Mover, path: str, read: list[tuple[ForeignData, tuple[str, ...]]], default: str | None) -> None:
    """Write the split of the data sets that have splits. A part of a split is listed, and a thing to do."""
    _, field_of_split, own = _FIELDS[path]
    splits: dict[str, list[Setting]] = {}
    for data, sources in read:
        given = [] if data.split is None else [data.split]
        if sources != data.sources:
            for setting in given:
                mover.leave(setting, f"{path} has a file in place of this data set")
            continue
        parts = [setting for setting in given if "[" in str(setting.value)]
        for setting in parts:
            mover.leave(setting, "data.limit learns from so many rows")
            mover.todo(f"Set data.limit, or save the rows to a file: {setting.name} is a part, {setting.value}.")
        if not all(map(_is_file, sources)):
            splits.setdefault(_name_of(given[0]) if given else default or own, []).extend(given)
        elif not parts:
            for setting in given:
                mover.leave(setting, about("split", setting.value))
    if len(splits) == 1:
        ((name, settings),) = splits.items()
        if settings or name != own:
            mover.write(field_of_split, name, *(settings or [Setting("split", name, default=True)]))
    elif splits:
        for setting in (setting for settings in splits.values() for setting in settings):
            mover.leave(setting, f"all sources are read with one split, {field_of_split}")
        mover.todo(
            f"Set {field_of_split}: {path} has data sets of different splits, {', '.join(splits)}, and all are read "
            "with one. Save the rows of the others to files, and name those."
        )


def training_data(mover: Mover, evaluated: bool) -> None:
    """TRL's ways to name data: the trainer's train_dataset, a list datasets, or else dataset_name.

    Args:
        mover: of the configuration.
        evaluated: whether another split of dataset_name is evaluated on, as TRL's command line does.
    """
    written = False
    for name in ("train_dataset", "datasets", "dataset_name"):
        setting = mover.take(name)
        if setting is None or setting.value is None:
            continue
        if written:
            mover.leave(setting, "another setting names the data")
        elif name == "dataset_name":
            written = _dataset_name(mover, setting, evaluated)
        else:
            written = write_sources(mover, "data.train", _listed(name, setting.value), setting)
    missing_data(mover, written)
    for name in ("eval_dataset", "test_dataset"):
        setting = mover.take(name)
        if setting is not None and setting.value is not None:
            write_sources(mover, "data.heldout", _listed(name, setting.value), setting)


def _listed(label: str, value: Any) -> list[ForeignData]:
    if not isinstance(value, list):
        return [data_of(label, value)]
    return [data_of(f"{label}[{number}]", each) for number, each in enumerate(value)]


def _dataset_name(mover: Mover, setting: Setting, evaluated: bool) -> bool:
    """The data set of TRL's command line; its configuration and split are settings of their own."""
    configuration, split = mover.take("dataset_config"), mover.take("dataset_train_split")
    data = data_of("dataset_name", {"path": setting.value, "name": configuration and configuration.value})
    used = [setting]
    if configuration is not None and configuration.value is None:
        mover.leave(configuration, about("name", None))
    elif configuration is not None and data.keys.pop("name", None):
        mover.leave(configuration, about("name", configuration.value))
    elif configuration is not None:
        used.append(configuration)
    if split is not None and split.value is None:
        mover.leave(split, about("split", None))
    elif split is not None:
        data = replace(data, split=split)
    written = write_sources(mover, "data.train", [data], *used)
    if written and evaluated:
        test = mover.take("dataset_test_split") or Setting("dataset_test_split", "test", default=True)
        write_sources(mover, "data.heldout", [replace(data, split=test)], *used)
    return written


def missing_data(mover: Mover, written: bool) -> None:
    """Where no data is named, a file that is not there: the default would train on prefine's sample."""
    if not written:
        mover.moved.fields["data.train"] = Written(NO_DATA, "to do: name the data")
        mover.todo("Set data.train: the file does not say it, or not as text. docs/data.md has the formats.")
