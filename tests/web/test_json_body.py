"""Bodies are strict JSON in every route."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel

from prefine.web.handlers import install_handlers
from prefine.web.json_body import JsonRoute, strict_json


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400 + ".0"])
def test_numbers_that_json_cannot_represent_are_refused(number: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=f"the number {number[:40]}"):
        strict_json(f'{{"a": [1.5, {number}]}}'.encode())


def test_other_values_are_read() -> None:
    assert strict_json(b'{"a": [1, -0.5, 1e3, "NaN", null, true]}') == {"a": [1, -0.5, 1000.0, "NaN", None, True]}


class Anything(BaseModel):
    a: Any


@pytest.mark.parametrize("padding", ["", " " * 100_000], ids=["small", "large"])
@pytest.mark.parametrize(
    ("body", "status", "says"),
    [('{"a": 1}', 200, ""), ('{"a": NaN}', 400, "the number NaN"), ('{"a": ', 400, "the body is not JSON")],
)
def test_a_route_reads_bodies_so(body: str, status: int, says: str, padding: str) -> None:
    def echo(body: Anything) -> dict[str, Any]:
        return {"a": body.a}

    router = APIRouter(route_class=JsonRoute)
    router.post("/")(echo)
    app = FastAPI()
    app.include_router(router)
    install_handlers(app)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/", content=padding + body, headers={"content-type": "application/json"})

    response = asyncio.run(ask())
    assert response.status_code == status
    assert says in response.text
