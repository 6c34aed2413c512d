"""Suites that other programs could easily misread."""

from __future__ import annotations

from prefine.exchange.cases import Suite, suite_of_records
from prefine.records import Message, Preference, Prompt

# Templates, comments, files and escapes of the programs that read them.
HARD = "What is {{ 7*7 }} {% if x %} {{env.HOME}} {# c #} #} file:///etc/hostname é <&> \\n \\ '\" }} %} {0} {x}?"
ASKED = (HARD, "{{ messages }}", "file:///etc/hostname", " package:a:b ", '{{ "quoted" }}', "plain\nlines")


def prompt(text: str) -> tuple[Message, ...]:
    return (Message(role="system", content="Be {brief}."), Message(role="user", content=text))


def cases() -> Suite:
    """Prompts whose right answer is the question itself, or one of two."""
    rows = [Prompt(prompt=prompt(text), id=f"c{n}", extra={"reference": text}) for n, text in enumerate(ASKED)]
    rows.append(Prompt(prompt=prompt("yes"), id="c6", extra={"references": ["no", "yes"], "category": "two"}))
    rows.append(Prompt(prompt=prompt("maybe"), id="c7", extra={"ideal": "yes"}))
    return suite_of_records(rows)


def battles() -> Suite:
    """Pairs whose better answer says so."""
    return suite_of_records(
        [
            Preference(prompt=prompt(f"Q{n}"), chosen=f"good {n} {{x}}", rejected=f"bad {n}", id=f"b{n}")
            for n in range(6)
        ]
    )
