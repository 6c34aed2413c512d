"""Remedies of a stage's errors, which name options of the stage's own command, as a pipeline takes them."""

from __future__ import annotations

import re

from prefine.recipe.pipeline_stage import PipelineStage

_OPTION = re.compile(r"--(?P<name>[a-z][a-z-]*)(?: (?P<value>\w(?:[\w:-]*\w)?))?")
# The others are followed by words of the sentence, or by a placeholder.
_WITH_VALUES = ("dtype", "to")
_SET = re.compile(r"--set (?!stages\.|run\b)(?=[a-z_]+\.)")
_RESUME = re.compile(r"(?<!add )(?<!without )--resume\b")


def in_pipeline(remedy: str, stage: PipelineStage) -> str:
    """`remedy` with options that are keys of the stage as `stages.NAME.KEY`, and the call that continues it.

    An option of the same name of `prefine run`, such as --force, does something else.
    """
    fields = set() if stage.trains else set(type(stage.recipe).model_fields)

    def key(found: re.Match[str]) -> str:
        name, value = found["name"].replace("-", "_"), found["value"]
        if name == "force" and stage.takes_force:
            return found[0].replace("--force", f"stages.{stage.name}.force: true")
        if name not in fields:
            return found[0]
        if value is not None and name in _WITH_VALUES:
            return f"stages.{stage.name}.{name}: {value}"
        return found[0].replace(f"--{found['name']}", f"stages.{stage.name}.{name}")

    remedy = _OPTION.sub(key, remedy)
    remedy = _SET.sub(f"--set stages.{stage.name}.", remedy)
    return _RESUME.sub("prefine run", remedy)
