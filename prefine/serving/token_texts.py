"""Single tokens as text and bytes, for log-probabilities."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from typing import Any

from prefine.generation.writer import NewToken

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
        self._from_letter = _letters_to_bytes() if _is_byte_level(tokenizer) else None
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token adds to a text; of a control token its name's."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._bytes(token)
        return found

    def text_of(self, token: int) -> str:
        """A token's text; of one that is a part of a character, its bytes written out: `bytes:\\xe2`."""
        raw = self.bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

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

    def text_logprobs(self, tokens: Iterable[NewToken | None], ids: Iterable[int], place: TextPlace) -> dict[str, Any]:
        """Tokens as text completions give them, in four lists of one length.

        Args:
            tokens: None for one that nothing predicts, the first of a prompt.
            ids: theirs.
            place: of the first one in the text; it goes on to the end of the last one.
        """
        texts, logprobs, tops, offsets = [], [], [], []
        for new, token in zip(tokens, ids, strict=True):
            texts.append(self.text_of(token))
            logprobs.append(None if new is None else _finite(new.logprob))
            tops.append(None if new is None else self._top(new))
            offsets.append(place.characters)
            place.pass_over(self.bytes_of(token))
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.text_of(token), "logprob": _finite(logprob), "bytes": list(self.bytes_of(token))}

    def _top(self, new: NewToken) -> dict[str, float]:
        """The likeliest tokens and the one that came. Of tokens with one text, the likelier one counts."""
        found: dict[str, float] = {}
        for token, logprob in (*new.top, (new.token, new.logprob)):
            found.setdefault(self.text_of(token), _finite(logprob))
        return found


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
