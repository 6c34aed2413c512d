"""Requests that are queued, told of, cancelled or broken: a writer loses none, and is as good as new after each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefine.errors import NotFiniteError
from prefine.generation.engine import writer_for
from prefine.generation.sampling import Sampling
from prefine.generation.slot_writer import SlotWriter
from prefine.generation.writer import Generated, NewToken, Request
from prefine.models.forward.packed import standard_attention
from tests.generation.test_slot_writer import (
    PATHS,
    PROMPTS,
    REQUESTS,
    STOPS,
    Numbers,
    alone,
    assert_alone,
    assert_same,
    assert_training_logprobs,
    heard_enough,
    kept,
    request,
    settled,
    steps,
    write,
)
from tests.models import tiny


@pytest.mark.parametrize("architecture", PATHS)
def test_tokens_are_told_at_once_and_in_order(architecture: str) -> None:
    """Each request's own, all of them once, with their log-probabilities."""
    heard: list[list[NewToken]] = [[] for _ in PROMPTS]
    requests = [
        request(prompt, 4 + n, STOPS, lambda new, n=n: heard[n].append(new), top_logprobs=n % 3, seed=n)
        for n, prompt in enumerate(PROMPTS)
    ]
    writer = writer_for(kept(architecture), Numbers(), 3)
    for each in requests:
        writer.add(each)
    writer.step()
    assert all(heard[:3])
    assert not any(heard[3:])
    found = steps(writer)
    for number, told in enumerate(heard):
        if number in found:  # the first step may have ended some
            assert [(new.token, new.logprob) for new in told] == list(
                zip(found[number].tokens, found[number].logprobs, strict=True)
            )
            assert found[number].top_logprobs == (tuple(new.top for new in told) if number % 3 else ())
            assert all(len(new.top) == number % 3 for new in told)
        assert tuple(new.token for new in told) == write(kept(architecture), [requests[number]])[0].tokens


@pytest.mark.parametrize("architecture", PATHS)
def test_progress_and_nothing_to_do(architecture: str) -> None:
    """Progress goes up to all; no requests give no results; an empty prompt is refused."""
    told: list[int] = []
    writer = writer_for(kept(architecture), Numbers(), 2)
    assert len(writer.write([request(prompt) for prompt in PROMPTS], told.append)) == len(PROMPTS)
    assert told == sorted(told)
    assert told[-1] == len(PROMPTS)
    assert not writer.busy
    assert writer.step() == writer.write([]) == []
    with pytest.raises(ValueError, match="at least one token"):
        writer.add(request([]))
    assert not writer.busy


@pytest.mark.parametrize("architecture", PATHS)
def test_cancelled_while_queued(architecture: str) -> None:
    """It comes out of the next step with nothing in it; the others are what they are."""
    writer = writer_for(kept(architecture), Numbers(), 1)
    requests = [request(prompt, 4) for prompt in PROMPTS[:3]]
    numbers = [writer.add(each) for each in requests]
    writer.cancel(numbers[1])
    assert writer.busy
    first = dict(writer.step())
    assert first[1] == Generated((), (), "", "cancelled", False)
    found = first | steps(writer)
    assert_alone(architecture, requests[0], found[0])
    assert_alone(architecture, requests[2], found[2])


@pytest.mark.parametrize("architecture", PATHS)
@pytest.mark.parametrize("after", [1, 3])
def test_cancelled_by_its_own_token(architecture: str, after: int) -> None:
    """As who reads a stream does; it ends there."""
    writer = writer_for(kept(architecture), Numbers(), 2)
    heard: list[int] = []

    def listen(new: NewToken) -> None:
        heard.append(new.token)
        if len(heard) == after:
            writer.cancel(0)

    writer.add(request(PROMPTS[0], on_token=listen))
    writer.add(request(PROMPTS[2]))
    found = steps(writer)
    assert (found[0].finish, found[0].tokens) == ("cancelled", tuple(heard))
    assert len(heard) == after
    assert_alone(architecture, request(PROMPTS[2]), found[1])


def test_cancelled_while_being_written() -> None:
    """It comes out of the next step as far as it was written."""
    writer = writer_for(kept("llama"), Numbers(), 2)
    for prompt in PROMPTS[:3]:
        writer.add(request(prompt))
    before = writer.step()
    writer.cancel(0)
    found = dict(before) | steps(writer)
    assert found[0].finish == "cancelled"
    assert found[0].tokens == write(kept("llama"), [request(PROMPTS[0])])[0].tokens[: len(found[0].tokens)]
    assert sorted(found) == [0, 1, 2]


@pytest.mark.parametrize(
    "architecture",
    ["llama", "bloom"],
)
def test_cancelled_by_another_ones_token(architecture: str) -> None:
    """While it is still queued; it comes out all the same."""
    writer = writer_for(kept(architecture), Numbers(), 1)
    heard: list[int] = []

    def listen(new: NewToken) -> None:
        heard.append(new.token)
        if len(heard) == 3:
            writer.cancel(1)

    writer.add(request(PROMPTS[0], on_token=listen))
    writer.add(request(PROMPTS[2]))
    found = steps(writer)
    assert found[1] == Generated((), (), "", "cancelled", False)
    assert_alone(architecture, request(PROMPTS[0]), found[0])


@pytest.mark.parametrize("architecture", PATHS)
def test_cancelled_too_late(architecture: str) -> None:
    """What has come out does not come again, and a number that was never given is nobody's."""
    writer = writer_for(kept(architecture), Numbers(), 2)
    (first,) = writer.write([request(PROMPTS[0])])
    writer.cancel(0)
    writer.cancel(12)
    assert not writer.busy
    assert writer.step() == []
    assert_alone(architecture, request(PROMPTS[0]), first)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bloom"])
def test_likeliest_tokens_are_those_of_transformers(architecture: str) -> None:
    """At every place, whatever is drawn, some requests with and some without."""
    model = kept(architecture)
    requests = [request(prompt, 5, seed=n, top_logprobs=n % 4, temperature=1.5) for n, prompt in enumerate(PROMPTS)]
    for number, (wanted, found) in enumerate(zip(requests, write(model, requests, 4), strict=True)):
        assert_same(found, write(model, [request(wanted.prompt, 5, seed=number, temperature=1.5)])[0])
        if not number % 4:
            assert found.top_logprobs == ()
            continue
        with torch.no_grad(), standard_attention(model, "eager"):
            logits = model.causal(input_ids=torch.tensor([[*wanted.prompt, *found.tokens]])).logits[0]
        right = torch.log_softmax(logits[len(wanted.prompt) - 1 : -1], -1).topk(number % 4)
        ours = torch.tensor(found.top_logprobs, dtype=torch.float64)
        assert torch.equal(ours[..., 0].long(), right.indices)
        assert torch.allclose(ours[..., 1].float(), right.values, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite", "qwen2", "bloom", "gpt_oss"])
@pytest.mark.parametrize("prefill_tokens", [None, 7])
def test_prompt_logprobs_are_those_of_transformers(architecture: str, prefill_tokens: int | None) -> None:
    """Of all tokens but the first, which nothing predicts; alone or with an answer, whole, shared or in parts."""
    model = kept(architecture)
    prompts = [*PROMPTS, PROMPTS[0], [*PROMPTS[2][:12], 7]]
    requests = [
        Request(prompt, Sampling(n % 3, seed=n), frozenset(), top_logprobs=n % 4, prompt_logprobs=True)
        for n, prompt in enumerate(prompts)
    ]
    requests += [request(prompt, 4, seed=9) for prompt in PROMPTS[:3]]
    found = writer_for(model, Numbers(), 5, prefill_tokens=prefill_tokens).write(requests)
    for number, (prompt, each) in enumerate(zip(prompts, found, strict=False)):
        with torch.no_grad(), standard_attention(model, "eager"):
            logprobs = torch.log_softmax(model.causal(input_ids=torch.tensor([prompt])).logits[0], -1)[:-1]
        first, *others = each.prompt_logprobs
        assert first is None
        assert [new.token for new in others if new] == list(prompt[1:])
        right = logprobs.gather(1, torch.tensor(prompt[1:], dtype=torch.int64)[:, None])[:, 0]
        assert [new.logprob for new in others if new] == pytest.approx(right.tolist(), abs=1e-4)
        for new, place in zip(others, logprobs, strict=True):
            likeliest = place.topk(number % 4)
            assert new is not None
            assert [token for token, _ in new.top] == likeliest.indices.tolist()
            assert [logprob for _, logprob in new.top] == pytest.approx(likeliest.values.tolist(), abs=1e-4)
        wanted = number % 3
        if not wanted:
            assert (each.tokens, each.text, each.finish) == ((), "", "length")
        else:
            assert_same(each, write(model, [request(prompt, wanted, seed=number)], 1)[0])
    for wanted_request, each in zip(requests[len(prompts) :], found[len(prompts) :], strict=True):
        assert each.prompt_logprobs == ()
        assert_alone(architecture, wanted_request, each)


class Cycle:
    """Allows one token after the other, again and again."""

    def __init__(self, *tokens: int) -> None:
        self._tokens = tokens
        self.accepted: list[int] = []

    def mask(self) -> Tensor:
        return torch.arange(tiny.VOCABULARY) == self._tokens[len(self.accepted) % len(self._tokens)]

    def accept(self, token: int) -> None:
        self.accepted.append(token)


@pytest.mark.parametrize("architecture", PATHS)
def test_a_constraint_decides_which_tokens_come(architecture: str) -> None:
    """Of its own sequence only, whose log-probabilities stay the model's; the end's token is accepted, too."""
    cycles = [Cycle(9, 4, 7), Cycle(5)]
    free = [request(prompt, 6, seed=3) for prompt in PROMPTS[2:4]]
    bound = [
        replace(request(PROMPTS[0], 5, temperature=0), constraint=cycles[0]),
        replace(request(PROMPTS[1], 5, frozenset({5})), constraint=cycles[1]),
    ]
    found = write(kept(architecture), [*bound, *free], 3)
    assert [each.tokens for each in found[:2]] == [(9, 4, 7, 9, 4), (5,)]
    assert [tuple(cycle.accepted) for cycle in cycles] == [(9, 4, 7, 9, 4), (5,)]
    assert [(each.finish, each.ended) for each in found[:2]] == [("length", False), ("stop", True)]
    assert_training_logprobs(kept(architecture), bound, found[:2])
    for wanted, each in zip(free, found[2:], strict=True):
        assert_alone(architecture, wanted, each)


def test_requests_that_cannot_be_are_refused() -> None:
    """With the field and the value; a bias for a token that the model has not, when the request is added."""
    with pytest.raises(ValueError, match="max_new_tokens is 0; it must be at least 1 without prompt_logprobs"):
        request(PROMPTS[0], 0)
    with pytest.raises(ValueError, match="top_logprobs is -1"):
        request(PROMPTS[0], top_logprobs=-1)
    with pytest.raises(ValueError, match="logit_bias has token 96; it must be below 96"):
        writer_for(kept("llama"), Numbers(), 1).add(request(PROMPTS[0], logit_bias=((3, 1.0), (tiny.VOCABULARY, 1.0))))


ACTIONS = st.lists(st.one_of(REQUESTS, st.just("step"), st.just("step"), st.integers(0, 3)), min_size=8, max_size=16)


@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking takes minutes
@given(ACTIONS, st.integers(1, 3))
def test_every_request_comes_out_once(actions: list[Request | str | int], slots: int) -> None:
    """Whatever is asked for, stepped and cancelled when; a cancelled one is the beginning of what it would be."""
    writer = writer_for(kept("llama"), Numbers(), slots)
    requests: list[Request] = []
    cancelled: set[int] = set()
    found: dict[int, Generated] = {}
    for action in actions:
        if isinstance(action, Request):
            requests.append(action)
            writer.add(action)
        elif isinstance(action, int):
            cancelled |= {action} & (set(range(len(requests))) - found.keys())
            writer.cancel(action)
        else:
            found |= dict(writer.step())
    found |= steps(writer)
    assert sorted(found) == list(range(len(requests)))
    for number, wanted in enumerate(requests):
        whole = alone("llama", PROMPTS.index(wanted.prompt), wanted.sampling, wanted.stop_ids)
        if number in cancelled:
            assert found[number].finish == "cancelled"
            assert found[number].tokens == whole.tokens[: len(found[number].tokens)]
        else:
            assert_same(found[number], whole)


@pytest.mark.parametrize("architecture", PATHS)
def test_a_busy_writer_takes_no_others(architecture: str) -> None:
    """Results of requests that nobody waits for here would be lost."""
    writer = writer_for(kept(architecture), Numbers(), 1)
    wanted = request(PROMPTS[0], 2)
    number = writer.add(wanted)
    with pytest.raises(ValueError, match="busy"):
        writer.write([request(PROMPTS[1], 5)])
    found: dict[int, Generated] = {}
    while writer.busy:
        found |= dict(writer.step())
    assert_alone(architecture, wanted, found[number])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("architecture", PATHS)
def test_mode_and_random_state_are_left_alone(architecture: str, training: bool) -> None:
    """Dropout is off while writing, also after an error of who listens."""
    model = settled(architecture)
    model.model = tiny.with_lora(model.model, lora_dropout=0.5)
    right = write(model, [request(PROMPTS[0], seed=3)])
    model.train(training)
    before = torch.get_rng_state()
    modes: set[bool] = set()
    again = write(model, [request(PROMPTS[0], seed=3, on_token=lambda *_: modes.add(model.model.training))])
    assert_same(again[0], right[0])
    assert modes == {False}
    assert model.training is model.model.training is training
    with pytest.raises(RuntimeError, match="heard enough"):
        write(model, [request(PROMPTS[0], on_token=heard_enough)])
    assert model.training is model.model.training is training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_in_eval_mode_within_one_in_training_mode() -> None:
    """As a PackedModel is when it is made around a model in eval mode."""
    model = settled("llama")
    model.training = True
    write(model, [request(PROMPTS[0])])
    assert model.training
    assert not model.model.training


@pytest.mark.parametrize(
    "architecture",
    ["llama", "bloom"],
)
@pytest.mark.parametrize("at", [1, 3, 8])
def test_a_writer_is_as_good_as_new_after_an_error(architecture: str, at: int) -> None:
    """Of who listens: at the first token, in the middle, at the last."""
    writer = writer_for(kept(architecture), Numbers(), 3)
    heard: list[int] = []

    def listen(new: NewToken) -> None:
        heard.append(new.token)
        if len(heard) == at:
            heard_enough()

    with pytest.raises(RuntimeError, match="heard enough"):
        writer.write([request(PROMPTS[0]), request(PROMPTS[1], on_token=listen), request(PROMPTS[2])])
    requests = [request(prompt, 3) for prompt in PROMPTS[3:]]
    for wanted, found in zip(requests, writer.write(requests), strict=True):
        assert_alone(architecture, wanted, found)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_nothing_is_lost_when_a_callback_raises(architecture: str) -> None:
    """Stepping on, every request comes out; with slots whole, in a padded batch as far as it was written."""
    writer = writer_for(kept(architecture), Numbers(), 3)
    for place in range(4):
        writer.add(request(PROMPTS[place], 3, on_token=heard_enough if place == 1 else None))
    found: dict[int, Generated] = {}
    raised = 0
    while writer.busy:
        try:
            found |= dict(writer.step())
        except RuntimeError:
            raised += 1
    assert raised == (3 if architecture == "llama" else 1)
    assert sorted(found) == [0, 1, 2, 3]
    assert [len(found[place].tokens) for place in (0, 3)] == ([3, 3] if architecture == "llama" else [1, 3])


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
@pytest.mark.parametrize("own_end", [False, True])
def test_a_stop_text_that_is_a_control_token(architecture: str, own_end: bool) -> None:
    """Decoded text never shows it, so its id is what ends the sequence; it is an end of turn only where it is one."""

    class Controlled(Numbers):
        all_special_tokens = ("<end>",)

        def convert_tokens_to_ids(self, token: str) -> int:
            return third

    whole = write(kept(architecture), [request(PROMPTS[0])])[0]
    third = whole.tokens[2]
    assert third not in whole.tokens[:2]
    stop_ids = frozenset({third} if own_end else ())
    (cut,) = writer_for(kept(architecture), Controlled(), 1).write(
        [request(PROMPTS[0], stop=("<end>",), stop_ids=stop_ids)]
    )
    assert (cut.tokens, cut.finish, cut.ended) == (whole.tokens[:3], "stop", own_end)
    assert cut.text == Numbers().decode(whole.tokens[:2], skip_special_tokens=True)


def test_a_cache_has_slots_for_what_there_is() -> None:
    """And grows as more comes, without touching what is being written."""
    writer = writer_for(kept("llama"), Numbers(), 24)
    assert isinstance(writer, SlotWriter)
    requests = [request(PROMPTS[place % len(PROMPTS)], 12, seed=place) for place in range(11)]
    writer.add(requests[0])
    found = dict(writer.step())
    cache = writer._forward.cache
    assert cache.slots == 1
    for each in requests[1:]:
        writer.add(each)
    found |= dict(writer.step())
    assert writer._forward.cache is cache
    assert cache.slots == 12
    assert writer.bytes > 0
    found |= steps(writer)
    assert writer.bytes == 0  # an idle writer holds nothing
    for number, wanted in enumerate(requests):
        assert_alone("llama", wanted, found[number])


@pytest.mark.parametrize("architecture", PATHS)
def test_a_writer_can_be_used_again(architecture: str) -> None:
    """Shorter and longer sequences after others; longer ones while short ones are being written."""
    writer = writer_for(kept(architecture), Numbers(), 3)
    requests = [request(prompt, 30, seed=n) for n, prompt in enumerate(PROMPTS)]
    long = request(tiny.tree(75).prompt, 40, seed=1)
    writer.add(requests[2])
    found = {number: each for _ in range(5) for number, each in writer.step()}
    writer.add(long)
    found |= steps(writer)
    assert_same(found[0], write(kept(architecture), [requests[2]])[0])
    assert_same(found[1], write(kept(architecture), [long])[0])
    fresh = write(kept(architecture), requests)
    for _ in range(2):
        for ours, theirs in zip(writer.write(requests), fresh, strict=True):
            assert_same(ours, theirs)


def test_a_broken_sequence_does_not_break_the_next_in_its_slot() -> None:
    """A token without a number behind it is an error; what the same writer then writes is as if there had been none."""
    model = settled("llama")
    with torch.no_grad():
        model.causal.get_input_embeddings().weight[5] = torch.nan
    writer = writer_for(model, Numbers(), 2)
    with pytest.raises(NotFiniteError, match="logits are not finite"):
        writer.write([request([8] * 9, 20, temperature=0), request([5] * 9, 4, temperature=0)])
    wanted = [request([8] * 5, 20, temperature=0), request([7], 4, temperature=0)]
    for found, each in zip(writer.write(wanted), wanted, strict=True):
        assert_same(found, write(model, [each], 1)[0])


@pytest.mark.parametrize("architecture", PATHS)
def test_entropies_are_those_of_the_models_own_distributions(architecture: str) -> None:
    """Whatever the temperature; -sum p log p of transformers' logits. Requests that do not ask get none."""
    model = kept(architecture)
    asks = [True, False, True]
    requests = [
        replace(request(prompt, 3, STOPS, temperature=0.5, seed=n), entropies=asked)
        for n, (prompt, asked) in enumerate(zip(PROMPTS, asks, strict=False))
    ]
    for each, asked, found in zip(requests, asks, write(model, requests, 3), strict=True):
        assert len(found.entropies) == (len(found.tokens) if asked else 0)
        ids = torch.tensor([[*each.prompt, *found.tokens]])
        with torch.no_grad(), standard_attention(model) as plain:
            logits = plain(ids).logits[0, len(each.prompt) - 1 : -1].double()
        expected = torch.distributions.Categorical(logits=logits).entropy().tolist()
        assert list(found.entropies) == pytest.approx(expected[: len(found.entropies)], abs=1e-4)
