"""Reference log-probabilities, of the policy as it was loaded: computed once, before any step, and cached on disk.

With a new adapter the reference is the base model; with an adapter that is trained further, that adapter as loaded. No
second model stays in memory, and later epochs and runs read the cache.

A few rows are computed at every start, and the bits of their log-probabilities are part of the cache key. So
everything that changes a number (weights, config, number types, threads, kernels, releases) leads to another entry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefine.data.tokens.trees import TokenTree, collate, microbatches
from prefine.models.forward.active_adapter import OWN_ADAPTER
from prefine.models.forward.packed import FORWARD_VERSION, evaluating
from prefine.models.loading.load import LoadedModel
from prefine.models.loading.pissa import holds_start
from prefine.objectives.masked import per_sequence
from prefine.recipe.stage import StageRecipe
from prefine.runs.cache import cache_directory, cache_entry, whole
from prefine.training.display import Display
from prefine.training.run.session import Session

_KIND = "reference"
_FILE = "logprobs.safetensors"
_PROBED_ROWS = 4


def reference_of_rows(session: Session[StageRecipe], part: str) -> Tensor:
    """Summed log-probabilities of all answers in a run's rows, in order: (answers,) fp32 on the CPU.

    Call it when an objective is started, while the model is as it was loaded.

    Args:
        part: train or heldout.

    Raises:
        CheckpointError: the cache cannot be written.
    """
    store = {"train": session.prepared.train, "heldout": session.prepared.heldout}[part]
    return reference_of_trees(session, store, session.prepared.digests[part], part)


def reference_of_trees(session: Session[StageRecipe], trees: Sequence[TokenTree], digest: str, name: str) -> Tensor:
    """Summed log-probabilities of all answers of trees that are made from a run's rows; as `reference_of_rows`.

    Args:
        digest: hash of all that the trees depend on.
        name: what the trees are, for messages.
    """
    limit = session.recipe.training.max_tokens_per_microbatch
    with session.processes.main_first():
        sums, cached = reference_logprobs(session.loaded, trees, digest, limit, session.display)
    if cached:
        session.display.say(f"reference log-probabilities of {name}: {len(trees)} rows, from the cache")
    return sums


def reference_logprobs(
    loaded: LoadedModel, store: Sequence[TokenTree], digest: str, max_tokens: int, display: Display
) -> tuple[Tensor, bool]:
    """Summed log-probability of each answer of each row: (answers,) fp32 on the CPU, and whether it was cached.

    Must be called before the first optimiser step and before a checkpoint is restored.

    Args:
        loaded: the policy as loaded.
        store: the rows.
        digest: hash of the rows' token ids.
        max_tokens: tokens per microbatch.

    Raises:
        CheckpointError: the cache cannot be written.
    """
    if not len(store):
        return torch.zeros(0), False

    def make(folder: Path) -> None:
        with display.progress(len(store), 0, "reference pass"):
            sums = []
            for done, part in _sums(loaded, store, max_tokens):
                sums.append(part)
                display.advance(done)
        save_file({"logprobs": torch.cat(sums)}, folder / _FILE)

    name = cache_key(loaded, store, digest, max_tokens)
    path = cache_directory() / _KIND / name
    if path.exists() and not whole(path):
        display.say("reference log-probabilities in the cache are damaged or were changed: they are computed again")
    path, cached = cache_entry(_KIND, name, make)
    return load_file(path / _FILE)["logprobs"], cached


def cache_key(loaded: LoadedModel, store: Sequence[TokenTree], digest: str, max_tokens: int) -> str:
    """Hash of the rows, the model's files and config, and the exact log-probabilities of a few rows.

    Other rounding would not be an error, but DPO's first loss could no longer be checked to three digits.
    """
    packed = loaded.packed
    decides: list[Any] = [
        FORWARD_VERSION,
        digest,
        max_tokens,  # how sequences share a matrix product
        packed.path.packed,
        packed.causal.config._attn_implementation,
        loaded.identity.logprobs or loaded.location.base,
        _bits_of_some_rows(loaded, store, max_tokens),
    ]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:40]


def _bits_of_some_rows(loaded: LoadedModel, store: Sequence[TokenTree], max_tokens: int) -> str:
    """The log-probabilities of _PROBED_ROWS evenly spaced rows, as hexadecimal bytes."""
    last = len(store) - 1
    places = sorted({last * part // (_PROBED_ROWS - 1) for part in range(_PROBED_ROWS)})
    sums = torch.cat([part for _, part in _sums(loaded, [store[place] for place in places], max_tokens)])
    return sums.contiguous().view(torch.uint8).numpy().tobytes().hex()


@torch.no_grad()
def _sums(loaded: LoadedModel, trees: Sequence[TokenTree], max_tokens: int) -> Iterator[tuple[int, Tensor]]:
    """For each microbatch: the trees done so far, and the summed log-probability of each of its answers."""
    model = loaded.packed
    # An adapter that holds its start is 0 but for rounding, which the reference shares with the policy.
    on_adapter = loaded.location.adapter is not None or holds_start(model.model)
    adapter = OWN_ADAPTER if on_adapter else None
    done = 0
    with evaluating(model):
        for run in microbatches(trees, max_tokens):
            batch = collate(run).to(model.device)
            done += len(run)
            yield done, per_sequence(model(batch, adapter=adapter), batch.sequence, batch.sequences).float().cpu()
