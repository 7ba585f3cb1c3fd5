from dataclasses import replace
from pathlib import Path

import pytest
import torch

from copy_engine import CopyTrainConfig, build_copy_engine
from fakes import make_prompt, read_metrics, read_rollouts, tiny_config
from priml.commands.plan import PlanOptions, run_plan
from priml.commands.train import run_training
from priml.config.backend import LocalBackend
from priml.config.load import parse_config
from priml.config.rollout import TransformersSampler, VllmSampler
from priml.errors import ConfigError
from priml.factories.device import resolve_device
from priml.factories.learners import build_policy
from priml.factories.rollout import SAMPLERS, SamplerKind, build_sampler, longest_sequence
from priml.models.load import load_model, load_tokenizer

CPU = LocalBackend(device="cpu")


def test_the_sampler_speaks_with_the_live_weights_of_the_policy(tmp_path, warm_model):
    device = resolve_device(CPU)
    cfg = tiny_config(tmp_path, warm_model)
    tokenizer = load_tokenizer(str(warm_model))
    module = load_model(str(warm_model), device=device.device)
    policy = build_policy(cfg, module, tokenizer, device)
    sampler = build_sampler(TransformersSampler(), module, tokenizer, device, longest=8)
    sampler.load(policy.weights(), version=3)
    assert policy.weights() is module


def test_vllm_and_a_second_gpu_do_not_go_together(warm_model):
    second = replace(resolve_device(CPU), device=torch.device("cuda", 1))
    with pytest.raises(ConfigError, match="start with CUDA_VISIBLE_DEVICES=1"):
        build_sampler(VllmSampler(kind="vllm"), None, None, second, longest=8)


def test_a_sampler_is_made_for_the_longest_prompt_and_response():
    prompts = [replace(make_prompt(), token_ids=tuple(range(n))) for n in (3, 9, 5)]
    assert longest_sequence(iter(prompts), 20) == 29


def test_a_new_kind_of_sampler_is_a_file_and_one_table_entry(tmp_path, warm_model, monkeypatch):
    """It trains as vLLM does: with weights of its own, verified and corrected for; and a plan counts them."""
    monkeypatch.setitem(SAMPLERS, "copy", SamplerKind(build_copy_engine))
    tree = tiny_config(tmp_path, warm_model).model_dump(mode="json") | {"sampler": {"kind": "copy"}}
    cfg = parse_config(CopyTrainConfig, tree, where="test")
    run_training(cfg)
    steps = [record for record in read_metrics(cfg.run_dir) if "policy/loss" in record]
    assert [record["policy/importance_capped"] for record in steps] == [0.0, 0.0]
    assert all(record["sampler/mismatch_max"] < 1e-4 for record in steps)
    assert [{row["weight_version"] for row in read_rollouts(cfg.run_dir, step)} for step in (1, 2)] == [{0}, {1}]
    plan, _ = run_plan(cfg, PlanOptions(), settings=Path("nowhere/train.yaml"))
    weights = {role.role: role.weights for role in plan.memory.roles}
    assert weights["sampler"] == weights["policy"] == 4 * plan.job.policy.parameters
