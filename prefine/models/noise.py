"""Keeps known messages of libraries that mean nothing to a user off the terminal; all others are shown."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def known_noise_off() -> Iterator[None]:
    """Inside, three messages of loading a model are left out.

    They are transformers' "Loading weights" bar, its FutureWarning of is_gradient_checkpointing (which peft asks for),
    and bitsandbytes' note that an optional kernel is not there.
    """
    from transformers.utils import logging as transformers_logging

    kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")
    kernels.addFilter(_is_no_kernel_note)
    bars_before = transformers_logging.set_tqdm_hook(_without_weights_bar)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        transformers_logging.set_tqdm_hook(bars_before)
        kernels.removeFilter(_is_no_kernel_note)


def _is_no_kernel_note(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")


def _without_weights_bar(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    hidden = {"disable": True} if options.get("desc") == "Loading weights" else {}
    return bar(*args, **{**options, **hidden})
