"""Which chat template a tokenizer gets: its own, another, or prefine's plain one, with settings that it reads."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefine.data.tokens.rendering import Renderer
from prefine.errors import ModelError

# Offered, never chosen silently: a base model has no chat template, and which one it gets is the user's decision.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)

log = logging.getLogger("prefine")


def choose_template(tokenizer: Any, named: str | None, settings: Mapping[str, Any]) -> None:
    """Give a tokenizer the chat template of a recipe's model section.

    Args:
        tokenizer: transformers'.
        named: None for its own, "plain", or the path of a Jinja file.
        settings: see set_defaults.

    Raises:
        ModelError: there is no such file.
        TemplateError: the template is not Jinja.
    """
    if named == "plain":
        tokenizer.chat_template = plain_template(tokenizer)
    elif named is not None:
        try:
            tokenizer.chat_template = Path(named).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{named!r} could not be read ({type(error).__name__}: {error})",
                "Write 'plain', the path of a Jinja file, or null for the tokenizer's own.",
                field="model.chat_template",
            ) from error
    set_defaults(tokenizer, settings)


def plain_template(tokenizer: Any) -> str:
    """The plain template, which begins with the beginning of sequence where the tokenizer writes one before a text."""
    bos = tokenizer.bos_token_id
    writes_it = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    return ("{{ bos_token }}" if writes_it else "") + PLAIN_TEMPLATE


def set_defaults(tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Give variables of a tokenizer's chat template a value, which holds unless a rendering sets them itself.

    They become a part of the template. So they are saved with it, and whatever renders the saved one, prefine or other
    tools, writes what was trained on. A setting that the template does not read is a warning.
    """
    if not settings or tokenizer.chat_template is None:
        return
    read = Renderer(tokenizer).variables()
    for name in settings:
        if name not in read:
            log.warning("model.template_kwargs: the chat template does not read %s: it changes nothing", name)
    begin = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"
        for name, value in settings.items()
    )
    # The line break goes with the block before it, and what follows is at the beginning of a line as it was.
    source = tokenizer.chat_template
    several = isinstance(source, dict)
    tokenizer.chat_template = (
        {name: f"{begin}\n{each}" for name, each in source.items()} if several else f"{begin}\n{source}"
    )


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(key)}: {_literal(each)}' for key, each in value.items())}}}"
    # A brace beside another would be a Jinja delimiter only outside of a tag; here it is text in quotes.
    return json.dumps(value, ensure_ascii=False)
