"""Folders that look like models, for engines that load none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def model_folder(folder: Path, **config: Any) -> Path:
    """A folder with a whole model, as far as finding it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | config
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def adapter_run(run: Path, base: Path, quantization: str = "none", **settings: Any) -> Path:
    """A finished run whose result is an adapter on `base`."""
    model = run / "model"
    model.mkdir(parents=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16, "base_model_name_or_path": str(base)} | settings
    (model / "adapter_config.json").write_text(json.dumps(config))
    (model / "adapter_model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    (model / "tokenizer_config.json").write_text("{}")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    manifest = {
        "status": "finished",
        "recipe": {"model": {"quantization": quantization}},
        "model": {"compute_dtype": "bfloat16", "base": str(base)},
    }
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run
