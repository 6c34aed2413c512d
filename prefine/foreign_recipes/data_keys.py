"""What other trainers' data sets say besides their name: the reasons why a recipe does not have it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from prefine.recipe.foreign_names import REASONS

# The parameters of datasets.load_dataset, in its order; a test compares them with the installed release.
LOAD_DATASET = (
    *("path", "name", "data_dir", "data_files", "split", "cache_dir", "features", "download_config", "download_mode"),
    *("verification_mode", "keep_in_memory", "save_infos", "revision", "token", "streaming", "num_proc"),
    "storage_options",
)
# Keys that choose among the rows of a data set, so that prefine would read other rows without them: in any place, or of
# the hub only. `folder` is LLaMA-Factory's name of data_dir.
CHOOSING = ("data_files", "data_dir")
CHOOSING_ON_HUB = (*CHOOSING, "folder", "revision")
UNKNOWN = "unknown arguments"
"""The key of a list: what else may choose among the rows that a script loads, and is known only when it runs."""
# Reason -> keys, or patterns of keys, of load_dataset, TRL, axolotl and dataset_info.json of LLaMA-Factory.
_REASONS = {
    "a data set is read as a whole, in its newest revision": "data_files data_dir folder revision",
    "it is the file of another split": "data_files.*",
    "a file has no configurations": "name subset",
    "a file is read completely": "split",
    "the layout of rows is recognised by their columns; see prefine data check": "type formatting ranking",
    "columns are recognised; data.columns maps other names: {prompt: question}": (
        "field* message_* roles columns text_column"
    ),
    "turns are recognised by role and content, or from and value, and their usual words; rename others": "tags",
    "data.limit learns from so many rows": "shards shards_idx num_samples",
    "a file is recognised by its suffix": "ds_type",
    "data sets are read from Hugging Face's hub or from files": "ms_hub_url om_hub_url cloud_file_name",
    "code that comes with a data set never runs": "script_url trust_remote_code",
    "another key names the data": "file_name",
    "prefine reads a data set without it": " ".join((*LOAD_DATASET[5:], "preprocess_shards")),
}
MAIN = "main"
_OTHERWISE = "rows are read as they are, and rendered by the tokenizer's chat template"


def about(key: str, value: Any) -> str:
    """Why a key of a data set has no counterpart."""
    if value is None:
        return "it sets nothing"
    if key == "revision" and value == MAIN:
        return "as here, the main branch is read"
    for reason, keys in _REASONS.items():
        if any(fnmatchcase(key, pattern) for pattern in keys.split()):
            return reason
    return REASONS.get(key, _OTHERWISE)
