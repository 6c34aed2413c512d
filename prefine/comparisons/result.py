"""What a comparison of two models found: the content of its report.json, and the rows of its answers.jsonl.

The candidate is the model in question, the baseline the one that it is compared with. A change is always candidate
minus baseline.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Direction = Literal["higher", "lower", "neither"]
"""Which values of a metric are better; neither: it describes, and decides nothing."""

Finding = Literal["better", "worse", "differs", "no difference shown", "not computed"]
"""Of the candidate against the baseline; differs: of a metric that has no better direction."""

Winner = Literal["candidate", "baseline", "tie"]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(_Part):
    """A figure with its 95 % interval, None if it has none.

    Attributes:
        count: of the examples behind it: prompts, pairs, items.
    """

    value: float
    low: float | None = None
    high: float | None = None
    count: int


class Metric(_Part):
    """One figure of both models and its paired change.

    Attributes:
        name: as in answers.jsonl and in gates: "length_tokens".
        title: for people: "answer length".
        unit: "tokens", "nats", "share" (a fraction of 1), "score" or "".
        group: of metrics that the page shows together: reward, divergence, form, diversity, preference, reference.
        p: of the paired test that there is no change; p_adjusted: after correction for all metrics that decide.
        sentence: the finding in plain words.
        more_prompts: about how many more prompts would show the change, if the true one is as large as this one.
        why_not: the reason if it was not computed.
    """

    name: str
    title: str
    unit: str
    group: str
    better: Direction
    candidate: Estimate | None = None
    baseline: Estimate | None = None
    change: Estimate | None = None
    p: float | None = None
    p_adjusted: float | None = None
    finding: Finding
    sentence: str
    more_prompts: int | None = None
    why_not: str = ""


class WinRate(_Part):
    """How often a judge preferred the candidate.

    Attributes:
        judge: its name: a reward model, an endpoint's model, "people".
        wins, ties, losses: prompts, from the candidate's side.
        rate: ties as one half.
        decided: wins / (wins + losses), ties left out.
        length_controlled: win rate at equal length.
        length_control: how that one was computed, in a sentence; "" if it was not.
        consistency: share of pairs on which the judge said the same in both orders.
        spent: what the judge cost: requests, prompt_tokens, completion_tokens, cost.
        failed: prompts without a verdict, by reason.
    """

    judge: str
    wins: int
    ties: int
    losses: int
    rate: Estimate | None = None
    decided: Estimate | None = None
    length_controlled: Estimate | None = None
    length_control: str = ""
    consistency: Estimate | None = None
    p: float | None = None
    p_adjusted: float | None = None
    finding: Finding
    sentence: str
    more_prompts: int | None = None
    spent: dict[str, float] = Field(default_factory=dict)
    failed: dict[str, int] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    why_not: str = ""


class RegressionGroup(_Part):
    """One category of the regression set, or the whole of it: the share of its items that each model passed.

    Attributes:
        lost, gained: items that only the baseline, or only the candidate, passed.
        missing: items that one of the models could not answer; they are in no other figure.
        category: "all" for the whole set. examples: ids of the lost items.
    """

    category: str
    title: str
    candidate: Estimate
    baseline: Estimate
    change: Estimate
    lost: int
    gained: int
    missing: int = 0
    p: float | None = None
    p_adjusted: float | None = None
    finding: Finding
    sentence: str
    examples: list[str] = Field(default_factory=list)


class Side(_Part):
    """One of the two models.

    Attributes:
        name: as the user gave it. kind: model, run or endpoint.
        identity: hash of its weights, or what the endpoint calls itself.
        facts: base, stage, dtype, device, revision: whatever is known, as text.
    """

    name: str
    kind: str
    identity: str = ""
    facts: dict[str, str] = Field(default_factory=dict)


class Verdict(_Part):
    """The judgement.

    Attributes:
        decision: on the metric or win rate that decides (`decided_by`).
        sentence: the decision in one sentence, with the interval.
        regressions: what got worse, one sentence each.
        improvements: what got better.
        more_prompts: about how many more prompts would settle it; None if it is settled or nothing can be said.
    """

    decision: Literal["better", "worse", "no difference shown"]
    decided_by: str
    sentence: str
    regressions: list[str] = Field(default_factory=list)
    improvements: list[str] = Field(default_factory=list)
    more_prompts: int | None = None


class GateRule(_Part):
    """One rule of a gate and what came of it."""

    rule: str
    value: str
    passed: bool
    sentence: str


class Comparison(_Part):
    """A whole comparison, report.json.

    Attributes:
        prompts: source, count, left out with reasons, categories.
        sampling: how answers were generated.
        not_computed: what could not be computed, and why.
        command: that reproduces it.
        recipes: the resolved recipes of sides that are runs, by side.
        seconds: of each part.
    """

    format: Literal[1] = 1
    prefine: str
    made_at: str
    candidate: Side
    baseline: Side
    prompts: dict[str, Any]
    sampling: dict[str, Any]
    verdict: Verdict
    metrics: list[Metric] = Field(default_factory=list)
    win_rates: list[WinRate] = Field(default_factory=list)
    regression: list[RegressionGroup] = Field(default_factory=list)
    benchmarks: list[Metric] = Field(default_factory=list)
    gate: list[GateRule] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    not_computed: dict[str, str] = Field(default_factory=dict)
    command: list[str] = Field(default_factory=list)
    recipes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)


PASSED = "passed"
"""In regression.jsonl the name in `scores` of whether the answer passed: 1 or 0."""


class AnswerOf(_Part):
    """One model's answer to a prompt.

    Attributes:
        degenerate: blank, stuck or looping; None if it is none of these.
        reward: of a reward model that judges; kl_per_token: nats, to the reference; entropy: nats, mean over tokens.
        scores: further figures by metric name (rouge_l, bleu, chrf, …).
    """

    text: str
    tokens: int
    ended: bool
    degenerate: str | None = None
    reward: float | None = None
    kl_per_token: float | None = None
    entropy: float | None = None
    scores: dict[str, float] = Field(default_factory=dict)


class AnswerRow(_Part):
    """A prompt with both answers: a line of answers.jsonl, and of regression.jsonl.

    Attributes:
        prompt: the turns, with role and content. tools: that the models could call.
        verdicts: by judge.
    """

    id: str
    category: str = ""
    prompt: list[dict[str, Any]]
    tools: list[dict[str, Any]] = Field(default_factory=list)
    reference: str = ""
    candidate: AnswerOf
    baseline: AnswerOf
    verdicts: dict[str, Winner] = Field(default_factory=dict)

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The turns, after one with the tools if there are any: all that the models saw."""
        tools = {"role": "tools", "content": json.dumps(self.tools, ensure_ascii=False)}
        return [tools, *self.prompt] if self.tools else self.prompt


def prompt_numbers(rows: Iterable[AnswerRow]) -> list[int]:
    """The number of each row's prompt, from 0: rows with the same turns and tools are answers to one prompt."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(json.dumps([row.prompt, row.tools], sort_keys=True), len(numbers)) for row in rows]
