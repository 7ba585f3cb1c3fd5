"""The critic: values that learn the returns, on a whole batch, however it is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fakes import save
from priml.batch import Batch
from priml.errors import NonFiniteError
from priml.learners.critic import LocalCritic
from priml.learners.engine import TorchEngine
from priml.maths.policy_loss import clipped_value_loss
from priml.models.checkpoint import weights_digest
from priml.models.forward import ValueModel
from priml.models.load import load_critic

CPU = torch.device("cpu")


@pytest.fixture
def fresh(module: Any, tokenizer: Any, tmp_path: Path) -> Any:
    """Critics made from the folder of a language model."""
    module.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return lambda: load_critic(str(tmp_path / "model"), device=CPU)


@pytest.fixture
def build_critic(tokenizer: Any, make_optimizer: Any) -> Any:
    def make(module: Any, *, micro_batch_tokens: int = 100_000, lr: float = 1e-2, **changes: Any) -> LocalCritic:
        model = ValueModel(module, device=CPU, precision="fp32", micro_batch_tokens=micro_batch_tokens)
        given: dict[str, Any] = {"clip": 0.5, "mini_batch": None, "epochs": 1, "seed": 0}
        engine = TorchEngine(model, tokenizer, make_optimizer(module, role="critic", lr=lr))
        return LocalCritic(engine, **(given | changes))

    return make


def experienced(module: Any) -> Any:
    """With a head that says something."""
    with torch.no_grad():
        module.lm_head.weight.copy_(
            torch.randn(module.lm_head.weight.shape, generator=torch.Generator().manual_seed(5))
        )
    return module


def make_returns(batch: Batch) -> Tensor:
    return batch.outcomes_B[:, None].expand(batch.mask_BT.shape).masked_fill(~batch.mask_BT, 0.0)


def flat(module: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_new_critic_knows_nothing(fresh: Any, build_critic: Any, batch: Batch) -> None:
    critic = build_critic(fresh())
    scored_by = critic.estimate_values(batch)
    assert scored_by.values_BT is not None
    assert not scored_by.values_BT.any()
    report = critic.update(scored_by, make_returns(batch))
    # Half the mean square of the returns over all tokens: outcomes are 0 and 1.
    assert report.loss == pytest.approx(0.5 * float(make_returns(batch)[batch.mask_BT].mean()))
    assert report.explained_variance == pytest.approx(0.0, abs=1e-6)
    assert report.metrics().keys() == {
        f"critic/{name}" for name in ("value_mean", "loss", "grad_norm", "explained_variance")
    }


def test_it_learns_what_a_response_will_return(fresh: Any, build_critic: Any, batch: Batch) -> None:
    critic = build_critic(fresh(), mini_batch=4)
    reports = [critic.update(critic.estimate_values(batch), make_returns(batch)) for _ in range(40)]
    assert reports[-1].loss < 0.2 * reports[0].loss
    assert reports[-1].explained_variance > 0.7


@pytest.mark.parametrize("budget", [30, 1])
def test_micro_batches_give_the_loss_and_gradient_of_the_whole(
    fresh: Any, build_critic: Any, batch: Batch, budget: int
) -> None:
    found = []
    for tokens in (100_000, budget):
        module = experienced(fresh().double())
        critic = build_critic(module, micro_batch_tokens=tokens, clip=0.1)
        scored_by = critic.estimate_values(batch)
        noise_BT = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(6))
        scored_by = replace(scored_by, values_BT=scored_by.values_BT + 0.3 * noise_BT)  # so that the clip acts
        found.append((critic.update(scored_by, make_returns(batch)), flat(module)))
    (whole, expected), (report, weights) = found
    for name in report.__slots__:
        assert getattr(report, name) == pytest.approx(getattr(whole, name), rel=1e-6), name
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-8)


def test_the_loss_is_the_clipped_value_loss_of_the_whole_batch(fresh: Any, build_critic: Any, batch: Batch) -> None:
    critic = build_critic(experienced(fresh()), micro_batch_tokens=30, clip=0.1)
    values_BT = critic.estimate_values(batch).values_BT
    old_BT = values_BT + 0.4
    expected = clipped_value_loss(values_BT, old_BT, make_returns(batch), batch.mask_BT, clip=0.1)
    report = critic.update(replace(batch, values_BT=old_BT), make_returns(batch))
    assert report.loss == pytest.approx(float(expected), rel=1e-5)


def test_padding_does_not_matter(fresh: Any, build_critic: Any, batch: Batch) -> None:
    weights = []
    for padding in (0.0, float("nan")):
        module = experienced(fresh())
        critic = build_critic(module)
        scored_by = critic.estimate_values(batch)
        values_BT, returns_BT = (
            x.masked_fill(~batch.mask_BT, padding) for x in (scored_by.values_BT, make_returns(batch))
        )
        critic.update(replace(scored_by, values_BT=values_BT), returns_BT)
        weights.append(flat(module))
    assert torch.equal(weights[0], weights[1])


def test_a_restored_critic_goes_on_exactly(fresh: Any, build_critic: Any, batch: Batch, tmp_path: Path) -> None:
    one, other = (build_critic(fresh(), mini_batch=5, epochs=2) for _ in range(2))
    one.update(one.estimate_values(batch), make_returns(batch))
    assert one.digest() != other.digest()
    save(one, tmp_path)
    other.load(tmp_path)
    for critic in (one, other):
        critic.update(critic.estimate_values(batch), make_returns(batch))
    assert one.digest() == other.digest()


def test_an_exported_critic_is_where_another_one_starts(
    fresh: Any, build_critic: Any, batch: Batch, tmp_path: Path
) -> None:
    critic = build_critic(fresh())
    critic.update(critic.estimate_values(batch), make_returns(batch))
    critic.export(tmp_path / "critic")
    again = build_critic(load_critic(str(tmp_path / "critic"), device=CPU))
    assert again.digest() == critic.digest()


def test_it_stops_before_the_optimizer_moves_with_the_batch_at_hand(
    fresh: Any, build_critic: Any, batch: Batch
) -> None:
    module = fresh()
    critic = build_critic(module)
    scored_by = critic.estimate_values(batch)
    before = weights_digest(module)
    returns_BT = make_returns(batch)
    returns_BT[1, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="critic loss is inf") as caught:
        critic.update(scored_by, returns_BT)
    assert weights_digest(module) == before
    assert caught.value.tensors is not None
    assert torch.equal(caught.value.tensors["returns"], returns_BT)
