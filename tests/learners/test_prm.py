"""The implicit PRM: exactly nothing at initialisation, then learning from outcomes, in the order that was asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fakes import save
from priml.batch import Batch
from priml.errors import ModelError, NonFiniteError, RunError
from priml.learners.prm import BETA_TIMES_LENGTH, ImplicitPrm, whole_groups
from priml.learners.reference import RolloutReference
from priml.learners.replay import Replay
from priml.maths.implicit import implicit_rewards
from priml.maths.prm_loss import (
    detached_dpo,
    outcome_cross_entropy,
    pair_accuracy,
    pairwise_dpo,
    rival_scores,
    sequence_scores,
)
from priml.models.checkpoint import weights_digest


def flat(module: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def scored_by(batch: Batch, language_model: Any, module: Any, temperature: float = 1.0, budget: int = 100_000) -> Batch:
    return batch.with_old(language_model(module, budget).scores(batch, temperature=temperature))


# --- the noise floor ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "pairwise", "detached"])
@pytest.mark.parametrize("budget", [100_000, 30, 1])
@pytest.mark.parametrize("mini_batch", [None, 6])
def test_rewards_are_exactly_zero_at_initialisation(
    module: Any, make_prm: Any, batch: Batch, loss: str, budget: int, mini_batch: int | None
) -> None:
    # A learning rate of 0 keeps later mini-batches at initialisation, too.
    prm = make_prm(module, micro_batch_tokens=budget, mini_batch=mini_batch, loss=loss, lr=0.0)
    report = prm.update(batch)
    rewards = prm.rewards(batch)
    assert bool((rewards.rewards_BT == 0).all())
    assert report.loss == pytest.approx(math.log(2), rel=1e-6)
    assert (report.reward_mean, report.accuracy, report.auc, report.length_correlation) == (0.0, 0.0, 0.5, None)
    assert bool((rewards.prm_logprobs_BT[batch.mask_BT] < 0).all())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("forward", ["single", "frozen"])
@pytest.mark.parametrize("budget", [100_000, 30])
def test_rewards_are_exactly_zero_against_the_rollout_policy_too(
    module: Any,
    twin: Any,
    make_prm: Any,
    language_model: Any,
    batch: Batch,
    temperature: float,
    forward: str,
    budget: int,
) -> None:
    reference = RolloutReference(temperature=temperature)
    prm = make_prm(module, reference=reference, forward=forward, micro_batch_tokens=budget)
    batch = scored_by(batch, language_model, twin(), temperature, budget)
    report = prm.update(batch)
    assert bool((prm.rewards(batch).rewards_BT == 0).all())
    assert report.reward_mean == 0.0


def test_the_rollout_reference_is_the_policys_own_logprobs(
    module: Any, twin: Any, make_prm: Any, language_model: Any, batch: Batch
) -> None:
    other = twin()
    with torch.no_grad():
        other.model.norm.weight.mul_(1.3)
    batch = scored_by(batch, language_model, other)
    prm = make_prm(module, reference=RolloutReference(temperature=1.0), micro_batch_tokens=30, mini_batch=6)
    prm.update(batch)
    assert torch.equal(prm.rewards(batch).ref_logprobs_BT, batch.old_logprobs_BT)


# --- the order of update and rewards -----------------------------------------------------------------------------


def test_single_pays_each_mini_batch_before_it_is_learnt_from(
    module: Any, twin: Any, make_prm: Any, language_model: Any, batch: Batch
) -> None:
    prm = make_prm(module, mini_batch=6, epochs=2)
    prm.update(batch)
    rewards = prm.rewards(batch)

    plan = list(whole_groups(batch.groups_B, 6))
    assert len(plan) == 2
    once = twin()
    first_only = make_prm(once, mini_batch=6)
    expected_BT = torch.zeros(batch.mask_BT.shape)
    for rows in plan:
        model = language_model(once)
        for micro in model.micro_batches(batch, rows):
            with torch.no_grad():
                micro.put(model.score(micro)[0], expected_BT)
        first_only._learn(batch, rows, rewards.ref_logprobs_BT, torch.zeros_like(expected_BT))
    assert torch.equal(rewards.prm_logprobs_BT, expected_BT)
    assert bool((rewards.rewards_BT[plan[0]] == 0).all()), "the first has not learnt anything yet"
    assert bool((rewards.rewards_BT[plan[1]] != 0).any()), "the second is paid by a PRM that learnt from the first"


def test_double_is_scoring_again_with_the_updated_weights(
    module: Any, make_prm: Any, language_model: Any, batch: Batch
) -> None:
    prm = make_prm(module, forward="double")
    prm.update(batch)
    assert torch.equal(prm.rewards(batch).prm_logprobs_BT, language_model(module).scores(batch).logprobs_BT)
    assert bool((prm.rewards(batch).rewards_BT != 0).any())


def test_single_and_double_learn_and_report_the_same(twin: Any, make_prm: Any, batch: Batch) -> None:
    one, other = twin(), twin()
    reports = [make_prm(m, forward=f, mini_batch=6).update(batch) for m, f in ((one, "single"), (other, "double"))]
    assert reports[0] == reports[1], "measured before the PRM learnt from them"
    assert torch.equal(flat(one), flat(other))


def test_frozen_never_changes_the_weights(module: Any, make_prm: Any, batch: Batch) -> None:
    before = weights_digest(module)
    with torch.no_grad():
        module.model.norm.weight.mul_(1.1)
    prm = make_prm(module, forward="frozen", epochs=3, mini_batch=6)
    moved = weights_digest(module)
    report = prm.update(batch)
    assert weights_digest(module) == moved != before
    assert (report.loss, report.grad_norm) == (None, None)
    assert bool((prm.rewards(batch).rewards_BT != 0).any())


def test_rewards_are_only_of_the_batch_just_learnt_from(
    module: Any, make_prm: Any, batch: Batch, make_batch: Any
) -> None:
    prm = make_prm(module)
    with pytest.raises(AssertionError, match="update comes before rewards"):
        prm.rewards(batch)
    prm.update(batch)
    with pytest.raises(AssertionError, match="just learnt from"):
        prm.rewards(make_batch(step=2))


# --- which PRM paid -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "first", "second", "resumed"),
    [
        # Three mini-batches of two groups, twice over: six steps an update. Only the first pass over them pays.
        ("single", [0, 0, 1, 1, 2, 2], [6, 6, 7, 7, 8, 8], [12, 12, 13, 13, 14, 14]),
        ("double", [6] * 6, [12] * 6, [18] * 6),
        ("frozen", [0] * 6, [0] * 6, [0] * 6),
    ],
)
def test_each_reward_carries_the_version_that_paid_it(
    forward: str,
    first: list[int],
    second: list[int],
    resumed: list[int],
    twin: Any,
    make_prm: Any,
    make_batch: Any,
    tmp_path: Path,
) -> None:
    def paid_by(prm: ImplicitPrm, step: int) -> list[int]:
        batch = make_batch(step=step, groups=6, size=1)
        prm.update(batch)
        versions_B = prm.rewards(batch).prm_versions_B
        assert versions_B is not None
        assert versions_B.dtype == torch.int32
        return versions_B.tolist()

    prm = make_prm(twin(), forward=forward, mini_batch=2, epochs=2)
    assert paid_by(prm, 1) == first
    assert paid_by(prm, 2) == second
    save(prm, tmp_path)
    again = make_prm(twin(), forward=forward, mini_batch=2, epochs=2)
    again.load(tmp_path)
    assert paid_by(again, 3) == paid_by(prm, 3) == resumed
    (tmp_path / "prm.json").write_text('{"beta": 0.05}')
    with pytest.raises(ModelError, match=r"found no `version`.* this checkpoint is of an older priml; go on with"):
        again.load(tmp_path)


# --- the losses --------------------------------------------------------------------------------------------------


def whole_gradient(module: Any, language_model: Any, batch: Batch, ref_BT: Tensor, loss: str) -> tuple[float, Tensor]:
    """The loss of the whole batch by its definition, and its gradient."""
    model = language_model(module)
    (micro,) = model.micro_batches(batch, range(len(batch)))
    logprobs_bt, _ = model.score(micro)
    rewards_bt = implicit_rewards(logprobs_bt, micro.take(ref_BT), micro.mask_bt, beta=0.5)
    outcomes_b, groups_b = micro.take_rows(batch.outcomes_B), micro.take_rows(batch.groups_B)
    if loss == "ce":
        value = outcome_cross_entropy(rewards_bt, micro.mask_bt, outcomes_b)
    elif loss == "pairwise":
        value = pairwise_dpo(rewards_bt, micro.mask_bt, outcomes_b, groups_b)
    else:
        rivals_b = rival_scores(sequence_scores(rewards_bt, micro.mask_bt), outcomes_b, groups_b)
        value = detached_dpo(rewards_bt, micro.mask_bt, outcomes_b, rivals_b)
    gradients = torch.autograd.grad(value, list(module.parameters()))
    return float(value.detach()), torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("loss", ["ce", "pairwise", "detached"])
@pytest.mark.parametrize("budget", [100_000, 30, 1])
def test_micro_batches_give_the_loss_and_gradient_of_the_whole(
    loss: str,
    budget: int,
    twin: Any,
    make_prm: Any,
    language_model: Any,
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = twin().double()
    ref_BT = language_model(module).scores(batch).logprobs_BT.double()
    with torch.no_grad():
        module.model.norm.weight.mul_(1.4)
    value, expected = whole_gradient(module, language_model, batch, ref_BT, loss)
    prm = make_prm(module, micro_batch_tokens=budget, loss=loss)
    seen: list[Tensor] = []
    step = prm.engine.optimizer.step
    monkeypatch.setattr(
        prm.engine.optimizer,
        "step",
        lambda total, **scale: (
            seen.append(torch.cat([p.grad.flatten() for p in module.parameters()])),
            step(total, **scale),
        )[1],
    )

    found, norm = prm._learn(batch, range(len(batch)), ref_BT, torch.zeros_like(ref_BT))

    assert found == pytest.approx(value, rel=1e-6)
    assert norm == pytest.approx(float(expected.norm()), rel=1e-6)
    torch.testing.assert_close(seen[0], expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("loss", ["ce", "pairwise", "detached"])
@pytest.mark.parametrize("budget", [100_000, 30])
def test_it_learns_to_tell_right_from_wrong(loss: str, budget: int, module: Any, make_prm: Any, batch: Batch) -> None:
    prm = make_prm(module, loss=loss, micro_batch_tokens=budget, mini_batch=6)
    reports = [prm.update(batch) for _ in range(12)]
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert reports[-1].pair_accuracy == 1.0
    assert reports[-1].auc > 0.9


def test_the_report_is_of_the_fresh_responses(module: Any, make_prm: Any, batch: Batch) -> None:
    prm = make_prm(module, mini_batch=6)
    for _ in range(2):
        report = prm.update(batch)
    rewards_BT = prm.rewards(batch).rewards_BT
    scores_B = sequence_scores(rewards_BT, batch.mask_BT)
    lengths_B = batch.response_lengths_B.float()
    assert report.reward_mean == pytest.approx(float(scores_B.mean()))
    assert report.pair_accuracy == float(pair_accuracy(rewards_BT, batch.mask_BT, batch.outcomes_B, batch.groups_B))
    assert report.accuracy == pytest.approx(float(((scores_B > 0) == (batch.outcomes_B > 0.5)).float().mean()))
    expected = torch.corrcoef(torch.stack([scores_B, lengths_B]))[0, 1]
    assert report.length_correlation == pytest.approx(float(expected))
    assert report.metrics().keys() == {
        f"prm/{n}"
        for n in (
            "beta",
            "accuracy",
            "pair_accuracy",
            "mixed_groups",
            "mixed_accuracy",
            "reward_mean",
            "auc",
            "length_correlation",
            "loss",
            "grad_norm",
        )
    }


def test_metrics_without_a_meaning_are_left_out(module: Any, make_prm: Any, batch: Batch) -> None:
    metrics = make_prm(module, forward="frozen").update(batch).metrics()
    assert metrics.keys().isdisjoint({"prm/loss", "prm/grad_norm", "prm/length_correlation"})
    assert all(math.isfinite(value) for value in metrics.values())


def test_learning_rate_clip_and_epochs_act(twin: Any, make_prm: Any, batch: Batch) -> None:
    def moved(**changes: Any) -> float:
        module = twin()
        before = flat(module)
        make_prm(module, **changes).update(batch)
        return float((flat(module) - before).norm())

    plain = moved()
    assert moved(lr=1e-3) == pytest.approx(plain / 10, rel=1e-2)
    assert moved(epochs=3) > 1.5 * plain
    assert moved(max_grad_norm=1e-8) < 0.9 * plain, "Adam's epsilon shows once gradients are this small"


# --- where rewards are paid --------------------------------------------------------------------------------------


def test_granularities_place_the_same_total(twin: Any, make_prm: Any, batch: Batch) -> None:
    paid = {}
    for granularity in ("token", "step", "whole"):
        prm = make_prm(twin(), granularity=granularity, forward="double")
        prm.update(batch)
        paid[granularity] = prm.rewards(batch).rewards_BT
    for rewards_BT in paid.values():
        torch.testing.assert_close(rewards_BT.sum(1), paid["token"].sum(1))
        assert bool((rewards_BT[~batch.mask_BT] == 0).all())
    for row, ends in enumerate(batch.step_ends):
        assert set(paid["step"][row].nonzero().flatten().tolist()) <= set(ends)
        assert paid["whole"][row].nonzero().flatten().tolist() == [int(batch.response_lengths_B[row]) - 1]


@pytest.mark.parametrize("size", [None, 1, 3, 4, 6, 7, 100])
def test_groups_are_never_split(batch: Batch, size: int | None) -> None:
    plan = list(whole_groups(batch.groups_B, size))
    assert sorted(chain.from_iterable(plan)) == list(range(len(batch)))
    groups = [set(batch.groups_B[rows].tolist()) for rows in plan]
    assert sum(len(g) for g in groups) == 4, "each of the four groups is in one mini-batch"
    assert all(len(rows) <= max(size or 100, 3) for rows in plan)
    assert len(plan) == {None: 1, 1: 4, 3: 4, 4: 4, 6: 2, 7: 2, 100: 1}[size]


def test_a_token_beyond_the_prms_embeddings_is_a_clear_error(module: Any, make_prm: Any, batch: Batch) -> None:
    rows = len(module.lm_head.weight)
    batch.tokens_BL[1, 0] = rows
    with pytest.raises(RunError, match=f"the policy wrote token {rows}, .* PRM with its {rows} tokens"):
        make_prm(module).update(batch)


# --- beta, state -------------------------------------------------------------------------------------------------


def test_beta_auto_follows_the_first_batch_and_survives_a_checkpoint(
    module: Any, twin: Any, make_prm: Any, batch: Batch, make_batch: Any, tmp_path: Path
) -> None:
    prm = make_prm(module, beta=None)
    beta = BETA_TIMES_LENGTH / float(batch.response_lengths_B.float().mean())
    assert prm.update(batch).beta == pytest.approx(beta)
    longer = make_batch(step=2, seed=5)
    assert float(longer.response_lengths_B.float().mean()) != float(batch.response_lengths_B.float().mean())
    save(prm, tmp_path)
    resumed = make_prm(twin(), beta=None)
    resumed.load(tmp_path)
    for role in (prm, resumed):
        assert role.update(longer).beta == pytest.approx(beta)
        assert role.rewards(longer).beta == pytest.approx(beta)
    assert prm.digest() == resumed.digest()
    assert torch.equal(prm.rewards(longer).rewards_BT, resumed.rewards(longer).rewards_BT)


def test_beta_scales_the_rewards(twin: Any, make_prm: Any, batch: Batch) -> None:
    module = twin()
    with torch.no_grad():
        module.model.norm.weight.mul_(1.2)
    paid = []
    for beta in (0.1, 0.2):
        prm = make_prm(module, beta=beta, forward="frozen")
        prm.update(batch)
        paid.append(prm.rewards(batch).rewards_BT)
    torch.testing.assert_close(2 * paid[0], paid[1])


@pytest.mark.parametrize("loss", ["ce", "pairwise", "detached"])
@pytest.mark.parametrize("budget", [100_000, 30])
def test_it_stops_before_the_optimizer_moves_with_the_batch_at_hand(
    loss: str, budget: int, module: Any, make_prm: Any, batch: Batch
) -> None:
    prm = make_prm(module, loss=loss, micro_batch_tokens=budget)
    with torch.no_grad():
        module.model.norm.weight[0] = float("nan")
    before = weights_digest(module)
    with pytest.raises(NonFiniteError, match="PRM loss is nan") as caught:
        prm.update(batch)
    assert weights_digest(module) == before
    assert caught.value.tensors is not None
    assert torch.equal(caught.value.tensors["outcomes"], batch.outcomes_B)
    assert not module.training


# --- likelihood: only right responses are learnt from -----------------------------------------------------------


def test_the_likelihood_is_learnt_from_right_responses_alone(
    module: Any, twin: Any, make_prm: Any, batch: Batch
) -> None:
    other = replace(batch, tokens_BL=batch.tokens_BL.clone())
    for row in torch.nonzero(batch.outcomes_B == 0).flatten().tolist():
        start = int(batch.prompt_lengths_B[row])
        other.tokens_BL[row, start : int(batch.lengths_B[row])] = 5
    first, second = make_prm(module, loss="likelihood"), make_prm(twin(), loss="likelihood")
    first.update(batch)
    second.update(other)
    assert first.digest() == second.digest()
    assert first.version == 1


@pytest.mark.parametrize("budget", [100_000, 30, 1])
def test_the_likelihood_is_the_same_however_it_is_cut(
    module: Any, twin: Any, make_prm: Any, batch: Batch, budget: int
) -> None:
    whole, cut = make_prm(module, loss="likelihood"), make_prm(twin(), loss="likelihood", micro_batch_tokens=budget)
    reports = whole.update(batch), cut.update(batch)
    assert reports[1].loss == pytest.approx(reports[0].loss, abs=1e-6)
    assert reports[1].grad_norm == pytest.approx(reports[0].grad_norm, rel=1e-4)


def test_every_response_is_paid_as_it_was_before_the_likelihood_learnt(
    module: Any, make_prm: Any, batch: Batch
) -> None:
    prm = make_prm(module, loss="likelihood")
    prm.update(batch)
    assert bool((prm.rewards(batch).rewards_BT == 0).all())
    prm.update(batch)
    paid = prm.rewards(batch)
    right = batch.outcomes_B > 0
    assert float(sequence_scores(paid.rewards_BT, batch.mask_BT)[right].mean()) > 0
    assert paid.prm_versions_B is not None
    assert paid.prm_versions_B.tolist() == [1] * len(batch)


def test_a_step_without_a_right_response_leaves_the_prm_as_it_is(module: Any, make_prm: Any, batch: Batch) -> None:
    prm = make_prm(module, loss="likelihood", replay=Replay(2, 100, seed=0))
    before = prm.digest()
    report = prm.update(replace(batch, outcomes_B=torch.zeros(len(batch))))
    assert prm.digest() == before
    assert (report.loss, report.grad_norm, report.mixed_groups, prm.version) == (None, None, 0, 0)
    prm.update(batch)
    kept = prm.digest()
    assert kept != before
    prm.update(replace(batch, step=2, outcomes_B=torch.zeros(len(batch))))
    assert prm.digest() != kept  # it goes on with those that it has kept
