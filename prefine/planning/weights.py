"""Bytes of a model's weights in the type, and with the quantisation, that they are loaded in."""

from __future__ import annotations

from prefine.planning.architecture import Architecture

FP32 = 4
ITEM_BYTES = {"float32": FP32, "bfloat16": 2}
_NF4_BLOCK = 64  # weights that share a scale, which has 8 bits; 256 scales share an fp32 one
_NF4_BYTES = 1 / 2 + 1 / _NF4_BLOCK + FP32 / (_NF4_BLOCK * 256)


def frozen_bytes(shapes: Architecture, score_heads: int, quantization: str, dtype: str) -> int:
    """Frozen weights: quantisation applies to the linear layers of the trunk, the rest is in the compute type.

    Args:
        score_heads: see Architecture.parameters_with.
        quantization: none, nf4 or int8.
        dtype: the compute type.
    """
    size, parameters = ITEM_BYTES[dtype], shapes.parameters_with(score_heads)
    others = (parameters - shapes.linear_parameters) * size
    if quantization == "nf4":
        return round(shapes.linear_parameters * _NF4_BYTES) + others
    if quantization == "int8":
        scales = sum(each.outputs for each in shapes.linears) * FP32
        return shapes.linear_parameters + scales + others
    return parameters * size
