"""The figures of a proof, by hand, and the limits that each of them exceeds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefine.export.formats import ROUNDING_LIMITS, ProofLimits, limits_of
from prefine.export.probes import Probe
from prefine.export.proof import Proof, compare, proof_rows
from prefine.export.reference import Reference
from prefine.export.reload import Reloaded
from prefine.records import Message

TURNS = (Message(role="user", content="Q"),)
LIMITS = ProofLimits(top1=0.9, kl_mean=0.01, kl_p99=0.1, perplexity=0.02, kept=(0.8, 1.2))


class Words:
    """Decodes for samples."""

    class tokenizer:  # noqa: N801 - as a template's attribute
        @staticmethod
        def decode(ids: list[int], skip_special_tokens: bool) -> str:
            return " ".join(map(str, ids))


def reference(logits: list[Tensor], base: list[Tensor] | None = None, **changes: Any) -> Reference:
    probes = [Probe(TURNS, (5, 6), tuple(i % each.shape[-1] for i in range(len(each))), True) for each in logits]
    made = Reference(probes, logits, base or [], [[1, 2, 3]], 3, frozenset({2, 3}), 3, "float32")
    return replace(made, **changes)


def reloaded(logits: list[Tensor], **changes: Any) -> Reloaded:
    made = Reloaded(logits, [[5, 6]] * len(logits), [[1, 2, 4]], frozenset({2, 3}), 0.5, "float32", {"torch": "2"})
    return replace(made, **changes)


def proof(ours: list[Tensor], theirs: list[Tensor], base: list[Tensor] | None = None, **changes: Any) -> Proof:
    return compare("merged", reference(ours, base), reloaded(theirs, **changes), Words(), 10)  # type: ignore[arg-type]


def test_figures_by_hand() -> None:
    """Two words: p = (1/2, 1/2), q = (3/4, 1/4): KL = ln(2/√3) nats; equal elsewhere."""
    half, quarter = torch.zeros(2, 2), torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    found = proof([half], [quarter])
    apart = math.log(2 / math.sqrt(3))
    assert found.kl_mean == pytest.approx(apart / 2)
    assert found.kl_p99 == pytest.approx(0.99 * apart)  # linear between the two
    assert found.positions == 2
    assert found.top1 == 1.0  # of equals the first
    # Answers are 0, 1: under the run 1/2 each, under the export 3/4 and 1/2.
    assert found.perplexity_run == pytest.approx(2.0)
    assert found.perplexity_export == pytest.approx((0.75 * 0.5) ** -0.5)
    assert found.perplexity_change == pytest.approx((0.75 * 0.5) ** -0.5 / 2 - 1)
    (sample,) = found.samples
    assert (sample.same_tokens, sample.tokens, sample.run, sample.export) == (2, 3, "1 2 3", "1 2 4")
    assert [text.split(" is ")[0].split(" changes ")[0] for text in found.failures(LIMITS)] == [
        *("mean KL", "KL's 99th percentile", "perplexity"),
    ]


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0])
def test_the_kept_change_is_a_slope(factor: float) -> None:
    """Of the export's change from the base on the run's; a shift of all logits is none."""
    draw = torch.Generator().manual_seed(0)
    base, change, noise = (torch.randn(40, 30, generator=draw) for _ in range(3))
    found = proof([base + 0.01 * change], [base + factor * 0.01 * change + 3.0], [base])
    assert found.kept == pytest.approx(factor, abs=1e-3)
    noisy = proof([base + 0.01 * change], [base + factor * 0.01 * change + 0.002 * noise], [base])
    assert noisy.kept is not None
    assert noisy.kept_error is not None
    assert abs(noisy.kept - factor) < 4 * noisy.kept_error < 0.1
    fails = any("trained change" in text for text in noisy.failures(LIMITS))
    assert fails == (factor != 1.0)


def test_a_change_too_small_to_be_told_from_rounding_proves_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    base, change, noise = (torch.randn(40, 30, generator=draw) for _ in range(3))
    found = proof([base + 1e-6 * change], [base + 1e-3 * noise], [base])
    assert not any("trained change" in text for text in found.failures(LIMITS))
    assert proof([base], [base], [base]).kept is None


def test_padding_of_the_vocabulary_does_not_count() -> None:
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([logits, torch.full((3, 4), -1.0)], -1)
    assert proof([logits], [padded]).kl_mean < 1e-12


def test_of_an_export_that_gives_its_likeliest_tokens_alone_the_rest_is_one() -> None:
    """p = (1/2, 1/4, 1/8, 1/8), q = (1/4, 1/2, and 1/4 for the rest): KL = 1/2 ln 2 - 1/4 ln 2 + 0."""
    ours, theirs = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), torch.tensor([[0.25, 0.5, 0.125, 0.125]]).log()
    assert proof([ours], [theirs], likeliest=2).kl_mean == pytest.approx(math.log(2) / 4)
    draw = torch.Generator().manual_seed(0)
    base, change = torch.randn(8, 30, generator=draw), torch.randn(8, 30, generator=draw)
    ours = torch.log_softmax(base + 0.1 * change, -1)
    # The same model, of which 10 of 30 tokens are known: the others share what is left.
    known = ours.topk(10).indices
    left = (1 - ours.exp().gather(-1, known).sum(-1, keepdim=True)) / 20
    theirs = left.log().expand(8, 30).scatter(-1, known, ours.gather(-1, known))
    found = proof([ours], [theirs], [base], likeliest=10)
    assert found.kl_mean < 1e-6
    assert found.kept == pytest.approx(1, abs=1e-4)
    answered = [row for row in range(8) if row in known[row]]  # the answer's tokens are 0 to 7
    assert 0 < len(answered) < 8
    nll = -sum(float(ours[row, row]) for row in answered) / len(answered)
    assert found.perplexity_run == pytest.approx(math.exp(nll))
    assert found.perplexity_export == pytest.approx(math.exp(nll))
    assert proof([ours], [theirs], [base]).kl_mean > 0.02  # all tokens taken for its own
    wider = torch.cat([theirs, torch.full((8, 4), -50.0)], -1)
    assert proof([ours], [wider], [base], likeliest=10).kl_mean < 1e-6


def test_each_limit_is_exceeded_alone() -> None:
    logits = [torch.randn(4, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    good = proof(logits, logits)
    assert good.failures(LIMITS) == []
    for change, said in (
        ({"top1": 0.89}, "top-1 agreement is 0.8900, below 0.9"),
        ({"kl_mean": 0.011}, "mean KL"),
        ({"kl_p99": 0.11}, "99th percentile"),
        ({"perplexity_export": good.perplexity_run * 1.03}, "perplexity changes by +3"),
        ({"perplexity_export": good.perplexity_run * 0.97}, "perplexity changes by -3"),
        ({"prompts_equal": 2}, "1 of 3 prompts are rendered to other token ids"),
        ({"stops_missing": (2,)}, "does not end at token 2"),
        ({"stops_added": (7,)}, "also ends at token 7"),
        ({"kept": 0.5, "kept_error": 0.01}, "keeps 0.500 of the trained change"),
        ({"kept": 1.5, "kept_error": 0.01}, "keeps 1.500 of the trained change"),
        ({"kl_mean": math.nan}, "mean KL"),
        ({"top1": math.nan}, "top-1"),
        ({"perplexity_export": math.nan}, "perplexity"),
    ):
        (failure,) = replace(good, **change).failures(LIMITS)  # type: ignore[arg-type]
        assert said in failure
    only_end = replace(LIMITS, stops="turn_end")
    assert replace(good, stops_missing=(2,)).failures(only_end) == []
    assert replace(good, turn_ends=False).failures(only_end) == [
        "generation does not end at the chat template's end of turn"
    ]


def test_a_damaged_export_in_figures() -> None:
    """Other prompts, lost stops and values that are no numbers come from the reload, not from the figures."""
    logits = [torch.zeros(2, 4)]
    found = proof(logits, [torch.full((2, 4), math.nan)], rendered=[[5]], stop_ids=frozenset({3}))
    assert len(found.failures(LIMITS)) >= 4
    assert (found.prompts_equal, found.stops_missing, found.turn_ends) == (0, (2,), True)


def test_a_proof_is_read_back_from_json() -> None:
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(4, 8, generator=draw)
    found = proof([base + 0.1], [base + 0.2], [base])
    assert Proof.from_json(found.as_json()) == found
    header, row = proof_rows([found])
    assert len(header) == len(row)


def test_limits_are_those_of_the_coarsest_type() -> None:
    assert limits_of("float32") is ROUNDING_LIMITS["float32"]
    assert limits_of("float32", "bfloat16", "float16") is ROUNDING_LIMITS["bfloat16"]
    ordered = [ROUNDING_LIMITS[name] for name in ("float32", "float16", "bfloat16")]
    assert [each.kl_mean for each in ordered] == sorted(each.kl_mean for each in ordered)
