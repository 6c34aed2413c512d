"""Rollouts: the answers of an update, and measurements of their tokens."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prefine.data.tokens.store import TokenStore
from prefine.data.tokens.trees import TokenTree, epoch_order, even_part, token_offsets
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Generated, Request
from prefine.models.forward.packed import PackedModel
from prefine.objectives import kl
from prefine.recipe.rl import PpoRecipe
from prefine.records import Conversation, Message
from prefine.training.rl.reward_sources import PromptAnswers
from prefine.training.rl.rewards import Scored


@dataclass(frozen=True)
class Rollouts:
    """Answers to P prompts, n each: S = P n answers of T tokens in all.

    Token tensors hold the answers' tokens end to end, prompt after prompt, as `PackedBatch.targets` of all trees does:
    there is no padding, and so no mask.

    Attributes:
        trees: P; a prompt and its n answers as token ids, with the end of turn if it was generated. `row` counts them.
        rows: P; the number of each prompt's row of the training data.
        texts: S; the answers' texts.
        lengths: (S,) int64, tokens an answer.
        ended: (S,) bool, whether an answer ended its turn itself.
        scored: the answers' rewards.
        logprobs: (T,) fp32, of each token under the policy that generated it, by the training forward.
        reference: (T,) fp32, the same under the reference.
        entropy: (T,) fp32, nats, of the distribution each token was drawn from.
        values: (T,) fp32, the critic's value before each token; zeros without a critic.
    """

    trees: tuple[TokenTree, ...]
    rows: tuple[int, ...]
    texts: tuple[str, ...]
    lengths: Tensor
    ended: Tensor
    scored: Scored
    logprobs: Tensor
    reference: Tensor
    entropy: Tensor
    values: Tensor

    def places(self, parts: Iterable[tuple[int, range]]) -> Tensor:
        """Indices into the token tensors of some answers' tokens, in the order given.

        Args:
            parts: trees and which of their answers, as PackedBatch.answers_of_rows gives them.
        """
        starts = token_offsets(self.lengths.tolist())
        first_answers = token_offsets(len(tree.answers) for tree in self.trees)
        return torch.cat(
            [
                torch.arange(starts[first_answers[tree] + answers.start], starts[first_answers[tree] + answers.stop])
                for tree, answers in parts
            ]
        )

    @property
    def prompts(self) -> Tensor:
        """(T,) int64: the number of each token's prompt."""
        tokens = torch.tensor([sum(map(len, tree.answers)) for tree in self.trees])
        return torch.arange(len(self.trees)).repeat_interleave(tokens)

    @property
    def kl(self) -> Tensor:
        """(T,) k1 to the reference, nats."""
        return kl.k1(self.logprobs, self.reference)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, with `state`."""
        tokens = [token for tree in self.trees for part in (tree.prompt, *tree.answers) for token in part]
        names = ("lengths", "ended", "logprobs", "reference", "entropy", "values")
        return {"tokens": torch.tensor(tokens), **{name: getattr(self, name) for name in names}}

    def state(self) -> dict[str, Any]:
        """As JSON, without the tensors and `scored`, which has a state of its own."""
        return {
            "rows": list(self.rows),
            "texts": list(self.texts),
            "scores": self.scored.scores,
            "prompts": [len(tree.prompt) for tree in self.trees],
            "answers": [list(map(len, tree.answers)) for tree in self.trees],
        }

    @staticmethod
    def from_state(tensors: Mapping[str, Tensor], state: Mapping[str, Any], scored: Mapping[str, Any]) -> Rollouts:
        """Rebuild from the values of `tensors`, `state` and `scored.state`."""
        rest = dict(tensors)
        tokens = iter(rest.pop("tokens").tolist())

        def take(count: int) -> list[int]:
            return [next(tokens) for _ in range(count)]

        trees = tuple(
            TokenTree(
                take(prompt), tuple(take(length) for length in answers), (None,) * len(answers), place, apart=True
            )
            for place, (prompt, answers) in enumerate(zip(state["prompts"], state["answers"], strict=True))
        )
        found = Scored.from_state(scored, state["scores"])
        return Rollouts(trees, tuple(state["rows"]), tuple(state["texts"]), scored=found, **rest)


@dataclass
class Generations:
    """Answers to P prompts, n each, before they are scored and measured: S = P n.

    Attributes:
        trees: P; `row` is that of the data.
        texts: S.
        ended: S; whether an answer ended its turn itself.
    """

    trees: list[TokenTree]
    texts: list[str]
    ended: list[bool]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer."""
        return [len(answer) for tree in self.trees for answer in tree.answers]

    def by_prompt(self, samples: int) -> list[Generations]:
        """The answers to each prompt separately.

        Args:
            samples: n.
        """
        parts = [slice(place * samples, (place + 1) * samples) for place in range(len(self.trees))]
        return [
            Generations([tree], self.texts[part], self.ended[part])
            for tree, part in zip(self.trees, parts, strict=True)
        ]

    @staticmethod
    def joined(parts: Iterable[Generations]) -> Generations:
        """The answers to several prompts together, in order."""
        whole = Generations([], [], [])
        for part in parts:
            whole.trees += part.trees
            whole.texts += part.texts
            whole.ended += part.ended
        return whole


@dataclass
class Timings:
    """Seconds of the phases of an update."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to this phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began


def seed_of(*parts: int | str) -> int:
    """A seed that depends on all of `parts` and nothing else."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:7])


def generate_answers(
    policy: PackedModel,
    template: Any,
    recipe: PpoRecipe,
    prompts: Sequence[TokenTree],
    seeds: Callable[[int, int], int],
    samples: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Generations:
    """Generate `samples` answers to each prompt.

    Args:
        prompts: trees without answers.
        seeds: from a prompt's place and a sample's number to a seed.
    """
    section = recipe.rollout
    requests = [
        Request(
            tree.prompt,
            Sampling(section.max_new_tokens, temperature=section.temperature, seed=seeds(place, sample)),
            template.stop_ids,
        )
        for place, tree in enumerate(prompts)
        for sample in range(samples)
    ]
    found = writer_for(policy, template.tokenizer, min(section.slots, max(1, len(requests)))).write(requests, progress)
    return Generations(
        [_answered(tree, found[place * samples : (place + 1) * samples]) for place, tree in enumerate(prompts)],
        [each.text.strip() for each in found],
        [each.ended for each in found],
    )


def _answered(tree: TokenTree, found: Sequence[Generated]) -> TokenTree:
    answers = tuple(each.tokens for each in found)
    return TokenTree(tree.prompt, answers, (None,) * len(found), tree.row, apart=True)


def conversation_of(store: TokenStore, row: int) -> Conversation:
    """The prompt of a stored record."""
    return tuple(Message.model_validate(message) for message in json.loads(store.record_json(row))["prompt"])


def prompt_answers(answers: Generations, store: TokenStore, rows: Sequence[int]) -> list[PromptAnswers]:
    """Answers to these rows of a store, with the rows' other columns, as reward sources take them."""
    each = len(answers.texts) // max(1, len(rows))
    return [
        PromptAnswers(
            conversation_of(store, row),
            tuple(answers.texts[place * each : (place + 1) * each]),
            _columns(store, row),
            tuple(json.loads(store.record_json(row)).get("tools", ())),
        )
        for place, row in enumerate(rows)
    ]


def _columns(store: TokenStore, row: int) -> str:
    record = json.loads(store.record_json(row))
    return json.dumps({**record["extra"], **({} if record["id"] is None else {"id": record["id"]})})


def minibatches(trees: int, count: int, seed: int, update: int, epoch: int) -> list[list[int]]:
    """An update's trees in `count` parts whose sizes differ by at most one, shuffled anew for each epoch."""
    order = epoch_order(trees, seed_of(seed, update), epoch)
    count = min(count, trees)
    return [even_part(order, part, count) for part in range(count)]
