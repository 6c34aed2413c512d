"""A pipeline to begin with: its values for a choice of method, and its text with a comment for each decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefine.advice.chooser import MethodChoice
from prefine.advice.lengths import NEW_TOKENS, RowLength
from prefine.advice.signals import kind_read
from prefine.advice.situation import Situation
from prefine.recipe.loading import yaml_value
from prefine.recipe.pipeline import Pipeline, checked_pipeline

_COMMENT_COLUMN = 58
# About so many held-out prompts show a change; fewer than a twentieth or more than a fifth of the data are not taken.
_HELD_OUT_PROMPTS = 100
_LEAST_HELD_OUT, _MOST_HELD_OUT = 0.05, 0.2
_EVALUATED_PROMPTS = 50
_PROMPTS_OF_AN_UPDATE = 24

Settings = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """A pipeline to begin with.

    Attributes:
        pipeline: checked.
        text: its file.
    """

    pipeline: Pipeline
    text: str


def starting_pipeline(
    name: str,
    model: str,
    choice: MethodChoice,
    situation: Situation,
    machine: Sequence[str],
    extra: Mapping[str, Settings] | None = None,
) -> Start:
    """The pipeline for a choice.

    Args:
        name: the pipeline's.
        model: that training begins with.
        choice: of the method.
        situation: the data.
        machine: what the machine has, in sentences for the file's head.
        extra: fields that the machine's memory asks for, by stage and dotted name.

    Raises:
        RecipeError: the values are not valid, as for a model's name with a NUL.
    """
    stages = dict(_stages(model, choice, situation, extra or {}))
    values: dict[str, Any] = {"pipeline": name, "folder": f"runs/{name}", "stages": {}}
    for stage, fields in stages.items():
        values["stages"][stage] = _nested({path: value for path, (value, _) in fields.items()})
    pipeline = checked_pipeline(values, [], "the new pipeline")
    return Start(pipeline, _text(name, choice, machine, stages))


Fields = dict[str, tuple[Any, str]]
"""Dotted name -> (value, comment)."""


def _stages(
    model: str, choice: MethodChoice, situation: Situation, extra: Mapping[str, Settings]
) -> Iterator[tuple[str, Fields]]:
    before, heldout = model, _held_out(situation, choice.stages)
    for method in choice.stages:
        fields: Fields = {"method": (method, "")}
        where = "" if before != model else "a folder, a run, a hub id or embedded:…"
        fields["model.name"] = (before, where)
        fields |= _data(method, situation, choice.lengths[method], heldout)
        fields |= _training(method, situation, heldout)
        for path, value in extra.get(method, {}).items():
            fields[path] = (value, "for this machine's memory")
        if method == choice.method:
            for path, value in choice.settings.items():
                fields[path] = (value, _WHY.get(path, "see above"))
        yield method, fields
        if method != "reward":  # the reward model begins with the same model as the policy
            before = f"stage:{method}"
    yield from _afterwards(model, choice)


_WHY = {"reward.name": "what is optimised: a reward run or model, or module:function"}


_READ_AS = {
    ("sft", "preferences"): "the better answers of these pairs",
    ("sft", "votes"): "the answers with a thumb up",
    ("ppo", "prompts"): "prompts",
}


def _data(method: str, situation: Situation, length: RowLength, heldout: float) -> Fields:
    kind = kind_read(situation, method)
    files = situation.of(kind)
    fields: Fields = {
        "data.train": (
            files[0] if len(files) == 1 else files,
            _READ_AS.get((method, kind), f"the prompts of these {kind}" if method == "ppo" else kind),
        ),
        **_reading(files, situation),
        "data.heldout_fraction": (heldout, "of the prompts; the same ones in every stage, by data.seed"),
        "data.max_length_tokens": (length.tokens, length.why),
    }
    if length.new_tokens:
        fields["rollout.max_new_tokens"] = (length.new_tokens, "the longest answer that is tried")
    return fields


def _reading(files: Sequence[str], situation: Situation) -> Fields:
    """How these files are read, as the user said."""
    options = situation.options
    columns = {name: column for source in files for name, column in situation.columns.get(source, {}).items()}
    said: Fields = {
        "data.columns": (columns, "prefine's names, and the columns of these files"),
        "data.split": (options.split if options.split != "train" else None, ""),
        "data.delimiter": (options.text.delimiter, ""),
        "data.encoding": (options.text.encoding, ""),
    }
    return {path: (value, why) for path, (value, why) in said.items() if value}


def _count(situation: Situation, kind: str) -> int:
    counts = {"preferences": situation.pairs, "votes": situation.votes, "demonstrations": situation.demonstrations}
    return max(1, counts.get(kind, situation.prompts))


def _held_out(situation: Situation, stages: Sequence[str]) -> float:
    """The same share in every stage: with another one, prompts that one stage holds out would be learned in another."""
    fewest = min(_count(situation, kind_read(situation, method)) for method in stages)
    return round(min(_MOST_HELD_OUT, max(_LEAST_HELD_OUT, _HELD_OUT_PROMPTS / fewest)), 2)


def _training(method: str, situation: Situation, heldout: float) -> Fields:
    kind = kind_read(situation, method)
    records = round(_count(situation, kind) * (1 - heldout))
    if method == "ppo":
        steps = max(8, min(100, 3 * records // _PROMPTS_OF_AN_UPDATE))
        return {
            "training.batch_size": (_PROMPTS_OF_AN_UPDATE, "prompts of an update"),
            "training.epochs": (3.0, "passes over the prompts"),
            "training.max_steps": (steps, "updates; watch reward and KL, and stop sooner or go on"),
        }
    size = 8 if records < 2_000 else 16 if records < 20_000 else 32
    steps = max(1, -(-records // size))
    every = max(1, min(100, steps // 4))
    return {
        "training.epochs": (2.0 if records < 1_000 and method == "sft" else 1.0, "passes over the data"),
        "training.batch_size": (size, f"{situation.at_least(kind) or 'about '}{steps:,} steps in a pass"),
        "training.evaluate_every_steps": (every, ""),
        "training.save_every_steps": (every, "a stopped run goes on from there"),
    }


def _afterwards(model: str, choice: MethodChoice) -> Iterator[tuple[str, Fields]]:
    """Comparison with what training began with, a merged model, and a page."""
    last = f"stage:{choice.method}"
    if choice.method != "reward":
        before = "stage:sft" if "sft" in choice.stages[:-1] else model
        yield (
            "better",
            {
                "method": ("evaluate", "held-out prompts answered by both"),
                "candidate": (last, ""),
                "against": (before, ""),
                "limit": (_EVALUATED_PROMPTS, "prompts at most"),
                "max_new_tokens": (NEW_TOKENS, ""),
            },
        )
        yield "served", {"method": ("export", ""), "model": (last, ""), "to": ("merged", "or gguf:q4_k_m, adapter, …")}
    yield "page", {"method": ("report", "all training stages on one page")}


def _nested(fields: Settings) -> Settings:
    nested: Settings = {}
    for path, value in fields.items():
        *sections, last = path.split(".")
        place = nested
        for name in sections:
            place = place.setdefault(name, {})
        place[last] = value
    return nested


# --- The text ----------------------------------------------------------------------------------------------------


def _text(name: str, choice: MethodChoice, machine: Sequence[str], stages: dict[str, Fields]) -> str:
    others = [f"{each}: {why}." for each, why in choice.others]
    lines = [
        *_comments(["Written by prefine init. Every value can be changed here, or for one run with --set."]),
        *_comments(["Why this method:"], [*choice.reasons]),
        *(_comments(["Mind:"], [*choice.warnings]) if choice.warnings else ()),
        *(_comments(["These data also allow (--method):"], others) if others else ()),
        *(_comments(["This machine:"], [*machine]) if machine else ()),
        f"pipeline: {yaml_value(name)}",
        _line(f"folder: {yaml_value(f'runs/{name}')}", "each stage has a folder in it"),
        "stages:",
    ]
    for stage, fields in stages.items():
        lines += ["", f"  {stage}:", *_section(fields)]
    return "\n".join(lines) + "\n"


def _section(fields: Fields) -> Iterator[str]:
    """A stage's fields, those of a section together."""
    seen: list[str] = []
    for path, (value, why) in fields.items():
        section, dot, _ = path.rpartition(".")
        if not dot:
            yield _line(f"    {path}: {yaml_value(value)}", why)
        elif section not in seen:
            seen.append(section)
            yield f"    {section}:"
            for other, (inner, reason) in fields.items():
                if other.rpartition(".")[0] == section:
                    yield _line(f"      {other.rpartition('.')[2]}: {yaml_value(inner)}", reason)


def _comments(titles: Sequence[str], items: Sequence[str] = ()) -> Iterator[str]:
    for text in (*titles, *(f"- {item}" for item in items)):
        shown = "".join(character if character.isprintable() else " " for character in text)
        yield f"# {' '.join(shown.split())}"


def _line(text: str, why: str) -> str:
    return f"{text:<{_COMMENT_COLUMN}}# {why}" if why else text
