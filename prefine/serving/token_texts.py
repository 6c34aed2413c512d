"""Single tokens as text and bytes, for log-probabilities."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from prefine.generation.writer import NewToken
from prefine.serving.parts import in_parts

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# OpenAI's lowest: JSON has no minus infinity.
_LEAST_LOGPROB = -9999.0


class TextPlace:
    """A place in a text that comes in bytes.

    Attributes:
        characters: whole ones before it.
    """

    def __init__(self, characters: int = 0) -> None:
        self.characters = characters
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def pass_over(self, raw: bytes) -> None:
        """Go on by so many bytes."""
        self.characters += len(self._decoder.decode(raw))


class TokenText(NamedTuple):
    """One token: its text, its bytes, and these as numbers, for JSON."""

    text: str
    raw: bytes
    numbers: list[int]


class TextToken(NamedTuple):
    """A token of a text: its id, its log-probability if it has one, and the bytes that it adds to the text."""

    token: int
    new: NewToken | None
    added: bytes


class TokenTexts:
    """What each token stands for.

    Args:
        tokenizer: transformers'.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added: dict[int, str] = {
            number: token.content for number, token in tokenizer.added_tokens_decoder.items()
        }
        # Those that a decoder leaves out of a text.
        self._control = frozenset(
            {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
            | set(tokenizer.all_special_ids)
        )
        self._from_letter = _letters_to_bytes() if _is_byte_level(tokenizer) else None
        self._known: dict[int, TokenText] = {}

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token adds to a text; of a control token its name's."""
        return self._of(token).raw

    def text_of(self, token: int) -> str:
        """A token's text; of one that is a part of a character, its bytes written out: `bytes:\\xe2`."""
        return self._of(token).text

    def _of(self, token: int) -> TokenText:
        found = self._known.get(token)
        if found is None:
            raw = self._bytes(token)
            found = self._known[token] = TokenText(_text(raw), raw, list(raw))
        return found

    def joined(self, tokens: Iterable[int]) -> str:
        """The text of several tokens, control tokens included."""
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = str(self._tokenizer.convert_ids_to_tokens(token) or "")
        letters = self._from_letter
        if letters is not None and all(letter in letters for letter in piece):
            return bytes(letters[letter] for letter in piece)
        if match := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace("▁", " ").encode()

    def chat_logprob(self, new: NewToken) -> dict[str, Any]:
        """A token as chat completions give it."""
        top = [self._entry(token, logprob) for token, logprob in new.top]
        return {**self._entry(new.token, new.logprob), "top_logprobs": top}

    def sent_tokens(
        self, sent: str | Sequence[int], ids: Sequence[int], tokens: Sequence[NewToken | None]
    ) -> list[TextToken]:
        """An echoed prompt's.

        A tokenizer adds to a text what is not in it: control tokens, and the space before a first word that
        SentencePiece's have. Where ids were sent, all of them are the text.

        Args:
            sent: the prompt as it came.
            ids: the prompt's.
            tokens: its log-probabilities; None for one that nothing predicts, the first.
        """
        if not isinstance(sent, str):
            return [TextToken(*each, self.bytes_of(each[0])) for each in zip(ids, tokens, strict=True)]
        raw, at, found = sent.encode(), 0, []
        for token, new in zip(ids, tokens, strict=True):
            added = self.bytes_of(token)
            if not raw.startswith(added, at):
                if token in self._control:
                    added = b""
                elif added.startswith(b" ") and raw.startswith(added[1:], at):
                    added = added[1:]
            at += len(added)
            found.append(TextToken(token, new, added))
        return found

    def said_tokens(self, tokens: Iterable[NewToken], ends: Collection[int]) -> list[TextToken]:
        """An answer's; control tokens and those that end it are not in its text."""
        return [
            TextToken(
                new.token, new, b"" if new.token in self._control or new.token in ends else self.bytes_of(new.token)
            )
            for new in tokens
        ]

    async def text_logprobs(self, tokens: Sequence[TextToken], place: TextPlace) -> dict[str, Any]:
        """Tokens as text completions give them, in four lists of one length.

        Args:
            tokens: of a text, in order.
            place: of the first one in the text; it goes on to the end of the last one.
        """
        texts, logprobs, tops, offsets = [], [], [], []
        async for some in in_parts(tokens):
            for token, new, added in some:
                texts.append(self.text_of(token))
                logprobs.append(None if new is None else _finite(new.logprob))
                tops.append(None if new is None else self._top(new))
                offsets.append(place.characters)
                place.pass_over(added)
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        found = self._of(token)
        return {"token": found.text, "logprob": _finite(logprob), "bytes": found.numbers}

    def _top(self, new: NewToken) -> dict[str, float]:
        """The likeliest tokens and the one that came. Of tokens with one text, the likelier one counts."""
        found: dict[str, float] = {}
        for token, logprob in (*new.top, (new.token, new.logprob)):
            found.setdefault(self.text_of(token), _finite(logprob))
        return found


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and '"ByteLevel"' in json.dumps(json.loads(backend.to_str()).get("decoder"))


def _letters_to_bytes() -> dict[str, int]:
    """The inverse of GPT-2's alphabet: printable bytes stand for themselves, the others for what follows U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
