"""Tokens as text and bytes."""

from __future__ import annotations

import math

from transformers import PreTrainedTokenizerFast

from prefine.generation.writer import NewToken
from prefine.serving.token_texts import TextPlace, TokenTexts
from tests.training.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
TEXTS = TokenTexts(TOKENIZER)


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


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


def test_four_lists_of_one_length_with_offsets_in_characters() -> None:
    tokens = ids("é!a")
    found = TEXTS.text_logprobs(
        [None, *(NewToken(token, -1.0, ((5, -0.5),)) for token in tokens[1:])], tokens, TextPlace(7)
    )
    assert found["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!", "a"]
    assert found["token_logprobs"] == [None, -1.0, -1.0, -1.0]
    assert found["text_offset"] == [7, 7, 8, 9]
    assert found["top_logprobs"][0] is None
    assert found["top_logprobs"][3] == {TEXTS.text_of(5): -0.5, "a": -1.0}


def test_the_likelier_of_two_tokens_with_one_text_counts_and_no_number_is_infinite() -> None:
    letter = ids("a")[0]
    found = TEXTS.text_logprobs([NewToken(letter, -math.inf, ((letter, -0.25),))], [letter], TextPlace())
    assert found["top_logprobs"] == [{"a": -0.25}]
    assert found["token_logprobs"] == [-9999.0]
    assert TEXTS.chat_logprob(NewToken(letter, -1.0, ((letter, -1.0),))) == {
        "token": "a",
        "logprob": -1.0,
        "bytes": [97],
        "top_logprobs": [{"token": "a", "logprob": -1.0, "bytes": [97]}],
    }
