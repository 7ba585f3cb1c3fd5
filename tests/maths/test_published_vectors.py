"""Every number of `fixtures/vectors.json`, which the published programs (or a hand computation) also give.

`COMPUTED` names each expected entry and how we compute it; a test below checks that none is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from priml.maths.advantages import (
    PRESETS,
    batch_norm,
    estimate_advantages,
    gae,
    group_normalised,
    leave_one_out,
    peak_return,
    process_returns,
)
from priml.maths.implicit import implicit_rewards, prefix_q, step_rewards, whole_response_reward
from priml.maths.masking import group_mean, last_token, masked_mean, whiten
from priml.maths.policy_loss import clipped_surrogate, clipped_value_loss
from priml.maths.prm_loss import (
    abs_accuracy,
    detached_dpo,
    outcome_cross_entropy,
    pair_accuracy,
    pairwise_dpo,
    rival_scores,
    sequence_scores,
)

VECTORS = json.loads((Path(__file__).parent / "fixtures" / "vectors.json").read_text())

NOT_REPRODUCED_ON_PURPOSE = {
    # The authors' GAE reads values on padding; see test_our_gae_is_the_authors_one_without_its_leak.
    "case_c/gae_g1_l1_authors_fork_leaky_whitened",
    "case_c/gae_g095_l09_authors_fork_leaky_whitened",
}
OF_THE_FILTER = {  # decisions of `priml.training.collect`, not numbers of `priml.maths`
    "case_b/filter/truncated",
    "case_b/filter/keep_acc_0.2_0.8",
    "case_b/filter/keep_with_truncation_max_len_4",
}

PAPER_ON_NORMALISED = replace(PRESETS["authors"], loo_form="paper")
AUTHORS_ON_BETA = replace(PRESETS["paper"], loo_form="authors")


@dataclass(frozen=True)
class Case:
    """The inputs of one case as tensors, with the padding as it was published or full of NaN."""

    inputs: dict[str, Any]
    dtype: torch.dtype
    nan_padding: bool

    def tensor(self, name: str) -> Tensor:
        values = torch.tensor(self.inputs[name], dtype=self.dtype)
        return values.masked_fill(~self.mask, float("nan")) if self.nan_padding and values.dim() == 2 else values

    @property
    def mask(self) -> Tensor:
        return torch.tensor(self.inputs["mask"]) > 0

    @property
    def outcomes(self) -> Tensor:
        return torch.tensor(self.inputs["outcome"], dtype=self.dtype)

    @property
    def groups(self) -> Tensor:
        return torch.arange(len(self.inputs["lens"])) // self.inputs["K"]

    @property
    def scores(self) -> Tensor:
        """The bare log-ratio d."""
        if "logratio" in self.inputs:
            return self.tensor("logratio").masked_fill(~self.mask, 0.0)
        return implicit_rewards(self.tensor("logp_prm"), self.tensor("logp_ref"), self.mask, beta=1.0)

    @property
    def rewards(self) -> Tensor:
        """beta * d."""
        if "logratio" in self.inputs:
            return self.inputs["beta"] * self.tensor("logratio")
        return implicit_rewards(self.tensor("logp_prm"), self.tensor("logp_ref"), self.mask, beta=self.inputs["beta"])

    def advantages(self, estimator: str, preset: Any, *, rewards: Tensor | None = None, **options: Any) -> Tensor:
        settings = {"gamma_process": self.inputs["gamma_process"], "gamma_outcome": self.inputs["gamma_outcome"]}
        return estimate_advantages(
            self.outcomes,
            self.rewards if rewards is None else rewards,
            self.mask,
            self.groups,
            estimator=estimator,
            preset=preset,
            beta=self.inputs["beta"],
            **(settings | options),
        )


def _rloo_entries(
    prefix: str, form: str, preset: Any, scores: Callable[[Case], Tensor], **options: Any
) -> dict[str, Callable[[Case], Tensor]]:
    """The entries of a leave-one-out block; `rewards` in `options` makes another reward of a case's own."""
    rewards = options.pop("rewards", lambda c: c.rewards)
    return {
        f"{prefix}/outcome_adv": lambda c: leave_one_out(c.outcomes, c.groups),
        f"{prefix}/returns": lambda c: c.advantages("rloo", preset, whiten=False, rewards=rewards(c), **options),
        f"{prefix}/advantages": lambda c: c.advantages("rloo", preset, whiten=True, rewards=rewards(c), **options),
    } | (
        {
            f"{prefix}/mean_token_reward": lambda c: masked_mean(scores(c), c.mask, dim=1),
            f"{prefix}/loo_baseline": lambda c: (
                scores(c) - process_returns(scores(c), c.mask, c.groups, form="paper", gamma=0.0)
            )[:, 0],
            f"{prefix}/process_return": lambda c: process_returns(
                scores(c), c.mask, c.groups, form="paper", gamma=c.inputs["gamma_process"]
            ),
        }
        if form == "paper"
        else {
            f"{prefix}/process_token": lambda c: process_returns(scores(c), c.mask, c.groups, form="authors", gamma=0.0)
        }
    )


def _grpo_entries(prefix: str) -> dict[str, Callable[[Case], Tensor]]:
    return {
        f"{prefix}/outcome": lambda c: group_normalised(c.outcomes, c.groups),
        f"{prefix}/process": lambda c: c.advantages("grpo", "authors", whiten=False, outcome_weight=0.0),
        f"{prefix}/advantages": lambda c: c.advantages("grpo", "authors", whiten=False),
    }


def _cross_entropy_per_sample(c: Case) -> Tensor:
    rows = zip(c.rewards, c.mask, c.outcomes, strict=True)
    return torch.stack([outcome_cross_entropy(r[None], m[None], o[None]) for r, m, o in rows])


def _detached_dpo_per_sample(c: Case) -> Tensor:
    rivals = rival_scores(sequence_scores(c.rewards, c.mask), c.outcomes, c.groups)
    rows = zip(c.rewards, c.mask, c.outcomes, rivals, strict=True)
    return torch.stack([detached_dpo(r[None], m[None], o[None], v[None]) for r, m, o, v in rows])


def _cross_entropy_gradient(c: Case) -> Tensor:
    logprobs = c.tensor("logp_prm").requires_grad_()
    rewards = implicit_rewards(logprobs, c.tensor("logp_ref"), c.mask, beta=c.inputs["beta"])
    outcome_cross_entropy(rewards, c.mask, c.outcomes).backward()
    assert logprobs.grad is not None
    return logprobs.grad


def _verl_scores(c: Case) -> Tensor:
    return c.rewards.masked_fill(last_token(c.mask), 0.0)


def _gae(c: Case, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    return gae(c.tensor("reward"), c.tensor("value"), c.mask, gamma=gamma, lam=lam)


def _surrogate(c: Case, aggregate: Any) -> tuple[Tensor, Any]:
    return clipped_surrogate(
        c.tensor("new_logp"),
        c.tensor("old_logp"),
        c.tensor("advantage"),
        c.mask,
        clip_low=c.inputs["clip"],
        clip_high=c.inputs["clip"],
        aggregate=aggregate,
    )


def _surrogate_per_token(c: Case) -> Tensor:
    """Each token as a batch of its own."""
    columns = (c.tensor("new_logp"), c.tensor("old_logp"), c.tensor("advantage"), c.mask)
    tokens = zip(*(x.reshape(-1, 1, 1) for x in columns), strict=True)
    clip = c.inputs["clip"]
    losses = [clipped_surrogate(*t, clip_low=clip, clip_high=clip, aggregate="token_mean")[0] for t in tokens]
    return torch.stack(losses).reshape(c.mask.shape)


def _ratio(c: Case) -> Tensor:
    """Each token's ratio, read off as the largest of a batch of one."""
    columns = (c.tensor("new_logp"), c.tensor("old_logp"), c.tensor("advantage"), c.mask)
    tokens = zip(*(x.reshape(-1, 1, 1) for x in columns), strict=True)
    stats = [clipped_surrogate(*t, clip_low=0.2, clip_high=0.2, aggregate="token_mean")[1] for t in tokens]
    return torch.stack([s.ratio_max for s in stats]).reshape(c.mask.shape)


COMPUTED: dict[str, Callable[[Case], Tensor]] = {
    "case_a/logratio": lambda c: c.scores,
    "case_a/token_reward": lambda c: c.rewards,
    "case_a/seq_reward": lambda c: sequence_scores(c.rewards, c.mask),
    "case_a/prefix_q": lambda c: prefix_q(c.rewards, c.mask),
    "case_a/step_reward": lambda c: step_rewards(c.rewards, c.mask, c.inputs["step_ends"]),
    "case_a/whole_reward": lambda c: whole_response_reward(c.rewards, c.mask),
    "case_a/ce_per_sample": _cross_entropy_per_sample,
    "case_a/ce_mean": lambda c: outcome_cross_entropy(c.rewards, c.mask, c.outcomes),
    "case_a/ce_grad_wrt_logp_prm": _cross_entropy_gradient,
    "case_a/pair_dpo_mean": lambda c: pairwise_dpo(c.rewards, c.mask, c.outcomes, c.groups),
    "case_a/detached_dpo_other": lambda c: rival_scores(sequence_scores(c.rewards, c.mask), c.outcomes, c.groups),
    "case_a/detached_dpo_per_sample": _detached_dpo_per_sample,
    "case_a/detached_dpo_mean": lambda c: detached_dpo(
        c.rewards, c.mask, c.outcomes, rival_scores(sequence_scores(c.rewards, c.mask), c.outcomes, c.groups)
    ),
    "case_a/pair_accuracy": lambda c: pair_accuracy(c.rewards, c.mask, c.outcomes, c.groups),
    "case_a/abs_accuracy": lambda c: abs_accuracy(c.rewards, c.mask, c.outcomes),
    "case_a/batch_norm_peak": lambda c: peak_return(c.scores, c.mask),
    "case_a/batch_norm_token": lambda c: batch_norm(c.scores, c.mask),
    **_rloo_entries("case_a/rloo_paper", "paper", "paper", lambda c: c.rewards),
    **_rloo_entries("case_a/rloo_code_raw_beta", "authors", AUTHORS_ON_BETA, lambda c: c.rewards),
    **_rloo_entries("case_a/rloo_code_batch_norm", "authors", "authors", lambda c: batch_norm(c.scores, c.mask)),
    **_rloo_entries(
        "case_a/rloo_code_batch_norm_whole",
        "authors",
        "authors",
        lambda c: batch_norm(whole_response_reward(c.scores, c.mask), c.mask),
        rewards=lambda c: whole_response_reward(c.rewards, c.mask),
    ),
    "case_a/verl_recipe_token_scores": lambda c: batch_norm(_verl_scores(c), c.mask),
    "case_a/verl_recipe_peak": lambda c: peak_return(_verl_scores(c), c.mask),
    **_rloo_entries("case_a/verl_recipe_rloo_5_5", "authors", "verl", lambda c: batch_norm(_verl_scores(c), c.mask)),
    "case_a/outcome_only_rloo": lambda c: leave_one_out(c.outcomes, c.groups),
    **_grpo_entries("case_a/grpo"),
    "case_a/reinforce": lambda c: c.advantages("reinforce", "authors", whiten=False),
    "case_a/prime_as_value": lambda c: (c.outcomes[:, None] - (prefix_q(c.rewards, c.mask) - c.rewards)).masked_fill(
        ~c.mask, 0.0
    ),
    "case_b/seq_reward": lambda c: sequence_scores(c.rewards, c.mask),
    "case_b/ce_per_sample": _cross_entropy_per_sample,
    "case_b/ce_mean": lambda c: outcome_cross_entropy(c.rewards, c.mask, c.outcomes),
    "case_b/pair_accuracy": lambda c: pair_accuracy(c.rewards, c.mask, c.outcomes, c.groups),
    "case_b/batch_norm_peak": lambda c: peak_return(c.scores, c.mask),
    "case_b/batch_norm_token": lambda c: batch_norm(c.scores, c.mask),
    **_rloo_entries("case_b/rloo_paper", "paper", PAPER_ON_NORMALISED, lambda c: batch_norm(c.scores, c.mask)),
    **_rloo_entries("case_b/rloo_code", "authors", "authors", lambda c: batch_norm(c.scores, c.mask)),
    **_rloo_entries(
        "case_b/rloo_code_gamma1", "authors", "authors", lambda c: batch_norm(c.scores, c.mask), gamma_process=1.0
    ),
    **_grpo_entries("case_b/grpo"),
    "case_b/reinforce": lambda c: c.advantages("reinforce", "authors", whiten=False),
    "case_b/filter/group_mean": lambda c: group_mean(c.outcomes, c.groups)[:: c.inputs["K"]],
    "case_c/gae_g1_l1/adv": lambda c: _gae(c, 1.0, 1.0)[0],
    "case_c/gae_g1_l1/returns": lambda c: _gae(c, 1.0, 1.0)[1],
    "case_c/gae_g1_l1/whitened": lambda c: whiten(_gae(c, 1.0, 1.0)[0], c.mask),
    "case_c/gae_g095_l09/adv": lambda c: _gae(c, 0.95, 0.9)[0],
    "case_c/gae_g095_l09/returns": lambda c: _gae(c, 0.95, 0.9)[1],
    "case_c/gae_g095_l09/whitened": lambda c: whiten(_gae(c, 0.95, 0.9)[0], c.mask),
    "case_c/ppo/ratio": _ratio,
    "case_c/ppo/per_token": _surrogate_per_token,
    "case_c/ppo/loss_token_mean": lambda c: _surrogate(c, "token_mean")[0],
    "case_c/ppo/loss_seq_mean_token_mean": lambda c: _surrogate(c, "sequence_mean")[0],
    "case_c/ppo/clipfrac": lambda c: _surrogate(c, "token_mean")[1].clip_fraction,
    "case_c/ppo/approx_kl_k1": lambda c: _surrogate(c, "token_mean")[1].kl_k1,
    "case_c/ppo/approx_kl_k3": lambda c: _surrogate(c, "token_mean")[1].kl_k3,
    "case_c/value_loss_g1_l1": lambda c: clipped_value_loss(
        c.tensor("value_pred"), c.tensor("value"), _gae(c, 1.0, 1.0)[1], c.mask, clip=c.inputs["value_clip"]
    ),
}


def _leaves(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, part in value.items() for k, v in _leaves(f"{prefix}/{key}", part).items()}


EXPECTED = {
    path: value
    for case in ("case_a", "case_b", "case_c")
    for path, value in _leaves(case, VECTORS[case]["expected"]).items()
}


def _expected(path: str, dtype: torch.dtype) -> Tensor:
    value = EXPECTED[path]
    if path == "case_a/step_reward":  # given per step: put each at its step's end
        inputs = VECTORS["case_a"]["inputs"]
        placed = torch.zeros(torch.tensor(inputs["mask"]).shape, dtype=dtype)
        for row, (ends, sums) in enumerate(zip(inputs["step_ends"], value, strict=True)):
            placed[row, ends] = torch.tensor(sums, dtype=dtype)
        return placed
    return torch.tensor(value, dtype=dtype)


@pytest.mark.parametrize("nan_padding", [False, True], ids=["junk", "nan"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("path", COMPUTED)
def test_published_number(path: str, dtype: torch.dtype, nan_padding: bool) -> None:
    case = Case(VECTORS[path.split("/")[0]]["inputs"], dtype, nan_padding)
    atol = 2e-10 if dtype == torch.float64 else 1e-5  # the vectors are rounded to ten decimals
    torch.testing.assert_close(COMPUTED[path](case), _expected(path, dtype), atol=atol, rtol=0)


def test_every_published_number_is_accounted_for() -> None:
    assert set(COMPUTED) | NOT_REPRODUCED_ON_PURPOSE | OF_THE_FILTER == set(EXPECTED)


def test_our_gae_is_the_authors_one_without_its_leak() -> None:
    case = Case(VECTORS["case_c"]["inputs"], torch.float64, nan_padding=False)
    leaky = {
        discounts: torch.tensor(EXPECTED[f"case_c/gae_{discounts}_authors_fork_leaky_whitened"], dtype=torch.float64)
        for discounts in ("g1_l1", "g095_l09")
    }
    torch.testing.assert_close(whiten(_gae(case, 1.0, 1.0)[0], case.mask), leaky["g1_l1"], atol=2e-9, rtol=0)
    ours = whiten(_gae(case, 0.95, 0.9)[0], case.mask)
    assert (ours - leaky["g095_l09"]).abs().max() > 0.1
