"""Where an answer ends: the same tokens here, in the files of a saved model, and in transformers' own generate."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from prefine.data.tokens.template import ChatTemplate
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Request
from prefine.models.loading.load import LoadedModel, load_model, load_tokenizer, save_model
from prefine.models.loading.location import locate_model
from prefine.models.loading.stops import declared_ends
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.records import Message
from tests.models import tiny

LORA = LoraSection(r=2, alpha=4, targets=["q_proj", "v_proj"])
# Turns end with <|im_end|>; the tokenizer's end of sequence is <|endoftext|>; the files declare <|stop|>, too.
ADDED = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|stop|>"]


def base(folder: Path, declared: Any, *, seed: int = 0) -> Path:
    """A random model whose files declare these ends, each a token's text or a list of them."""
    tiny.save_folder(folder)
    words = AutoTokenizer.from_pretrained(folder)
    made = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=ADDED,
        chat_template=words.chat_template,
    )
    made.save_pretrained(folder)
    model = tiny.make("llama", vocab_size=len(made), eos_token_id=None, pad_token_id=None)
    tiny.random_weights(model, seed)
    with torch.no_grad():  # control tokens come up early
        model.lm_head.weight[-4:] *= 1.7
    model.save_pretrained(folder)
    ids = made.convert_tokens_to_ids(declared)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return folder


def loaded(folder: Path, lora: LoraSection | None = None, *, trainable: bool = True) -> LoadedModel:
    section = ModelSection(name=str(folder), device="cpu", dtype="float32")
    return load_model(section, lora, trainable=trainable)


@pytest.mark.parametrize("told", [{"text_config": "x"}, {"text_config": ["x"]}, {"text_config": None}, ["x"], "x"])
def test_settings_of_another_shape_declare_no_ends(told: Any, tmp_path: Path) -> None:
    folder = base(tmp_path / "model", "<|stop|>")
    (folder / "generation_config.json").write_text(json.dumps(told))
    assert declared_ends(locate_model(str(folder))) <= {0, 1, 2}


def ids_of(template: ChatTemplate, *tokens: str) -> set[int]:
    return set(template.tokenizer.convert_tokens_to_ids(list(tokens)))


@pytest.mark.parametrize("declared", ["<|stop|>", ["<|stop|>", "<|im_end|>"], ["<|stop|>", "<|endoftext|>"]])
def test_ends_are_the_union_of_files_tokenizer_and_template(tmp_path: Path, declared: Any) -> None:
    """One or a list in generation_config.json, the tokenizer's own, and what the template closes a turn with."""
    folder = base(tmp_path / "base", declared)
    template = load_tokenizer(locate_model(str(folder)), ModelSection(name=str(folder)))
    assert template.stop_ids == ids_of(template, "<|im_end|>", "<|endoftext|>", "<|stop|>")
    assert template.turn_ends == ids_of(template, "<|im_end|>", "<|endoftext|>")
    assert {template.turn_end} == ids_of(template, "<|im_end|>")


def test_the_config_counts_where_there_are_no_generation_settings(tmp_path: Path) -> None:
    """As in transformers: a list in config.json, only where generation_config.json is not there."""
    folder = base(tmp_path / "base", "<|stop|>")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [257, 258]}))
    location = locate_model(str(folder))
    assert declared_ends(location) == {259}
    (folder / "generation_config.json").unlink()
    assert declared_ends(location) == {257, 258}


def test_plain_text_does_not_end_an_answer_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An end that answers hold as text would cut them: it is left out, and a line says so."""
    folder = base(tmp_path / "base", ["<|stop|>", "A"])
    with caplog.at_level(logging.WARNING, "prefine"):
        template = load_tokenizer(locate_model(str(folder)), ModelSection(name=str(folder)))
    assert not ids_of(template, "A") & template.stop_ids
    assert "declares eos_token_id" in caplog.text
    assert "'A'" in caplog.text


def test_a_declared_end_in_an_answer_of_the_data_is_text(tmp_path: Path) -> None:
    """An added token that nobody flagged as special, but that the files declare as an end, cannot end a turn early."""
    folder = base(tmp_path / "base", "<|stop|>")
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["<|over|>"])
    over = words.convert_tokens_to_ids("<|over|>")
    prompt = (Message(role="user", content="Hello"),)
    assert over in ChatTemplate(words).answer_ids(prompt, "a <|over|> b")
    template = ChatTemplate(words, {over})
    assert over in template.stop_ids
    assert over not in template.answer_ids(prompt, "a <|over|> b")


def ours(model: LoadedModel, prompt: list[int], tokens: int) -> tuple[int, ...]:
    request = Request(prompt, Sampling(tokens, temperature=0), model.template.stop_ids)
    return writer_for(model.packed, model.tokenizer, 1).write([request])[0].tokens


def ending_with(folder: Path, end: str) -> list[int]:
    """A prompt that the model in `folder` answers with some tokens, and then this end."""
    model = loaded(folder, trainable=False)
    (wanted,) = ids_of(model.template, end)
    for letter in range(256):
        prompt = [*model.tokenizer.convert_tokens_to_ids(["<|im_start|>"]), letter, letter * 7 % 256]
        found = ours(model, prompt, 40)
        if found[-1] == wanted and 2 < len(found) < 40:
            return prompt
    raise AssertionError(f"no prompt is answered with {end}")


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>", "<|stop|>"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "adapter"])
def test_a_saved_model_stops_in_transformers_as_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraSection | None, end: str
) -> None:
    """Load, save, and let transformers write: the same tokens up to the same end, which the base does not declare."""
    folder = base(tmp_path / "base", "<|stop|>")
    prompt = ending_with(folder, end)
    save_model(loaded(folder, lora), saved := tmp_path / "saved")
    again = loaded(saved, lora, trainable=False)
    written = ours(again, prompt, 40)
    assert again.tokenizer.decode(written[-1:]) == end

    kind = AutoModelForCausalLM if lora is None else AutoPeftModelForCausalLM
    monkeypatch.chdir(saved)  # an adapter names its base by the path from its own folder; peft takes it from here
    theirs = kind.from_pretrained(".")
    settings = GenerationConfig.from_pretrained(".")
    assert settings.eos_token_id == [257, 258, 259]
    if lora is None:
        assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == [257, 258, 259]
    else:
        theirs.generation_config = settings  # peft and transformers take those of the base
    out = theirs.generate(input_ids=torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0)
    assert tuple(out[0, len(prompt) :].tolist()) == written


def test_an_adapter_knows_its_ends_without_its_base_declaring_them(tmp_path: Path) -> None:
    """What was an end in training is one later, whatever the base's files have become."""
    folder = base(tmp_path / "base", "<|stop|>")
    save_model(loaded(folder, LORA), saved := tmp_path / "saved")
    (folder / "generation_config.json").unlink()
    assert 259 in loaded(saved, LORA, trainable=False).template.stop_ids


def test_generation_settings_of_the_base_stay_beside_the_ends(tmp_path: Path) -> None:
    """A base's own temperature is saved with the adapter."""
    folder = base(tmp_path / "base", "<|stop|>")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 259, "do_sample": True, "temperature": 0.6}))
    save_model(loaded(folder, LORA), saved := tmp_path / "saved")
    settings = json.loads((saved / "generation_config.json").read_text())
    assert settings["temperature"] == 0.6
    assert settings["eos_token_id"] == [257, 258, 259]
