"""Names of other trainers' settings, and where a recipe has them: for users who bring a configuration.

The names are those of TRL and transformers' TrainingArguments, peft's LoraConfig, LLaMA-Factory and axolotl. Each has a
field of a recipe or the reason why there is none.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import NamedTuple


class Meant(NamedTuple):
    """The place of a setting in a recipe.

    Attributes:
        fields: dotted names; which of them a recipe has depends on its stage.
        note: how the field differs, as a sentence; may be empty.
    """

    fields: tuple[str, ...]
    note: str = ""


# Field(s) -> the names that mean the same there. Values may need another unit only where _NOTED says so.
_NAMES: dict[str, str] = {
    "run": "output_dir run_name",
    "model.name": (
        "model_name_or_path base_model model_path pretrained_model sft_model_path base_model_name_or_path "
        "policy_model_path model_id"
    ),
    "model.revision": "model_revision revision_of_model",
    "model.chat_template": "template chat_template_path chat_template_jinja",
    "model.template_kwargs": "chat_template_kwargs enable_thinking",
    "model.gradient_checkpointing": "activation_checkpointing use_gradient_checkpointing",
    "lora.r": "lora_r lora_rank rank",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.rslora": "use_rslora peft_use_rslora",
    "lora.dora": "use_dora peft_use_dora",
    "lora.targets": "lora_target lora_target_modules target_modules",
    "data.train": "dataset datasets dataset_name dataset_path train_file train_dataset pretraining_dataset",
    "data.heldout": "eval_dataset test_datasets validation_file",
    "data.heldout_fraction": "val_size val_set_size test_size test_split_size",
    "data.split": "dataset_train_split",
    "data.heldout_split": "dataset_test_split",
    "data.seed": "data_seed",
    "data.limit": "max_samples max_train_samples",
    "data.deduplicate": "dataset_exact_deduplication",
    "training.epochs": "num_train_epochs num_epochs n_epochs",
    "training.learning_rate": "lr",
    "training.schedule": "lr_scheduler_type lr_scheduler",
    "training.max_grad_norm": "gradient_clipping clip_grad",
    "training.evaluate_every_steps": "eval_steps",
    "training.save_every_steps": "save_steps",
    "training.log_every_steps": "logging_steps",
    "training.keep_checkpoints": "save_total_limit",
    "training.keep_best": "load_best_model_at_end",
    "training.tracker_project": (
        "project wandb_project swanlab_project comet_project_name mlflow_experiment_name trackio_project"
    ),
    "dpo.beta|kto.beta|orpo.beta|kl.coefficient": "beta rl_beta",
    "dpo.beta|kto.beta|orpo.beta": "pref_beta",
    "dpo.beta": "dpo_beta",
    "dpo.loss|kto.loss|reward.loss": "loss_type",
    "orpo.beta": "orpo_alpha",
    "kto.desirable_weight": "desirable_weight kto_chosen_weight kto_desirable_weight",
    "kto.undesirable_weight": "undesirable_weight kto_rejected_weight kto_undesirable_weight",
    "dpo.loss": "pref_loss",
    "dpo.label_smoothing|reward.label_smoothing": "label_smoothing_factor dpo_label_smoothing",
    "dpo.nll_weight": "pref_ftx rpo_alpha cpo_alpha sft_weight",
    "dpo.simpo_margin": "simpo_gamma",
    "reward.centring_weight": "center_rewards_coefficient",
    "reward.name": "reward_model reward_model_path reward_model_name_or_path",
    "reward.clip": "reward_clip_range",
    "reward.whiten": "whiten_rewards ppo_whiten_rewards",
    "reward.scale": "ppo_score_norm use_score_scaling use_score_norm",
    "rollout.max_new_tokens": "max_completion_length response_length",
    "rollout.samples_per_prompt": "num_generations rloo_k num_return_sequences",
    "training.sample_every_steps": "log_completions num_sample_generations",
    "kl.coefficient": "kl_coef init_kl_coef kl_penalty_coef",
    "kl.target": "target_kl ppo_target",
    "ppo.epochs": "num_ppo_epochs ppo_epochs num_iterations",
    "ppo.minibatches": "num_mini_batches num_minibatches steps_per_generation",
    "ppo.clip": "cliprange epsilon clip_range clip_ratio_low eps_clip",
    "ppo.clip_high": "epsilon_high clip_ratio_high",
    "ppo.value_clip": "cliprange_value",
    "ppo.value_coefficient": "vf_coef",
    "ppo.entropy_coefficient": "entropy_coef",
    "ppo.normalise_advantages": "normalize_advantages whiten_advantages",
}

_ALL_PROCESSES = "It counts the records of a whole optimiser step, over all processes and accumulation steps."
_ONE_LENGTH = "It bounds prompt and answer together, in tokens."
_PACKED = "Write auto, sdpa, eager or flash_attention_2."
# Field(s) and what is different there -> names.
_NOTED: dict[tuple[str, str], str] = {
    ("training.batch_size", _ALL_PROCESSES): (
        "per_device_train_batch_size micro_batch_size gradient_accumulation_steps generation_batch_size "
        "train_batch_size total_batch_size global_batch_size mini_batch_size"
    ),
    ("training.max_tokens_per_microbatch", "Memory is bounded in tokens, not in rows."): (
        "per_device_eval_batch_size eval_batch_size auto_find_batch_size precompute_ref_batch_size "
        "local_rollout_forward_batch_size eval_accumulation_steps torch_empty_cache_steps"
    ),
    ("data.max_length_tokens", _ONE_LENGTH): (
        "max_length cutoff_len sequence_len max_seq_length max_seq_len max_prompt_length max_prompt_len "
        "model_max_length max_target_length"
    ),
    ("data.columns", "It maps names that prefine reads to those of your columns: {prompt: question}."): (
        "dataset_text_field column_mapping prompt_column response_column text_column field_messages "
        "message_property_mappings field_chosen field_rejected messages"
    ),
    ("training.warmup_fraction", "It is the share of all steps, from 0 to 1."): (
        "warmup_ratio warmup_steps num_warmup_steps"
    ),
    ("training.adam_betas", "Write both: [0.9, 0.999]."): "adam_beta1 adam_beta2",
    ("training.trackers", "Write a list: [wandb, tensorboard]; [] is none, the default."): (
        "report_to use_tensorboard use_wandb logging_dir"
    ),
    ("training.evaluate_every_steps", "Write a number of steps, or null: only before and after."): (
        "eval_strategy evaluation_strategy evals_per_epoch eval_on_start eval_delay do_eval"
    ),
    ("training.save_every_steps", "Write a number of steps, or null: only at the end."): (
        "save_strategy saves_per_epoch"
    ),
    ("training.log_every_steps", "Write a number of steps."): "logging_strategy logging_first_step",
    ("training.keep_best", "The lowest held-out loss decides."): "metric_for_best_model greater_is_better",
    ("model.dtype", "Write bfloat16, float32 or auto; there is no float16."): (
        "bf16 fp16 torch_dtype pure_bf16 bfloat16 float16 float32 bf16_full_eval fp16_full_eval infer_dtype "
        "precision fp8 fp8_backend"
    ),
    ("model.quantization", "Write nf4, int8 or none."): (
        "load_in_4bit load_in_8bit quantization_bit quantization_method quantization_type bnb_4bit_quant_type "
        "quantization_config"
    ),
    ("model.device", "Write auto, cpu, cuda, cuda:1 or mps."): "use_cpu no_cuda device_map use_mps_device",
    ("model.attn_implementation", _PACKED): (
        "flash_attn flash_attention sdp_attention eager_attention xformers_attention use_flash_attention_2"
    ),
    ("model.template_kwargs", "Write {enable_thinking: false}, for example."): "chat_template_kwargs enable_thinking",
    ("lora", "A section of its fields trains an adapter, null trains all weights."): (
        "finetuning_type adapter use_peft use_lora peft_config peft_type lora_config"
    ),
    ("model.name", "A run or the folder of an adapter is trained further."): "adapter_name_or_path lora_model_dir",
    ("dpo.loss", "Write several losses with their weights: {sigmoid: 0.8, bco_pair: 0.2, sft: 1.0}."): "loss_weights",
    ("lora.targets", "It is all-linear by default."): "lora_target_linear",
    ("lora.init", "Write default, pissa or pissa_niter_N; others are not there."): (
        "init_lora_weights peft_init_lora_weights pissa_init pissa_iter"
    ),
    ("lora.dropout", "It is 0 by default."): "disable_dropout",
    ("reward.name|reward.more", "A function is written module:function."): "reward_funcs reward_functions",
    ("reward.weight", "Each source has its own; further sources are in reward.more."): "reward_weights",
    ("rollout.skip_truncated", "Its rewards still count in the group's mean."): "mask_truncated_completions",
    ("reward.missing_eos_value", "What happens is reward.missing_eos."): "missing_eos_penalty",
    ("ppo.advantage_std", "Write group, update (TRL's batch) or none."): "scale_rewards",
    ("ppo.loss_average", "Write tokens, answers or max_length."): "loss_agg_mode",
    ("advantage", "Write gae, rloo or grpo."): "advantage_estimator adv_estimator",
    ("kl.controller", "Write fixed or adaptive."): "adap_kl_ctrl",
    ("ppo.critic", "The critic is on the policy's own weights."): "value_model_path value_model critic_model",
}

# Why there is none -> names, or patterns of names.
_ABSENT: dict[str, str] = {
    "the verb says it: prefine sft, dpo, kto, orpo, reward, ppo": (
        "stage do_train do_predict rl task trainer method process_reward_model num_labels rlhf_type train_type"
    ),
    "pass --resume to the command": (
        "resume_from_checkpoint auto_resume_from_checkpoints ignore_data_skip restore_callback_states_from_checkpoint"
    ),
    "a run needs a separate folder, named by run": "overwrite_output_dir overwrite_cache",
    "prefine uploads nothing": (
        "push_to_hub push_dataset_to_hub hub_* hf_hub_token ms_hub_token om_hub_token hf_use_auth_token "
        "log_completions_hub_repo trackio_*"
    ),
    "a tracker's run is named by run; its environment variables set the rest": (
        "wandb_* mlflow_* comet_* use_comet swanlab_* use_swanlab dagshub_*"
    ),
    "the optimiser is AdamW": (
        "optim optimizer optim_args optim_target_modules use_galore galore_* use_apollo apollo_* use_badam badam_* "
        "loraplus_* lr_groups embedding_lr embedding_lr_scale adam_epsilon2 adam_beta3 use_adam_mini use_muon "
        "torchdistx_path relora relora_* lisa_* use_llama_pro"
    ),
    "the rate rises over training.warmup_fraction and then follows training.schedule": (
        "lr_scheduler_kwargs cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor lr_quadratic_warmup"
    ),
    "adapters are LoRA, rsLoRA or DoRA": (
        "use_qalora use_bdlora use_oft oft_* module_dropout pissa_convert bias "
        "lora_bias lora_fan_in_fan_out fan_in_fan_out layers_to_transform layers_pattern rank_pattern alpha_pattern "
        "loftq_config layer_replication peft_* auto_mapping inference_mode exclude_modules corda_config eva_config "
        "arrow_config kasa_config velora_config megatron_config megatron_core runtime_config lora_ga_config "
        "monteclora_config qalora_group_size alora_invocation_tokens ensure_weight_tying lora_task_type task_type "
        "peft lora_on_cpu qlora_sharded_model_loading gptq create_new_adapter merge_lora lora_target_parameters "
        "target_parameters"
    ),
    "an adapter trains low-rank matrices only; lora: null trains all weights": (
        "modules_to_save lora_modules_to_save additional_target trainable_token_indices unfrozen_parameters "
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules"
    ),
    "the other settings of bitsandbytes are fixed": (
        "bnb_4bit_* bnb_config_kwargs use_bnb_nested_quant double_quantization quantization_device_map"
    ),
    "rows are always packed without padding, and do not attend to each other": (
        "packing packing_strategy eval_packing neat_packing sample_packing sample_packing_* eval_sample_packing "
        "padding_free pad_to_sequence_len pad_to_multiple_of group_by_length batch_flattening length_column_name "
        "train_sampling_strategy multipack_real_batches curriculum_sampling pretraining_sample_concatenation "
        "padding_value pretrain_multipack_* max_packed_sequence_len"
    ),
    "only assistant turns are learned from, the end of turn included": (
        "train_on_inputs train_on_prompt assistant_only_loss completion_only_loss mask_history "
        "ignore_pad_token_for_loss train_on_eos roles_to_train response_template instruction_template"
    ),
    "rows are tokenised once and read from a file; their columns are recognised (docs/data.md)": (
        "dataset_kwargs dataset_num_proc dataset_processes dataset_prepared_path dataset_config "
        "dataset_streaming streaming buffer_size preprocessing_* dataset_dir media_dir tokenized_path mix_strategy "
        "interleave_probs remove_unused_columns shuffle_dataset shuffle_merged_datasets dataloader_* "
        "skip_prepare_dataset dataset_shard_num dataset_shard_idx dataset_keep_in_memory label_names "
        "eval_on_each_dataset min_sample_len"
    ),
    "there is one way in which long rows are cut to data.max_length_tokens": "truncation_mode",
    "the tokenizer's own tokens are used": (
        "special_tokens tokens add_tokens add_special_tokens new_special_tokens_config init_special_tokens "
        "eos_token pad_token eot_tokens resize_vocab resize_token_embeddings_to_32x tokenizer_* use_fast_tokenizer "
        "split_special_tokens padding_side added_tokens_overrides fix_untrained_tokens "
        "mean_resizing_embeddings shrink_embeddings"
    ),
    "a system turn comes with the rows": "default_system_message default_system system_prompt",
    "the reference is the model as it was loaded, computed once and cached": (
        "ref_model ref_model_* sync_ref_model precompute_ref_log_probs reference_free ref_adapter_name "
        "model_adapter_name force_use_ref_model"
    ),
    "dpo.loss lists the available losses": (
        "f_divergence_type f_alpha_divergence_coef discopop_tau ld_alpha use_weighting "
        "dpo_use_weighting pref_bco_weight dpo_use_logits_to_keep dpo_norm_loss use_dft_loss"
    ),
    "the clipped objective of PPO is the only one": (
        "delta importance_sampling_level off_policy_mask_threshold sapo_* vespo_* top_entropy_quantile "
        "entropy_coef_* entropy_target use_adaptive_entropy use_bias_correction_kl multi_objective_aggregation "
        "ppo_buffer_size kl_estimator"
    ),
    "rollouts are drawn from the whole distribution, as PPO's ratios need; prefine generate and chat have --top-p": (
        "top_p top_k min_p repetition_penalty generation_kwargs num_beams do_sample generation_config"
    ),
    "the model itself generates, in rollout.slots": (
        "use_vllm vllm vllm_* use_cache use_kv_cache cache_implementation use_transformers_* transformers_* "
        "ds3_gather_for_generation infer_backend max_tool_calling_iterations num_generations_eval "
        "cast_lm_head_to_fp32"
    ),
    "start several processes with accelerate launch or torchrun; each holds the whole model": (
        "deepspeed fsdp fsdp_* ddp ddp_* accelerator_config parallelism_config local_rank world_size max_memory "
        "sequence_parallel_degree tensor_parallel_size context_parallel_size ray_* use_ray "
        "fp8_enable_fsdp_float8_all_gather "
        "average_tokens_across_devices ring_attn_func heads_k_stride low_cpu_mem_usage offload_folder "
        "gpu_memory_limit log_on_each_node save_on_each_node activation_offloading"
    ),
    "the forward is prefine's own": (
        "torch_compile torch_compile_* use_liger_kernel enable_liger_kernel liger_* use_unsloth use_unsloth_gc "
        "unsloth_* flash_attn_* use_kernels lora_mlp_kernel lora_qkv_kernel lora_o_kernel tf32 "
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs use_reentrant_gc upcast_layernorm "
        "upcast_lmhead_output router_aux_loss_coef moe_aux_loss_coef rope_scaling shift_attn s2_attention "
        "flex_attention neftune_noise_alpha mixture_of_depths model_init_kwargs disable_gradient_checkpointing "
        "ignore_bias_buffers plugins use_v1_kernels flex_attn_compile_kwargs flash_optimum use_pose pose_* "
        "noisy_embedding_alpha"
    ),
    "models are decoders": "is_encoder_decoder",
    "every run can be repeated to the last bit on the same machine": "full_determinism",
    "only text is read": (
        "freeze_multi_modal_projector freeze_language_model use_audio_in_video image_* video_* audio_* crop_to_patches "
        "processor_type freeze_vision_*"
    ),
    "rows are rendered by the tokenizer's chat template": "tool_format",
    "prefine export does it after training": "export_* merge_lora merge_method",
    "weights that are loaded are trained: nothing is started anew or quantised while it trains": (
        "train_from_scratch qat model_quantization_config model_quantization_config_kwargs"
    ),
    "the model is loaded as its folder describes it": (
        "base_model_config cls_model_config model_config model_kwargs overrides_of_model_config model_type "
        "type_of_model overrides_of_model_kwargs is_*_derived_model experimental_skip_move_to_device adapter_folder "
        "embeddings_skip_upcast llama4_linearized_experts"
    ),
    "the reward is named by reward.name": ("reward_model_adapters reward_model_quantization_bit reward_model_type"),
    "prefine evaluate measures models after training": (
        "do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split dpo_generate_during_eval "
        "generate_during_eval"
    ),
    "the section guards sets limits on a run's figures": "loss_watchdog_threshold loss_watchdog_patience",
    "early stopping counts evaluations: training.early_stopping_patience": "early_stopping_steps",
    "the order of rows is random, from training.seed": "disable_shuffling",
    "another program does it": (
        "gradio_* sglang_* use_kt kt_* cpu_infer chunk_size mode resources_per_worker placement_strategy use_mca"
    ),
    "prefine needs none": (
        "log_level log_level_replica disable_tqdm debug skip_memory_metrics logging_nan_inf_filter "
        "include_for_metrics include_num_input_tokens_seen include_tokens_per_second prediction_loss_only "
        "batch_eval_metrics eval_do_concat_batches eval_use_gather_object save_only_model save_safetensors "
        "enable_jit_checkpoint plot_loss print_param_status log_unique_prompts log_multimodal "
        "num_completions_to_print compute_accuracy strict eval_num_beams peft_version gc_steps profiler_steps "
        "eval_table_size eval_max_new_tokens cache_dir is_preprocess preprocess_iterable total_num_tokens "
        "total_supervised_tokens axolotl_config_path save_first_step include_effective_tokens_per_second "
        "skip_special_tokens"
    ),
}


def _listed() -> tuple[dict[str, list[Meant]], dict[str, str]]:
    """Names with their fields, in this order, and names or patterns with the reason why there is none."""
    known: dict[str, list[Meant]] = {}
    for fields, names in _NAMES.items():
        for name in names.split():
            known.setdefault(name, []).append(Meant(tuple(fields.split("|"))))
    for (fields, note), names in _NOTED.items():
        for name in names.split():
            known.setdefault(name, []).append(Meant(tuple(fields.split("|")), note))
    return known, {name: reason for reason, names in _ABSENT.items() for name in names.split()}


FIELDS, REASONS = _listed()
"""Names with the fields that they are; and names or patterns of names with the reason why there is none."""

# First words of fields that one stage alone has.
_STAGE_OF = {
    "dpo": "dpo",
    "kto": "kto",
    "orpo": "orpo",
    "kl": "ppo",
    "rollout": "ppo",
    "ppo": "ppo",
    "advantage": "ppo",
    "reward": "ppo",
}
_OF_REWARD_MODELS = ("reward.loss", "reward.label_smoothing", "reward.centring_weight")


_VERBS_OF_SECTIONS = {
    "dpo": "prefine dpo",
    "kto": "prefine kto",
    "orpo": "prefine orpo",
    "readiness": "prefine reward",
    "reward": "prefine reward or prefine ppo",
    **dict.fromkeys(("rollout", "kl", "ppo", "advantage"), "prefine ppo"),
}


def section_elsewhere(name: str) -> str | None:
    """The remedy for a section of another stage in a recipe; None for a name that is not a section."""
    verb = _VERBS_OF_SECTIONS.get(name)
    return verb and f"It is a section of recipes for {verb}: use that command, or remove the section."


def meaning(name: str, known: Collection[str]) -> str | None:
    """A remedy that says where a recipe has another trainer's setting; None for an unknown name.

    Args:
        name: the last part of an unknown field.
        known: dotted names of all fields of the recipe at hand.
    """
    plain = name.lower().replace("-", "_")
    elsewhere = None
    for fields, note in FIELDS.get(plain, ()):
        here = [field for field in fields if field in known]
        where = " or ".join(here) or f"{fields[0]} of a prefine {_stage(fields[0])} recipe"
        remedy = f"In prefine it is {where}. {note}".rstrip()
        if here:
            return remedy
        elsewhere = elsewhere or remedy
    if elsewhere is not None:
        return elsewhere
    reason = REASONS.get(plain) or next((why for pattern, why in REASONS.items() if fnmatchcase(plain, pattern)), None)
    return None if reason is None else f"There is no such setting: {reason}."


def _stage(field: str) -> str:
    return "reward" if field in _OF_REWARD_MODELS else _STAGE_OF.get(field.partition(".")[0], "ppo")
