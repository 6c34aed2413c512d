"""What prefine computes for the probes: the run's own logits, those of its base, and its greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.trees import collate
from prefine.export.probes import Probe, answer_length, probes_of
from prefine.export.source import ExportSource
from prefine.generation.answers import context_of
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Request
from prefine.models.forward.active_adapter import OWN_ADAPTER
from prefine.models.forward.packed import LogitsHead, PackedModel, embedding_rows
from prefine.models.shared_base import has_adapter

# Of so many probes the base's logits are computed, too.
BASE_PROBES = 12
SAMPLES = 4
_MOST_TOKENS = 2048
_SLOTS = 32


@dataclass(frozen=True)
class Reference:
    """The run on the probes.

    Attributes:
        probes: all with answers.
        logits: for each probe (answer, V) fp32, which predict the answer's tokens.
        base: the same of the base without the adapter, for the first probes; empty without an adapter.
        greedy: the run's answers to the first SAMPLES probes, token ids, the end of turn included.
        new_tokens: of a greedy answer, at most.
        stop_ids, turn_end: of its template.
        dtype: that it is computed in.
    """

    probes: list[Probe]
    logits: list[Tensor]
    base: list[Tensor]
    greedy: list[list[int]]
    new_tokens: int
    stop_ids: frozenset[int]
    turn_end: int
    dtype: str


def compute_reference(
    source: ExportSource, progress: Callable[[int, int], None] = lambda done, total: None
) -> Reference:
    """Compute a run's own logits and greedy answers.

    Args:
        progress: called with the number of probes that are done, and of all.
    """
    packed, template = source.loaded.packed, source.loaded.template
    vocabulary = embedding_rows(packed.causal)
    probes = probes_of(source.run, template, vocabulary, context_of(packed))
    tokens = answer_length(probes)
    unanswered = [i for i, probe in enumerate(probes) if not probe.answer]
    asked = sorted({*range(min(SAMPLES, len(probes))), *unanswered})
    greedy = dict(zip(asked, _greedy(packed, template, [probes[i] for i in asked], tokens), strict=True))
    probes = [replace(p, answer=p.answer or tuple(greedy[i])) for i, p in enumerate(probes)]
    logits = list(_logits(packed, probes, OWN_ADAPTER, lambda done: progress(done, len(probes))))
    base: list[Tensor] = []
    if has_adapter(packed.model):
        base = list(_logits(packed, probes[:BASE_PROBES], None, lambda done: None))
    samples = [greedy[i] for i in range(min(SAMPLES, len(probes)))]
    return Reference(
        probes=probes,
        logits=logits,
        base=base,
        greedy=samples,
        new_tokens=tokens,
        stop_ids=template.stop_ids,
        turn_end=template.turn_end,
        dtype=source.reference_dtype,
    )


def _greedy(packed: PackedModel, template: ChatTemplate, probes: Sequence[Probe], tokens: int) -> list[list[int]]:
    requests = [Request(probe.prompt, Sampling(tokens, temperature=0.0), template.stop_ids) for probe in probes]
    return [list(each.tokens) for each in writer_for(packed, template.tokenizer, _SLOTS).write(requests)]


@torch.no_grad()
def _logits(
    packed: PackedModel, probes: Sequence[Probe], adapter: str | None, progress: Callable[[int], None]
) -> Iterator[Tensor]:
    done = 0
    for group in _groups(probes):
        found = packed(collate([probe.tree for probe in group]), head=LogitsHead(), adapter=adapter)
        yield from torch.split(found, [len(probe.answer) for probe in group])
        done += len(group)
        progress(done)


def _groups(probes: Sequence[Probe]) -> Iterator[list[Probe]]:
    """Probes that are computed together, in order."""
    group: list[Probe] = []
    for probe in probes:
        if group and sum(each.tree.tokens for each in group) + probe.tree.tokens > _MOST_TOKENS:
            yield group
            group = []
        group.append(probe)
    if group:
        yield group
