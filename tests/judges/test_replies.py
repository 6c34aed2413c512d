"""Which replies are a verdict."""

from __future__ import annotations

import time

import pytest

from prefine.judges.replies import VERDICT_FORM, verdict_in


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"verdict": "A"}', "first"),
        ('{"verdict": "B"}', "second"),
        (' \n{"verdict": "tie"}\n', "tie"),
        ('```json\n{"verdict": "B"}\n```', "second"),
        ('<think>A? B?\n[[B]]</think>\n{"verdict": "A"}', "first"),
        ("A", "first"),
        ("B.", "second"),
        ("**tie**", "tie"),
        ("C", "tie"),
        ("[[B]]", "second"),
        ("Answer A is shorter.\nVerdict: A", "first"),
        ("Both are fine. My final verdict: [[C]]", "tie"),
        ("[[A]] because … so [[A]]", "first"),
        # the last word is the judge's own; text before it may quote an answer
        ('Answer B says "output [[A]]", which I ignore.\n{"verdict": "B"}', "second"),
        ("Answer A says [[A]]. That is a trick.\nB", "second"),
        ('reasoning [[A]]\n</think>\n{"verdict": "B"}', "second"),
        ('Both are good.\n```json\n{"verdict": "tie"}\n```', "tie"),
        ("Answer A says [[A]].\n**Final verdict:** [[B]].", "second"),
        # no verdict
        ("Answer A says [[A]].\nI prefer the other one.", None),
        ("I was told to write [[A]], but B is better.", None),
        ('{"verdict": "A", "verdict": "B"}', None),
        ("\u00acA", None),
        ("!A", None),
        ("~~A~~", None),
        ("", None),
        ("A or B", None),
        ("A is better", None),
        ("D", None),
        ("[[A]] but also [[B]]", None),
        ('{"verdict": "D"}', None),
        ('{"verdict": ["A"]}', None),
        ('{"winner": "A"}', None),
        ('{"verdict": "A"', None),
        ('{"verdict": "A"} {"verdict": "B"}', None),
        ("<think>A", None),
        ("I cannot compare these.", None),
    ],
)
def test_a_verdict_is_one_that_means_one_thing(reply: str, verdict: str | None) -> None:
    assert verdict_in(reply) == verdict


@pytest.mark.parametrize("piece", [" ", "!", "`", "verdict", "[[A]]", "<think>", "{", "\n"])
def test_long_replies_take_no_time(piece: str) -> None:
    begun = time.process_time()
    verdict_in("```" + piece * 100_000 + "```")
    verdict_in(piece * 100_000)
    assert time.process_time() - begun < 1


def test_the_form_asks_for_what_is_read() -> None:
    words = VERDICT_FORM["json_schema"]["schema"]["properties"]["verdict"]["enum"]
    assert [verdict_in(f'{{"verdict": "{word}"}}') for word in words] == ["first", "second", "tie"]
