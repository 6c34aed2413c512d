"""Reward models on encoders (DeBERTa and others): prompt and answer are the two texts of a sequence classifier.

They have no chat template and take no packed rows: they run on padded batches, as in transformers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prefine.data.reading.rows import Problem
from prefine.data.tokens.vocabulary import require_embedded
from prefine.errors import ModelError
from prefine.models.forward.packed import embedding_rows
from prefine.models.loading.device import choose_device, choose_dtype
from prefine.models.loading.location import Location, one_line
from prefine.models.loading.quiet import known_noise_off
from prefine.models.loading.weights import require_plausible_config, within_files
from prefine.models.scoring.scorer import Question, RewardModel, Score
from prefine.recipe.sections import ModelSection

_QUESTIONS_AT_ONCE = 16
_MAX_TOKENS = 8192


class CrossEncoder(RewardModel):
    """A sequence classifier with its own kind of head. Its scores are not centred.

    The first text is the conversation, one line per turn; the second is the answer.

    Raises:
        ModelError: it cannot be loaded, or its file lacks weights.
    """

    def __init__(self, location: Location, section: ModelSection) -> None:
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        self.name = location.name
        self.scale = None
        source = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
        device = choose_device(section.device)
        dtype, _ = choose_dtype(section.dtype, device)
        try:
            require_plausible_config(location.base, section.revision)
            config = AutoConfig.from_pretrained(location.base, **source)
            with known_noise_off(), within_files(location.base, section.revision, config):
                self.tokenizer = AutoTokenizer.from_pretrained(location.tokenizer, **source)
                self._model, info = AutoModelForSequenceClassification.from_pretrained(
                    location.base, dtype=dtype, use_safetensors=True, output_loading_info=True, **source
                )
        except ModelError:
            raise
        except Exception as error:  # transformers, safetensors and a model's own code raise many types
            raise ModelError(
                f"{location.name!r} could not be loaded as a reward model ({one_line(error)})",
                "Check that it is a sequence classifier with safetensors weights, or the name and the network.",
            ) from error
        if info["missing_keys"]:
            raise ModelError(
                f"{location.name!r} lacks {len(info['missing_keys'])} of its weights ({min(info['missing_keys'])}, …)",
                "It is not a trained reward model, or its files are incomplete: download it again.",
            )
        self._model.to(device).eval()
        self._max_length = min(_positions(self._model), self.tokenizer.model_max_length)

        self.tokenizer.truncation_side = "left"  # cut the prompt from the left, as everywhere else

    def score(self, questions: Iterable[Question]) -> Iterator[list[Score] | None]:
        """See RewardModel."""
        waiting = iter(questions)
        while some := list(itertools.islice(waiting, _QUESTIONS_AT_ONCE)):
            yield from self._scored(some)

    def lengths(self, question: Question) -> list[int] | None:
        """See RewardModel."""
        if not self._fit([self._length(answer) for answer in question.answers], question):
            return None
        texts = [(_as_text(question), answer) for answer in question.answers]
        return [len(ids) for ids in self._encoded(texts)["input_ids"]] if texts else []

    @property
    def network(self) -> Any:
        """See RewardModel."""
        return self._model

    def problem(self, question: Question) -> Problem:
        """See RewardModel."""
        field = _beyond_text(question)
        return super().problem(question) if field is None else Problem(field, f"cannot be read by {self.name}")

    @torch.no_grad()
    def _scored(self, questions: list[Question]) -> Iterator[list[Score] | None]:
        lengths = [[self._length(answer) for answer in question.answers] for question in questions]
        fits = [self._fit(own, question) for own, question in zip(lengths, questions, strict=True)]
        texts = [
            (_as_text(question), answer)
            for question, fitting in zip(questions, fits, strict=True)
            if fitting
            for answer in question.answers
        ]
        tokens = [length for own, fitting in zip(lengths, fits, strict=True) if fitting for length in own]
        scores = iter(self._centred(self._raw(texts), tokens) if texts else [])
        for question, fitting in zip(questions, fits, strict=True):
            yield [next(scores) for _ in question.answers] if fitting else None

    def _fit(self, answers: Sequence[int], question: Question) -> bool:
        """Whether answers of so many tokens leave their prompt room."""
        room = self._max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        return max(answers, default=0) < room and _beyond_text(question) is None

    def _raw(self, texts: list[tuple[str, str]]) -> Tensor:
        """Raw scores of texts with their answers, in batches of at most _MAX_TOKENS tokens with padding."""
        lengths = list(map(len, self._encoded(texts)["input_ids"]))
        runs = padded_runs(lengths, _MAX_TOKENS)
        return torch.cat([self._raw_of_a_batch(texts[run.start : run.stop]) for run in runs])

    def _encoded(self, texts: list[tuple[str, str]], **options: Any) -> Any:
        firsts, seconds = ([pair[side] for pair in texts] for side in (0, 1))
        return self.tokenizer(firsts, seconds, truncation="only_first", max_length=self._max_length, **options)

    def _raw_of_a_batch(self, texts: list[tuple[str, str]]) -> Tensor:
        batch = self._encoded(texts, padding=True, return_tensors="pt")
        require_embedded(batch["input_ids"].unique().tolist(), embedding_rows(self._model), self.tokenizer)
        logits: Tensor = self._model(**batch.to(self._model.device)).logits
        return logits.float().cpu()

    def _length(self, answer: str) -> int:
        return len(self.tokenizer(answer, add_special_tokens=False)["input_ids"])


def padded_runs(lengths: Sequence[int], max_tokens: int) -> list[range]:
    """Runs of neighbours with at most `max_tokens` after padding to the longest; a single one may have more."""
    runs = [range(0, 0)]
    longest = 0
    for place, length in enumerate(lengths):
        longest = max(longest, length)
        if runs[-1] and longest * (len(runs[-1]) + 1) > max_tokens:
            runs.append(range(place, place))
            longest = length
        runs[-1] = range(runs[-1].start, place + 1)
    return runs


def _positions(model: Any) -> int:
    """The number of tokens a model has positions for; RoBERTa and similar models start after their padding index."""
    named = (each for name, each in model.named_modules() if name.endswith("position_embeddings"))
    table = next((each for each in named if isinstance(each, nn.Embedding)), None)
    limit = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
    if table is None:
        return limit
    return min(limit, table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))


def _beyond_text(question: Question) -> str | None:
    """The part of a question that is not plain text of turns, which an encoder cannot read; None if there is none."""
    if question.tools:
        return "tools"
    for place, turn in enumerate(question.prompt):
        for name in ("tool_calls", "reasoning"):
            if getattr(turn, name):
                return f"prompt[{place}].{name}"
    return None


def _as_text(question: Question) -> str:
    return "\n".join(message.content for message in question.prompt)
