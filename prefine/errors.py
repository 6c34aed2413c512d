"""Errors for users: one line for each mistake, with the field, the value, the rule and the remedy.

    PrefineError                 any error that a user can correct; the command line exits with 2
    ├── RecipeError              a recipe or a --set override that is not valid
    ├── DataError                a file, a column or a record that cannot be used
    ├── TemplateError            a chat template that is missing or cannot be rendered safely
    │   └── RefusedRowError      a row with content that the chat template does not write; others are fine
    ├── ModelError               a model, tokenizer or adapter that cannot be loaded or does not fit
    ├── CheckpointError          a run's folder or checkpoint that cannot be written, read or resumed
    ├── TrainingError            a run that must not continue: a failed self-check, a non-finite loss
    │   └── RewardError          a reward that raises, hangs, or does not return scores
    ├── EngineError              another server (vLLM, llama.cpp) that does not start, or that ends by itself
    ├── EndpointError            an endpoint of somebody else's that does not answer, or refuses a request
    └── MissingDependencyError   an optional package that the recipe needs and that is not installed

Stopped is not an error: the user asked, and everything is saved. Any other exception is a bug in prefine and shows its
traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType


class PrefineError(Exception):
    """Base class of all errors for users.

    Args:
        problem: what is wrong, with the file and the value.
        remedy: what to do, as an imperative sentence.
        field: the recipe's field or the argument concerned, with which the message starts. Shared code names the
            recipe's field; callers with another argument rename it (see `about`).
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
        """The message for a console: one line, also with a quoted library's message."""
        return (_one_line(str(self)),)


@contextmanager
def about(name: str | None, others: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Context in which errors about a recipe's model section name another argument instead.

    Args:
        name: the user's argument for the model, such as "--policy"; None if there is only one model, so that errors
            need not name it.
        others: names for single fields, such as {"model.chat_template": "--chat-template"}, also replaced in remedies;
            there a field that is a plain word, such as "reward", stays: it may be meant as a word.
    """
    try:
        yield
    except PrefineError as error:
        field = error.field
        if field is not None and field in others:
            error.field = others[field]
            if not field.isalpha():
                error.remedy = error.remedy.replace(field, others[field])
        elif field is not None and (field == "reward.name" or field.startswith("model.")):
            error.field = name
        raise


class RecipeError(PrefineError):
    """A recipe or a --set override that is not valid."""


class SeveralRecipeError(RecipeError):
    """Several errors in a recipe.

    Args:
        errors: at least two, in the order of the recipe's fields.
    """

    def __init__(self, errors: Sequence[RecipeError]) -> None:
        super().__init__(f"{len(errors)} settings are not valid", " ".join(str(error) for error in errors))
        self.errors = tuple(errors)

    @property
    def lines(self) -> tuple[str, ...]:
        """Their number, then each on its own line."""
        return (f"{self.problem}:", *(f"  {line}" for error in self.errors for line in error.lines))


def all_of(errors: Sequence[RecipeError]) -> RecipeError:
    """One error with all of these."""
    return errors[0] if len(errors) == 1 else SeveralRecipeError(errors)


class DataError(PrefineError):
    """A file, a column or a record that cannot be used."""


class MissingDataError(DataError):
    """A source that does not exist."""


class TemplateError(PrefineError):
    """A chat template that is missing or cannot be rendered safely."""


class RefusedRowError(TemplateError):
    """A row with content that the chat template does not write; others are fine.

    Args:
        field: place in the record.
        reason: continues the sentence after the field's name.
        remedy: see PrefineError.
    """

    def __init__(self, field: str, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy, field=field)
        self.args = (field, reason, remedy)  # for pickle

    def __str__(self) -> str:
        return f"{self.field} {self.problem}. {self.remedy}"


class ModelError(PrefineError):
    """A model, tokenizer or adapter that cannot be loaded or does not fit."""


class CheckpointError(PrefineError):
    """A run's folder or checkpoint that cannot be written, read or resumed."""


class TrainingError(PrefineError):
    """A run that must not continue: a failed self-check, a non-finite loss."""


class NotFiniteError(TrainingError):
    """Losses, gradients or logits are not finite; no weight was changed since."""


class RewardError(TrainingError):
    """A reward that raises, hangs, or does not return scores; earlier training is saved."""


class EngineError(PrefineError):
    """Another server (vLLM, llama.cpp) that does not start, or that ends by itself."""


class EndpointError(PrefineError):
    """An endpoint of somebody else's that does not answer, or refuses a request.

    Args:
        problem, remedy: see PrefineError.
        ends_all: whether further requests would fail, too: a refused key, an endpoint that is down.
        may_pass: whether the same request may be answered later; False for one that is refused for what it holds.
    """

    def __init__(self, problem: str, remedy: str, *, ends_all: bool = False, may_pass: bool = True) -> None:
        super().__init__(problem, remedy)
        self.ends_all = ends_all
        self.may_pass = may_pass


class MissingDependencyError(PrefineError):
    """An optional package that the recipe needs and that is not installed."""


class Stopped(Exception):  # noqa: N818 - no error
    """A run was asked to stop and can be resumed; the message has its last step. The command line exits with 130."""


class Paused(Stopped):
    """As Stopped, of work that the same command continues, without --resume."""


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text)
