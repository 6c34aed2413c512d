"""Reference log-probabilities: the policy as it was loaded, before any step, computed once and kept on disk.

For a fresh adapter that is the base model; for an adapter that goes on being trained, that adapter's own beginning.
Nothing of it has to stay in memory, and later epochs and later runs read it from the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefine.atomic import atomic_write, sha256_of_file, storage_errors
from prefine.cache import cache_directory
from prefine.data.batch import collate, microbatches
from prefine.data.store import TokenStore
from prefine.models.attention import flash_attention_installed
from prefine.models.forward import FORWARD_VERSION
from prefine.models.load import LoadedModel
from prefine.models.location import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from prefine.objectives.masked import per_sequence
from prefine.training.display import Display


def reference_logprobs(
    loaded: LoadedModel, store: TokenStore, digest: str, max_tokens: int, display: Display
) -> tuple[Tensor, bool]:
    """Summed log-probability of each answer of each row: (rows * 2,) fp32 on the CPU, and whether it was cached.

    Must be called before the first optimiser step and before a checkpoint is restored.

    Args:
        loaded: the policy as loaded.
        store: pairs.
        digest: hash of the store's token ids.
        max_tokens: tokens a microbatch.
    """
    path = cache_directory() / "reference" / f"{cache_key(loaded, digest, max_tokens)}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError):  # not there, or damaged: it can be made again
        return load_file(path)["logprobs"], True
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    logprobs = _compute(loaded, store, max_tokens, display)
    with atomic_write(path) as temporary:
        save_file({"logprobs": logprobs}, temporary)
    return logprobs, False


def cache_key(loaded: LoadedModel, digest: str, max_tokens: int) -> str:
    """Hash of everything the numbers depend on, down to what moves their last bits.

    Another rounding would be no error, but DPO's first loss could no longer be checked to three digits.
    """
    location, packed = loaded.location, loaded.packed
    adapter = [] if location.adapter is None else [location.adapter / n for n in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    config, cuda = packed.causal.config, packed.device.type == "cuda"
    decides: list[Any] = [
        FORWARD_VERSION,
        digest,
        loaded.base_sha256 or [location.base, getattr(config, "_commit_hash", None)],
        [sha256_of_file(file) for file in adapter],
        str(packed.compute_dtype),
        str(getattr(config, "quantization_config", None)),
        # how sequences share a matrix product, and what computes it
        max_tokens,
        packed.packed,
        config._attn_implementation,
        flash_attention_installed(),
        torch.cuda.get_device_name(packed.device) if cuda else [packed.device.type, torch.get_num_threads()],
        torch.backends.cpu.get_cpu_capability(),
        torch.__version__,
        transformers.__version__,
    ]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:40]


@torch.no_grad()
def _compute(loaded: LoadedModel, store: TokenStore, max_tokens: int, display: Display) -> Tensor:
    model = loaded.packed
    training = model.training
    model.eval()
    fresh = loaded.location.adapter is None and hasattr(model.model, "disable_adapter")
    off: contextlib.AbstractContextManager[Any] = (
        model.model.disable_adapter() if fresh else contextlib.nullcontext()  # type: ignore[operator]
    )
    sums: list[Tensor] = []
    done = 0
    with off, display.progress(len(store), 0, "reference"):
        for run in microbatches(store, max_tokens):
            batch = collate(run).to(model.device)
            sums.append(per_sequence(model(batch), batch.sequence, batch.sequences).cpu())
            done += len(run)
            display.advance(done)
    model.train(training)
    return torch.cat(sums) if sums else torch.zeros(0)
