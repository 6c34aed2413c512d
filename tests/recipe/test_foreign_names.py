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

# From the sources of LLaMA-Factory (hparams/*_args.py) and axolotl (utils/schemas/*.py) and their examples.
LLAMA_FACTORY = """
    adapter_folder adapter_name_or_path add_special_tokens add_tokens additional_target apollo_layerwise apollo_proj
    apollo_proj_type apollo_rank apollo_scale apollo_scale_front apollo_scale_type apollo_target
    apollo_update_interval audio_sampling_rate badam_mask_mode badam_mode badam_start_block badam_switch_interval
    badam_switch_mode badam_update_ratio badam_verbose bf16 buffer_size cache_dir chunk_size compute_accuracy
    cpu_infer create_new_adapter crop_to_patches cutoff_len dataset dataset_dir ddp_timeout deepspeed
    disable_gradient_checkpointing disable_shuffling do_sample do_train double_quantization dpo_label_smoothing
    early_stopping_steps enable_liger_kernel eval_dataset eval_num_beams eval_on_each_dataset eval_steps
    eval_strategy export_device export_dir export_hub_model_id export_legacy_format export_quantization_bit
    export_quantization_dataset export_quantization_maxlen export_quantization_nsamples export_size finetuning_type
    flash_attn fp16 fp8 fp8_backend fp8_enable_fsdp_float8_all_gather freeze_extra_modules freeze_language_model
    freeze_multi_modal_projector freeze_trainable_layers freeze_trainable_modules freeze_vision_tower fsdp
    galore_layerwise galore_proj_type galore_rank galore_scale galore_target galore_update_interval
    gradient_accumulation_steps hf_hub_token ignore_pad_token_for_loss image_do_pan_and_scan image_max_pixels
    image_min_pixels include_effective_tokens_per_second infer_backend infer_dtype init_special_tokens
    interleave_probs kt_force_think kt_maxlen kt_mode kt_optimize_rule kt_use_cuda_graph kto_chosen_weight
    kto_rejected_weight ld_alpha learning_rate length_penalty logging_steps lora_alpha lora_dropout lora_rank
    lora_target loraplus_lr_embedding loraplus_lr_ratio low_cpu_mem_usage lr_scheduler_type mask_history max_length
    max_new_tokens max_samples media_dir mix_strategy mixture_of_depths mode model_name_or_path model_revision
    module_dropout moe_aux_loss_coef ms_hub_token neat_packing neftune_noise_alpha new_special_tokens_config
    num_beams num_train_epochs offload_folder oft_block_size oft_rank oft_target om_hub_token output_dir
    overwrite_cache overwrite_output_dir packing per_device_eval_batch_size per_device_train_batch_size
    pissa_convert pissa_init pissa_iter placement_strategy plot_loss ppo_buffer_size ppo_epochs ppo_score_norm
    ppo_target ppo_whiten_rewards pref_bco_weight pref_beta pref_ftx pref_loss preprocessing_batch_size
    preprocessing_num_workers print_param_status pure_bf16 quantization_bit quantization_device_map
    quantization_method quantization_type ray_init_kwargs ray_num_workers ray_run_name ray_storage_filesystem
    ray_storage_path ref_model ref_model_adapters ref_model_quantization_bit repetition_penalty report_to
    resize_vocab resources_per_worker resume_from_checkpoint reward_model reward_model_adapters
    reward_model_quantization_bit reward_model_type rope_scaling save_only_model save_steps sglang_config
    sglang_lora_backend sglang_maxlen sglang_mem_fraction sglang_tp_size shift_attn simpo_gamma skip_special_tokens
    split_special_tokens stage streaming swanlab_api_key swanlab_lark_secret swanlab_lark_webhook_url swanlab_logdir
    swanlab_mode swanlab_project swanlab_run_name swanlab_workspace temperature template tokenized_path tool_format
    top_k top_p train_from_scratch train_on_prompt trust_remote_code upcast_layernorm upcast_lmhead_output
    use_adam_mini use_apollo use_audio_in_video use_badam use_dft_loss use_dora use_fast_tokenizer use_galore use_kt
    use_kv_cache use_llama_pro use_mca use_muon use_reentrant_gc use_rslora use_swanlab use_unsloth use_unsloth_gc
    use_v1_kernels val_size video_fps video_max_pixels video_maxlen video_min_pixels vllm_config vllm_enforce_eager
    vllm_gpu_util vllm_max_lora_rank vllm_maxlen warmup_ratio
"""
AXOLOTL = """
    accelerator_config adam_beta1 adam_beta2 adam_beta3 adam_epsilon adam_epsilon2 adapter added_tokens_overrides
    attn_implementation auto_find_batch_size auto_resume_from_checkpoints axolotl_config_path base_model
    base_model_config batch_flattening batch_size bench_dataset bench_split bf16 bfloat16 bnb_config_kwargs
    chat_template chat_template_jinja cls_model_config cosine_constant_lr_ratio cosine_min_lr_ratio cpo_alpha
    curriculum_sampling dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor
    dataset_exact_deduplication dataset_keep_in_memory dataset_prepared_path dataset_processes dataset_shard_idx
    dataset_shard_num datasets ddp ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_timeout
    deepspeed default_system_message device device_map do_bench_eval do_causal_lm_eval dpo_beta
    dpo_generate_during_eval dpo_norm_loss dpo_use_logits_to_keep dpo_use_weighting eager_attention
    early_stopping_patience embedding_lr embedding_lr_scale embeddings_skip_upcast eot_tokens eval_batch_size
    eval_causal_lm_metrics eval_max_new_tokens eval_sample_packing eval_steps eval_strategy eval_table_size
    evals_per_epoch evaluation_strategy experimental_skip_move_to_device fix_untrained_tokens flash_attention
    flash_attn_cross_entropy flash_attn_fuse_mlp flash_attn_fuse_qkv flash_attn_rms_norm flash_optimum
    flex_attention flex_attn_compile_kwargs float16 float32 fp16 fp8 fsdp fsdp_config fsdp_final_state_dict_type
    gc_steps gptq gpu_memory_limit gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs
    gradio_title greater_is_better group_by_length heads_k_stride hf_use_auth_token hub_model_id hub_revision
    hub_strategy include_tokens_per_second is_falcon_derived_model is_llama_derived_model is_mistral_derived_model
    is_preprocess is_qwen_derived_model kto_desirable_weight kto_undesirable_weight learning_rate liger_rope
    lisa_n_layers llama4_linearized_experts load_best_model_at_end load_in_4bit load_in_8bit local_rank
    logging_steps lora_alpha lora_dropout lora_fan_in_fan_out lora_mlp_kernel lora_model_dir lora_modules_to_save
    lora_o_kernel lora_on_cpu lora_qkv_kernel lora_r lora_target_linear lora_target_modules lora_target_parameters
    loraplus_lr_embedding loraplus_lr_ratio loss_watchdog_patience loss_watchdog_threshold low_cpu_mem_usage
    lr_div_factor lr_groups lr_quadratic_warmup lr_scheduler lr_scheduler_kwargs max_grad_norm max_memory
    max_packed_sequence_len max_prompt_len max_steps mean_resizing_embeddings merge_lora merge_method
    metric_for_best_model micro_batch_size min_sample_len mlflow_tracking_uri model_config model_kwargs
    model_quantization_config model_quantization_config_kwargs model_revision model_type multipack_real_batches
    neftune_noise_alpha noisy_embedding_alpha num_epochs num_labels optim_args optim_target_modules optimizer
    orpo_alpha output_dir overrides_of_model_config overrides_of_model_kwargs pad_to_sequence_len peft
    peft_autocast_adapter_dtype peft_ensure_weight_tying peft_init_lora_weights peft_layer_replication
    peft_layers_pattern peft_layers_to_transform peft_trainable_token_indices peft_use_dora peft_use_rslora plugins
    pose_max_context_len pose_num_chunks pose_split_on_token_ids preprocess_iterable pretrain_multipack_attn
    pretrain_multipack_buffer_size pretraining_dataset pretraining_sample_concatenation process_reward_model
    processor_type profiler_steps push_dataset_to_hub qat qlora_sharded_model_loading quantization ray_num_workers
    relora relora_cpu_offload relora_prune_method relora_prune_ratio remove_unused_columns
    resize_token_embeddings_to_32x resume_from_checkpoint revision_of_model reward_model ring_attn_func rl rl_beta
    rope_scaling rpo_alpha s2_attention sample_packing sample_packing_bin_size sample_packing_eff_est
    sample_packing_group_size sample_packing_sequentially save_first_step save_only_model save_safetensors
    save_steps save_strategy save_total_limit saves_per_epoch sdp_attention seed sequence_len
    sequence_parallel_degree shrink_embeddings shuffle_merged_datasets simpo_gamma skip_prepare_dataset
    special_tokens strict test_datasets tf32 tokenizer_config tokenizer_legacy tokenizer_save_jinja_files
    tokenizer_type tokenizer_use_fast tokenizer_use_mistral_common tokens torch_compile torch_compile_backend
    torch_compile_mode torchdistx_path total_num_tokens total_supervised_tokens train_on_inputs trust_remote_code
    type_of_model unfrozen_parameters unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_lora_o unsloth_lora_qkv
    unsloth_rms_norm unsloth_rope use_comet use_kernels use_pose use_ray use_tensorboard use_wandb val_set_size vllm
    wandb_entity wandb_log_model wandb_name wandb_project wandb_watch warmup_ratio warmup_steps weight_decay
    world_size xformers_attention
"""


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
        ("dpo", "loss_weights", "In prefine it is dpo.loss. Write several losses with their weights"),
        ("dpo", "beta", "Did you mean dpo.beta?"),
        ("sft", "beta", "In prefine it is dpo.beta of a prefine dpo recipe."),
        ("kto", "beta", "Did you mean kto.beta?"),
        ("kto", "desirable_weight", "Did you mean kto.desirable_weight?"),
        ("dpo", "kto_rejected_weight", "In prefine it is kto.undesirable_weight of a prefine kto recipe."),
        ("orpo", "orpo_alpha", "In prefine it is orpo.beta."),
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
