"""A GGUF file of a tiny random model, by llama.cpp's own converter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prefine.export.child import run_quietly
from prefine.export.gguf_convert import bundled_converter
from prefine.models.loading.embedded import embedded_folder


def make_gguf(folder: Path, embedded_model: str) -> Path:
    """An f16 file with the embedded model's tokenizer, in `folder`; what it was made of lies in `folder`/merged.

    llama.cpp's converter takes no tokenizer that it does not know.
    """
    if (converter := bundled_converter()) is None:
        pytest.skip("auto-round is not installed: pip install 'prefine[quantize]'")
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder(embedded_model))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=512, **sizes, **ends)
    merged, file = folder / "merged", folder / "tiny-f16.gguf"
    LlamaForCausalLM(config).save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    job = {"folder": str(merged), "name": "tiny", "root": str(converter), "quantise": {}}
    (folder / "job.json").write_text(json.dumps(job | {"convert": {"f16": str(file)}}))
    run_quietly("prefine.export.gguf_convert", folder / "job.json", "the conversion")
    return file
