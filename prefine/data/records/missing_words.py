"""Texts that programs write for a missing value. They may be intended, as in lessons on SQL, so they are only
reported.
"""

from __future__ import annotations

from prefine.records import Completion, Demonstration, Preference, Record, Vote

# From spreadsheets, pandas, R, SQL and programming languages; compared without case.
_MISSING = frozenset(
    {
        *("#ref!", "#n/a", "#value!", "#div/0!", "#name?", "#num!", "#null!", "#spill!", "#calc!", "#field!"),
        *("#error!", "#getting_data", "#blocked!", "#busy!", "#connect!", "#unknown!"),
        *("n/a", "na", "<na>", "nan", "nat", "null", "none", "nil", "\\n", "undefined", "[object object]"),
    }
)


def missing_word(record: Record) -> str | None:
    """The first turn or answer of a record that means a missing value; None if there is none."""
    match record:
        case Preference():
            answers = [record.chosen, record.rejected]
        case Vote() | Completion():
            answers = [record.completion]
        case _:
            answers = []
    turns = record.messages if isinstance(record, Demonstration) else record.prompt
    for said in (*answers, *(turn.content for turn in turns)):
        if len(said) < 100 and said.strip().lower() in _MISSING:
            return said.strip()
    return None
