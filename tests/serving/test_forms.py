"""response_format: what it costs to hold answers to a form."""

from __future__ import annotations

from typing import Any

import pytest

from prefine.generation import json_constraint
from tests.serving.live import Live


def test_a_schema_is_compiled_once_for_all_choices(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    real = json_constraint._grammar

    def noting(*args: Any) -> str:
        compiled.append(args)
        return real(*args)

    monkeypatch.setattr(json_constraint, "_grammar", noting)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a", "b"]}}}
    answer = live.chat(n=4, temperature=1.0, seed=3, response_format=form)
    assert answer.status_code == 200, answer.text
    texts = [choice["message"]["content"] for choice in answer.json()["choices"]]
    assert len(texts) == 4
    assert set(texts) <= {'"a"', '"b"'}
    assert len(compiled) == 1
