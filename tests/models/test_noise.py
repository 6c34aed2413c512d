"""Four known messages are left out while a model loads, in that place only; all others are shown."""

from __future__ import annotations

import logging
import warnings

import pytest
from transformers.utils import logging as transformers_logging

from prefine.models.noise import known_noise_off


def speak() -> None:
    kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")
    kernels.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "no")
    kernels.warning("Something else about kernels")
    modeling = logging.getLogger("transformers.modeling_utils")
    modeling.warning("LlamaForCausalLM LOAD REPORT from: x")
    modeling.warning("Something else about models")
    warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
    warnings.warn("Something else in the future", FutureWarning, stacklevel=1)


def test_known_messages_are_left_out_and_only_inside(caplog: pytest.LogCaptureFixture) -> None:
    """Inside half of them, outside all."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with known_noise_off():
            speak()
        assert [str(w.message).split()[0] for w in caught] == ["Something"]
        assert [r.getMessage() for r in caplog.records] == [
            "Something else about kernels",
            "Something else about models",
        ]
        speak()
        assert len(caught) == 3
        assert len(caplog.records) == 6


def test_only_the_weights_bar_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Downloads keep their bars, and a hook that was there before is back afterwards."""
    with known_noise_off():
        for what in ("Loading weights", "Fetching 3 files"):
            for _ in transformers_logging.tqdm(range(3), desc=what):
                pass
    shown = capsys.readouterr().err
    assert "Fetching 3 files" in shown
    assert "Loading weights" not in shown
    list(transformers_logging.tqdm(range(3), desc="Loading weights"))
    assert "Loading weights" in capsys.readouterr().err


def test_it_ends_with_an_error_too() -> None:
    """A model that cannot be loaded must not silence what comes after."""
    before = transformers_logging.set_tqdm_hook(None)
    with pytest.raises(RuntimeError, match="inside"), known_noise_off():
        raise RuntimeError("inside")
    assert transformers_logging.set_tqdm_hook(before) is None
