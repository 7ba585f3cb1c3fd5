import torch

from priml.learners.prm_scorer import ImplicitScorer
from priml.learners.reference import FrozenReference


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
