"""A merged reward model gives the run's scores to who knows transformers alone, under padding on either side."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefine.data.tokens.template_source import PLAIN_TEMPLATE
from prefine.errors import CheckpointError, ModelError
from prefine.export import reward_model as merge
from prefine.export.reward_model import merge_reward
from prefine.models.forward import attention
from prefine.models.loading.load import load_model, save_model
from prefine.models.loading.weights import SCALE_FILE
from prefine.models.scoring.packed_scorer import PackedReward, load_reward, read_scale
from prefine.models.scoring.scorer import Question, ScoreScale
from tests.models import tiny
from tests.models.loading.test_heads import GPT2_NAMES, ONLY_END, tokenizer
from tests.models.scoring.test_packed_scorer import LORA, QUESTIONS, heads_of, section, talk, train_reward
from tests.models.test_reward_others import save_bert, save_classifier
from tests.training import tiny as training_tiny

# name -> how it was made, the type it is merged into, how far its scores may be from the run's, in standard deviations
CASES: dict[str, tuple[str, str, float]] = {
    "one head": ("one head", "float32", 1e-4),
    "three heads": ("three heads", "float32", 1e-4),
    "all weights": ("all weights", "float32", 1e-4),
    "tied": ("tied", "float32", 1e-4),
    "unpackable": ("unpackable", "float32", 1e-4),
    "bfloat16": ("three heads", "bfloat16", 0.1),
}
# transformers' rendering, tokenized, would make control tokens of those that a user writes: none in these.
TEXTS = [QUESTIONS[0], Question(talk("question 4", "good answer", "and now!"), ("good answer 4", "no\n\nnever"))]
WEIGHTS = "model.safetensors"
# As anybody would: render, pad, score. The template's line break behind the end of turn is no part of the answer.
BY_TRANSFORMERS_ALONE = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

torch.set_num_threads(1)
chats, scores = json.loads(sys.argv[2]), {}
for folder in sys.argv[3:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\\n") for chat in chats]
    for side in ("left", "right"):
        for longer in (0, 8):
            batch = tokenizer(
                texts, padding=True, padding_side=side, pad_to_multiple_of=longer or None, add_special_tokens=False,
                return_tensors="pt",
            )
            with torch.no_grad():
                scores[f"{folder} {side} {longer}"] = model(**batch).logits.float()
assert "prefine" not in sys.modules
torch.save(scores, sys.argv[1])
"""


@dataclass(frozen=True)
class Merged:
    """A reward model of prefine, and the folder it was merged into.

    Attributes:
        source: the run, or a folder like a run's.
        apart: what `merge_reward` returned.
    """

    source: Path
    folder: Path
    apart: float


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Merged]:
    """All CASES."""
    root = tmp_path_factory.mktemp("merge")
    base = training_tiny.save_model(root / "T")
    data = training_tiny.write_rows(root / "pairs.jsonl", training_tiny.pairs(26))
    sources = {
        "one head": train_reward(root / "one", base, data).run,
        "three heads": train_reward(root / "three", base, data, {"reward.heads": 3}).run,
        "all weights": train_reward(root / "whole", base, data, {"lora": None}).run,
        "tied": random_reward(root / "tied", tie_word_embeddings=True),
        "unpackable": random_reward(root / "bloom", "bloom"),
    }
    found = {}
    for number, (name, (source, dtype, _)) in enumerate(CASES.items()):
        folder = root / f"merged{number}"
        found[name] = Merged(sources[source], folder, merge_reward(str(sources[source]), folder, dtype))
    return found


def random_reward(folder: Path, architecture: str = "llama", **overrides: Any) -> Path:
    """An adapter with two heads on a random model; as a reward run's result."""
    return random_adapter(folder, tiny.save_folder(folder / "base", architecture, **overrides))


def random_adapter(folder: Path, base: Path, **settings: Any) -> Path:
    """An adapter with two heads, its matrices random, and a scale that `settings` of a recipe's model are part of."""
    torch.manual_seed(0)
    loaded, draw = load_model(section(base, **settings), LORA, heads=2), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in loaded.trainable().values():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.1)
    scale = ScoreScale.of(heads_of(PackedReward(loaded, None)), 160, **settings)
    save_model(loaded, folder / "reward", {SCALE_FILE: scale.as_json()})
    return folder / "reward"


def raw_mean(source: Path) -> Tensor:
    """(answers of TEXTS,) raw scores of a run or a merged folder, mean over its heads."""
    reward = load_reward(section(source))
    assert reward.scale is not None
    return (heads_of(reward, TEXTS) + torch.tensor(reward.scale.bias)).mean(1)


@pytest.fixture(scope="module")
def elsewhere(merged: dict[str, Merged], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Scores (answers, 1) of all merged folders by "FOLDER SIDE LONGER", from a process that knows no prefine."""
    chats = [
        [message.model_dump() for message in question.prompt] + [{"role": "assistant", "content": answer}]
        for question in TEXTS
        for answer in question.answers
    ]
    root = tmp_path_factory.mktemp("elsewhere")
    folders = [str(each.folder) for each in merged.values()]
    command = [sys.executable, "-c", BY_TRANSFORMERS_ALONE, str(root / "scores.pt"), json.dumps(chats), *folders]
    subprocess.run(command, check=True, cwd=root)
    scores: dict[str, Tensor] = torch.load(root / "scores.pt")
    return scores


@pytest.mark.parametrize("longer", [0, 8])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_transformers_alone_gives_the_scores_of_the_run(
    case: str, side: str, longer: int, merged: dict[str, Merged], elsewhere: dict[str, Tensor]
) -> None:
    """In a new process, in one batch of answers of different lengths, padded on either side and further than needed."""
    one = merged[case]
    scale = read_scale(one.folder)
    assert scale is not None
    expected = raw_mean(one.source)
    found = elsewhere[f"{one.folder} {side} {longer}"]
    assert found.shape == (5, 1)
    assert (found[:, 0] - expected).abs().max() <= CASES[case][2] * scale.std
    assert expected.std() > 2 * CASES[case][2] * scale.std


@pytest.mark.parametrize("case", CASES)
def test_a_merge_says_how_far_its_scores_are_from_the_runs(case: str, merged: dict[str, Merged]) -> None:
    """Rounding alone in float32; in bfloat16 more, and not nothing."""
    assert 0 <= merged[case].apart <= CASES[case][2]
    assert case != "bfloat16" or merged[case].apart > 1e-4


@pytest.mark.parametrize("case", [name for name in CASES if name != "bfloat16"])
def test_a_merged_folder_is_a_reward_model_of_prefine(case: str, merged: dict[str, Merged]) -> None:
    """It gives the run's centred scores, read where the run reads them, with one head: the mean."""
    one = merged[case]
    run, reward = load_reward(section(one.source)), load_reward(section(one.folder))
    assert run.scale is not None
    assert reward.scale is not None
    assert reward.scale.bias == pytest.approx((sum(run.scale.bias) / len(run.scale.bias),))
    assert (reward.scale.std, reward.scale.answers) == (run.scale.std, run.scale.answers)
    assert reward.scale.max_length_tokens == run.scale.max_length_tokens == 160
    ours = heads_of(reward)
    assert ours.shape == (4, 1)
    assert (ours[:, 0] - heads_of(run).mean(1)).abs().max() <= 1e-4 * run.scale.std
    assert (raw_mean(one.folder) - raw_mean(one.source)).abs().max() <= 1e-4 * run.scale.std


@pytest.mark.parametrize("case", CASES)
def test_what_lies_in_a_merged_folder(case: str, merged: dict[str, Merged]) -> None:
    """One label, weights of the type asked for, padding that ends no turn, nothing of peft's or prefine's in it."""
    folder = merged[case].folder
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / WEIGHTS)
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["id2label"] == {"0": "LABEL_0"}
    assert attention.NAME not in (folder / "config.json").read_text()
    assert not [name for name in tensors if "lora" in name or "lm_head" in name or "modules_to_save" in name]
    assert tensors["score.weight"].shape[0] == 1
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, CASES[case][1])}
    assert config["pad_token_id"] != config["eos_token_id"]
    assert not (folder / "adapter_config.json").exists()
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= {p.name for p in folder.iterdir()}


def test_the_run_is_left_as_it_was(tmp_path: Path) -> None:
    source = random_reward(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    merge_reward(str(source), tmp_path / "merged")
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert {path.parent for path in after.keys() - before.keys()} == {tmp_path / "merged"}
    card = (tmp_path / "merged" / "README.md").read_text("utf-8")  # no path of this machine is published
    assert str(tmp_path) not in card


def test_a_run_that_was_named_from_the_working_directory_is_found_from_the_merged_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random_reward(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    merge_reward(source.name, Path("elsewhere/merged"))
    said = re.search("added the adapter of `(.+?)`", (tmp_path / "elsewhere" / "merged" / "README.md").read_text())
    assert said is not None
    assert said[1] == f"../../{source.name}"


@pytest.mark.parametrize("merge_first", [False, True])
def test_merging_a_merged_model_again_changes_nothing(
    merge_first: bool, merged: dict[str, Merged], tmp_path: Path
) -> None:
    """A copy in another type, say."""
    source = merged["one head"].folder if merge_first else merged["one head"].source
    assert merge_reward(str(source), tmp_path / "again") <= 1e-4
    ours, theirs = load_file(tmp_path / "again" / WEIGHTS), load_file(merged["one head"].folder / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_merge_without_padding_scores_alike_row_by_row(tmp_path: Path) -> None:
    """Where the only special token ends turns, nothing is padding, and transformers says so of more than one row."""
    words = tokenizer(ONLY_END, PLAIN_TEMPLATE, **GPT2_NAMES)
    words.save_pretrained(tmp_path / "base")
    size = len(words)
    tiny.make("llama", vocab_size=size, eos_token_id=size - 1, pad_token_id=size - 1).save_pretrained(tmp_path / "base")
    source, folder = random_adapter(tmp_path, tmp_path / "base"), tmp_path / "merged"
    assert merge_reward(str(source), folder) <= 1e-4
    assert (raw_mean(folder) - raw_mean(source)).abs().max() <= 1e-4
    assert AutoTokenizer.from_pretrained(folder).pad_token_id is None
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.pad_token_id is None
    with pytest.raises(ValueError, match="no padding token"):
        model(input_ids=torch.tensor([[5, 6], [7, 8]]))


# --- Refusals --------------------------------------------------------------------------------------------------------


def refused(
    kind: type[ModelError] | type[CheckpointError], problem: str, remedy: str, name: Path, folder: Path, **asked: str
) -> None:
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(kind) as caught:
        merge_reward(str(name), folder, **asked)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before  # nothing half-written, nothing changed


def test_an_existing_folder_is_not_overwritten(merged: dict[str, Merged], tmp_path: Path) -> None:
    """Not even an empty one."""
    source, taken = merged["one head"].source, tmp_path / "taken"
    taken.mkdir()
    refused(CheckpointError, "is there already", "Name a folder that is not", source, taken)
    (taken / "mine.txt").write_text("mine")
    refused(CheckpointError, "is there already", "Name a folder that is not", source, taken)
    refused(CheckpointError, "is there already", "Name a folder that is not", tmp_path / "nothing", taken)  # at once
    refused(CheckpointError, "there is no folder", "Create it first", source, tmp_path / "nowhere" / "merged")


def test_what_is_no_reward_run_is_refused(tmp_path: Path) -> None:
    """A language model, its adapter, and classifiers of others, which nobody measured."""
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "merged"
    language = tiny.save_folder(tmp_path / "llama")
    save_model(load_model(section(language), LORA), tmp_path / "adapter")
    refused(ModelError, "has no score head", "Name a reward run", language, out)
    refused(ModelError, "has no score head", "Name a reward run", tmp_path / "adapter", out)
    for foreign in (save_classifier(tmp_path / "foreign"), save_bert(tmp_path / "bert")):
        refused(ModelError, "is no reward run of prefine", "that prefine reward has trained", foreign, out)


def test_an_unknown_type_is_refused(merged: dict[str, Merged], tmp_path: Path) -> None:
    source = merged["one head"].source
    for dtype in ("float16", "int8", ""):
        refused(ModelError, "--dtype: ", "float32, bfloat16", source, tmp_path / "merged", dtype=dtype)


def test_a_merge_that_scores_otherwise_is_not_kept(
    merged: dict[str, Merged], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the adapter's deltas lost on the way, the scores would tell (pitfalls 8 and 10)."""

    def without_deltas(reward: PackedReward, dtype: torch.dtype) -> Any:
        for module in reward.loaded.packed.modules():
            if hasattr(module, "lora_B"):
                torch.nn.init.zeros_(module.lora_B["default"].weight)
        return rightly(reward, dtype)

    rightly = merge._merged
    monkeypatch.setattr(merge, "_merged", without_deltas)
    for dtype in ("float32", "bfloat16"):
        refused(
            CheckpointError,
            "standard deviations from those of",
            "Merge in float32",
            merged["one head"].source,
            tmp_path / "merged",
            dtype=dtype,
        )


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_run_is_merged_into_the_weights_that_it_saw(tmp_path: Path, quantization: str) -> None:
    """Its scores are the run's, and not those of its adapter on the weights that the base had before."""
    pytest.importorskip("bitsandbytes")
    source = random_adapter(tmp_path, tiny.save_folder(tmp_path / "base"), quantization=quantization)
    apart = merge_reward(str(source), tmp_path / "merged")
    scale = read_scale(tmp_path / "merged")
    assert scale is not None
    assert scale.quantization == "none"
    probes = merge.probe_scores(str(source))
    whole = load_model(section(source), None, trainable=False, heads=2)
    elsewhere = probes.apart(PackedReward(whole, read_scale(source)).raw(probes.trees).mean(1))
    assert apart < (1e-4 if quantization == "nf4" else 0.1)  # int8 products also round activations
    assert elsewhere > apart
    assert elsewhere > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_is_computed_in_the_type_it_is_saved_in(
    dtype: str, merged: dict[str, Merged], tmp_path: Path
) -> None:
    """Deltas that fp32 weights hold are rounded off them in bf16, whatever the run was computed in."""
    merge_reward(str(merged["one head"].source), tmp_path / "merged", dtype)
    assert json.loads((tmp_path / "merged" / "reward.json").read_text())["compute_dtype"] == dtype
