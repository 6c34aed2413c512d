"""Tokens that the tokenizer has and the model's embedding has not: named before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from prefine.data.tokens.vocabulary import require_embedded
from prefine.errors import ModelError
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Request
from prefine.models.loading.load import LoadedModel, load_model
from prefine.models.scoring.packed_scorer import load_reward
from prefine.models.scoring.scorer import Question
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.records import Message
from tests.models import tiny
from tests.training import tiny as training_tiny

ROWS = 258  # of tiny's embedding: bytes and two control tokens
LORA = LoraSection(r=2, alpha=4, targets=["q_proj", "v_proj"])


def with_token(folder: Path, *, template: str | None = None, pad: str | None = None) -> Path:
    """A model folder whose tokenizer was given a token more, and whose embedding was not resized."""
    tiny.save_folder(folder)
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["<think>"])
    assert words.convert_tokens_to_ids("<think>") == ROWS
    if template is not None:
        words.chat_template = template
    if pad is not None:
        words.add_special_tokens({"pad_token": pad})
    words.save_pretrained(folder)
    return folder


def loaded(folder: Path) -> LoadedModel:
    section = ModelSection(name=str(folder), device="cpu", dtype="float32")
    return load_model(section, LORA)


def assert_named(error: ModelError, token: str, number: int = ROWS) -> None:
    assert f"the token {token!r} has id {number}, but the model's embedding has {ROWS} rows" in str(error)
    assert "resize_token_embeddings" in str(error)


def test_by_hand() -> None:
    """An embedding of 3 rows has ids 0, 1 and 2."""

    class Words:
        def convert_ids_to_tokens(self, token: int) -> str:
            return f"word{token}"

    require_embedded([0, 2, 1], 3, Words())
    with pytest.raises(ModelError, match="'word3' has id 3, but the model's embedding has 3 rows"):
        require_embedded([0, 3, 4], 3, Words())


def test_a_token_that_never_occurs_is_no_error(tmp_path: Path) -> None:
    """Some released models have such tokenizers (an image's token of a text model)."""
    model = loaded(with_token(tmp_path / "base"))
    assert model.template.prompt_ids((Message(role="user", content="Hello"),))


def test_one_in_the_template_or_as_padding_is_named_at_load(tmp_path: Path) -> None:
    """Every prompt would have it; and padding would break whoever pads."""
    with pytest.raises(ModelError) as caught:
        loaded(with_token(tmp_path / "a", template=tiny.CHATML.replace("<|im_start|>", "<think>")))
    assert_named(caught.value, "<think>")
    with pytest.raises(ModelError) as caught:
        loaded(with_token(tmp_path / "b", pad="[PAD]"))
    assert_named(caught.value, "[PAD]", ROWS + 1)


def test_one_in_the_data_ends_a_run_before_training(tmp_path: Path) -> None:
    """In an answer, where an added token is the assistant's own; nothing is left in the way of a corrected run."""
    rows = [{"prompt": f"Question {n}?", "completion": "<think>no</think> yes" if n == 7 else "yes"} for n in range(12)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = training_tiny.recipe("sft", tmp_path / "run", with_token(tmp_path / "base"), data)
    with pytest.raises(ModelError) as caught:
        training_tiny.train(recipe)
    assert_named(caught.value, "<think>")
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_prompt_of_ids_is_refused_by_both_writers(tmp_path: Path) -> None:
    """In slots and padded."""
    model = loaded(with_token(tmp_path / "base"))
    for packed in (True, False):
        model.packed.path.packed = packed
        with pytest.raises(ModelError) as caught:
            writer_for(model.packed, model.tokenizer, 2).write([Request([1, ROWS], Sampling(3), frozenset())])
        assert_named(caught.value, "<think>")


def question(answer: str) -> Question:
    return Question((Message(role="user", content="Hello"),), (answer,))


def test_scoring_names_it(tmp_path: Path) -> None:
    """A reward model on a decoder, of prefine's packed forward."""
    folder = with_token(tmp_path / "base")
    config = tiny.make("llama", vocab_size=ROWS).config
    config.num_labels = 1
    config.pad_token_id = 0
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    reward = load_reward(ModelSection(name=str(folder), device="cpu", dtype="float32"))
    assert len(list(reward.score([question("yes")]))) == 1
    with pytest.raises(ModelError) as caught:
        list(reward.score([question("<think>")]))
    assert_named(caught.value, "<think>")


def test_scoring_by_an_encoder_names_it(tmp_path: Path) -> None:
    """An encoder of the hub, with its own tokenizer."""
    folder = with_token(tmp_path / "base")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=ROWS, num_labels=1, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    reward = load_reward(ModelSection(name=str(folder), device="cpu", dtype="float32"))
    with pytest.raises(ModelError) as caught:
        list(reward.score([question("<think>")]))
    assert_named(caught.value, "<think>")
