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

# Answers as llama-server's README says. The likeliest next token is the last one plus 1; 4 ends an answer.
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
        elif asked["prompt"][-1] == 3 and asked["n_probs"] == 0:
            self.answer({"tokens": [], "stop_type": "eos"})
        else:
            tokens = []
            while len(tokens) < asked["n_predict"]:
                tokens.append((asked["prompt"] + tokens)[-1] + 1)
                if tokens[-1] == 3:
                    break
            ended = len(tokens) < asked["n_predict"]
            likely = [{"id": tokens[0], "logprob": math.log(0.9)}, {"id": 0, "logprob": math.log(0.07)}]
            entries = [{"id": tokens[0], "top_logprobs": likely}] if asked["n_probs"] else []
            found = {"tokens": tokens, "stop_type": "eos" if ended else "limit", "completion_probabilities": entries}
            self.answer(found)
    def answer(self, found):
        body = json.dumps(found).encode()
        self.send_response(200)
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
    """A GGUF file with nothing but a header: five tokens, of which 4 ends an answer."""
    path = tmp_path_factory.mktemp("gguf") / "m-q8_0.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_token_list(["a", "b", "c", "d", "e"])
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
    loaded = LlamaCppModel(file, program, 1)
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
        LlamaCppModel(file, program, 1)


def test_without_llama_cpp_the_remedy_is_named(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFINE_LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="llama-server was not found"):
        load_llama_cpp(file, {})
