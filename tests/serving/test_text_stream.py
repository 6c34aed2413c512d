"""What is streamed is the text: nothing is taken back, nothing is missing, and no half of a character is sent."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefine.serving.text_stream import TextStream
from prefine.serving.token_texts import TokenTexts
from tests.models.tiny import pair_tokenizer
from tests.training.tiny import make_tokenizer

BYTES = make_tokenizer()
PAIRS = pair_tokenizer(2000)  # tokens of two bytes, so that characters and tokens overlap
END = BYTES.eos_token_id
TOKEN_OF_BYTE = {texts.bytes_of(token)[0]: token for texts in [TokenTexts(BYTES)] for token in range(256)}

TEXTS = st.text(st.sampled_from("aab \n.né€語👍🏽👨‍👩‍👧\ufffd"), max_size=24)
STOPS = st.lists(st.text(st.sampled_from("ab \n.é語👍"), min_size=1, max_size=3), max_size=3)


def streamed(ids: list[int], stops: list[str], tokenizer: object = BYTES) -> list[str]:
    stream = TextStream(tokenizer, {END}, stops)
    return [*(stream.push(token) for token in ids), stream.finish()]


def cut(text: str, stops: list[str]) -> str:
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


@given(TEXTS, STOPS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_pieces_are_the_text_up_to_its_first_stop(text: str, stops: list[str], pairs: bool) -> None:
    tokenizer = PAIRS if pairs else BYTES
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = streamed(ids, stops, tokenizer)
    # A stop may be found before another one that begins earlier and ends later has come; the writer ends there, too.
    expected = {cut(text[:length], stops) for length in range(len(text) + 1) if any(s in text[:length] for s in stops)}
    assert "".join(pieces) in (expected or {text})


@given(st.lists(st.integers(0, 255), max_size=40))
@settings(max_examples=150, deadline=None)
def test_bytes_that_are_no_text_become_what_the_whole_becomes(raw: list[int]) -> None:
    ids = [TOKEN_OF_BYTE[byte] for byte in raw]
    assert "".join(streamed(ids, [])) == bytes(raw).decode(errors="replace")


def test_a_character_is_held_back_until_it_is_whole() -> None:
    ids = BYTES("€", add_special_tokens=False)["input_ids"]
    assert streamed([*ids, *ids], []) == ["", "", "€", "", "", "€", ""]


def test_half_a_character_at_the_end_is_sent_at_last() -> None:
    ids = BYTES("a€", add_special_tokens=False)["input_ids"]
    assert streamed(ids[:-1], []) == ["a", "", "", "\ufffd"]


def test_what_may_become_a_stop_text_is_held_back() -> None:
    ids = BYTES("aXaXbc", add_special_tokens=False)["input_ids"]
    assert streamed(ids, ["XXX", "Xb"]) == ["a", "", "Xa", "", "", "", ""]
    assert streamed(BYTES("aX", add_special_tokens=False)["input_ids"], ["XY"]) == ["a", "", "X"]


def test_nothing_comes_after_a_stop_and_the_end_is_no_text() -> None:
    ids = BYTES("ab.cd", add_special_tokens=False)["input_ids"]
    assert "".join(streamed([*ids, END], ["."])) == "ab"
    assert "".join(streamed([*ids, END], [])) == "ab.cd"


@pytest.mark.parametrize("text", ["Hello world", " leading", "two  spaces", "new\nline é"])
def test_sentencepiece_spaces_are_kept(text: str) -> None:
    """Such tokenizers write a space as ▁ and leave out the first one of whatever is decoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {piece: number for number, piece in enumerate(["<unk>", "▁", *map(chr, range(10, 256))])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<unk>")
    ids = tokenizer.encode(text).ids
    assert "".join(streamed(ids, [], made)) == made.decode(ids)
