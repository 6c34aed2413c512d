"""The stage that compares two models: its request, its run, and what of its files its inputs decide."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefine.comparisons.gate import gate_of
from prefine.comparisons.lines import comparison_lines
from prefine.errors import PrefineError
from prefine.json_reading import JsonError, parse_json
from prefine.pipeline.digests import KnownDigests
from prefine.recipe.pipeline_methods import EvaluateRecipe, as_list
from prefine.recipe.pipeline_stage import STAGE
from prefine.runs.atomic import sha256_of_file

if TYPE_CHECKING:
    from prefine.evaluation.comparing.request import EvaluationRequest, JudgeRequest

EVALUATE = "evaluate"
DECIDE_ANSWERS = (
    *("candidate", "against", "prompts", "limit", "samples", "max_new_tokens", "temperature", "top_k", "top_p", "seed"),
    *("slots", "chat_template", "device", "dtype"),
)
"""The fields that decide the answers. The others are about what is computed from them."""

_ANSWERS = "answers.jsonl"
# Of an answer: the rest of it are figures, which a judge or a reward model may add later.
_OF_AN_ANSWER = ("text", "tokens", "ended")


def judge_of(recipe: EvaluateRecipe) -> JudgeRequest | None:
    """The language model that judges; None for none.

    Raises:
        PrefineError: its URL or its template cannot be used.
    """
    from prefine.evaluation.comparing.request import judge_request

    template = None if recipe.judge_template is None else Path(recipe.judge_template)
    return judge_request(
        recipe.judge, recipe.judge_model, template, recipe.judge_max_tokens, recipe.price_in, recipe.price_out
    )


def request_of(recipe: EvaluateRecipe, folder: Path) -> EvaluationRequest:
    """What a stage's recipe asks for, with the folder of its result.

    Raises:
        PrefineError: a setting cannot be used.
    """
    from prefine.evaluation.comparing.request import EvaluationRequest, patience_of
    from prefine.generation.sampling import Sampling

    return EvaluationRequest(
        recipe.candidate,
        recipe.against,
        prompts=tuple(as_list(recipe.prompts)),
        limit=recipe.limit,
        reference=recipe.reference,
        reward=recipe.reward,
        pairs=tuple(as_list(recipe.pairs)),
        demonstrations=tuple(as_list(recipe.demonstrations)),
        sampling=Sampling(recipe.max_new_tokens, recipe.temperature, recipe.top_k, recipe.top_p, seed=recipe.seed),
        samples=recipe.samples,
        slots=recipe.slots,
        regression=recipe.regression,
        lm_eval=tuple(recipe.lm_eval),
        judge=judge_of(recipe),
        gate=gate_of(recipe.gate),
        out=folder,
        device=recipe.device,
        dtype=recipe.dtype,
        chat_template=recipe.chat_template,
        patience=patience_of(recipe.timeout, recipe.attempts, recipe.at_once),
        renew=True,
    )


def run_evaluation(
    folder: Path, recipe: EvaluateRecipe, say: Callable[[str], None], progress: Callable[[str, int, int], None]
) -> bool | None:
    """Compare the models of a stage; returns whether its gate passed, None without one.

    Args:
        say: shows a line of the result.

    Raises:
        PrefineError: it cannot go on; or a judge, an endpoint or a benchmark gave no result. All else is in the folder
            then, and the next call asks for what is missing only.
    """
    from prefine.evaluation.comparing.evaluate import evaluate_as_far_as_possible

    evaluated = evaluate_as_far_as_possible(request_of(recipe, folder), progress)
    comparison = evaluated.evaluation.comparison
    for line in comparison_lines(comparison, folder):
        say(line)
    if missing := evaluated.unfinished:
        remedies = dict.fromkeys(each.remedy for each in missing)
        raise PrefineError("; ".join(each.problem for each in missing), " ".join(remedies))
    return all(rule.passed for rule in comparison.gate) if recipe.gate is not None else None


def same_answers(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two lists of a stage's inputs ask for the same answers, so that they need not be generated again."""
    return _answer_inputs(before) == _answer_inputs(now)


def _answer_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that decide the answers: fields, the contents and stages that these name, and the code."""
    names = ["method", "code"]
    for field in DECIDE_ANSWERS:
        names.append(f"recipe {field}")
        value = inputs.get(f"recipe {field}")
        for each in value if isinstance(value, list) else [value]:
            names += [f"content {each}", f"stage {str(each).removeprefix(STAGE)}"]
    return {name: inputs[name] for name in names if name in inputs}


def digest_of_result(method: str, file: Path, digests: KnownDigests) -> str:
    """The hash of a stage's result file.

    Of an evaluation's answers only what its inputs decide: verdicts and scores that are added later change nothing.

    Raises:
        OSError: it cannot be read.
    """
    is_answers = method == EVALUATE and file.name == _ANSWERS
    return digests.of_file(file, _answers_digest) if is_answers else digests.of_file(file)


def answers_result(folder: Path, digests: KnownDigests) -> dict[str, str]:
    """The result of an evaluation's stage: its answers."""
    return {_ANSWERS: digest_of_result(EVALUATE, folder / _ANSWERS, digests)}


def _answers_digest(file: Path) -> str:
    """The hash of the prompts and answers of an answers.jsonl; of its bytes if it is not one any more."""
    digest = sha256()
    try:
        for line in file.read_bytes().splitlines():
            digest.update(json.dumps(_decided(parse_json(line)), sort_keys=True).encode() + b"\n")
    except (JsonError, KeyError, TypeError):
        return sha256_of_file(file)
    return digest.hexdigest()


def _decided(row: Any) -> list[Any]:
    sides = [[row[role][name] for name in _OF_AN_ANSWER] for role in ("candidate", "baseline")]
    return [row["id"], row["prompt"], row.get("tools"), *sides]
