"""Whatever is sent, no request fails the server, and every refusal is an error that OpenAI's clients read."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

from tests.serving.live import Live

# Requests for each route and way, valid and not.
EXAMPLES = 15


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_that_the_schema_allows_or_forbids_fails_the_server(live: Live, mode: GenerationMode) -> None:
    described = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) > 8
    for operation in operations:

        @given(operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: Any) -> None:
            response = case.call(timeout=60)
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                check_error(response.json())

        with suppress(Unsatisfiable):  # a route without parameters has no request that its schema forbids
            ask()


# What the schema does not say: values that only a program would send.
ODD: list[Any] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b"{" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "temperature": 1e999}',
    b'{"prompt": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}], "input": "\\udfff"}',
    b'{"prompt": "x", "\\ud800": 1, "messages": [{"role": "user", "content": "x"}], "input": "x", "completions": []}',
    b'{"prompt": "x", "model": "\\ud800", "messages": [{"role": "\\ud800", "content": "x"}], "input": "x"}',
    b'{"prompt": "x", "stop": "\\u0000", "messages": [{"role": "user", "content": "\\u0000"}], "max_tokens": 1}',
    b'{"prompt": [[]], "messages": [{}], "input": [{}]}',
    b'{"messages": [[]], "input": [[]], "prompt": [[[]]]}',
    b'{"prompt": [4294967296], "max_tokens": 1}',
    b'{"prompt": [2000000000], "max_tokens": 1}',
    b'{"prompt": "x", "logit_bias": {"1e3": 1}}',
    b'{"prompt": "x", "messages": [{"role": "user", "content": "x"}], "tools": [[]], "input": "x"}',
    b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema"}}',
    b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema", "json_schema": '
    b'{"schema": {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}}}}',
    b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema", "json_schema": '
    b'{"schema": {"type": "string", "pattern": "(a+)+$"}}}, "max_tokens": 5}',
    b'{"input": "x", "text": {"format": {"type": "json_schema", "schema": 3}}}',
    b'{"input": "x", "text": {"format": 3}}',
    b'{"input": "x", "metadata": {"a": NaN}, "prompt": "x", "tools": [{"function": {"name": "f", "a": NaN}}]}',
    b'{"input": "x", "text": {"format": {"type": "text", "a": 1e999}}}',
    b'{"prompt": "x", "messages": [{"role": "user", "content": "x"}], "logit_bias": {"' + b"0" * 5000 + b'": 1}}',
]
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/score", "/generate", "/tokenize")


@pytest.mark.parametrize("path", PATHS)
def test_odd_bodies(live: Live, path: str) -> None:
    for body in ODD:
        response = live.http.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400), (response.status_code, body[:100], response.text)
        if response.status_code != 200:
            check_error(response.json())
    assert live.get("/health").json()["status"] == "ok"


def test_odd_paths_and_methods(live: Live) -> None:
    for path in ("/v1/models/%ff", "/v1/models/" + "x" * 5000, "/../etc/passwd", "/v1/models/a%0d%0ab", "//", "/%00"):
        response = live.http.get(path)
        assert response.status_code in (200, 404), path
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        response = live.http.request(
            method, "/v1/chat/completions", content=b"{}", headers={"content-type": "application/json"}
        )
        assert response.status_code == 405
        check_error(response.json())


def check_error(body: Any) -> None:
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
