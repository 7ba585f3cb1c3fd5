"""Advantage estimators: identities, presets, and independence of order, ids and padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from priml.maths.advantages import (
    ESTIMATORS,
    PRESETS,
    LooForm,
    batch_norm,
    estimate_advantages,
    gae,
    group_normalised,
    leave_one_out,
    overlong_penalty,
    peak_return,
    process_returns,
)
from priml.maths.masking import whiten

PAIRS = sorted(set(product(ESTIMATORS, PRESETS)) - {("ppo", "priml")})
"""Estimators and presets that go together: `ppo` has one discount, `priml` two."""
FORMS: tuple[LooForm, ...] = ("paper", "authors")
SEEDS = st.integers(0, 2**16)
GROUP_SIZES = st.lists(st.integers(2, 5), min_size=1, max_size=4)


NEEDS_GROUPS = ("rloo", "grpo", "dr_grpo")


def _estimate(b: Any, estimator: str = "rloo", preset: Any = "authors", **options: Any) -> Tensor:
    options = {"beta": 0.05, "values_BT": torch.zeros_like(b.rewards_BT)} | options
    return estimate_advantages(
        b.outcomes_B, b.rewards_BT, b.mask_BT, b.groups_B, estimator=estimator, preset=preset, **options
    )


def _over_tokens(x_B: Tensor, mask_BT: Tensor) -> Tensor:
    return x_B[:, None].expand(mask_BT.shape).masked_fill(~mask_BT, 0.0)


# Leave-one-out


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    outcomes = torch.tensor([1.0, 0.0, 0.5, 0.25, 0.75])
    groups = torch.tensor([9, -2, 9, 9, -2])
    expected = torch.tensor([1 - 0.375, -0.75, 0.5 - 0.625, 0.25 - 0.75, 0.75])
    torch.testing.assert_close(leave_one_out(outcomes, groups), expected)


def test_leave_one_out_takes_outcomes_as_integers_or_bools() -> None:
    groups = torch.zeros(2, dtype=torch.int64)
    assert leave_one_out(torch.tensor([1, 0]), groups).tolist() == [1.0, -1.0]
    assert leave_one_out(torch.tensor([True, False]), groups).tolist() == [1.0, -1.0]


@given(seed=SEEDS, sizes=GROUP_SIZES, soft=st.booleans())
@settings(max_examples=40, deadline=None)
def test_leave_one_out_sums_to_zero_in_each_group(
    random_batch: Callable[..., Any], seed: int, sizes: list[int], soft: bool
) -> None:
    b = random_batch(seed, group_sizes=sizes, soft=soft)
    advantages_B = leave_one_out(b.outcomes_B, b.groups_B)
    for group in b.groups_B.unique():
        assert float(advantages_B[b.groups_B == group].sum()) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_group_of_one_is_refused_with_the_way_out(random_batch: Callable[..., Any], form: LooForm) -> None:
    b = random_batch(0, group_sizes=(3, 1))
    message = r"group -?\d+ has 1 response.*group_size >= 2.*'reinforce'"
    with pytest.raises(ValueError, match=message):
        leave_one_out(b.outcomes_B, b.groups_B)
    with pytest.raises(ValueError, match=message):
        process_returns(b.rewards_BT, b.mask_BT, b.groups_B, form=form, gamma=1.0)
    with pytest.raises(ValueError, match=message):
        group_normalised(b.outcomes_B, b.groups_B)
    for estimator in NEEDS_GROUPS:
        with pytest.raises(ValueError, match=message):
            _estimate(b, estimator)


@pytest.mark.parametrize("estimator", sorted(set(ESTIMATORS) - set(NEEDS_GROUPS)))
def test_those_that_do_not_compare_need_no_group(random_batch: Callable[..., Any], estimator: str) -> None:
    b = random_batch(0, group_sizes=(1, 1, 1))
    assert _estimate(b, estimator).isfinite().all()


# Process returns


def _process_returns_by_definition(b: Any, form: LooForm, gamma: float) -> Tensor:
    """Section 2.5 of the mathematics, token by token."""
    lengths = b.mask_BT.sum(1).tolist()
    means = [float(b.rewards_BT[i, :n].mean()) for i, n in enumerate(lengths)]
    out = torch.zeros_like(b.rewards_BT)
    for i, n in enumerate(lengths):
        members = [j for j in range(len(lengths)) if b.groups_B[j] == b.groups_B[i]]
        k = len(members)
        for t in range(n):
            for s in range(t, n):
                reward = float(b.rewards_BT[i, s])
                if form == "paper":
                    term = reward - sum(means[j] for j in members if j != i) / (k - 1)
                else:
                    term = k / (k - 1) * reward - sum(means[j] for j in members) / (k - 1)
                out[i, t] += gamma ** (s - t) * term
    return out


@pytest.mark.parametrize("form", FORMS)
@given(seed=SEEDS, sizes=GROUP_SIZES, gamma=st.sampled_from([0.0, 0.7, 1.0]))
@settings(max_examples=15, deadline=None)
def test_process_returns_are_their_definition(
    random_batch: Callable[..., Any], form: LooForm, seed: int, sizes: list[int], gamma: float
) -> None:
    b = random_batch(seed, group_sizes=sizes, num_tokens=5)
    got = process_returns(b.rewards_BT, b.mask_BT, b.groups_B, form=form, gamma=gamma)
    torch.testing.assert_close(got, _process_returns_by_definition(b, form, gamma), atol=1e-11, rtol=1e-11)


@given(seed=SEEDS, sizes=GROUP_SIZES)
@settings(max_examples=40, deadline=None)
def test_the_two_forms_agree_on_the_first_token_without_discount(
    random_batch: Callable[..., Any], seed: int, sizes: list[int]
) -> None:
    b = random_batch(seed, group_sizes=sizes)
    paper, authors = (
        process_returns(b.rewards_BT, b.mask_BT, b.groups_B, form=form, gamma=1.0)[:, 0] for form in FORMS
    )
    torch.testing.assert_close(paper, authors)


@pytest.mark.parametrize("form", FORMS)
@given(seed=SEEDS, sizes=GROUP_SIZES, constant=st.floats(-5, 5), gamma=st.sampled_from([0.9, 1.0]))
@settings(max_examples=20, deadline=None)
def test_a_constant_on_every_token_of_a_group_changes_nothing(
    random_batch: Callable[..., Any], form: LooForm, seed: int, sizes: list[int], constant: float, gamma: float
) -> None:
    b = random_batch(seed, group_sizes=sizes)
    shifted = torch.where(b.groups_B[:, None] == b.groups_B[0], b.rewards_BT + constant, b.rewards_BT)
    torch.testing.assert_close(
        process_returns(shifted, b.mask_BT, b.groups_B, form=form, gamma=gamma),
        process_returns(b.rewards_BT, b.mask_BT, b.groups_B, form=form, gamma=gamma),
        atol=1e-11,
        rtol=1e-11,
    )


def test_an_unknown_form_is_refused(random_batch: Callable[..., Any]) -> None:
    b = random_batch(0)
    with pytest.raises(ValueError, match="'paper' or 'authors'"):
        process_returns(b.rewards_BT, b.mask_BT, b.groups_B, form="verl", gamma=1.0)  # pyright: ignore[reportArgumentType]


# The normaliser and its noise floor


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_after_batch_norm_the_largest_return_is_one(random_batch: Callable[..., Any], seed: int) -> None:
    b = random_batch(seed)
    scaled = batch_norm(b.rewards_BT, b.mask_BT)
    assert float(peak_return(scaled, b.mask_BT)) == pytest.approx(1.0, abs=1e-5)


@given(seed=SEEDS, beta=st.floats(0.01, 10.0))
@settings(max_examples=40, deadline=None)
def test_batch_norm_cancels_beta(random_batch: Callable[..., Any], seed: int, beta: float) -> None:
    b = random_batch(seed)
    scaled, reference = (batch_norm(x, b.mask_BT) for x in (beta * b.rewards_BT, b.rewards_BT))
    tolerance = 2e-6 / (min(beta, 1.0) * float(peak_return(b.rewards_BT, b.mask_BT)))
    torch.testing.assert_close(scaled, reference, atol=tolerance, rtol=0)


@pytest.mark.parametrize("preset", ["authors", "verl"])
@pytest.mark.parametrize("estimator", sorted(set(ESTIMATORS) - {"prime_value"}))  # which uses no normaliser
def test_rounding_noise_below_the_floor_is_no_process_reward(
    random_batch: Callable[..., Any], estimator: str, preset: str
) -> None:
    b = random_batch(0)
    noise, silence = (replace(b, rewards_BT=b.rewards_BT * scale) for scale in (1e-9, 0.0))
    assert 0.0 < float(peak_return(noise.rewards_BT, b.mask_BT)) < 1e-7
    assert not batch_norm(noise.rewards_BT, b.mask_BT).any()
    assert torch.equal(_estimate(noise, estimator, preset), _estimate(silence, estimator, preset))


def test_just_above_the_floor_the_signal_is_full_size() -> None:
    rewards, mask = torch.tensor([[1.1e-5]]), torch.ones(1, 1, dtype=torch.bool)
    assert float(batch_norm(rewards, mask)) > 0.9
    assert float(batch_norm(rewards, mask, noise_floor=1.2e-5)) == 0.0


# Group z-scores and GAE


def test_group_z_scores_use_the_sample_deviation() -> None:
    outcomes = torch.tensor([1.0, 0.2, 0.0, 0.6, 0.9], dtype=torch.float64)
    groups = torch.tensor([4, 1, 4, 4, 1])
    got = group_normalised(outcomes, groups)
    for group in (4, 1):
        x = outcomes[groups == group]
        torch.testing.assert_close(got[groups == group], (x - x.mean()) / (x.std() + 1e-6))


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_a_group_of_equals_has_advantage_exactly_zero(size: int) -> None:
    # In float32 the mean of three 0.7 is not 0.7, and dividing the difference by 1e-6 would make 6 % of it.
    outcomes = torch.full((size,), 0.7, requires_grad=True)
    advantages = group_normalised(outcomes, torch.zeros(size, dtype=torch.int64))
    assert not advantages.any()
    advantages.sum().backward()
    assert outcomes.grad is not None
    assert outcomes.grad.isfinite().all()


def test_identical_responses_give_grpo_no_process_yardstick() -> None:
    rewards = torch.tensor([[0.3, -0.1, 0.4]]).expand(4, 3)
    mask = torch.ones(4, 3, dtype=torch.bool)
    got = estimate_advantages(
        torch.ones(4), rewards, mask, torch.zeros(4, dtype=torch.int64), estimator="grpo", preset="paper"
    )
    assert not got.any()


@given(seed=SEEDS, gamma=st.sampled_from([0.0, 0.9, 1.0]), lam=st.sampled_from([0.0, 0.8, 1.0]))
@settings(max_examples=30, deadline=None)
def test_gae_is_its_recursion(random_batch: Callable[..., Any], seed: int, gamma: float, lam: float) -> None:
    b = random_batch(seed)
    values_BT = torch.randn(b.rewards_BT.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = torch.zeros_like(values_BT)
    for row, length in enumerate(b.mask_BT.sum(1).tolist()):
        advantage = next_value = 0.0
        for t in reversed(range(length)):
            delta = float(b.rewards_BT[row, t]) + gamma * next_value - float(values_BT[row, t])
            advantage = delta + gamma * lam * advantage
            next_value = float(values_BT[row, t])
            expected[row, t] = advantage
    advantages_BT, returns_BT = gae(b.rewards_BT, values_BT, b.mask_BT, gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages_BT, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(returns_BT, (expected + values_BT).masked_fill(~b.mask_BT, 0.0))


# The whole


@pytest.mark.parametrize(("estimator", "preset"), PAIRS)
@given(seed=SEEDS, sizes=GROUP_SIZES, soft=st.booleans())
@settings(max_examples=8, deadline=None)
def test_without_process_rewards_only_the_outcome_form_is_left_to_the_last_bit(
    random_batch: Callable[..., Any], estimator: str, preset: str, seed: int, sizes: list[int], soft: bool
) -> None:
    b = random_batch(seed, group_sizes=sizes, soft=soft)
    unrewarded = replace(b, rewards_BT=torch.zeros_like(b.rewards_BT))
    for is_white in (False, True):
        expected = _estimate(b, estimator, preset, whiten=is_white, process_weight=0.0)
        assert torch.equal(_estimate(unrewarded, estimator, preset, whiten=is_white), expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_outcome_forms_are_their_functions_to_the_last_bit(random_batch: Callable[..., Any], preset: str) -> None:
    b = random_batch(3, soft=True)
    for estimator, outcome_B in (
        ("rloo", leave_one_out(b.outcomes_B, b.groups_B)),
        ("grpo", group_normalised(b.outcomes_B, b.groups_B)),
        ("reinforce", b.outcomes_B),
    ):
        expected = _over_tokens(PRESETS[preset].coef_outcome * outcome_B, b.mask_BT)
        assert torch.equal(_estimate(b, estimator, preset, whiten=False, process_weight=0.0), expected)
        assert torch.equal(
            _estimate(b, estimator, preset, whiten=True, process_weight=0.0), whiten(expected, b.mask_BT)
        )


@pytest.mark.parametrize(("estimator", "preset"), PAIRS)
@given(seed=SEEDS, sizes=GROUP_SIZES)
@settings(max_examples=8, deadline=None)
def test_permuting_rows_and_renaming_groups_only_permutes_advantages(
    random_batch: Callable[..., Any], estimator: str, preset: str, seed: int, sizes: list[int]
) -> None:
    b = random_batch(seed, group_sizes=sizes)
    order = torch.randperm(len(b.outcomes_B), generator=torch.Generator().manual_seed(seed))
    shuffled = b.rows(order)
    renamed = replace(shuffled, groups_B=-3 * shuffled.groups_B + 10**9)
    expected = _estimate(b, estimator, preset)[order]
    torch.testing.assert_close(_estimate(renamed, estimator, preset), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("estimator", "preset"), [pair for pair in PAIRS if pair[0] != "reinforce_pp"])  # white always
def test_both_weights_act(random_batch: Callable[..., Any], estimator: str, preset: str) -> None:
    b = random_batch(1)
    process, outcome = (
        _estimate(b, estimator, preset, whiten=False, process_weight=p, outcome_weight=o) for p, o in ((1, 0), (0, 1))
    )
    assert process.any()
    assert outcome.any()
    both = _estimate(b, estimator, preset, whiten=False, process_weight=0.3, outcome_weight=2.0)
    torch.testing.assert_close(both, 0.3 * process + 2.0 * outcome)
    lopsided = _estimate(b, estimator, preset, process_weight=0.3, whiten=True)
    assert not torch.allclose(lopsided, _estimate(b, estimator, preset, whiten=True), atol=1e-3)


def test_ours_pays_a_token_its_own_reward_alone_twice_as_the_authors_would(random_batch: Callable[..., Any]) -> None:
    b = random_batch(1)
    authors = partial(_estimate, b, preset="authors", whiten=False)
    expected = authors(gamma_process=0.0, process_weight=2.0)
    torch.testing.assert_close(_estimate(b, preset="priml", whiten=False), expected)
    assert not torch.allclose(authors(process_weight=2.0), expected)


def test_verls_coefficients_are_five_and_five(random_batch: Callable[..., Any]) -> None:
    b = random_batch(1)
    ones = replace(PRESETS["verl"], coef_process=1.0, coef_outcome=1.0)
    torch.testing.assert_close(_estimate(b, preset="verl", whiten=False), 5.0 * _estimate(b, preset=ones, whiten=False))


def test_the_authors_preset_scores_with_the_bare_log_ratio(random_batch: Callable[..., Any]) -> None:
    b = random_batch(1)
    unscaled = replace(PRESETS["authors"], process_norm="none", whiten=False)
    with_beta = _estimate(b, preset=unscaled, outcome_weight=0.0)
    expected = process_returns(b.rewards_BT / 0.05, b.mask_BT, b.groups_B, form="authors", gamma=1.0)
    torch.testing.assert_close(with_beta, expected)


def test_a_raw_scale_without_normaliser_needs_beta(random_batch: Callable[..., Any]) -> None:
    b = random_batch(1)
    with pytest.raises(ValueError, match="beta=None"):
        estimate_advantages(
            b.outcomes_B,
            b.rewards_BT,
            b.mask_BT,
            b.groups_B,
            estimator="rloo",
            preset=replace(PRESETS["authors"], process_norm="none"),
        )


def test_verl_drops_the_last_process_reward_before_the_maximum_but_counts_its_token() -> None:
    rewards = torch.tensor([[0.1, 0.2, 9.0], [0.3, 9.0, float("nan")]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    groups, outcomes = torch.tensor([0, 0]), torch.tensor([1.0, 0.0], dtype=torch.float64)
    got = estimate_advantages(
        outcomes, rewards, mask, groups, estimator="rloo", preset="verl", outcome_weight=0.0, whiten=False
    )
    dropped = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.0, 0.0]], dtype=torch.float64) / (0.3 + 1e-6)
    expected = 5.0 * process_returns(dropped, mask, groups, form="authors", gamma=1.0)
    torch.testing.assert_close(got, expected)
    assert got[0, 2] != 0.0  # its baseline is still subtracted


def test_the_outcome_discount_counts_from_the_last_token(random_batch: Callable[..., Any]) -> None:
    b = random_batch(2)
    got = _estimate(b, process_weight=0.0, gamma_outcome=0.5, whiten=False)
    remaining_BT = b.mask_BT.sum(1, keepdim=True) - 1 - torch.arange(b.mask_BT.shape[1])
    expected = leave_one_out(b.outcomes_B, b.groups_B)[:, None] * 0.5**remaining_BT
    torch.testing.assert_close(got, expected.masked_fill(~b.mask_BT, 0.0))


@pytest.mark.parametrize("preset", PRESETS)
def test_reinforce_takes_the_normaliser_and_whitening_of_its_preset(
    random_batch: Callable[..., Any], preset: str
) -> None:
    got = _estimate(random_batch(4), "reinforce", preset)
    mask_BT = random_batch(4).mask_BT
    is_white = bool(torch.isclose(got[mask_BT].var(), torch.tensor(1.0, dtype=got.dtype)))
    assert is_white == PRESETS[preset].whiten


@pytest.mark.parametrize(("estimator", "preset"), PAIRS)
def test_one_response_of_one_token_breaks_no_estimator_that_allows_it(estimator: str, preset: str) -> None:
    size = 2 if estimator in NEEDS_GROUPS else 1
    mask = torch.zeros(size, 3, dtype=torch.bool)
    mask[0, 0] = True
    got = estimate_advantages(
        torch.arange(size).float(),
        torch.full((size, 3), 0.2),
        mask,
        torch.full((size,), 5),
        estimator=estimator,
        preset=preset,
        beta=0.05,
        values_BT=torch.zeros(size, 3),
    )
    assert got.isfinite().all()
    assert not got[~mask].any()


def test_unknown_names_are_refused(random_batch: Callable[..., Any]) -> None:
    b = random_batch(0)
    with pytest.raises(ValueError, match="estimator='a2c': need one of rloo, grpo, dr_grpo, reinforce"):
        _estimate(b, "a2c")
    with pytest.raises(ValueError, match="preset='code': need one of priml, paper, authors, verl"):
        _estimate(b, preset="code")


# With a critic, and as one


def test_ppo_needs_values_and_gives_them_no_gradient(random_batch: Callable[..., Any]) -> None:
    b = random_batch(0)
    with pytest.raises(ValueError, match="values_BT=None: the estimator 'ppo' needs a critic's values"):
        _estimate(b, "ppo", values_BT=None)
    values = torch.zeros_like(b.rewards_BT).requires_grad_()
    assert not _estimate(b, "ppo", values_BT=values).requires_grad


@pytest.mark.parametrize("preset", [preset for estimator, preset in PAIRS if estimator == "ppo"])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_unwhitened_advantages_plus_values_are_the_returns(
    random_batch: Callable[..., Any], preset: str, lam: float
) -> None:
    b = random_batch(3)
    values_BT = torch.randn(b.rewards_BT.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    advantages_BT = _estimate(b, "ppo", preset, values_BT=values_BT, gae_lambda=lam, whiten=False)
    if lam == 1.0:  # what is still to come, whatever the critic says of it
        expected_BT = _estimate(b, "reinforce", preset, whiten=False)
        torch.testing.assert_close((advantages_BT + values_BT).masked_fill(~b.mask_BT, 0.0), expected_BT)
    exact_BT = _estimate(b, "reinforce", preset, whiten=False)
    perfect_BT = _estimate(b, "ppo", preset, values_BT=exact_BT, gae_lambda=lam, whiten=False)
    torch.testing.assert_close(perfect_BT, torch.zeros_like(perfect_BT), atol=1e-9, rtol=0)


def test_the_implicit_value_is_known_before_the_token(random_batch: Callable[..., Any]) -> None:
    b = random_batch(3)
    changed = replace(b, rewards_BT=b.rewards_BT.clone())
    changed.rewards_BT[:, 2] += 5.0
    difference_BT = _estimate(changed, "prime_value", "paper") - _estimate(b, "prime_value", "paper")
    torch.testing.assert_close(difference_BT[:, :3], torch.zeros_like(difference_BT[:, :3]))
    torch.testing.assert_close(difference_BT[:, 3:], torch.where(b.mask_BT[:, 3:], -5.0, 0.0).double())


@pytest.mark.parametrize("preset", ["authors", "verl"])
def test_a_preset_that_whitens_makes_reinforce_and_reinforce_pp_the_same(
    random_batch: Callable[..., Any], preset: str
) -> None:
    b = random_batch(5)
    torch.testing.assert_close(
        _estimate(b, "reinforce_pp", preset), _estimate(b, "reinforce", preset), atol=1e-6, rtol=0
    )


# Overlong responses


def test_the_penalty_falls_linearly_to_minus_one_at_the_limit() -> None:
    # The last 4 of 10 tokens are the slope: 7 tokens cost a quarter.
    lengths = torch.tensor([1, 6, 7, 8, 10])
    assert overlong_penalty(lengths, limit=10, window=4).tolist() == [0.0, 0.0, -0.25, -0.5, -1.0]
    assert overlong_penalty(torch.tensor([5, 10]), limit=10, window=10).tolist() == [-0.5, -1.0]
