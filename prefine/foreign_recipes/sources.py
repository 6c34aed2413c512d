"""Data sets of other trainers as sources that prefine reads."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from prefine.foreign_recipes.mover import Mover
from prefine.foreign_recipes.settings import Setting, Written

_FILES = frozenset((".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".gz"))
# Names of load_dataset's readers of files, which are no data sets.
_READERS = frozenset(("json", "csv", "parquet", "text"))
NO_DATA = "./data.jsonl"


def source_name(path: str, configuration: str | None = None) -> str:
    """A data set's name as a source: a file or folder as it is, `hf:owner/name#configuration` for one of the hub."""
    is_path = PurePath(path).suffix in _FILES or path.startswith((".", "/", "~", "hf:", "sample:"))
    return path if is_path else f"hf:{path}#{configuration}" if configuration else f"hf:{path}"


def sources_of(value: Any) -> list[str]:
    """The sources of one data set: a name, or a mapping with path, name, data_files."""
    if isinstance(value, str):
        return [source_name(value)]
    files = value.get("data_files") if isinstance(value, dict) else None
    if files and value.get("path") in (*_READERS, None):
        if isinstance(files, dict):
            files = files.get("train", next(iter(files.values())))
        return [str(each) for each in (files if isinstance(files, list) else [files])]
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        return []
    return [source_name(value["path"], value.get("name"))]


def write_sources(mover: Mover, path: str, datasets: list[Any], setting: Setting) -> bool:
    """Write data sets to data.train or data.heldout; whether there is one that can be named."""
    sources = [source for each in datasets for source in sources_of(each)]
    if not sources:
        mover.leave(setting, f"it names no file or data set: set {path}")
        return False
    mover.write(path, sources[0] if len(sources) == 1 else sources, setting)
    splits = {str(each["split"]) for each in datasets if isinstance(each, dict) and each.get("split")}
    for split in sorted(splits):
        name, _, part = split.partition("[")
        if part:
            mover.leave(Setting(f"{setting.name} split", split), "data.limit learns from so many rows")
        if len(splits) == 1 and not (path == "data.train" and name == "train"):
            mover.write("data.split" if path == "data.train" else "data.heldout_split", name, Setting("split", split))
        elif len(splits) > 1:
            mover.leave(Setting(f"{setting.name} split", split), "all sources are read with one split, data.split")
    return True


def training_data(mover: Mover) -> None:
    """TRL's ways to name data: the trainer's train_dataset, dataset_name, or a list datasets."""
    written = False
    for name in ("train_dataset", "dataset_name", "datasets"):
        setting = mover.take(name)
        if setting is None or setting.value is None:
            continue
        value = setting.value
        if name == "dataset_name":
            configuration, split = mover.take("dataset_config"), mover.take("dataset_train_split")
            value = {"path": value, "name": configuration and configuration.value, "split": split and split.value}
        if written:
            mover.leave(setting, "another setting names the data")
        else:
            written = write_sources(mover, "data.train", value if isinstance(value, list) else [value], setting)
    missing_data(mover, written)
    for name in ("eval_dataset", "test_dataset"):
        setting = mover.take(name)
        if setting is not None and setting.value is not None:
            write_sources(mover, "data.heldout", [setting.value], setting)


def missing_data(mover: Mover, written: bool) -> None:
    """Where no data is named, a file that is not there: the default would train on prefine's sample."""
    if not written:
        mover.moved.fields["data.train"] = Written(NO_DATA, "to do: name the data")
        mover.todo("Set data.train: the file does not say it, or not as text. docs/data.md has the formats.")
