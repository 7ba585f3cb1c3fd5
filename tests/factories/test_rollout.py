from dataclasses import replace

import pytest
import torch

from fakes import make_prompt, tiny_config
from priml.config.backend import LocalBackend
from priml.config.rollout import TransformersSampler, VllmSampler
from priml.errors import ConfigError
from priml.factories.device import resolve_device
from priml.factories.learners import build_policy
from priml.factories.rollout import build_sampler, longest_sequence
from priml.models.load import load_model, load_tokenizer

CPU = LocalBackend(device="cpu")


def test_the_sampler_speaks_with_the_live_weights_of_the_policy(tmp_path, warm_model):
    place = resolve_device(CPU)
    cfg = tiny_config(tmp_path, warm_model)
    tokenizer = load_tokenizer(str(warm_model))
    module = load_model(str(warm_model), device=place.device)
    policy = build_policy(cfg, module, tokenizer, place)
    sampler = build_sampler(TransformersSampler(), module, tokenizer, place, longest=8)
    sampler.load(policy.weights(), version=3)
    assert policy.weights().module() is module


def test_vllm_and_a_second_gpu_do_not_go_together(warm_model):
    second = replace(resolve_device(CPU), device=torch.device("cuda", 1))
    with pytest.raises(ConfigError, match="start with CUDA_VISIBLE_DEVICES=1"):
        build_sampler(VllmSampler(kind="vllm"), None, None, second, longest=8)


def test_a_sampler_is_made_for_the_longest_prompt_and_response():
    prompts = [replace(make_prompt(), token_ids=tuple(range(n))) for n in (3, 9, 5)]
    assert longest_sequence(iter(prompts), 20) == 29
