"""Classifiers that others trained score as transformers has them; what is no reward model is refused in one line."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from prefine.errors import ModelError, TemplateError
from prefine.generation.row_settings import settings_of_scores
from prefine.models.loading.heads import IN_ADAPTER
from prefine.models.loading.load import load_model, save_model
from prefine.models.loading.location import ADAPTER_WEIGHTS
from prefine.models.loading.weights import SCALE_FILE
from prefine.models.scoring.cross_encoder import CrossEncoder
from prefine.models.scoring.packed_scorer import PackedReward, load_reward, read_scale
from prefine.models.scoring.scorer import Question, Score, ScoreScale
from prefine.recipe.sections import LoraSection
from tests.models import tiny
from tests.models.scoring.test_packed_scorer import LORA, QUESTIONS, UNIT_SCALE, flat, heads_of, refused, section, talk
from tests.training import tiny as training_tiny

# --- Other people's classifiers --------------------------------------------------------------------------------------


def save_classifier(folder: Path, labels: int = 1, template: str | None = tiny.CHATML, **overrides: Any) -> Path:
    """A sequence classifier as others publish it: no reward.json."""
    folder.mkdir(parents=True)
    size = tiny.save_tokenizer(folder, template)
    config = tiny.make("llama", vocab_size=size, eos_token_id=size - 1, pad_token_id=size - 1, **overrides).config
    config.num_labels = labels
    model = AutoModelForSequenceClassification.from_config(config)
    tiny.random_weights(model)
    model.save_pretrained(folder)
    return folder


def test_a_classifier_of_others_is_scored_on_the_whole_rendered_conversation(tmp_path: Path) -> None:
    """As transformers does, the line break behind the end of turn included; not centred."""
    folder = save_classifier(tmp_path / "foreign")
    reward = load_reward(section(folder))
    assert isinstance(reward, PackedReward)
    assert reward.scale is None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None
    questions = [Question(talk("Hi there"), ("Hello!", "No", "")), Question(talk("Hi", "Yes?", "More"), ("Of what?",))]
    expected = []
    for question in questions:
        for answer in question.answers:
            turns = [message.model_dump() for message in (*question.prompt,)]
            turns.append({"role": "assistant", "content": answer})
            ids = tokenizer.apply_chat_template(turns, return_dict=False, return_tensors="pt")
            assert tokenizer.decode(ids[0]).endswith("<|im_end|>\n")
            with torch.no_grad():
                expected.append(model(input_ids=ids).logits[0].tolist())
    assert (heads_of(reward, questions) - torch.tensor(expected)).abs().max() <= 1e-5
    assert torch.tensor(expected).std() > 0.05


def test_a_classifier_without_a_chat_template_needs_one(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "foreign", template=None)
    with pytest.raises(TemplateError, match=r"has no chat template\. Set model\.chat_template"):
        load_reward(section(folder))
    assert load_reward(section(folder, chat_template="plain")).scale is None


WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "who", "are", "you", "I", "am", "a", "good", "bad", "bot", "yes"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def save_bert(folder: Path, labels: int = 1, longest: int = 12) -> Path:
    """A cross-encoder that takes `longest` tokens; texts are words of WORDS."""
    save_words(folder, "input_ids", "token_type_ids", "attention_mask")
    config = BertConfig(
        vocab_size=len(WORDS), max_position_embeddings=longest, num_labels=labels, pad_token_id=1, **SIZES
    )
    model = BertForSequenceClassification(config)
    tiny.random_weights(model)
    with torch.no_grad():
        model.classifier.weight.mul_(5)
    model.save_pretrained(folder)
    return folder


def save_roberta(folder: Path, longest: int = 12) -> Path:
    """Another of `longest` positions, of which RoBERTa uses those behind its padding token's id: 2 fewer."""
    save_words(folder, "input_ids", "attention_mask")
    config = RobertaConfig(
        vocab_size=len(WORDS), max_position_embeddings=longest, num_labels=1, pad_token_id=1, type_vocab_size=1, **SIZES
    )
    model = RobertaForSequenceClassification(config)
    tiny.random_weights(model)
    model.save_pretrained(folder)
    return folder


def save_words(folder: Path, *inputs: str) -> None:
    """A tokenizer of WORDS, which knows of no longest text."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=list(inputs), **names).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("model_max_length", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@torch.no_grad()
def roberta_says(folder: Path, *pairs: tuple[list[str], list[str]]) -> list[float]:
    """transformers' own forward on [CLS] first [SEP] second [SEP], one pair after another."""
    model = RobertaForSequenceClassification.from_pretrained(folder).eval()
    rows = [["[CLS]", *first, "[SEP]", *second, "[SEP]"] for first, second in pairs]
    return [model(input_ids=torch.tensor([[WORDS.index(word) for word in row]])).logits.item() for row in rows]


@torch.no_grad()
def bert_says(folder: Path, *pairs: tuple[list[str], list[str]]) -> list[float]:
    """transformers' own forward on [CLS] first [SEP] second [SEP], one pair after another."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    said = []
    for first, second in pairs:
        words = ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
        types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        ids = torch.tensor([[WORDS.index(word) for word in words]])
        said.append(model(input_ids=ids, token_type_ids=torch.tensor([types])).logits.item())
    return said


def test_an_encoder_reads_turns_and_answer_as_two_texts(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    reward = load_reward(section(folder))
    assert isinstance(reward, CrossEncoder)
    assert reward.scale is None
    settings = settings_of_scores(reward)
    (folder / "tokenizer_config.json").write_text("{}")
    assert [name for name, value in settings_of_scores(reward).items() if value != settings[name]] == [
        "the hash of the tokenizer's files"
    ]
    questions = [
        Question(talk("who are you"), ("I am a good bot", "bad", "")),
        Question(talk("who", "I am", "are you a bot"), ("yes",)),
    ]
    expected = bert_says(
        folder,
        (["who", "are", "you"], ["I", "am", "a", "good", "bot"]),
        (["who", "are", "you"], ["bad"]),
        (["who", "are", "you"], []),
        (["who", "I", "am", "are", "you", "a", "bot"], ["yes"]),
    )
    assert torch.tensor(expected).std() > 0.05
    assert flat(reward.score(questions)) == pytest.approx(expected, abs=1e-5)
    assert flat(reward.score_padded(questions)) == pytest.approx(expected, abs=1e-5)
    tokens = [[score.tokens for score in scores] for scores in reward.score(questions) if scores is not None]
    assert tokens == [[5, 1, 0], [1]]


def test_an_encoders_prompt_is_cut_from_the_left_and_its_answer_never(tmp_path: Path) -> None:
    """12 tokens hold three special ones, so an answer of 8 leaves one to the prompt and one of 9 leaves none."""
    folder = save_bert(tmp_path / "bert", longest=12)
    reward = load_reward(section(folder))
    prompt = talk(" ".join(["who"] * 20 + ["are", "you"]))
    given = list(reward.score(Question(prompt, (" ".join(["yes"] * count),)) for count in (8, 9, 7)))
    assert [scores is None for scores in given] == [False, True, False]
    expected = bert_says(folder, (["you"], ["yes"] * 8), (["are", "you"], ["yes"] * 7))
    assert flat(iter([given[0], given[2]])) == pytest.approx(expected, abs=1e-5)


def test_an_encoder_that_begins_to_count_behind_its_padding_is_never_given_too_much(tmp_path: Path) -> None:
    """RoBERTa's 12 positions hold 10 tokens, and nothing in the tokenizer's files says so."""
    folder = save_roberta(tmp_path / "roberta", longest=12)
    reward = load_reward(section(folder))
    assert isinstance(reward, CrossEncoder)
    assert reward.tokenizer.model_max_length > 1000
    prompt = talk(" ".join(["who"] * 50 + ["are", "you"]))
    given = list(reward.score(Question(prompt, (" ".join(["yes"] * count),)) for count in (6, 7, 5)))
    assert [scores is None for scores in given] == [False, True, False]
    expected = roberta_says(folder, (["you"], ["yes"] * 6), (["are", "you"], ["yes"] * 5))
    assert flat(iter([given[0], given[2]])) == pytest.approx(expected, abs=1e-5)


def test_an_encoder_scores_a_stream_in_order(tmp_path: Path) -> None:
    """More questions than go into one batch, each as alone, and no further read than one batch needs."""
    reward = load_reward(section(save_bert(tmp_path / "bert")))
    words = WORDS[4:]
    questions = [Question(talk(f"who {words[i % 10]}"), ("yes", "bad bot"[: 3 + 4 * (i % 2)])) for i in range(100)]
    read = itertools.count()
    stream = (questions[next(read)] for _ in questions)
    first = flat(itertools.islice(reward.score(stream), 40))
    assert next(read) <= 48
    assert first == pytest.approx([value for one in questions[:40] for value in flat(reward.score([one]))], abs=1e-5)
    assert flat(reward.score(questions))[:80] == pytest.approx(first, abs=1e-5)


# --- The scale -------------------------------------------------------------------------------------------------------


def test_the_scale_by_hand() -> None:
    """Each head's mean is its bias: 3 and 12. Centred means over heads are -2, 1, 1; with n - 1, variance 3."""
    scale = ScoreScale.of(torch.tensor([[1.0, 10.0], [3.0, 14.0], [5.0, 12.0]]), 160)
    assert scale.bias == (3.0, 12.0)
    assert scale.std == pytest.approx(math.sqrt(3))
    assert (scale.answers, scale.max_length_tokens) == (3, 160)


def test_a_scale_survives_its_file(tmp_path: Path) -> None:
    scale = ScoreScale(
        bias=(0.1, -1 / 3),
        std=math.pi,
        answers=14,
        max_length_tokens=160,
        quantization="nf4",
        compute_dtype="bfloat16",
    )
    (tmp_path / SCALE_FILE).write_text(json.dumps(scale.as_json()))
    assert read_scale(tmp_path) == scale
    assert read_scale(tmp_path / "nowhere") is None


def test_a_scale_that_says_the_least(tmp_path: Path) -> None:
    """Whole weights, no type of its own, the first format."""
    (tmp_path / SCALE_FILE).write_text('{"bias": [0], "std": 1, "answers": 2, "max_length_tokens": 160}')
    assert read_scale(tmp_path) == UNIT_SCALE
    assert (UNIT_SCALE.quantization, UNIT_SCALE.compute_dtype, UNIT_SCALE.format) == ("none", None, 1)


@pytest.mark.parametrize("raw", [[[2.0], [2.0], [2.0]], [[1.0]], [[1.0], [math.nan]], [[1.0, 2.0], [2.0, 1.0]]])
def test_scores_that_do_not_differ_have_no_scale(raw: list[list[float]]) -> None:
    """Equal ones, a single one, not a number, and heads that cancel each other."""
    with pytest.raises(ModelError, match="the held-out scores do not differ") as caught:
        ScoreScale.of(torch.tensor(raw), 160)
    assert "training.learning_rate" in caught.value.remedy


@pytest.mark.parametrize(
    ("heads", "disagreement"), [((2.0,), 0.0), ((1.0, 3.0), 1.0), ((1.0, 1.0, 4.0), math.sqrt(2)), ((5.0, 5.0), 0.0)]
)
def test_disagreement_is_the_standard_deviation_over_heads(heads: tuple[float, ...], disagreement: float) -> None:
    assert Score(0.0, heads, 3).disagreement == pytest.approx(disagreement)


# --- What is no reward model, or no longer one -----------------------------------------------------------------------


def change_head(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    change(tensors)
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})


def without_head(folder: Path) -> Path:
    """The whole classifier in a folder loses its head."""
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T."""
    return training_tiny.save_model(tmp_path_factory.mktemp("base") / "T")


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A reward model of prefine's with one head, an adapter, to be broken."""
    save_model(load_model(section(base), LORA, heads=1), tmp_path / "copy", {SCALE_FILE: UNIT_SCALE.as_json()})
    return tmp_path / "copy"


def test_an_unbroken_copy_is_loaded(copy: Path) -> None:
    assert heads_of(load_reward(section(copy))).shape == (4, 1)


def test_language_models_have_no_scores(base: Path, tmp_path: Path) -> None:
    """A whole one and an adapter."""
    save_model(load_model(section(base), LORA), sft := tmp_path / "sft")
    refused(lambda: load_reward(section(base)), "has no score head", "Name a reward run")
    refused(lambda: load_reward(section(sft)), "has no score head: it is a language model's", "Name a reward run")


def test_a_head_without_its_adapter_or_an_adapter_without_its_head(copy: Path) -> None:
    """Neither is loaded without the other, and nothing that is too much is passed by."""
    whole = load_file(copy / ADAPTER_WEIGHTS)
    change_head(copy, lambda tensors: [tensors.pop(name) for name in list(tensors) if "lora_B" in name])
    refused(lambda: load_reward(section(copy)), "14 weights of the adapter", "Use the base model")
    save_file({name: tensor for name, tensor in whole.items() if name != IN_ADAPTER}, copy / ADAPTER_WEIGHTS)
    refused(lambda: load_reward(section(copy)), "has no score head", "Name a reward run")
    save_file(whole | {"base_model.model.score.bias": torch.zeros(1)}, copy / ADAPTER_WEIGHTS)
    refused(lambda: load_reward(section(copy)), "of the adapter", "Use the base model")


@pytest.mark.parametrize("measured", [True, False])
def test_a_whole_reward_model_without_its_head(measured: bool, tmp_path: Path) -> None:
    """Of prefine, and of others."""
    folder = without_head(save_classifier(tmp_path / "headless"))
    if measured:
        (folder / SCALE_FILE).write_text(json.dumps(UNIT_SCALE.as_json()))
    refused(lambda: load_reward(section(folder)), "has no score head", "Name a reward run")


@pytest.mark.parametrize("lora", [None, LORA])
def test_training_does_not_go_on_from_a_classifier_that_lost_its_head(lora: LoraSection | None, tmp_path: Path) -> None:
    """Its config says that it has one: missing weights are fatal there, too."""
    folder = without_head(save_classifier(tmp_path / "headless"))
    refused(lambda: load_model(section(folder), lora, heads=1), "has no score head", "Name a reward run")


def test_a_head_of_another_hidden_size(copy: Path) -> None:
    """The adapter's, and a whole model's."""
    change_head(copy, lambda tensors: tensors.update({IN_ADAPTER: torch.zeros(1, 48)}))
    said = "is for hidden size 48, but its base model has 32"
    refused(lambda: load_reward(section(copy)), said, "Use the base model it was trained on")
    refused(lambda: load_model(section(copy), LORA, heads=1), said, "Use the base model it was trained on")


def test_a_whole_model_with_a_head_of_another_hidden_size(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "foreign")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"score.weight": torch.zeros(1, 48)}, folder / "model.safetensors", {"format": "pt"})
    refused(lambda: load_reward(section(folder)), "has other shapes for 1 of the weights", "download the model again")


def test_classifiers_with_several_labels(tmp_path: Path) -> None:
    """On a decoder and on an encoder."""
    for folder in (save_classifier(tmp_path / "llama", labels=2), save_bert(tmp_path / "bert", labels=5)):
        refused(lambda folder=folder: load_reward(section(folder)), "labels instead of one score", "with one label")


# what reward.json holds, the field that the message names
DAMAGED = {
    "cut": ('{"bias": [0.1], "st', "Invalid JSON"),
    "empty": ("", "Invalid JSON"),
    "no text": ("\xff", "Invalid JSON"),
    "a list": ("[1, 2]", "Input should be an object"),
    "null": ("null", "Input should be an object"),
    "no bias": ('{"std": 1.0, "answers": 2, "max_length_tokens": 160, "format": 1}', "bias: Field required"),
    "no std": ('{"bias": [0.1], "answers": 2, "max_length_tokens": 160, "format": 1}', "std: Field required"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_scale(case: str, copy: Path) -> None:
    content, said = DAMAGED[case]
    (copy / SCALE_FILE).write_bytes(content.encode("latin-1"))
    refused(lambda: load_reward(section(copy)), f"{SCALE_FILE}: {said}", "Train the reward model again")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("std", None),
        ("std", "1"),
        ("std", 0),
        ("std", -1.0),
        ("std", math.nan),
        ("bias", []),
        ("bias", 0.1),
        ("bias", ["high"]),
        ("bias", [math.inf]),
        ("answers", 1),
        ("max_length_tokens", "160"),
        ("max_length_tokens", 1),
        ("quantization", "int4"),
        ("compute_dtype", "float16"),
        ("format", 2),
        ("more", 1),
    ],
)
def test_a_scale_whose_values_cannot_be(field: str, value: Any, copy: Path) -> None:
    """A later format and an unknown field are such, too. The message names the field."""
    (copy / SCALE_FILE).write_text(json.dumps(json.loads((copy / SCALE_FILE).read_text()) | {field: value}))
    refused(lambda: load_reward(section(copy)), f"{SCALE_FILE}: {field}", "Train the reward model again")


def test_a_scale_of_another_number_of_heads(copy: Path) -> None:
    scale = UNIT_SCALE.model_copy(update={"bias": (0.1, 0.2)})
    (copy / SCALE_FILE).write_text(json.dumps(scale.as_json()))
    said = f"{SCALE_FILE} is for 2 heads, but the weights have 1"
    refused(lambda: load_reward(section(copy)), said, "They belong to different models")


def test_a_reward_adapter_is_no_policy(copy: Path) -> None:
    said = "is a reward model's, which gives scores and generates no text"
    for lora, trainable in ((LORA, True), (None, False)):
        refused(
            lambda lora=lora, trainable=trainable: load_model(section(copy), lora, trainable=trainable),
            said,
            "Name a language model",
        )


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_reward_model_is_no_policy(tied: bool, lora: LoraSection | None, tmp_path: Path) -> None:
    """Nor with tied embeddings, where no weight would be missing."""
    folder = save_classifier(tmp_path / "reward", tie_word_embeddings=tied)
    refused(lambda: load_model(section(folder), lora), "generates no text", "Name a language model")
    refused(lambda: load_model(section(folder), None, trainable=False), "generates no text", "Name a language model")


def test_an_architecture_without_a_classifier(tmp_path: Path) -> None:
    folder = tiny.save_folder(tmp_path / "granite", "granite")
    refused(lambda: load_model(section(folder), LORA, heads=1), "could not be loaded (ValueError: Unrecognized", "")


def test_an_architecture_whose_classifier_has_another_head(tmp_path: Path) -> None:
    """CTRL's is no `score`."""
    said, remedy = "another kind of head", "Train a reward model from a decoder"
    refused(lambda: load_model(section(tiny.save_folder(tmp_path / "ctrl", "ctrl")), LORA, heads=1), said, remedy)


def test_scores_that_are_no_numbers(copy: Path) -> None:
    change_head(copy, lambda tensors: tensors[IN_ADAPTER].fill_(math.nan))
    refused(lambda: list(load_reward(section(copy)).score(QUESTIONS)), "gives scores that are not finite", "float32")


def test_other_broken_files(copy: Path, tmp_path: Path) -> None:
    """An adapter file cut in half, an encoder without its head, a config of no known model."""
    weights = copy / ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    refused(lambda: load_reward(section(copy)), "could not be put on its base model", "Use the base model")
    bert = save_bert(tmp_path / "bert")
    tensors = load_file(bert / "model.safetensors")
    save_file({name: x for name, x in tensors.items() if "classifier" not in name}, bert / "model.safetensors")
    refused(lambda: load_reward(section(bert)), "of its weights (classifier.bias", "not a trained reward model")
    (bert / "config.json").write_text('{"model_type": "nothing-known"}')
    refused(lambda: load_reward(section(bert)), "could not be loaded", "Check the name")
