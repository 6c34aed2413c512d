"""The comparison of an export with the run: figures, and which limits they exceed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from prefine.data.tokens.template import ChatTemplate
from prefine.export.formats import ProofLimits
from prefine.export.reference import Reference
from prefine.export.reload import Reloaded
from prefine.formatting import figure
from prefine.runs.atomic import JSON


@dataclass(frozen=True)
class GreedySample:
    """Answers to one prompt, side by side, decoded with the run's tokenizer.

    Attributes:
        prompt: its last turn.
        run, export: what each answers.
        same_tokens: how many tokens at the beginning are the same.
        tokens: of the run's answer.
    """

    prompt: str
    run: str
    export: str
    same_tokens: int
    tokens: int


@dataclass(frozen=True)
class Proof:
    """How an artefact compares with the run.

    Attributes:
        artefact: its name.
        loader: the libraries that loaded it, with their versions.
        dtype: that it computes in.
        reference_dtype: that the run was computed in for the comparison.
        prompts: how many were compared; `heldout` of them are held-out rows of the run.
        prompts_equal: of how many the export's own template and tokenizer give the same token ids.
        stops_missing, stops_added: ids of the run's stop tokens at which the export's generation does not end, and the
            other way round.
        turn_ends: whether it ends at the template's end of turn.
        positions: answer tokens compared.
        likeliest: over how many of the export's likeliest tokens, with all others as one; None: over all. With a
            number, the KL figures are lower bounds, and answer tokens beyond these do not count for the perplexities.
        top1: share of positions with the same most probable token.
        kl_mean, kl_p99: KL(run ‖ export), nats a token.
        perplexity_run, perplexity_export: on the answers.
        kept, kept_error: share of the trained change of the logits, and its standard error; None without an adapter.
        samples: greedy answers.
        size_bytes: of its files.
        load_s: seconds to load it.
    """

    artefact: str
    loader: str
    dtype: str
    reference_dtype: str
    prompts: int
    heldout: int
    prompts_equal: int
    stops_missing: tuple[int, ...]
    stops_added: tuple[int, ...]
    turn_ends: bool
    positions: int
    likeliest: int | None
    top1: float
    kl_mean: float
    kl_p99: float
    perplexity_run: float
    perplexity_export: float
    kept: float | None
    kept_error: float | None
    samples: tuple[GreedySample, ...]
    size_bytes: int
    load_s: float

    @property
    def perplexity_change(self) -> float:
        """Relative to the run's."""
        return self.perplexity_export / self.perplexity_run - 1

    def failures(self, limits: ProofLimits) -> list[str]:
        """Which limits it exceeds, in words; none if it is proven."""
        return [text for kept, text in self._checks(limits) if not kept]

    def _checks(self, limits: ProofLimits) -> Iterator[tuple[bool, str]]:
        # A comparison with NaN is false, so that figures that are no numbers fail.
        unequal = self.prompts - self.prompts_equal
        yield unequal == 0, f"{unequal} of {self.prompts} prompts are rendered to other token ids"
        if limits.stops == "all":
            yield not self.stops_missing, f"generation does not end at token {_listed(self.stops_missing)}"
            yield not self.stops_added, f"generation also ends at token {_listed(self.stops_added)}"
        else:
            yield self.turn_ends, "generation does not end at the chat template's end of turn"
        yield self.top1 >= limits.top1, f"top-1 agreement is {self.top1:.4f}, below {limits.top1:g}"
        yield self.kl_mean <= limits.kl_mean, f"mean KL is {self.kl_mean:.3g} nats, over {limits.kl_mean:g}"
        yield self.kl_p99 <= limits.kl_p99, f"KL's 99th percentile is {self.kl_p99:.3g} nats, over {limits.kl_p99:g}"
        change = self.perplexity_change
        yield (
            abs(change) <= limits.perplexity,
            f"perplexity changes by {change:+.3%}, over {limits.perplexity:.3g}",
        )
        if self.kept is not None and self.kept_error is not None:
            # A change that is too small to be told from rounding proves nothing against an export.
            least, most = (each + side * 3 * self.kept_error for each, side in zip(limits.kept, (-1, 1), strict=True))
            yield (
                least <= self.kept <= most,
                f"it keeps {self.kept:.3f} of the trained change, not {least:.3g} to {most:.3g}",
            )

    def as_json(self) -> dict[str, JSON]:
        """For export.json."""
        return {**asdict(self), "perplexity_change": self.perplexity_change}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Proof:
        """What `as_json` gave."""
        known = {"likeliest": None} | {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        samples = tuple(GreedySample(**each) for each in values["samples"])
        lists = {name: tuple(values[name]) for name in ("stops_missing", "stops_added")}
        return cls(**known | lists | {"samples": samples})


def compare(artefact: str, reference: Reference, found: Reloaded, template: ChatTemplate, size_bytes: int) -> Proof:
    """Hold what an export computes against the run.

    Args:
        artefact: its name.
        reference: the run.
        found: the export.
        template: of the run; decodes samples.
        size_bytes: of the artefact's files.
    """
    pairs = list(zip(reference.logits, found.logits, strict=True))
    answers = [torch.tensor(probe.answer) for probe in reference.probes]
    known = [_known(theirs[:, : ours.shape[-1]], found.likeliest) for ours, theirs in pairs]
    kl = torch.cat([_kl(ours, theirs, which) for (ours, theirs), which in zip(pairs, known, strict=True)])
    top1 = torch.cat([ours.argmax(-1) == theirs.argmax(-1) for ours, theirs in pairs])
    kept, kept_error = _kept(reference, found) or (None, None)
    samples = zip(reference.probes, reference.greedy, found.greedy, strict=False)
    return Proof(
        artefact=artefact,
        loader=", ".join(f"{name} {version}" for name, version in found.libraries.items()),
        dtype=found.dtype,
        reference_dtype=reference.dtype,
        prompts=len(reference.probes),
        heldout=sum(probe.heldout for probe in reference.probes),
        prompts_equal=sum(list(p.prompt) == ids for p, ids in zip(reference.probes, found.rendered, strict=True)),
        stops_missing=tuple(sorted(reference.stop_ids - found.stop_ids)),
        stops_added=tuple(sorted(found.stop_ids - reference.stop_ids)),
        turn_ends=reference.turn_end in found.stop_ids,
        positions=len(kl),
        likeliest=found.likeliest,
        top1=float(top1.float().mean()),
        kl_mean=float(kl.mean()),
        kl_p99=float(kl.quantile(0.99)),
        perplexity_run=_perplexity(reference.logits, answers, known),
        perplexity_export=_perplexity(found.logits, answers, known),
        kept=kept,
        kept_error=kept_error,
        samples=tuple(_sample(probe.turns[-1].content, ours, theirs, template) for probe, ours, theirs in samples),
        size_bytes=size_bytes,
        load_s=found.load_s,
    )


def _known(theirs: Tensor, likeliest: int | None) -> Tensor | None:
    """(N, K) ids of the tokens whose logits (N, V) are the export's own; None where all are."""
    return None if likeliest is None or likeliest >= theirs.shape[-1] else theirs.topk(likeliest).indices


def _kl(ours: Tensor, theirs: Tensor, known: Tensor | None = None) -> Tensor:
    """KL(ours ‖ theirs) at each position, nats: (N, V) logits each -> (N,) fp64, from which rounding of fp64 is cut.

    Libraries may pad the vocabulary; columns that only one of both has do not count. With `known` (N, K) all other
    tokens are one, so that their shares do not count: by the data processing inequality that is a lower bound.
    """
    width = min(ours.shape[-1], theirs.shape[-1])
    p, q = (torch.log_softmax(each[:, :width].double(), -1) for each in (ours, theirs))
    if known is not None:
        p, q = (_with_rest(each, known) for each in (p, q))
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def _with_rest(logp: Tensor, known: Tensor) -> Tensor:
    """(N, V) log-probabilities -> (N, K + 1): those of K tokens, and of all others together."""
    rest = logp.scatter(-1, known, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logp.gather(-1, known), rest], -1)


def _perplexity(logits: Sequence[Tensor], answers: Sequence[Tensor], known: Sequence[Tensor | None]) -> float:
    """Of all answers' tokens together that are among the known ones."""
    nll = []
    for each, ids, which in zip(logits, answers, known, strict=True):
        own = -torch.log_softmax(each.double(), -1).gather(-1, ids[:, None])[:, 0]
        nll.append(own if which is None else own[(which == ids[:, None]).any(-1)])
    return math.exp(min(float(torch.cat(nll).mean()), 700.0))


def _kept(reference: Reference, found: Reloaded) -> tuple[float, float] | None:
    """How much of the change that training made to the logits an export has, and the standard error of that.

    The slope of the regression of the export's change on the run's, both from the base and centred at each position:
    1 where they are equal, 0 where the export is the base, 2 where the change was added twice. Errors that have nothing
    to do with the change, as rounding has not, do not move it, however small the change is. Errors within a position
    are taken for one: positions are what is independent.
    """
    shared: list[float] = []
    trained: list[float] = []
    for base, ours, theirs in zip(reference.base, reference.logits, found.logits, strict=False):
        width = min(ours.shape[-1], theirs.shape[-1])
        changes = [each[:, :width].double() - base[:, :width].double() for each in (ours, theirs)]
        known = _known(theirs[:, :width], found.likeliest)
        change, other = (_centred(each if known is None else each.gather(-1, known)) for each in changes)
        shared += (change * other).sum(-1).tolist()
        trained += (change * change).sum(-1).tolist()
    total = sum(trained)
    if not total:
        return None
    slope = sum(shared) / total
    # Of a ratio of sums over positions.
    residuals = [mine - slope * power for mine, power in zip(shared, trained, strict=True)]
    return slope, math.sqrt(sum(each * each for each in residuals)) / total


def _centred(change: Tensor) -> Tensor:
    return change - change.mean(-1, keepdim=True)


def _sample(prompt: str, ours: list[int], theirs: list[int], template: ChatTemplate) -> GreedySample:
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    texts = [template.tokenizer.decode(ids, skip_special_tokens=True) for ids in (ours, theirs)]
    return GreedySample(prompt, texts[0], texts[1], same, len(ours))


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))


def proof_rows(proofs: Sequence[Proof]) -> list[tuple[str, ...]]:
    """The proof's table: a header, then a row for each artefact, as text."""
    header = (
        *("export", "prompt ids", "top-1 agreement", "mean KL", "99th percentile KL", "perplexity"),
        *("trained change kept", "greedy answers", "size", "load time"),
    )
    return [header, *(_row(each) for each in proofs)]


def _row(proof: Proof) -> tuple[str, ...]:
    same, tokens = (sum(getattr(each, name) for each in proof.samples) for name in ("same_tokens", "tokens"))
    return (
        proof.artefact,
        f"{proof.prompts_equal} of {proof.prompts} equal",
        f"{proof.top1:.2%}",
        f"{figure(proof.kl_mean)} nats",
        f"{figure(proof.kl_p99)} nats",
        f"{proof.perplexity_run:.4g} → {proof.perplexity_export:.4g}",
        "" if proof.kept is None else f"{proof.kept:.3f}",
        f"{same} of {tokens} tokens",
        f"{proof.size_bytes / 1e6:,.0f} MB",
        f"{proof.load_s:.1f} s",
    )
