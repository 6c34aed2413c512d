"""The application while it serves."""

from __future__ import annotations

import asyncio
import gc
from unittest.mock import MagicMock

from prefine.serving.app import create_app
from prefine.web.policy import access_policy


def test_what_was_loaded_is_not_looked_through_for_garbage_while_serving() -> None:
    service = MagicMock()
    app = create_app(service, access_policy("127.0.0.1", None))

    async def serve() -> int:
        async with app.router.lifespan_context(app):
            service.worker.start.assert_called_once_with()
            return gc.get_freeze_count()

    gc.unfreeze()  # another test's server may run
    assert asyncio.run(serve()) > 10_000
    assert gc.get_freeze_count() == 0
    service.close.assert_called_once_with()
