"""What each export format does: the protocol, the options, the proof's limits, and the table of formats.

A format writes files into a folder that nobody sees yet (see run_export.py) and names its artefacts: what users will
load, and with which library. Each artefact is loaded again in a fresh process and compared with the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from prefine.errors import RecipeError
from prefine.runs.atomic import JSON

if TYPE_CHECKING:
    from prefine.export.source import ExportSource

# What users write for --dtype, and torch's name of it.
DTYPES = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "fp32": "float32",
    "f32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
}


@dataclass(frozen=True)
class ProofLimits:
    """How far an artefact may be from the run (docs/export.md derives the figures).

    Attributes:
        top1: least share of positions at which both give the same token the highest probability.
        kl_mean, kl_p99: most KL(run ‖ artefact), nats a token: mean, and 99th percentile over positions.
        perplexity: most relative change of the perplexity on answers.
        kept: least and most of the trained change of the logits that the artefact has: 0 is the base model, 1 the run.
        stops: "all" demands every stop token of the run, "turn_end" only the template's end of turn, for file formats
            that hold no more than one.
    """

    top1: float
    kl_mean: float
    kl_p99: float
    perplexity: float
    kept: tuple[float, float]
    stops: Literal["all", "turn_end"] = "all"


# Of models whose weights are stored, and computed with, in a type of 16 bits or more. A run on an int8 base rounds
# activations, too, to 8 bits of the largest in their row.
ROUNDING_LIMITS = {
    "float32": ProofLimits(top1=0.995, kl_mean=1e-6, kl_p99=1e-5, perplexity=1e-4, kept=(0.99, 1.01)),
    "float16": ProofLimits(top1=0.98, kl_mean=1e-4, kl_p99=1e-3, perplexity=0.005, kept=(0.9, 1.1)),
    "bfloat16": ProofLimits(top1=0.95, kl_mean=5e-3, kl_p99=5e-2, perplexity=0.02, kept=(0.8, 1.2)),
    "int8": ProofLimits(top1=0.95, kl_mean=5e-3, kl_p99=5e-2, perplexity=0.02, kept=(0.8, 1.2)),
}


def limits_of(*dtypes: str) -> ProofLimits:
    """The limits of the coarsest of these types, in which weights are stored or computed with on either side."""
    return max((ROUNDING_LIMITS[dtype] for dtype in dtypes), key=lambda limits: limits.kl_mean)


@dataclass(frozen=True)
class Artefact:
    """One thing that users will load.

    Attributes:
        name: as the table and the card call it, as in "merged bfloat16" or "gguf q4_k_m".
        path: from the export's folder; "." is the folder itself.
        loader: a key of prefine.export.reload.LOADERS.
        limits: of its proof.
        options: for the loader.
    """

    name: str
    path: str
    loader: str
    limits: ProofLimits
    options: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportOptions:
    """What was asked for.

    Attributes:
        types: of `--to gguf:q4_k_m,q8_0`, what follows the colon; none where there is no colon.
        dtype: torch's name of the type that weights are saved in; None for the format's default.
        final: where the export's folder will be; a format writes elsewhere, and relative paths begin here.
    """

    types: tuple[str, ...]
    dtype: str | None
    final: Path


class Format(Protocol):
    """A way to write a model. Make one with no arguments.

    Attributes:
        name: a key of FORMATS.
        usage: Markdown for README.md on how to load it, besides what it says of transformers and peft.
        library: the hub's name of the library that loads it, where these do not load it as they are; README.md then
            says `usage` alone.
    """

    name: str
    usage: tuple[str, ...]
    library: str | None

    def require(self, source: ExportSource, options: ExportOptions) -> None:
        """Check before any work what can be checked: the types, optional packages, disk space and memory.

        Raises:
            PrefineError: with the exact remedy.
        """

    def write(self, source: ExportSource, folder: Path, options: ExportOptions) -> list[Artefact]:
        """Fill `folder`, which exists and is empty, and say what is in it, in the order of the proof's table.

        Tokenizer, template and generation settings belong to it. export.json and README.md are not its concern.
        """

    def artefacts(self, source: ExportSource, folder: Path, options: ExportOptions) -> list[Artefact]:
        """What `write` returned for a folder that it filled before, with the limits of this release.

        Verifying trusts nothing else: the loader, its options and the limits in export.json may have been changed.
        """


# Format -> the class that writes it. Imported when it is asked for, so that optional parts may be missing.
FORMATS = {
    "adapter": "prefine.export.adapter:AdapterFormat",
    "merged": "prefine.export.merged:MergedFormat",
    "gguf": "prefine.export.gguf:GgufFormat",
    "gptq": "prefine.export.quantized:GptqFormat",
    "awq": "prefine.export.quantized:AwqFormat",
}


def format_named(to: str) -> tuple[Format, tuple[str, ...]]:
    """The format and types of a `--to`, as in "merged" or "gguf:q4_k_m,q8_0".

    Raises:
        RecipeError: there is no such format, or a type is named twice.
    """
    name, colon, rest = to.partition(":")
    if name not in FORMATS:
        raise RecipeError(
            f"--to is {to!r:.60}, and there is no format {name!r:.60}",
            f"Choose one of {', '.join(FORMATS)}.",
        )
    types = tuple(each.strip() for each in rest.split(",")) if colon else ()
    if len(set(types)) < len(types) or "" in types:
        raise RecipeError(f"--to is {to!r:.60}, which names a type twice or none", "Name each type once.")
    module, _, kind = FORMATS[name].partition(":")
    make: Callable[[], Format] = getattr(import_module(module), kind)
    return make(), types


def dtype_named(name: str | None) -> str | None:
    """torch's name of a --dtype.

    Raises:
        RecipeError: there is no such type, or weights cannot be saved in it.
    """
    if name is not None and name not in DTYPES:
        raise RecipeError(f"--dtype is {name!r:.60}, which is not known", f"Choose one of {', '.join(DTYPES)}.")
    return None if name is None else DTYPES[name]
