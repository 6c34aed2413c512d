"""A tokenized row as readable text, with the supervised parts marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prefine.data.tokens.template import ChatTemplate
from prefine.data.tokens.trees import TokenTree


@dataclass(frozen=True)
class MarkedText:
    """A piece of a decoded row, and whether its tokens count in the loss."""

    text: str
    supervised: bool


BETWEEN_ANSWERS = MarkedText("\n— or —\n", supervised=False)


def marked_texts(template: ChatTemplate, tree: TokenTree) -> list[MarkedText]:
    """A row decoded in pieces: its prompt, then its answers with BETWEEN_ANSWERS between them."""
    prompt = list(tree.prompt)
    pieces = [MarkedText(template.tokenizer.decode(prompt), supervised=False)]
    for number, (answer, mask) in enumerate(zip(tree.answers, tree.supervised, strict=True)):
        if number:
            pieces.append(BETWEEN_ANSWERS)
        before = prompt
        for counts, ids in _spans(list(answer), [True] * len(answer) if mask is None else list(mask)):
            pieces.append(MarkedText(_decoded_behind(template.tokenizer, before, ids), counts))
            before = before + ids
    return pieces


def marked_example(template: ChatTemplate, tree: TokenTree, open_mark: str = "⟦", close_mark: str = "⟧") -> str:
    """A decoded row with its supervised spans between marks."""
    return "".join(
        f"{open_mark}{piece.text}{close_mark}" if piece.supervised else piece.text
        for piece in marked_texts(template, tree)
    )


def _decoded_behind(tokenizer: Any, before: list[int], ids: list[int]) -> str:
    """The text that `ids` add to that of `before`: decoded alone, some tokenizers drop a leading space."""
    opening, whole = tokenizer.decode(before), tokenizer.decode(before + ids)
    text: str = whole[len(opening) :] if whole.startswith(opening) else tokenizer.decode(ids)
    return text


def _spans(ids: list[int], mask: list[bool]) -> Iterator[tuple[bool, list[int]]]:
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[start]:
            yield mask[start], ids[start:end]
            start = end
