"""Configurations of LLaMA-Factory: its own DPO example, names of data sets, and a place for every setting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefine.errors import RecipeError
from prefine.foreign_recipes.llama_factory import from_llama_factory
from prefine.foreign_recipes.settings import Moved
from prefine.foreign_recipes.text import recipe_text
from prefine.recipe.loading import load_recipe
from prefine.recipe.registry import RECIPES
from tests.recipe.test_foreign_names import LLAMA_FACTORY

# As its examples/train_lora/llama3_lora_dpo.yaml.
DPO = {
    **{"model_name_or_path": "org/8b", "trust_remote_code": True, "stage": "dpo", "do_train": True},
    **{"finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "pref_beta": 0.1, "pref_loss": "sigmoid"},
    **{"dataset": "pairs", "template": "llama3", "cutoff_len": 2048, "max_samples": 1000, "overwrite_cache": True},
    **{"output_dir": "saves/dpo", "logging_steps": 10, "save_steps": 500, "plot_loss": True},
    **{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 5.0e-6},
    **{"num_train_epochs": 3.0, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True},
    "ddp_timeout": 180000000,
}


def moved(tmp_path: Path, **settings: object) -> Moved:
    (tmp_path / "train.yaml").write_text(json.dumps(settings))
    return from_llama_factory(tmp_path / "train.yaml")


def test_its_example_becomes_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    columns = {"prompt": "question", "chosen": "chosen", "rejected": "worse"}
    info = {"pairs": {"file_name": "pairs.json", "ranking": True, "columns": columns}}
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(info))
    done = moved(tmp_path, **DPO)
    values = {path: written.value for path, written in done.fields.items()}
    expected = {
        **{"run": "saves/dpo", "model.name": "org/8b", "data.train": "data/pairs.json", "training.batch_size": 8},
        **{"data.columns": {"instruction": "question", "rejected": "worse"}, "data.limit": 1000, "lora.alpha": 16},
        **{"lora.targets": "all-linear", "training.warmup_fraction": 0.1, "training.epochs": 3.0, "dpo.beta": 0.1},
        **{"training.learning_rate": 5e-6, "model.dtype": "bfloat16", "data.max_length_tokens": 2048},
    }
    assert expected.items() <= values.items()
    assert not done.to_do
    out = tmp_path / "dpo.yaml"
    out.write_text(recipe_text(done, out))
    assert load_recipe(out, [], RECIPES["dpo"])
    used = {name for written in done.fields.values() for name in written.names}
    listed = {name for each in done.left for name in each.name.split(", ")}
    assert used | listed >= DPO.keys() - {"stage"}


def test_a_data_set_that_is_nowhere_described_is_a_thing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = moved(tmp_path, **DPO)
    assert done.fields["data.train"].value == "data/pairs"
    assert "does not say where pairs is" in done.to_do[0]


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "info").mkdir()
    (tmp_path / "info/dataset_info.json").write_text('{"a": {"hf_hub_url": "org/a", "subset": "en"}}')
    assert moved(tmp_path, dataset="a", dataset_dir="info").fields["data.train"].value == "hf:org/a#en"


@pytest.mark.parametrize("name", LLAMA_FACTORY.split())
def test_no_setting_is_lost(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "stage":
        return
    monkeypatch.chdir(tmp_path)
    done = moved(tmp_path, **{name: "a mark"})
    used = {each for written in done.fields.values() for each in written.names}
    assert name in used | {each for left in done.left for each in left.name.split(", ")}
    assert not [left for left in done.left if "does not know" in left.reason]


def test_simpo_keeps_its_margin(tmp_path: Path) -> None:
    done = moved(tmp_path, stage="dpo", pref_loss="simpo", pref_beta=2.0)
    assert done.fields["dpo.loss"].value == "simpo"
    assert done.fields["dpo.simpo_margin"].value == 0.5  # its default
    assert done.fields["dpo.beta"].value == 2.0


def test_all_weights(tmp_path: Path) -> None:
    done = moved(tmp_path, finetuning_type="full", lora_rank=4)
    assert done.fields["lora"].value is None
    assert "lora.r" not in done.fields
    assert any("lora_rank" in left.name for left in done.left)


def test_a_stage_without_a_counterpart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stage is 'pt', which prefine does not do\. Its methods are sft, "):
        moved(tmp_path, stage="pt")


@pytest.mark.parametrize(("given", "share"), [({}, 0.0), ({"val_size": 0.2}, 0.2), ({"val_size": 200}, 0.1)])
def test_the_held_out_share_is_written_and_a_number_of_rows_is_to_do(
    tmp_path: Path, given: dict[str, float], share: float
) -> None:
    done = moved(tmp_path, stage="sft", **given)
    assert done.fields["data.heldout_fraction"].value == share
    asked = [sentence for sentence in done.to_do if "data.heldout_fraction" in sentence]
    assert asked == (
        ["Set data.heldout_fraction to 200 divided by the number of prompts: it is a share, and val_size counts rows."]
        if given.get("val_size") == 200
        else []
    )
