"""Which method fits the data: a pure function of counts, with its reasons in sentences. The user may override it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from prefine.advice.lengths import RowLength, length_warnings, row_lengths
from prefine.advice.signals import (
    BETAS,
    NEEDS,
    counts_by_kind,
    judged_kind,
    kind_read,
    larger_beta,
    shallow_cues,
    unsure_signal,
    weak_signal,
)
from prefine.advice.situation import Situation
from prefine.errors import RecipeError

Goal = Literal["auto", "imitate", "prefer", "control"]

# Rules of thumb: with fewer records, the held-out tenth is too small to see a change, and a model learns its few
# examples by heart.
_FEW = {"preferences": 300, "votes": 500, "demonstrations": 200, "prompts": 100}
# Ratio of the two sides' weights times counts that KTO's authors recommend: 1 to 4/3 (arXiv 2402.01306, eq. 9).
_MOST_UNEQUAL_VOTES = 4 / 3
_KINDS_OF_GOALS = {
    "imitate": "demonstrations, pairs or answers with a thumb up",
    "prefer": "pairs or votes",
    "control": "pairs, votes or --reward",
}
_NAMES = {
    "preferences": "preference pairs",
    "votes": "votes",
    "demonstrations": "demonstrations",
    "prompts": "prompts",
}


@dataclass(frozen=True)
class MethodChoice:
    """A method, and the stages that lead to it.

    Attributes:
        method: of the last training stage.
        stages: methods in order; the last one is `method`.
        reasons: why, in sentences with the figures.
        warnings: what may go wrong, and what to do about it.
        settings: fields of the last stage's recipe that the data ask for, by dotted name.
        others: other methods that the same data allow, each with the case for it.
        lengths: of the rows of each stage, by method.
    """

    method: str
    stages: tuple[str, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    others: tuple[tuple[str, str], ...] = ()
    lengths: dict[str, RowLength] = field(default_factory=dict)


def choose(
    situation: Situation,
    methods: Collection[str],
    *,
    goal: Goal = "auto",
    asked: str | None = None,
    context: int | None = None,
) -> MethodChoice:
    """The method that fits.

    Args:
        situation: counts and signal of the data.
        methods: that this prefine has.
        goal: what the user wants; auto follows from the data.
        asked: a method that overrides the choice.
        context: the most tokens that the model reads at once; None if not known.

    Raises:
        RecipeError: there is no such method, or nothing in the data that it, or any, could learn from; its reward
            model would have votes of one side only.
    """
    if asked is not None and goal != "auto":
        raise RecipeError(f"--goal {goal} has no effect with --method {asked}", "Leave one of them out.")
    if asked is not None:
        _require_possible(situation, methods, asked)
        method, reasons = asked, [f"--method {asked} was asked for; the data have {_counted(situation)}."]
    else:
        method, reasons = _fitting(situation, methods, goal)
    if situation.reward is not None and method != "ppo":
        raise RecipeError(
            f"--reward {situation.reward} has no effect: {method} does not use a reward",
            "Leave it out, or choose --goal control.",
        )
    weak = weak_signal(situation, method)
    settings: dict[str, Any] = {}
    if weak and method in BETAS and not situation.at_least(kind_read(situation, method)):
        beta = settings[f"{method}.beta"] = larger_beta(method)
        instead = f"{method}.beta is {beta:g} instead of {BETAS[method]:g}"
        reasons += [*weak, f"{instead}: the model stays nearer to where it began."]
    balance, why = _balanced(situation)
    if method == "kto" and balance and not situation.at_least("votes"):
        settings |= balance
        reasons.append(why)
    if method == "ppo":
        settings["reward.name"] = situation.reward or "stage:reward"
    stages = _stages(situation, method)
    if "reward" in stages:
        _require_both_votes(situation)
    lengths = row_lengths(stages, situation, context)
    return MethodChoice(
        method=method,
        stages=stages,
        reasons=tuple(reasons),
        warnings=(
            *situation.not_read,
            *_warnings(situation, method, settings, weak),
            *length_warnings(lengths),
            *_unused(situation, stages),
        ),
        settings=settings,
        others=tuple(_others(situation, methods, method)),
        lengths=lengths,
    )


def _fitting(situation: Situation, methods: Collection[str], goal: Goal) -> tuple[str, list[str]]:
    pairs, votes, shown = situation.pairs, situation.votes, situation.demonstrations
    with_prompts = counts_by_kind(situation)[kind_read(situation, "ppo")]
    if situation.reward is not None and with_prompts and goal in ("auto", "control"):
        return "ppo", [
            f"{situation.reward} scores any answer, and there are {'at least ' if situation.read_in_part else ''}"
            f"{with_prompts:,} records with a prompt: PPO raises that score directly."
        ]
    if goal == "control" and pairs + votes:
        return "ppo", [
            f"Control of the reward is wanted: a reward model is trained on {_read(situation, 'reward')}, and PPO "
            "optimises it with weights, penalties and a limit on the KL divergence that can be changed without new "
            "data."
        ]
    if goal == "imitate" and (shown or pairs or situation.thumbs_up):
        return "sft", [f"Imitation is wanted: SFT learns from {_imitated(situation)}."]
    if goal in _KINDS_OF_GOALS and not (pairs or (votes and goal != "imitate")):
        raise RecipeError(
            f"--goal {goal} needs {_KINDS_OF_GOALS[goal]}, and the data have {_counted(situation)}",
            _remedy(situation, "Add such data, or leave --goal out."),
        )
    if pairs:
        return "dpo", [
            f"There are {_many(situation, 'preferences')}: DPO learns from them directly, without a reward model and "
            "rollouts."
        ]
    if votes and "kto" in methods:
        return "kto", [
            f"There are {_many(situation, 'votes')} on single answers and no pairs: KTO learns from each vote by "
            "itself."
        ]
    if votes:
        return "ppo", [
            f"There are {_many(situation, 'votes')} on single answers and no pairs: a reward model learns from them, "
            "and PPO from it."
        ]
    if shown:
        return "sft", [f"There are {_many(situation, 'demonstrations')} and no judgements: SFT imitates them."]
    what = f"{_many(situation, 'prompts')} without an answer" if situation.prompts else "no usable record"
    raise RecipeError(
        f"The data have {what}: there is nothing to learn from",
        _remedy(situation, "Add answers, votes or pairs, or name what scores an answer: --reward module:function."),
    )


def _require_possible(situation: Situation, methods: Collection[str], asked: str) -> None:
    trained = [method for method in methods if method in NEEDS]
    if asked not in trained:
        raise RecipeError(f"--method {asked!r:.60} is not a method", f"The methods are {', '.join(trained)}.")
    counts, names = counts_by_kind(situation), _NAMES
    if asked == "sft":  # it takes only votes that are up
        counts, names = counts | {"votes": situation.thumbs_up}, names | {"votes": "answers with a thumb up"}
    if not any(counts[kind] for kind in NEEDS[asked]):
        needed = " or ".join(names[kind] for kind in NEEDS[asked])
        raise RecipeError(
            f"--method {asked} needs {needed}, and the data have {_counted(situation)}",
            _remedy(situation, "Add such data, or leave it out."),
        )
    if asked == "ppo" and situation.reward is None and not situation.pairs + situation.votes:
        raise RecipeError(
            "--method ppo needs a reward, and the data have no pairs or votes to train one",
            _remedy(situation, "Name what scores an answer: --reward module:function."),
        )


def _one_side(situation: Situation) -> str:
    """Which votes there are, if all are the same: "up" or "down"; else ""."""
    if not situation.votes or 0 < situation.thumbs_up < situation.votes:
        return ""
    return "up" if situation.thumbs_up else "down"


def _require_both_votes(situation: Situation) -> None:
    """Refuse what a reward model's run refuses: votes of one side. Of a file read in part the rest may differ."""
    side = _one_side(situation)
    if side and kind_read(situation, "reward") == "votes" and not situation.at_least("votes"):
        raise RecipeError(
            f"All {_many(situation, 'votes')} are thumbs {side}: a reward model learns from both, thumbs up and thumbs "
            "down",
            _remedy(situation, "Add votes of the other side, or name what scores an answer: --reward module:function."),
        )


def _remedy(situation: Situation, usual: str) -> str:
    """What to do where the data do not serve; what the files have besides may serve."""
    return " ".join([*situation.not_read, usual])


def _counted(situation: Situation) -> str:
    found = [_many(situation, kind) for kind, count in counts_by_kind(situation).items() if count]
    return " and ".join(found) or "no usable record"


def _many(situation: Situation, kind: str) -> str:
    """How many records of a kind there are, in words."""
    return f"{situation.at_least(kind)}{counts_by_kind(situation)[kind]:,} {_NAMES[kind]}"


def _read(situation: Situation, method: str) -> str:
    return _many(situation, kind_read(situation, method))


def _unused(situation: Situation, stages: tuple[str, ...]) -> list[str]:
    """The files that no stage reads: each stage reads one kind of records."""
    read = {kind_read(situation, method) for method in stages}
    return [
        f"{source} is not used by any stage: it has {_NAMES[kind]}, and the stages read "
        f"{' and '.join(_NAMES[each] for each in _NAMES if each in read)}."
        for kind, files in situation.sources.items()
        if kind not in read
        for source in files
    ]


def _imitated(situation: Situation) -> str:
    if situation.demonstrations:
        return _many(situation, "demonstrations")
    if situation.pairs:
        return f"the better answers of {_many(situation, 'preferences')}"
    return f"the {situation.at_least('votes')}{situation.thumbs_up:,} answers with a thumb up"


def _stages(situation: Situation, method: str) -> tuple[str, ...]:
    """SFT first where there is something to imitate: what follows begins with a model that writes such answers."""
    imitates = bool(situation.demonstrations or situation.pairs or situation.thumbs_up)
    before: list[str] = ["sft"] if imitates and method not in ("sft", "orpo", "reward") else []
    if method == "ppo" and situation.reward is None:
        before.append("reward")
    return (*before, method)


def _balanced(situation: Situation) -> tuple[dict[str, Any], str]:
    """The weight of the rarer side of votes, so that both sides count about the same, and a sentence that says why."""
    up, down = situation.thumbs_up, situation.votes - situation.thumbs_up
    if not situation.votes or not up or not down or max(up, down) <= _MOST_UNEQUAL_VOTES * min(up, down):
        return {}, ""
    rarer = "desirable_weight" if up < down else "undesirable_weight"
    weight = round(max(up, down) / min(up, down), 2)
    why = f"{up:,} votes are up and {down:,} down: kto.{rarer} is {weight}, so that both sides count the same."
    return {f"kto.{rarer}": weight}, why


def _warnings(situation: Situation, method: str, settings: dict[str, Any], weak: list[str]) -> list[str]:
    found = _read_in_part(situation, method)
    used = kind_read(situation, method)
    count = counts_by_kind(situation)[used]
    if count < _FEW[used]:
        found.append(
            f"{count:,} {_NAMES[used]} are few; below about {_FEW[used]:,} the held-out ones say little, and a model "
            "learns the others by heart. Look at the samples of the report, and add data."
        )
    if f"{method}.beta" not in settings:
        found += [f"{sentence} {_AGAINST_WEAKNESS[method]}" if method not in BETAS else sentence for sentence in weak]
    found += unsure_signal(situation, method)
    found += shallow_cues(situation, method, settings)
    up, down = situation.thumbs_up, situation.votes - situation.thumbs_up
    if _one_side(situation) and judged_kind(situation, method) == "votes" and method != "sft":
        all_votes = "All votes that were read" if situation.at_least("votes") else "All votes"
        learner = "KTO" if method == "kto" else "a reward model"
        found.append(f"{all_votes} are the same: {learner} needs both, thumbs up and thumbs down.")
    if method == "kto" and situation.at_least("votes"):
        found += [
            f"{up:,} of the votes read are up and {down:,} down: set {name} to {weight} if all votes are as unequal."
            for name, weight in _balanced(situation)[0].items()
        ]
    return found


_AGAINST_WEAKNESS = {
    "sft": "SFT imitates the better answers as they are: collect more judgements of each item.",
    "orpo": "ORPO has no reference to stay near, as DPO has (--method dpo): collect more judgements of each item.",
    "reward": "Collect more judgements of each item, and look at the held-out accuracy before the scores are used.",
    "ppo": "Collect more judgements of each item, and look at the reward model's held-out accuracy before PPO uses it.",
}


def _read_in_part(situation: Situation, method: str) -> list[str]:
    """What was not looked at, and what was therefore not decided."""
    judged = judged_kind(situation, method)
    found = []
    for source, read in situation.read_in_part.items():
        undecided = ""
        if method in BETAS and judged is not None and source in situation.of(judged):
            undecided = (
                f" Whether its judgements are a weak signal was not checked either, and {method}.beta stays "
                f"{BETAS[method]:g}: set it to {larger_beta(method):g} if that audit finds that one in twenty is "
                "contradicted, people disagree on three in ten, or one in four is a tie."
            )
        found.append(
            f"Of {source} only the first {read:,} records were read, and the others may differ: the shares and lengths "
            "here are theirs, and no setting is derived from such a share. prefine data audit reads all."
            f"{undecided}"
        )
    return found


def _others(situation: Situation, methods: Collection[str], method: str) -> list[tuple[str, str]]:
    """Methods that the same data allow."""
    judged = situation.pairs + situation.votes
    cases = {
        "dpo": (situation.pairs, "learns from pairs directly"),
        "orpo": (situation.pairs, "imitates and prefers in one stage, without a reference model"),
        "kto": (situation.votes, "learns from each vote by itself"),
        "ppo": (judged or situation.reward, "weighs rewards, penalties and KL while it trains; takes longest"),
        "sft": (
            situation.demonstrations or situation.pairs or situation.thumbs_up,
            "imitates answers and learns nothing from worse ones",
        ),
    }
    return [(name, why) for name, (able, why) in cases.items() if able and name in methods and name != method]
