"""What is refused before anything is generated."""

from __future__ import annotations

import pytest

from prefine.generation.sampling import Sampling
from prefine.generation.writer import Request
from prefine.serving.answering import require_few_logprobs
from prefine.web.errors import ApiError


def sequence(tokens: int, top: int, *, prompt: int = 0, echo: bool = False) -> Request:
    return Request([1] * prompt, Sampling(tokens), (), top_logprobs=top, prompt_logprobs=echo)


def test_more_log_probabilities_than_a_response_holds_are_refused() -> None:
    require_few_logprobs([sequence(4096, 20)] * 6)  # 516,096
    require_few_logprobs([sequence(4096, 0)] * 256)  # tokens alone are kept anyway
    with pytest.raises(ApiError, match="602,112") as refused:
        require_few_logprobs([sequence(4096, 20)] * 7)
    assert (refused.value.status, refused.value.param) == (400, "logprobs")
    with pytest.raises(ApiError):
        require_few_logprobs([sequence(1, 20, prompt=30_000, echo=True)])
