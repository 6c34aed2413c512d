"""The embedded model works without a hub, is converted once, and a conversion that fails says why in one line.

What processes that convert at once do is in tests/test_cache.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefine.data.tokens.trees import TokenTree, collate
from prefine.errors import CheckpointError, ModelError
from prefine.models.forward import attention
from prefine.models.forward.path_probe import probe
from prefine.models.loading import embedded
from prefine.models.loading.embedded import embedded_folder
from prefine.models.loading.load import LoadedModel, load_model
from prefine.recipe.sections import LoraSection, ModelSection
from prefine.records import Message
from tests.models import tiny
from tests.models.tiny import alone

NAME = "embedded:smollm2-135m"


@pytest.fixture(scope="module")
def loaded(embedded_model: str) -> LoadedModel:
    """The embedded model in bf16 with a LoRA, as the recipes load it."""
    return load_model(ModelSection(name=embedded_model, device="cpu", dtype="bfloat16"), LoraSection())


def test_it_is_packed_in_bf16(loaded: LoadedModel) -> None:
    """The probe accepts it, all its modules are fused, and it is the model that its name says."""
    assert loaded.fallback is None
    assert loaded.faster == {"lora": 210, "norm": 61, "gated_mlp": 30}
    facts = loaded.describe()
    assert facts["parameters"] - facts["trainable_parameters"] == 134_515_008
    assert facts["compute_dtype"] == "bfloat16"


def test_it_speaks_english(loaded: LoadedModel) -> None:
    """It finds what answers a question likelier than what does not: the conversion lost no weight."""
    ask = (Message(role="user", content="What is the capital of France?"),)
    answers = ("The capital of France is Paris.", "The capital of France is banana.")
    tokens = tuple(loaded.template.answer_ids(ask, text) for text in answers)
    batch = collate([TokenTree(loaded.template.prompt_ids(ask), tokens, (None, None))])
    loaded.packed.eval()
    with torch.no_grad():
        values = loaded.packed(batch)
    right, wrong = (values[batch.sequence == which].mean().item() for which in (0, 1))
    assert right > -1.0
    assert right > wrong + 1.0


def test_it_answers_greedily(loaded: LoadedModel) -> None:
    """Generation through transformers' own attention, in words that a reader expects."""
    from prefine.generation.answers import write_answers

    ask = (Message(role="user", content="What is the capital of France?"),)
    # The answer's beginning is given: its first word is a tie ("The", "L'Étoile") that bfloat16 rounds either way.
    begun = loaded.tokenizer.encode("The capital of France is", add_special_tokens=False)
    prompt = [*loaded.template.prompt_ids(ask), *begun]
    (answer,) = write_answers(loaded.packed, loaded.template, [prompt], 4, 0.0)
    assert answer.text.startswith("Paris")


def test_packed_bf16_is_near_alone(loaded: LoadedModel) -> None:
    """On real weights in bf16, packing costs no more than rounding."""
    batch = collate([tiny.tree(40, 30, 20, vocabulary=40_000), tiny.tree(5, 60, vocabulary=40_000)])
    loaded.packed.eval()
    with torch.no_grad():
        apart = (loaded.packed(batch) - alone(loaded.packed, batch)).abs()
    assert apart.mean() <= 0.05


@pytest.mark.parametrize("leak", [1.0, 1e-4])
def test_a_leak_is_found_in_bf16(leak: float, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small: each token also gets a little of the token before it, whosesoever that is."""
    from transformers import AttentionInterface

    def leaky(*args: Any, **kwargs: Any) -> Any:
        out, weights = attention.packed_attention(*args, **kwargs)
        return out + leak * out.roll(1, dims=1), weights

    assert probe(loaded.packed) is None
    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, leaky)
    assert "another sequence" in str(probe(loaded.packed))


def packaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, convert: Any = None) -> Path:
    """A package made by hand, with `convert` (or the real conversion) for it; returns where converted models go."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.gguf").write_bytes(b"GGUF")
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("PREFINE_CACHE", str(tmp_path / "cache"))
    if convert is not None:
        monkeypatch.setattr(embedded, "_convert", convert)
    return tmp_path / "cache" / "models"


def written(gguf: Path, folder: Path) -> None:
    """Stands for a conversion."""
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    (folder / "config.json").write_text("{}")


def test_it_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Under the hash of the package's file, so that a newer package is converted anew."""
    calls: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        calls.append(folder)
        written(gguf, folder)

    models = packaged(monkeypatch, tmp_path, convert)
    folder = embedded_folder(NAME)
    assert folder == embedded_folder(NAME)
    assert len(calls) == 1
    assert folder.parent == models
    (tmp_path / "package" / "model.gguf").write_bytes(b"GGUF2")
    assert embedded_folder(NAME) != folder
    assert len(calls) == 2


def test_what_a_race_broke_is_converted_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Earlier releases could leave a folder of tokenizer files alone, under the name that counts."""
    packaged(monkeypatch, tmp_path, written)
    folder = embedded_folder(NAME)
    for file in folder.iterdir():
        file.unlink()
    (folder / "tokenizer.json").write_text("{}")
    assert embedded_folder(NAME) == folder
    assert (folder / "config.json").is_file()
    assert not (folder / "tokenizer.json").exists()


def test_a_launch_is_not_passed_on() -> None:
    """In a launch of several processes transformers saves files in the first one alone."""
    launch = {
        **dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR"), "1"),
        **dict.fromkeys(("ACCELERATE_USE_FSDP", "FSDP_VERSION", "TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_SIZE"), "1"),
    }
    kept = {"PATH": "/bin", "HF_HOME": "/hub", "OMP_NUM_THREADS": "1", "FRANK": "1", "RANKING": "1"}
    assert embedded.not_launched(launch | kept) == kept


def test_a_damaged_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the conversion's process printed, its last line is the reason; nothing of it stays in the cache.

    Modules of the working directory are not imported.
    """
    models = packaged(monkeypatch, tmp_path)
    (tmp_path / "here").mkdir()
    for name in ("statistics.py", "torch.py"):
        (tmp_path / "here" / name).write_text("raise SystemExit('a file of the user was run')")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(
        ModelError, match=r"model\.gguf could not be converted \(.+\)\. Install package again"
    ) as caught:
        embedded_folder(NAME)
    assert "\n" not in str(caught.value)
    assert "a file of the user was run" not in str(caught.value)
    assert [path.suffix for path in models.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("last_line", "error", "says"),
    [
        ("SafetensorError: I/O error: No space left on device (os error 28)", CheckpointError, "the disk is full"),
        ("OSError: [Errno 28] No space left on device: '/x/config.json'", CheckpointError, "Set PREFINE_CACHE"),
        (
            "ValueError: unknown architecture",
            ModelError,
            r"could not be converted \(ValueError: unknown architecture\)",
        ),
        ("", ModelError, "it ended with exit code 1"),
    ],
)
def test_an_error_of_the_conversion(
    last_line: str, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packaged(monkeypatch, tmp_path)
    failed = SimpleNamespace(returncode=1, stderr=f"Traceback …\n{last_line}\n" if last_line else "")
    monkeypatch.setattr(embedded.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(error, match=says):
        embedded_folder(NAME)


def test_a_package_without_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A half-installed package says so."""
    packaged(monkeypatch, tmp_path, written)
    (tmp_path / "package" / "model.gguf").unlink()
    with pytest.raises(ModelError, match="holds no GGUF file"):
        embedded_folder(NAME)
