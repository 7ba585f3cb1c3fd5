"""Supervised fine-tuning: the mean negative log-likelihood of the response, whatever the micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import save
from priml.batch import Batch, Row, collate
from priml.errors import NonFiniteError
from priml.learners.engine import TorchEngine
from priml.learners.sft import SupervisedModel
from priml.models.checkpoint import weights_digest
from priml.models.load import load_model


def test_the_loss_is_per_response_token_and_the_prompt_has_none(
    module: Any, tokenizer: Any, batch: Batch, language_model: Any, make_optimizer: Any
) -> None:
    scores = language_model(module).scores(batch)
    expected = -float(scores.logprobs_BT.sum() / batch.response_lengths_B.sum())
    model = SupervisedModel(TorchEngine(language_model(module), tokenizer, make_optimizer(module)))
    assert model.update(batch, lr_scale=1.0).loss == pytest.approx(expected, rel=1e-6)


def test_micro_batches_give_the_loss_and_gradient_of_the_whole(
    twin: Any, tokenizer: Any, batch: Batch, language_model: Any, make_optimizer: Any
) -> None:
    found = []
    for budget in (100_000, 30, 1):
        module = twin().double()
        role = SupervisedModel(TorchEngine(language_model(module, budget), tokenizer, make_optimizer(module, lr=1e-3)))
        found.append((role.update(batch, lr_scale=1.0), torch.cat([p.detach().flatten() for p in module.parameters()])))
    for report, weights in found[1:]:
        assert report.metrics() == pytest.approx(found[0][0].metrics(), rel=1e-9)
        torch.testing.assert_close(weights, found[0][1], rtol=1e-6, atol=1e-9)


def test_it_learns_and_exports_what_it_learnt(
    module: Any, tokenizer: Any, batch: Batch, language_model: Any, make_optimizer: Any, tmp_path: Path
) -> None:
    role = SupervisedModel(TorchEngine(language_model(module), tokenizer, make_optimizer(module)))
    losses = [role.update(batch, lr_scale=1.0).loss for _ in range(16)]
    assert losses[-1] < 0.7 * losses[0]
    role.export(tmp_path)
    assert weights_digest(load_model(str(tmp_path), device=torch.device("cpu"))) == weights_digest(module)


def test_a_learning_rate_of_zero_moves_nothing(
    module: Any, tokenizer: Any, batch: Batch, language_model: Any, make_optimizer: Any
) -> None:
    before = weights_digest(module)
    SupervisedModel(TorchEngine(language_model(module), tokenizer, make_optimizer(module))).update(batch, lr_scale=0.0)
    assert weights_digest(module) == before


def test_prompt_tokens_get_no_gradient(module: Any, tokenizer: Any, language_model: Any) -> None:
    class Still:
        """Keeps the gradient instead of stepping."""

        def step(self, loss: float, *, lr_scale: float) -> float:
            return 0.0

    still: Any = Still()
    prompt, response = (20, 21, 22), (30, 31)
    batch = collate([Row(prompt, response, 0.0, 0, ())], step=1)
    report = SupervisedModel(TorchEngine(language_model(module), tokenizer, still)).update(batch, lr_scale=1.0)
    head = module.get_output_embeddings().weight
    found = head.grad.clone()

    logprobs_TV = module(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    by_hand = -(logprobs_TV[2, 30] + logprobs_TV[3, 31]) / 2
    module.zero_grad()
    by_hand.backward()
    assert report.loss == pytest.approx(float(by_hand.detach()), abs=1e-5)
    torch.testing.assert_close(found, head.grad, atol=1e-6, rtol=1e-4)


def test_saved_and_loaded_it_goes_on_exactly(
    twin: Any, tokenizer: Any, batch: Batch, language_model: Any, make_optimizer: Any, tmp_path: Path
) -> None:
    straight, resumed = twin(), twin()
    one, other = (
        SupervisedModel(TorchEngine(language_model(m), tokenizer, make_optimizer(m))) for m in (straight, resumed)
    )
    one.update(batch, lr_scale=0.5)
    save(one, tmp_path)
    other.load(tmp_path)
    assert one.update(batch, lr_scale=1.0) == other.update(batch, lr_scale=1.0)
    assert weights_digest(straight) == weights_digest(resumed)


def test_it_stops_before_the_optimizer_moves_with_the_batch_at_hand(
    module: Any, tokenizer: Any, batch: Batch, language_model: Any, make_optimizer: Any
) -> None:
    role = SupervisedModel(TorchEngine(language_model(module), tokenizer, make_optimizer(module)))
    with torch.no_grad():
        module.model.norm.weight[0] = float("nan")
    before = weights_digest(module)
    with pytest.raises(NonFiniteError) as caught:
        role.update(batch, lr_scale=1.0)
    assert caught.value.tensors is not None
    assert torch.equal(caught.value.tensors["tokens"], batch.tokens_BL)
    assert weights_digest(module) == before
    assert not module.training


def test_held_out_loss_is_per_token_over_all_batches(
    module: Any, tokenizer: Any, batch: Batch, language_model: Any, make_optimizer: Any
) -> None:
    short = collate([Row((20, 21), (30,), 0.0, 0, ())], step=0)
    model = SupervisedModel(TorchEngine(language_model(module), tokenizer, make_optimizer(module)))
    logprobs = [language_model(module).scores(b).logprobs_BT.sum() for b in (batch, short)]
    tokens = int(batch.response_lengths_B.sum()) + 1
    assert model.evaluate([batch, short])["loss"] == pytest.approx(-float(sum(logprobs)) / tokens, rel=1e-6)
