"""Prompts in, answers out: what `prefine generate` does, in order and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefine.data.dataset import read_records
from prefine.data.prepare import source_names
from prefine.data.quarantine import Quarantine
from prefine.data.rows import Problem
from prefine.evaluation.sample import room_for_prompts
from prefine.evaluation.wording import plural
from prefine.models.generate import Generated, Request, writer_for
from prefine.models.load import LoadedModel
from prefine.models.sampling import Sampling
from prefine.records import Prompt

# Requests at a time, a slot: enough that none stays empty, few enough for a file of any length.
_UNFINISHED_A_SLOT = 2
# Answers that wait for an earlier one, which is still being written, a slot: text takes little room.
_HELD_A_SLOT = 64
_TOO_LONG = Problem("prompt", "leaves no room for an answer in the model's context")


@dataclass
class _Asked:
    record: Prompt
    numbers: list[int]


class GeneratedRows:
    """The rows of `sources` with what a model writes to their prompts, in order and lazily.

    Args:
        sources: see prefine.data.reading; rows with answers give their prompts.
        quarantine: takes rows that are not valid, and prompts that are too long.
        split: of a Hugging Face data set.

    Attributes:
        written: answers so far.
        tokens: their tokens.

    Raises:
        DataError: a source cannot be found or read, or none of its rows holds a prompt.
    """

    def __init__(self, sources: Sequence[str], quarantine: Quarantine, split: str = "train") -> None:
        self.written = 0
        self.tokens = 0
        self._quarantine = quarantine
        self._stream = read_records(
            source_names(list(sources)), Prompt, quarantine=quarantine, split=split, deduplicate=False
        )

    def by(self, loaded: LoadedModel, sampling: Sampling, samples: int, slots: int) -> Iterator[dict[str, Any]]:
        """One JSON object an answer, `samples` a prompt; each sample has a seed of its own."""
        writer = writer_for(loaded.packed, loaded.tokenizer, slots)
        asked: deque[_Asked] = deque()
        found: dict[int, Generated] = {}
        rows = self._requests(loaded, sampling, samples)
        more, count, told = True, 0, 0
        while more or asked:
            while more and count - told - len(found) < slots * _UNFINISHED_A_SLOT and len(found) < slots * _HELD_A_SLOT:
                row = next(rows, None)
                if row is None:
                    more = False
                    break
                record, requests = row
                asked.append(_Asked(record, [writer.add(request) for request in requests]))
                count += len(requests)
            found |= dict(writer.step())
            while asked and all(number in found for number in asked[0].numbers):
                done = asked.popleft()
                told += len(done.numbers)
                for sample, number in enumerate(done.numbers):
                    yield self._told(done.record, found.pop(number), sample, samples)

    def summary(self, name: str) -> list[str]:
        """What became of the rows, for people."""
        told = [f"{plural(self.written, 'answer')} of {self.tokens:,} tokens written by {name}"]
        if self._quarantine.total:
            reasons = "; ".join(f"{reason} ({count})" for reason, count in self._quarantine.reasons.most_common(3))
            where = self._quarantine.path or "not written: name a file with --quarantine"
            told.append(f"{plural(self._quarantine.total, 'row')} could not be answered: {reasons} ({where})")
        return told

    def _requests(
        self, loaded: LoadedModel, sampling: Sampling, samples: int
    ) -> Iterator[tuple[Prompt, list[Request]]]:
        room = room_for_prompts(loaded.packed, sampling.max_new_tokens)
        for place, record in enumerate(self._stream):
            ids = loaded.template.prompt_ids(record.prompt)
            if len(ids) > room:
                file, line = self._stream.place
                self._quarantine.add(file, line, _TOO_LONG, record.model_dump(mode="json"))
                continue
            seeds = range(sampling.seed + place * samples, sampling.seed + (place + 1) * samples)
            yield (
                record,
                [Request(ids, replace(sampling, seed=seed), loaded.template.stop_ids) for seed in seeds],
            )

    def _told(self, record: Prompt, generated: Generated, sample: int, samples: int) -> dict[str, Any]:
        self.written += 1
        self.tokens += len(generated.tokens)
        row = {**record.extra, **record.model_dump(mode="json", exclude={"extra"}, exclude_none=True)}
        row |= {
            "completion": generated.text,
            "finish_reason": generated.finish,
            "tokens": len(generated.tokens),
            "logprob": sum(generated.logprobs),
        }
        return {**row, "sample": sample} if samples > 1 else row
