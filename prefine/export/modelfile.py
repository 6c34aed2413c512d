"""An Ollama Modelfile beside a GGUF file: its template in Ollama's language where that can say the same, and its stops.

Ollama renders templates of Go's text/template. The pieces that a chat template writes around its turns are found by
rendering conversations with marks in them; the Ollama template made of them is then rendered here and compared with
the chat template's own text. Where they differ, no TEMPLATE is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Turn = Mapping[str, str]
Render = Callable[[Sequence[Turn]], str]

_SYSTEM, _FIRST, _ANSWER, _SECOND = "MARKsystem0", "MARKfirst1", "MARKanswer2", "MARKsecond3"
_LONGEST_CONTEXT = 8192


@dataclass(frozen=True)
class Pieces:
    """What a chat template writes around the turns of a conversation.

    Attributes:
        opening: before the first user turn, where there is no system turn.
        before_system, after_system: around a system turn; after_system reaches to the first user turn. None where the
            template takes no system turn.
        answering: after a user turn, to where the assistant starts to write.
        between: after an answer, to the next user turn.
    """

    opening: str
    before_system: str | None
    after_system: str | None
    answering: str
    between: str

    def rendered(self, turns: Sequence[Turn]) -> str | None:
        """What Ollama makes of a conversation with the template below; None where it cannot hold one."""
        text, system, first = "", None, True
        for turn in turns:
            if turn["role"] == "system":
                system = turn["content"]
            elif turn["role"] == "assistant":
                text += turn["content"]
            elif not first:
                text += self.between + turn["content"] + self.answering
            elif system is None:
                text, first = self.opening + turn["content"] + self.answering, False
            elif self.before_system is None or self.after_system is None:
                return None
            else:
                begin = self.before_system + system + self.after_system
                text, first = begin + turn["content"] + self.answering, False
        return text

    def template(self) -> str | None:
        """The template in Ollama's language; None where a piece has what its syntax takes for its own."""
        pieces = (self.opening, self.before_system, self.after_system, self.answering, self.between)
        if any(mark in piece for piece in pieces if piece for mark in ("{{", "}}", '"""')):
            return None
        start = f"{{{{ else }}}}{self.opening}{{{{ end }}}}"
        if self.before_system is not None:
            start = f"{{{{ if $.System }}}}{self.before_system}{{{{ $.System }}}}{self.after_system}{start}"
        else:
            start = self.opening
        # Without "{{-": that would take the white space at the end of a piece.
        return (
            "{{ $first := true }}{{ range .Messages }}"
            f'{{{{ if eq .Role "user" }}}}{{{{ if $first }}}}{start}{{{{ $first = false }}}}'
            f"{{{{ else }}}}{self.between}{{{{ end }}}}{{{{ .Content }}}}{self.answering}"
            '{{ else if eq .Role "assistant" }}{{ .Content }}{{ end }}{{ end }}'
        )

    def without(self, beginning: str) -> Pieces:
        """The same without a beginning of the prompt, such as the BOS token where Ollama adds it itself."""
        opening = self.opening.removeprefix(beginning)
        before = None if self.before_system is None else self.before_system.removeprefix(beginning)
        return replace(self, opening=opening, before_system=before)


def pieces_of(render: Render) -> Pieces | None:
    """Find what a chat template writes around turns.

    Args:
        render: a conversation that ends with a user turn -> its text, up to where the assistant starts to write. Raises
            for a conversation that the template does not take.

    Returns: None where it does not write the same around every turn.
    """
    user = {"role": "user", "content": _FIRST}
    answered = [user, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _SECOND}]
    try:
        opening, answering = render([user]).split(_FIRST)
        whole = render(answered)
        start, rest = whole.split(_FIRST)
        middle, rest = rest.split(_ANSWER)
        between, end = rest.split(_SECOND)
    except Exception:  # noqa: BLE001 - a template may raise whatever it likes, or write a turn twice or not at all
        return None
    if (start, middle, end) != (opening, answering, answering):
        return None
    before, after = _around_system(render, answering)
    found = Pieces(opening, before, after, answering, between)
    return found if _equal(found, render) else None


def _around_system(render: Render, answering: str) -> tuple[str | None, str | None]:
    try:
        before, rest = render([{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _FIRST}]).split(
            _SYSTEM
        )
        after, end = rest.split(_FIRST)
    except Exception:  # noqa: BLE001 - no system turn
        return None, None
    return (before, after) if end == answering else (None, None)


def _equal(pieces: Pieces, render: Render) -> bool:
    """Whether the pieces give the template's own text for conversations of one to three rounds."""
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        if system and pieces.before_system is None:
            continue
        turns: list[Turn] = [*system]
        for round_ in range(3):
            turns.append({"role": "user", "content": f"What is {round_} + 1?\nOne number."})
            try:
                if render(turns) != pieces.rendered(turns):
                    return False
            except Exception:  # noqa: BLE001 - of a template
                return False
            turns.append({"role": "assistant", "content": f"It is {round_ + 1}."})
    return True


def modelfile(
    files: Sequence[str],
    pieces: Pieces | None,
    stops: Sequence[str],
    generation: Mapping[str, Any],
    context: int | None,
) -> str:
    """The text of a Modelfile.

    Args:
        files: names of GGUF files beside it; the first is used, the others are named in comments.
        pieces: of the chat template; None where Ollama's own reading of the file's template must do.
        stops: texts at which an answer ends.
        generation: the model's generation settings, as in generation_config.json.
        context: tokens that the model can look at.
    """
    lines = ["# Import it: ollama create NAME -f Modelfile", f"FROM ./{files[0]}"]
    lines += [f"# or: FROM ./{name}" for name in files[1:]]
    template = None if pieces is None else pieces.template()
    if template is None:
        lines.append(
            "# No TEMPLATE: Ollama's language cannot say what the model's own template does. Check what it sends."
        )
    else:
        lines.append(f'TEMPLATE """{template}"""')
    # One that ends Ollama's quotes would write lines of its own: a tokenizer may come from anybody.
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops if '"""' not in stop and not stop.endswith('"')]
    # Ollama's own defaults (temperature 0.8, a repetition penalty) are not what the model was trained with.
    lines.append(f"PARAMETER temperature {generation.get('temperature') or 1.0}")
    lines += [f"PARAMETER {name} {generation[name]}" for name in ("top_p", "top_k") if generation.get(name)]
    lines.append(f"PARAMETER repeat_penalty {generation.get('repetition_penalty') or 1.0}")
    if context is not None:
        lines.append(f"PARAMETER num_ctx {min(context, _LONGEST_CONTEXT)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Ollama takes what is between the quotes as it is."""
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
