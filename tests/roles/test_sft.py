"""Supervised fine-tuning: the mean negative log-likelihood of the response, whatever the micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from priml.batch import Batch
from priml.errors import NonFiniteError
from priml.models.checkpoint import weights_digest
from priml.models.load import load_model
from priml.roles.sft import SupervisedModel


def test_the_loss_is_per_response_token_and_the_prompt_has_none(
    module: Any, tokenizer: Any, batch: Batch, language_model: Any, stepper: Any
) -> None:
    scores = language_model(module).scores(batch)
    expected = -float(scores.logprobs_BT.sum() / batch.response_lengths_B.sum())
    model = SupervisedModel(language_model(module), tokenizer, stepper(module))
    assert model.update(batch, lr_scale=1.0)[0] == pytest.approx(expected, rel=1e-6)


def test_micro_batches_give_the_loss_and_gradient_of_the_whole(
    twin: Any, tokenizer: Any, batch: Batch, language_model: Any, stepper: Any
) -> None:
    found = []
    for budget in (100_000, 30, 1):
        module = twin().double()
        role = SupervisedModel(language_model(module, budget), tokenizer, stepper(module, lr=1e-3))
        found.append((role.update(batch, lr_scale=1.0), torch.cat([p.detach().flatten() for p in module.parameters()])))
    for (loss, norm), weights in found[1:]:
        assert loss == pytest.approx(found[0][0][0], rel=1e-9)
        assert norm == pytest.approx(found[0][0][1], rel=1e-9)
        torch.testing.assert_close(weights, found[0][1], rtol=1e-6, atol=1e-9)


def test_it_learns_and_exports_what_it_learnt(
    module: Any, tokenizer: Any, batch: Batch, language_model: Any, stepper: Any, tmp_path: Path
) -> None:
    role = SupervisedModel(language_model(module), tokenizer, stepper(module))
    losses = [role.update(batch, lr_scale=1.0)[0] for _ in range(16)]
    assert losses[-1] < 0.7 * losses[0]
    role.export(tmp_path)
    assert weights_digest(load_model(str(tmp_path), device=torch.device("cpu"))) == weights_digest(module)


def test_a_learning_rate_of_zero_moves_nothing(
    module: Any, tokenizer: Any, batch: Batch, language_model: Any, stepper: Any
) -> None:
    before = weights_digest(module)
    SupervisedModel(language_model(module), tokenizer, stepper(module)).update(batch, lr_scale=0.0)
    assert weights_digest(module) == before


def test_it_stops_before_the_optimizer_moves_with_the_batch_at_hand(
    module: Any, tokenizer: Any, batch: Batch, language_model: Any, stepper: Any
) -> None:
    role = SupervisedModel(language_model(module), tokenizer, stepper(module))
    with torch.no_grad():
        module.model.norm.weight[0] = float("nan")
    before = weights_digest(module)
    with pytest.raises(NonFiniteError) as caught:
        role.update(batch, lr_scale=1.0)
    assert caught.value.tensors is not None
    assert torch.equal(caught.value.tensors["tokens"], batch.tokens_BL)
    assert weights_digest(module) == before
    assert not module.training
