"""Turns settings into fields of a recipe. Each setting is written, or left with a reason: none is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

from prefine.foreign_recipes.settings import Configuration, Left, Moved, Setting, Written
from prefine.recipe.foreign_names import FIELDS, REASONS, meaning
from prefine.recipe.problems import Mistake, describe, field_paths
from prefine.recipe.registry import RECIPES

_LONGEST_SHOWN = 60
_NOT_RUN = "its value is known only when the file runs, and prefine does not run it: write the value into the recipe"
_DOTTED = re.compile(r"\b[a-z]\w*(?:\.[a-z]\w*)+\b")
# Names that mean the same in prefine and elsewhere, with their section.
_SAME_NAMES = {
    name: f"{section}.{name}"
    for section, names in {
        "training": (
            "batch_size learning_rate max_steps weight_decay adam_epsilon max_grad_norm early_stopping_patience"
        ),
        "model": "device attn_implementation trust_remote_code gradient_checkpointing",
        "dpo": "label_smoothing",
        "ppo": "gamma lam",
        "rollout": "max_new_tokens temperature",
    }.items()
    for name in names.split()
}


class Mover:
    """A configuration on its way into a recipe. Rules take settings by name; `finish` deals with those that are left.

    Args:
        configuration: of another trainer, with the stage's name among `RECIPES`.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.model = RECIPES[configuration.stage]
        self.paths = frozenset(field_paths(self.model))
        self.moved = Moved(configuration)
        self._settings = dict(configuration.settings)
        for name, reason in configuration.unread:
            self.moved.left.append(Left(name, "", reason))

    def take(self, name: str) -> Setting | None:
        """The setting of this name, once; None if there is none, or if its value is an expression (then it is left)."""
        setting = self._settings.pop(name, None)
        if setting is not None and setting.expression is not None:
            self.leave(setting, _NOT_RUN)
            return None
        return setting

    def value(self, name: str, otherwise: Any = None) -> Any:
        """The value of a setting that stays, for rules that depend on it."""
        setting = self._settings.get(name)
        return otherwise if setting is None or setting.expression is not None else setting.value

    def write(self, path: str, value: Any, *settings: Setting, note: str = "") -> None:
        """Set a field of the recipe; leave the settings if this recipe has no such field."""
        if path not in self.paths:
            for setting in settings:
                self.leave(setting, meaning(setting.name, self.paths) or self._no(path))
            return
        said = ", ".join(
            f"{each.name}: {_shown(each.value)}{' by default' if each.default else ''}" for each in settings
        )
        if path.startswith("lora.") and self.trains_all:
            for setting in settings:
                self.leave(setting, "no adapter is trained")
            return
        names = tuple(each.name for each in settings)
        self.moved.fields[path] = Written(value, "; ".join(filter(None, (said, note))), names)

    @property
    def trains_all(self) -> bool:
        """Whether all weights are trained, so that the section lora is null."""
        return "lora" in self.moved.fields and self.moved.fields["lora"].value is None

    def leave(self, setting: Setting, reason: str) -> None:
        """List a setting as one without a counterpart."""
        value = setting.expression or _shown(setting.value)
        name = f"{setting.name} (default)" if setting.default else setting.name
        self.moved.left.append(Left(name, value, reason.rstrip(".")))

    def todo(self, sentence: str) -> None:
        """Note what the user must do before the recipe runs."""
        self.moved.to_do.append(sentence)

    @property
    def _stage(self) -> str:
        return self.moved.configuration.stage

    def finish(self) -> Moved:
        """Deal with the settings that no rule took, and drop fields whose values the recipe refuses."""
        null = [name for name, each in self._settings.items() if each.value is None and each.expression is None]
        if null:
            self.moved.left.append(Left(", ".join(null), "null", "they set nothing"))
        for name in [name for name in self._settings if name not in null]:
            setting = self.take(name)
            if setting is not None:
                self.by_name(setting)
        self._refuse_invalid()
        self._list_unused()
        return self.moved

    def _list_unused(self) -> None:
        """List the settings that a rule took and found no use for: a value of another type, mostly."""
        used = {name for written in self.moved.fields.values() for name in written.names}
        used |= {name for left in self.moved.left for name in left.name.split(", ")}
        for setting in self.moved.configuration.settings.values():
            if setting.name not in used and not setting.default:
                self.leave(setting, "prefine has no use for this value")

    def by_name(self, setting: Setting) -> None:
        """Write a setting whose value means the same in the recipe, or say why it is left."""
        plain = setting.name.lower().replace("-", "_")
        same = [field for meant in FIELDS.get(plain, ()) if not meant.note for field in meant.fields]
        if plain in _SAME_NAMES:
            same.append(_SAME_NAMES[plain])
        path = next((field for field in same if field in self.paths), None)
        if path is None:
            self.leave(setting, self._why(plain))
        else:
            self.write(path, setting.value, setting)

    def _no(self, path: str) -> str:
        return f"a prefine {self._stage} recipe has no {path}"

    def _why(self, plain: str) -> str:
        if plain in _SAME_NAMES:
            return self._no(_SAME_NAMES[plain])
        reason = REASONS.get(plain) or next((why for name, why in REASONS.items() if fnmatchcase(plain, name)), None)
        if plain == "length_penalty":
            return "it is of beam search, which prefine does not do"
        if reason is None and any(path.rpartition(".")[2] == plain for path in self.paths):
            return "it means something else than prefine's field of this name"
        return reason or meaning(plain, self.paths) or "prefine does not know this setting"

    def _refuse_invalid(self) -> None:
        """Take out values that the recipe does not allow, each with the rule; what is left is valid."""
        fields = self.moved.fields
        while mistakes := self._mistakes():
            found: dict[str, str] = {}
            for mistake in mistakes:
                path = next((each for each in _DOTTED.findall(mistake.text) if each in fields), None)
                if path is not None:
                    found.setdefault(path, mistake.text)
            for path, reason in found.items():
                written = fields.pop(path)
                names = ", ".join(written.names) or path
                self.moved.left.append(Left(names, _shown(written.value), reason))
                self.todo(f"Set {path}, or mean its default: the value {_shown(written.value)} is not valid here.")
            if not found:
                for mistake in mistakes:
                    self.todo(f"{mistake.text}. {mistake.remedy}")
                return

    def _mistakes(self) -> list[Mistake]:
        try:
            self.model.model_validate_json(json.dumps(self.moved.values), strict=True)
        except ValidationError as error:
            return describe(error, self.model, "recipe", {})
        return []


Rule = Callable[[Mover], None]
"""A rule takes some settings of a mover, and writes or leaves each."""


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
