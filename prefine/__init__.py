"""prefine trains language models from human preferences, end to end, on your own hardware.

    import prefine

    run = prefine.dpo("dpo.yaml", data={"train": "my.jsonl"})
    run.model.generate(["My parcel is late."])

Public names are in __all__ and explained in docs/python.md. Importing prefine imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefine import errors as errors
    from prefine.api import dpo as dpo
    from prefine.api import evaluate as evaluate
    from prefine.api import generate as generate
    from prefine.api import kto as kto
    from prefine.api import load as load
    from prefine.api import load_recipe as load_recipe
    from prefine.api import orpo as orpo
    from prefine.api import plan as plan
    from prefine.api import ppo as ppo
    from prefine.api import reward as reward
    from prefine.api import score as score
    from prefine.api import sft as sft
    from prefine.pipeline.call import run_pipeline as run_pipeline
    from prefine.run import Run as Run

__version__ = "0.1.0"

__all__ = [
    "Run",
    "dpo",
    "errors",
    "evaluate",
    "generate",
    "kto",
    "load",
    "load_recipe",
    "orpo",
    "plan",
    "ppo",
    "reward",
    "run_pipeline",
    "score",
    "sft",
]


_ELSEWHERE = {"Run": "prefine.run", "run_pipeline": "prefine.pipeline.call"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'prefine' has no attribute {name!r}")
    if name == "errors":
        return import_module("prefine.errors")
    found = getattr(import_module(_ELSEWHERE.get(name, "prefine.api")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
