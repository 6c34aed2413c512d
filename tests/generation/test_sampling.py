"""Tokens are drawn from exactly the distribution that the settings describe, by one number each; settings are checked.

A grid of evenly spaced numbers stands in for random ones: inverting a distribution function gives each token its share
of the grid to within one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prefine.errors import NotFiniteError
from prefine.generation.sampling import Draws, NextToken, Sampling, choose, invert, likeliest
from tests.models import tiny

VOCABULARIES = [1, 2, 5, 255, 256, 257, 300, 512, 1000]  # the search goes by blocks of 256
LAST = 1 - 2**-24  # the largest number below 1 in fp32


def random_weights(vocabulary: int, seed: int = 0) -> Tensor:
    """Probabilities of very different sizes; every third is 0, the first and the last of many among them."""
    generator = torch.Generator().manual_seed(seed)
    weights = (3 * torch.randn(vocabulary, generator=generator)).exp()
    weights[::3] = 0.0
    return weights if weights.any() else torch.ones(vocabulary)


def random_logits(vocabulary: int, seed: int = 0) -> Tensor:
    """(V,) logits of a sharp distribution."""
    return 2 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed))


def grid(points: int) -> Tensor:
    """Evenly spaced numbers in (0, 1)."""
    return (torch.arange(points) + 0.5) / points


def numbers(seed: int, count: int) -> list[float]:
    """All of a sequence's random numbers."""
    draws = Draws(seed, count)
    return [draws[place] for place in range(count)]


def assert_shares(tokens: Tensor, probabilities: Tensor) -> None:
    """Each token's share of the grid is its probability to within one point, and 0 where that is 0."""
    points = len(tokens)
    counts = torch.bincount(tokens, minlength=len(probabilities))
    assert len(counts) == len(probabilities)
    assert ((counts - points * probabilities.double()).abs() <= 1 + 1e-5 * points).all()
    assert not counts[probabilities == 0].any()


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_token_gets_its_share(vocabulary: int) -> None:
    """Of 4000 numbers on a grid, whatever the weights' scale."""
    weights = random_weights(vocabulary)
    for scale in (1.0, 1e-20, 1e20):
        tokens = invert((weights * scale).expand(4000, -1), grid(4000))
        assert_shares(tokens, weights.double() / weights.double().sum())


@pytest.mark.parametrize("vocabulary", [5, 256, 300, 1000])
def test_random_numbers_give_the_distribution(vocabulary: int) -> None:
    """Chi-squared of 20000 draws, rare tokens counted together."""
    weights = random_weights(vocabulary)
    uniform = torch.tensor(numbers(5, 20_000)).float()
    counts = torch.bincount(invert(weights.expand(20_000, -1), uniform), minlength=vocabulary).double()
    expected = 20_000 * weights.double() / weights.double().sum()
    often = expected >= 10
    seen, right = ([*each[often].tolist(), each[~often].sum().item()] for each in (counts, expected))
    kept = [place for place, each in enumerate(right) if each > 1]
    seen, right = np.array(seen)[kept], np.array(right)[kept]
    assert stats.chisquare(seen, right * seen.sum() / right.sum()).pvalue > 1e-3


def test_other_numbers_would_be_noticed() -> None:
    """The test above has teeth: numbers squared give another distribution."""
    tokens = invert(torch.ones(4000, 5), grid(4000) ** 2)
    with pytest.raises(AssertionError):
        assert_shares(tokens, torch.full((5,), 0.2))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-44, 1e-30, 1e-8, 0.3, 1.0, 7e3, 1e30]), min_size=1, max_size=20).filter(any),
    st.integers(1, 40),
    st.integers(0, 600),
    st.one_of(st.sampled_from([0.0, LAST, 1.0]), st.floats(0, LAST, width=32)),
)
def test_never_a_token_of_weight_zero(pattern: list[float], times: int, before: int, uniform: float) -> None:
    """Zeros before, between and behind; tiny weights beside huge ones; the first and the last number, and 1 itself.

    A number just below 1 in fp64 is 1 in fp32.
    """
    weights = torch.tensor([0.0] * before + pattern * times + [0.0] * (before // 2))
    token = int(invert(weights[None], torch.tensor([uniform])))
    assert 0 <= token < len(weights)
    assert weights[token] > 0


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 700), st.integers(0, 50), st.lists(st.floats(0, LAST, width=32), min_size=2, max_size=30))
def test_larger_numbers_give_later_tokens(vocabulary: int, seed: int, chosen: list[float]) -> None:
    """The distribution function goes up only, and each is the token that an exact search finds, or its neighbour."""
    weights = random_weights(vocabulary, seed)
    uniform = torch.tensor(sorted(chosen))
    tokens = invert(weights.expand(len(uniform), -1), uniform)
    assert (tokens.diff() >= 0).all()
    running = weights.double().cumsum(0)
    running, before = running / running[-1], (running - weights.double()) / running[-1]
    assert (uniform <= running[tokens] + 1e-6).all()
    assert (uniform >= before[tokens] - 1e-6).all()


def test_rows_are_drawn_by_themselves() -> None:
    """Each row its own weights and number."""
    weights = torch.stack([random_weights(300, seed) for seed in range(9)])
    uniform = grid(9)
    together = invert(weights, uniform)
    assert together.tolist() == [int(invert(w[None], u[None])) for w, u in zip(weights, uniform, strict=True)]


def drawn(logits: Tensor, sampling: Sampling, seen: tuple[int, ...] = (), points: int = 256) -> Tensor:
    """Tokens that one row of logits gives for a grid of numbers."""
    rows = [NextToken(sampling, uniform, seen) for uniform in grid(points).tolist()]
    tokens, logprobs = choose(logits.expand(points, -1), rows)
    assert torch.allclose(logprobs, torch.log_softmax(logits.float(), -1)[tokens], atol=1e-5)
    return tokens


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("vocabulary", [20, 256, 300])
def test_temperature_is_that_of_the_softmax(vocabulary: int, temperature: float) -> None:
    """And the log-probabilities stay the model's own (`drawn`)."""
    logits = random_logits(vocabulary)
    tokens = drawn(logits, Sampling(1, temperature=temperature), points=2000)
    assert_shares(tokens, torch.softmax(logits.double() / temperature, -1))


def by_transformers(logits: Tensor, sampling: Sampling, seen: tuple[int, ...]) -> Tensor:
    """(V,) probabilities that transformers' processors leave, in the order that its generate has them."""
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    return torch.softmax(processors(torch.tensor([seen], dtype=torch.int64), logits[None].clone())[0], -1)


FILTERS = st.builds(
    Sampling,
    max_new_tokens=st.just(1),
    temperature=st.sampled_from([0.4, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, 8, 500]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3, 4.0]),
)
SEEN = st.lists(st.integers(0, 19), min_size=1, max_size=12).map(tuple)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(FILTERS, SEEN, st.integers(0, 9))
def test_filters_are_those_of_transformers(sampling: Sampling, seen: tuple[int, ...], seed: int) -> None:
    """The tokens that may be drawn, and how often each is."""
    logits = random_logits(20, seed)
    assert_shares(drawn(logits, sampling, seen), by_transformers(logits, sampling, seen))


@pytest.mark.parametrize(
    "given_values",
    [
        {"temperature": 0.5, "top_k": 6, "top_p": 0.8},
        {"temperature": 1.5, "top_p": 0.7, "min_p": 0.1},
        {"temperature": 2.0, "repetition_penalty": 1.8, "top_k": 5, "min_p": 0.2},
    ],
)
def test_filters_are_applied_in_the_order_of_generate(given_values: dict[str, Any]) -> None:
    """Against the scores that transformers' own generate draws its first token from."""
    model = tiny.make("gpt2")
    prompt = (5, 9, 9, 30, 41)
    config = GenerationConfig(
        max_new_tokens=1, do_sample=True, output_scores=True, return_dict_in_generate=True, pad_token_id=0
    )
    theirs = model.generate(torch.tensor([prompt]), generation_config=config, **{"top_k": 0} | given_values).scores[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    assert 1 < (theirs > -torch.inf).sum() < tiny.VOCABULARY
    assert_shares(drawn(logits, Sampling(1, **given_values), prompt), torch.softmax(theirs[0], -1))


ANY = st.builds(
    Sampling,
    max_new_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 0.0, 1e-30, 0.7, 1.0, 1.0]),
    top_k=st.sampled_from([0, 0, 2]),
    top_p=st.sampled_from([1.0, 1.0, 0.6]),
    min_p=st.sampled_from([0.0, 0.0, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.5]),
    logit_bias=st.sampled_from([(), (), ((3, 4.0), (50, -100.0))]),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(ANY, st.integers(0, 10_000), SEEN), min_size=1, max_size=6))
def test_a_row_does_not_depend_on_the_others(cases: list[tuple[Sampling, int, tuple[int, ...]]]) -> None:
    """Whatever the mix of settings; and nothing writes into the logits."""
    allowed = [None if seed % 3 else torch.arange(96) % 2 == 0 for _, seed, _ in cases]
    rows = [
        NextToken(sampling, Draws(seed, 1)[0], seen, seen[1:], mask)
        for (sampling, seed, seen), mask in zip(cases, allowed, strict=True)
    ]
    logits = torch.stack([random_logits(96, seed) for _, seed, _ in cases])
    before = logits.clone()
    tokens, logprobs = choose(logits, rows)
    for place, row in enumerate(rows):
        token, logprob = choose(logits[place : place + 1], [row])
        assert token[0] == tokens[place]
        assert torch.allclose(logprob[0], logprobs[place], atol=1e-5)
    assert torch.equal(logits, before)
    assert tokens.dtype == torch.int64
    assert logprobs.dtype == torch.float32


def test_a_row_does_not_depend_on_the_others_in_a_large_vocabulary() -> None:
    """Where each rounded probability moves all that come after it; one row in a thousand is enough to be noticed."""
    logits = random_logits(49_152).expand(200, -1)
    rows = [[NextToken(Sampling(1), uniform) for uniform in numbers(seed, 200)] for seed in range(8)]
    tempered = NextToken(Sampling(1, temperature=0.7), 0.5)
    for plain in rows:
        alone, mixed = (choose(logits, batch)[0] for batch in (plain, [*plain[:-1], tempered]))
        assert torch.equal(alone[:-1], mixed[:-1])


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-30, 1e-9])
def test_no_temperature_takes_the_likeliest(temperature: float) -> None:
    """Alone, among sampled rows, and after a penalty; filters have nothing to say to 0."""
    logits = torch.stack([random_logits(300, seed) for seed in range(5)])
    greedy = NextToken(Sampling(1, temperature=temperature, top_k=3, top_p=0.1, min_p=0.9), LAST)
    assert torch.equal(choose(logits, [greedy] * 5)[0], logits.argmax(-1))
    mixed = choose(logits, [greedy, NextToken(Sampling(1), 0.5), greedy, greedy, NextToken(Sampling(1), 0.1)])[0]
    assert mixed[[0, 2, 3]].tolist() == logits.argmax(-1)[[0, 2, 3]].tolist()
    best, second = logits[0].topk(2).indices.tolist()
    penalised = Sampling(1, temperature=temperature, repetition_penalty=50.0)
    assert choose(logits[:1], [NextToken(penalised, 0.0, (best, best))])[0].tolist() == [second]


@pytest.mark.parametrize("sampling", [Sampling(1), Sampling(1, temperature=0), Sampling(1, temperature=0.7, top_k=9)])
def test_bf16_logits_are_summed_in_fp32(sampling: Sampling) -> None:
    """Log-probabilities are those of the rounded logits, exactly."""
    tokens = drawn(random_logits(300).bfloat16(), sampling)
    assert len(tokens.unique()) > (0 if sampling.temperature == 0 else 5)


def test_a_token_without_hope_is_never_drawn() -> None:
    """Logits of -inf, as some models give them to padding."""
    logits = random_logits(300)
    logits[::2] = -torch.inf
    for sampling in (Sampling(1), Sampling(1, temperature=0.7), Sampling(1, top_p=0.9, repetition_penalty=2.0)):
        rows = [NextToken(sampling, uniform, (2, 3)) for uniform in (0.0, 0.3, LAST, 1.0)]
        assert (choose(logits.expand(4, -1), rows)[0] % 2 == 1).all()


@pytest.mark.parametrize("sampling", [Sampling(1), Sampling(1, temperature=0), Sampling(1, temperature=0.7, top_k=3)])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_an_error(sampling: Sampling, broken: float) -> None:
    """However the token is chosen: a damaged model must not write on."""
    logits = torch.stack([random_logits(300), random_logits(300, seed=1)])
    logits[1, 7] = broken
    with pytest.raises(NotFiniteError, match="logits are not finite"):
        choose(logits, [NextToken(sampling, 0.5)] * 2)


def test_draws_are_decided_by_the_seed_alone() -> None:
    """Each token has its own number, however many are asked for; torch's own state is left alone."""
    before = torch.get_rng_state()
    long = numbers(7, 1000)
    for count in (1, 3, 15, 16, 17, 999):
        assert numbers(7, count) == long[:count]
    assert torch.equal(torch.get_rng_state(), before)
    firsts = [Draws(seed, 1)[0] for seed in (0, 1, 2, -1, -7, 2**31, 2**62 + 9)]
    assert len(set(firsts)) == len(firsts)
    assert all(0 <= number < 1 for number in firsts)


def test_draws_of_neighbouring_seeds_are_random_too() -> None:
    """Sequences are often seeded 0, 1, 2 and so on: their first numbers are as good as those of one sequence."""
    firsts = [Draws(seed, 1)[0] for seed in range(5000)]
    assert stats.kstest(firsts, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 4 * len(firsts) ** -0.5


def test_every_bit_of_a_seed_counts() -> None:
    """Rollouts' seeds have 56 bits."""
    assert numbers(7, 3) != numbers(7 + 2**32, 3)


# Logits 0, 1, 2, 3 and 1; token 3 was generated twice and token 2 once, token 1 stands in the prompt only.
FIVE = torch.tensor([0.0, 1.0, 2.0, 3.0, 1.0])
GENERATED = (3, 2, 3)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"presence_penalty": 1.5}, [0.0, 1.0, 0.5, 1.5, 1.0]),
        ({"frequency_penalty": 1.5}, [0.0, 1.0, 0.5, 0.0, 1.0]),
        ({"presence_penalty": -0.5, "frequency_penalty": 1.0}, [0.0, 1.0, 1.5, 1.5, 1.0]),
        ({"logit_bias": ((0, 4.0), (3, -100.0))}, [4.0, 1.0, 2.0, -97.0, 1.0]),
        ({"logit_bias": ((4, 1.0),), "presence_penalty": 2.0}, [0.0, 1.0, 0.0, 1.0, 2.0]),
        # The repetition penalty comes first and counts the prompt; then the others.
        ({"repetition_penalty": 2.0, "frequency_penalty": 1.0}, [0.0, 0.5, 0.0, -0.5, 1.0]),
    ],
)
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_penalties_and_biases_by_hand(changes: dict[str, Any], wanted: list[float], temperature: float) -> None:
    """As OpenAI defines them, before the temperature; log-probabilities stay the model's own."""
    sampling = Sampling(1, temperature=temperature, **changes)
    rows = [NextToken(sampling, uniform, (1, *GENERATED), GENERATED) for uniform in grid(4000).tolist()]
    tokens, logprobs = choose(FIVE.expand(4000, -1), rows)
    assert_shares(tokens, torch.softmax(torch.tensor(wanted).double() / temperature, -1))
    assert torch.allclose(logprobs, torch.log_softmax(FIVE, -1)[tokens], atol=1e-6)
    greedy = NextToken(Sampling(1, temperature=0, **changes), 0.5, (1, *GENERATED), GENERATED)
    assert wanted[int(choose(FIVE[None], [greedy])[0])] == max(wanted)


def test_nothing_generated_is_not_penalised() -> None:
    row = NextToken(Sampling(1, temperature=0, presence_penalty=2.0, frequency_penalty=2.0), 0.5)
    assert choose(FIVE[None], [row])[0].tolist() == [3]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_only_allowed_tokens_are_chosen(temperature: float) -> None:
    """In the proportions that they have; a bias does not bring back what is not allowed."""
    allowed = torch.tensor([True, True, False, False, False])
    sampling = Sampling(1, temperature=temperature, logit_bias=((2, 100.0),))
    rows = [NextToken(sampling, uniform, allowed=allowed) for uniform in grid(4000).tolist()]
    tokens, _ = choose(FIVE.expand(4000, -1), rows)
    if temperature:
        assert_shares(tokens, torch.softmax(torch.tensor([0.0, 1.0, *[-torch.inf] * 3]).double() / temperature, -1))
    else:
        assert set(tokens.tolist()) == {1}


def test_likeliest_tokens_by_hand() -> None:
    """Softmax of log 1, log 2, log 5 is 1/8, 2/8, 5/8; each row as many as it asks for, no more than there are."""
    logits = torch.tensor([[1.0, 5.0, 2.0], [5.0, 1.0, 2.0], [2.0, 5.0, 1.0]]).log()
    found = likeliest(logits, [2, 1, 9])
    assert [[token for token, _ in row] for row in found] == [[1, 2], [0], [1, 0, 2]]
    shares = [np.exp([logprob for _, logprob in row]) for row in found]
    assert np.allclose(np.concatenate(shares), np.array([5, 2, 5, 5, 2, 1]) / 8)


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "max_new_tokens": [-1],
        "temperature": [-0.1, 1e23, float("nan"), float("inf")],
        "top_k": [-1],
        "top_p": [0.0, -0.5, 1.01, float("nan")],
        "min_p": [-0.01, 1.01, float("nan")],
        "repetition_penalty": [0.0, -1.0, 1e-9, 1e23, float("nan"), float("inf")],
        "stop": [("",), ("a", "")],
        "presence_penalty": [-2.01, 2.01, float("nan")],
        "frequency_penalty": [-2.01, 2.01, float("nan")],
        "logit_bias": [((3, 100.5),), ((3, -101.0),), ((-1, 1.0),), ((0, 0.0), (1, float("nan")))],
    }.items(),
)
def test_bad_values_are_named(field: str, values: list[Any]) -> None:
    """The message begins with the field and has the value."""
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} is .*; it must be") as error:
            Sampling(**{"max_new_tokens": 5} | {field: value})
        assert repr(value) in str(error.value)


def test_values_at_the_edge_are_fine() -> None:
    """And only what leaves tokens out counts as a filter, where there is anything to draw."""
    assert not Sampling(1, temperature=0, top_k=5, top_p=0.5, min_p=0.5).filtered
    assert not Sampling(0, presence_penalty=-2, frequency_penalty=2, logit_bias=((0, -100), (1, 100))).filtered
    assert not Sampling(1, temperature=1e-3, top_p=1, min_p=0, repetition_penalty=1e-3, stop=("a",)).filtered
    assert all(each.filtered for each in (Sampling(1, top_k=1), Sampling(1, top_p=1e-9), Sampling(1, min_p=1.0)))
