"""What a model says of given texts: log-probabilities of another model's answers, of pairs and of demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from prefine.data.tokens.fitting import Fitted, fit_record
from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.trees import TokenTree, collate, microbatches
from prefine.errors import TemplateError
from prefine.evaluation.comparing.answering import SideAnswer
from prefine.models.forward.packed import PackedModel, evaluating
from prefine.models.loading.load import LoadedModel
from prefine.objectives import kl
from prefine.records import Demonstration, Preference

_MAX_TOKENS = 4096


@torch.no_grad()
def tree_logprobs(model: PackedModel, trees: Sequence[TokenTree]) -> Iterator[list[Tensor]]:
    """Log-probabilities of each tree's answers in order: a tensor (tokens that count,) fp32 on the CPU for each."""
    with evaluating(model):
        for run in microbatches(trees, _MAX_TOKENS):
            batch = collate(run).to(model.device)
            parts = iter(torch.split(model(batch).float().cpu(), batch.sequence_lengths().tolist()))
            for tree in run:
                yield [next(parts) for _ in tree.answers]


def kl_rows(reference: LoadedModel, answers: Sequence[SideAnswer]) -> Iterator[dict[str, Any]]:
    """For each answer the mean k1 and k3 over its tokens, nats, from the model that generated it to a reference.

    Args:
        answers: their own log-probabilities are those that they were generated with.
    """
    known = [each for each in answers if each.ids]
    trees = (TokenTree(each.prompt, (each.ids,), (None,), place) for place, each in enumerate(known))
    found = tree_logprobs(reference.packed, list(trees))
    for each in answers:
        if not each.ids:
            yield {"k1": None, "k3": None}
            continue
        (theirs,) = next(found)
        own = torch.tensor(each.logprobs)
        yield {"k1": float(kl.k1(own, theirs).mean()), "k3": float(kl.k3(own, theirs).mean())}


def pair_rows(loaded: LoadedModel, pairs: Sequence[Preference], room: int) -> Iterator[dict[str, Any]]:
    """For each pair how much likelier its chosen answer is, nats per token, None if it does not fit or is refused; and
    what of its prompt is cut (Fitted.what_is_cut).
    """
    rows = [_fitted(loaded.template, pair, room) for pair in pairs]
    found = tree_logprobs(loaded.packed, [row.tree for row in rows if row is not None])
    for row in rows:
        if row is None:
            yield {"margin": None, "cut": ""}
            continue
        chosen, rejected = next(found)
        yield {"margin": float(chosen.mean() - rejected.mean()), "cut": row.what_is_cut}


def demonstration_rows(
    loaded: LoadedModel, demonstrations: Sequence[Demonstration], room: int
) -> Iterator[dict[str, Any]]:
    """For each demonstration the loss, nats per token, and its number of tokens, None if it does not fit or is refused;
    and what of it is cut (Fitted.what_is_cut).
    """
    rows = [_fitted(loaded.template, each, room) for each in demonstrations]
    found = tree_logprobs(loaded.packed, [row.tree for row in rows if row is not None])
    for row in rows:
        if row is None:
            yield {"loss": None, "tokens": 0, "cut": ""}
            continue
        logprobs = torch.cat(next(found))
        yield {"loss": -float(logprobs.mean()), "tokens": len(logprobs), "cut": row.what_is_cut}


def _fitted(template: ChatTemplate, record: Preference | Demonstration, room: int) -> Fitted | None:
    try:
        return fit_record(template, record, room)
    except TemplateError:
        return None
