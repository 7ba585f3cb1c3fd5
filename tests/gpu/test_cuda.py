"""The parts of a step on a GPU beside the same parts on the processor.

Each runs on the processor as well, against itself, so that a test which no GPU has seen is known to run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fakes import tiny_config
from priml.batch import Batch, Row, collate
from priml.factories.device import resolve_device
from priml.factories.learners import build_critic, build_policy, build_prm
from priml.factories.rollout import build_sampler
from priml.maths.logprobs import token_logprobs
from priml.models.load import load_model, load_tokenizer
from priml.rollout.base import SamplingSpec
from priml.types import Problem, Prompt

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
)
on_each_device = pytest.mark.parametrize("device", ["cpu", CUDA])


def learners(model: Path, folder: Path, device: str, precision: str = "fp32") -> tuple[Any, Any, Any, Any]:
    """Policy, PRM, critic and sampler of the same tiny model."""
    changes = [f"backend={{device: {device}, precision: {precision}, micro_batch_tokens: 64}}"]
    cfg = tiny_config(folder / f"{device}-{precision}", model, *changes, "advantage.estimator=ppo", "critic={}")
    spec, tokenizer = resolve_device(cfg.backend), load_tokenizer(str(model))

    def module() -> Any:
        return load_model(str(model), device=spec.device)

    assert cfg.prm
    return (
        build_policy(cfg, module(), tokenizer, spec),
        build_prm(cfg, cfg.prm, module(), tokenizer, spec),
        build_critic(cfg, module(), tokenizer, spec),
        build_sampler(cfg.sampler, module(), tokenizer, spec, longest=40),
    )


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 60, (count,), generator=generator).tolist()

    rows = [Row(ids(3 + i % 3), ids(4 + i), outcome=float(i % 2), group=i // 4, step_ends=[3 + i]) for i in range(8)]
    return collate(rows, step=1)


def step(model: Path, folder: Path, device: str, precision: str = "fp32") -> dict[str, Tensor]:
    """Everything that one step computes from a batch."""
    policy, prm, critic, _ = learners(model, folder, device, precision)
    policy.scores_in_update = False
    scored = critic.estimate_values(policy.score(batch()))
    assert scored.old is not None
    prm_report = prm.update(scored)
    rewards = prm.rewards(scored).rewards_BT
    advantages_BT = torch.ones(scored.mask_BT.shape)
    critic.update(scored, advantages_BT)
    scored, report = policy.update(scored, advantages_BT)
    return {
        "logprobs": scored.old.logprobs_BT,
        "entropies": scored.old.entropies_BT,
        "values": scored.values_BT,
        "rewards": rewards,
        "prm loss": torch.tensor(prm_report.loss),
        "policy loss": torch.tensor(report.loss),
        "gradient": torch.tensor(report.grad_norm),
        "after": policy.score(scored).old_logprobs_BT,
    }


@on_each_device
def test_a_step_is_that_of_the_processor(warm_model: Path, tmp_path: Path, device: str):
    expected, found = (step(warm_model, tmp_path / name, name) for name in ("cpu", device))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@on_each_device
def test_a_step_in_bf16_is_that_in_fp32_to_two_digits(warm_model: Path, tmp_path: Path, device: str):
    expected, found = step(warm_model, tmp_path, device), step(warm_model, tmp_path, device, "bf16")
    for name in ("logprobs", "entropies", "after"):
        torch.testing.assert_close(found[name], expected[name], rtol=0.05, atol=0.1, msg=lambda m, n=name: f"{n}: {m}")
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


@on_each_device
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_sampled_has_the_log_probs_that_the_policy_gives_it(
    warm_model: Path, tmp_path: Path, device: str, precision: str
):
    policy, _, _, sampler = learners(warm_model, tmp_path, device, precision)
    policy.scores_in_update = False
    prompts = [Prompt(Problem(id=str(i), prompt="", answer=""), "", tuple(range(5, 8 + i))) for i in range(3)]
    groups = sampler.sample(prompts, SamplingSpec(4, 1.0, 12, seed=0, step=1))
    rows = [
        Row(group.prompt.token_ids, c.token_ids, outcome=0.0, group=i, step_ends=[], sampler_logprobs=c.logprobs)
        for i, group in enumerate(groups)
        for c in group.trajectories
    ]
    scored = policy.score(collate(rows, step=1))
    assert scored.sampler_logprobs_BT is not None
    bound = 1e-3 if precision == "fp32" else 0.3
    assert float((scored.sampler_logprobs_BT - scored.old_logprobs_BT)[scored.mask_BT].abs().max()) < bound
    again = sampler.sample(prompts, SamplingSpec(4, 1.0, 12, seed=0, step=1))
    first = [c.token_ids.tolist() for group in groups for c in group.trajectories]
    assert len({tuple(ids) for ids in first}) > 1
    assert [len(group.trajectories) for group in again] == [4, 4, 4]


@on_each_device
@pytest.mark.parametrize("chunk", [None, 3])
def test_the_chunked_head_is_the_plain_one(device: str, chunk: int | None):
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(10, 16, generator=generator).to(device).requires_grad_()
    weight_VD = torch.randn(40, 16, generator=generator).to(device).requires_grad_()
    targets_N = torch.randint(40, (10,), generator=generator).to(device)
    ours_N, entropies_N = token_logprobs(hidden_ND, weight_VD, targets_N, chunk_tokens=chunk)
    (ours_N.sum() + entropies_N.sum()).backward()
    gradients = [hidden_ND.grad, weight_VD.grad]
    hidden_ND.grad = weight_VD.grad = None
    plain_NV = torch.nn.functional.linear(hidden_ND, weight_VD).log_softmax(-1)
    plain_N = plain_NV.gather(1, targets_N[:, None]).squeeze(1)
    (plain_N.sum() - (plain_NV.exp() * plain_NV).sum()).backward()
    torch.testing.assert_close(ours_N, plain_N, rtol=1e-4, atol=1e-4)
    for ours, plain in zip(gradients, (hidden_ND.grad, weight_VD.grad), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


@on_each_device
def test_state_is_written_and_read_back_to_the_bit(warm_model: Path, tmp_path: Path, device: str):
    one, *_ = learners(warm_model, tmp_path, device)
    scored = one.score(batch())
    one.update(scored, torch.ones(scored.mask_BT.shape))
    folder = tmp_path / "state"
    folder.mkdir()
    for write in one.stage(folder):
        write()
    other, *_ = learners(warm_model, tmp_path / "other", device)
    assert other.digest() != one.digest()
    other.load(folder)
    assert other.digest() == one.digest()
    for policy in (one, other):
        policy.update(scored, torch.ones(scored.mask_BT.shape))
    assert other.digest() == one.digest()
