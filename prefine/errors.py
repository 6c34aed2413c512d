"""Every error a user can meet: one line for each mistake, which names the field, the value, the rule and the remedy.

    PrefineError                 anything prefine refuses to go on with; the command line exits with 2
    ├── RecipeError              a recipe or a --set override that is not valid
    ├── DataError                a file, a column or a record that cannot be used
    ├── TemplateError            a chat template that is missing or cannot be rendered safely
    │   └── RefusedRowError      a row that holds what the chat template does not write; others are fine
    ├── ModelError               a model, tokenizer or adapter that cannot be loaded or does not fit
    ├── CheckpointError          a run directory or checkpoint that cannot be written, read or continued
    ├── TrainingError            a run that must not go on: a failed self-check, a non-finite loss
    │   └── RewardError          a reward that raises, hangs, or gives something else than scores
    ├── EngineError              another server (vLLM, llama.cpp) that does not start, or that ends by itself
    └── MissingDependencyError   an optional package that the recipe asks for and that is not installed

Stopped is none of them: the user asked, and everything is saved. Anything else that escapes is a bug in prefine, and
shows its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType


class PrefineError(Exception):
    """Base of all errors meant for the user.

    Args:
        problem: what is wrong, naming the file and the value found.
        remedy: what to do about it, as an imperative sentence.
        field: the recipe's field or the argument that it is about; the message begins with it. Shared code names the
            recipe's field, and a caller whose user gave something else renames it (see `about`).
    """

    def __init__(self, problem: str, remedy: str, *, field: str | None = None) -> None:
        super().__init__(problem, remedy)
        self.problem = problem.rstrip(". ")
        self.remedy = remedy
        self.field = field

    def __str__(self) -> str:
        begin = "" if self.field is None else f"{self.field}: "
        return f"{begin}{self.problem}. {self.remedy}"

    @property
    def lines(self) -> tuple[str, ...]:
        """What a console shows: one line, whatever library's message is quoted in it."""
        return (_one_line(str(self)),)


@contextmanager
def about(name: str | None, others: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Inside, errors about the model that a recipe names are about another argument, as no recipe names it here.

    Args:
        name: what the user knows the model by, as in "--policy"; None where only one model can be meant, so that
            errors need not name it.
        others: names for single fields, as in {"model.chat_template": "--chat-template"}. They replace the field in the
            remedy, too.
    """
    try:
        yield
    except PrefineError as error:
        field = error.field
        if field is not None and field in others:
            error.field = others[field]
            error.remedy = error.remedy.replace(field, others[field])
        elif field is not None and (field == "reward.name" or field.startswith("model.")):
            error.field = name
        raise


class RecipeError(PrefineError):
    """A recipe or a --set override that is not valid."""


class SeveralRecipeError(RecipeError):
    """Several things that are wrong with a recipe.

    Args:
        errors: at least two, in the order of the recipe's fields.
    """

    def __init__(self, errors: Sequence[RecipeError]) -> None:
        super().__init__(f"{len(errors)} settings are not valid", " ".join(str(error) for error in errors))
        self.errors = tuple(errors)

    @property
    def lines(self) -> tuple[str, ...]:
        """How many, and then each on a line of its own."""
        return (f"{self.problem}:", *(f"  {line}" for error in self.errors for line in error.lines))


def all_of(errors: Sequence[RecipeError]) -> RecipeError:
    """One error that tells all of these."""
    return errors[0] if len(errors) == 1 else SeveralRecipeError(errors)


class DataError(PrefineError):
    """A file, a column or a record that cannot be used."""


class TemplateError(PrefineError):
    """A chat template that is missing or cannot be rendered safely."""


class RefusedRowError(TemplateError):
    """A row that holds what the chat template does not write; others are fine.

    Args:
        field: where in the record it is.
        reason: why; reads on from the field's name.
        remedy: see PrefineError.
    """

    def __init__(self, field: str, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy, field=field)
        self.args = (field, reason, remedy)  # what pickle makes it from

    def __str__(self) -> str:
        return f"{self.field} {self.problem}. {self.remedy}"


class ModelError(PrefineError):
    """A model, tokenizer or adapter that cannot be loaded or does not fit."""


class CheckpointError(PrefineError):
    """A run directory or checkpoint that cannot be written, read or continued."""


class TrainingError(PrefineError):
    """A run that must not go on: a failed self-check, a non-finite loss."""


class NotFiniteError(TrainingError):
    """Weights have gone where losses, gradients or logits are no numbers; none was changed since."""


class RewardError(TrainingError):
    """A reward that raises, hangs, or gives something else than scores; what was trained before is saved."""


class EngineError(PrefineError):
    """Another server (vLLM, llama.cpp) that does not start, or that ends by itself."""


class MissingDependencyError(PrefineError):
    """An optional package that the recipe asks for and that is not installed."""


class Stopped(Exception):  # noqa: N818 - no error
    """A run was asked to stop and can be resumed; says how far it came. The command line exits with 130."""


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text)
