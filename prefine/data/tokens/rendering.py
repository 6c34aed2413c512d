"""Renders chat templates, which are untrusted programs, within a budget of time and size.

transformers' sandbox keeps a template from Python's internals. It does not prevent endless loops or gigabytes of
output. So the environment here counts: loop iterations and calls are checked against CPU time, and each operation that
can create a long text or list is measured before it is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from string import Formatter
from types import GeneratorType
from typing import Any

from jinja2 import Template, TemplateSyntaxError, meta, nodes
from jinja2.compiler import CodeGenerator
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prefine.data.tokens.rendering_budget import Budget, OverBudgetError
from prefine.errors import TemplateError

MAX_TEMPLATE_CHARACTERS = 1 << 20
# Limit of a rendering in characters and list entries: a constant, and a multiple of the conversation's size.
_BASE_SIZE = 1 << 20
_SIZE_PER_CHARACTER = 8
_MAX_INDENT = 100
# No chat template needs these, and their time cannot be bounded from here.
_LEFT_OUT_FILTERS = ("urlize", "wordwrap", "sum")
_TEXT_FILTERS = frozenset(
    ("string", "tojson", "pprint", "format", "escape", "e", "forceescape", "xmlattr", "urlencode", "list", "replace")
)


class Renderer:
    """A tokenizer's chat template, compiled once.

    Raises:
        TemplateError: the template is longer than MAX_TEMPLATE_CHARACTERS.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._templates: dict[str, Template] = {}
        self._environment = _environment()

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, opened: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The text of a conversation, as transformers' apply_chat_template gives it.

        Args:
            messages: turns with role and content, and other keys that the template reads.
            opened: whether the template starts the assistant's next turn.
            tools: definitions of tools for the assistant.

        Raises:
            TemplateError: the template raised, or exceeded its budget.
        """
        self._environment.budget.begin(_BASE_SIZE + _SIZE_PER_CHARACTER * _characters([*messages, *tools]))
        try:
            return self._compiled(tools).render(
                messages=[dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                documents=None,
                add_generation_prompt=opened,
                **self._tokenizer.special_tokens_map,
            )
        except OverBudgetError as error:
            raise TemplateError(
                f"rendering was stopped, as the template {error}",
                "Use a template that writes each turn once, or set model.chat_template to 'plain'.",
                field="model.chat_template",
            ) from None
        except TemplateError:
            raise
        except Exception as error:  # a template is a program and may raise anything
            raise _failed(error) from error

    def variables(self) -> set[str]:
        """Variables that the template reads, including transformers' functions.

        Raises:
            TemplateError: it is not a Jinja template.
        """
        try:
            return meta.find_undeclared_variables(self._environment.parse(self._tokenizer.get_chat_template()))
        except TemplateSyntaxError as error:
            raise _failed(error) from error

    def _compiled(self, tools: Sequence[Mapping[str, Any]]) -> Template:
        # Some tokenizers have another template for conversations with tools.
        source = self._tokenizer.get_chat_template(tools=tools or None)
        if source not in self._templates:
            if len(source) > MAX_TEMPLATE_CHARACTERS:
                raise TemplateError(
                    f"it has {len(source):,} characters, and prefine reads at most {MAX_TEMPLATE_CHARACTERS:,}",
                    "Use a shorter one, or set model.chat_template to 'plain'.",
                    field="model.chat_template",
                )
            self._templates[source] = self._environment.from_string(source)
        return self._templates[source]


def _failed(error: Exception) -> TemplateError:
    said = next(iter(str(error).splitlines()), "no message")
    return TemplateError(
        f"rendering failed ({type(error).__name__}: {said[:500]})",
        "Check that the template accepts these roles (such as a system turn), or set model.chat_template.",
        field="model.chat_template",
    )


def _characters(values: Iterable[Any]) -> int:
    """Characters of all texts in nested lists and objects."""
    waiting, found = list(values), 0
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            found += len(each)
        elif isinstance(each, dict):
            waiting += each
            waiting += each.values()
        elif isinstance(each, list | tuple):
            waiting += each
    return found


def _environment() -> _BoundedEnvironment:
    """transformers' environment (its filters, globals and extensions), within a budget."""
    from transformers.utils import chat_template_utils

    theirs = chat_template_utils._compile_jinja_template("").environment
    extensions = [type(extension) for extension in theirs.extensions.values()]
    environment = _BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.globals.update({name: each for name, each in theirs.globals.items() if name != "lipsum"})
    environment.globals.pop("lipsum", None)
    environment.adopt(theirs.filters)
    return environment


class _CountingCode(CodeGenerator):
    """Compiles a template so that each loop iteration is counted, and `~` is an operator that can be measured."""

    def visit_For(self, node: nodes.For, frame: Any) -> None:  # noqa: N802 - jinja's name
        round_begins = nodes.Call(nodes.EnvironmentAttribute("spend"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(round_begins).set_lineno(node.lineno))
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802 - jinja's name
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    code_generator_class = _CountingCode
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        self.budget = Budget(_BASE_SIZE)
        self.spend = self.budget.spend  # which compiled loops call
        super().__init__(**options, finalize=self.budget.measured)

    def adopt(self, filters: Mapping[str, Callable[..., Any]]) -> None:
        """Add these filters, measured."""
        bounded = {name: self._bounded(name, each) for name, each in filters.items() if name not in _LEFT_OUT_FILTERS}
        self.filters = bounded | {"join": self._bounded("join", self._join)}

    def concat(self, pieces: Iterable[str]) -> str:
        """The output of a template, a macro or a block as one text."""
        written, size = [], 0
        for piece in pieces:
            size += len(piece)
            self.budget.require(size)
            written.append(piece)
        return "".join(written)

    def joined(self, parts: Iterable[Any]) -> str:
        """The operator `~`."""
        return self.concat(str(self.budget.measured(part)) for part in parts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - see jinja
        """Any call in a template."""
        __self.budget.spend()
        for argument in (*args, *kwargs.values()):
            __self.budget.require_number(argument)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            __self.budget.require_method(__obj.__name__, owner, [*args, *kwargs.values()])
        return __self._result(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator with a possibly long result."""
        if operator == "+":  # at most twice the allowed size of a side
            return self._result(left + right)
        if operator == "%" and isinstance(left, str):
            self.budget.require_format(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.budget.require_bits(left.bit_length() * abs(right))
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            self.budget.require_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            counts = [each for each in (left, right) if isinstance(each, int)]
            self.budget.require(sum(_length(each) for each in (left, right)) * max([0, *counts]))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format with bounded widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text: str = value.__self__
        for _, _, spec, _ in Formatter().parse(text):
            if "{" in (spec or ""):
                raise OverBudgetError("takes the width of a text from a variable")
            self.budget.require_widths(spec or "")

        def measured(*args: Any, **kwargs: Any) -> str:
            self.budget.require(len(text) + text.count("{") * self.budget.size([*args, kwargs]))
            return wrapped(*args, **kwargs)

        return measured

    def _bounded(self, name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(filter_)  # which also shows whether it takes the environment or the context
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.spend()
            given = [each for each in (*args, *kwargs.values()) if isinstance(each, str | int | list | tuple | dict)]
            for argument in given:
                self.budget.require_number(argument)
                if name in _TEXT_FILTERS:
                    self.budget.measured(argument)
            if name in ("indent", "tojson"):
                texts = [each for each in given[1:] if isinstance(each, str)] if name == "indent" else []
                if any(isinstance(each, int) and each > _MAX_INDENT for each in given[1:]) or any(
                    len(each) > _MAX_INDENT for each in texts
                ):
                    raise OverBudgetError(f"indents by more than {_MAX_INDENT} characters")
            if name == "format":
                self.budget.require_format(str(given[0]), tuple(given[1:]))
            if name == "replace":
                self.budget.require_method(name, str(given[0]), given[1:])
            return self._result(filter_(*args, **kwargs))

        return bounded

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        """Jinja's filter `join`."""
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        pieces: list[str] = []
        size = 0
        for each in value:
            piece = str(self.budget.measured(each))
            size += len(piece) + len(str(d))
            self.budget.require(size)
            pieces.append(piece)
        return str(d).join(pieces)

    def _result(self, result: Any) -> Any:
        if type(result) is str:  # the usual case, for each piece of each turn
            self.budget.require(len(result))
            return result
        self.budget.require(_length(result))
        return self._each(result) if isinstance(result, GeneratorType) else result

    def _each(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.budget.spend()
            yield value


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0
