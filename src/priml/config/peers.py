"""Settings of TRL and verl by their own names, and what each is here: for errors, and for the pages on moving over.

Names and meanings are those of TRL 1.16 (`GRPOConfig`) and of verl's PRIME recipe.
"""

from __future__ import annotations

from collections.abc import Mapping

TRL: Mapping[str, str] = {
    "output_dir": "run_dir",
    "learning_rate": "policy.optimizer.lr",
    "weight_decay": "policy.optimizer.weight_decay",
    "max_grad_norm": "policy.optimizer.max_grad_norm",
    "num_generations": "sampling.group_size",
    "max_completion_length": "sampling.max_new_tokens",
    "max_prompt_length": "data.prompt.max_prompt_tokens",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch.prompts (prompts per step of the whole run, not responses per device)",
    "gradient_accumulation_steps": "backend.micro_batch_tokens (the split never changes the loss)",
    "generation_batch_size": "batch.prompts",
    "num_iterations": "policy.epochs",
    "epsilon": "loss.clip_low and loss.clip_high",
    "epsilon_high": "loss.clip_high",
    "delta": "loss.dual_clip",
    "loss_type": "loss.aggregate",
    "importance_sampling_level": "loss.surrogate",
    "scale_rewards": "advantage.estimator (grpo divides by the spread of the group, dr_grpo does not)",
    "mask_truncated_completions": "overlong: {kind: mask}",
    "reward_funcs": "verify: {kind: custom, function: 'file.py:name'}",
    "report_to": "trackers",
    "save_steps": "checkpoint.every",
    "eval_steps": "evaluate.every",
    "gradient_checkpointing": "policy.gradient_checkpointing",
    "use_vllm": "sampler: {kind: vllm}",
    "vllm_tensor_parallel_size": "sampler.tensor_parallel",
    "peft_config": "policy.lora",
    "model_name_or_path": "policy.model",
    "dataset_name": "data.train: {kind: hub, dataset: NAME}",
    "chat_template_kwargs": "data.prompt.template_kwargs",
    "vllm_importance_sampling_correction": "loss.importance",
    "vllm_importance_sampling_cap": "loss.importance.cap",
}
"""Keys of `GRPOConfig` and of TRL's command. `beta` is not among them: there it weighs the KL penalty, here it scales
the process reward."""

VERL: Mapping[str, str] = {
    "data.train_files": "data.train",
    "data.val_files": "evaluate.data",
    "data.train_batch_size": "batch.prompts",
    "data.max_prompt_length": "data.prompt.max_prompt_tokens",
    "data.max_response_length": "sampling.max_new_tokens",
    "data.filter_accuracy": "filter (null keeps every prompt)",
    "data.accuracy_lower_bound": "filter.low",
    "data.accuracy_upper_bound": "filter.high",
    "data.oversample_factor": "batch.draw (prompts sampled at once, not a factor)",
    "actor_rollout_ref.model.path": "policy.model",
    "actor_rollout_ref.model.enable_gradient_checkpointing": "policy.gradient_checkpointing",
    "actor_rollout_ref.actor.optim.lr": "policy.optimizer.lr",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "policy.mini_batch (responses, not prompts)",
    "actor_rollout_ref.actor.ppo_micro_batch_size": "backend.micro_batch_tokens",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": "backend.micro_batch_tokens",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": "backend.micro_batch_tokens",
    "actor_rollout_ref.actor.ppo_epochs": "policy.epochs",
    "actor_rollout_ref.actor.clip_ratio": "loss.clip_low and loss.clip_high",
    "actor_rollout_ref.actor.clip_ratio_low": "loss.clip_low",
    "actor_rollout_ref.actor.clip_ratio_high": "loss.clip_high",
    "actor_rollout_ref.actor.clip_ratio_c": "loss.dual_clip",
    "actor_rollout_ref.actor.entropy_coeff": "loss.entropy_bonus",
    "actor_rollout_ref.actor.use_kl_loss": "loss.kl (null for none)",
    "actor_rollout_ref.actor.kl_loss_coef": "loss.kl.weight",
    "actor_rollout_ref.actor.kl_loss_type": "loss.kl.estimator",
    "actor_rollout_ref.actor.loss_agg_mode": "loss.aggregate",
    "actor_rollout_ref.rollout.name": "sampler.kind",
    "actor_rollout_ref.rollout.n": "sampling.group_size",
    "actor_rollout_ref.rollout.temperature": "sampling.temperature",
    "actor_rollout_ref.rollout.tensor_model_parallel_size": "sampler.tensor_parallel",
    "actor_rollout_ref.rollout.gpu_memory_utilization": "sampler.kv_cache_gib (GiB, not a share)",
    "algorithm.adv_estimator": "advantage.estimator",
    "algorithm.gamma": "advantage.gamma_outcome and advantage.gamma_process",
    "algorithm.reward_gt_coef": "advantage.outcome_weight",
    "algorithm.reward_dpo_coef": "advantage.process_weight",
    "reward_model.model.path": "prm.init",
    "reward_model.model.ref_path": "prm.reference",
    "reward_model.model.beta_train": "prm.beta",
    "reward_model.model.loss_type": "prm.loss",
    "reward_model.model.update": "prm.forward (before: double, after: single)",
    "reward_model.model.optim.lr": "prm.optimizer.lr",
    "reward_model.model.optim.grad_clip": "prm.optimizer.max_grad_norm",
    "reward_model.prime_granularity": "prm.granularity",
    "reward_model.mini_batch_size": "prm.mini_batch",
    "trainer.default_local_dir": "run_dir",
    "trainer.total_training_steps": "steps",
    "trainer.save_freq": "checkpoint.every",
    "trainer.test_freq": "evaluate.every",
    "trainer.n_gpus_per_node": "backend: {kind: ray, ranks: N} (of all nodes)",
    "trainer.nnodes": "backend: {kind: ray, ranks: N} (of all nodes)",
    "trainer.logger": "trackers",
}
"""Keys of verl's configuration and of its PRIME recipe."""


def translate(key: str) -> str | None:
    """What a foreign key is here: "TRL's num_generations is sampling.group_size". None for a key that is unknown.

    A key of verl is known by its end as well: `actor.optim.lr`, as long as only one key ends so.
    """
    if ours := TRL.get(key):
        return f"TRL's {key} is {ours}"
    matches = {ours for theirs, ours in VERL.items() if theirs == key or ("." in key and theirs.endswith(f".{key}"))}
    return f"verl's {key} is {matches.pop()}" if len(matches) == 1 else None
