"""What the PRM is compared with: a frozen model, or the policy that sampled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from priml.batch import Batch
from priml.learners.reference import FrozenReference, RolloutReference


@pytest.mark.parametrize("budget", [100_000, 30])
def test_a_frozen_reference_scores_as_the_model_would_without_gradient(
    module: Any, language_model: Any, batch: Batch, budget: int
) -> None:
    model = language_model(module, budget)
    reference = FrozenReference(model)
    assert reference.temperature == 1.0
    for micro in model.micro_batches(batch, range(len(batch))):
        scored_bt = reference.logprobs(batch, micro)
        assert torch.equal(scored_bt, model.score(micro)[0])
        assert not scored_bt.requires_grad


def test_a_rollout_reference_needs_no_model(module: Any, language_model: Any, batch: Batch) -> None:
    model = language_model(module, 30)
    reference = RolloutReference(temperature=0.7)
    assert reference.temperature == 0.7, "the PRM is read at the same"
    batch = batch.with_old(model.scores(batch, temperature=0.7))
    for micro in model.micro_batches(batch, range(len(batch))):
        assert torch.equal(reference.logprobs(batch, micro), micro.take(batch.old_logprobs_BT))
