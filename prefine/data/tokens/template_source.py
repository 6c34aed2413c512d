"""The chat template of a tokenizer: its own, another, or prefine's plain one, with values for its variables."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefine.data.tokens.rendering import Renderer
from prefine.errors import ModelError

# Never chosen silently: a base model has no chat template, and the user decides which one it gets.
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
        TemplateError: it is not a Jinja template.
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
    """The plain template, with the beginning-of-sequence token if the tokenizer adds one to a text."""
    bos = tokenizer.bos_token_id
    writes_it = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    return ("{{ bos_token }}" if writes_it else "") + PLAIN_TEMPLATE


def set_defaults(tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Give variables of a tokenizer's chat template default values.

    They become part of the template and are saved with it, so that prefine and other tools render what was trained on.
    A setting that the template does not read gives a warning.
    """
    if not settings or tokenizer.chat_template is None:
        return
    read = Renderer(tokenizer).variables()
    for name in settings:
        if name not in read:
            log.warning("model.template_kwargs: the chat template does not read %s, so it has no effect", name)
    begin = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"
        for name, value in settings.items()
    )
    # The block removes the line break after it, so what follows is still at the start of a line.
    source = tokenizer.chat_template
    several = isinstance(source, dict)
    tokenizer.chat_template = (
        {name: f"{begin}\n{each}" for name, each in source.items()} if several else f"{begin}\n{source}"
    )


def _literal(value: Any) -> str:
    """A JSON value as a Jinja literal."""
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
