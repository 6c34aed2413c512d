"""Variables that a recipe may set for the chat template: none that a rendering itself sets."""

from __future__ import annotations

import json
import keyword
from typing import Annotated, Any

from pydantic import AfterValidator


def _template_settings(settings: dict[str, Any]) -> dict[str, Any]:
    for name, value in settings.items():
        if not name.isidentifier() or keyword.iskeyword(name.capitalize()) or keyword.iskeyword(name):
            raise ValueError(f"{name!r} is not a valid variable name; write names that the chat template reads")
        if name in _RENDERED_NAMES or name.endswith("_token"):
            raise ValueError(f"{name} is set by prefine for every conversation; leave it out")
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError(f"{name} holds a number that is not finite; write another value") from None
    return settings


# Variables of a rendering itself, and the functions that every chat template has.
_RENDERED_NAMES = frozenset(
    (
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *(
            "raise_exception",
            "strftime_now",
            "namespace",
            "range",
            "dict",
            "lipsum",
            "cycler",
            "joiner",
            "loop",
            "self",
        ),
    )
)
TemplateSettings = Annotated[dict[str, Any], AfterValidator(_template_settings)]
