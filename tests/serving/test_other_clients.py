"""LangChain's ChatOpenAI and lm-eval's local-completions against a running server, where they are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serving.live import Live

TEXT = "the prompt"


def test_langchain(live: Live) -> None:
    chat = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed").ChatOpenAI
    model = chat(base_url=f"{live.url}/v1", api_key="none", model="tiny", max_tokens=6, seed=1, logprobs=True)
    answer = model.invoke([("system", "Be brief."), ("human", "Hello")])
    assert answer.content
    assert answer.usage_metadata["output_tokens"] <= 6
    assert (
        "".join(chunk.content for chunk in model.stream([("system", "Be brief."), ("human", "Hello")]))
        == answer.content
    )
    assert len(model.batch(["a", "b", "c"])) == 3
    with pytest.raises(Exception, match="there is no 'nope'"):
        chat(base_url=f"{live.url}/v1", api_key="none", model="nope", max_retries=0).invoke("Hello")


def test_lm_eval(live: Live, tiny_model: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = LocalCompletionsAPI(
        base_url=f"{live.url}/v1/completions", model="tiny", tokenizer=str(tiny_model), num_concurrent=1, batch_size=2
    )
    pairs = [(TEXT, " goes on"), (TEXT, " ends"), (TEXT, "!")]
    found = model.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).float()
    for (before, after), (logprob, greedy) in zip(pairs, found, strict=True):
        expected, argmax = _oracle(plain, tokenizer(before)["input_ids"], tokenizer(after)["input_ids"])
        assert logprob == pytest.approx(expected, abs=1e-3)
        assert greedy == argmax
    settings: dict[str, Any] = {"until": ["\n"], "max_gen_toks": 5, "temperature": 0}
    (text,) = model.generate_until([Instance("generate_until", {}, (TEXT, settings), 0)], disable_tqdm=True)
    assert isinstance(text, str)


def _oracle(model: Any, prompt: list[int], answer: list[int]) -> tuple[float, bool]:
    """An answer's log-probability as transformers computes it, and whether each of its tokens is the likeliest."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None])
    return float(logprobs.sum()), logits.argmax(-1).tolist() == answer
