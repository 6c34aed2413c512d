"""The parts of a comparison: each is computed at most once, in blocks, and read from the folder afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prefine.errors import EndpointError, PrefineError
from prefine.evaluation.comparing.answering import SideAnswer, write_block
from prefine.evaluation.comparing.endpoint_answers import ask_all
from prefine.evaluation.comparing.folder import EvaluationFolder, Progress
from prefine.evaluation.comparing.questions import EvaluationPrompt, digest_of
from prefine.evaluation.comparing.request import EvaluationRequest
from prefine.evaluation.comparing.sides import NamedSide, Sides
from prefine.generation.sampling import Sampling
from prefine.judges.cache import ReplyCache
from prefine.models.loading.load import LoadedModel

# Answers of a block for each slot. At the end of a block slots are idle; a kill loses a block.
_BLOCK_A_SLOT = 2
_ROWS_A_BLOCK = 64

Compute = Callable[[LoadedModel, Sequence[Any]], Iterable[Mapping[str, Any]]]


class Parts:
    """Computes and reads the parts of one comparison.

    Args:
        request: what is asked.
        sides: by role.
        models: loads them.
        folder: of the comparison.
        progress: see Progress.

    Attributes:
        unfinished: what could not be computed, and may be by the next call: an endpoint is down.
    """

    def __init__(
        self,
        request: EvaluationRequest,
        sides: Mapping[str, NamedSide],
        models: Sides,
        folder: EvaluationFolder,
        progress: Progress,
    ) -> None:
        self._request = request
        self._sides = sides
        self._models = models
        self._folder = folder
        self._progress = progress
        self.unfinished: list[PrefineError] = []

    def answers(
        self, role: str, what: str, prompts: Sequence[EvaluationPrompt], sampling: Sampling, samples: int = 1
    ) -> list[SideAnswer]:
        """The answers of a side: `samples` to each prompt, in order; both sides draw the same random numbers.

        Args:
            what: name of the part.
        """
        asked = [prompt for prompt in prompts for _ in range(samples)]
        seeds = [sampling.seed + place for place in range(len(asked))]
        endpoint = self._sides[role].endpoint
        if endpoint is not None:
            name = f"{role}: {what}"
            problems: list[EndpointError] = []
            with ReplyCache(self._folder.replies) as cache:
                answers = ask_all(
                    endpoint,
                    asked,
                    seeds,
                    sampling,
                    cache,
                    lambda done: self._progress(name, done, len(asked)),
                    self._request.patience,
                    problems=problems,
                )
            if passing := [each for each in problems if each.may_pass]:
                first = next((each for each in passing if each.ends_all), passing[0])
                self.note_unfinished(f"{name}: {len(passing)} of {len(asked)} prompts have no answer", first)
            return answers
        slots = self._request.slots

        def compute(loaded: LoadedModel, places: Sequence[Any]) -> Iterable[Mapping[str, Any]]:
            chosen, own = [asked[place] for place in places], [seeds[place] for place in places]
            return (each.as_row() for each in write_block(loaded, chosen, own, sampling, slots))

        settings = {"sampling": asdict(sampling), "samples": samples, "slots": slots}
        digest = digest_of([(each.id, each.turns, each.tools) for each in prompts])
        places = list(range(len(asked)))
        rows = self.of_model(role, what, settings | {"prompts": digest}, places, compute, block=slots * _BLOCK_A_SLOT)
        return [SideAnswer.of_row(row) for row in rows]

    def of_model(
        self,
        role: str,
        what: str,
        settings: Mapping[str, Any],
        items: Sequence[Any],
        compute: Compute,
        *,
        block: int = _ROWS_A_BLOCK,
    ) -> list[dict[str, Any]]:
        """A part that a compared model computes: a row for each item.

        Args:
            settings: what decides the rows besides the model.
            compute: the rows of some items, with the model.
        """

        def with_model(places: range) -> Iterable[Mapping[str, Any]]:
            with self._models.open(role) as opened:
                yield from compute(opened.loaded, items[places.start : places.stop])

        return self.rows(
            f"{role}-{what}", {"model": self._sides[role].settings, **settings}, len(items), block, with_model
        )

    @property
    def folder(self) -> EvaluationFolder:
        """The comparison's folder."""
        return self._folder

    def close_models(self) -> None:
        """Free the memory of the compared models."""
        self._models.close()

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how much of some work is done."""
        self._progress(what, done, total)

    def note_unfinished(self, what: str, why: PrefineError) -> None:
        """Note what the next call may compute.

        Args:
            what: is missing, as a clause.
            why: it could not be computed now.
        """
        self.unfinished.append(PrefineError(f"{what}: {why.problem}", why.remedy))

    def rows(
        self,
        part: str,
        settings: Mapping[str, Any],
        items: int,
        block: int,
        compute: Callable[[range], Iterable[Mapping[str, Any]]],
    ) -> list[dict[str, Any]]:
        """A part by its name; see EvaluationFolder.rows."""
        began, name = time.perf_counter(), part.replace("-", ": ", 1)
        is_there = self._folder.is_complete(part)
        try:
            return self._folder.rows(
                part, settings, items, block, compute, lambda done: self._progress(name, done, items)
            )
        finally:
            if not is_there:
                self._folder.add_seconds(part, time.perf_counter() - began)
