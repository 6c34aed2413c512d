"""GGUF exports: what is refused before any work, what is run, and a file that transformers reads back equal."""

from __future__ import annotations

import json
import math
import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefine.engines.llama_cpp import SERVER, find_llama_cpp
from prefine.errors import MissingDependencyError, ModelError, PrefineError, RecipeError
from prefine.export import gguf as gguf_export
from prefine.export.formats import ExportOptions
from prefine.export.gguf import GgufFormat, file_name
from prefine.export.gguf_types import GGUF_TYPES, require_types
from prefine.export.llama_cpp import load_llama_cpp
from prefine.export.quantized import GptqFormat
from prefine.export.source import BaseFacts, ExportSource
from prefine.models.loading.card import Card, Story
from prefine.models.loading.location import Location
from tests.export.real_gguf import make_gguf

OPTIONS = ExportOptions(("q8_0", "q4_k_m"), None, Path("out"))


def a_source(folder: Path, architecture: str = "LlamaForCausalLM") -> ExportSource:
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    source = ExportSource("runs/dpo", Location("runs/dpo", str(folder), "base", None, str(folder)), None, {})
    source.__dict__["base"] = BaseFacts(1000, "bfloat16")
    return source


@pytest.fixture
def llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama.cpp folder whose quantiser copies, and whose converter writes what it was asked for."""
    folder = tmp_path / "llama.cpp"
    (folder / "conversion").mkdir(parents=True)
    (folder / "conversion" / "__init__.py").write_text('TEXT_MODEL_MAP = {"LlamaForCausalLM": "llama"}\n')
    (folder / "convert_hf_to_gguf.py").touch()
    quantise = folder / "llama-quantize"
    quantise.write_text('#!/bin/sh\n(cat "$1"; echo "as $3") > "$2"\n')
    quantise.chmod(0o755)
    monkeypatch.setenv("PREFINE_LLAMA_CPP", str(folder))
    return folder


def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFINE_LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gguf_export, "bundled_converter", lambda: None)


def test_types_are_known_or_refused_and_one_is_the_default() -> None:
    assert require_types(()) == ("q8_0",)
    assert require_types(("q4_k_m", "f16")) == ("q4_k_m", "f16")
    with pytest.raises(RecipeError, match=r"GGUF type 'q4_k_x', which is not known. Choose from f32, f16, bf16, q8_0"):
        require_types(("q4_k_x",))


def test_limits_grow_as_bits_shrink() -> None:
    quantised = [kind for name, kind in GGUF_TYPES.items() if name.startswith("q")]
    for finer, coarser in pairwise(quantised):
        assert finer.bits >= coarser.bits
        assert finer.limits.kl_mean <= coarser.limits.kl_mean
        assert finer.limits.top1 >= coarser.limits.top1
    assert all(kind.limits.stops == "turn_end" for kind in GGUF_TYPES.values())  # a file holds one end


def test_without_a_converter_or_a_quantiser_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_installed(monkeypatch, tmp_path)
    with pytest.raises(
        MissingDependencyError, match=r"converter, which was not found.*pip install 'prefine\[quantize\]'"
    ):
        GgufFormat().require(a_source(tmp_path), OPTIONS)


def test_a_converter_alone_writes_no_k_quants(llama_cpp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (llama_cpp / "llama-quantize").unlink()
    monkeypatch.setattr(gguf_export, "bundled_converter", lambda: None)
    with pytest.raises(MissingDependencyError, match="q4_k_m needs llama-quantize or auto-round"):
        GgufFormat().require(a_source(tmp_path), OPTIONS)
    GgufFormat().require(a_source(tmp_path), ExportOptions(("q8_0", "bf16"), None, tmp_path / "out"))


def test_an_architecture_that_the_converter_does_not_know_is_refused(llama_cpp: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a NoSuchForCausalLM, which llama.cpp's converter"):
        GgufFormat().require(a_source(tmp_path, "NoSuchForCausalLM"), OPTIONS)


def test_a_reward_model_is_refused(llama_cpp: Path, tmp_path: Path) -> None:
    source = a_source(tmp_path)
    source.scores = True
    with pytest.raises(ModelError, match=r"is a reward model, and GGUF files hold none"):
        GgufFormat().require(source, OPTIONS)


def test_a_disk_that_is_too_small_is_refused(llama_cpp: Path, tmp_path: Path) -> None:
    source = a_source(tmp_path)
    source.__dict__["base"] = BaseFacts(10**15, "bfloat16")
    with pytest.raises(PrefineError, match=r"GB of (disk|memory)"):
        GgufFormat().require(source, OPTIONS)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("runs/dpo", "dpo"),
        ("runs/dpo/", "dpo"),
        ("Org/My Model", "My-Model"),
        ("embedded:smollm2", "smollm2"),
        ("..", "model"),
    ],
)
def test_files_are_called_as_the_model(name: str, file: str) -> None:
    assert file_name(name) == file


class Tokens:
    """As much of a tokenizer as a GGUF export asks for."""

    bos_token = None
    eos_token_id = 1

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        names = ["<s>", "</s>", "<|im_end|>"]
        return [names[each] for each in ids] if isinstance(ids, list) else names[ids]

    def apply_chat_template(self, turns: list[dict[str, str]], **options: Any) -> str:
        assert options == {"tokenize": False, "add_generation_prompt": True}
        return "".join(f"<{turn['role']}>{turn['content']}<|im_end|>" for turn in turns) + "<assistant>"


def fake_model(source: ExportSource) -> None:
    """Let a source hold a model whose merge is three small files."""
    template = SimpleNamespace(tokenizer=Tokens(), turn_end=2, stop_ids=frozenset({1, 2}))
    source.__dict__["loaded"] = SimpleNamespace(template=template)

    def save_merged(folder: Path, dtype: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(
            json.dumps({"dtype": dtype, "eos_token_id": 1, "max_position_embeddings": 64})
        )
        (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
        (folder / "generation_config.json").write_text('{"temperature": 0.5}')

    source.save_merged = save_merged  # type: ignore[method-assign]


def test_several_types_come_from_one_merge_and_one_conversion(
    llama_cpp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []

    def converted(module: str, job: Path, what: str) -> None:
        jobs.append(json.loads(job.read_text()))
        merged = Path(jobs[0]["folder"])
        assert json.loads((merged / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
        assert json.loads((merged / "config.json").read_text())["eos_token_id"] == 2  # where turns end, not text
        for kind, path in jobs[0]["convert"].items():
            Path(path).write_text(f"{kind}\n")

    monkeypatch.setattr(gguf_export, "run_quietly", converted)
    source = a_source(tmp_path)
    fake_model(source)
    folder = tmp_path / "out"
    folder.mkdir()
    options = ExportOptions(("q4_k_m", "q8_0", "q5_k_m"), None, folder)
    made = GgufFormat().write(source, folder, options)
    assert [artefact.name for artefact in made] == ["gguf q4_k_m", "gguf q8_0", "gguf q5_k_m"]
    assert made[0].options == {"gguf_file": "dpo-q4_k_m.gguf", "dtype": "float32"}
    (job,) = jobs
    assert job["convert"].keys() == {"q8_0", "f32"} and job["quantise"] == {}
    assert sorted(path.name for path in folder.iterdir()) == [
        "Modelfile", "dpo-q4_k_m.gguf", "dpo-q5_k_m.gguf", "dpo-q8_0.gguf",
    ]  # fmt: skip
    assert (folder / "dpo-q4_k_m.gguf").read_text() == "f32\nas Q4_K_M\n"
    text = (folder / "Modelfile").read_text()
    assert text.splitlines()[1] == "FROM ./dpo-q4_k_m.gguf"
    assert 'TEMPLATE """{{ $first := true }}' in text
    assert text.splitlines()[-5:] == [
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "</s>"',
        "PARAMETER temperature 0.5",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER num_ctx 64",
    ]


def test_where_llama_server_is_found_each_file_is_proved_by_it_too(
    llama_cpp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = llama_cpp / "llama-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    monkeypatch.setattr(gguf_export, "run_quietly", lambda module, job, what: [
        Path(path).touch() for path in json.loads(job.read_text())["convert"].values()
    ])  # fmt: skip
    source = a_source(tmp_path)
    fake_model(source)
    folder = tmp_path / "out"
    folder.mkdir()
    made = GgufFormat().write(source, folder, ExportOptions(("bf16", "f32"), None, folder))
    assert [(artefact.loader, artefact.path) for artefact in made] == [
        ("transformers", "."),
        ("llama.cpp", "dpo-bf16.gguf"),
        ("transformers", "."),
        ("llama.cpp", "dpo-f32.gguf"),
    ]
    assert (made[3].limits.kl_mean, made[3].limits.kl_p99) == (5e-4, 5e-3)  # it computes in float16
    assert made[3].limits.top1 == GGUF_TYPES["f16"].limits.top1


def test_a_quantiser_that_fails_is_one_error_with_its_last_lines(
    llama_cpp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (llama_cpp / "llama-quantize").write_text("#!/bin/sh\necho 'main: failed to quantize'\nexit 1\n")
    monkeypatch.setattr(gguf_export, "run_quietly", lambda module, job, what: None)
    source = a_source(tmp_path)
    fake_model(source)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"llama-quantize failed \(main: failed to quantize\)"):
        GgufFormat().write(source, folder, ExportOptions(("q4_k_m",), None, folder))


@pytest.mark.parametrize(("form", "library"), [(GgufFormat, "gguf"), (GptqFormat, "transformers")])
def test_the_card_says_how_these_files_are_loaded_and_nothing_else(form: Any, library: str) -> None:
    text = Card("base", "", False, None, Story(loading=form.usage, library=form.library)).text()
    assert f"library_name: {library}" in text
    loading = text.partition("## How to load it\n\n")[2]
    assert loading == "\n".join(form.usage) + "\n"


@pytest.fixture(scope="module")
def real_file(embedded_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf"), embedded_model)


@pytest.mark.slow
def test_a_file_is_read_back_by_transformers_as_it_was(real_file: Path) -> None:
    reader: dict[str, Any] = {"gguf_file": real_file.name}
    theirs = AutoModelForCausalLM.from_pretrained(real_file.parent, dtype=torch.float32, **reader)
    ours = AutoModelForCausalLM.from_pretrained(real_file.parent / "merged", dtype=torch.float32)
    ids = torch.tensor([[1, 2683, 198, 1780, 506]])
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, ours(ids).logits, atol=2e-3)  # weights are rounded to f16
    turns = [{"role": "user", "content": "Good  morning!\n\n  It's 10:25, naïve café."}]
    tokenizers = (
        AutoTokenizer.from_pretrained(real_file.parent / "merged"),
        AutoTokenizer.from_pretrained(real_file.parent, **reader),
    )
    rendered = [each.apply_chat_template(turns, add_generation_prompt=True)["input_ids"] for each in tokenizers]
    assert rendered[0] == rendered[1]
    assert tokenizers[1].eos_token == "<|im_end|>"


@pytest.mark.slow
def test_the_real_llama_cpp_answers(real_file: Path) -> None:
    if SERVER not in find_llama_cpp().programs:
        pytest.skip(
            f"no llama-server: PREFINE_LLAMA_CPP is {os.environ.get('PREFINE_LLAMA_CPP')!r}; see docs/export.md"
        )
    loaded = load_llama_cpp(real_file, {})
    prompt = loaded.rendered_ids([{"role": "user", "content": "What is the capital of France?"}])
    found = loaded.logits(prompt, 2)
    assert math.isclose(float(found[-1].exp().sum()), 1.0, rel_tol=1e-3)
    assert loaded.greedy(prompt, 1) == [int(found[-1].argmax())]
