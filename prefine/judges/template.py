"""The text that asks a judge: a template with placeholders, which the user may replace.

The placeholders are those of `string.Template`, so a template can only insert text: it runs nothing and reads nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from prefine.errors import TemplateError

_DEFAULT = Path(__file__).parent / "templates" / "pairwise.txt"
_REQUIRED = ("conversation", "answer_a", "answer_b")
_KNOWN = (*_REQUIRED, "reference", "mark")
_LARGEST_BYTES = 1024 * 1024
_MARK_DIGITS = 12


class JudgeTemplate:
    """A template with $conversation, $answer_a and $answer_b; also $mark and $reference. `$$` is a dollar sign.

    `$mark` is a hash of the conversation and both answers. Lines with it delimit these texts: an answer cannot hold
    the mark of a text that contains that answer, so it cannot end its own part.

    Args:
        path: of the file; None: the one of the package.
        closing: the last paragraph instead of the template's own: the form of the reply.

    Attributes:
        name: the file's name without its suffix; "" for the one of the package.

    Raises:
        TemplateError: the file cannot be read, or a placeholder is unknown or missing.
    """

    def __init__(self, path: Path | None = None, closing: str | None = None) -> None:
        self.name = "" if path is None else path.stem
        text = _read(path or _DEFAULT)
        if closing is not None:
            text = text.rstrip().rpartition("\n\n")[0] + f"\n\n{closing}\n"
        self._template = Template(text)
        if not self._template.is_valid():
            raise TemplateError(
                f"{path}: a dollar sign is not followed by a placeholder's name", "Write $$ for a dollar sign itself."
            )
        found = self._template.get_identifiers()
        known = ", ".join(f"${each}" for each in _KNOWN)
        for each in found:
            if each not in _KNOWN:
                raise TemplateError(
                    f"{path}: ${each} is not a placeholder", f"Use {known}; $$ is a dollar sign itself."
                )
        for each in _REQUIRED:
            if each not in found:
                raise TemplateError(
                    f"{path}: the placeholder ${each} is missing", f"Write it where the text goes: {known}."
                )

    def fill(self, prompt: Sequence[Mapping[str, Any]], first: str, second: str, reference: str = "") -> str:
        """The text for one pair: `first` is answer A, `second` answer B."""
        conversation = "\n\n".join(f"[{turn.get('role', '')}]\n{_content(turn)}" for turn in prompt)
        parts = json.dumps([conversation, first, second, reference]).encode()
        mark = hashlib.sha256(parts).hexdigest()[:_MARK_DIGITS]
        return self._template.substitute(
            conversation=conversation, answer_a=first, answer_b=second, reference=reference, mark=mark
        )


def _content(turn: Mapping[str, Any]) -> str:
    """A turn's text; all of a turn that has more than text (blocks, tool calls), as JSON."""
    content = turn.get("content")
    if isinstance(content, str) and not turn.get("tool_calls"):
        return content
    return json.dumps({name: value for name, value in turn.items() if name != "role"}, ensure_ascii=False)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: the name holds NUL
        raise TemplateError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}", "Check its name and permissions."
        ) from None
    if len(data) > _LARGEST_BYTES:
        raise TemplateError(f"{path}: is larger than 1 MiB, which no template is", "Name the template's file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TemplateError(f"{path}: is not UTF-8 text", "Save it as UTF-8.") from None
