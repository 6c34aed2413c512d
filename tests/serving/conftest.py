"""One server with a tiny model for all tests that only ask it something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.models.tiny import save_folder
from tests.serving.live import Live, make_service, running


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a token for each byte and a context of 512."""
    return save_folder(tmp_path_factory.mktemp("served") / "tiny", max_position_embeddings=512)


@pytest.fixture(scope="session")
def live(tiny_model: Path, no_cache_outside: None) -> Iterator[Live]:
    """A server with this model."""
    with running(make_service([tiny_model], slots=8, max_tokens=400)) as server:
        yield server


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which does not try again."""
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made
