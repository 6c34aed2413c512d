"""A reward model that is loaded again, here or elsewhere, gives the scores it gave when its training ended."""

from __future__ import annotations

import io
import itertools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from prefine.data.batch import collate, microbatches
from prefine.data.store import TokenStore
from prefine.errors import ModelError, PrefineError, TemplateError
from prefine.models.cross_encoder import CrossEncoder
from prefine.models.heads import IN_ADAPTER, adapter_head_shape
from prefine.models.load import LoadedModel, load_model, save_model
from prefine.models.location import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from prefine.models.reward import PackedReward, load_reward, read_scale
from prefine.models.scoring import SCALE_FILE, Question, RewardModel, Scale, Score
from prefine.recipe import LoraSection, ModelSection, RewardRecipe
from prefine.records import Conversation, Message
from prefine.training import reward as reward_training
from prefine.training import session
from tests.models import tiny
from tests.training import tiny as training_tiny

LORA = LoraSection(r=4, alpha=8.0)
CHANGES: dict[str, dict[str, Any]] = {
    "one head": {},
    "three heads": {"reward.heads": 3},
    "all weights": {"lora": None, "training.learning_rate": 3e-3},
    "nf4": {"model.quantization": "nf4"},
}


def talk(*turns: str) -> Conversation:
    return tuple(Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(turns))


QUESTIONS = [
    Question(talk("question 3 more more"), ("good answer yes 3", "bad 3 no no no", "")),
    Question(talk("question 4", "good answer", "and now! <|im_end|>"), ("good answer 4",)),
]


def section(name: Path | str, **changes: Any) -> ModelSection:
    return ModelSection(**{"name": str(name), "device": "cpu", "dtype": "float32"} | changes)


def heads_of(reward: RewardModel, questions: list[Question] = QUESTIONS) -> Tensor:
    """(answers, k) each head's scores of all answers."""
    given = list(reward.score(questions))
    assert all(scores is not None for scores in given)
    return torch.tensor([score.heads for scores in given if scores is not None for score in scores])


@dataclass(frozen=True)
class Trained:
    """A finished reward run, and what the model in memory said when it was saved.

    Attributes:
        raw: (answers of QUESTIONS, k) raw scores.
        scale: as the run saved it.
    """

    run: Path
    raw: Tensor
    scale: Scale

    @property
    def centred(self) -> Tensor:
        """(answers, k) what a loaded model must say."""
        return self.raw - torch.tensor(self.scale.bias)


def train_reward(run: Path, model: Path, data: Path, changes: dict[str, Any] | None = None) -> Trained:
    """Six steps on T, without drawing its reports."""
    few: dict[str, Any] = {"training.max_steps": 6, "training.save_every_steps": None, "lora.dropout": 0.0}
    recipe = training_tiny.recipe(
        "reward", run, model, data, few | {"training.evaluate_every_steps": None} | (changes or {})
    )
    assert isinstance(recipe, RewardRecipe)
    seen: list[Tensor] = []

    def noting(loaded: LoadedModel, *rest: Any) -> None:
        seen.append(heads_of(PackedReward(loaded, None)))
        save_model(loaded, *rest)

    def nothing_drawn(_of: Any, folder: Path | None = None) -> Path:
        return folder or run

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PREFINE_CACHE", str(run.with_name("cache")))
        patched.setattr(session, "save_model", noting)
        patched.setattr(session, "write_report", nothing_drawn)
        patched.setattr(reward_training, "write_readiness", nothing_drawn)
        reward_training.run_reward(recipe, False, Console(file=io.StringIO()))
    scale = read_scale(run / "model")
    assert scale is not None
    return Trained(run, seen[0], scale)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T, whose padding is its end of turn."""
    return training_tiny.save_model(tmp_path_factory.mktemp("base") / "T")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_tiny.write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", training_tiny.pairs(26))


@pytest.fixture(scope="module")
def trained(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """A run of each kind."""
    root = tmp_path_factory.mktemp("runs")
    return {kind: train_reward(root / kind.replace(" ", "-"), base, data, it) for kind, it in CHANGES.items()}


def asked_for(kind: str) -> dict[str, str]:
    return {"quantization": "nf4"} if kind == "nf4" else {}


# --- Loaded again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CHANGES)
def test_reloaded_scores_are_those_of_the_model_in_memory(kind: str, trained: dict[str, Trained]) -> None:
    """Bit for bit on a frozen base; all weights, once frozen, take fused forwards that round otherwise."""
    run = trained[kind]
    reward = load_reward(section(run.run, **asked_for(kind)))
    assert isinstance(reward, PackedReward)
    assert reward.scale == run.scale
    assert run.raw.shape == (4, 3 if kind == "three heads" else 1)
    assert run.raw.std(0).min() > 1e-2
    ours = heads_of(reward)
    if kind == "all weights":
        assert (ours - run.centred).abs().max() <= 1e-5
    else:
        assert torch.equal(ours, run.centred)


def test_a_new_process_gives_the_same_scores(trained: dict[str, Trained], tmp_path: Path) -> None:
    program = (
        "import sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from tests.models.test_reward import asked_for, heads_of, load_reward, section\n"
        "pairs = zip(sys.argv[2::2], sys.argv[3::2], strict=True)\n"
        "torch.save([heads_of(load_reward(section(run, **asked_for(kind)))) for kind, run in pairs], sys.argv[1])\n"
    )
    named = [str(part) for kind, run in trained.items() for part in (kind, run.run)]
    command = [sys.executable, "-c", program, str(tmp_path / "scores.pt"), *named]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    for (kind, run), there in zip(trained.items(), torch.load(tmp_path / "scores.pt"), strict=True):
        assert torch.equal(there, heads_of(load_reward(section(run.run, **asked_for(kind)))))


@pytest.mark.parametrize("kind", ["one head", "three heads"])
def test_the_scale_is_that_of_the_held_out_scores(kind: str, trained: dict[str, Trained]) -> None:
    """Mean and spread, found again by the reloaded model over the run's held-out rows."""
    run = trained[kind]
    reward = load_reward(section(run.run))
    assert isinstance(reward, PackedReward)
    heldout = TokenStore(run.run / "data" / "heldout.arrow")
    raw = torch.cat([reward.raw(trees) for trees in microbatches(heldout, 160)])
    assert Scale.of(raw, 160) == run.scale
    assert run.scale.answers == len(raw) == 2 * len(heldout)
    assert (raw - torch.tensor(run.scale.bias)).mean(0).abs().max() <= 1e-6
    assert (raw - torch.tensor(run.scale.bias)).mean(1).std().item() == pytest.approx(run.scale.std, rel=1e-5)


@pytest.mark.parametrize("kind", ["one head", "three heads", "nf4"])
def test_head_and_adapter_are_in_one_file(kind: str, trained: dict[str, Trained]) -> None:
    folder = trained[kind].run / "model"
    assert [file.name for file in folder.glob("*.safetensors")] == [ADAPTER_WEIGHTS]
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    assert adapter_head_shape(folder / ADAPTER_WEIGHTS) == (len(trained[kind].scale.bias), 32)
    assert {name.split(".")[-2] for name in tensors} == {"lora_A", "lora_B", "score"}
    assert tensors[IN_ADAPTER].dtype == torch.float32
    assert "score" in json.loads((folder / ADAPTER_CONFIG).read_text())["modules_to_save"]


@pytest.mark.parametrize("kind", ["one head", "three heads"])
def test_peft_and_transformers_alone_give_the_raw_scores(kind: str, base: Path, trained: dict[str, Trained]) -> None:
    """One unpadded sequence after another, under their own classifier and adapter."""
    run = trained[kind]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=run.raw.shape[1], dtype=torch.float32)
    whole = PeftModel.from_pretrained(model, run.run / "model").eval()
    model.config.pad_token_id = None
    reward = load_reward(section(run.run))
    assert isinstance(reward, PackedReward)
    assert (by_transformers(whole, reward, QUESTIONS) - run.raw).abs().max() <= 1e-5


@torch.no_grad()
def by_transformers(model: Any, reward: PackedReward, questions: list[Question]) -> Tensor:
    """(answers, k) scores of prefine's own tokens."""
    trees = [reward.tree(question) for question in questions]
    rows = [[*tree.prompt, *answer] for tree in trees if tree is not None for answer in tree.answers]
    return torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])


def test_a_score_head_is_never_quantised(trained: dict[str, Trained]) -> None:
    """Nor in training, nor after it; the layers below are."""
    for trainable, lora in ((True, LORA), (False, None)):
        loaded = load_model(section(trained["nf4"].run, quantization="nf4"), lora, trainable=trainable, heads=1)
        modules = dict(loaded.packed.named_modules())
        heads = [module for name, module in modules.items() if "score" in name and isinstance(module, nn.Linear)]
        assert heads
        assert all(type(head) is nn.Linear and head.weight.dtype == torch.float32 for head in heads)
        layers = [module for name, module in modules.items() if name.endswith(".base_layer")]
        assert len(layers) == 14
        assert {type(layer).__name__ for layer in layers} == {"Linear4bit"}


@pytest.mark.xfail(strict=True, reason="bug: the run's quantization is forgotten, its bias and std are not its base's")
def test_a_quantised_run_is_scored_on_the_weights_it_was_trained_on(trained: dict[str, Trained]) -> None:
    """Whoever names the run alone gets its scores, or is told; not those of a base it never saw."""
    assert torch.equal(heads_of(load_reward(section(trained["nf4"].run))), trained["nf4"].centred)


@pytest.mark.xfail(strict=True, reason="weak: all weights trained in bf16 products are rounded to bf16 at the reload")
def test_all_weights_under_bf16_products_score_alike_after_a_reload(base: Path, tmp_path: Path) -> None:
    """Trained in fp32 under autocast; embeddings, norms and the head are not to lose digits afterwards."""
    loaded = load_model(section(base, dtype="bfloat16"), None, heads=1)
    before = heads_of(PackedReward(loaded, None))
    save_model(loaded, tmp_path / "run", {SCALE_FILE: Scale((0.0,), 1.0, 2, 160).as_json()})
    after = heads_of(load_reward(section(tmp_path / "run", dtype="bfloat16")))
    assert (after - before).abs().max() <= 1e-5


# --- From one stage to the next --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model's adapter, as a run's result."""
    loaded, draw = load_model(section(base), LORA), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in loaded.trainable().values():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.1)
    run = tmp_path_factory.mktemp("sft")
    (run / "manifest.json").write_text("{}")
    save_model(loaded, run / "model")
    return run


@pytest.mark.xfail(strict=True, raises=ModelError, reason="bug: peft asks the saved adapter for the head it has not")
def test_an_sft_adapter_goes_on_as_a_reward_models(sft: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same matrices of the same rank, a fresh head beside them; saved together, loaded together."""
    policy = load_model(section(sft), LORA)
    loaded = load_model(section(sft), LoraSection(), heads=1)
    assert "keeps its own settings" in caplog.text
    weights = loaded.trainable()
    (head,) = weights.keys() - policy.trainable().keys()
    assert "score" in head
    assert all(torch.equal(weights[name], weight) for name, weight in policy.trainable().items())
    batch = collate([tiny.tree(5, 4, 3)])
    for model in (policy, loaded):
        model.packed.eval()
    with torch.no_grad():
        assert torch.equal(loaded.packed._trunk(batch), policy.packed._trunk(batch))
    expected = heads_of(PackedReward(loaded, None))
    assert expected.std() > 1e-2
    save_model(loaded, tmp_path / "reward", {SCALE_FILE: Scale((0.0,), 1.0, 2, 160).as_json()})
    tensors = load_file(tmp_path / "reward" / ADAPTER_WEIGHTS)
    before = load_file(sft / "model" / ADAPTER_WEIGHTS)
    assert tensors.keys() == before.keys() | {IN_ADAPTER}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())
    assert torch.equal(heads_of(load_reward(section(tmp_path / "reward"))), expected)


@pytest.mark.xfail(strict=True, raises=ModelError, reason="bug: peft asks the saved adapter for the head it has not")
def test_a_reward_run_on_an_sft_run(sft: Path, data: Path, tmp_path: Path) -> None:
    """Adapter and head both learn, and are both there afterwards."""
    run = train_reward(tmp_path / "run", sft, data)
    assert torch.equal(heads_of(load_reward(section(run.run))), run.centred)
    before, after = (load_file(path / "model" / ADAPTER_WEIGHTS) for path in (sft, run.run))
    assert not any(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", ["one head", "three heads", "all weights"])
def test_a_reward_run_goes_on_with_its_head(kind: str, trained: dict[str, Trained]) -> None:
    """What it learned is where further training begins; it does not draw another head."""
    run = trained[kind]
    lora = None if kind == "all weights" else LORA
    loaded = load_model(section(run.run), lora, heads=len(run.scale.bias))
    assert torch.equal(heads_of(PackedReward(loaded, None)), run.raw)
    (head,) = [weight for name, weight in loaded.trainable().items() if "score" in name]
    assert head.requires_grad


@pytest.mark.parametrize("lora", [None, LORA])
def test_another_number_of_heads_than_the_model_has_is_refused(
    lora: LoraSection | None, trained: dict[str, Trained]
) -> None:
    """A whole model's and an adapter's: the recipe's number is never forgotten."""
    whole = section(trained["all weights"].run)
    refused(lambda: load_model(whole, lora, heads=3), "reward.heads: 3, but ", "Set reward.heads to 1")
    adapter = section(trained["three heads"].run)
    refused(lambda: load_model(adapter, LORA, heads=2), "reward.heads: 2, but ", "Set reward.heads to 3")


# --- Scoring ---------------------------------------------------------------------------------------------------------


def flat(given: Iterator[list[Score] | None]) -> list[float | None]:
    return [value for scores in given for value in ([None] if scores is None else [score.score for score in scores])]


def test_scores_are_means_of_heads_with_token_counts(trained: dict[str, Trained]) -> None:
    reward = load_reward(section(trained["three heads"].run))
    for question, scores in zip(QUESTIONS, reward.score(QUESTIONS), strict=True):
        assert scores is not None
        assert len(scores) == len(question.answers)
        for answer, score in zip(question.answers, scores, strict=True):
            assert score.score == pytest.approx(sum(score.heads) / 3)
            assert score.disagreement > 0
            assert score.tokens == len(answer) + 1  # bytes and the end of turn


def test_scores_do_not_depend_on_what_is_computed_together(trained: dict[str, Trained]) -> None:
    """One tree after another, all at once, in another order, or on padded rows."""
    run = trained["one head"].run
    reward, lonely = load_reward(section(run)), load_reward(section(run))
    assert isinstance(reward, PackedReward)
    assert isinstance(lonely, PackedReward)
    lonely._max_tokens = 1
    questions = [*QUESTIONS, Question(talk("q"), ("a" * 200, "b")), *QUESTIONS]  # the middle one is too long
    together, alone = flat(reward.score(questions)), flat(lonely.score(questions))
    padded, backwards = flat(reward.score_padded(questions)), flat(reward.score(reversed(questions)))
    assert [value is None for value in together] == [False] * 4 + [True] + [False] * 4
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(padded, abs=1e-5)
    assert backwards == pytest.approx([*together[8:9], *together[5:8], None, together[3], *together[:3]], abs=1e-5)
    assert reward.loaded.packed.packed
    assert flat(reward.score(questions)) == together  # the packed path is taken again


def test_scoring_reads_no_further_than_needed(trained: dict[str, Trained]) -> None:
    """A stream is scored while it is read."""
    reward = load_reward(section(trained["one head"].run))
    assert isinstance(reward, PackedReward)
    reward._max_tokens = 100
    read = itertools.count()
    stream = (Question(talk(f"question {next(read)}"), ("good", "bad")) for _ in range(300))
    first = list(itertools.islice(reward.score(stream), 5))
    assert all(scores is not None and len(scores) == 2 for scores in first)
    assert next(read) < 15
    assert list(reward.score([])) == []


def test_long_prompts_are_cut_from_the_left_to_the_length_of_the_training(trained: dict[str, Trained]) -> None:
    """160 tokens with the longest answer, as the run's rows were cut."""
    reward = load_reward(section(trained["one head"].run))
    assert isinstance(reward, PackedReward)
    question = Question(talk("x" * 300 + "what now"), ("good answer", "bad"))
    tree = reward.tree(question)
    assert tree is not None
    assert len(tree.prompt) + len("good answer") + 1 == 160
    assert reward.tokenizer.decode(tree.prompt).endswith("what now<|im_end|>\n<|im_start|>assistant\n")
    assert reward.tree(Question(talk("q"), ("a" * 158,))) is not None
    assert reward.tree(Question(talk("q"), ("a" * 159,))) is None


def test_a_model_in_training_stays_in_training(base: Path) -> None:
    """Scores are read without dropout, and the mode is given back."""
    loaded = load_model(section(base), LoraSection(r=4, dropout=0.5), heads=1)
    reward = PackedReward(loaded, None)
    for training in (True, False):
        loaded.packed.train(training)
        assert torch.equal(heads_of(reward), heads_of(reward))
        assert loaded.packed.training is training


def test_padded_scores_taken_in_part_leave_the_model_packed(trained: dict[str, Trained]) -> None:
    reward = load_reward(section(trained["one head"].run))
    assert isinstance(reward, PackedReward)
    padded = reward.score_padded(QUESTIONS)
    next(padded)
    assert reward.loaded.packed.packed
    padded.close()


@pytest.mark.xfail(strict=True, raises=IndexError, reason="bug: last_tokens() of no answers is no index")
def test_a_question_without_answers_has_no_scores(trained: dict[str, Trained]) -> None:
    assert list(load_reward(section(trained["one head"].run)).score([Question(talk("q"), ())])) == [[]]


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


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "are", "you", "I", "am", "a", "good", "bad", "bot", "yes"]


def save_bert(folder: Path, labels: int = 1, longest: int = 12) -> Path:
    """A cross-encoder that takes `longest` tokens; texts are words of WORDS."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=inputs, **names).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=longest, num_labels=labels, **sizes)
    model = BertForSequenceClassification(config)
    tiny.random_weights(model)
    with torch.no_grad():
        model.classifier.weight.mul_(5)
    model.save_pretrained(folder)
    return folder


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
    scale = Scale.of(torch.tensor([[1.0, 10.0], [3.0, 14.0], [5.0, 12.0]]), 160)
    assert scale.bias == (3.0, 12.0)
    assert scale.std == pytest.approx(math.sqrt(3))
    assert (scale.answers, scale.max_length_tokens) == (3, 160)


def test_a_scale_survives_its_file(tmp_path: Path) -> None:
    scale = Scale((0.1, -1 / 3), math.pi, 14, 160)
    (tmp_path / SCALE_FILE).write_text(json.dumps(scale.as_json()))
    assert read_scale(tmp_path) == scale
    assert read_scale(tmp_path / "nowhere") is None


@pytest.mark.parametrize("raw", [[[2.0], [2.0], [2.0]], [[1.0]], [[1.0], [math.nan]], [[1.0, 2.0], [2.0, 1.0]]])
def test_scores_that_do_not_differ_have_no_scale(raw: list[list[float]]) -> None:
    """Equal ones, a single one, not a number, and heads that cancel each other."""
    with pytest.raises(ModelError, match="the held-out scores do not differ") as caught:
        Scale.of(torch.tensor(raw), 160)
    assert "training.learning_rate" in caught.value.remedy


@pytest.mark.parametrize(
    ("heads", "disagreement"), [((2.0,), 0.0), ((1.0, 3.0), 1.0), ((1.0, 1.0, 4.0), math.sqrt(2)), ((5.0, 5.0), 0.0)]
)
def test_disagreement_is_the_standard_deviation_over_heads(heads: tuple[float, ...], disagreement: float) -> None:
    assert Score(0.0, heads, 3).disagreement == pytest.approx(disagreement)


# --- What is no reward model, or no longer one -----------------------------------------------------------------------


def refused(load: Callable[[], object], problem: str, remedy: str) -> None:
    """One ModelError in one line."""
    with pytest.raises(PrefineError) as caught:
        load()
    assert type(caught.value) is ModelError
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def change_head(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    change(tensors)
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})


@pytest.fixture
def copy(trained: dict[str, Trained], tmp_path: Path) -> Path:
    """The model folder of the run with one head, to be broken."""
    return shutil.copytree(trained["one head"].run / "model", tmp_path / "copy")


def test_language_models_have_no_scores(base: Path, sft: Path) -> None:
    """A whole one and an adapter."""
    refused(lambda: load_reward(section(base)), "is a language model without a score head", "Name a reward run")
    refused(lambda: load_reward(section(sft)), "has no score head: it is a language model's", "Name a reward run")


def test_a_head_without_its_adapter_or_an_adapter_without_its_head(copy: Path, trained: dict[str, Trained]) -> None:
    """Neither is loaded without the other, and nothing that is too much is passed by."""
    whole = load_file(copy / ADAPTER_WEIGHTS)
    change_head(copy, lambda tensors: [tensors.pop(name) for name in list(tensors) if "lora_B" in name])
    refused(lambda: load_reward(section(copy)), "14 weights of the adapter", "Use the base model")
    save_file({name: tensor for name, tensor in whole.items() if name != IN_ADAPTER}, copy / ADAPTER_WEIGHTS)
    refused(lambda: load_reward(section(copy)), "has no score head", "Name a reward run")
    save_file(whole | {"base_model.model.score.bias": torch.zeros(1)}, copy / ADAPTER_WEIGHTS)
    refused(lambda: load_reward(section(copy)), "of the adapter", "Use the base model")


def test_a_whole_reward_model_without_its_head(trained: dict[str, Trained], tmp_path: Path) -> None:
    folder = shutil.copytree(trained["all weights"].run / "model", tmp_path / "headless")
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(lambda: load_reward(section(folder)), "without a score head", "Name a reward run")


@pytest.mark.xfail(strict=True, reason="bug: a fresh head is drawn in the place of the lost one, and nothing is said")
@pytest.mark.parametrize("lora", [None, LORA])
def test_training_does_not_go_on_from_a_classifier_that_lost_its_head(lora: LoraSection | None, tmp_path: Path) -> None:
    """Its config says that it has one: missing weights are fatal there, too."""
    folder = save_classifier(tmp_path / "headless")
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(lambda: load_model(section(folder), lora, heads=1), "score", "")


def test_a_head_of_another_hidden_size(copy: Path) -> None:
    """The adapter's, and a whole model's."""
    change_head(copy, lambda tensors: tensors.update({IN_ADAPTER: torch.zeros(1, 48)}))
    said = "is made for hidden size 48, its base model has 32"
    refused(lambda: load_reward(section(copy)), said, "Use the base model it was trained on")
    refused(lambda: load_model(section(copy), LORA, heads=1), said, "Use the base model it was trained on")


def test_a_whole_model_with_a_head_of_another_hidden_size(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "foreign")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"score.weight": torch.zeros(1, 48)}, folder / "model.safetensors", {"format": "pt"})
    refused(lambda: load_reward(section(folder)), "has other shapes for 1 of the weights", "fetch the model again")


def test_classifiers_with_several_labels(tmp_path: Path) -> None:
    """On a decoder and on an encoder."""
    for folder in (save_classifier(tmp_path / "llama", labels=2), save_bert(tmp_path / "bert", labels=5)):
        refused(lambda folder=folder: load_reward(section(folder)), "labels, not one score", "with one label")


DAMAGED = {
    "cut": '{"bias": [0.1], "st',
    "a list": "[1, 2]",
    "null": "null",
    "no bias": '{"std": 1.0, "answers": 2, "max_length_tokens": 160, "format": 1}',
    "no std": '{"bias": [0.1], "answers": 2, "max_length_tokens": 160, "format": 1}',
    "no format": '{"bias": [0.1], "std": 1.0, "answers": 2, "max_length_tokens": 160}',
    "an unknown field": '{"bias": [0.1], "std": 1.0, "answers": 2, "max_length_tokens": 160, "format": 1, "x": 1}',
    "a later format": '{"bias": [0.1], "std": 1.0, "answers": 2, "max_length_tokens": 160, "format": 2}',
    "text as bias": '{"bias": ["high"], "std": 1.0, "answers": 2, "max_length_tokens": 160, "format": 1}',
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_scale(case: str, copy: Path) -> None:
    (copy / SCALE_FILE).write_text(DAMAGED[case])
    refused(lambda: load_reward(section(copy)), f"{SCALE_FILE} cannot be understood", "Train the reward model again")


@pytest.mark.xfail(strict=True, reason="bug: only the bias is checked")
@pytest.mark.parametrize(
    "values",
    [{"std": None}, {"std": "1"}, {"std": 0}, {"std": math.nan}, {"bias": [math.inf]}, {"max_length_tokens": "160"}],
    ids=str,
)
def test_a_scale_whose_values_cannot_be(values: dict[str, Any], copy: Path) -> None:
    (copy / SCALE_FILE).write_text(json.dumps(json.loads((copy / SCALE_FILE).read_text()) | values))
    refused(lambda: load_reward(section(copy)), f"{SCALE_FILE} cannot be understood", "Train the reward model again")


@pytest.mark.parametrize("bias", [[], [0.1, 0.2]])
def test_a_scale_of_another_number_of_heads(bias: list[float], copy: Path) -> None:
    (copy / SCALE_FILE).write_text(json.dumps(Scale(tuple(bias), 1.0, 2, 160).as_json()))
    said = f"{SCALE_FILE} knows {len(bias)} heads, the weights have 1"
    refused(lambda: load_reward(section(copy)), said, "They belong to different models")


def test_a_reward_adapter_is_no_policy(trained: dict[str, Trained]) -> None:
    for lora, trainable in ((LORA, True), (None, False)):
        refused(
            lambda lora=lora, trainable=trainable: load_model(
                section(trained["one head"].run), lora, trainable=trainable
            ),
            "is a reward model's, which gives scores and writes no text",
            "Name a language model",
        )


@pytest.mark.xfail(strict=True, reason="bug: with tied embeddings it loads, with others the message misleads")
@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_reward_model_is_no_policy(tied: bool, tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "reward", tie_word_embeddings=tied)
    refused(lambda: load_model(section(folder), LORA), "gives scores and writes no text", "Name a language model")


def test_an_architecture_without_a_classifier(tmp_path: Path) -> None:
    folder = tiny.save_folder(tmp_path / "granite", "granite")
    refused(lambda: load_model(section(folder), LORA, heads=1), "could not be loaded (ValueError: Unrecognized", "")


def test_an_architecture_whose_classifier_has_another_head(tmp_path: Path) -> None:
    """CTRL's is no `score`."""
    said, remedy = "a head of its own kind", "Train a reward model on a decoder"
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
    refused(lambda: load_reward(section(bert)), "of its weights (classifier.bias", "no trained reward model")
    (bert / "config.json").write_text('{"model_type": "nothing-known"}')
    refused(lambda: load_reward(section(bert)), "could not be loaded", "Check the name")
