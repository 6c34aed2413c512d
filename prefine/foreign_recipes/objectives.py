"""Rules for the settings of methods: losses of preference optimisation, and rollouts of GRPO, RLOO and PPO."""

from __future__ import annotations

from typing import Any

from prefine.foreign_recipes.mover import Mover
from prefine.foreign_recipes.rules import is_count
from prefine.foreign_recipes.settings import Setting, Written

_SCALES = {
    **dict.fromkeys(("true", "group"), "group"),
    **dict.fromkeys(("false", "none"), "none"),
    "batch": "update",
}
_AVERAGES = {"grpo": "answers", "dapo": "tokens", "bnpo": "tokens", "dr_grpo": "max_length"}
_ROOM_FOR_PROMPTS = 512
_WHOLE = "rollouts are drawn from the whole distribution, as the ratios need"


def preference_loss(
    mover: Mover, losses: Setting | None, weights: Setting | None, smoothing: Setting | None, smoothed: frozenset[str]
) -> None:
    """The loss of DPO: one, or several with weights; the recipe's own rules refuse those that prefine does not have.

    Args:
        losses: a name, or a list of names.
        weights: of each, in a list.
        smoothing: share of flipped labels.
        smoothed: the losses that the other trainer smooths.
    """
    names = [] if losses is None else [str(name) for name in _listed(losses.value)]
    if smoothing is not None and (reason := _no_smoothing(smoothing, names, smoothed)):
        mover.leave(smoothing, reason)
        smoothing = None
    if losses is None:
        return
    used = [each for each in (losses, weights) if each is not None]
    shares = _shares(names, weights)
    if shares is None:
        for each in filter(None, (*used, smoothing)):
            mover.leave(each, "the losses need a weight each")
        mover.todo(f"Set dpo.loss: there are {len(names)} losses, and loss_weights does not have a number for each.")
        return
    main = [name for name in shares if name != "sft"]
    if len(main) == 1 and shares[main[0]]:
        name = main[0]
        if name == "sigmoid_norm":
            mover.write("dpo.length_normalized", True, losses)
        named = "conservative" if name == "sigmoid" and smoothing is not None else name
        mover.write("dpo.loss", {"sigmoid_norm": "sigmoid"}.get(named, named), *used)
        if "sft" in shares:
            mover.write("dpo.nll_weight", shares["sft"] / shares[name], *used)
    else:
        mover.write("dpo.loss", shares, *used)
    if smoothing is not None:
        mover.write("dpo.label_smoothing", smoothing.value, smoothing)


def _no_smoothing(smoothing: Setting, names: list[str], smoothed: frozenset[str]) -> str:
    """Why labels are not smoothed; empty if they are."""
    if not smoothing.value:
        return "it is 0: no label is taken as flipped"
    if smoothed.isdisjoint(names):
        return f"as here, it has no effect on {' and '.join(names)}" if names else "the loss is not known"
    return ""


def _shares(names: list[str], weights: Setting | None) -> dict[str, float] | None:
    """The weight of each loss: 1 without weights, the sum where a name is repeated; None if they do not fit."""
    given = [1.0] * len(names) if weights is None or weights.value is None else _listed(weights.value)
    if len(given) != len(names) or not all(map(_is_number, given)):
        return None
    shares = dict.fromkeys(names, 0.0)
    for name, share in zip(names, given, strict=True):
        shares[name] += share
    return shares


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def strength(mover: Mover, *names: str) -> None:
    """Beta, whose place depends on the method; the first name that is set decides."""
    stage = mover.moved.configuration.stage
    path = next((each for each in (f"{stage}.beta", "kl.coefficient") if each in mover.paths), f"{stage}.beta")
    for name in names:
        if (setting := mover.take(name)) is None or setting.value is None:
            continue
        mover.write(path, setting.value, setting)
        return


def group_rollouts(mover: Mover, advantage: str) -> None:
    """GRPO and RLOO: groups of answers to a prompt, compared with each other."""
    mover.write("advantage", advantage, note="from the trainer")
    _group_batch(mover)
    longest, prompt = mover.take("max_completion_length"), mover.take("max_prompt_length")
    answer_lengths(mover, longest, prompt)
    temperature = mover.take("temperature")
    if temperature is not None and temperature.value is not None:
        mover.write("rollout.temperature", temperature.value, temperature)
    _group_loss(mover)
    for name, value in (("top_p", 1.0), ("top_k", 0), ("min_p", None), ("repetition_penalty", 1.0)):
        setting = mover.take(name)
        if setting is not None:
            off = setting.value in (value, None, -1 if name == "top_k" else value)
            mover.leave(
                setting,
                f"{'as here, ' if off else ''}rollouts are drawn from the whole distribution, as the ratios need",
            )


def rollout_pairs(mover: Mover) -> None:
    """Online DPO: two answers to each prompt, of which the rewards choose one; each batch is one step."""
    mover.write("advantage", "online_dpo", note="from the trainer")
    for path in ("ppo.epochs", "ppo.minibatches"):
        mover.write(path, 1, note="from the trainer: a batch is one step")
    beta = mover.take("beta")
    values = [] if beta is None else _listed(beta.value)
    if beta is not None and len(values) == 1:
        mover.write("kl.coefficient", values[0], beta)
    elif beta is not None:
        mover.leave(beta, "kl.coefficient is the same in all epochs")
        mover.todo("Set kl.coefficient, DPO's beta: the file has another one for each epoch.")
    penalty = mover.take("missing_eos_penalty")
    if penalty is not None and penalty.value is not None:
        mover.write("reward.missing_eos", "penalty", penalty)
        mover.write("reward.missing_eos_value", penalty.value, penalty)
    elif penalty is not None:
        mover.write("reward.missing_eos", "none", penalty)
    mover.write("reward.clip", None, note="from the trainer, which does not clip rewards")
    judged = "judge" in mover.moved.configuration.settings
    loss, judge = mover.take("loss_type"), mover.take("judge")
    if loss is not None and loss.value == "sigmoid":
        mover.leave(loss, "as here, the loss is that of DPO")
    elif loss is not None:
        mover.leave(loss, "online DPO has the sigmoid loss only")
        mover.todo(f"The file asks for the loss {loss.value}; prefine's online DPO has the sigmoid loss only.")
    if judge is not None:
        mover.leave(judge, _NO_JUDGE)
    if judged:
        mover.todo(f"Set reward.name: {_NO_JUDGE}.")


_NO_JUDGE = "rewards score each answer by itself, judges that compare two answers are not offered"


def _group_loss(mover: Mover) -> None:
    """What advantages are divided by, and what the loss is averaged over."""
    for name, path, values in (
        ("scale_rewards", "ppo.advantage_std", _SCALES),
        ("loss_type", "ppo.loss_average", _AVERAGES),
    ):
        setting = mover.take(name)
        if setting is None:
            continue
        value = values.get(str(setting.value).lower())
        if value is None:
            mover.leave(setting, f"{path} has {', '.join(dict.fromkeys(values.values()))}")
        else:
            mover.write(path, value, setting)
    truncated = mover.take("mask_truncated_completions")
    if truncated is not None:
        mover.write("rollout.skip_truncated", bool(truncated.value), truncated)


def _group_batch(mover: Mover) -> None:
    """TRL counts answers, prefine prompts."""
    answers = mover.value("num_generations")
    rows = mover.moved.fields.pop("training.batch_size", None)
    setting = mover.take("generation_batch_size")
    count, origin = (None, "") if rows is None else (rows.value, rows.origin)
    if setting is not None and setting.value is None:
        mover.leave(setting, "it is null, so that the rows of a step decide")
    elif setting is not None:
        count, origin = setting.value, f"generation_batch_size: {setting.value}"
    count = _steps(mover, count)
    if is_count(count) and is_count(answers):
        note = f"{origin}; divided by num_generations: {answers}, as prompts are counted"
        names = () if rows is None else rows.names
        mover.moved.fields["training.batch_size"] = Written(max(1, count // answers), note, names)


def _steps(mover: Mover, rows: Any) -> Any:
    """Write the optimiser steps of an update; the answers of an update, which a step has `rows` of."""
    setting = mover.take("steps_per_generation")
    accumulated = mover.moved.configuration.settings["gradient_accumulation_steps"].value
    counts = setting is not None and is_count(setting.value) and is_count(accumulated)
    if setting is None or setting.value is None:
        mover.write("ppo.minibatches", 1, note="an update is one step, unless steps_per_generation says otherwise")
        return rows
    steps, rest = divmod(setting.value, accumulated) if counts else (0, 1)
    if rest or steps < 1:
        mover.leave(setting, f"it is not a multiple of gradient_accumulation_steps: {accumulated}")
        return rows
    mover.write("ppo.minibatches", steps, setting, note=f"gradient_accumulation_steps: {accumulated}")
    return rows * steps if isinstance(rows, int) else rows


def answer_lengths(mover: Mover, answer: Setting | None, prompt: Setting | None) -> None:
    """prefine bounds the answer, and prompt and answer together."""
    if answer is not None and isinstance(answer.value, int):
        mover.write("rollout.max_new_tokens", answer.value, answer)
        room = prompt.value if prompt is not None and isinstance(prompt.value, int) else _ROOM_FOR_PROMPTS
        note = "" if prompt is not None else f"and {room} for the prompt"
        if "data.max_length_tokens" not in mover.moved.fields:
            settings = [each for each in (prompt, answer) if each is not None]
            mover.write("data.max_length_tokens", answer.value + room, *settings, note=note)
            return
    if prompt is not None:
        mover.leave(prompt, "data.max_length_tokens bounds prompt and answer together")


def reward_sources(mover: Mover, sources: list[Any], weights: Setting | None) -> None:
    """Models by name, functions as module:function.

    Args:
        sources: their names; None for one that is not known.
        weights: of each, in a list.
    """
    given = weights.value if weights is not None and isinstance(weights.value, list) else []
    parts = []
    for place, name in enumerate(sources):
        part: dict[str, Any] = {"name": name or "my_rewards:reward"}
        if place < len(given):
            part["weight"] = given[place]
        parts.append(part)
    used = [weights] if weights is not None else []
    mover.write("reward.name", parts[0]["name"], note="from the trainer's rewards")
    if "weight" in parts[0]:
        mover.write("reward.weight", parts[0]["weight"], *used)
    if parts[1:]:
        mover.write("reward.more", parts[1:], *used)
    if any(name is None or ":" in name for name in sources):
        mover.todo(
            "A reward function is called as function(rows), each row with its prompt, response and the data's columns, "
            "and returns a number for each (docs/ppo.md): write yours in that form and name it module:function."
        )
