"""A reward model that is loaded again, here or elsewhere, gives the scores it gave when its training ended."""

from __future__ import annotations

import io
import itertools
import json
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
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
)

from prefine.data.reading.rows import Problem
from prefine.data.tokens.store import TokenStore
from prefine.data.tokens.trees import collate, microbatches
from prefine.errors import ModelError, PrefineError
from prefine.models.loading.heads import IN_ADAPTER, adapter_head_shape
from prefine.models.loading.load import LoadedModel, load_model, save_model
from prefine.models.loading.location import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from prefine.models.loading.weights import SCALE_FILE
from prefine.models.scoring.packed_scorer import PackedReward, load_reward, read_scale
from prefine.models.scoring.scorer import Question, RewardModel, Score, ScoreScale
from prefine.recipe.reward import RewardRecipe
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.records import Conversation, Message
from prefine.training.run import run_stage as session
from prefine.training.stages import readiness as readiness_module
from prefine.training.stages import reward as reward_training
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


UNIT_SCALE = ScoreScale(bias=(0.0,), std=1.0, answers=2, max_length_tokens=160)
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
    scale: ScoreScale

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
        patched.setattr(readiness_module, "write_readiness", nothing_drawn)
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


def refused(load: Callable[[], object], problem: str, remedy: str) -> None:
    """One ModelError in one line."""
    with pytest.raises(PrefineError) as caught:
        load()
    assert type(caught.value) is ModelError
    assert problem in str(caught.value)
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


# --- Loaded again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CHANGES)
def test_reloaded_scores_are_those_of_the_model_in_memory(kind: str, trained: dict[str, Trained]) -> None:
    """Bit for bit on a frozen base; all weights, once frozen, take fused forwards that round otherwise."""
    run = trained[kind]
    reward = load_reward(section(run.run))
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
        "from tests.models.scoring.test_packed_scorer import heads_of, load_reward, section\n"
        "torch.save([heads_of(load_reward(section(run))) for run in sys.argv[2:]], sys.argv[1])\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "scores.pt"), *(str(one.run) for one in trained.values())]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])
    for run, there in zip(trained.values(), torch.load(tmp_path / "scores.pt"), strict=True):
        assert torch.equal(there, heads_of(load_reward(section(run.run))))


@pytest.mark.parametrize("kind", ["one head", "three heads"])
def test_the_scale_is_that_of_the_held_out_scores(kind: str, trained: dict[str, Trained]) -> None:
    """Mean and spread, found again by the reloaded model over the run's held-out rows."""
    run = trained[kind]
    reward = load_reward(section(run.run))
    assert isinstance(reward, PackedReward)
    heldout = TokenStore(run.run / "data" / "heldout.arrow")
    raw = torch.cat([reward.raw(trees) for trees in microbatches(heldout, 160)])
    assert ScoreScale.of(raw, 160, compute_dtype="float32") == run.scale
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
    trees = [tree for question in questions for tree in reward.trees(question) or ()]
    rows = [[*tree.prompt, *answer] for tree in trees for answer in tree.answers]
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


@pytest.mark.parametrize("asked", ["none", "nf4", "int8"])
@pytest.mark.parametrize("kind", ["nf4", "one head"])
def test_a_run_is_scored_on_weights_as_it_was_trained_on(kind: str, asked: str, trained: dict[str, Trained]) -> None:
    """Quantized like those that its bias and std were measured on, whatever is asked for."""
    run = trained[kind]
    assert run.scale.quantization == ("nf4" if kind == "nf4" else "none")
    assert torch.equal(heads_of(load_reward(section(run.run, quantization=asked))), run.centred)


@pytest.mark.parametrize(
    ("trained_in", "asked", "computed_in"),
    [
        ("bfloat16", "auto", torch.bfloat16),
        ("float32", "auto", torch.float32),
        ("bfloat16", "float32", torch.float32),
        ("float32", "bfloat16", torch.bfloat16),
    ],
)
def test_a_run_is_scored_in_the_type_of_its_training_unless_another_is_asked_for(
    trained_in: str, asked: str, computed_in: torch.dtype, trained: dict[str, Trained], tmp_path: Path
) -> None:
    """ "auto" would be the device's choice, which may be another machine's."""
    folder = Path(shutil.copytree(trained["one head"].run, tmp_path / "copy")) / "model"
    scale = trained["one head"].scale.model_copy(update={"compute_dtype": trained_in})
    (folder / SCALE_FILE).write_text(json.dumps(scale.as_json()))
    reward = load_reward(section(folder, dtype=asked))
    assert isinstance(reward, PackedReward)
    assert reward.loaded.packed.compute_dtype == computed_in


def test_all_weights_under_bf16_products_score_alike_after_a_reload(base: Path, tmp_path: Path) -> None:
    """Trained in fp32 under autocast; embeddings, norms and the head are not to lose digits afterwards."""
    loaded = load_model(section(base, dtype="bfloat16"), None, heads=1)
    before = heads_of(PackedReward(loaded, None))
    save_model(loaded, tmp_path / "run", {SCALE_FILE: UNIT_SCALE.as_json()})
    reward = load_reward(section(tmp_path / "run", dtype="bfloat16"))
    assert isinstance(reward, PackedReward)
    assert reward.loaded.packed.compute_dtype == torch.bfloat16
    assert {weight.dtype for weight in reward.loaded.packed.parameters()} == {torch.float32}
    after = heads_of(reward)
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
    save_model(loaded, tmp_path / "reward", {SCALE_FILE: UNIT_SCALE.as_json()})
    tensors = load_file(tmp_path / "reward" / ADAPTER_WEIGHTS)
    before = load_file(sft / "model" / ADAPTER_WEIGHTS)
    assert tensors.keys() == before.keys() | {IN_ADAPTER}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())
    assert torch.equal(heads_of(load_reward(section(tmp_path / "reward"))), expected)


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
    assert reward.loaded.packed.path.packed
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
    """160 tokens with the answer, each prompt for its own: another answer takes none of it away."""
    reward = load_reward(section(trained["one head"].run))
    assert isinstance(reward, PackedReward)
    asked, answers = talk("x" * 300 + "what now"), ("good answer", "bad")
    trees = reward.trees(Question(asked, answers))
    assert trees is not None
    for tree, text in zip(trees, answers, strict=True):
        assert [reward.tokenizer.decode(answer) for answer in tree.answers] == [f"{text}<|im_end|>"]
        assert len(tree.prompt) + len(text) + 1 == 160
        assert reward.tokenizer.decode(tree.prompt).endswith("what now<|im_end|>\n<|im_start|>assistant\n")
    alone = [value for text in answers for value in flat(reward.score([Question(asked, (text,))]))]
    among = [*QUESTIONS, Question(asked, answers), *QUESTIONS]
    assert flat(reward.score(among))[4:6] == pytest.approx(alone, abs=1e-5)
    assert flat(reward.score_padded(among))[4:6] == pytest.approx(alone, abs=1e-5)


def test_a_prompt_that_need_not_be_cut_is_computed_once(trained: dict[str, Trained]) -> None:
    """Whether it must says the longest answer; one that leaves no room, not even for the role headers, takes the whole
    question with it."""
    reward = load_reward(section(trained["one head"].run))
    assert isinstance(reward, PackedReward)
    asked = talk("what")
    room = 160 - len(reward.loaded.template.prompt_ids(asked)) - 1  # and the end of turn
    for longest, trees in ((room, 1), (room + 1, 2), (room + 3, 2)):
        found = reward.trees(Question(asked, ("a" * longest, "b")))
        assert found is not None
        assert len(found) == trees
    question = Question(asked, ("a" * (room + 4), "b"))
    assert reward.trees(question) is None
    assert reward.problem(question) == Problem("completion", "leaves its prompt no room within the model's length")


def test_a_question_that_the_template_refuses_has_no_scores_and_a_reason(trained: dict[str, Trained]) -> None:
    reward = load_reward(section(trained["one head"].run))
    refused = Question(talk("what"), ("good",), tools=({"type": "function", "function": {"name": "f"}},))
    scores = list(reward.score([QUESTIONS[0], refused, QUESTIONS[1]]))
    assert [each is None for each in scores] == [False, True, False]
    assert reward.problem(refused) == Problem("tools", "are given, and the chat template writes no tool definitions")


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
    assert reward.loaded.packed.path.packed
    padded.close()


def test_a_question_without_answers_has_no_scores(trained: dict[str, Trained]) -> None:
    """Alone, behind others, and where its prompt is too long."""
    reward = load_reward(section(trained["one head"].run))
    short, long = Question(talk("q"), ()), Question(talk("q" * 300), ())
    assert list(reward.score([short])) == [[]]
    assert list(reward.score([long])) == [[]]
    assert [len(scores or ()) for scores in reward.score([short, *QUESTIONS, long])] == [0, 3, 1, 0]


def test_a_question_without_answers_has_no_scores_on_padded_rows_either(trained: dict[str, Trained]) -> None:
    """So it goes with models that cannot be packed."""
    reward = load_reward(section(trained["one head"].run))
    assert list(reward.score_padded([Question(talk("q"), ())])) == [[]]


def test_answers_that_together_exceed_what_is_computed_at_once_are_scored_in_parts(base: Path) -> None:
    loaded = load_model(section(base), LORA, heads=1)
    question = Question(talk("Which one?"), [f"answer {'so ' * n}" for n in range(12)])
    whole, parted = PackedReward(loaded, None), PackedReward(loaded, None, max_tokens=100)
    assert len(whole.trees(question) or ()) == 1
    trees = parted.trees(question) or []
    assert len(trees) > 2
    assert all(tree.tokens <= 100 for tree in trees)
    torch.testing.assert_close(heads_of(parted, [question]), heads_of(whole, [question]), rtol=0, atol=1e-5)
