"""Matches expressions for module names in a separate process, which is killed if it takes too long.

Python's `re` takes time exponential in a name's length for some expressions, and cannot be stopped from outside.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

_SECONDS = 10.0
_MOST_CHARACTERS = 10_000
# Reads an expression and names from standard input; writes the matching names, or the error in the expression.
_MATCHER = """
import json, re, sys
pattern, names = json.load(sys.stdin)
try:
    matching = re.compile(pattern).fullmatch
except (re.error, OverflowError, RecursionError) as error:
    json.dump(str(error), sys.stdout)
else:
    json.dump([name for name in names if matching(name)], sys.stdout)
"""


def matching_names(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a regular expression matches completely, as `re.fullmatch` does.

    Raises:
        ValueError: it is not a regular expression, is too long, or takes too long.
    """
    if len(pattern) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(pattern):,} characters; at most {_MOST_CHARACTERS:,} are allowed")
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter and a program of our own
            [sys.executable, "-I", "-S", "-c", _MATCHER],
            input=json.dumps([pattern, list(names)]),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"matching it takes more than {_SECONDS:g} s") from None
    except subprocess.CalledProcessError:
        raise ValueError("it could not be matched") from None
    found = json.loads(done.stdout)
    if isinstance(found, str):
        raise ValueError(f"it is not a regular expression: {found}")
    return list(found)
