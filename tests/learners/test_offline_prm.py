import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from fakes import save
from priml.batch import Row, collate
from priml.errors import NonFiniteError
from priml.learners.engine import TorchEngine
from priml.learners.offline_prm import ImplicitScorer, OfflinePrm, judge_scores
from priml.learners.prm_losses import prm_loss
from priml.learners.reference import FrozenReference
from priml.maths.prm_loss import sequence_scores
from priml.models.prm_card import PrmCard, read_card

LOSSES = ("ce", "dpo", "kto", "nca")
AT_FIRST = {"ce": math.log(2), "dpo": math.log(2), "kto": 0.5, "nca": 2 * math.log(2)}


@pytest.fixture
def make_prm(module, twin, language_model, make_optimizer, tokenizer):
    """A PRM of this loss from the initial weights, and a scorer that reads its live weights."""

    def make(loss: str = "ce", micro_batch_tokens: int = 100_000, **changes):
        live = twin()
        model, reference = language_model(live, micro_batch_tokens), FrozenReference(language_model(twin()))
        optimizer = make_optimizer(live, role="PRM", **changes)
        given = {"loss": prm_loss(loss), "beta": 0.2, "reference_source": "start"}
        prm = OfflinePrm(TorchEngine(model, tokenizer, optimizer), reference=reference, **given)
        return prm, ImplicitScorer(model, reference, beta=0.2)

    return make


@pytest.mark.parametrize("loss", LOSSES)
def test_at_first_every_loss_is_that_of_a_prm_that_knows_nothing(make_prm, batch, loss):
    report = make_prm(loss)[0].update(batch, lr_scale=1.0)
    assert report.loss == pytest.approx(AT_FIRST[loss], abs=1e-6)
    assert report.grad_norm > 0
    assert report.reward_mean == 0.0
    assert report.auc == 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_right_responses_rise_above_wrong_ones(make_prm, batch, loss):
    prm, scorer = make_prm(loss)
    for _ in range(25):
        prm.update(batch, lr_scale=1.0)
    found = prm.evaluate([batch])
    assert found["auc"] > 0.9
    assert found["pair_accuracy"] > 0.9
    scores_B = sequence_scores(scorer.score(batch).rewards_BT, batch.mask_BT)
    assert float(scores_B[batch.outcomes_B == 1].mean()) > float(scores_B[batch.outcomes_B == 0].mean())


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_change_neither_loss_nor_weights(make_prm, batch, loss):
    (whole, scorer), (split, split_scorer) = make_prm(loss), make_prm(loss, micro_batch_tokens=20)
    for _ in range(3):
        reports = [prm.update(batch, lr_scale=1.0) for prm in (whole, split)]
        assert reports[0].loss == pytest.approx(reports[1].loss, rel=1e-4)
        assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=1e-3)
    torch.testing.assert_close(
        scorer.score(batch).rewards_BT, split_scorer.score(batch).rewards_BT, atol=2e-4, rtol=1e-3
    )


def test_the_dpo_of_pairs_is_the_textbook_one(make_prm, batch):
    prm, scorer = make_prm("dpo")
    rows = [
        Row([5, 6], ids, outcome=outcome, group=group, step_ends=())
        for group, (good, bad) in enumerate([([7, 8, 9], [10]), ([11], [12, 13])])
        for ids, outcome in ((good, 1.0), (bad, 0.0))
    ]
    pairs = collate(rows, step=1)
    prm.update(batch, lr_scale=1.0)  # away from the start, where everything is 0
    z = sequence_scores(scorer.score(pairs).rewards_BT, pairs.mask_BT)
    expected = -logsigmoid(torch.stack([z[0] - z[1], z[2] - z[3]])).mean()
    assert prm.update(pairs, lr_scale=1.0).loss == pytest.approx(float(expected), rel=1e-5)


def test_judging_leaves_out_what_means_nothing():
    ones, alone = torch.ones(2), torch.tensor([0, 1])
    found = judge_scores(torch.tensor([1.0, -1.0]), ones, alone, torch.tensor([3, 3]))
    assert set(found) == {"accuracy", "reward_mean", "cross_entropy"}
    assert found["accuracy"] == 0.5
    found = judge_scores(
        torch.tensor([2.0, -2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]), torch.tensor([1, 2, 3])
    )
    assert found["pair_accuracy"] == 1.0  # the group of one is not counted as a half
    assert found["auc"] == 1.0


def test_a_resumed_prm_goes_on_bit_for_bit(make_prm, batch, tmp_path):
    straight, scorer = make_prm("kto")
    first, _ = make_prm("kto")
    for prm in (straight, first):
        prm.update(batch, lr_scale=0.5)
    save(first, tmp_path)
    second, second_scorer = make_prm("kto")
    second.load(tmp_path)
    assert straight.update(batch, lr_scale=1.0) == second.update(batch, lr_scale=1.0)
    assert torch.equal(scorer.score(batch).rewards_BT, second_scorer.score(batch).rewards_BT)
    assert straight.digest() == second.digest()


def test_the_exported_folder_says_what_scoring_needs(make_prm, batch, tmp_path):
    prm, _ = make_prm("nca")
    digest = prm.digest()
    prm.update(batch, lr_scale=1.0)
    prm.export(tmp_path)
    assert read_card(str(tmp_path)) == PrmCard(beta=0.2, reference="start", reference_sha256=digest, loss="nca")


def test_a_loss_that_is_not_finite_moves_nothing(make_prm, batch):
    prm, _ = make_prm("ce")
    before = prm.digest()
    broken = replace(batch, outcomes_B=torch.full_like(batch.outcomes_B, float("nan")))
    with pytest.raises(NonFiniteError) as raised:
        prm.update(broken, lr_scale=1.0)
    assert prm.digest() == before
    assert raised.value.tensors is not None


# --- scores without learning -------------------------------------------------------------------------------------


def nudged(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)), alpha=0.05)
    return module


def test_equal_models_give_rewards_of_exactly_zero(module, twin, language_model, batch):
    reference = FrozenReference(language_model(twin(), 60))
    scored = ImplicitScorer(language_model(module, 60), reference, beta=0.5).score(batch)
    assert float(scored.prm_logprobs_BT.abs().sum()) > 0
    assert not scored.rewards_BT.any()


def test_rewards_are_the_scaled_difference_and_zero_on_padding(module, twin, language_model, batch):
    reference = FrozenReference(language_model(twin()))
    scored = ImplicitScorer(language_model(nudged(module)), reference, beta=0.5).score(batch)
    expected = 0.5 * (scored.prm_logprobs_BT - scored.ref_logprobs_BT)
    torch.testing.assert_close(scored.rewards_BT, expected)
    assert not scored.rewards_BT[~batch.mask_BT].any()
    assert bool((scored.rewards_BT[batch.mask_BT] != 0).all())
