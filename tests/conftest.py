"""What tests of several rooms share."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


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


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with 49,152 words and 24 layers, 64 wide; load it in float32 or bfloat16."""
    from tests.models.tiny import save_deep_model

    return save_deep_model(tmp_path_factory.mktemp("deep") / "model")
