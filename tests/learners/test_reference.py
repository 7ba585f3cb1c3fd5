"""What the PRM is compared with: a frozen model, or the policy that sampled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from priml.batch import Batch
from priml.learners.reference import FrozenReference, RolloutReference
from priml.models.checkpoint import weights_digest


@pytest.mark.parametrize("budget", [100_000, 30])
def test_a_frozen_reference_scores_as_the_model_would_without_gradient(
    module: Any, language_model: Any, batch: Batch, budget: int
) -> None:
    model = language_model(module, budget)
    reference = FrozenReference(model)
    assert reference.temperature == 1.0
    rows = [5, 0, 7]
    scored_BT = reference.logprobs(batch, rows)
    assert not scored_BT.requires_grad
    for micro in model.micro_batches(batch, rows):
        assert torch.equal(micro.take(scored_BT), model.score(micro)[0])
    assert reference.digest() == weights_digest(module)


def test_a_rollout_reference_needs_no_model(module: Any, language_model: Any, batch: Batch) -> None:
    model = language_model(module, 30)
    reference = RolloutReference(temperature=0.7)
    assert reference.temperature == 0.7, "the PRM is read at the same"
    batch = batch.with_old(model.scores(batch, temperature=0.7))
    assert torch.equal(reference.logprobs(batch, range(len(batch))), batch.old_logprobs_BT)
    assert reference.digest() is None
