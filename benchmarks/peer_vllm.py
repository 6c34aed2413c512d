"""Time vLLM's new tokens a second: `python -m benchmarks.generation vllm` starts this where vLLM is.

Arguments: the model's folder, and a JSON file with the prompts' token ids, how many new tokens each gets and the type.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    model, asked = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    prompts, tokens = asked["prompts"], asked["new_tokens"]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm import LLM, SamplingParams

    # Nothing is compiled for work this short, and no prompt's beginning is known from the warm-up.
    engine = LLM(
        model,
        dtype=asked["dtype"],
        max_model_len=1024,
        max_num_seqs=len(prompts),
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    sampling = SamplingParams(max_tokens=tokens, min_tokens=tokens, ignore_eos=True, temperature=1.0)
    requests = [{"prompt_token_ids": ids} for ids in prompts]
    engine.generate(requests[:2], sampling, use_tqdm=False)
    began = time.perf_counter()
    engine.generate(requests, sampling, use_tqdm=False)
    seconds = time.perf_counter() - began
    print("RESULT " + json.dumps({"tokens_per_s": len(prompts) * tokens / seconds, "seconds": seconds}))


if __name__ == "__main__":
    main()
