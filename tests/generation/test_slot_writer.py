"""What is written in slots or in padded batches is what transformers' own generate writes for each sequence alone.

And what sampled sequences are does not depend on slots, order, neighbours, or which way they are written.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoTokenizer

from prefine.data.tokens.trees import TokenTree, collate
from prefine.generation.engine import writer_for
from prefine.generation.padded_writer import PaddedWriter
from prefine.generation.sampling import Draws, NextToken, Sampling, choose
from prefine.generation.slot_writer import SlotWriter
from prefine.generation.writer import Generated, OnToken, Request, Writer
from prefine.models.forward import attention, fused
from prefine.models.forward.packed import PackedModel, standard_attention
from prefine.models.forward.path_probe import choose_path, take_padded_path
from tests.models import tiny

# One token, longer than every window of tiny models, one of them twice.
PROMPTS = [tiny.tree(n).prompt for n in (5, 1, 20, 9, 2, 13, 9)]
STOPS = frozenset(range(2, tiny.VOCABULARY, 9))
END = 257  # <|im_end|> of the byte tokenizer
PATHS = ["llama", "bloom"]  # written in slots, written padded


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One token a byte: ids below 94 are the letters from ! on."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


class Numbers:
    """A tokenizer to look at: every token is its number in brackets."""

    all_special_tokens: tuple[str, ...] = ()

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(f"<{token}>" for token in tokens)


def settled(architecture: str, padded: bool = False, **overrides: Any) -> PackedModel:
    """A random model on the path that prefine takes for it, or on the padded one, in eval mode."""
    model = PackedModel(tiny.make(architecture, **overrides), torch.float32).eval()
    if padded:
        take_padded_path(model)
    else:
        choose_path(model)
    return model


def request(
    prompt: Sequence[int],
    tokens: int = 8,
    stop_ids: frozenset[int] = frozenset(),
    on_token: OnToken | None = None,
    top_logprobs: int = 0,
    **sampling: Any,
) -> Request:
    return Request(prompt, Sampling(tokens, **sampling), stop_ids, on_token, top_logprobs)


def heard_enough(*_: Any) -> None:
    raise RuntimeError("heard enough")


def write(model: PackedModel, requests: Sequence[Request], slots: int = 3, tokenizer: Any = None) -> list[Generated]:
    return writer_for(model, tokenizer or Numbers(), slots).write(requests)


def steps(writer: Writer, limit: int = 200) -> dict[int, Generated]:
    """Step until nothing is left to do; each request comes out once."""
    found: dict[int, Generated] = {}
    for _ in range(limit):
        if not writer.busy:
            return found
        done = writer.step()
        assert not found.keys() & dict(done).keys()
        found |= dict(done)
    raise AssertionError("busy for ever")


def by_transformers(model: PackedModel, wanted: Request) -> tuple[int, ...]:
    """What transformers' generate writes, greedily, alone and without padding."""
    with torch.no_grad(), standard_attention(model) as generator:
        out = generator.generate(
            input_ids=torch.tensor([wanted.prompt]),
            attention_mask=torch.ones(1, len(wanted.prompt), dtype=torch.int64),
            max_new_tokens=wanted.sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(wanted.stop_ids) or None,
            pad_token_id=0,
        )
    return tuple(out[0, len(wanted.prompt) :].tolist())


def assert_training_logprobs(
    model: PackedModel, requests: Sequence[Request], found: Sequence[Generated], tolerance: float = 1e-4
) -> None:
    """Log-probabilities are those of the training forward."""
    trees = [TokenTree(r.prompt, (g.tokens,), (None,)) for r, g in zip(requests, found, strict=True)]
    with torch.no_grad():
        right = model(collate(trees))
    ours = torch.tensor([logprob for g in found for logprob in g.logprobs])
    assert ours.isfinite().all()
    assert (ours - right).abs().max() <= tolerance


def assert_same(ours: Generated, theirs: Generated) -> None:
    """The same sequence; log-probabilities to rounding."""
    assert (ours.tokens, ours.text, ours.finish, ours.ended) == (
        theirs.tokens,
        theirs.text,
        theirs.finish,
        theirs.ended,
    )
    assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.UNPACKABLE])
def test_greedy_is_transformers_generate(architecture: str) -> None:
    model = settled(architecture)
    assert model.path.packed == (architecture in tiny.ARCHITECTURES)
    assert_greedy_is_transformers(model)


def assert_greedy_is_transformers(model: PackedModel) -> None:
    """More prompts than slots, of very different lengths, that end at different times; log-probabilities too."""
    requests = [request(prompt, 9 + n, STOPS, temperature=0) for n, prompt in enumerate(PROMPTS)]
    found = write(model, requests)
    assert [each.tokens for each in found] == [by_transformers(model, each) for each in requests]
    assert_training_logprobs(model, requests, found)
    for wanted, each in zip(requests, found, strict=True):
        assert each.ended == (each.tokens[-1] in STOPS) == (each.finish == "stop")
        assert each.ended or len(each.tokens) == wanted.sampling.max_new_tokens
    assert len({len(each.tokens) for each in found}) > 2


def test_a_layer_may_attend_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """DiffLlama does, with other values each time; the probe lets it be packed, and packed rows of it are right."""
    monkeypatch.setitem(tiny.ARCHITECTURES, "diffllama", {})
    model = settled("diffllama")
    assert model.path.packed and not model.path.decodes
    assert_greedy_is_transformers(model)


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "bloom"])
def test_prompts_that_begin_alike(architecture: str) -> None:
    """One is the whole beginning of others, one of them twice; with windows shorter than the beginning."""
    model = settled(architecture)
    long = PROMPTS[2]
    prompts = [[*long[:12], 7], long, long[:12], [*long[:11], 9, 9, 9], long, [*long[:3], 8]]
    requests = [request(prompt, 6, temperature=0) for prompt in prompts]
    for slots in (6, 4, 3):
        found = write(model, requests, slots)
        assert [each.tokens for each in found] == [by_transformers(model, each) for each in requests]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_flash_path_writes_the_same(architecture: str, fake_flash: None) -> None:
    """Prompts go through the kernel of the device."""
    model = settled(architecture)
    requests = [request(prompt, temperature=0) for prompt in PROMPTS]
    assert [each.tokens for each in write(model, requests)] == [by_transformers(model, each) for each in requests]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite", "cohere2", "phi", "gpt2", "bloom", "gpt_oss"])
def test_logprobs_are_the_models_own(architecture: str) -> None:
    """Before temperature, penalties and filters."""
    model = settled(architecture)
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.7},
        {"top_k": 5, "top_p": 0.8},
        {"min_p": 0.2, "temperature": 2.0},
        {"repetition_penalty": 1.7},
        {"temperature": 0, "repetition_penalty": 1.7},
        {"temperature": 0, "presence_penalty": 1.7, "logit_bias": ((5, 3.0),)},
    ]
    for same in ([kind] * 3 for kind in kinds):
        requests = [request(p, 6, seed=n, **kind) for n, (p, kind) in enumerate(zip(PROMPTS, same, strict=False))]
        assert_training_logprobs(model, requests, write(model, requests))
    mixed = [request(p, 6, seed=n, **kind) for n, (p, kind) in enumerate(zip(PROMPTS, kinds, strict=False))]
    assert_training_logprobs(model, mixed, write(model, mixed))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite", "bloom"])
def test_sampled_tokens_are_chosen_from_transformers_logits(architecture: str) -> None:
    """Each with its own random number, and all tokens before it, the prompt's too, for the penalty."""
    model = settled(architecture)
    kinds: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.6},
        {"temperature": 0.6, "top_p": 0.8},
        {"top_k": 6},
        {"presence_penalty": 1.0, "frequency_penalty": 0.7, "temperature": 0.3},
        {"logit_bias": ((7, 100.0), (8, 99.0)), "frequency_penalty": 1.0},
    ]
    requests = [request(p, 8, seed=n, **kinds[n % len(kinds)]) for n, p in enumerate(PROMPTS)]
    for wanted, found in zip(requests, write(model, requests), strict=True):
        tokens = [*wanted.prompt, *found.tokens]
        with torch.no_grad(), standard_attention(model, "eager"):
            logits = model.causal(input_ids=torch.tensor([tokens])).logits[0, len(wanted.prompt) - 1 : -1]
        draws = Draws(wanted.sampling.seed, 8)
        rows = [
            NextToken(wanted.sampling, draws[n], tokens[: len(wanted.prompt) + n], found.tokens[:n]) for n in range(8)
        ]
        assert tuple(choose(logits, rows)[0].tolist()) == found.tokens


SETTINGS = st.builds(
    Sampling,
    max_new_tokens=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.0, 1.6]),
    top_k=st.sampled_from([0, 0, 4]),
    top_p=st.sampled_from([1.0, 1.0, 0.6]),
    min_p=st.sampled_from([0.0, 0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.4]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.6]),
    seed=st.integers(0, 5),
    stop=st.sampled_from([(), (), ("7>",)]),
)
REQUESTS = st.builds(Request, st.sampled_from(PROMPTS), SETTINGS, st.sampled_from([frozenset[int](), STOPS]), st.none())
kept = functools.cache(settled)


@functools.cache
def alone(architecture: str, prompt: int, sampling: Sampling, stop_ids: frozenset[int]) -> Generated:
    """The sequence by itself, written by a writer of its own."""
    (found,) = write(kept(architecture), [Request(PROMPTS[prompt], sampling, stop_ids)], 1)
    return found


def assert_alone(architecture: str, wanted: Request, found: Generated) -> None:
    assert_same(found, alone(architecture, PROMPTS.index(wanted.prompt), wanted.sampling, wanted.stop_ids))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "bloom"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(REQUESTS, st.sampled_from([0, 0, 0, 1, 3])), min_size=1, max_size=7), st.integers(1, 5))
def test_a_sequence_does_not_depend_on_the_others(
    architecture: str, cases: list[tuple[Request, int]], slots: int
) -> None:
    """Random mixes of settings, some asked for while others are being written, in few and in many slots."""
    writer = writer_for(kept(architecture), Numbers(), slots)
    found: dict[int, Generated] = {}
    for number, (wanted, before) in enumerate(cases):
        for _ in range(before):
            found |= dict(writer.step())
        assert writer.add(wanted) == number
    found |= steps(writer)
    assert sorted(found) == list(range(len(cases)))
    for number, (wanted, _) in enumerate(cases):
        assert_alone(architecture, wanted, found[number])


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi3", "granite"])
def test_both_ways_of_writing_write_the_same(architecture: str) -> None:
    """The same settings and random numbers in slots and in padded batches."""
    requests = [request(p, 5 + n, STOPS, seed=n, temperature=0.5 + n / 4) for n, p in enumerate(PROMPTS)]
    requests += [request(p, 7, seed=9, top_p=0.7, repetition_penalty=1.2) for p in PROMPTS[:3]]
    models = settled(architecture), settled(architecture, padded=True)
    assert [type(writer_for(model, None, 1)) for model in models] == [SlotWriter, PaddedWriter]
    for ours, theirs in zip(*(write(model, requests, 4) for model in models), strict=True):
        assert_same(ours, theirs)


def test_many_prompts_are_computed_in_rows_that_fit_memory() -> None:
    """More slots than any row's rounding, more prompt tokens than one row may have."""
    model = kept("llama")
    requests = [request(tiny.tree(100 + n).prompt, 3, seed=n) for n in range(44)]
    with counted(model) as rows:
        found = write(model, requests, 48)
    assert sum(rows) > 4096 >= max(rows)
    for wanted, each in zip(requests[::9], found[::9], strict=True):
        assert_same(each, write(model, [wanted], 1)[0])


@contextmanager
def counted(model: PackedModel) -> Iterator[list[int]]:
    """How many tokens each row had that went through the model."""
    rows: list[int] = []
    inner = model.hidden

    def hidden(input_ids: Tensor, *rest: Any) -> Tensor:
        rows.append(input_ids.numel())
        return inner(input_ids, *rest)

    model.hidden = hidden  # type: ignore[method-assign]
    try:
        yield rows
    finally:
        del model.hidden


def test_copies_of_a_prompt_are_computed_once() -> None:
    """And are what they would be apart, each with its seed."""
    model = kept("llama")
    requests = [request(PROMPTS[place], 4, seed=seed) for seed, place in enumerate((2, 5, 2, 2, 5))]
    with counted(model) as rows:
        found = write(model, requests, 5)
    assert [row for row in rows if row >= 13] == [20 + 13]
    assert len({each.tokens for each in found}) == 5
    for wanted, each in zip(requests, found, strict=True):
        assert_alone("llama", wanted, each)


@pytest.mark.parametrize("architecture", PATHS)
def test_the_seed_decides(architecture: str) -> None:
    """The same again, others others; a longer answer begins as a shorter one."""
    requests = [request(PROMPTS[0], 10, seed=seed) for seed in (0, 1, 2, 3, 0)]
    first, *others, again = write(kept(architecture), requests)
    assert_same(again, first)
    assert len({each.tokens for each in (first, *others)}) == 4
    assert write(kept(architecture), [request(PROMPTS[0], 30, seed=0)])[0].tokens[:10] == first.tokens


def reciting(text: list[int], padded: bool = False, then: int = END) -> PackedModel:
    """A model that writes this text behind its first token, then goes on; no token in it has two successors."""
    model = tiny.make("llama", vocab_size=258)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight.zero_()
        table /= table.norm(dim=1, keepdim=True)
        following = dict(zip(text, [*text[1:], then], strict=True)) | {END: END}
        for token, successor in following.items():
            head[successor] += 9 * table[token]
    packed = PackedModel(model, torch.float32).eval()
    if padded:
        take_padded_path(packed)
    else:
        assert choose_path(packed) is None
    return packed


def recite(tokenizer: Any, text: str, *, padded: bool = False, **changes: Any) -> Generated:
    """The text from its second token on."""
    tokens = tokenizer.encode(text)
    wanted = request(tokens[:1], **{"tokens": 40, "stop_ids": frozenset({END}), "temperature": 0} | changes)
    (found,) = write(reciting(tokens, padded), [wanted], tokenizer=tokenizer)
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [
        (("fg", "de"), "bc", "bcde"),  # the one that comes first, over two tokens
        (("e", "cde"), "b", "bcde"),  # both with one token: cut at the first in the text
        (("b",), "", "b"),
        (("ab",), "bcdefghé-", "bcdefghé-"),  # the prompt does not count
        (("é",), "bcdefgh", "bcdefghé"),  # a letter of two tokens
        (("-",), "bcdefghé", "bcdefghé-"),  # the last before the end of turn
    ],
)
def test_stop_texts(stop: tuple[str, ...], text: str, tokens: str, padded: bool, tokenizer: Any) -> None:
    """The text ends before the first, the tokens with the one that completed it."""
    found = recite(tokenizer, "abcdefghé-", stop=stop, padded=padded)
    ended = stop == ("ab",)
    assert (found.text, found.finish, found.ended) == (text, "stop", ended)
    assert list(found.tokens) == tokenizer.encode(tokens) + [END] * ended
    assert len(found.logprobs) == len(found.tokens)


def test_a_stop_text_within_a_token() -> None:
    """Tokens may hold more than it."""
    whole = write(kept("llama"), [request(PROMPTS[0])])[0]
    third = whole.tokens[2]
    assert third not in whole.tokens[:2]
    cut = write(kept("llama"), [request(PROMPTS[0], stop=(f"{third}>",))])[0]
    assert cut.tokens == whole.tokens[:3]
    assert cut.text == whole.text[: whole.text.index(f"{third}>")]


def test_a_stop_text_of_many_tokens_a_letter(tokenizer: Any) -> None:
    """Sixteen tokens for four letters."""
    party = tokenizer.encode("🎉")
    model = reciting(party, then=party[0])
    (found,) = write(model, [request(party[:1], 40, temperature=0, stop=("🎉🎉🎉🎉",))], 1, tokenizer)
    assert (found.text, found.finish, len(found.tokens)) == ("\ufffd" * 3, "stop", 3 + 16)


@pytest.mark.parametrize("padded", [False, True])
def test_the_end_of_turn_and_the_length(padded: bool, tokenizer: Any) -> None:
    """The end's token is part of the tokens and not of the text; the last token may be the end; so may the first."""
    long, exact, short = (recite(tokenizer, "abcd", tokens=tokens, padded=padded) for tokens in (40, 4, 3))
    assert long == exact
    assert (long.text, long.finish, long.ended) == ("bcd", "stop", True)
    assert list(long.tokens) == [*tokenizer.encode("bcd"), END]
    assert (short.text, short.finish, short.ended) == ("bcd", "length", False)
    at_once = recite(tokenizer, "a", padded=padded)
    assert (at_once.text, at_once.tokens, at_once.finish, at_once.ended) == ("", (END,), "stop", True)
    letter = recite(tokenizer, "abcd", stop_ids=frozenset(tokenizer.encode("c")), padded=padded)  # not a control token
    assert (letter.text, list(letter.tokens), letter.ended) == ("b", tokenizer.encode("bc"), True)
    other = recite(tokenizer, "abcd", tokens=6, stop_ids=frozenset({END - 1}), padded=padded)
    assert (other.text, other.tokens[3:], other.finish, other.ended) == ("bcd", (END,) * 3, "length", False)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "bloom"])
def test_adapters(architecture: str, fast: bool) -> None:
    """Also after their weights have changed in place, and while they are off; with the faster forwards too."""
    model = settled(architecture)
    requests = [request(prompt, 7, STOPS, temperature=0) for prompt in PROMPTS]
    base = write(model, requests)
    model.model = tiny.with_lora(model.model).eval()
    if fast:
        fused.install(model.model)
    writer = writer_for(model, Numbers(), 3)
    seen = [base]
    for _ in range(2):
        found = writer.write(requests)
        assert [each.tokens for each in found] == [by_transformers(model, each) for each in requests]
        assert_training_logprobs(model, requests, found)
        assert [each.tokens for each in found] not in [[each.tokens for each in before] for before in seen]
        seen.append(found)
        with torch.no_grad():
            for name, weight in model.model.named_parameters():
                if "lora_B" in name:
                    weight.mul_(-1.5)
    with model.model.disable_adapter():
        for ours, theirs in zip(writer.write(requests), base, strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bloom"])
def test_adapters_in_bf16(architecture: str, fast: bool) -> None:
    """Their fp32 weights are rounded anew in every write, also after an error in one."""
    model = PackedModel(tiny.make(architecture).bfloat16(), torch.bfloat16).eval()
    choose_path(model)
    model.model = tiny.with_lora(model.model).eval()
    if fast:
        fused.install(model.model)
    writer = writer_for(model, Numbers(), 3)
    requests = [request(prompt, 8, seed=n) for n, prompt in enumerate(PROMPTS)]
    for _ in range(3):
        assert_training_logprobs(model, requests, writer.write(requests), tolerance=0.15)
        with pytest.raises(RuntimeError, match="heard enough"):
            write(model, [request(PROMPTS[0], on_token=heard_enough)])
        with torch.no_grad():
            for name, weight in model.model.named_parameters():
                if "lora_B" in name:
                    weight.mul_(-1)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "bloom"])
def test_in_bf16(architecture: str, mixed: bool) -> None:
    """Weights in fp32 with products in bf16, and all in bf16: near what the training forward says."""
    causal = tiny.make(architecture)
    model = PackedModel(causal if mixed else causal.bfloat16(), torch.bfloat16).eval()
    choose_path(model)
    assert model.path.packed == (architecture != "bloom")
    requests = [request(prompt, 10, STOPS, seed=n, temperature=0.8) for n, prompt in enumerate(PROMPTS)]
    types: set[torch.dtype] = set()
    model.causal.get_output_embeddings().register_forward_hook(lambda *told: types.add(told[-1].dtype))
    found = write(model, requests)
    assert types == {torch.bfloat16}
    assert_training_logprobs(model, requests, found, tolerance=0.15)
    if model.path.packed:
        assert model.causal.config._attn_implementation == attention.NAME


@pytest.mark.parametrize(
    "own", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 1}, {"forced_eos_token_id": 3}, {"num_beams": 2}]
)
def test_a_models_own_generation_config_changes_nothing(own: dict[str, Any]) -> None:
    """Many models ship with a repetition penalty; in slots nobody asks for it."""
    model = settled("bloom")
    for name, value in own.items():
        setattr(model.causal.generation_config, name, value)
    requests = [request(prompt, 9, seed=n) for n, prompt in enumerate(PROMPTS)]
    for wanted, found in zip(requests, write(model, requests), strict=True):
        assert_alone("bloom", wanted, found)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("llama", {"rope_type": "dynamic", "factor": 4.0}),
        ("phi3", {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}),
    ],
)
def test_positions_that_depend_on_the_length(architecture: str, kind: dict[str, Any]) -> None:
    """A short sequence beside one that is longer than the model was made for."""
    lengths = {"original_max_position_embeddings": 16} if architecture == "phi3" else {"max_position_embeddings": 16}
    rope = {"rope_theta": 10_000.0} | kind | (lengths if architecture == "phi3" else {})
    model = settled(architecture, rope_parameters=rope, **lengths)
    short, long = request(PROMPTS[0], temperature=0), request(PROMPTS[2], temperature=0)
    assert_same(write(model, [short, long])[0], write(model, [short])[0])


def test_room_of_sequences_that_have_ended_can_be_given_back() -> None:
    model = settled("llama", max_position_embeddings=512)
    requests = [request(list(range(2, 90)) * 3, 2), *(request(prompt, 40) for prompt in PROMPTS[:3])]
    expected = SlotWriter(model, Numbers(), 8).write(requests)
    writer = SlotWriter(model, Numbers(), 8)
    assert writer.room(100, 3) == 4 * 128  # rounded up: slots, and an eighth to grow by in steps of 32
    done: dict[int, Generated] = {}
    for each in requests:
        writer.add(each)
    while not done:
        done |= dict(writer.step())
    before = writer.bytes
    writer.trim()
    assert writer.bytes <= before // 4
    assert writer.room(28, 3) == 4 * 32
    while writer.busy:
        done |= dict(writer.step())
        writer.trim()
    assert [done[n].tokens for n in range(4)] == [each.tokens for each in expected]
