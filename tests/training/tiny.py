"""T, a random two-layer model that every test here trains in a second, with data, recipes and runs of its size."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefine.cli.app import main
from prefine.recipe.dpo import DpoRecipe
from prefine.recipe.kto import KtoRecipe
from prefine.recipe.loading import resolved_yaml
from prefine.recipe.orpo import OrpoRecipe
from prefine.recipe.registry import RECIPES
from prefine.recipe.reward import RewardRecipe
from prefine.recipe.rl import PpoRecipe
from prefine.recipe.sft import SftRecipe
from prefine.recipe.stage import StageRecipe, WritingRecipe
from prefine.runs.directory import RunDirectory, read_metrics
from prefine.training.rl.stage import PpoStage
from prefine.training.run.run_stage import run_stage
from prefine.training.run.stage import Stage
from prefine.training.stages.dpo import DpoStage
from prefine.training.stages.kto import KtoStage
from prefine.training.stages.orpo import OrpoStage
from prefine.training.stages.reward import RewardStage
from prefine.training.stages.sft import SftStage
from tests.tiny import CHATML, byte_tokenizer

# They say how fast the machine is, not what was computed.
TIMING = {"seconds", "tokens_per_s", "peak_memory_gb", "rss_gb", "gpu_memory_gb", "gpu_utilisation"}
TIMING |= {f"{phase}_tokens_per_s" for phase in ("generated", "scored", "trained")}
TIMING |= {f"seconds_{phase}" for phase in ("generate", "score", "measure", "train")}
# T is moved further in a few updates of PPO than guards let a real model go.
UNGUARDED: dict[str, Any] = {
    f"guards.{name}.action": "off" for name in ("kl", "entropy", "degenerate", "value_loss", "reward_spread")
}


def make_tokenizer(template: str = CHATML, pad: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """One token a byte, no download; padding with the end of turn, as many real ones do."""
    return byte_tokenizer(template=template, bos_token="<|im_start|>", pad_token=pad)


def save_model(folder: Path, *, seed: int = 7, **tokenizer: str) -> Path:
    """T with its tokenizer, as safetensors."""
    words = make_tokenizer(**tokenizer)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    llama, draw = LlamaForCausalLM(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():  # weights of our own, so that recorded losses outlive a library's change of its initial ones
        for parameter in llama.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    llama.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of uneven lengths, so that microbatches are ragged."""
    draw = random.Random(seed)
    return [
        {
            "prompt": f"question {i}{' more' * draw.randrange(4)}",
            "chosen": f"good answer{' yes' * draw.randrange(4)} {i}",
            "rejected": f"bad {i}{' no' * draw.randrange(6)}",
        }
        for i in range(count)
    ]


def votes(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """A vote on one answer of each of so many pairs: half of them the chosen one, with a thumb up."""
    draw = random.Random(seed + 1)
    ups = [draw.random() < 0.5 for _ in range(count)]
    return [
        {"prompt": pair["prompt"], "completion": pair["chosen" if up else "rejected"], "label": up}
        for pair, up in zip(pairs(count, seed), ups, strict=True)
    ]


def letters(rows: list[dict[str, Any]]) -> list[float]:
    """The share of lower-case letters among an answer's characters: what PPO recipes here reward."""
    return [sum("a" <= c <= "z" for c in row["response"]) / max(1, len(row["response"])) for row in rows]


def recipe(stage: str, run: Path, model: Path, data: Path, changes: Mapping[str, Any] | None = None) -> StageRecipe:
    """A recipe for a few steps on T; `changes` are dotted names and values, as for --set."""
    values: dict[str, Any] = {
        "run": str(run),
        "model": {"name": str(model), "dtype": "float32", "device": "cpu"},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
        "data": {"train": str(data), "heldout_fraction": 0.2, "max_length_tokens": 160},
        "training": {
            "batch_size": 4,
            "epochs": 2,
            "max_tokens_per_microbatch": 160,
            "learning_rate": 1e-2,
            "save_every_steps": 1,
            "evaluate_every_steps": 3,
        },
    }
    if issubclass(RECIPES[stage], WritingRecipe):
        values["report"] = {"samples": 2, "max_new_tokens": 4}
    if RECIPES[stage] is PpoRecipe:
        values["reward"] = {"name": f"{__name__}:letters"}
        values["rollout"] = {"max_new_tokens": 12, "slots": 4}
    for name, value in (changes or {}).items():
        *path, last = name.split(".")
        section = values
        for key in path:
            section = section.setdefault(key, {})
        section[last] = value
    written = values.get("rollout", {}).get("heldout_prompts") != 0 and values["data"]["heldout_fraction"]
    if RECIPES[stage] is PpoRecipe and written:
        values["rollout"].setdefault("heldout_samples", 1)
    return RECIPES[stage].model_validate(values)


def train(made: StageRecipe, resume: bool = False) -> str:
    """Run a recipe's stage in this process; returns what it said."""
    said = io.StringIO()
    run_stage(stage_of(made), resume, Console(file=said))
    return said.getvalue()


def stage_of(made: StageRecipe) -> Stage[Any, Any]:
    """The stage that a recipe is for."""
    if isinstance(made, RewardRecipe):
        return RewardStage(made)
    if isinstance(made, PpoRecipe):
        return PpoStage(made)
    if isinstance(made, DpoRecipe):
        return DpoStage(made)
    if isinstance(made, KtoRecipe):
        return KtoStage(made)
    if isinstance(made, OrpoRecipe):
        return OrpoStage(made)
    assert isinstance(made, SftRecipe)
    return SftStage(made)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """What the run's result holds."""
    return {k: v for file in sorted((run / "model").glob("*.safetensors")) for k, v in load_file(file).items()}


def metrics(run: Path) -> list[dict[str, Any]]:
    """The run's metrics without those that tell the time."""
    rows = read_metrics(RunDirectory(run).metrics)
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]


def manifest(run: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run / "manifest.json").read_text("utf-8"))
    return read


def differences(one: Path, other: Path) -> list[str]:
    """Where two runs' results are not bit for bit the same; empty if they are."""
    mine, theirs = weights(one), weights(other)
    apart = [f"weights {name}" for name in mine.keys() ^ theirs.keys()]
    apart += [f"weights {name}" for name in mine.keys() & theirs.keys() if not torch.equal(mine[name], theirs[name])]
    apart += [] if metrics(one) == metrics(other) else ["metrics.jsonl"]
    for name in ("evaluation.json", "samples.jsonl", "rollouts.jsonl", "model/reward.json"):  # no stage has all
        contents = [(run / name).read_bytes() if (run / name).exists() else None for run in (one, other)]
        apart += [] if contents[0] == contents[1] else [name]
    return apart


def forked(work: Callable[[], object], timeout_s: float = 300.0) -> int:
    """Do `work` in a forked copy of this warm process; returns how it left.

    Its exit code (0 done, 1 an exception, whose traceback is shown), or minus a signal's number if one ended it.
    """
    left = waited_for([fork(work)], timeout_s)[0]
    if left is None:
        raise TimeoutError(f"the forked process was still busy after {timeout_s} s")
    return left


def killed_after(cpu_s: float, work: Callable[[], object]) -> bool:
    """Do `work` in a forked copy that the kernel ends after so much of its own time; returns whether it did.

    Time of the processor, not of the clock: the moments lie in the same places on a machine that is busy. The signal
    ends the process as SIGKILL does, since nothing handles it.
    """

    def mortal() -> None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, max(cpu_s, 1e-4))
        work()
        signal.setitimer(signal.ITIMER_PROF, 0)

    left = forked(mortal)
    assert left in (0, -signal.SIGPROF)
    return left != 0


def waited_for(children: list[int], timeout_s: float) -> list[int | None]:
    """How forked processes left; None for those that had to be killed after the timeout."""
    deadline = time.monotonic() + timeout_s
    left: dict[int, int | None] = {}
    while len(left) < len(children):
        late = time.monotonic() >= deadline
        for child in [child for child in children if child not in left]:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                left[child] = os.waitstatus_to_exitcode(status)
            elif late:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                left[child] = None
        time.sleep(0.002)
    return [left[child] for child in children]


def fork(work: Callable[[], object], output: int | None = None) -> int:
    """Begin `work` in a forked copy of this process; returns its process id.

    Args:
        work: what to do there.
        output: a file descriptor that takes all it prints; None leaves that where it is.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    # A test run in the background of a script is born deaf to it, and so would be this copy.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        work()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - shown, and told by the exit code
        traceback.print_exc()
    finally:
        os._exit(code)


class Command:
    """`prefine ARGUMENTS` in a forked copy of this process: the command line without its imports.

    Args:
        arguments: as typed after `prefine`.
        prepare: called in the copy first, to put something in its way.
    """

    def __init__(self, *arguments: str, prepare: Callable[[], object] = lambda: None) -> None:
        def work() -> None:
            prepare()
            main(arguments)

        reading, writing = os.pipe()
        self.process = fork(work, writing)
        os.close(writing)
        self._output = os.fdopen(reading, "r", errors="replace")
        self._seen: list[str] = []

    def wait_for(self, text: str) -> None:
        """Read its output up to a line with `text`."""
        for line in self._output:
            self._seen.append(line)
            if text in line:
                return
        raise AssertionError(f"{text!r} was never said, but: {''.join(self._seen)}")

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process, number)

    def end(self) -> tuple[int, str]:
        """Wait until it ends; its exit code and all it printed."""
        with self._output:
            self._seen += self._output.readlines()
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1]), "".join(self._seen)


def written(made: StageRecipe, path: Path) -> str:
    """The recipe as a file for the command line; returns its path."""
    path.write_text(resolved_yaml(made), encoding="utf-8")
    return str(path)
