"""Texts that programs write where a value is missing. One may be meant, as in lessons on SQL, so it is only told."""

from __future__ import annotations

from prefine.records import Completion, Demonstration, Preference, Record, Vote

# Of Excel and its like, pandas, R, SQL and programming languages; compared without regard to capitals.
_MISSING = frozenset(
    {
        *("#ref!", "#n/a", "#value!", "#div/0!", "#name?", "#num!", "#null!", "#spill!", "#calc!", "#field!"),
        *("#error!", "#getting_data", "#blocked!", "#busy!", "#connect!", "#unknown!"),
        *("n/a", "na", "<na>", "nan", "nat", "null", "none", "nil", "\\n", "undefined", "[object object]"),
    }
)


def missing_word(record: Record) -> str | None:
    """The first text of a record, a whole turn or answer, that stands for a missing value; None without one."""
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
