"""Hides known library messages that do not help a user; all others are shown."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_KNOWN_BARS = ("Loading weights", "Writing model shards")


@contextmanager
def known_noise_off() -> Iterator[None]:
    """Inside, five messages of loading and saving a model are hidden.

    They are transformers' bars "Loading weights" and "Writing model shards", its table of missing and unexpected
    weights (load.py reports that in a line), its FutureWarning on is_gradient_checkpointing (which peft reads), and
    bitsandbytes' note that an optional kernel is missing.
    """
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("bitsandbytes.backends.cpu.ops", "transformers.modeling_utils")]
    for logger in loggers:
        logger.addFilter(_is_news)
    # The first releases of transformers 5 lack this hook, so their bar is shown.
    set_hook = getattr(transformers_logging, "set_tqdm_hook", lambda hook: None)
    bars_before = set_hook(_without_known_bars)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        set_hook(bars_before)
        for logger in loggers:
            logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(known in str(record.msg) for known in ("Failed to load CPU gemm_4bit_forward", " LOAD REPORT"))


def _without_known_bars(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    hidden = {"disable": True} if options.get("desc") in _KNOWN_BARS else {}
    return bar(*args, **{**options, **hidden})
