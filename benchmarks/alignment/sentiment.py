"""Sentiment PPO: reward is VADER's compound score, the judge that is never optimised is AFINN's; beside TRL 1.10.

Both trainers get the same prompts, answers of the same length, and as many optimiser steps with the same rate, epsilon,
clip ranges and KL penalty; neither clips gradients, and prefine's guards only warn. What differs: TRL's critic is a
second model, all of whose weights are trained at the policy's rate, while prefine's is a head on the policy's hidden
states with a rate of its own; TRL averages the means of micro-batches of four answers, prefine all tokens of an update;
the order of the prompts; the random numbers. The curves come from the texts that each trainer
gave its reward function. Afterwards both models answer the same held-out prompts.

VADER: Hutto and Gilbert 2014, ICWSM. AFINN: Nielsen 2011, arXiv 1103.2903.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.alignment.steps import apart, keep_versions, kept, require_settings, sha256_of
from benchmarks.peer_trl_ppo import (
    MODEL,
    ppo_trainer,
    prompt_ids,
    require_steps,
    tokenizer_for_ppo,
    use_trl_1_10,
)
from benchmarks.work import LORA_RANK, PPO_MICROBATCH_TOKENS, short_prompts, source
from prefine.comparisons.measures import degenerate_word, distinct_share
from prefine.records import Prompt

UPDATES, ANSWERS, NEW_TOKENS, EPOCHS = 16, 32, 48, 2
# As TRL 1.10, which cannot take several steps in a pass: see ppo_trainer.
MINIBATCHES = 1
GUARDS = ("kl", "entropy", "degenerate", "value_loss", "reward_spread", "reward_clipped")
LEARNING_RATE, KL_COEFFICIENT = 2.5e-4, 0.05
HELD_OUT, SAMPLES = 64, 4


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


@cache
def _afinn() -> Any:
    from afinn import Afinn

    return Afinn()


def reward(text: str) -> float:
    """VADER's compound score, -1 to 1."""
    return float(_vader().polarity_scores(text)["compound"])


def judged(text: str) -> float:
    """AFINN's score for each word of the text: about -5 to 5."""
    return float(_afinn().score(text)) / max(1, len(text.split()))


class Log:
    """The texts that a trainer had scored, in order, as JSON lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")

    def scored(self, texts: Sequence[str]) -> list[float]:
        """The rewards of some answers, which are also written down."""
        scores = [reward(text) for text in texts]
        for text, score in zip(texts, scores, strict=True):
            self._file.write(json.dumps({"text": text, "reward": score}) + "\n")
        self._file.flush()
        return scores


def curve(log: Path) -> list[dict[str, float]]:
    """Reward, judge and words of the answers of each update."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    updates = [rows[place : place + ANSWERS] for place in range(0, len(rows), ANSWERS)]
    return [
        {
            "reward": statistics.fmean(row["reward"] for row in update),
            "judge": statistics.fmean(judged(row["text"]) for row in update),
            "words": statistics.fmean(len(row["text"].split()) for row in update),
        }
        for update in updates
    ]


def run(folder: Path, seeds: Sequence[int], peer_seeds: Sequence[int], dtype: str) -> None:
    """Train with both, then let both models and the base answer held-out prompts."""
    require_settings(
        folder,
        model=MODEL,
        dtype=dtype,
        data=sha256_of(Path(source())),
        sizes=[UPDATES, ANSWERS, NEW_TOKENS, EPOCHS, MINIBATCHES, HELD_OUT, SAMPLES],
        rates=[LEARNING_RATE, KL_COEFFICIENT, LORA_RANK],
    )
    keep_versions(folder, "transformers", "peft", "vaderSentiment", "afinn")
    prompts = distinct_prompts(UPDATES * ANSWERS + HELD_OUT)
    train, heldout = prompts[: UPDATES * ANSWERS], prompts[UPDATES * ANSWERS :]
    base = kept(folder / "base.json", lambda: answers_of(MODEL, heldout, dtype))
    _tell("base", base)
    for train_with, own_seeds in ((ours, seeds), (trl, peer_seeds)):
        for seed in own_seeds:
            name = train_with.__name__
            own = folder / f"{name}-{seed}"
            own.mkdir(exist_ok=True)
            arguments = (train_with, own, train, seed, dtype)
            if not (own / "training.json").is_file():
                (own / "heldout.json").unlink(missing_ok=True)  # of a model that is trained again
            kept(own / "training.json", lambda arguments=arguments: _with_curve(*arguments))
            model = own / ("run" if train_with is ours else "model")
            found = kept(own / "heldout.json", lambda model=model: answers_of(str(model), heldout, dtype))
            _tell(f"{name}, seed {seed}", found)


def distinct_prompts(count: int) -> list[Prompt]:
    """Short prompts of which no two begin with the same turn."""
    found = {prompt.prompt[0].content: prompt for prompt in reversed(short_prompts(2 * count))}
    assert len(found) >= count
    return list(reversed(found.values()))[:count]


def _with_curve(train: Callable[..., dict[str, Any]], folder: Path, *arguments: Any) -> dict[str, Any]:
    """What a training returns, and the curve of what it had scored."""
    found: dict[str, Any] = apart(train, folder, *arguments)
    answered = curve(folder / "scored.jsonl")
    assert len(answered) == len(found["metrics"]) == UPDATES
    return {**found, "curve": answered}


def _tell(name: str, found: dict[str, Any]) -> None:
    means = {key: round(statistics.fmean(found[key]), 3) for key in ("reward", "judge", "tokens")}
    print(name, means, flush=True)


def answers_of(model: str, prompts: Sequence[Prompt], dtype: str) -> dict[str, list[float]]:
    """Means by prompt over the same seeds for every model, of the reward, the judge and what shows a text that broke;
    and a few of the texts.
    """
    import prefine

    asked = [{"prompt": [turn.model_dump() for turn in each.prompt]} for each in prompts]
    rows = prefine.load(model, dtype=dtype).generate(asked, samples=SAMPLES, max_new_tokens=NEW_TOKENS)  # type: ignore[arg-type]
    groups = [rows[place : place + SAMPLES] for place in range(0, len(rows), SAMPLES)]

    def means(value: Callable[[dict[str, Any]], float]) -> list[float]:
        return [statistics.fmean(value(row) for row in group) for group in groups]

    return {
        "reward": means(lambda row: reward(row["completion"])),
        "judge": means(lambda row: judged(row["completion"])),
        "tokens": means(lambda row: float(row["tokens"])),
        "degenerate": means(lambda row: float(degenerate_word(row["completion"], None) is not None)),
        "distinct_2": means(lambda row: distinct_share(row["completion"], 2) or 0.0),
        "texts": [row["completion"] for row in rows[: 8 * SAMPLES : SAMPLES]],
    }


def ours(folder: Path, prompts: Sequence[Prompt], seed: int, dtype: str) -> dict[str, Any]:
    """PPO with prefine; returns its metrics, an update a row."""
    import prefine

    shutil.rmtree(folder / "run", ignore_errors=True)  # of a call that was interrupted; its log begins anew, too
    log = Log(folder / "scored.jsonl")
    asked = folder / "prompts.jsonl"
    asked.write_text("".join(each.model_dump_json(include={"prompt"}) + "\n" for each in prompts))
    run = prefine.ppo(
        {
            "run": str(folder / "run"),
            "model": {"name": MODEL, "dtype": dtype},
            "lora": {"r": LORA_RANK, "alpha": 2.0 * LORA_RANK},
            "data": {"train": str(asked), "heldout_fraction": 0.0, "max_length_tokens": 512},
            "training": {
                "batch_size": ANSWERS,
                "epochs": 1,
                "learning_rate": LEARNING_RATE,
                "adam_epsilon": 1e-8,
                "max_grad_norm": None,
                "seed": seed,
                "max_tokens_per_microbatch": PPO_MICROBATCH_TOKENS,
            },
            "rollout": {"max_new_tokens": NEW_TOKENS, "heldout_prompts": 0},
            "reward": {"missing_eos": "none"},
            "kl": {"coefficient": KL_COEFFICIENT},
            "ppo": {"epochs": EPOCHS, "minibatches": MINIBATCHES, "max_kl": None},
            "guards": {**{name: {"action": "warn"} for name in GUARDS}, "non_finite": {"action": "stop"}},
            "report": {"samples": 0},
        },
        reward=lambda rows: log.scored([row["response"] for row in rows]),
    )
    return {"metrics": list(run.metrics("train"))}


def answer_after(ids: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens after the prompt in what TRL gives a reward model: prompt and answer, padded with 0 on both sides.
    An answer may hold the text that ends a prompt, so the prompts are compared whole.
    """
    row = [each for each in ids if each != 0]
    fitting = [len(prompt) for prompt in prompts if row[: len(prompt)] == list(prompt)]
    if not fitting:
        raise ValueError("the row begins with none of the prompts")
    return row[max(fitting) :]


def vader_model(tokenizer: Any, asked: Sequence[Sequence[int]], log: Log) -> Any:
    """VADER in the place of a reward model: TRL reads a score at each position and takes the last one's.

    Args:
        asked: the tokens of the prompts.
    """
    import torch
    from torch import Tensor, nn

    class Ids(nn.Module):
        """Passes token ids on as hidden states."""

        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            from transformers.modeling_outputs import BaseModelOutput

            return BaseModelOutput(hidden_states=(input_ids.float().unsqueeze(-1),))

    class Vader(nn.Module):
        """The model."""

        base_model_prefix = "ids"

        def __init__(self) -> None:
            super().__init__()
            self.ids = Ids()
            self.unused = nn.Parameter(torch.zeros(1))

        def score(self, hidden: Tensor) -> Tensor:
            answers = [answer_after(row.long().tolist(), asked) for row in hidden.squeeze(-1)]
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            scores = torch.tensor(log.scored(texts), device=hidden.device)
            return scores[:, None, None].expand(*hidden.shape[:2], 1)

    return Vader()


def trl(folder: Path, prompts: Sequence[Prompt], seed: int, dtype: str) -> dict[str, Any]:
    """PPO with TRL 1.10; returns its log."""
    use_trl_1_10()
    from transformers import set_seed

    set_seed(seed)
    tokenizer = tokenizer_for_ppo()
    asked = prompt_ids(tokenizer, prompts)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = ppo_trainer(
            Path(scratch),
            tokenizer,
            asked,
            vader_model(tokenizer, asked, Log(folder / "scored.jsonl")),
            answers=ANSWERS,
            new_tokens=NEW_TOKENS,
            epochs=EPOCHS,
            dtype=dtype,
            seed=seed,
            temperature=1.0,
            missing_eos_penalty=None,
            kl_coef=KL_COEFFICIENT,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
        )
        trainer.train()
        require_steps(trainer, UPDATES * EPOCHS)
    trainer.model.policy.merge_and_unload().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {"metrics": [row for row in trainer.state.log_history if "objective/kl" in row]}
