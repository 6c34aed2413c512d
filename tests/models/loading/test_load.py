"""What a recipe names is loaded whole and right, and what is saved loads again, here and in a new process."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefine.data.tokens.trees import PackedBatch, collate
from prefine.errors import MissingDependencyError, ModelError, RecipeError
from prefine.models.forward import attention
from prefine.models.loading.load import LoadedModel, load_model, save_model
from prefine.models.loading.weights import saved_weights
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.recipe.sft import SftRecipe
from prefine.records import Message
from tests.models import tiny
from tests.models.tiny import alone, tree

LORA = LoraSection(r=4, alpha=8.0)
# In byte tokens, for the models of save_folder.
BATCH = collate([tree(9, 8, 7, vocabulary=256), tree(3, 12, vocabulary=256)])


def section(name: Path | str, **changes: Any) -> ModelSection:
    return ModelSection(**{"name": str(name), "device": "cpu", "dtype": "float32"} | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with tied embeddings and a byte-level tokenizer."""
    return tiny.save_folder(tmp_path_factory.mktemp("base") / "llama", tie_word_embeddings=True)


def train_a_step(loaded: LoadedModel, batch: PackedBatch = BATCH) -> Tensor:
    """One plain gradient step; returns its gradient's norm."""
    weights = list(loaded.trainable().values())
    loss = -loaded.packed(batch).mean()
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.sub_(0.1 * gradient)
    return torch.stack([g.norm() for g in gradients if g is not None]).norm()


def logprobs(loaded: LoadedModel) -> Tensor:
    loaded.packed.eval()
    with torch.no_grad():
        return loaded.packed(BATCH)


def test_a_folder_is_loaded_for_lora(folder: Path) -> None:
    """Frozen weights, trainable adapter, packed forward, fast modules, no gradient left by the probes."""
    loaded = load_model(section(folder), LORA)
    assert loaded.fallback is None
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in loaded.trainable()} == {"default"}
    assert {name.split(".")[-3] for name in loaded.trainable()} == {"lora_A", "lora_B"}
    assert loaded.faster == {"lora": 14, "norm": 5, "gated_mlp": 2}
    assert all(weight.grad is None for weight in loaded.packed.parameters())
    with torch.no_grad():
        assert (logprobs(loaded) - alone(loaded.packed, BATCH)).abs().max() <= 1e-5
    facts = loaded.describe()
    assert facts["forward"] == "packed"
    assert facts["trainable_parameters"] == sum(p.numel() for p in loaded.trainable().values())
    json.dumps(facts)


def test_fused_modules_give_the_gradients_of_the_plain_ones(folder: Path) -> None:
    """The whole fast path against transformers' and peft's own modules, one sequence at a time."""
    loaded = load_model(section(folder), LORA)
    train_a_step(loaded)
    fast = tiny_gradients(loaded, loaded.packed(BATCH))
    for module in loaded.packed.modules():
        module.__dict__.pop("forward", None)
    plain = tiny_gradients(loaded, alone(loaded.packed, BATCH))
    tiny.assert_same_gradients(fast, plain)


def tiny_gradients(loaded: LoadedModel, values: Tensor) -> dict[str, Tensor]:
    weights = loaded.trainable()
    loss = (values * torch.linspace(-1, 2, len(values))).sum()
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def test_full_fine_tuning_trains_fp32_weights(folder: Path) -> None:
    """lora: null: every weight is trainable and in fp32, whatever type the products have."""
    loaded = load_model(section(folder, dtype="bfloat16"), None)
    assert {p.dtype for p in loaded.packed.parameters()} == {torch.float32}
    assert len(loaded.trainable()) == len(list(loaded.packed.parameters()))
    assert loaded.packed.compute_dtype == torch.bfloat16
    assert "model.embed_tokens.weight" in loaded.trainable()
    assert train_a_step(loaded) > 0


def test_not_trainable_means_nothing_trains(folder: Path) -> None:
    """For chat and evaluation; a lora section makes no adapter then."""
    for lora in (None, LORA):
        loaded = load_model(section(folder), lora, trainable=False)
        assert loaded.trainable() == {}
        assert not hasattr(loaded.packed.model, "peft_config")


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    """On a recipe's switch, with LoRA and without."""
    for lora in (LORA, None):
        torch.manual_seed(0)
        plain = load_model(section(folder), lora)
        torch.manual_seed(0)
        checkpointed = load_model(section(folder, gradient_checkpointing=True), lora)
        checkpointed.packed.train()
        with attention.watched() as traffic:
            found = tiny_gradients(checkpointed, checkpointed.packed(BATCH))
        assert traffic.calls == 4
        tiny.assert_same_gradients(found, tiny_gradients(plain, plain.packed(BATCH)), 1e-6)


def test_a_config_brings_no_dropout_along(tmp_path: Path) -> None:
    """GPT-2 drops a tenth of everything in training; a policy must be the same function as its reference."""
    gpt2 = tiny.save_folder(tmp_path / "gpt2", "gpt2")
    config = json.loads((gpt2 / "config.json").read_text())
    rates = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.5)
    (gpt2 / "config.json").write_text(json.dumps(config | rates))
    loaded = load_model(section(gpt2), LORA)
    assert torch.equal(loaded.packed.train()(BATCH), loaded.packed.eval()(BATCH))


def test_lora_dropout_is_the_one_that_is_asked_for(folder: Path) -> None:
    """It acts in training, not in evaluation, and the gated MLP of a saved adapter is still taken."""
    loaded = load_model(section(folder), LoraSection(r=4, dropout=0.5))
    train_a_step(loaded)
    loaded.packed.train()
    assert not torch.equal(loaded.packed(BATCH), loaded.packed(BATCH))
    assert torch.equal(logprobs(loaded), logprobs(loaded))
    assert loaded.faster["gated_mlp"] == 2


def in_new_process(folders: list[Path]) -> list[Tensor]:
    """The log-probabilities of BATCH under saved models, from a process that knows nothing else."""
    program = (
        "import sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from tests.models.loading.test_load import loaded_again, logprobs\n"
        "torch.save([logprobs(loaded_again(folder)) for folder in sys.argv[2:]], sys.argv[1])\n"
    )
    out = folders[0].with_suffix(".pt")
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", program, out, *folders], check=True, cwd=root)
    values: list[Tensor] = torch.load(out)
    return values


def loaded_again(folder: str | Path) -> LoadedModel:
    """A whole model as for full fine-tuning: a trainable head computes by another formula than a frozen one."""
    adapter = (Path(folder) / "adapter_config.json").exists()
    return load_model(section(folder), None, trainable=not adapter)


def test_saved_and_loaded_in_a_new_process_is_the_same(tmp_path: Path) -> None:
    """Adapter or all weights, head tied or not: equal bits, in the ecosystem's files."""
    expected, folders = [], []
    for tied in (True, False):
        base = tiny.save_folder(tmp_path / f"base{tied}", tie_word_embeddings=tied)
        for lora in (LORA, None):
            loaded = load_model(section(base), lora)
            before = logprobs(loaded)
            assert train_a_step(loaded) > 0
            folders.append(tmp_path / f"saved{len(folders)}")
            save_model(loaded, folders[-1])
            expected.append(logprobs(loaded))
            assert not torch.equal(expected[-1], before)
            check_files(loaded, folders[-1], tied)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    for ours, theirs in zip(in_new_process(folders), expected, strict=True):
        assert torch.equal(ours, theirs)


def check_files(loaded: LoadedModel, folder: Path, tied: bool) -> None:
    """What lies in a saved folder is what is in memory, and nothing of ours is left in a config."""
    tensors = saved_weights(folder)
    held = dict(loaded.packed.model.named_parameters())
    assert {"tokenizer.json", "tokenizer_config.json"} <= {p.name for p in folder.iterdir()}
    if (folder / "adapter_config.json").exists():
        assert {name: t.tolist() for name, t in tensors.items()} == {
            name.replace(".default.", "."): weight.tolist() for name, weight in loaded.trainable().items()
        }
        return
    config = json.loads((folder / "config.json").read_text())
    assert ("lm_head.weight" in tensors) is not tied
    assert config["tie_word_embeddings"] is tied
    assert attention.NAME not in (folder / "config.json").read_text()
    assert config.get("use_cache", True) is True
    assert all(torch.equal(tensor, held[name]) for name, tensor in tensors.items())


def test_an_adapter_goes_on_being_trained(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A DPO run on an SFT adapter starts where that ended, with the adapter's own rank, said aloud."""
    first = load_model(section(folder), LORA)
    train_a_step(first)
    save_model(first, tmp_path / "adapter")
    second = load_model(section(tmp_path / "adapter"), LORA)
    assert caplog.text == ""
    assert torch.equal(logprobs(second), logprobs(first))
    assert second.trainable().keys() == first.trainable().keys()
    assert second.base_sha256 == first.base_sha256 != ""
    assert second.location.base_name == str(folder)
    assert second.faster == first.faster
    load_model(section(tmp_path / "adapter"), LoraSection(r=16))
    assert "keeps its own settings" in caplog.text
    assert "'r': 4" in caplog.text


def test_a_run_is_named_like_a_model(folder: Path, tmp_path: Path) -> None:
    """Its result is in its folder `model`, an adapter or a whole one."""
    for lora in (LORA, None):
        run = tmp_path / f"run{lora is None}"
        run.mkdir()
        (run / "manifest.json").write_text("{}")
        trained = load_model(section(folder), lora)
        train_a_step(trained)
        save_model(trained, run / "model")
        assert torch.equal(logprobs(load_model(section(run), lora)), logprobs(trained))


def test_the_plain_template_is_there_for_the_asking(tmp_path: Path) -> None:
    """A base model's tokenizer has no chat template: 'plain' makes one, and so does a file."""
    base = tiny.save_folder(tmp_path / "base", template=None)
    loaded = load_model(section(base, chat_template="plain"), LORA)
    prompt = loaded.template.prompt_ids((Message(role="user", content="Hi"),))
    assert loaded.tokenizer.decode(prompt) == "User: Hi\n\nAssistant: "
    answer = loaded.template.answer_ids((Message(role="user", content="Hi"),), "Yes")
    assert loaded.tokenizer.decode(answer) == "Yes<|im_end|>"
    own = tmp_path / "own.jinja"
    own.write_text(tiny.CHATML)
    assert load_model(section(base, chat_template=str(own)), LORA).tokenizer.chat_template == tiny.CHATML


def test_an_unpackable_model_is_padded_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bloom makes its attention when it is made: padded path, right log-probabilities, one warning, saved whole."""
    bloom = tiny.save_folder(tmp_path / "bloom", "bloom")
    loaded = load_model(section(bloom), LORA)
    assert loaded.fallback is not None
    assert "padded" in loaded.describe()["forward"]
    (record,) = [r for r in caplog.records if r.name == "prefine"]
    assert record.levelno == logging.WARNING
    assert "padded path, which is slower: its layers do not use" in record.getMessage()
    train_a_step(loaded)
    assert (logprobs(loaded) - alone(loaded.packed, BATCH)).abs().max() <= 1e-5


def test_falcon_is_padded_too(tmp_path: Path) -> None:
    """It looks its attention up in a table of its own, which knows no other names."""
    loaded = load_model(section(tiny.save_folder(tmp_path / "falcon", "falcon")), LORA)
    assert "AttentionInterface" in str(loaded.fallback)
    assert (logprobs(loaded) - alone(loaded.packed, BATCH)).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_attention_can_be_asked_for(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Then rows are padded, and nobody is warned of what was asked for."""
    loaded = load_model(section(folder, attn_implementation=name), LORA)
    assert loaded.fallback == f"model.attn_implementation is {name}"
    assert loaded.packed.causal.config._attn_implementation == name
    assert caplog.text == ""
    assert (logprobs(loaded) - alone(loaded.packed, BATCH)).abs().max() <= 1e-5


def test_flash_attention_is_refused_where_it_cannot_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU; on CUDA without the package; in fp32."""
    from prefine.models.loading.load import _attention_asked

    asked = section(folder, attn_implementation="flash_attention_2")
    with pytest.raises(ModelError, match="needs a CUDA device, not cpu"):
        load_model(asked, LORA)
    cuda = torch.device("cuda:0")
    monkeypatch.setattr(attention, "flash_attention_installed", lambda: False)
    with pytest.raises(MissingDependencyError, match="pip install flash-attn"):
        _attention_asked(asked, cuda, torch.bfloat16)
    monkeypatch.setattr(attention, "flash_attention_installed", lambda: True)
    with pytest.raises(ModelError, match="does not compute in float32"):
        _attention_asked(asked, cuda, torch.float32)
    assert _attention_asked(asked, cuda, torch.bfloat16) == "flash_attention_2"
    assert _attention_asked(section(folder), cuda, torch.bfloat16) is None


def test_loading_is_quiet(folder: Path) -> None:
    """A new process, in which libraries greet for the first time, prints nothing of its own."""
    program = (
        "import sys\n"
        "from prefine.models.loading.load import load_model\n"
        "from prefine.recipe.sections import LoraSection, ModelSection\n"
        "load_model(ModelSection(name=sys.argv[1], gradient_checkpointing=True), LoraSection())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_a_hub_id_from_the_cache(folder: Path, tmp_path: Path) -> None:
    """Without a network, with another weights file an adapter on it is refused: a hub id is checked by content too."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(folder, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from prefine.errors import ModelError\n"
        "from prefine.models.loading.load import load_model, save_model\n"
        "from tests.models.loading.test_load import LORA, section\n"
        "adapter, weights = sys.argv[1:]\n"
        "loaded = load_model(section('someone/tiny'), LORA)\n"
        "save_model(loaded, Path(adapter))\n"
        "again = load_model(section(adapter), LORA)\n"
        "print(again.base_sha256 == loaded.base_sha256, len(again.base_sha256), again.location.base)\n"
        "data = bytearray(Path(weights).read_bytes())\n"
        "data[-1] ^= 1\n"
        "Path(weights).write_bytes(data)\n"
        "try:\n"
        "    load_model(section(adapter), LORA)\n"
        "except ModelError as error:\n"
        "    print(error.problem)\n"
    )
    weights = repository / "snapshots" / "0123" / "model.safetensors"
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, str(tmp_path / "adapter"), str(weights)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, check=True, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    known, refused = done.stdout.splitlines()
    assert known == "True 64 someone/tiny"
    assert "was trained on other weights than 'someone/tiny' holds" in refused


def test_an_adapter_on_the_head(tmp_path: Path) -> None:
    """Where lora.targets names it; log-probabilities then take the path for heads that learn."""
    base = tiny.save_folder(tmp_path / "base")
    loaded = load_model(section(base), LoraSection(r=4, targets=["q_proj", "lm_head"]))
    train_a_step(loaded)
    assert not loaded.packed.logits_head().plain_and_frozen
    ours, theirs = (tiny_gradients(loaded, f(BATCH)) for f in (loaded.packed, lambda b: alone(loaded.packed, b)))
    assert any("lm_head" in name for name in ours)
    tiny.assert_same_gradients(ours, theirs)


def test_quantization_needs_lora() -> None:
    """Frozen 4-bit weights do not learn: the recipe refuses, before anything is loaded."""
    from pydantic import ValidationError

    with pytest.raises((ValidationError, RecipeError), match="needs lora"):
        SftRecipe(model=ModelSection(quantization="nf4"), lora=None)
