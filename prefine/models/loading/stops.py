"""Which tokens end an answer: one set for training, generation, penalties and users of the saved model.

It is the union of the tokens that the model's files declare (generation_config.json may list several), the tokenizer's
end-of-sequence token and the chat template's end of turn (`ChatTemplate.stop_ids`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from prefine.data.tokens.template import ChatTemplate
from prefine.json_reading import JsonError, read_json
from prefine.models.loading.location import Location

log = logging.getLogger("prefine")

GENERATION_CONFIG = "generation_config.json"
_CONFIG = "config.json"


def declared_ends(location: Location, revision: str | None = None) -> frozenset[int]:
    """Token ids that end an answer according to the files of a model, of its base and its adapter.

    As transformers reads them: generation_config.json, and config.json if a model has no other.
    """
    ends = _ends_in(_file(location.base, GENERATION_CONFIG, revision))
    if ends is None:
        ends = _ends_in(_file(location.base, _CONFIG, revision)) or set()
    if location.adapter is not None:
        ends |= _ends_in(_file(str(location.adapter), GENERATION_CONFIG, None)) or set()
    return frozenset(ends)


def template_of(tokenizer: Any, location: Location, revision: str | None = None) -> ChatTemplate:
    """The tokenizer's chat template, with the ends that the model's files declare; warns about ends that it ignores.

    Raises:
        TemplateError: see ChatTemplate.
    """
    declared = declared_ends(location, revision)
    template = ChatTemplate(tokenizer, declared)
    if spoken := sorted(declared - template.stop_ids):
        words = ", ".join(f"{end} ({tokenizer.decode([end])!r})" for end in spoken)
        log.warning(
            "the config of %s declares eos_token_id %s, which is not a control token of its tokenizer: ignored",
            location.name,
            words,
        )
    return template


def stop_at(causal: Any, template: ChatTemplate) -> None:
    """Set the ends in a language model's own settings, so that it is saved with them.

    Its config and its generation_config get all of them, the end of turn first: some tools read only the first.
    """
    generation = getattr(causal, "generation_config", None)
    if generation is None:  # a classifier
        return
    ends = [template.turn_end, *sorted(template.stop_ids - {template.turn_end})]
    told = ends[0] if len(ends) == 1 else ends
    generation.eos_token_id = told
    generation._from_model_config = False
    for config in {id(each): each for each in (causal.config, causal.config.get_text_config())}.values():
        config.eos_token_id = told


def save_ends(causal: Any, folder: Path) -> None:
    """Write generation_config.json to an adapter's folder; peft does not save it."""
    if getattr(causal, "generation_config", None) is not None:
        (folder / GENERATION_CONFIG).write_text(causal.generation_config.to_json_string(), "utf-8")


def _file(where: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder or a hub model; None if there is none."""
    if Path(where).is_dir():
        return path if (path := Path(where) / name).is_file() else None
    from transformers.utils import cached_file

    missing = {
        f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")
    }
    found = cached_file(where, name, revision=revision, **missing)
    return None if found is None else Path(found)


def _ends_in(path: Path | None) -> set[int] | None:
    """`eos_token_id` of a file, one or a list; None if there is no such file."""
    if path is None:
        return None
    try:
        told = read_json(path)
    except (JsonError, OSError):  # the loader reports the fault
        return None
    if not isinstance(told, dict):
        return None
    text = told.get("text_config")
    ends = told.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
    return {end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int}
