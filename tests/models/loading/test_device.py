"""The choice of device and type is a function of what is there; what is absent is refused with a remedy."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from prefine.errors import ModelError
from prefine.models.loading import device as device_module
from prefine.models.loading.device import (
    Accelerators,
    Launched,
    choose_device,
    choose_dtype,
    cpu_instructions,
    device_report,
    launched_as,
    matmul_rates,
    pick_device,
    rates_of_one_thread,
    usable_cores,
)

NOTHING = Accelerators(0, mps=False)
MAC = Accelerators(0, mps=True)
ONE_GPU = Accelerators(1, mps=False)
TWO_GPUS = Accelerators(2, mps=False)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "found", "launched", "expected"),
    [
        ("auto", NOTHING, None, "cpu"),
        ("auto", MAC, None, "mps"),
        ("auto", Accelerators(1, mps=True), None, "cuda:0"),
        ("AUTO ", ONE_GPU, None, "cuda:0"),
        ("cpu", TWO_GPUS, None, "cpu"),
        ("mps", MAC, None, "mps"),
        ("cuda", TWO_GPUS, None, "cuda:0"),
        ("cuda:1", TWO_GPUS, None, "cuda:1"),
        ("auto", TWO_GPUS, Launched(1, 2), "cuda:1"),
        ("cuda", TWO_GPUS, Launched(0, 2), "cuda:0"),
        ("cuda:1", TWO_GPUS, Launched(0, 1), "cuda:1"),
        ("auto", NOTHING, Launched(1, 2), "cpu"),
        ("auto", MAC, Launched(0, 1), "mps"),
    ],
)
def test_pick_device(asked: str, found: Accelerators, launched: Launched | None, expected: str) -> None:
    assert pick_device(asked, found, launched) == expected


@pytest.mark.parametrize(
    ("asked", "found", "launched", "problem", "remedy"),
    [
        ("gpu", NOTHING, None, "'gpu' is not a device", "Use auto, cpu, mps, cuda"),
        ("cpu:1", NOTHING, None, "not a device", "Use auto"),
        ("cuda:x", TWO_GPUS, None, "not a device", "Use auto"),
        ("cuda:-1", TWO_GPUS, None, "not a device", "Use auto"),
        ("", NOTHING, None, "not a device", "Use auto"),
        ("cuda", NOTHING, None, "finds no CUDA GPU", "device: auto"),
        ("cuda:2", TWO_GPUS, None, "'cuda:2', but there are 2 GPUs", "below 2"),
        ("cuda:1", ONE_GPU, None, "there is 1 GPU", "below 1"),
        ("mps", TWO_GPUS, None, "cannot use an Apple GPU", "device: auto"),
        ("auto", TWO_GPUS, Launched(2, 3), "3 launched processes need as many GPUs", "no more processes than GPUs"),
        ("cuda:1", TWO_GPUS, Launched(0, 2), "all 2 launched processes on one GPU", "device: cuda"),
    ],
)
def test_pick_device_refuses(
    asked: str, found: Accelerators, launched: Launched | None, problem: str, remedy: str
) -> None:
    with pytest.raises(ModelError) as refused:
        pick_device(asked, found, launched)
    assert problem in refused.value.problem
    assert remedy in refused.value.remedy


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, Launched(1, 2)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, Launched(1, 2)),
        ({"LOCAL_RANK": "0"}, Launched(0, 1)),
        ({"LOCAL_RANK": "none"}, None),
    ],
)
def test_launched_as_reads_torchruns_variables(environment: dict[str, str], expected: Launched | None) -> None:
    assert launched_as(environment) == expected


def test_choose_device_gives_one_that_is_here() -> None:
    chosen = choose_device()
    assert torch.ones(1, device=chosen).device == chosen
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(
    ("asked", "rates", "expected", "reason"),
    [
        ("auto", {"float32": 100.0, "bfloat16": 320.0}, torch.bfloat16, "3.2 times"),
        ("auto", {"float32": 100.0, "bfloat16": 130.0}, torch.bfloat16, "1.3 times"),
        ("auto", {"float32": 100.0, "bfloat16": 129.0}, torch.float32, "less than the 1.3"),
        ("auto", {"float32": 100.0, "bfloat16": 3.0}, torch.float32, "0.030 times"),
        ("auto", {"float32": 100.0}, torch.float32, "less than"),
        ("auto", {}, torch.float32, "less than"),
        (
            "bfloat16",
            {"float32": 100.0, "bfloat16": 40.0},
            torch.bfloat16,
            "requested; slow: bfloat16 products run at 0.4",
        ),
        ("bfloat16", {"float32": 100.0, "bfloat16": 320.0}, torch.bfloat16, "requested"),
        ("bf16", {"float32": 100.0, "bfloat16": 110.0}, torch.bfloat16, "requested"),
        (
            "float32",
            {"float32": 100.0, "bfloat16": 320.0},
            torch.float32,
            "requested; slow: bfloat16 products run at 3.2",
        ),
        ("fp32", {"float32": 100.0, "bfloat16": 110.0}, torch.float32, "requested"),
    ],
)
def test_choose_dtype(asked: str, rates: dict[str, float], expected: torch.dtype, reason: str) -> None:
    dtype, why = choose_dtype(asked, CPU, rates)
    assert dtype == expected
    assert reason in why
    assert ("slow" in why) == ("slow" in reason)


@pytest.mark.parametrize("native", [True, False])
def test_gpus_with_bfloat16_instructions_need_no_measurement(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(device_module, "_native_bfloat16_gpu", lambda _: native)
    dtype, why = choose_dtype("auto", torch.device("cuda:0"), {"float32": 10.0, "bfloat16": 9.0})
    assert dtype == (torch.bfloat16 if native else torch.float32)
    assert why == "cuda:0 has bfloat16 instructions" or not native


@pytest.mark.parametrize("asked", ["float16", "fp16", "half"])
def test_float16_is_refused_and_says_why(asked: str) -> None:
    with pytest.raises(ModelError, match=r"does not scale.*bfloat16, which has the range of float32"):
        choose_dtype(asked, CPU, {})


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'int8' is not a number type for training.*Use auto, float32 or bfloat16"):
        choose_dtype("int8", CPU, {})


def test_matmul_rates_measure_without_touching_random_state() -> None:
    state = torch.get_rng_state()
    rates = matmul_rates(CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(rates) == {"float32", "bfloat16"}
    assert all(rate > 0 for rate in rates.values())


def test_types_are_compared_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads wait for each other where other programs have the cores, for one type longer than for another."""
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(
        device_module, "matmul_rates", lambda _: seen.append(torch.get_num_threads()) or {"float32": 1.0}
    )
    rates_of_one_thread.cache_clear()
    try:
        torch.set_num_threads(2)
        assert choose_dtype("auto", CPU)[0] == torch.float32
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
        rates_of_one_thread.cache_clear()


def test_a_process_measures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose_dtype("auto", CPU)
    monkeypatch.setattr(device_module, "_seconds", lambda _: 1 / 0)
    assert choose_dtype("auto", CPU) == first


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock finds 5 ms passed, so that as much is measured on a busy machine as on a quiet one."""
    clock = itertools.count()
    monkeypatch.setattr(device_module, "perf_counter", lambda: next(clock) * 0.005)


@pytest.mark.usefixtures("steady_clock")
def test_types_too_slow_to_measure_at_full_size_are_rated_by_a_small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []

    def half_a_second_at_full_size(matrix: torch.Tensor) -> float:
        sides.append((matrix.dtype, matrix.shape[0]))
        return 0.5 * (matrix.shape[0] / 1024) ** 3 if matrix.dtype == torch.bfloat16 else 0.001

    monkeypatch.setattr(device_module, "_seconds", half_a_second_at_full_size)
    monkeypatch.setattr(device_module, "cpu_instructions", lambda: ["AVX2"])
    rates = matmul_rates(CPU)
    assert (torch.bfloat16, 1024) not in sides
    assert (torch.float32, 1024) in sides
    assert rates["bfloat16"] == pytest.approx(2 * 1024**3 / 0.5 / 1e9)
    assert rates["float32"] == pytest.approx(2 * 1024**3 / 0.001 / 1e9)


@pytest.mark.usefixtures("steady_clock")
def test_a_slow_first_product_does_not_condemn_a_type_the_processor_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products = []

    def busy_at_first(matrix: torch.Tensor) -> float:
        products.append(matrix)
        return 0.05 if len(products) < 10 else 0.002 if matrix.dtype == torch.bfloat16 else 0.01

    monkeypatch.setattr(device_module, "_seconds", busy_at_first)
    monkeypatch.setattr(device_module, "cpu_instructions", lambda: ["AVX512", "avx512_bf16"])
    rates = matmul_rates(CPU)
    assert rates["bfloat16"] == pytest.approx(2 * 1024**3 / 0.002 / 1e9)


def test_a_type_the_device_cannot_multiply_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_bfloat16(side: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        if dtype == torch.bfloat16:
            raise TypeError("BFloat16 is not supported on this device")
        return torch.ones(side, side)

    monkeypatch.setattr(device_module, "_square", no_bfloat16)
    assert set(matmul_rates(CPU)) == {"float32"}


def test_device_report_of_the_cpu_adds_up() -> None:
    report = device_report(CPU)
    assert report["type"] == report["device"] == "cpu"
    assert report["name"]
    assert report["cores"] == usable_cores() >= 1
    assert report["threads"] == torch.get_num_threads()
    assert 0 < report["memory_free_gb"] <= report["memory_total_gb"]


@pytest.mark.parametrize(
    ("cpu_info", "expected"),
    [
        ("model name\t: X\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n", ["avx512_bf16", "amx_bf16"]),
        ("Features\t: fp asimd bf16 i8mm\n", ["bf16"]),
        ("flags\t\t: fpu sse2\n", []),
        ("", []),
    ],
)
def test_cpu_instructions_come_from_the_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpu_info: str, expected: list[str]
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpu_info)
    monkeypatch.setattr(device_module, "_CPU_INFO", file)
    assert cpu_instructions() == [torch.backends.cpu.get_cpu_capability(), *expected]


def test_cores_are_those_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module.psutil, "cpu_count", lambda logical: 64)
    monkeypatch.setattr(device_module.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert usable_cores() == 3
