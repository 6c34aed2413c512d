"""Cheap checks at the start of every run, against errors that would otherwise go unnoticed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from prefine.data.records.selection import prompt_group
from prefine.data.tokens.store import TokenStore
from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.trees import TokenTree
from prefine.errors import TrainingError
from prefine.records import Message
from prefine.runs.atomic import JSON

# Rows that are checked: enough to find a systematic fault, few enough to cost no time on a large data set.
_ROWS = 2000
# Tolerance, as a multiple of the measured effect of rounding: a maximum is compared with few others.
_ROUNDINGS = 4
_FP32_EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class SelfCheck:
    """One check: its name, the value found, the rule, and whether the value passes."""

    name: str
    value: str
    rule: str
    passed: bool


def check_tokens(template: ChatTemplate, train: TokenStore, *, answered: bool = True) -> list[SelfCheck]:
    """Checks of the training rows' tokens: something to learn, with the end of turn, and at most one BOS.

    Rows without answers (`answered` False) have nothing to learn yet.
    """
    bare = unended = doubled = looked = 0
    for tree in _first_trees(train):
        looked += 1
        bare += tree.supervised_tokens == 0
        unended += not _ends_supervised(tree, template)
        doubled += _doubles_bos(tree, template)
    rows = f"of {looked} rows"
    answers = [
        SelfCheck("something to learn", f"{bare} {rows} without", "every row has a supervised token", not bare),
        SelfCheck("end of turn", f"{unended} {rows} without", "every answer ends in a supervised stop", not unended),
    ]
    start = SelfCheck(
        "beginning of sequence", f"{doubled} {rows} with two", "at most one BOS at the start", not doubled
    )
    return [*(answers if answered else ()), start]


def _first_trees(store: TokenStore) -> Iterator[TokenTree]:
    return (store[i] for i in range(min(_ROWS, len(store))))


def _ends_supervised(tree: TokenTree, template: ChatTemplate) -> bool:
    return all(
        answer[-1] in template.stop_ids and (mask is None or mask[-1])
        for answer, mask in zip(tree.answers, tree.supervised, strict=True)
    )


def _doubles_bos(tree: TokenTree, template: ChatTemplate) -> bool:
    bos = template.tokenizer.bos_token_id
    return bos is not None and list(tree.prompt[:2]) == [bos, bos]


def check_leaks(train: TokenStore, heldout: TokenStore) -> SelfCheck:
    """Train and held-out rows share no prompt (normalised)."""
    groups = {_group(heldout, i) for i in range(min(_ROWS, len(heldout)))}
    shared = sum(_group(train, i) in groups for i in range(min(_ROWS, len(train))))
    return SelfCheck("held-out prompts", f"{shared} shared with train", "no prompt is in both", not shared)


def _group(store: TokenStore, index: int) -> str:
    messages = record_prompt(json.loads(store.record_json(index)))
    return prompt_group(tuple(Message.model_validate(m) for m in messages))


def record_prompt(record: dict[str, Any]) -> list[dict[str, str]]:
    """The prompt of a stored record's JSON: a preference's prompt, or a demonstration without its last answer."""
    prompt: list[dict[str, str]] = record["prompt"] if "prompt" in record else record["messages"][:-1]
    return prompt


def check_first_loss(loss: float, margin: float, *, repeated: float, largest: float) -> list[SelfCheck]:
    """DPO before the first step: policy and reference agree, so the margin is 0 and the loss ln 2.

    Both come from one function and the same microbatch. So the margin may differ from 0 only by the difference between
    two computations of one batch, and by the order of a sum in fp32.

    Args:
        loss, margin: means over a batch computed with the cached reference; nats.
        repeated: the largest difference in a pair's margin between two computations of the batch, nats.
        largest: the largest absolute value of an answer's summed log-probability, nats.
    """
    wanted = math.log(2)
    tolerance = _agreement(repeated, largest)
    return [
        SelfCheck("first margin", f"{margin:+.2g}", f"0 ± {tolerance:.2g}", abs(margin) <= tolerance),
        SelfCheck(
            "first loss", f"{loss:.6f}", f"ln 2 = {wanted:.6f} ± {tolerance:.2g}", abs(loss - wanted) <= tolerance
        ),
    ]


def check_first_log_ratio(log_ratio: float, *, repeated: float, largest: float) -> SelfCheck:
    """KTO before the first step: policy and reference agree, so the mean log-ratio of answers is 0.

    Args:
        log_ratio: mean over a batch computed with the cached reference; nats.
        repeated, largest: see check_first_loss; of single answers.
    """
    tolerance = _agreement(repeated, largest)
    return SelfCheck("first log-ratio", f"{log_ratio:+.2g}", f"0 ± {tolerance:.2g}", abs(log_ratio) <= tolerance)


def _agreement(repeated: float, largest: float) -> float:
    """How far the mean difference of summed log-probabilities may be from 0 if policy and reference are the same."""
    return _ROUNDINGS * (repeated + _FP32_EPSILON * max(1.0, largest))


def check_scores(alone: Tensor, together: Tensor, rounding: float) -> SelfCheck:
    """A reward score does not change with the other answers in its batch, nor with padding.

    Args:
        alone, together: raw scores of the same answers, each computed by itself and all at once.
        rounding: how far rounding moves such scores: the root mean square change when every embedded number moves by
            one unit of rounding.
    """
    difference, spread = float((alone - together).abs().max()), float(together.std())
    tolerance = _ROUNDINGS * (rounding + _FP32_EPSILON * float(together.abs().max()))
    return SelfCheck(
        "scores in a batch",
        f"{difference:.2g} from those alone, at a spread of {spread:.2g}",
        f"at most {tolerance:.2g}",
        difference <= tolerance,
    )


def check_first_ratio(difference: float, repeated: float) -> SelfCheck:
    """Policy and rollouts agree before the first optimiser step: every ratio pi / pi_old is 1.

    Both log-probabilities come from one function and the same microbatches, so they are bit-identical wherever a
    computation is repeatable.

    Args:
        difference: the largest |ratio - 1| of the first minibatch.
        repeated: the largest difference in a log-probability between two computations of one microbatch, nats.
    """
    tolerance = _ROUNDINGS * (repeated + _FP32_EPSILON)
    return SelfCheck(
        "first ratio", f"{difference:.2g} from 1 at most", f"1 within {tolerance:.2g}", difference <= tolerance
    )


def require(checks: list[SelfCheck]) -> list[dict[str, JSON]]:
    """The checks for the manifest.

    Raises:
        TrainingError: one failed.
    """
    failed = [f"{c.name}: {c.value}, but {c.rule}" for c in checks if not c.passed]
    if failed:
        raise TrainingError(
            f"self-check failed: {'; '.join(failed)}",
            "Look at a decoded example with 'prefine data check'; training.self_checks: false turns the checks off.",
        )
    return [asdict(c) for c in checks]
