"""llama.cpp is found by its variable, on PATH, or not; never built."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefine.engines.llama_cpp import QUANTIZE, SERVER, find_llama_cpp
from prefine.errors import MissingDependencyError


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_source_folder_with_a_build_has_the_programs_and_the_converter(tmp_path: Path) -> None:
    server = program(tmp_path / "build" / "bin" / SERVER)
    (tmp_path / "convert_hf_to_gguf.py").touch()
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion" / "__init__.py").touch()
    found = find_llama_cpp({"PREFINE_LLAMA_CPP": str(tmp_path)})
    assert found.programs == {SERVER: server}
    assert found.source == tmp_path


def test_a_folder_of_programs_will_do(tmp_path: Path) -> None:
    quantize = program(tmp_path / QUANTIZE)
    found = find_llama_cpp({"PREFINE_LLAMA_CPP": str(tmp_path), "PATH": ""})
    assert (found.programs, found.source) == ({QUANTIZE: quantize}, None)
    with pytest.raises(MissingDependencyError, match=r"llama-server was not found.*cmake --build build"):
        found.require(SERVER)


def test_else_the_programs_on_path_count(tmp_path: Path) -> None:
    server = program(tmp_path / SERVER)
    assert find_llama_cpp({"PATH": str(tmp_path)}).require(SERVER) == server


def test_a_named_folder_without_llama_cpp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"PREFINE_LLAMA_CPP: .* holds neither llama-server"):
        find_llama_cpp({"PREFINE_LLAMA_CPP": str(tmp_path)})
