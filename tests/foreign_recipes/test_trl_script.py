"""What a script gives to the trainer is written or listed, and an adapter has the layers that the recipe says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from prefine.foreign_recipes.settings import Moved
from prefine.foreign_recipes.trl import from_trl
from prefine.foreign_recipes.trl_script import LORA_DEFAULTS

_TRAINER = "SFTTrainer(model='org/m', args=SFTConfig(), train_dataset='org/d'"


def moved(tmp_path: Path, text: str) -> Moved:
    (tmp_path / "a.py").write_text(text)
    return from_trl(tmp_path / "a.py")


def values(done: Moved) -> dict[str, Any]:
    return {path: written.value for path, written in done.fields.items()}


def listed(done: Moved) -> dict[str, str]:
    return {left.name: left.reason for left in done.left}


@pytest.mark.parametrize(
    "script",
    [
        f"{_TRAINER}, peft_config=LoraConfig(r=8))\n",
        f"{_TRAINER}, peft_config=LoraConfig(r=8, target_modules=None))\n",
        f"{_TRAINER}, peft_config=get_peft_config(ModelConfig(use_peft=True)))\n",
    ],
)
def test_an_adapter_without_named_modules_is_of_all_linear_layers(tmp_path: Path, script: str) -> None:
    """peft would choose by the model's type: the field and its comment say what prefine does."""
    written = moved(tmp_path, script).fields["lora.targets"]
    assert written.value == "all-linear"
    assert "none are named; peft would choose by the model's type" in written.origin


def test_modules_that_only_the_script_knows_are_listed(tmp_path: Path) -> None:
    done = moved(tmp_path, f"{_TRAINER}, peft_config=LoraConfig(target_modules=find()))\n")
    assert "lora.targets" not in done.fields
    assert "target_modules" in listed(done)


def test_defaults_of_an_adapter_by_model_config_are_those_of_trl(tmp_path: Path) -> None:
    config = "c = ModelConfig(use_peft=True, lora_r=4)\n"
    done = moved(tmp_path, f"{config}{_TRAINER}, peft_config=get_peft_config(c))\n")
    assert {"lora.r": 4, "lora.alpha": 32, "lora.dropout": 0.05}.items() <= values(done).items()
    fields = {field.name: field.default for field in dataclasses.fields(pytest.importorskip("trl").ModelConfig)}
    assert {name: fields[name] for name in LORA_DEFAULTS} == LORA_DEFAULTS


@pytest.mark.parametrize(
    "script",
    [
        f"{_TRAINER}, peft_config=PrefixTuningConfig())\n",
        f"{_TRAINER}, peft_config=get_peft_config(args))\n",
        f"m = FastLanguageModel.get_peft_model(m, r=16)\n{_TRAINER})\n",
    ],
)
def test_an_adapter_that_cannot_be_read_is_a_thing_to_do(tmp_path: Path, script: str) -> None:
    """It does not train all weights there."""
    done = moved(tmp_path, script)
    assert "lora" not in done.fields
    assert any(line.startswith("Set the section lora") for line in done.to_do)
    assert {"peft_config", "get_peft_model"} & listed(done).keys()


@pytest.mark.parametrize("peft", ["", ", peft_config=None"])
def test_without_an_adapter_all_weights_are_trained(tmp_path: Path, peft: str) -> None:
    assert values(moved(tmp_path, f"{_TRAINER}{peft})\n"))["lora"] is None


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("SFTTrainer(model=mark(), args=SFTConfig(), train_dataset='org/d')", "model=mark()"),
        (f"{_TRAINER}, processing_class=mark())", "processing_class=mark()"),
        (f"{_TRAINER}, callbacks=[mark()])", "callbacks [mark()]"),
        (f"{_TRAINER}, peft_config=LoraConfig(mark=mark()))", "mark mark()"),
        (f"{_TRAINER})\nBitsAndBytesConfig()\nBitsAndBytesConfig(mark=1)", "BitsAndBytesConfig, line 3"),
        (f"{_TRAINER})\nModelConfig()\nModelConfig(mark=1)", "ModelConfig, line 3"),
        ("SFTTrainer(A.from_pretrained('org/m', mark=1), args=SFTConfig())", "mark 1"),
        ("SFTTrainer(A.from_pretrained('org/m', mark), args=SFTConfig())", "from_pretrained(mark)"),
        ("SFTTrainer(A.from_pretrained('org/m', **mark), args=SFTConfig())", "from_pretrained(**mark)"),
        ("SFTTrainer(f(A.from_pretrained('org/m', mark=1)), args=SFTConfig())", "mark 1"),
        ("A.from_pretrained('org/m')\nA.from_pretrained('org/mark')\nSFTConfig()", "from_pretrained: org/mark"),
        ("load_dataset('org/d')\nload_dataset('org/mark')\nSFTConfig()", "load_dataset: org/mark"),
        ("A.from_pretrained(find(), mark=1)\nSFTConfig()", "mark 1"),
        ("A.from_pretrained(find())\nA.from_pretrained('org/m')\nSFTConfig()", "a name that is not a literal"),
        ("class Mine(SFTTrainer): pass\nMine(model='org/m', args=SFTConfig(), mark=1)", "class Mine(SFTTrainer)"),
        ("class Mine(trl.SFTTrainer): pass\nMine(model='org/m', args=SFTConfig(), mark=1)", "mark 1"),
        ("t = AutoTokenizer.from_pretrained('org/m')\nt.chat_template = mark\nSFTConfig()", "t.chat_template = mark"),
        ("model, t = setup_chat_format(model, t)\nSFTConfig()", "setup_chat_format(…), line 1"),
        ("trainer.add_callback(mark)\nSFTConfig()", ".add_callback(…), line 1"),
        ("d = load_dataset('org/d', num_proc=mark())\nSFTConfig()", "load_dataset(num_proc=mark())"),
    ],
)
def test_nothing_of_a_script_is_lost(tmp_path: Path, script: str, said: str) -> None:
    done = moved(tmp_path, script + "\n")
    assert said in "; ".join(f"{left.name} {left.value}" for left in done.left)


def test_the_revision_of_a_loaded_model(tmp_path: Path) -> None:
    loading = "from_pretrained(pretrained_model_name_or_path='org/m', revision='v1')"
    for script in (f"m = A.{loading}\nSFTTrainer(m, args=SFTConfig())\n", f"m = f(A.{loading})\nSFTConfig()\n"):
        assert {"model.name": "org/m", "model.revision": "v1"}.items() <= values(moved(tmp_path, script)).items()
    by_options = moved(tmp_path, f"{_TRAINER})\n".replace("()", "(model_init_kwargs={'revision': 'v2'})", 1))
    assert values(by_options)["model.revision"] == "v2"


def test_the_model_of_unsloth(tmp_path: Path) -> None:
    loading = "m, t = FastLanguageModel.from_pretrained(model_name='org/m', max_seq_length=64, load_in_4bit=True)\n"
    done = values(moved(tmp_path, f"{loading}SFTTrainer(model=m, args=SFTConfig(), peft_config=LoraConfig())\n"))
    assert {"model.name": "org/m", "model.quantization": "nf4", "data.max_length_tokens": 64}.items() <= done.items()


def test_two_values_of_a_name_are_not_one(tmp_path: Path) -> None:
    done = moved(tmp_path, f"c = ModelConfig(max_length=8)\n{_TRAINER})\n".replace("()", "(max_length=16)", 1))
    assert values(done)["data.max_length_tokens"] == 16
    assert listed(done)["max_length=8"] == "another part of the script says it, too"


def test_arguments_without_a_name_are_listed_but_the_configuration(tmp_path: Path) -> None:
    done = moved(tmp_path, "c = SFTConfig(max_length=64)\nSFTTrainer('org/m', c, collate, **more)\n")
    assert {"collate", "**more"} <= listed(done).keys()
    assert not {"c", "'org/m'"} & listed(done).keys()


def test_a_long_chain_of_names_is_read(tmp_path: Path) -> None:
    chain = "a" + ".b" * 900
    done = moved(tmp_path, f"m = {chain}.from_pretrained('org/m')\nt = {chain}().from_pretrained('t')\nSFTConfig()\n")
    assert values(done)["model.name"] == "org/m"
    tokenizer = f"t = {chain}.AutoTokenizer.from_pretrained('org/t')\nSFTConfig()\n"
    assert values(moved(tmp_path, tokenizer))["model.name"] == "./model"
