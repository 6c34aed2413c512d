"""`prefine generate`: answers to the prompts of a file, in order and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from pydantic import NonNegativeInt

from prefine.data.reading.quarantine import Quarantine, refusal_of
from prefine.data.reading.rows import Problem, RowError
from prefine.data.reading.source_names import source_names
from prefine.data.records.column_names import with_known_names
from prefine.data.records.convert import records_of
from prefine.data.records.stream import read_records
from prefine.data.records.unread_columns import kind_in
from prefine.data.row_blocks import BlockRows, BlockState
from prefine.data.row_columns import said_of, saying
from prefine.data.tokens.fitting import fit_prompt
from prefine.data.tokens.template import ChatTemplate
from prefine.errors import TemplateError
from prefine.formatting import plural
from prefine.generation.answers import room_for_prompts
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.writer import Generated, Request
from prefine.models.loading.load import LoadedModel
from prefine.records import Completion, Demonstration, Prompt
from prefine.row_rules import AS_WRITTEN, RowRules
from prefine.runs.atomic import JSON
from prefine.text_form import AS_FOUND, TextForm

# Answers per block. Slots become idle at the end of a block, so there must be many answers per slot. A resume repeats
# an unfinished block.
_BLOCK_A_SLOT = 8
_LEAST_BLOCK = 64
# Bytes of a block's records, which are held in memory until the block is done.
_BLOCK_BYTES = 64 * 1024 * 1024
_TOO_LONG = Problem("prompt", "leaves no room for an answer in the model's context")


@dataclass(frozen=True)
class _Asked:
    """One answer to generate; `row` is its prompt's row, `size` its bytes in a block."""

    record: Prompt
    row: dict[str, Any]
    request: Request
    sample: int
    size: int


class _GeneratedState(BlockState):
    sample: NonNegativeInt | None
    cut: NonNegativeInt = 0  # not in earlier releases
    written: NonNegativeInt
    tokens: NonNegativeInt


class GeneratedRows(BlockRows[Prompt]):
    """The rows of `sources` with generated answers, in order, lazily.

    Args:
        sources: see prefine.data.reading.sources; rows with answers provide their prompts.
        quarantine: receives invalid rows, and prompts that the template refuses or that are too long even when cut.
        split: split of a Hugging Face dataset.
        text: delimiter and encoding of text files.
        rules: column names.

    Attributes:
        written: number of answers so far.
        tokens: number of their tokens.
        cut: number of prompts cut to leave room for an answer.

    Raises:
        DataError: a source cannot be found or read, or none of its rows has a prompt.
    """

    state_type = _GeneratedState

    def __init__(
        self,
        sources: Sequence[str],
        quarantine: Quarantine,
        split: str = "train",
        text: TextForm = AS_FOUND,
        rules: RowRules = AS_WRITTEN,
    ) -> None:
        stream = read_records(
            source_names(list(sources)),
            Prompt,
            quarantine=quarantine,
            split=split,
            deduplicate=False,
            text=text,
            rules=rules,
        )
        super().__init__(stream, quarantine)
        self.written = 0
        self.tokens = 0
        self.cut = 0
        # Number of the latest prompt's next answer; None if all of its answers have been requested.
        self._next_sample: int | None = None

    def by(self, loaded: LoadedModel, sampling: Sampling, samples: int, slots: int) -> Iterator[dict[str, Any]]:
        """One JSON object per answer, `samples` per prompt; each sample has its own seed."""
        return chain.from_iterable(self.blocks(loaded, sampling, samples, slots))

    def blocks(
        self, loaded: LoadedModel, sampling: Sampling, samples: int, slots: int
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """The same rows in blocks. Consume each block before the next one; `state` is valid between blocks."""
        answers = self._answers(loaded, sampling, samples)
        while block := _taken(answers, max(slots * _BLOCK_A_SLOT, _LEAST_BLOCK)):
            yield self._written(loaded, block, samples, slots)

    def state(self) -> dict[str, JSON]:
        """See BlockRows."""
        return {
            **super().state(),
            "sample": self._next_sample,
            "written": self.written,
            "tokens": self.tokens,
            "cut": self.cut,
        }

    def go_to(self, state: Mapping[str, Any]) -> None:
        """See BlockRows."""
        super().go_to(state)
        self._next_sample, self.written, self.tokens = state["sample"], state["written"], state["tokens"]
        self.cut = state.get("cut", 0)

    def summary(self, name: str) -> list[str]:
        """Summary lines for the user."""
        told = f"{plural(self.written, 'answer')} of {self.tokens:,} tokens generated by {name}"
        cut = f"{plural(self.cut, 'prompt')} cut to leave room for an answer, oldest turns first"
        return [told, *([cut] if self.cut else []), *self._about_rows("answered")]

    def _answers(self, loaded: LoadedModel, sampling: Sampling, samples: int) -> Iterator[_Asked]:
        """All answers to generate, from the first that was not requested yet."""
        room = room_for_prompts(loaded.packed, sampling.max_new_tokens)
        begun = self._records.last if self._next_sample is not None else None
        for record in chain(() if begun is None else (begun,), self._records):
            row = self._records.row
            ids = self._prompt_ids(loaded.template, record, row, room)
            if ids is None:
                continue
            first, size = self._next_sample or 0, self._records.size
            seed = sampling.seed + (self._records.count - 1) * samples
            for sample in range(first, samples):
                self._next_sample = sample + 1 if sample + 1 < samples else None
                request = Request(ids, replace(sampling, seed=seed + sample), loaded.template.stop_ids)
                yield _Asked(record, row, request, sample, size if sample == first else 0)

    def _prompt_ids(self, template: ChatTemplate, record: Prompt, row: dict[str, Any], room: int) -> list[int] | None:
        """Token ids of a prompt, cut if too long; None if it is quarantined."""
        try:
            fitted = fit_prompt(template, record.prompt, room, record.tools)
        except TemplateError as error:
            problem = refusal_of(error)
        else:
            if fitted is not None:
                if self._next_sample is None:  # a prompt that was started before is already counted
                    self.cut += fitted.cut
                return list(fitted.tree.prompt)
            problem = _TOO_LONG
        self._quarantine.add(*self._records.place, problem, row)
        return None

    def _written(
        self, loaded: LoadedModel, block: Sequence[_Asked], samples: int, slots: int
    ) -> Iterator[dict[str, Any]]:
        # A new writer for each block: rounding depends on which sequences are computed together and on the length of
        # cached rows, so a block is bit-identical after a resume only if nothing precedes it.
        writer = writer_for(loaded.packed, loaded.tokenizer, slots)
        numbers = [writer.add(asked.request) for asked in block]
        found: dict[int, Generated] = {}
        for number, asked in zip(numbers, block, strict=True):
            while number not in found:
                found |= dict(writer.step())
            yield self._told(asked, found.pop(number), samples)

    def _told(self, asked: _Asked, generated: Generated, samples: int) -> dict[str, Any]:
        self.written += 1
        self.tokens += len(generated.tokens)
        own = {
            "completion": generated.text,
            "finish_reason": generated.finish,
            "tokens": len(generated.tokens),
            "logprob": sum(generated.logprobs),
        }
        if samples > 1:
            own["sample"] = asked.sample
        used = said_of(asked.record)
        says = partial(_says, record=asked.record)
        return saying(asked.row, own, used, says, self._renamed)


def _says(row: dict[str, Any], record: Prompt) -> bool:
    """Whether an output row, read again as input, has the same prompt and tools, and only that answer."""
    named = with_known_names(row)
    if kind_in(named) is not Demonstration:  # a vote or a pair belongs to other answers
        return False
    try:
        found = records_of(named, Completion)
    except RowError:
        return False
    said = [(each.prompt, each.tools, each.completion) for each in found]
    return said == [(record.prompt, record.tools, row["completion"])]


def _taken(answers: Iterator[_Asked], most: int) -> list[_Asked]:
    """The answers of the next block; fewer if their records are large."""
    block: list[_Asked] = []
    room = _BLOCK_BYTES
    while len(block) < most and room > 0 and (asked := next(answers, None)) is not None:
        block.append(asked)
        room -= asked.size
    return block
