"""The policy update: the clipped loss on a whole batch, however it is cut."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes import save
from priml.batch import Batch, Row, TokenScores, collate
from priml.errors import NonFiniteError, RunError
from priml.learners.engine import TorchEngine
from priml.learners.policy import LocalPolicy, Objective
from priml.maths.masking import masked_mean
from priml.maths.policy_loss import clipped_surrogate, importance_weights
from priml.models.checkpoint import weights_digest


@pytest.fixture
def build_policy(tokenizer: Any, language_model: Any, make_optimizer: Any) -> Any:
    def make(module: Any, *, micro_batch_tokens: int = 100_000, lr: float = 1e-2, **changes: Any) -> LocalPolicy:
        given: dict[str, Any] = {
            "mini_batch": None,
            "epochs": 1,
            "temperature": 1.0,
            "seed": 0,
        }
        objective: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2, "aggregate": "sequence_mean"}
        for name in Objective.__slots__:
            if name in changes:
                objective[name] = changes.pop(name)
        engine = TorchEngine(language_model(module, micro_batch_tokens), tokenizer, make_optimizer(module, lr=lr))
        return LocalPolicy(engine, objective=Objective(**objective), **(given | changes))

    return make


def make_advantages(batch: Batch) -> Tensor:
    return torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def nudged(twin: Any, language_model: Any) -> Any:
    """An initial policy from which `module` has moved away."""
    other = twin()
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
            parameter.add_(0.1 * noise)
    return language_model(other)


def flat(module: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def shifted(batch: Batch) -> Batch:
    """Old log-probs that the policy has moved away from, so that the clip acts."""
    assert batch.old is not None
    noise_BT = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(3)).masked_fill(
        ~batch.mask_BT, 0
    )
    return batch.with_old(replace(batch.old, logprobs_BT=batch.old.logprobs_BT + 0.4 * noise_BT))


def sampled_elsewhere(batch: Batch) -> Batch:
    """The log-probs of another engine, a little off the trainer's, and nonsense on padding."""
    noise_BT = 0.2 * torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(5))
    sampler_BT = (batch.old_logprobs_BT + noise_BT).masked_fill(~batch.mask_BT, float("nan"))
    return replace(batch, sampler_logprobs_BT=sampler_BT)


@pytest.mark.parametrize("budget", [100_000, 30, 1])
def test_an_unmoved_policy_has_a_ratio_of_exactly_one(
    module: Any, build_policy: Any, batch: Batch, budget: int
) -> None:
    policy = build_policy(module, micro_batch_tokens=budget)
    _, report = policy.update(policy.score(batch), make_advantages(batch))
    assert (report.ratio_max, report.clip_fraction, report.kl_old) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("objective", [{}, {"importance_level": "token", "importance_cap": 1.1}, {"kl_weight": 0.3}])
@pytest.mark.parametrize("budget", [100_000, 30])
def test_one_step_over_the_batch_takes_the_old_scores_from_its_own_passes_to_the_bit(
    budget: int, objective: dict[str, Any], twin: Any, build_policy: Any, batch: Batch, nudged: Any
) -> None:
    sampler_BT = sampled_elsewhere(build_policy(twin(), temperature=0.7).score(batch)).sampler_logprobs_BT
    batch = replace(batch, sampler_logprobs_BT=sampler_BT)
    found = []
    for scores_in_update in (False, True):
        module = twin()
        policy = build_policy(
            module,
            micro_batch_tokens=budget,
            temperature=0.7,
            initial=nudged,
            scores_in_update=scores_in_update,
            **objective,
        )
        given = policy.score(batch)
        assert (given.old is None) == scores_in_update
        scored, report = policy.update(given, make_advantages(batch))
        assert report.ratio_max == 1.0
        found.append((scored.old, report, flat(module)))
    (old, report, weights), (late, late_report, late_weights) = found
    assert torch.equal(late.logprobs_BT, old.logprobs_BT)
    assert torch.equal(late.entropies_BT, old.entropies_BT)
    assert torch.equal(late_weights, weights)
    assert late_report == report


@pytest.mark.parametrize("changes", [{"mini_batch": 5, "epochs": 2}, {"skip_truncated": True}], ids=str)
def test_what_the_first_mini_batch_lacks_is_scored_before_the_policy_moves(
    changes: dict[str, Any], twin: Any, build_policy: Any, batch: Batch
) -> None:
    batch.truncated_B[[1, 5]] = True
    one, other = twin(), twin()
    plain, late = build_policy(one, **changes), build_policy(other, **changes, scores_in_update=True)
    scored, report = plain.update(plain.score(batch), make_advantages(batch))
    late_scored, late_report = late.update(late.score(batch), make_advantages(batch))
    torch.testing.assert_close(late_scored.old_logprobs_BT, scored.old_logprobs_BT, rtol=0, atol=1e-6)
    torch.testing.assert_close(flat(other), flat(one), rtol=1e-4, atol=1e-4)  # Adam enlarges the last digits
    assert late_report.loss == pytest.approx(report.loss, abs=1e-5)


def test_recall_scores_at_the_sampling_temperature(
    module: Any, build_policy: Any, language_model: Any, batch: Batch
) -> None:
    scored_by = build_policy(module, temperature=0.7).score(batch)
    expected = language_model(module).scores(batch, temperature=0.7)
    assert torch.equal(scored_by.old_logprobs_BT, expected.logprobs_BT)
    _, report = build_policy(module, temperature=0.7).update(scored_by, make_advantages(batch))
    assert report.ratio_max == 1.0
    assert report.entropy == pytest.approx(float(masked_mean(expected.entropies_BT, batch.mask_BT)))


OBJECTIVES: list[dict[str, Any]] = [
    *[{"aggregate": a} for a in ("token_mean", "sequence_mean")],
    *[{"aggregate": a, "surrogate": "gspo", "clip_high": 0.05} for a in ("token_mean", "sequence_mean")],
    {"aggregate": "constant_length", "constant_length": 12, "dual_clip": 1.3},
    {"surrogate": "cispo", "aggregate": "constant_length", "constant_length": 12},
    *[{"kl_weight": 0.3, "kl_estimator": k} for k in ("k1", "k2", "k3")],
    {"aggregate": "token_mean", "kl_weight": 0.3, "entropy_bonus": 0.2, "skip_truncated": True},
    *[{"importance_level": level, "importance_cap": 1.1} for level in ("token", "sequence")],
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_micro_batches_give_the_loss_and_gradient_of_the_whole(
    objective: dict[str, Any], twin: Any, build_policy: Any, batch: Batch, nudged: Any
) -> None:
    batch.truncated_B[[1, 5]] = True
    found = []
    for budget in (100_000, 30, 1):
        module = twin().double()
        policy = build_policy(module, micro_batch_tokens=budget, initial=nudged, **objective)
        scored_by = sampled_elsewhere(shifted(policy.score(batch)))
        _, report = policy.update(scored_by, make_advantages(batch))
        found.append((report, flat(module)))
    whole, expected = found[0]
    assert 0 < whole.clip_fraction < 1
    for report, weights in found[1:]:
        for name in report.__slots__:
            value = getattr(whole, name)
            assert getattr(report, name) == (None if value is None else pytest.approx(value, rel=1e-6)), name
        torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean"])
def test_the_loss_is_the_clipped_surrogate_of_the_whole_batch(
    aggregate: Any, module: Any, build_policy: Any, language_model: Any, batch: Batch
) -> None:
    scored_by = shifted(build_policy(module).score(batch))
    expected, stats = clipped_surrogate(
        language_model(module).scores(batch).logprobs_BT,
        scored_by.old_logprobs_BT,
        make_advantages(batch),
        batch.mask_BT,
        clip_low=0.2,
        clip_high=0.2,
        aggregate=aggregate,
    )
    _, report = build_policy(module, aggregate=aggregate, micro_batch_tokens=30).update(
        scored_by, make_advantages(batch)
    )
    assert report.loss == pytest.approx(float(expected), rel=1e-5)
    assert report.clip_fraction == pytest.approx(float(stats.clip_fraction))
    assert report.kl_old == pytest.approx(float(stats.kl_k3), rel=1e-5)
    assert report.metrics().keys() == {
        f"policy/{name}" for name in ("loss", "grad_norm", "entropy", "clip_fraction", "kl_old", "ratio_max")
    }


@pytest.mark.parametrize(
    ("level", "expected"),
    [("token", [2.0, 1.0, 0.5, 0.25]), ("sequence", [0.25] * 4)],
)
def test_a_response_of_two_weight_versions_is_corrected_for_each(level: Any, expected: list[float]) -> None:
    # Older weights sampled the first two tokens with 1/4 and 1/2, newer ones the others with 1. Today each has 1/2,
    # but the last, which has 1/4.
    row = Row(
        [5],
        [6, 7, 8, 9],
        outcome=1.0,
        group=0,
        step_ends=(),
        sampler_logprobs=[math.log(p) for p in (0.25, 0.5, 1.0, 1.0)],
        weight_versions=np.array([3, 3, 4, 4], np.int32),
    )
    today_BT = torch.tensor([[0.5, 0.5, 0.5, 0.25]]).log()
    batch = collate([row], step=6).with_old(TokenScores(today_BT, torch.zeros(1, 4)))
    objective = Objective(clip_low=0.2, clip_high=0.2, aggregate="token_mean", importance_level=level, importance_cap=9)
    weights_BT = objective.weights(batch.old_logprobs_BT, batch.sampler_logprobs_BT, batch.mask_BT)
    assert weights_BT is not None
    torch.testing.assert_close(weights_BT, torch.tensor([expected]))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_what_another_engine_sampled_is_weighted_by_the_truncated_ratio(
    level: Any, twin: Any, build_policy: Any, language_model: Any, batch: Batch
) -> None:
    scored_by = sampled_elsewhere(build_policy(twin()).score(batch))
    assert scored_by.sampler_logprobs_BT is not None
    weights_BT = importance_weights(
        scored_by.old_logprobs_BT, scored_by.sampler_logprobs_BT, batch.mask_BT, level=level, cap=1.1
    )
    expected, _ = clipped_surrogate(
        language_model(twin()).scores(batch).logprobs_BT,
        scored_by.old_logprobs_BT,
        make_advantages(batch),
        batch.mask_BT,
        clip_low=0.2,
        clip_high=0.2,
        aggregate="sequence_mean",
        weights_BT=weights_BT,
    )
    weighted = build_policy(twin(), importance_level=level, importance_cap=1.1)
    _, report = weighted.update(scored_by, make_advantages(batch))
    assert report.loss == pytest.approx(float(expected), rel=1e-5)
    capped = ((weights_BT > 1.0999) & batch.mask_BT).sum() / batch.mask_BT.sum()
    assert 0 < capped < 1
    assert report.importance_capped == pytest.approx(float(capped))
    _, plain = build_policy(twin()).update(scored_by, make_advantages(batch))
    assert plain.importance_capped is None
    assert abs(plain.loss - report.loss) > 1e-4


def test_padding_in_the_advantages_and_tokens_does_not_matter(twin: Any, build_policy: Any, batch: Batch) -> None:
    weights = []
    lengths_B = batch.prompt_lengths_B + batch.response_lengths_B
    is_padding_BL = torch.arange(batch.tokens_BL.shape[1]) >= lengths_B[:, None]
    for padding, token in ((0.0, 0), (float("nan"), 55)):
        module = twin()
        policy = build_policy(module)
        padded = replace(batch, tokens_BL=batch.tokens_BL.masked_fill(is_padding_BL, token))
        advantages_BT = make_advantages(batch).masked_fill(~batch.mask_BT, padding)
        policy.update(policy.score(padded), advantages_BT)
        weights.append(flat(module))
    assert torch.equal(weights[0], weights[1])


def test_mini_batches_cover_the_batch_in_an_order_that_seed_step_and_epoch_decide(
    module: Any, build_policy: Any, batch: Batch, make_batch: Any
) -> None:
    def plan(batch: Batch, **changes: Any) -> list[list[int]]:
        return list(build_policy(module, mini_batch=5, epochs=2, **changes)._mini_batches(batch))

    first = plan(batch)
    assert [len(rows) for rows in first] == [5, 5, 2] * 2
    assert all(sorted(chain.from_iterable(epoch)) == list(range(12)) for epoch in (first[:3], first[3:]))
    assert first[:3] != first[3:], "epochs differ"
    assert plan(batch) == first
    assert plan(batch, seed=1) != first
    assert plan(make_batch(step=2)) != first


def test_a_mini_batch_is_one_optimizer_step_and_later_ones_see_a_moved_policy(
    twin: Any, build_policy: Any, batch: Batch
) -> None:
    one, many = twin(), twin()
    scored_by = build_policy(one).score(batch)
    _, whole = build_policy(one).update(scored_by, make_advantages(batch))
    _, cut = build_policy(many, mini_batch=4, epochs=2).update(scored_by, make_advantages(batch))
    assert whole.ratio_max == 1.0 < cut.ratio_max
    assert cut.kl_old > 0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_probability_of_a_response_follows_its_advantage(
    sign: float, module: Any, build_policy: Any, batch: Batch
) -> None:
    policy = build_policy(module)
    scored_by = policy.score(batch)
    advantages_BT = torch.zeros(batch.mask_BT.shape)
    advantages_BT[2] = sign
    for _ in range(3):
        policy.update(scored_by, advantages_BT)
    gain_BT = policy.score(batch).old_logprobs_BT - scored_by.old_logprobs_BT
    assert sign * float(gain_BT[2].sum()) > 0.1


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_penalty_pulls_the_policy_back_to_the_initial_one(
    estimator: str, module: Any, build_policy: Any, batch: Batch, nudged: Any
) -> None:
    policy = build_policy(module, initial=nudged, kl_weight=0.5, kl_estimator=estimator, lr=3e-3)
    nothing_BT = torch.zeros(batch.mask_BT.shape)
    reports = [policy.update(policy.score(batch), nothing_BT)[1] for _ in range(15)]
    distances = [report.kl_initial for report in reports]
    assert distances[0] > 0.05
    assert distances[-1] < 0.5 * distances[0]
    assert all(later < earlier for earlier, later in pairwise(distances[:6]))


def test_without_advantage_penalty_and_bonus_there_is_nothing_to_learn(
    module: Any, build_policy: Any, batch: Batch, nudged: Any
) -> None:
    before = weights_digest(module)
    policy = build_policy(module, initial=nudged, kl_weight=0.0)
    _, report = policy.update(policy.score(batch), torch.zeros(batch.mask_BT.shape))
    assert weights_digest(module) == before
    assert report.kl_initial is not None
    assert report.kl_initial > 0


def test_the_kl_term_is_read_at_the_sampling_temperature_and_leaves_the_initial_policy_alone(
    module: Any, twin: Any, build_policy: Any, language_model: Any, batch: Batch
) -> None:
    initial = language_model(twin())
    before = weights_digest(initial.module)
    policy = build_policy(module, initial=initial, kl_weight=1.0, temperature=0.7)
    scored_by = policy.score(batch)
    assert torch.equal(scored_by.initial_logprobs_BT, scored_by.old_logprobs_BT), "they are the same policy still"
    _, report = policy.update(scored_by, make_advantages(batch))
    assert report.kl_initial == 0.0
    assert report.metrics()["policy/kl_initial"] == 0.0
    assert weights_digest(initial.module) == before != policy.digest()


def test_the_entropy_bonus_raises_the_entropy(module: Any, build_policy: Any, batch: Batch) -> None:
    policy = build_policy(module, entropy_bonus=0.1)
    nothing_BT = torch.zeros(batch.mask_BT.shape)
    entropies = [policy.update(policy.score(batch), nothing_BT)[1].entropy for _ in range(8)]
    assert all(later > earlier for earlier, later in pairwise(entropies))


def test_skipped_responses_have_no_part_in_the_update(twin: Any, build_policy: Any, batch: Batch) -> None:
    batch.truncated_B[[0, 4, 7]] = True
    one, other = twin(), twin()
    policy = build_policy(one, skip_truncated=True, aggregate="token_mean", entropy_bonus=0.1)
    scored_by = shifted(policy.score(batch))
    advantages_BT = make_advantages(batch)
    policy.update(scored_by, advantages_BT.masked_fill(batch.truncated_B[:, None], 1e6))
    # The same as if the others were the whole mini-batch.
    rows = (~batch.truncated_B).nonzero().flatten().tolist()
    reference = build_policy(other, aggregate="token_mean", entropy_bonus=0.1)
    reference._accumulate(scored_by, advantages_BT, rows, [])
    reference.engine.step(0.0)
    assert torch.equal(flat(one), flat(other))


def test_a_batch_of_nothing_but_truncated_responses_is_refused_with_the_way_out(
    module: Any, build_policy: Any, batch: Batch
) -> None:
    batch.truncated_B[:] = True
    policy = build_policy(module, skip_truncated=True)
    with pytest.raises(RunError, match=r"all 12 responses .* raise sampling.max_new_tokens"):
        policy.update(policy.score(batch), make_advantages(batch))


def test_it_stops_before_the_optimizer_moves_with_the_batch_at_hand(
    module: Any, build_policy: Any, batch: Batch
) -> None:
    policy = build_policy(module)
    scored_by = policy.score(batch)
    advantages_BT = make_advantages(batch)
    advantages_BT[1, 0] = float("inf")
    before = weights_digest(module)
    with pytest.raises(NonFiniteError, match="policy loss is") as caught:
        policy.update(scored_by, advantages_BT)
    assert weights_digest(module) == before
    assert caught.value.tensors is not None
    assert torch.equal(caught.value.tensors["advantages"], advantages_BT)
    assert torch.equal(caught.value.tensors["old_logprobs"], scored_by.old_logprobs_BT)
    assert not module.training


def test_a_restored_policy_goes_on_exactly(twin: Any, build_policy: Any, batch: Batch, tmp_path: Path) -> None:
    straight, resumed = twin(), twin()
    one, other = (build_policy(m, mini_batch=5) for m in (straight, resumed))
    one.update(one.score(batch), make_advantages(batch))
    save(one, tmp_path)
    other.load(tmp_path)
    assert one.digest() == other.digest()
    for policy in (one, other):
        policy.update(policy.score(batch), make_advantages(batch))
    assert one.digest() == other.digest()
    assert straight.lm_head.weight is straight.model.embed_tokens.weight
    assert resumed.lm_head.weight is resumed.model.embed_tokens.weight


def test_the_sampler_reads_the_live_module(module: Any, build_policy: Any) -> None:
    assert build_policy(module).weights() is module
