"""The doctor prints what the diagnosis found, for people or as JSON, and leaves with 0 whatever is missing."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from typer.testing import CliRunner

from prefine import doctor as diagnosis_module
from prefine.cli import doctor as doctor_module
from prefine.cli.app import app
from prefine.doctor import Diagnosis, OptionalPart
from prefine.models.loading.device import choose_dtype

SICK = Diagnosis(
    versions={"python": "3.11.7", "transformers": None},
    devices=[
        {
            "device": "cuda:0",
            "type": "cuda",
            "name": "NVIDIA X [PCIe]",
            "cores": None,
            "threads": None,
            "memory_total_gb": 85.04,
            "memory_free_gb": 84.0,
            "instructions": ["sm_90"],
        },
        {
            "device": "cpu",
            "type": "cpu",
            "name": "Some CPU",
            "cores": 4,
            "threads": 1,
            "memory_total_gb": 16.0,
            "memory_free_gb": 8.0,
            "instructions": [],
        },
    ],
    matmul_gflops={"float32": 51234.5, "bfloat16": 790000.0},
    dtype="bfloat16",
    dtype_reason="cuda:0 has bfloat16 instructions",
    kernel="flex",
    kernel_reason="no flash",
    hub="never asked",
    optional=[OptionalPart("flash-attn", None, "speed", "pip install it"), OptionalPart("bnb", "1.0", "memory", "-")],
    cache="/cache/prefine",
    cache_free_gb=81.6,
    warnings=["torch threads: 1, physical cores: 4. Set OMP_NUM_THREADS=4."],
)


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def diagnose(device: str) -> Diagnosis:
        asked.append(device)
        return replace(SICK)

    monkeypatch.setattr(diagnosis_module, "diagnose", diagnose)
    monkeypatch.setenv("COLUMNS", "200")
    return asked


def test_tables_show_choices_devices_rates_parts_and_warnings() -> None:
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0
    for expected in (
        "bfloat16: cuda:0 has bfloat16 instructions",
        "flex: no flash",
        "/cache/prefine (82 GB free)",
        "NVIDIA X [PCIe] · 85.0 GB memory, 84.0 GB free · sm_90",
        "Some CPU · 4 cores, 1 thread · 16.0 GB memory, 8.0 GB free",
        "51,234 GFLOP/s",
        "790,000 GFLOP/s",
        "missing · speed",
        "pip install it",
        "1.0 · memory",
        "warning: torch threads: 1, physical cores: 4. Set OMP_NUM_THREADS=4.",
    ):
        assert expected in shown.stdout


def test_json_is_the_whole_diagnosis() -> None:
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    assert json.loads(shown.stdout) == asdict(SICK)


def test_the_device_is_passed_on(found: list[str]) -> None:
    CliRunner().invoke(app, ["doctor", "--device", "cuda:1"])
    CliRunner().invoke(app, ["doctor"])
    assert found == ["cuda:1", "auto"]


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (["AVX2"], "AVX2 (no AVX-512, AVX512-BF16, AMX-BF16)"),
        (["AVX512", "avx512_bf16"], "AVX512 avx512_bf16 (no AMX-BF16)"),
        (["AVX512", "avx512_bf16", "amx_bf16"], "AVX512 avx512_bf16 amx_bf16"),
        (["DEFAULT", "bf16"], "DEFAULT bf16"),
        (["sm_90"], "sm_90"),
    ],
)
def test_instruction_sets_that_matter(found: list[str], shown: str) -> None:
    assert doctor_module._instructions(found) == shown


def test_a_slow_type_has_two_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(SICK, matmul_gflops={"float32": 170.4, "bfloat16": 5.62})
    monkeypatch.setattr(diagnosis_module, "diagnose", lambda device: slow)
    shown = CliRunner().invoke(app, ["doctor"]).stdout
    assert "170 GFLOP/s" in shown and "5.6 GFLOP/s" in shown
    _, why = choose_dtype("auto", torch.device("cpu"), slow.matmul_gflops)
    assert why.startswith("bfloat16 products run at 0.033 times the speed of float32")
