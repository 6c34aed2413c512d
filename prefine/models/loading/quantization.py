"""Quantisation of frozen weights by bitsandbytes, on every device that prefine runs on."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from prefine.errors import MissingDependencyError
from prefine.recipe.sections import ModelSection

INSTALL_QUANTIZATION = "pip install 'prefine[quantization]'"


def bitsandbytes_installed() -> bool:
    """Whether weights can be quantised here."""
    return importlib.util.find_spec("bitsandbytes") is not None


def quantization_config(section: ModelSection, dtype: torch.dtype) -> Any:
    """The configuration for transformers.

    Args:
        section: with model.quantization nf4 or int8.
        dtype: the compute type.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    if not bitsandbytes_installed():
        raise MissingDependencyError(
            f"{section.quantization} needs the package bitsandbytes, which is not installed",
            f"Run: {INSTALL_QUANTIZATION}; or set it to none.",
            field="model.quantization",
        )
    from transformers import BitsAndBytesConfig

    if section.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )
