"""Tokens as text and bytes."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from transformers import PreTrainedTokenizerFast

from prefine.generation.writer import NewToken
from prefine.serving.token_texts import TextPlace, TextToken, TokenTexts
from tests.training.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
TEXTS = TokenTexts(TOKENIZER)


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


def four_lists(tokens: list[TextToken], characters: int = 0) -> dict[str, Any]:
    return asyncio.run(TEXTS.text_logprobs(tokens, TextPlace(characters)))


def offsets(texts: TokenTexts, sent: str | list[int], tokens: list[int]) -> list[int]:
    found = texts.sent_tokens(sent, tokens, [None] * len(tokens))
    said: list[int] = asyncio.run(texts.text_logprobs(found, TextPlace()))["text_offset"]
    return said


def test_the_bytes_of_tokens_are_the_bytes_of_their_text() -> None:
    text = "naïve 語 👍\n\t~"
    assert b"".join(map(TEXTS.bytes_of, ids(text))) == text.encode()
    assert TEXTS.joined(ids(text)) == text


def test_a_part_of_a_character_is_written_out_and_a_control_token_by_its_name() -> None:
    assert [TEXTS.text_of(token) for token in ids("é")] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert TEXTS.text_of(TOKENIZER.eos_token_id) == "<|im_end|>"


def test_sentencepiece_tokens() -> None:
    from tokenizers import Tokenizer, decoders, models

    words = {"<unk>": 0, "▁hi": 1, "<0xE2>": 2}
    backend = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert [texts.bytes_of(token) for token in (1, 2)] == [b" hi", b"\xe2"]
    # The first word's space is not in the text; the second one's is.
    assert offsets(texts, "hi hi", [1, 1]) == [0, 2]
    assert offsets(texts, " hi hi", [1, 1]) == [0, 3]


def test_what_the_tokenizer_adds_to_a_text_has_no_length_in_it() -> None:
    begin, end = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    name = "<|im_start|>"
    assert offsets(TEXTS, "aé", [begin, *ids("aé"), end]) == [0, 0, 1, 1, 2]
    assert offsets(TEXTS, name + "a", [begin, *ids("a")]) == [0, len(name)]
    assert offsets(TEXTS, [begin, *ids("a")], [begin, *ids("a")]) == [0, len(name)]


def test_control_tokens_of_an_answer_have_no_length_in_it() -> None:
    letter, end = ids("a")[0], ids("b")[0]
    news = [NewToken(token, -1.0, ()) for token in (letter, TOKENIZER.bos_token_id, letter, end, letter)]
    assert four_lists(TEXTS.said_tokens(news, {end}), 5)["text_offset"] == [5, 6, 6, 7, 7]


def test_four_lists_of_one_length_with_offsets_in_characters() -> None:
    tokens = ids("é!a")
    news = [None, *(NewToken(token, -1.0, ((5, -0.5),)) for token in tokens[1:])]
    found = four_lists(TEXTS.sent_tokens(tokens, tokens, news), 7)
    assert found["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!", "a"]
    assert found["token_logprobs"] == [None, -1.0, -1.0, -1.0]
    assert found["text_offset"] == [7, 7, 8, 9]
    assert found["top_logprobs"][0] is None
    assert found["top_logprobs"][3] == {TEXTS.text_of(5): -0.5, "a": -1.0}


def test_the_likelier_of_two_tokens_with_one_text_counts_and_no_number_is_infinite() -> None:
    letter = ids("a")[0]
    found = four_lists(TEXTS.said_tokens([NewToken(letter, -math.inf, ((letter, -0.25),))], ()))
    assert found["top_logprobs"] == [{"a": -0.25}]
    assert found["token_logprobs"] == [-9999.0]
    assert TEXTS.chat_logprob(NewToken(letter, -1.0, ((letter, -1.0),))) == {
        "token": "a",
        "logprob": -1.0,
        "bytes": [97],
        "top_logprobs": [{"token": "a", "logprob": -1.0, "bytes": [97]}],
    }
