"""How long the rows of each stage may be: room for the longest record, as far as the model's context reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prefine.advice.signals import kind_read
from prefine.advice.situation import Situation

_LENGTHS = (256, 512, 1024, 2048)
# Lengths are estimated from characters; tokenizers differ by about so much.
_ROOM = 1.25
NEW_TOKENS = 160
"""Of an answer that is generated."""


@dataclass(frozen=True)
class RowLength:
    """The length of a stage's rows.

    Attributes:
        tokens: data.max_length_tokens.
        why: what it follows from, for the pipeline's file.
        new_tokens: of them for an answer that is generated, rollout.max_new_tokens; 0 for a stage without one.
        problem: what does not fit, in a sentence; "" if all records do.
    """

    tokens: int
    why: str
    new_tokens: int = 0
    problem: str = ""


def row_lengths(stages: Sequence[str], situation: Situation, context: int | None = None) -> dict[str, RowLength]:
    """The length for each stage, by method.

    Args:
        stages: methods in order.
        context: the most tokens that the model reads at once; None if not known.
    """
    found = {method: _length(method, situation, context) for method in stages}
    if "reward" in found and "ppo" in found and found["reward"].tokens < found["ppo"].tokens:
        found["reward"] = replace(
            found["reward"], tokens=found["ppo"].tokens, why="as of ppo, whose prompts and answers it scores"
        )
    return found


def length_warnings(lengths: Mapping[str, RowLength]) -> list[str]:
    """What does not fit, one sentence for all stages of which it is true."""
    stages: dict[str, list[str]] = {}
    for method, length in lengths.items():
        if length.problem:
            stages.setdefault(length.problem, []).append(method)
    return [f"{' and '.join(methods)}: {problem}" for problem, methods in stages.items()]


def _length(method: str, situation: Situation, context: int | None) -> RowLength:
    kind = kind_read(situation, method)
    writes = method == "ppo"
    new = NEW_TOKENS if writes else 0
    longest = (situation.longest_prompts if writes else situation.longest_tokens).get(kind, 0)
    needed = _ROOM * longest + new
    most = min(context or _LENGTHS[-1], _LENGTHS[-1])
    tokens = min(most, next((each for each in _LENGTHS if each >= needed), most))
    if needed > tokens:
        new = min(new, tokens // 2)
    read = " read" if any(source in situation.read_in_part for source in situation.of(kind)) else ""
    has = f"the longest {'prompt' if writes else 'record'}{read} has about {longest:,} tokens"
    why = f"{has}, and answers have {new}" if writes else has
    return RowLength(tokens, why, new, "" if needed <= tokens else _problem(why, tokens, context))


def _problem(has: str, tokens: int, context: int | None) -> str:
    """That the longest record does not fit, with what to do."""
    limit, remedy = "", "Raise it if the memory allows that."
    if tokens == context:
        limit, remedy = ", the context of the model", "Shorten them, or take a model with a longer context."
    return (
        f"{has}, as estimated from characters (tokenizers differ by a quarter), and data.max_length_tokens is "
        f"{tokens:,}{limit}: longer rows lose their oldest turns, or are left out. {remedy}"
    )
