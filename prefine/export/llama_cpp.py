"""Asks llama.cpp itself what a GGUF file computes, through its server: the loader "llama.cpp" of the proof."""

from __future__ import annotations

import atexit
import http.client
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefine.engines.llama_cpp import SERVER, find_llama_cpp
from prefine.engines.process import Command, EngineProcess
from prefine.errors import EngineError
from prefine.export.reload import ForeignModel, Turns

# Of so many likeliest tokens probabilities are asked for: those of all would be megabytes of JSON for each position.
_LIKELIEST = 2048
_START_S = 600.0
_ANSWER_S = 300.0
# What a token more than the longest sequence takes: the server stops one before its context is full.
_SPARE_CONTEXT = 8
_CERTAIN = 1e4  # nats
_ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


class LlamaCppModel:
    """A GGUF file in a llama-server of its own, which ends with this process.

    Args:
        path: of the file.
        program: llama-server.
        threads: that it computes with.
        context: tokens of the longest sequence that it will be asked about, with what it generates.
    """

    def __init__(self, path: Path, program: Path, threads: int, context: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        arguments = [str(program), "--model", str(path), "--host", "127.0.0.1", "--port", str(self._port), "--jinja"]
        arguments += ["--ctx-size", str(context + _SPARE_CONTEXT), "--parallel", "1", "--threads", str(threads)]
        arguments += ["--threads-batch", str(threads), "--no-warmup"]
        variables = {"LLAMA_ARG_OFFLINE": "1", "LLAMA_ARG_CORS_ORIGINS": "localhost"}
        # Settings that the user has for servers would change what is compared.
        unset = [name for name in os.environ if name.startswith("LLAMA_")]
        began = time.perf_counter()
        self._process = EngineProcess(Command("llama.cpp", arguments, variables, unset), lambda line: None)
        atexit.register(self._process.stop)
        self._process.wait_until_ready("127.0.0.1", self._port, _START_S)
        self.load_s = time.perf_counter() - began
        facts = _facts(path)
        self.dtype: str = facts["type"]
        self.stop_ids = frozenset(facts["ends"])
        self._vocabulary: int = facts["vocabulary"]
        self._plain: int | None = facts["plain"]
        self.likeliest: int | None = min(_LIKELIEST, self._vocabulary)
        self.libraries: Mapping[str, str] = {"llama.cpp": _version(program)}

    def close(self) -> None:
        """Stop the server."""
        self._process.stop()

    def rendered_ids(self, turns: Turns) -> list[int]:
        """Token ids of a prompt, by the template and the tokenizer in the file; see ForeignModel."""
        prompt = self._ask("/apply-template", {"messages": turns})["prompt"]
        found = self._ask("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
        return [int(each) for each in found]

    def logits(self, ids: Sequence[int], last: int) -> Tensor:
        """(last, V) fp32 log-probabilities of the last positions of a sequence; see ForeignModel.

        Tokens that are not among the likeliest share what is left evenly.
        """
        return torch.stack([self._next(ids[: len(ids) - last + 1 + place]) for place in range(last)])

    def greedy(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """The likeliest tokens after a sequence, up to an end of turn, which is included; see ForeignModel."""
        found = self._complete(ids, new_tokens)
        tokens = [int(each) for each in found["tokens"]]
        ended = found.get("stop_type") == "eos" and (not tokens or tokens[-1] not in self.stop_ids)
        return [*tokens, self._end(ids, tokens)] if ended else tokens

    def _end(self, ids: Sequence[int], tokens: Sequence[int]) -> int:
        """The end of turn that the server has left out."""
        return int(self._next([*ids, *tokens]).argmax())

    def _next(self, ids: Sequence[int]) -> Tensor:
        """(V,) log-probabilities of the token after a sequence."""
        # The server withholds the probabilities of a step that ends within a character. They are computed before any
        # bias, so a bias that makes it generate a whole character leaves them as they are.
        bias = [] if self._plain is None else [[self._plain, _CERTAIN]]
        answer = self._complete(ids, 1, n_probs=self.likeliest, logit_bias=bias)
        entries = answer.get("completion_probabilities")
        if not entries:
            raise EngineError(
                f"llama.cpp gave no probabilities of the token after {len(ids)} tokens", "Use a newer llama.cpp."
            )
        likeliest = entries[0]["top_logprobs"]
        places = torch.tensor([each["id"] for each in likeliest])
        values = torch.tensor([each["logprob"] for each in likeliest], dtype=torch.float64)
        rest = max(1.0 - float(values.exp().sum()), 1e-12) / max(1, self._vocabulary - len(likeliest))
        found = torch.full((self._vocabulary,), rest, dtype=torch.float64).log()
        found[places] = values
        return found.float()

    def _complete(self, ids: Sequence[int], tokens: int, **more: Any) -> dict[str, Any]:
        settings = {"temperature": 0.0, "n_predict": tokens, "cache_prompt": True}
        return self._ask("/completion", {"prompt": list(ids), "return_tokens": True, **settings, **more})

    def _ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_S)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            if self._process.exit_code() is not None:
                raise self._process.death("while it was asked") from None
            raise EngineError(f"llama.cpp did not answer {path} ({error})", "Try again; see its log.") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise EngineError(
                f"llama.cpp answered {path} with {answer.status}: {text[:200]!r}", "Use a newer llama.cpp."
            )
        found: dict[str, Any] = json.loads(text)
        return found


def load_llama_cpp(path: Path, options: Mapping[str, Any]) -> ForeignModel:
    """A GGUF file in llama.cpp, as found now.

    Args:
        path: of the file.
        options: `context`, see LlamaCppModel.
    """
    return LlamaCppModel(path, find_llama_cpp().require(SERVER), torch.get_num_threads(), options["context"])


def _facts(path: Path) -> dict[str, Any]:
    """What a file's header says: its type, the size of its vocabulary, a token of letters, and where answers end."""
    from gguf import GGUFReader, LlamaFileType

    fields = GGUFReader(os.fspath(path)).fields
    kind = int(fields["general.file_type"].contents())
    name = LlamaFileType(kind).name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()
    ends = [int(fields[key].contents()) for key in _ENDS if key in fields]
    tokens = fields["tokenizer.ggml.tokens"]
    plain = next((i for i, part in enumerate(tokens.data) if bytes(tokens.parts[part]).isalpha()), None)
    return {"type": name, "vocabulary": len(tokens.data), "plain": plain, "ends": ends}


def _version(program: Path) -> str:
    """As `llama-server --version` says it; "unknown" where it says none."""
    done = subprocess.run(  # noqa: S603 - the program that was just started
        [str(program), "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    found = re.search(r"version: (\S+)", done.stdout + done.stderr)
    return found[1] if found else "unknown"
