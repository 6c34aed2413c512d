"""Settings of other trainers in a recipe are answered with the recipe's own field, or with why there is none."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import cache
from pathlib import Path

import pytest
import transformers
from peft import LoraConfig

from prefine.cli.app import main
from prefine.errors import RecipeError
from prefine.recipe.foreign_names import FIELDS, REASONS, meaning
from prefine.recipe.loading import load_recipe
from prefine.recipe.problems import field_paths
from prefine.recipe.registry import RECIPES
from prefine.recipe.rl import PpoRecipe

PATHS = {stage: set(field_paths(model)) for stage, model in RECIPES.items()}
ALL = set().union(*PATHS.values())
OWN = {path.rpartition(".")[2] for path in ALL}

# From the documentation of LLaMA-Factory and axolotl: what their example configurations set.
LLAMA_FACTORY = """model_name_or_path adapter_name_or_path trust_remote_code stage do_train finetuning_type lora_rank
    lora_alpha lora_dropout lora_target pref_beta pref_loss pref_ftx simpo_gamma dpo_label_smoothing reward_model
    ppo_epochs ppo_target ppo_score_norm ppo_whiten_rewards kto_chosen_weight kto_rejected_weight ref_model
    quantization_bit quantization_method double_quantization flash_attn use_unsloth enable_liger_kernel rope_scaling
    upcast_layernorm dataset eval_dataset dataset_dir template cutoff_len max_samples val_size packing neat_packing
    mask_history train_on_prompt streaming overwrite_cache preprocessing_num_workers tool_format output_dir
    logging_steps save_steps plot_loss overwrite_output_dir save_only_model report_to per_device_train_batch_size
    gradient_accumulation_steps learning_rate num_train_epochs lr_scheduler_type warmup_ratio bf16 fp16 pure_bf16
    ddp_timeout resume_from_checkpoint per_device_eval_batch_size eval_strategy eval_steps use_galore use_badam
    use_apollo use_swanlab swanlab_project freeze_trainable_layers use_dora use_rslora pissa_init additional_target
    loraplus_lr_ratio neftune_noise_alpha deepspeed fsdp image_max_pixels"""
AXOLOTL = """base_model adapter lora_model_dir lora_r lora_alpha lora_dropout lora_target_modules
    lora_target_linear lora_modules_to_save lora_fan_in_fan_out peft_use_dora peft_use_rslora load_in_8bit load_in_4bit
    gptq sequence_len sample_packing eval_sample_packing pad_to_sequence_len datasets test_datasets
    dataset_prepared_path val_set_size shuffle_merged_datasets dataset_exact_deduplication chat_template
    chat_template_jinja default_system_message train_on_inputs group_by_length micro_batch_size
    gradient_accumulation_steps eval_batch_size num_epochs max_steps optimizer lr_scheduler cosine_min_lr_ratio
    learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm warmup_steps warmup_ratio bf16 fp16
    tf32 float16 bfloat16 gradient_checkpointing gradient_checkpointing_kwargs early_stopping_patience
    resume_from_checkpoint auto_resume_from_checkpoints logging_steps eval_steps evals_per_epoch save_steps
    saves_per_epoch save_total_limit save_strategy eval_strategy load_best_model_at_end metric_for_best_model
    use_tensorboard wandb_project wandb_entity wandb_name mlflow_tracking_uri output_dir hub_model_id hub_strategy
    push_dataset_to_hub special_tokens tokens eot_tokens tokenizer_type flash_attention sdp_attention
    xformers_attention flex_attention eager_attention torch_compile deepspeed fsdp fsdp_config ddp_timeout rl rl_beta
    rpo_alpha orpo_alpha simpo_gamma kto_desirable_weight kto_undesirable_weight reward_model process_reward_model
    unfrozen_parameters neftune_noise_alpha plugins liger_rope unsloth_lora_mlp lora_mlp_kernel relora
    dataloader_num_workers seed revision_of_model trust_remote_code dataset_processes vllm num_labels"""


@cache
def of_libraries() -> tuple[str, ...]:
    """Every field of TRL's and transformers' configurations, and of peft's."""
    trl = pytest.importorskip("trl")
    configs = ["DPOConfig", "SFTConfig", "RewardConfig", "GRPOConfig", "RLOOConfig", "KTOConfig", "ModelConfig"]
    classes = [getattr(trl, name) for name in configs]
    fields = [dataclasses.fields(each) for each in (*classes, transformers.TrainingArguments, LoraConfig)]
    return tuple(sorted({field.name for each in fields for field in each}))


def test_every_setting_of_trl_transformers_and_peft_has_an_answer() -> None:
    assert [name for name in of_libraries() if name not in OWN and meaning(name, ALL) is None] == []


def test_settings_of_llama_factory_and_axolotl_have_an_answer() -> None:
    names = sorted({*LLAMA_FACTORY.split(), *AXOLOTL.split()})
    assert [name for name in names if name not in OWN and meaning(name, ALL) is None] == []


def test_every_field_that_an_answer_names_is_one_of_a_recipe() -> None:
    named = {field for meanings in FIELDS.values() for meant in meanings for field in meant.fields}
    notes = {meant.note for meanings in FIELDS.values() for meant in meanings} | set(REASONS.values())
    in_words = {word for note in notes for word in re.findall(r"\b[a-z_]+\.[a-z_]+\b", note) if word != "data.md"}
    assert named | in_words <= ALL
    assert len(named) > 50


def test_no_name_has_two_answers() -> None:
    assert not FIELDS.keys() & REASONS.keys()
    assert not OWN & REASONS.keys()


@pytest.mark.parametrize("stage", RECIPES)
def test_an_answer_names_a_field_that_this_recipe_has_or_the_verb_whose_recipes_have_it(stage: str) -> None:
    for name in FIELDS:
        said = meaning(name, PATHS[stage]) or ""
        found = re.match(r"In prefine it is (\S+?)(?: or (\S+?))?( of a prefine (\w+) recipe)?\.(?: |$)", said)
        assert found is not None, said
        assert {found[1], found[2] or found[1]} <= PATHS[found[4] or stage]
        assert found[4] != stage


@pytest.mark.parametrize(
    ("stage", "written", "remedy"),
    [
        ("dpo", "per_device_train_batch_size", "In prefine it is training.batch_size."),
        ("dpo", "training.per_device_train_batch_size", "In prefine it is training.batch_size."),
        ("dpo", "gradient-accumulation-steps", "In prefine it is training.batch_size."),
        ("dpo", "num_train_epochs", "In prefine it is training.epochs."),
        ("dpo", "bf16", "In prefine it is model.dtype. Write bfloat16,"),
        ("dpo", "save_total_limit", "In prefine it is training.keep_checkpoints."),
        ("dpo", "eval_steps", "In prefine it is training.evaluate_every_steps."),
        ("dpo", "report_to", "In prefine it is training.trackers."),
        ("dpo", "learning_rate", "Did you mean training.learning_rate?"),
        ("dpo", "lora.lora_r", "In prefine it is lora.r."),
        ("dpo", "cutoff_len", "In prefine it is data.max_length_tokens."),
        ("dpo", "finetuning_type", "In prefine it is lora. A section"),
        ("dpo", "sample_packing", "There is no such setting: rows are always packed"),
        ("dpo", "load_in_4bit", "In prefine it is model.quantization. Write nf4"),
        ("dpo", "push_to_hub", "There is no such setting: prefine uploads nothing."),
        ("dpo", "num_generations", "In prefine it is rollout.samples_per_prompt of a prefine ppo recipe."),
        ("ppo", "num_generations", "In prefine it is rollout.samples_per_prompt."),
        ("ppo", "beta", "In prefine it is kl.coefficient."),
        ("dpo", "beta", "Did you mean dpo.beta?"),
        ("sft", "beta", "In prefine it is dpo.beta of a prefine dpo recipe."),
        ("ppo", "kl_coef", "In prefine it is kl.coefficient."),
    ],
)
def test_a_recipe_and_an_override_get_the_same_answer(tmp_path: Path, stage: str, written: str, remedy: str) -> None:
    keys = written.split(".")
    value: object = 1
    for key in reversed(keys):
        value = {key: value}
    (tmp_path / "recipe.yaml").write_text(json.dumps(value))
    for path, overrides in ((tmp_path / "recipe.yaml", []), (None, [f"{written}=1"])):
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, overrides, RECIPES[stage])
        (line,) = caught.value.lines
        assert f"{written} is not a field. {remedy}" in line


def test_a_configuration_brought_along_is_answered_line_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dpo.yaml").write_text("output_dir: out\nnum_train_epochs: 3\nbf16: true\n")
    with pytest.raises(SystemExit) as left:
        main(["dpo", "dpo.yaml", "--set", "training.warmup_ratio=0.1"])
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: 4 settings are not valid:",
        "  --set training.warmup_ratio=0.1: training.warmup_ratio is not a field. In prefine it is "
        "training.warmup_fraction. It is the share of all steps, from 0 to 1.",
        "  dpo.yaml: output_dir is not a field. In prefine it is run.",
        "  dpo.yaml: num_train_epochs is not a field. In prefine it is training.epochs.",
        "  dpo.yaml: bf16 is not a field. In prefine it is model.dtype. Write bfloat16, float32 or auto; there is no "
        "float16.",
    ]


def test_settings_without_effect_are_told_in_a_line_each() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, ["advantage=grpo", "ppo.gamma=0.9", "ppo.lam=0.5"], PpoRecipe)
    first, gamma, lam = caught.value.lines
    assert first == "2 settings are not valid:"
    assert "ppo.gamma 0.9 has no effect" in gamma
    assert "ppo.lam 0.5 has no effect" in lam


@pytest.mark.parametrize(
    ("stage", "field", "verb"),
    [("sft", "dpo", "prefine dpo"), ("dpo", "reward", "prefine reward or prefine ppo"), ("sft", "kl", "prefine ppo")],
)
def test_a_recipe_of_another_stage_is_answered_with_its_command(
    stage: str, field: str, verb: str, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(f"{field}: {{}}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "a.yaml", [], RECIPES[stage])
    assert str(caught.value) == (
        f"{tmp_path / 'a.yaml'}: {field} is not a field. It is a section of recipes for {verb}: use that command, or "
        "remove the section."
    )
