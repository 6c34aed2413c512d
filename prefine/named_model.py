"""A model by name, to generate and score with."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefine.data.reading.memory_rows import held_source
from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.stream import read_records
from prefine.errors import DataError, RecipeError, about
from prefine.models.loading.location import locate_model
from prefine.recipe.sections import ModelSection, named_model
from prefine.records import Prompt
from prefine.row_list import Rows

if TYPE_CHECKING:
    from prefine.models.loading.load import LoadedModel
    from prefine.models.scoring.scorer import RewardModel

_FIELDS = {"model.chat_template": "chat_template", "model.device": "device", "model.dtype": "dtype"}

PromptLike = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""A question, the turns of a conversation, or a row with a prompt in any layout of docs/data.md."""


class Model:
    """A language model or a reward model, loaded at first use.

    Attributes:
        name: as given.
    """

    def __init__(self, section: ModelSection) -> None:
        self.name = section.name
        self._section = section

    def __repr__(self) -> str:
        return f"prefine.load({self.name!r})"

    def generate(
        self,
        prompts: Sequence[PromptLike],
        *,
        samples: int = 1,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        slots: int = 64,
    ) -> Rows:
        """Answers to prompts, as `prefine generate`: `samples` rows for each prompt, in order.

        A row has the columns of its prompt's row, and `completion`, `finish_reason` (stop or length), `tokens` and
        `logprob` (nats, under the model itself); with several samples also `sample`. `score` reads such rows.

        Args:
            prompts: see PromptLike.
            samples: answers to each prompt.
            max_new_tokens: the longest answer, in tokens.
            temperature: 0 always takes the likeliest token.
            top_k, top_p, min_p, repetition_penalty, stop: see prefine.generation.sampling.Sampling.
            seed: of the first answer; each further answer has the next number.
            slots: answers generated at once; memory use grows with it.

        Raises:
            ModelError: the model generates no text, or cannot be loaded.
            DataError: a prompt cannot be used, or leaves no room for an answer.
            RecipeError: a setting is out of range.
        """
        from prefine.generation.answer_rows import GeneratedRows
        from prefine.generation.sampling import Sampling

        if isinstance(prompts, str | Mapping):
            raise DataError(f"prompts is of type {type(prompts).__name__}, not a list", "Give a list of prompts.")
        if samples < 1 or slots < 1:
            raise RecipeError(f"samples is {samples} and slots is {slots}", "Both must be at least 1.")
        if max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens is {max_new_tokens}; it must be at least 1", "Change it.")
        try:
            sampling = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, tuple(stop), seed)
        except ValueError as error:
            raise RecipeError(str(error), "Change it.") from None
        if not len(prompts):
            return Rows()
        with _read("prompts", [_prompt_row(prompt) for prompt in prompts], Prompt) as (source, refused):
            rows = GeneratedRows([source], refused)
            return Rows(rows.by(self.language_model, sampling, samples, slots))

    def score(self, rows: Any) -> Rows:
        """Scores of answers, as `prefine score`: each row with its score, in order.

        A row with one answer gets `score`, a pair `score_of_chosen` and `score_of_rejected`; with several heads also
        their disagreement. Scores of prefine's own models are centred: 0 is an average held-out answer.

        Args:
            rows: mappings in any layout of docs/data.md (`{"prompt": …, "response": …}`), or a data frame.

        Raises:
            ModelError: it is not a reward model, or cannot be loaded.
            DataError: a row cannot be used, or its answer is too long for the model.
        """
        from prefine.evaluation.score_rows import ScoredRows

        if not len(rows):
            return Rows()
        with _read("rows", rows) as (source, refused):
            return Rows(ScoredRows([source], refused).by(self.reward_model))

    def export(
        self,
        to: str,
        *,
        out: str | os.PathLike[str] | None = None,
        dtype: str | None = None,
        force: bool = False,
    ) -> Path:
        """Write it in a format that others load, and prove that it is what was trained; returns the folder.

        Args:
            to: see docs/export.md; "merged" or "adapter", say.
            out: a new folder; None for export/FORMAT in the folder of the run that it is the result of.
            dtype: of the weights; None for the format's default.
            force: keep an export that exceeds a limit of its proof, marked as such.

        Raises:
            PrefineError: the run is not finished, there is no room, or the export is not what was trained.
        """
        from prefine.export.run_export import export_run

        path = None if out is None else Path(out)
        return export_run(self.name, to, out=path, dtype=dtype, force=force).folder

    @cached_property
    def language_model(self) -> LoadedModel:
        """The language model, loaded. Raises ModelError."""
        from prefine.models.loading.load import load_model

        with about(None, _FIELDS):
            return load_model(self._section, None, trainable=False)

    @cached_property
    def reward_model(self) -> RewardModel:
        """The reward model, loaded. Raises ModelError."""
        from prefine.models.scoring.packed_scorer import load_reward

        with about(None, _FIELDS):
            return load_reward(self._section)


def load(
    name: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    chat_template: str | None = None,
) -> Model:
    """A model by name: a run or its folder, the folder of a model or an adapter, a hub id, or embedded:….

    Args:
        name: see above.
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: auto measures the faster one.
        chat_template: for a tokenizer without one: plain, or the path of a Jinja file.

    Raises:
        ModelError: there is no such model.
        RecipeError: a setting has an invalid value.
    """
    with about(None, _FIELDS):
        section = named_model(os.fspath(name), device=device, dtype=dtype, chat_template=chat_template)
        locate_model(section.name)
    return Model(section)


def _prompt_row(prompt: PromptLike) -> Mapping[str, Any]:
    return prompt if isinstance(prompt, Mapping) else {"prompt": prompt if isinstance(prompt, str) else list(prompt)}


@contextmanager
def _read(what: str, rows: Any, kind: type[Prompt] | None = None) -> Iterator[tuple[str, Quarantine]]:
    """A source of these rows, with a quarantine in which any row is an error.

    Args:
        what: the rows' name in messages.
        kind: if given, rows that are not such records are refused before anything is computed.

    Raises:
        DataError: names the first row, counted from 0, and the reason.
    """
    with held_source(rows) as source, Quarantine() as refused:
        try:
            if kind is not None:
                with Quarantine() as unreadable:
                    deque(read_records(source, kind, quarantine=unreadable, deduplicate=False), maxlen=0)
                _require_none(what, len(rows), unreadable)
            yield source, refused
        except DataError as error:
            error.problem = error.problem.replace(source, what)
            raise
        _require_none(what, len(rows), refused)


def _require_none(what: str, count: int, refused: Quarantine) -> None:
    if not refused.total:
        return
    reason, place = next(iter(refused.first.items()))
    row = int(place.rpartition(":")[2]) - 1
    raise DataError(
        f"{refused.total} of {count} {what} cannot be used; {what}[{row}]: {reason}", "Correct or remove them."
    )
