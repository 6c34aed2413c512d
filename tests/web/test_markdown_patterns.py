"""The patterns of the page's markdown: what they match, and that no text makes them slow."""

from __future__ import annotations

import re
import time
from importlib.resources import files

import pytest

SOURCE = (files("prefine.web") / "static" / "markdown.js").read_text(encoding="utf-8")
PATTERNS = re.findall(r"(?:= |replace\(|return )/(\S.*?)/g?[;,.]", SOURCE)
PIECES = (" ", "-", "- ", "#", " #", "`", "~", "|", " |", "-|", " :-: |", ">", "* ", "_", "1", "\t")


def test_the_patterns_are_found() -> None:
    assert len(PATTERNS) >= 8 and any(pattern.startswith("^ *(?:") for pattern in PATTERNS)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_takes_quadratic_time(pattern: str) -> None:
    """Quadratic ones take seconds for these; Python and browsers both search by backtracking."""
    compiled = re.compile(pattern)
    began = time.process_time()
    for piece in PIECES:
        for start in ("", "|", "# "):
            compiled.search(start + piece * 20_000 + "x")
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("line", "is_rule"),
    [
        *((line, True) for line in ("|-|", "---|---", "| :-: | --- |", "  |:--|--:|", "-|", " | - | - ", "|-|-")),
        *((line, False) for line in ("", "---", "|", "||", "| - - |", "|-||-|", "|-|x", "::-|")),
    ],
)
def test_what_divides_a_table(line: str, is_rule: bool) -> None:
    found = re.search(r"const TABLE_RULE = /(.*)/;", SOURCE)
    assert found is not None
    assert (re.search(found[1], line) is not None) == is_rule
