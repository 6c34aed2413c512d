"""The settings in a training script of TRL: its configuration, and what it gives to the trainer."""

from __future__ import annotations

import ast
from pathlib import Path

from prefine.errors import RecipeError
from prefine.foreign_recipes.literals import shown
from prefine.foreign_recipes.python_file import QUANTISATION, Script, ScriptCall
from prefine.foreign_recipes.settings import Setting
from prefine.foreign_recipes.trl_trainers import TRAINERS, named_by

LORA_DEFAULTS = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}  # of TRL's ModelConfig
PEFT_DEFAULTS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}  # of peft's LoraConfig
PEFT_PREFIX = "lora."
_OF_SCRIPTS = ("ModelConfig", "ScriptArguments", "DatasetMixtureConfig")


def read_script(path: Path, method: str | None) -> tuple[str, dict[str, Setting], list[tuple[str, str]]]:
    """The trainer of a script, its settings, and what else there is, as (source text, reason).

    Args:
        path: a Python file.
        method: the stage of prefine, or the trainer, that is meant, where the script has several.

    Raises:
        RecipeError: it cannot be read, or has no configuration of that method, or several.
    """
    script = Script(path)
    trainer, call = _one_configuration(path, script, method)
    settings, unread = dict(call.settings), list(call.unread)
    if arguments := settings.pop("model_init_kwargs", None):
        _add(_flattened(arguments), settings, unread)
    for name in (*_OF_SCRIPTS, QUANTISATION):
        if (other := _first(script, (name,), unread)) is not None:
            _add(other.settings, settings, unread)
            unread += other.unread
    if (adapter := _first(script, ("LoraConfig",), unread)) is not None:
        values = {name: Setting(name, value, default=True) for name, value in PEFT_DEFAULTS.items()} | adapter.settings
        settings.update({PEFT_PREFIX + name: setting for name, setting in values.items()})
        unread += adapter.unread
    elif "use_peft" in settings and settings["use_peft"].value is True:
        for name, value in LORA_DEFAULTS.items():
            settings.setdefault(name, Setting(name, value, default=True))
    elif makers := script.calls("get_peft_model"):
        settings["peft_config"] = Setting("get_peft_model", f"line {makers[0].line}")
    _of_trainer(script, trainer, settings, unread)
    return trainer, settings, unread


def _flattened(arguments: Setting) -> dict[str, Setting]:
    if not isinstance(arguments.value, dict):
        return {arguments.name: arguments}
    return {name: Setting(name, value) for name, value in arguments.value.items()}


def _first(script: Script, names: tuple[str, ...], unread: list[tuple[str, str]]) -> ScriptCall | None:
    """The first call of one of these names; further ones are listed."""
    calls = script.calls(*names)
    unread += [(f"{call.name}, line {call.line}", "the file has several; the first is read") for call in calls[1:]]
    return calls[0] if calls else None


def _add(more: dict[str, Setting], settings: dict[str, Setting], unread: list[tuple[str, str]]) -> None:
    """Add settings of another part of the script; those that are there with another value are listed."""
    for name, setting in more.items():
        key = "model_revision" if name == "revision" else name  # of from_pretrained; ModelConfig has the longer name
        held = settings.setdefault(key, setting)
        if (held.value, held.expression) != (setting.value, setting.expression):
            unread.append((f"{name}={setting.expression or setting.value}", "another part of the script says it, too"))


def _one_configuration(path: Path, script: Script, method: str | None) -> tuple[str, ScriptCall]:
    """The trainer and its configuration. Raises RecipeError where there is none, or more than one."""
    known = {f"{name}Config": name for name in TRAINERS}
    calls = script.calls(*known)
    if method is not None:
        meant = named_by(method, [known[call.name] for call in calls])
        calls = [call for call in calls if known[call.name] in meant]
    if not calls:
        what = f"a configuration for {method}" if method else "any of its configurations"
        raise RecipeError(f"{path} has no call of {what}", f"prefine reads {', '.join(known)}.")
    if len(calls) > 1:
        places = ", ".join(f"{call.name} in line {call.line}" for call in calls)
        raise RecipeError(
            f"{path} has several configurations: {places}", "Choose one with --method, or split the file."
        )
    return known[calls[0].name], calls[0]


def _of_trainer(script: Script, trainer: str, settings: dict[str, Setting], unread: list[tuple[str, str]]) -> None:
    """Add what the script gives to the trainer itself: model, data, rewards."""
    own = script.subclasses(f"{trainer}Trainer")
    unread += [(f"class {name}({trainer}Trainer)", "it is code, which prefine does not run") for name in own]
    call = _first(script, (f"{trainer}Trainer", *own), unread)
    if call is not None:
        expressions = dict([("model", part) for part in call.positional[:1]] + [*call.expressions.items()])
        nameless = zip(call.positional[1:], call.unread[1:], strict=False)  # the first argument is the model
        unread += [note for part, note in nameless if script.made_by(part) != f"{trainer}Config"]
        unread += call.unread[len(call.positional) :]
        for name, expression in expressions.items():
            if name in ("train_dataset", "eval_dataset"):
                source, changes = script.dataset(expression)
                unread += changes
                settings[name] = Setting(name, source) if source else call.settings[name]
            elif name == "reward_funcs":
                settings[name] = Setting(name, _rewards(script, expression))
            elif name == "model":
                _of_model(script, expression, settings, unread)
            elif name == "peft_config":
                _of_peft(script, expression, settings)
            elif name in ("processing_class", "tokenizer"):
                unread.append((f"{name}={shown(expression)}", "the tokenizer of the model is used"))
            elif name != "args":
                _add({name: call.settings[name]}, settings, unread)
    for callback in script.calls("add_callback"):
        unread.append((f".add_callback(…), line {callback.line}", "it is code, which prefine does not run"))
    for change in script.tokenizer_changes():
        unread.append((change, "the tokenizer is used as it was loaded; model.chat_template names a Jinja file"))
    _loaded(script, settings, unread)


def _loaded(script: Script, settings: dict[str, Setting], unread: list[tuple[str, str]]) -> None:
    """Where the trainer's arguments do not say the model or the data: those that the script loads first."""
    models = script.loaded_models()
    if "model_name_or_path" not in settings and models:
        first = next((model for model in models if model.name is not None), models[0])
        if first.name is not None:
            settings["model_name_or_path"] = Setting("from_pretrained", first.name)
        _add(first.options, settings, unread)
        unread += first.unread
        others = [f"from_pretrained: {model.name or 'a name that is not a literal'}" for model in models]
        others = [text for text, model in zip(others, models, strict=True) if model.name != first.name]
        unread += [(other, "the file loads several models; the first is trained") for other in dict.fromkeys(others)]
    loaded_rows = script.loaded_datasets()
    if "train_dataset" not in settings and "dataset_name" not in settings and loaded_rows:
        settings["train_dataset"] = Setting("load_dataset", loaded_rows[0][0])
        unread += loaded_rows[0][1]
        others = [f"load_dataset: {found['path']}" for found, _ in loaded_rows[1:]]
        unread += [(other, "the file loads several data sets; the first is learned from") for other in others]


def _of_model(
    script: Script, expression: ast.expr, settings: dict[str, Setting], unread: list[tuple[str, str]]
) -> None:
    model = script.loaded_model(expression)
    if model.name is not None:
        settings["model_name_or_path"] = Setting("model", model.name)
    else:
        unread.append((f"model={shown(expression)}", "it is not a name, or a model that is loaded by a literal name"))
    _add(model.options, settings, unread)
    unread += model.unread


def _of_peft(script: Script, expression: ast.expr, settings: dict[str, Setting]) -> None:
    """Note an adapter that is not described by the LoraConfig or ModelConfig of the script."""
    maker = script.made_by(expression)
    described = maker == "LoraConfig" or (maker == "get_peft_config" and bool(script.calls("ModelConfig")))
    setting = script.setting("peft_config", expression)
    if not described and (setting.value is not None or setting.expression is not None):
        settings["peft_config"] = Setting("peft_config", setting.expression or setting.value)


def _rewards(script: Script, expression: ast.expr) -> list[str | None]:
    """Names of reward models; None for a function of the script."""
    parts = expression.elts if isinstance(expression, ast.List | ast.Tuple) else [expression]
    return [script.loaded_name(part) for part in parts]
