"""Rules for settings whose value has another form or unit in prefine: transformers' TrainingArguments and what all
trainers share. LLaMA-Factory uses the same names; axolotl's are renamed to them first (see axolotl.py).
"""

from __future__ import annotations

from typing import Any

from prefine.foreign_recipes.mover import Mover
from prefine.foreign_recipes.settings import Setting

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
_TRACKERS = ("wandb", "tensorboard", "trackio", "mlflow")
_ATTENTION = ("auto", "flash_attention_2", "sdpa", "eager")
_NO_FLOAT16 = "prefine does not train in float16, whose small gradients become zero: model.dtype auto chooses"
_ADAMW = ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf")
_TYPES = {
    **dict.fromkeys(("bf16", "pure_bf16"), "bfloat16"),
    **dict.fromkeys(("fp16", "half"), "float16"),
    **dict.fromkeys(("fp32", "float"), "float32"),
}
OWN_TEMPLATE = "the tokenizer's own chat template is used; model.chat_template names a Jinja file instead"
_PROCESSES = "for one process; with several, multiply by their number"


def common_rules(mover: Mover) -> None:
    """All rules of this module, in the order in which they depend on each other."""
    for rule in (batch_size, learning_rate_schedule, adam, evaluation, saving, logging, number_type, device, seeds):
        rule(mover)
    for rule in (lengths, attention, checkpointing, trackers, template):
        rule(mover)


def batch_size(mover: Mover) -> None:
    """Rows of a device times accumulation steps are the records of an optimiser step."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    found = [setting for name in names if (setting := mover.take(name)) is not None]
    if not found:
        return
    size = 1
    for setting in found:
        if not is_count(setting.value):
            mover.leave(setting, "it is not a whole number above 0; set training.batch_size")
            return
        size *= setting.value
    mover.write("training.batch_size", size, *found, note=_PROCESSES)


def learning_rate_schedule(mover: Mover) -> None:
    """The schedule's name, and warm-up as a share of all steps."""
    schedule = mover.take("lr_scheduler_type")
    constant = False
    if schedule is not None:
        name = str(schedule.value).lower()
        constant = name == "constant"
        if name in _SCHEDULES:
            mover.write("training.schedule", _SCHEDULES[name], schedule)
        else:
            mover.leave(schedule, "training.schedule has cosine, linear and constant; its default, cosine, holds")
    ratio, steps = mover.take("warmup_ratio"), mover.take("warmup_steps")
    for setting in (ratio, steps):
        if setting is not None and constant:
            if setting.value:
                mover.leave(setting, "the schedule constant has no warm-up; constant_with_warmup has")
            else:
                mover.write("training.warmup_fraction", 0.0, setting)
            continue
        if setting is not None and setting.value is not None:
            _warmup(mover, setting)


def _warmup(mover: Mover, setting: Setting) -> None:
    value, steps = setting.value, mover.value("max_steps")
    if isinstance(value, bool) or not isinstance(value, int | float):
        mover.leave(setting, "it is not a number; set training.warmup_fraction")
    elif value < 1:  # a share, also under the name warmup_steps since transformers 5
        if not value and "training.warmup_fraction" in mover.moved.fields:
            if not setting.default:
                mover.leave(setting, "warmup_ratio decides")
        else:
            mover.write("training.warmup_fraction", float(value), setting)
    elif is_count(steps) and steps > value:
        mover.write("training.warmup_fraction", round(value / steps, 6), setting, note=f"of max_steps: {steps}")
    else:
        mover.leave(
            setting, f"training.warmup_fraction is a share of all steps: set it to {value} divided by their number"
        )


def adam(mover: Mover) -> None:
    """Both betas are one field."""
    betas = [0.9, 0.999]
    found = []
    for place, name in enumerate(("adam_beta1", "adam_beta2")):
        if (setting := mover.take(name)) is not None and setting.value is not None:
            betas[place] = setting.value
            found.append(setting)
    if found:
        mover.write("training.adam_betas", betas, *found)
    optimiser = mover.take("optim")
    if optimiser is not None:
        is_adamw = str(optimiser.value) in _ADAMW
        mover.leave(optimiser, f"{'as here, ' if is_adamw else ''}the optimiser is AdamW, with states in float32")
    steps = mover.take("max_steps")
    if steps is not None:
        if is_count(steps.value):
            mover.write("training.max_steps", steps.value, steps)
        else:
            mover.leave(steps, "it is not above 0, so that training.epochs decides")


def evaluation(mover: Mover) -> None:
    """A number of steps, or null: only before and after."""
    strategy, steps = mover.take("eval_strategy"), mover.take("eval_steps")
    _every(mover, "training.evaluate_every_steps", strategy, steps, "only before and after training")


def saving(mover: Mover) -> None:
    """A number of steps, or null: only at the end."""
    strategy, steps = mover.take("save_strategy"), mover.take("save_steps")
    _every(mover, "training.save_every_steps", strategy, steps, "only at the end")


def _every(mover: Mover, path: str, strategy: Setting | None, steps: Setting | None, null: str) -> None:
    """Write how often something is done; a strategy other than "steps" makes the number of steps meaningless."""
    kind = str(strategy.value).lower() if strategy is not None else "steps"
    if strategy is not None and kind in ("no", "none", "false"):
        mover.write(path, None, strategy, note=null)
    elif strategy is not None and kind == "best":
        mover.write("training.keep_best", True, strategy)
    elif strategy is not None and kind != "steps":
        mover.leave(strategy, f"{path} counts steps: set it to the steps of {_a(kind)}")
    elif strategy is not None and steps is None:
        mover.leave(strategy, f"without a number of steps, prefine's default of {path} holds")
    if steps is None:
        return
    whole, total = steps.value, mover.moved.fields.get("training.max_steps")
    if isinstance(whole, float) and 0 < whole < 1 and total is not None:  # a share of all steps
        whole = max(1, round(whole * total.value))
    if strategy is not None and kind != "steps":
        mover.leave(steps, f"{strategy.name} is {kind}, so that it has no effect there either")
    elif is_count(whole):
        mover.write(path, whole, steps, *([strategy] if strategy is not None else []))
    else:
        mover.leave(steps, f"{path} is a whole number of steps, or null: {null}")


def logging(mover: Mover) -> None:
    """A number of steps."""
    strategy, steps = mover.take("logging_strategy"), mover.take("logging_steps")
    if strategy is not None and str(strategy.value).lower() != "steps":
        mover.leave(strategy, "training.log_every_steps counts steps; every step is logged by default")
        if steps is not None:
            mover.leave(steps, f"logging_strategy is {strategy.value}, so that it has no effect there either")
        return
    if strategy is not None and steps is None:
        mover.leave(strategy, "every step is logged by default")
    if steps is not None:
        if is_count(steps.value):
            mover.write("training.log_every_steps", steps.value, steps, *([strategy] if strategy else []))
        else:
            mover.leave(steps, "training.log_every_steps is a whole number of steps")
    best = mover.take("load_best_model_at_end")
    if best is not None:
        mover.write("training.keep_best", bool(best.value), best)
    metric = mover.take("metric_for_best_model")
    if metric is not None:
        as_here = str(metric.value) in ("loss", "eval_loss", "None")
        mover.leave(metric, f"{'as here, ' if as_here else ''}the lowest held-out loss decides")


def number_type(mover: Mover) -> None:
    """One of several spellings of a number type; the first that is on decides."""
    types: list[tuple[str, Setting]] = []
    for name in ("torch_dtype", "dtype", "bf16", "bfloat16", "pure_bf16", "fp16", "float16", "float32"):
        setting = mover.take(name)
        if setting is None:
            continue
        value = str(setting.value).lower().removeprefix("torch.")
        said = value if name.endswith("dtype") else name
        meant = _TYPES.get(said, said)
        if name.endswith("dtype") or value == "true":
            types.append((meant, setting))
        elif value == "auto":
            types.append(("auto", setting))
        else:
            mover.leave(setting, "it is off: model.dtype says which number type is used")
    types.sort(key=lambda each: each[1].default)
    for meant, setting in types:
        if meant in ("bfloat16", "float32", "auto") and "model.dtype" not in mover.moved.fields:
            mover.write("model.dtype", meant, setting)
        elif meant == "float16":
            mover.leave(setting, _NO_FLOAT16)
        elif "model.dtype" in mover.moved.fields:
            mover.leave(setting, f"another setting gives model.dtype {mover.moved.fields['model.dtype'].value}")
        else:
            mover.leave(setting, "model.dtype has auto, float32 and bfloat16")


def device(mover: Mover) -> None:
    """A processor where a graphics card would be used, and the other way round."""
    for name in ("use_cpu", "no_cuda"):
        if (setting := mover.take(name)) is not None:
            if setting.value is True:
                mover.write("model.device", "cpu", setting)
            else:
                mover.leave(setting, "model.device auto takes a graphics card if there is one")
    if (setting := mover.take("device_map")) is not None:
        mover.leave(setting, "each process holds the whole model on one device: model.device")


def seeds(mover: Mover) -> None:
    """The seed of training; prefine has another one for held-out rows."""
    if (setting := mover.take("seed")) is not None and setting.value is not None:
        mover.write("training.seed", setting.value, setting)


def lengths(mover: Mover) -> None:
    """The longest record in tokens; prompt and answer are not bounded by themselves."""
    for name in ("max_length", "max_seq_length", "cutoff_len", "sequence_len"):
        setting = mover.take(name)
        if setting is None:
            continue
        if setting.value is None:
            mover.leave(setting, "every record is bounded: data.max_length_tokens, 1024 by default")
        else:
            mover.write("data.max_length_tokens", setting.value, setting)


def attention(mover: Mover) -> None:
    """Names of attention kernels, under transformers' name or as LLaMA-Factory's flash_attn."""
    names = {"fa2": "flash_attention_2", "disabled": "eager", "flash": "flash_attention_2"}
    for name in ("attn_implementation", "flash_attn"):
        setting = mover.take(name)
        if setting is None or setting.value is None:
            continue
        value = names.get(str(setting.value), str(setting.value))
        if value in _ATTENTION:
            mover.write("model.attn_implementation", value, setting)
        else:
            mover.leave(setting, "model.attn_implementation has auto, flash_attention_2, sdpa and eager; auto holds")


def checkpointing(mover: Mover) -> None:
    """On or off; where activations are kept does not change the numbers."""
    setting = mover.take("gradient_checkpointing")
    if setting is not None and setting.value is not None:
        mover.write("model.gradient_checkpointing", bool(setting.value), setting)
    setting = mover.take("disable_gradient_checkpointing")
    if setting is not None:
        mover.write("model.gradient_checkpointing", not setting.value, setting)


def trackers(mover: Mover) -> None:
    """Trackers that prefine writes to."""
    setting = mover.take("report_to")
    if setting is None:
        return
    value = setting.value
    named = [str(each) for each in (value if isinstance(value, list) else [value])]
    known = [name for name in named if name in _TRACKERS]
    others = [name for name in named if name not in (*_TRACKERS, "none", "None")]
    if others:
        mover.leave(setting, f"training.trackers has {', '.join(_TRACKERS)}, not {', '.join(others)}")
    if known or not others:
        mover.write("training.trackers", known, setting)


def template(mover: Mover) -> None:
    """A template's file; a template's name means nothing to a tokenizer."""
    setting = mover.take("chat_template_path")
    if setting is not None and setting.value is not None:
        mover.write("model.chat_template", setting.value, setting)


def quantisation(mover: Mover) -> None:
    """4 bits are nf4, 8 bits int8; the rest of bitsandbytes' settings is fixed."""
    four, eight = mover.take("load_in_4bit"), mover.take("load_in_8bit")
    kind = mover.take("bnb_4bit_quant_type")
    if kind is not None:
        as_here = kind.value == "nf4"
        mover.leave(kind, f"{'as here, ' if as_here else ''}4-bit weights are nf4")
    for setting, name in ((four, "nf4"), (eight, "int8")):
        if setting is None:
            continue
        if setting.value is True:
            mover.write("model.quantization", name, setting)
        else:
            mover.leave(setting, "it is off: model.quantization is none by default")


def lora_targets(mover: Mover, name: str) -> None:
    """Names of modules: a list, a text with commas, or all linear ones."""
    setting = mover.take(name)
    if setting is None or setting.value is None:
        return
    value = setting.value
    if isinstance(value, str):
        every = value.strip().lower().replace("_", "-") in ("all", "all-linear")
        value = "all-linear" if every else [part.strip() for part in value.split(",")]
    mover.write("lora.targets", value, setting)


def adapter_start(mover: Mover, name: str, passes: Setting | None = None) -> None:
    """How an adapter starts: peft's init_lora_weights, or LLaMA-Factory's pissa_init with its number of passes."""
    setting = mover.take(name)
    if setting is None or setting.value is None:
        return
    value = setting.value
    if value is False:
        mover.leave(setting, "an adapter starts without an effect")
    elif value is True and passes is None:
        mover.write("lora.init", "default", setting)
    elif value is True:
        several = isinstance(passes.value, int) and passes.value > 0 if passes is not None else False
        used = [setting] if passes is None else [setting, passes]
        start = f"pissa_niter_{passes.value}" if passes is not None and several else "pissa"
        mover.write("lora.init", start, *used)
    else:
        mover.write("lora.init", value, setting)


def full_training(mover: Mover, note: str, *settings: Setting) -> None:
    """All weights are trained; the recipe's `lora` is null."""
    for path in [path for path in mover.moved.fields if path.startswith("lora.")]:
        written = mover.moved.fields.pop(path)
        mover.leave(Setting(", ".join(written.names) or path, written.value), "no adapter is trained")
    mover.write("lora", None, *settings, note=note)


def held_out(mover: Mover, name: str | None = None) -> None:
    """The share of held-out prompts, always written: prefine holds out a tenth by default, the others nothing.

    Args:
        mover: with its data and training settings written.
        name: of the setting that says how much of the data is held out, if the trainer has one.
    """
    path = "data.heldout_fraction"
    setting = mover.take(name) if name is not None else None
    value = None if setting is None else setting.value
    if "data.heldout" in mover.moved.fields:
        if setting is not None and value is not None:
            mover.leave(setting, "data.heldout names the rows to evaluate on")
    elif setting is not None and is_count(value):
        mover.write(path, _HELD_OUT, setting, note=f"to do: {value} divided by the number of prompts")
        mover.todo(f"Set {path} to {value} divided by the number of prompts: it is a share, and {name} counts rows.")
    elif setting is not None and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        mover.write(path, float(value), setting)
    else:
        if setting is not None and value is not None:
            mover.leave(setting, f"{path} is a share of the prompts, from 0 to 1")
        fields = mover.moved.fields
        needed = [each for each in _NEED_HELD_OUT if each in fields and fields[each].value]
        if needed:
            mover.write(path, _HELD_OUT, note=f"the file names no rows to evaluate on, and {needed[0]} needs some")
        else:
            mover.write(path, 0.0, note="the file holds nothing out: all rows are trained on, as there")


_HELD_OUT = 0.1
_NEED_HELD_OUT = ("training.keep_best", "training.early_stopping_patience")


def same_as_here(mover: Mover, settings: dict[str, tuple[Any, str]]) -> None:
    """Leave settings whose value is what prefine does, and say so."""
    for name, (value, reason) in settings.items():
        if mover.value(name, otherwise=_ABSENT) == value and (setting := mover.take(name)) is not None:
            mover.leave(setting, f"as here, {reason}")


_ABSENT = object()


def is_count(value: Any) -> bool:
    """Whether a value is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _a(kind: str) -> str:
    return f"an {kind}" if kind[:1] in "aeiou" else f"a {kind}"
