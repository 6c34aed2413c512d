"""Data sets of other trainers: what chooses among their rows is honoured, or a file that is not there is named."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from prefine.foreign_recipes.axolotl import from_axolotl
from prefine.foreign_recipes.data_keys import LOAD_DATASET
from prefine.foreign_recipes.llama_factory import from_llama_factory
from prefine.foreign_recipes.settings import Moved
from prefine.foreign_recipes.trl import from_trl

_MARK = "a mark"
# The fields of SFTDataset, DPODataset and KTODataset of axolotl (utils/schemas/datasets.py).
AXOLOTL_KEYS = (
    "path split type input_transform shards shards_idx preprocess_shards conversation chat_template "
    "chat_template_jinja data_files input_format name ds_type field field_human field_model field_messages field_tools "
    "field_thinking template_thinking_key message_field_role message_field_content message_property_mappings "
    "message_field_training message_field_training_detail split_thinking logprobs_field temperature roles_to_train "
    "train_on_eos roles drop_system_message trust_remote_code revision unheard_of"
)
# The keys of dataset_info.json of LLaMA-Factory (data/parser.py).
LLAMA_FACTORY_KEYS = (
    "hf_hub_url ms_hub_url om_hub_url script_url cloud_file_name file_name formatting ranking subset split folder "
    "num_samples columns tags revision unheard_of"
)


def axolotl(tmp_path: Path, *entries: Any, **settings: Any) -> Moved:
    (tmp_path / "a.yaml").write_text(json.dumps({"datasets": entries} | settings))
    return from_axolotl(tmp_path / "a.yaml")


def llama_factory(tmp_path: Path, entries: dict[str, Any], **settings: Any) -> Moved:
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    given = {"dataset": ",".join(entries), "dataset_dir": str(tmp_path)} | settings
    (tmp_path / "a.yaml").write_text(json.dumps(given))
    return from_llama_factory(tmp_path / "a.yaml")


def trl(tmp_path: Path, *loading: str) -> Moved:
    """The move of a script that loads these data sets, to train on and to evaluate on."""
    given = ", ".join(f"{name}={each}" for name, each in zip(("train_dataset", "eval_dataset"), loading, strict=False))
    (tmp_path / "a.py").write_text(f"SFTTrainer(model='org/m', args=SFTConfig(), {given})\n")
    return from_trl(tmp_path / "a.py")


def yaml_of_trl(tmp_path: Path, **settings: Any) -> Moved:
    (tmp_path / "a.yaml").write_text(json.dumps({"model_name_or_path": "org/m"} | settings))
    return from_trl(tmp_path / "a.yaml", "sft")


def values(done: Moved) -> dict[str, Any]:
    return {path: written.value for path, written in done.fields.items()}


def listed(done: Moved) -> dict[str, str]:
    return {left.name: left.reason for left in done.left}


def is_said(done: Moved, mark: str) -> bool:
    """Whether a value is in the recipe or among the settings without a counterpart."""
    return mark in json.dumps(done.values) or any(mark in f"{left.name} {left.value}" for left in done.left)


def test_the_arguments_are_those_of_the_installed_release() -> None:
    datasets = pytest.importorskip("datasets")
    parameters = inspect.signature(datasets.load_dataset).parameters.values()
    assert tuple(each.name for each in parameters if each.kind is not each.VAR_KEYWORD) == LOAD_DATASET


@pytest.mark.parametrize("key", AXOLOTL_KEYS.split())
def test_no_key_of_axolotl_is_lost(tmp_path: Path, key: str) -> None:
    assert is_said(axolotl(tmp_path, {"path": "org/d"} | {key: _MARK}), _MARK)


@pytest.mark.parametrize("key", LLAMA_FACTORY_KEYS.split())
@pytest.mark.parametrize("where", [{"hf_hub_url": "org/d"}, {"file_name": "d.json"}, {}])
@pytest.mark.parametrize("field", ["dataset", "eval_dataset"])
def test_no_key_of_llama_factory_is_lost(tmp_path: Path, key: str, where: dict[str, str], field: str) -> None:
    mark: Any = {"prompt": _MARK} if key == "columns" else _MARK
    assert is_said(llama_factory(tmp_path, {"d": where | {key: mark}}, **{"dataset": None, field: "d"}), _MARK)


@pytest.mark.parametrize("key", [*(key for key in LOAD_DATASET if key != "token"), "unheard_of"])
@pytest.mark.parametrize("path", ["org/d", "json", "./d"])
def test_no_argument_of_load_dataset_is_lost(tmp_path: Path, key: str, path: str) -> None:
    for value in (repr(_MARK), "a_mark()"):
        given = f"{value}" if key == "path" else f"'{path}', {key}={value}"
        assert is_said(trl(tmp_path, f"load_dataset({given})"), _MARK if value == repr(_MARK) else "a_mark()")


def test_a_token_is_not_shown(tmp_path: Path) -> None:
    done = trl(tmp_path, "load_dataset('org/d', token='secret')")
    assert not is_said(done, "secret")
    assert "load_dataset(token=…)" in listed(done)


@pytest.mark.parametrize("key", ["columns", "data_dir", "data_files", "name", "split", "unheard_of"])
def test_no_key_of_a_mixture_of_trl_is_lost(tmp_path: Path, key: str) -> None:
    assert is_said(yaml_of_trl(tmp_path, datasets=[{"path": "org/d"} | {key: _MARK}]), _MARK)


@pytest.mark.parametrize("key", ["data_files", "data_dir", "revision"])
@pytest.mark.parametrize("from_script", [False, True])
def test_parts_of_a_data_set_of_the_hub_are_a_thing_to_do(tmp_path: Path, key: str, from_script: bool) -> None:
    """prefine would read the whole repository."""
    if from_script:
        done = trl(tmp_path, f"load_dataset('org/d', {key}='sub/small.jsonl')")
    else:
        done = axolotl(tmp_path, {"path": "org/d", key: "sub/small.jsonl"})
    assert values(done)["data.train"] == "./data.jsonl"
    assert any(f"prefine would read hf:org/d without {key}" in line for line in done.to_do)
    assert any(name.endswith(f".{key}") for name in listed(done))


@pytest.mark.parametrize(
    "loading",
    [
        "load_dataset('org/d', None, 'sub')",
        "load_dataset('org/d', None, None, ['a.jsonl'])",
        "load_dataset('org/d', data_files=FILES)",
        "load_dataset('org/d', LANGUAGE)",
        "load_dataset('org/d', **more)",
        "load_dataset('org/d', languages=['en'])",
        "load_dataset('org/d')[part()]",
        "load_dataset('org/d')['train'][:100]",
        "load_dataset('./folder', data_files='a.jsonl')",
        "load_dataset('org/d', split='train').train_test_split(0.1)['test']",
    ],
)
def test_rows_that_only_the_script_can_choose_are_not_replaced_by_all(tmp_path: Path, loading: str) -> None:
    done = trl(tmp_path, loading)
    assert values(done)["data.train"] == "./data.jsonl"
    assert any(line.startswith("Set data.train: prefine would read") for line in done.to_do)
    held_out = trl(tmp_path, "'org/d'", loading)
    assert values(held_out)["data.heldout"] == "./heldout.jsonl"


def test_one_of_several_data_sets_that_cannot_be_read(tmp_path: Path) -> None:
    done = axolotl(tmp_path, "a.jsonl", {"path": "org/d", "data_files": "b.jsonl"}, {"type": "alpaca"})
    assert values(done)["data.train"] == ["a.jsonl", "./data.jsonl"]
    assert any("datasets[2] names no file or data set" in line for line in done.to_do)


def test_the_main_branch_and_what_is_null_change_nothing(tmp_path: Path) -> None:
    done = axolotl(tmp_path, {"path": "org/d", "revision": "main", "data_files": None})
    assert values(done)["data.train"] == "hf:org/d"
    assert listed(done)["datasets[0].data_files"] == "it sets nothing"
    assert not any(line.startswith("Set data.train") for line in done.to_do)


def test_several_configurations_and_one_of_a_folder(tmp_path: Path) -> None:
    done = axolotl(tmp_path, {"path": "org/d", "name": ["en", "de"]}, {"path": "./f", "name": "fr"})
    assert values(done)["data.train"] == ["hf:org/d#en", "hf:org/d#de", "hf:./f#fr"]


def test_the_files_of_the_split(tmp_path: Path) -> None:
    files = "data_files={'train': 'a.jsonl', 'test': 'b.jsonl'}"
    done = trl(tmp_path, f"load_dataset('json', {files})['train']", f"load_dataset('json', {files}, split='test')")
    assert (values(done)["data.train"], values(done)["data.heldout"]) == ("a.jsonl", "b.jsonl")
    assert "eval_dataset.data_files.train" in listed(done)
    assert "data.heldout_split" not in done.fields


def test_files_of_a_reader_are_taken_from_its_folder(tmp_path: Path) -> None:
    done = trl(tmp_path, "load_dataset('json', data_dir='d', data_files=['a.jsonl', '/b.jsonl'])")
    assert values(done)["data.train"] == ["d/a.jsonl", "/b.jsonl"]


@pytest.mark.parametrize("path", ["s3://bucket/rows", "https://a.org/rows.jsonl", "./rows/*.jsonl"])
def test_addresses_and_patterns_are_a_thing_to_do(tmp_path: Path, path: str) -> None:
    done = axolotl(tmp_path, {"path": path})
    assert values(done)["data.train"] == path
    assert any("an address or a pattern" in line for line in done.to_do)


def test_the_split_of_all_data_sets(tmp_path: Path) -> None:
    """A data set without a split has the split train, so that two of different splits cannot be read together."""
    same = axolotl(tmp_path, {"path": "org/a", "split": "test"}, {"path": "org/b", "split": "test"}, "c.jsonl")
    assert values(same)["data.split"] == "test"
    for second in ({"path": "org/b", "split": "train"}, {"path": "org/b"}):
        mixed = axolotl(tmp_path, {"path": "org/a", "split": "test"}, second)
        assert "data.split" not in mixed.fields
        assert any(line.startswith("Set data.split: data.train has data sets of different") for line in mixed.to_do)
        assert "datasets[0].split" in listed(mixed)


def test_a_part_of_a_split_is_a_thing_to_do(tmp_path: Path) -> None:
    done = trl(tmp_path, "load_dataset('org/d', split='test[:100]')")
    assert values(done)["data.split"] == "test"
    assert any("train_dataset.split is a part, test[:100]" in line for line in done.to_do)


def test_the_configuration_and_the_split_of_a_command_line(tmp_path: Path) -> None:
    done = yaml_of_trl(tmp_path, dataset_name="org/d", dataset_config="en", dataset_train_split="test")
    assert (values(done)["data.train"], values(done)["data.split"]) == ("hf:org/d#en", "test")
    assert not {"dataset_config", "dataset_train_split"} & listed(done).keys()
    of_a_file = yaml_of_trl(tmp_path, dataset_name="d.jsonl", dataset_config="en", dataset_train_split="train")
    assert {"dataset_config", "dataset_train_split"} <= listed(of_a_file).keys()


def test_texts_to_pretrain_on_are_not_learned_as_conversations(tmp_path: Path) -> None:
    for given in ("org/texts", [{"path": "org/texts"}]):
        done = axolotl(tmp_path, pretraining_dataset=given, datasets=None)
        assert values(done)["data.train"] == "./data.jsonl"
        assert "plain text" in listed(done)["pretraining_dataset"]


def test_an_entry_of_dataset_info(tmp_path: Path) -> None:
    entry = {"hf_hub_url": "org/d", "split": "test", "num_samples": 1000, "tags": {"role_tag": "who"}}
    done = llama_factory(tmp_path, {"a": entry})
    expected = {"data.train": "hf:org/d", "data.split": "test", "data.limit": 1000}
    assert expected.items() <= values(done).items()
    assert "dataset_info.json a.tags" in listed(done)
    fewer = llama_factory(tmp_path, {"a": entry}, max_samples=10)  # the first 10 of the 1,000
    assert values(fewer)["data.limit"] == 10


def test_the_split_to_evaluate_on_is_train_there(tmp_path: Path) -> None:
    done = llama_factory(tmp_path, {"a": {"hf_hub_url": "org/a"}, "b": {"hf_hub_url": "org/b"}}, eval_dataset="b")
    assert values(done)["data.heldout_split"] == "train"


def test_numbers_of_rows_of_each_data_set_are_a_thing_to_do(tmp_path: Path) -> None:
    entries = {"a": {"hf_hub_url": "org/a", "num_samples": 5}, "b": {"file_name": "b.json"}}
    done = llama_factory(tmp_path, entries, max_samples=10)
    assert "data.limit" not in done.fields
    assert {"num_samples", "max_samples"} <= listed(done).keys()
    assert any(line.startswith("Set data.limit") for line in done.to_do)


@pytest.mark.parametrize("key", ["ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"])
def test_an_entry_without_a_file_or_a_data_set_of_the_hub(tmp_path: Path, key: str) -> None:
    done = llama_factory(tmp_path, {"a": {key: "org/d"}})
    assert not Path(values(done)["data.train"]).exists()
    assert any("has no file or hf_hub_url for a" in line for line in done.to_do)


def test_the_command_line_of_trl_evaluates_on_another_split(tmp_path: Path) -> None:
    """Only where eval_strategy is not no; a list `datasets` comes before dataset_name there."""
    done = yaml_of_trl(tmp_path, dataset_name="org/d", eval_strategy="steps", dataset_test_split="validation")
    assert {"data.heldout": "hf:org/d", "data.heldout_split": "validation"}.items() <= values(done).items()
    assert "data.heldout_fraction" not in done.fields
    assert values(yaml_of_trl(tmp_path, dataset_name="org/d", eval_strategy="steps"))["data.heldout"] == "hf:org/d"
    for strategy in ("no", False, None):
        assert "data.heldout" not in yaml_of_trl(tmp_path, dataset_name="org/d", eval_strategy=strategy).fields
    both = yaml_of_trl(tmp_path, dataset_name="org/d", datasets=[{"path": "org/e"}], eval_strategy="steps")
    assert values(both)["data.train"] == "hf:org/e"
    assert "dataset_name" in listed(both)
