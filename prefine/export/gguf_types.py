"""The types of GGUF files: their size, who writes them, and how far their proof may be from the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefine.errors import RecipeError
from prefine.export.formats import ROUNDING_LIMITS, ProofLimits

# q8_0 changes answers least among the quantised types; a model of less than a billion parameters notices q4.
DEFAULT_TYPE = "q8_0"


@dataclass(frozen=True)
class GgufType:
    """One type of GGUF file.

    Attributes:
        bits: a weight takes on average, scales included.
        limits: of its proof; docs/export.md shows what they come from.
        k_quant: whether a quantiser writes it (llama-quantize, auto-round); llama.cpp's converter writes the others.
    """

    bits: float
    limits: ProofLimits
    k_quant: bool = True


def _limits(top1: float, kl_mean: float, kl_p99: float, perplexity: float, kept: float) -> ProofLimits:
    """Limits of a quantised type. `kept` is how far the trained change may be from its own size."""
    return ProofLimits(top1, kl_mean, kl_p99, perplexity, (1 - kept, 1 + kept), stops="turn_end")


def _rounded(dtype: str) -> ProofLimits:
    limits = ROUNDING_LIMITS[dtype]
    return ProofLimits(limits.top1, limits.kl_mean, limits.kl_p99, limits.perplexity, limits.kept, stops="turn_end")


GGUF_TYPES = {
    "f32": GgufType(32, _rounded("float32"), k_quant=False),
    "f16": GgufType(16, _rounded("float16"), k_quant=False),
    "bf16": GgufType(16, _rounded("bfloat16"), k_quant=False),
    "q8_0": GgufType(8.5, _limits(0.95, 0.01, 0.1, 0.03, 0.1), k_quant=False),
    "q6_k": GgufType(6.6, _limits(0.92, 0.02, 0.2, 0.05, 0.15)),
    "q5_k_m": GgufType(5.7, _limits(0.85, 0.08, 0.8, 0.10, 0.25)),
    "q5_k_s": GgufType(5.6, _limits(0.85, 0.08, 0.8, 0.10, 0.25)),
    "q4_k_m": GgufType(4.9, _limits(0.80, 0.15, 1.5, 0.20, 0.3)),
    "q4_k_s": GgufType(4.7, _limits(0.80, 0.15, 1.5, 0.20, 0.3)),
    "q4_0": GgufType(4.6, _limits(0.65, 0.40, 4.0, 0.50, 0.4)),
    "q3_k_m": GgufType(4.0, _limits(0.60, 0.60, 6.0, 0.80, 0.5)),
}


def require_types(types: Sequence[str]) -> tuple[str, ...]:
    """The types that a --to names, in its order; the default one if it names none.

    Raises:
        RecipeError: one is not known.
    """
    for name in types:
        if name not in GGUF_TYPES:
            raise RecipeError(
                f"--to names the GGUF type {name!r:.40}, which is not known", f"Choose from {', '.join(GGUF_TYPES)}."
            )
    return tuple(types) or (DEFAULT_TYPE,)
