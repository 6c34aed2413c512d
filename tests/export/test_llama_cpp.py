"""The loader that asks llama.cpp: it speaks to a stand-in of llama-server here, and to the real one where that is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import torch

from prefine.engines.llama_cpp import SERVER
from prefine.errors import EngineError, MissingDependencyError
from prefine.export.llama_cpp import LlamaCppModel, load_llama_cpp

LONGEST = 5000
# Answers as llama-server's README says. The likeliest next token is the last one plus 1; 4 ends an answer. 2 is half a
# character: as the real server does, it withholds the probabilities of a step that generates it.
_SERVER = r"""
import http.server, json, math, sys
if "--version" in sys.argv:
    print("version: 4242 (abcdef)")
    sys.exit()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"status": "ok"})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/apply-template":
            self.answer({"prompt": "".join(turn["content"] for turn in asked["messages"]) + ">"})
        elif self.path == "/tokenize":
            assert asked["add_special"] and asked["parse_special"]
            self.answer({"tokens": [0, *(ord(letter) % 5 for letter in asked["content"])]})
        elif asked["prompt"][-1] == 3 and not asked.get("n_probs"):
            self.answer({"tokens": [], "stop_type": "eos"})
        elif len(asked["prompt"]) + asked["n_predict"] >= int(sys.argv[sys.argv.index("--ctx-size") + 1]):
            self.answer({"error": {"message": "exceeds the available context size"}}, 400)
        elif asked.get("n_probs"):
            next_one = asked["prompt"][-1] + 1
            likely = [{"id": next_one, "logprob": math.log(0.9)}, {"id": 0, "logprob": math.log(0.07)}]
            chosen = max(asked["logit_bias"], key=lambda pair: pair[1])[0] if asked["logit_bias"] else next_one
            entries = {} if chosen == 2 else {"completion_probabilities": [{"id": chosen, "top_logprobs": likely}]}
            self.answer({"tokens": [chosen], "stop_type": "limit", **entries})
        else:
            tokens = []
            while len(tokens) < asked["n_predict"]:
                tokens.append((asked["prompt"] + tokens)[-1] + 1)
                if tokens[-1] == 3:
                    break
            self.answer({"tokens": tokens, "stop_type": "eos" if len(tokens) < asked["n_predict"] else "limit"})
    def answer(self, found, status=200):
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with nothing but a header: five tokens, of which 2 is half a character and 4 ends an answer."""
    path = tmp_path_factory.mktemp("gguf") / "m-q8_0.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_token_list(["a", "b", "Ã", "d", "e"])
    writer.add_eos_token_id(4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> Iterator[LlamaCppModel]:
    program = file.parent / SERVER
    program.write_text(f"#!{sys.executable} -I\n{_SERVER}")
    program.chmod(0o755)
    loaded = LlamaCppModel(file, program, 1, LONGEST)
    yield loaded
    loaded.close()


def test_prompts_are_rendered_and_encoded_by_llama_cpp(model: LlamaCppModel) -> None:
    assert model.rendered_ids([{"role": "user", "content": "AB"}]) == [0, ord("A") % 5, ord("B") % 5, ord(">") % 5]


def test_log_probabilities_of_the_last_positions_sum_to_one_and_predict_what_follows(model: LlamaCppModel) -> None:
    found = model.logits([0, 1, 2], 2)
    assert found.shape == (2, 5)
    assert found.argmax(1).tolist() == [2, 3]
    assert torch.allclose(found.exp().sum(1), torch.ones(2), atol=1e-6)
    assert found[0].exp().tolist() == pytest.approx([0.07, 0.01, 0.9, 0.01, 0.01], abs=1e-6)  # the rest, shared


def test_the_longest_sequence_fits_into_the_servers_context(model: LlamaCppModel) -> None:
    assert model.logits([0] * (LONGEST - 1), 1).shape == (1, 5)


def test_a_step_without_probabilities_is_one_error(model: LlamaCppModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_plain", None)
    with pytest.raises(EngineError, match="gave no probabilities of the token after 2 tokens"):
        model.logits([0, 1], 1)


def test_greedy_answers_have_their_end(model: LlamaCppModel) -> None:
    assert model.greedy([0], 2) == [1, 2]
    assert model.greedy([0], 9) == [1, 2, 3, 4]
    assert model.greedy([3], 9) == [4]


def test_facts_come_from_the_files_header(model: LlamaCppModel) -> None:
    assert (model.dtype, model.stop_ids, model.libraries) == ("q8_0", {4}, {"llama.cpp": "4242"})


def test_a_server_that_dies_is_one_error(file: Path, tmp_path: Path) -> None:
    program = tmp_path / SERVER
    program.write_text("#!/bin/sh\necho 'error: wrong shape'\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(EngineError, match=r"exit code 1 before it was ready \(its last lines: error: wrong shape"):
        LlamaCppModel(file, program, 1, LONGEST)


def test_without_llama_cpp_the_remedy_is_named(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFINE_LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="llama-server was not found"):
        load_llama_cpp(file, {"context": 9})
