"""Five known messages are left out while a model is loaded or saved, in that place only; all others are shown."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from prefine.models.loading.load import load_model, save_model
from prefine.models.loading.quiet import known_noise_off
from prefine.recipe.sections import LoraSection, ModelSection
from tests.models import tiny


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


def test_only_known_bars_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Downloads keep their bars, and a hook that was there before is back afterwards."""
    with known_noise_off():
        for what in ("Loading weights", "Writing model shards", "Fetching 3 files"):
            for _ in transformers_logging.tqdm(range(3), desc=what):
                pass
    shown = capsys.readouterr().err
    assert "Fetching 3 files" in shown
    assert "Loading weights" not in shown
    assert "Writing" not in shown
    list(transformers_logging.tqdm(range(3), desc="Loading weights"))
    assert "Loading weights" in capsys.readouterr().err


def test_it_ends_with_an_error_too() -> None:
    """A model that cannot be loaded must not silence what comes after."""
    before = transformers_logging.set_tqdm_hook(None)
    with pytest.raises(RuntimeError, match="inside"), known_noise_off():
        raise RuntimeError("inside")
    assert transformers_logging.set_tqdm_hook(before) is None


@pytest.mark.parametrize("lora", [None, LoraSection(r=2)])
def test_loading_and_saving_a_model_prints_nothing(
    lora: LoraSection | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whole models and adapters, whatever transformers and peft find worth a bar."""
    tiny.save_folder(tmp_path / "base")
    capfd.readouterr()
    save_model(load_model(ModelSection(name=str(tmp_path / "base"), device="cpu"), lora), tmp_path / "saved")
    assert capfd.readouterr() == ("", "")
