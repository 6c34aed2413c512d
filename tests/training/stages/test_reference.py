"""Reference log-probabilities are computed once for the same rows under the same model, and never read for others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefine.errors import CheckpointError
from prefine.models.loading.load import load_model
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.records import Message, Preference
from prefine.training.display import Display
from prefine.training.stages import reference
from prefine.training.stages.reference import reference_logprobs
from tests.training import tiny

Make = Callable[..., StageRecipe]
QUICK = {"training.max_steps": 1, "report.samples": 0}


def test_they_are_the_summed_logprobs_of_the_untouched_model(model: Path) -> None:
    """Against transformers on one answer at a time."""
    loaded = load_model(ModelSection(name=str(model), dtype="float32", device="cpu"), LoraSection(r=4))
    asked = (Message(role="user", content="question"),)
    trees = [
        loaded.template.preference_tree(Preference(prompt=asked, chosen=f"yes {'so' * i}", rejected="no"), i)
        for i in range(3)
    ]
    found, cached = reference_logprobs(loaded, trees, "digest", 64, Display(Console(quiet=True)))  # type: ignore[arg-type]
    assert not cached
    with torch.no_grad(), loaded.packed.model.disable_adapter():
        for tree, pair in zip(trees, found.view(-1, 2), strict=True):
            for answer, summed in zip(tree.answers, pair, strict=True):
                ids = torch.tensor([[*tree.prompt, *answer]])
                model_alone = load_alone(model)
                logprobs = model_alone(input_ids=ids).logits[0].log_softmax(-1)
                wanted = sum(logprobs[i - 1, ids[0, i]].item() for i in range(len(tree.prompt), ids.shape[1]))
                assert summed.item() == pytest.approx(wanted, rel=1e-5)


def test_a_damaged_cache_is_made_again(make: Make, own_cache: Path) -> None:
    tiny.train(make("dpo", "first", QUICK))
    files = sorted((own_cache / "reference").glob("*/*.safetensors"))
    right = [file.read_bytes() for file in files]
    files[0].write_bytes(right[0][:-7])
    files[1].write_bytes(b"")
    tiny.train(make("dpo", "second", QUICK))
    assert [file.read_bytes() for file in files] == right


def test_a_cache_that_cannot_be_written_is_told(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="a file is in the place of a folder"):
        tiny.train(make("dpo", "run", QUICK))


def entries(cache: Path) -> int:
    return len(list((cache / "reference").glob("*/*.safetensors")))


def load_alone(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def test_what_is_read_again_and_what_is_not(make: Make, model: Path, own_cache: Path, tmp_path: Path) -> None:
    names = iter(range(100))

    def computed(changes: dict[str, Any]) -> int:
        """How many of the two parts, train and held-out, a run with these changes had to compute."""
        before = entries(own_cache)
        said = tiny.train(make("dpo", f"run-{next(names)}", QUICK | changes))
        made = entries(own_cache) - before
        assert said.count("from the cache") == (0 if changes.get("dpo.loss") == "simpo" else 2 - made)
        return made

    assert computed({}) == 2
    assert computed({}) == 0
    for unrelated in (
        {"training.learning_rate": 1e-3},
        {"lora.r": 8},
        {"dpo.loss": "hinge"},
        {"training.batch_size": 3},
    ):
        assert computed(unrelated) == 0, unrelated
    assert computed({"dpo.loss": "simpo"}) == 0  # it has none
    template = tmp_path / "template.jinja"
    template.write_text(tiny.CHATML.replace("\\n", " "))
    adapter = make("sft", "sft", QUICK)
    tiny.train(adapter)
    other_model = tiny.save_model(tmp_path / "other", seed=8)
    for related in (
        {"lora": None},  # other kernels, and so other last bits; in bfloat16 another type of the weights as well
        {"model.chat_template": str(template)},
        {"model.dtype": "bfloat16"},
        {"model.name": adapter.run},
        {"model.name": str(other_model)},
        {"model.attn_implementation": "eager"},
        {"model.attn_implementation": "sdpa"},
        {"data.max_length_tokens": 60},
        {"data.train": str(tiny.write_rows(tmp_path / "fewer.jsonl", tiny.pairs(20)))},
        {"training.max_tokens_per_microbatch": 200},  # how rows share a matrix product moves the last bits
    ):
        assert computed(related) == 2, related
    assert computed(related) == 0


def the_reference(folder: Path, lora: LoraSection | None = None, **changes: Any) -> Tensor:
    """Of five pairs under a model; read from the cache where it is there."""
    loaded = load_model(ModelSection(name=str(folder), device="cpu", **{"dtype": "float32"} | changes), lora)
    asked = (Message(role="user", content="question"),)
    trees = [
        loaded.template.preference_tree(Preference(prompt=asked, chosen=f"yes {'so' * i}", rejected="no"), i)
        for i in range(5)
    ]
    found, _ = reference_logprobs(loaded, trees, "digest", 64, Display(Console(quiet=True)))  # type: ignore[arg-type]
    return found


def test_values_that_were_altered_in_the_cache_are_computed_again(make: Make, own_cache: Path) -> None:
    first = tiny.train(make("dpo", "first", QUICK))
    assert "damaged" not in first
    files = sorted((own_cache / "reference").glob("*/*.safetensors"))
    assert len(files) == 2
    right = [file.read_bytes() for file in files]
    values = load_file(files[0])["logprobs"]
    save_file({"logprobs": values + 0.5}, files[0])
    said = tiny.train(make("dpo", "second", QUICK))
    assert said.count("are damaged or were changed: they are computed again") == 1
    assert [file.read_bytes() for file in files] == right


def test_another_config_of_the_same_weights_has_another_reference(tmp_path: Path, own_cache: Path) -> None:
    folder = tiny.save_model(tmp_path / "model")
    before = the_reference(folder)
    assert torch.equal(the_reference(folder), before)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 13.0}
    (folder / "config.json").write_text(json.dumps(config))
    assert not torch.allclose(the_reference(folder), before)


def test_weights_of_another_number_type_have_a_reference_of_their_own(tmp_path: Path, own_cache: Path) -> None:
    """LoRA holds the base in bfloat16, `lora: null` holds it in float32; both compute in bfloat16."""
    folder = tiny.save_model(tmp_path / "model")
    lora = the_reference(folder, LoraSection(r=2), dtype="bfloat16")
    whole = the_reference(folder, None, dtype="bfloat16")
    assert len(list((own_cache / "reference").glob("*/*.safetensors"))) == (1 if torch.equal(lora, whole) else 2)
    for kept, again in (
        (lora, the_reference(folder, LoraSection(r=2), dtype="bfloat16")),
        (whole, the_reference(folder, None, dtype="bfloat16")),
    ):
        assert torch.equal(kept, again)


def test_a_change_that_only_the_numbers_show_is_noticed(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save_model(tmp_path / "model")
    before = the_reference(folder)
    plain = reference.per_sequence
    monkeypatch.setattr(reference, "per_sequence", lambda *args: plain(*args) * (1 + 1e-6))
    after = the_reference(folder)
    assert not torch.equal(after, before)
    assert torch.allclose(after, before, rtol=1e-5)
