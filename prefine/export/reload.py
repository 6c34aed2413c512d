"""Loads an export as its users will, in a process of its own, and writes down what it computes.

`python -m prefine.export.reload SPEC.json OUT.safetensors` computes nothing with prefine: prompts are rendered, and
logits and tokens computed, by the library that users load the export with. So an error that prefine's own loading
would repeat or hide is seen.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from prefine.models.loading.weights import ADAPTER_WEIGHTS

Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class ProbeInput:
    """What an export is asked about one probe.

    Attributes:
        turns: the prompt's turns, for its own chat template.
        ids: prompt and answer, without the answer's last token.
        last: of how many positions at the end the logits are wanted: those that predict the answer's tokens.
    """

    turns: Turns
    ids: list[int]
    last: int


@dataclass(frozen=True)
class ReloadSpec:
    """What is loaded and asked.

    Attributes:
        loader: a key of LOADERS.
        path: of the artefact.
        options: for the loader.
        probes: what is asked.
        greedy: which probes are answered, too, greedily.
        new_tokens: of those answers, at most.
        threads: of torch.
    """

    loader: str
    path: str
    options: Mapping[str, Any]
    probes: list[ProbeInput]
    greedy: list[int]
    new_tokens: int
    threads: int = field(default_factory=torch.get_num_threads)

    def write(self, path: Path) -> None:
        """Save it as JSON."""
        path.write_text(json.dumps(asdict(self)), "utf-8")

    @classmethod
    def read(cls, path: Path) -> ReloadSpec:
        """Read what `write` saved."""
        values = json.loads(path.read_text("utf-8"))
        return cls(**values | {"probes": [ProbeInput(**each) for each in values["probes"]]})


@dataclass(frozen=True)
class Reloaded:
    """What an export computes.

    Attributes:
        logits: for each probe (last, V) fp32.
        rendered: for each probe, the token ids that its own template and tokenizer make of the turns.
        greedy: the answers' token ids, the end of turn included.
        stop_ids: token ids at which its own generation ends.
        load_s: seconds to load it, without imports.
        dtype: that it computes in, as torch calls it, or as its file format does.
        libraries: name -> version of what it was loaded with.
        likeliest: of how many likeliest tokens the logits are its own; the others share what is left. None: of all.
    """

    logits: list[Tensor]
    rendered: list[list[int]]
    greedy: list[list[int]]
    stop_ids: frozenset[int]
    load_s: float
    dtype: str
    libraries: Mapping[str, str]
    likeliest: int | None = None

    def write(self, path: Path) -> None:
        """Save it as safetensors."""
        from safetensors.torch import save_file

        tensors = {f"logits.{i}": each.contiguous() for i, each in enumerate(self.logits)}
        facts = {
            "rendered": self.rendered,
            "greedy": self.greedy,
            "stop_ids": sorted(self.stop_ids),
            "load_s": self.load_s,
            "dtype": self.dtype,
            "libraries": dict(self.libraries),
            "likeliest": self.likeliest,
        }
        save_file(tensors, path, {"facts": json.dumps(facts)})

    @classmethod
    def read(cls, path: Path) -> Reloaded:
        """Read what `write` saved."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            logits = [file.get_tensor(f"logits.{i}") for i in range(len(facts["rendered"]))]
        return cls(logits=logits, **facts | {"stop_ids": frozenset(facts["stop_ids"])})


class ForeignModel(Protocol):
    """An export as a library has loaded it."""

    dtype: str
    stop_ids: frozenset[int]
    libraries: Mapping[str, str]
    load_s: float
    likeliest: int | None
    """See Reloaded."""

    def rendered_ids(self, turns: Turns) -> list[int]:
        """Token ids of a prompt up to where the assistant starts to write, by its own template and tokenizer."""

    def logits(self, ids: Sequence[int], last: int) -> Tensor:
        """(last, V) fp32 logits of the last positions of a sequence."""

    def greedy(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """The likeliest tokens after a sequence, up to an end of turn, which is included."""


# Of every from_pretrained of an export's files: they may come from anybody, and neither Python code nor pickles count.
SAFELY: Mapping[str, bool] = {"trust_remote_code": False, "use_safetensors": True}

# Name -> a function (path, options) -> ForeignModel, imported when it is asked for.
LOADERS = {
    "transformers": "prefine.export.reload:load_transformers",
    "peft": "prefine.export.reload:load_peft",
    "classifier": "prefine.export.reload:load_classifier",
    "llama.cpp": "prefine.export.llama_cpp:load_llama_cpp",
    "auto-round": "prefine.export.quantized:load_auto_round",
}


class TransformersModel:
    """A model and a tokenizer of transformers, alone or under an adapter of peft; see ForeignModel.

    Args:
        model: in eval mode, as from_pretrained leaves it.
        tokenizer: transformers'.
        libraries: names of what loaded it.
        load_s: seconds that took, without imports.
    """

    likeliest: int | None = None

    def __init__(self, model: Any, tokenizer: Any, libraries: Sequence[str], load_s: float) -> None:
        from importlib.metadata import version

        self.load_s = load_s
        self.model = model
        self.tokenizer = tokenizer
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.libraries: Mapping[str, str] = {name: version(name) for name in libraries}
        # A classifier has no such config.
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        self.stop_ids = frozenset(ends if isinstance(ends, list) else [ends] if ends is not None else [])

    def rendered_ids(self, turns: Turns) -> list[int]:
        """See ForeignModel."""
        found = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        return [int(each) for each in found]

    @torch.no_grad()
    def logits(self, ids: Sequence[int], last: int) -> Tensor:
        """See ForeignModel."""
        found: Tensor = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False, **self._kept(last)).logits
        return found[0, -last:].float()

    def _kept(self, last: int) -> dict[str, int]:
        """The argument that spares the logits of all other positions, where the model knows it."""
        own = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return {"logits_to_keep": last} if "logits_to_keep" in inspect.signature(own.forward).parameters else {}

    @torch.no_grad()
    def greedy(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """See ForeignModel."""
        given = torch.tensor([list(ids)])
        # What sampling settings the files bring is no part of a comparison of weights.
        unsampled = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
        mask = torch.ones_like(given)
        found = self.model.generate(given, attention_mask=mask, max_new_tokens=new_tokens, **unsampled)
        return [int(each) for each in found[0, given.shape[1] :]]


def load_transformers(path: Path, options: Mapping[str, Any]) -> ForeignModel:
    """A whole model: AutoModelForCausalLM and AutoTokenizer.

    Args:
        path: its folder.
        options: `gguf_file` where that is read, and `dtype` to compute in.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wanted = {key: options[key] for key in ("gguf_file", "dtype") if key in options}
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(path, **wanted, **SAFELY)
    tokenizer = AutoTokenizer.from_pretrained(path, gguf_file=options.get("gguf_file"), trust_remote_code=False)
    return TransformersModel(model, tokenizer, ["torch", "transformers"], time.perf_counter() - began)


class _Classifier(TransformersModel):
    @torch.no_grad()
    def logits(self, ids: Sequence[int], last: int) -> Tensor:
        """(1, labels) fp32, the sequence's scores."""
        found: Tensor = self.model(input_ids=torch.tensor([list(ids)])).logits
        return found.float()


def load_classifier(path: Path, options: Mapping[str, Any]) -> ForeignModel:
    """A reward model: AutoModelForSequenceClassification and AutoTokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    began = time.perf_counter()
    model = AutoModelForSequenceClassification.from_pretrained(path, **SAFELY)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return _Classifier(model.eval(), tokenizer, ["torch", "transformers"], time.perf_counter() - began)


def load_peft(path: Path, options: Mapping[str, Any]) -> ForeignModel:
    """An adapter on its base.

    Args:
        path: the adapter's folder, with its tokenizer and generation settings.
        options: `base`, a folder or hub id, `revision` and `dtype`; and `quantization` (nf4 or int8) where the base is
            quantised by bitsandbytes as it was in training.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    dtype = getattr(torch, options["dtype"])
    settings: dict[str, Any] = {"revision": options.get("revision"), "dtype": dtype, **SAFELY}
    libraries = ["torch", "transformers", "peft"]
    if options.get("quantization"):
        settings |= {"quantization_config": _quantization(options["quantization"], dtype), "device_map": {"": "cpu"}}
        libraries.append("bitsandbytes")
    if not (path / ADAPTER_WEIGHTS).is_file():  # peft would look for a pickle
        raise FileNotFoundError(f"there is no {ADAPTER_WEIGHTS}")
    began = time.perf_counter()
    base = AutoModelForCausalLM.from_pretrained(options["base"], **settings)
    for module in base.modules():
        # A layout of some processors alone, which rounds products to bfloat16 and fails on small layers.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model = PeftModel.from_pretrained(base, path)
    # The base's file has the base's ends; what training used lies beside the adapter.
    model.generation_config = GenerationConfig.from_pretrained(path)
    model.get_base_model().generation_config = model.generation_config
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return TransformersModel(model.eval(), tokenizer, libraries, time.perf_counter() - began)


def _quantization(kind: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def reload(spec: ReloadSpec, progress: Callable[[int], None] = lambda done: None) -> Reloaded:
    """Load an artefact and ask it, in this process.

    Args:
        spec: what and how.
        progress: called with the number of probes that are done.
    """
    module, _, name = LOADERS[spec.loader].partition(":")
    model: ForeignModel = getattr(import_module(module), name)(Path(spec.path), spec.options)
    logits, rendered = [], []
    for done, probe in enumerate(spec.probes, start=1):
        rendered.append(model.rendered_ids(probe.turns))
        logits.append(model.logits(probe.ids, probe.last))
        progress(done)
    # A prompt is what its answer is predicted from: the answer's tokens but the last are at its end.
    prompts = [spec.probes[i].ids[: len(spec.probes[i].ids) - spec.probes[i].last + 1] for i in spec.greedy]
    greedy = [model.greedy(prompt, spec.new_tokens) for prompt in prompts]
    facts = (model.stop_ids, model.load_s, model.dtype, model.libraries, model.likeliest)
    return Reloaded(logits, rendered, greedy, *facts)


def main(arguments: Sequence[str]) -> None:
    """Reload as SPEC.json says, write OUT.safetensors, and print a line for each probe that is done."""
    spec = ReloadSpec.read(Path(arguments[0]))
    torch.set_num_threads(spec.threads)
    reload(spec, _print_number).write(Path(arguments[1]))


def _print_number(done: int) -> None:
    sys.stdout.write(f"{done}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    os.environ.setdefault("TQDM_DISABLE", "1")
    main(sys.argv[1:])
