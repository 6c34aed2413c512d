"""Models with gated norms, recurrent layers or experts: faster modules go in where they fit, and change no number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prefine.models.forward import fused
from prefine.models.forward.packed import PackedModel
from prefine.models.forward.path_probe import choose_path
from tests.models import tiny

_LAYERS = {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_DELTA = {f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")}
_DELTA |= {"linear_num_value_heads": 4, "linear_num_key_heads": 4}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": _LAYERS | _DELTA | _EXPERTS | {"head_dim": 8, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": _LAYERS | _DELTA | {"head_dim": 8},
    "qwen3_5_moe_text": _LAYERS | _DELTA | _EXPERTS | {"head_dim": 8, "shared_expert_intermediate_size": 16},
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64, "mamba_rms_norm": True, "head_dim": 8},
    "olmo_hybrid": _LAYERS | _DELTA,
    "granitemoehybrid": _MAMBA | _EXPERTS | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    "kimi_linear": _LAYERS | _LATENT | _EXPERTS | {"linear_head_dim": 8, "linear_num_heads": 4},
    "bailing_hybrid": _LAYERS | _LATENT | _EXPERTS | {"q_lora_rank": 8, "head_dim": 8, "n_routed_experts": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4, "num_experts": 4},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention"],
        "head_dim": 8,
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {"state_size": 4},  # a norm whose weight it does not read, of another width than its input
}
# Architectures of the issue that the installed transformers does not have: none of 5.24.
ABSENT = frozenset[str]()
# Parts of the names of norms with a gate.
GATED = {"RMSNormGated", "GatedRMSNorm"}


def test_the_table_says_which_architectures_the_installed_transformers_lacks() -> None:
    """No architecture is skipped silently: one that comes or goes with a release changes this table."""
    assert {name for name in HYBRIDS if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} == ABSENT


@pytest.mark.parametrize("architecture", sorted(HYBRIDS.keys() - ABSENT))
def test_faster_modules_change_no_number_of_a_hybrid_model(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities and the gradients of an adapter are as they were; gated norms keep their own forward."""
    monkeypatch.setitem(tiny.ARCHITECTURES, architecture, HYBRIDS[architecture])
    model = PackedModel(tiny.make(architecture), torch.float32)
    choose_path(model)  # most take the padded path: their recurrent layers know no segments
    targets = ["q_proj", "o_proj", "in_proj", "in_proj_qkv", "in_proj_qkvz"]
    names = {name.rsplit(".", 1)[-1] for name, part in model.model.named_modules() if isinstance(part, torch.nn.Linear)}
    model.model = tiny.with_lora(model.model, target_modules=[name for name in targets if name in names])
    before = tiny.gradients(model, values := model(tiny.BATCH))
    found = fused.install(model.model)
    after = tiny.gradients(model, again := model(tiny.BATCH))

    assert found["norm"] > 0 or architecture.startswith("qwen3_")  # whose norms multiply by 1 + weight
    assert (again - values).abs().max() <= 1e-5
    tiny.assert_same_gradients(after, before, 1e-4)
    for part in model.model.modules():
        if any(kind in type(part).__name__ for kind in GATED):
            assert "forward" not in part.__dict__

    learning = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.SGD(learning, lr=0.01)
    (-model(tiny.BATCH).mean()).backward()
    optimiser.step()
    assert model(tiny.BATCH).mean() > again.mean()
