"""A module of torch as a `TrainerEngine`; and that roles need nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fakes import save
from priml.batch import Batch, TokenScores
from priml.distributed.process_group import ProcessGroup
from priml.errors import NonFiniteError
from priml.learners.critic import LocalCritic
from priml.learners.engine import TorchEngine
from priml.learners.offline_prm import OfflinePrm
from priml.learners.policy import LocalPolicy, Objective
from priml.learners.prm import ImplicitPrm
from priml.learners.prm_losses import prm_loss
from priml.learners.reference import FrozenReference
from priml.learners.sft import SupervisedModel
from priml.models.checkpoint import weights_digest
from priml.models.forward import MicroBatch
from priml.models.load import load_model
from priml.types import Write


def learn(module: Any, make_optimizer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    make_optimizer.step(0.0)


def test_weights_and_optimizer_come_back_from_a_checkpoint(
    twin: Any, tokenizer: Any, language_model: Any, make_optimizer: Any, tmp_path: Path
) -> None:
    modules = twin(), twin()
    optimizers = [make_optimizer(module) for module in modules]
    one, other = (TorchEngine(language_model(m), tokenizer, s) for m, s in zip(modules, optimizers, strict=True))
    learn(modules[0], optimizers[0], seed=1)
    assert one.digest() != other.digest()
    save(one, tmp_path)
    other.load(tmp_path)
    assert one.digest() == other.digest() == weights_digest(modules[0])
    for module, mover in zip(modules, optimizers, strict=True):
        learn(module, mover, seed=2)
    assert one.digest() == other.digest(), "the optimizer's moments came back, too"


def test_an_exported_folder_holds_the_weights(
    module: Any, tokenizer: Any, language_model: Any, make_optimizer: Any, tmp_path: Path
) -> None:
    TorchEngine(language_model(module), tokenizer, make_optimizer(module)).export(tmp_path)
    assert weights_digest(load_model(str(tmp_path), device=torch.device("cpu"))) == weights_digest(module)


# --- roles need nothing else -----------------------------------------------------------------------------------------


class Counting:
    """An engine without a model: its one weight is the log-prob, the entropy and the value of every token."""

    process_group = ProcessGroup()
    vocabulary = 1000

    def __init__(self, *, is_critic: bool = False) -> None:
        self.weight = nn.Parameter(torch.tensor(-0.5))
        self.calls: Counter[str] = Counter()
        self._is_critic = is_critic

    def _outputs(self, mask_BT: Tensor) -> Any:
        x_BT = self.weight * mask_BT
        return x_BT if self._is_critic else (x_BT, x_BT)

    def scores(self, batch: Batch, rows: Sequence[int] | None = None, *, temperature: float = 1.0) -> Any:
        self.calls["scores"] += 1
        with torch.no_grad():
            outputs = self._outputs(batch.mask_BT)
        return outputs if self._is_critic else TokenScores(*outputs)

    def count_micro_batches(self, batch: Batch, rows: Sequence[int]) -> int:
        return len(rows)

    def accumulate(
        self, batch: Batch, rows: Sequence[int], loss: Callable[[MicroBatch, Any], Tensor], *, temperature: float = 1.0
    ) -> float:
        self.calls["accumulate"] += 1
        whole = 0.0
        for row in rows:
            mask_bt = batch.mask_BT[[row]]
            micro = MicroBatch(torch.tensor([row]), batch.tokens_BL[[row]], batch.loss_mask_BL[[row]], mask_bt)
            part = loss(micro, self._outputs(mask_bt))
            part.backward()
            whole += float(part.detach())
        return whole

    def step(self, loss: float, *, lr_scale: float = 1.0) -> float:
        self.calls["step"] += 1
        assert self.weight.grad is not None
        norm = float(self.weight.grad.abs())
        with torch.no_grad():
            self.weight -= 0.1 * lr_scale * self.weight.grad
        self.weight.grad = None
        return norm

    def digest(self) -> str:
        return f"{float(self.weight.detach()):.9f}"

    def stage(self, folder: Path) -> list[Write]:
        text = str(float(self.weight.detach()))

        def write() -> None:
            (folder / "weight").write_text(text)

        return [write]

    def load(self, folder: Path) -> None:
        nn.init.constant_(self.weight, float((folder / "weight").read_text()))

    def export(self, folder: Path) -> None:
        (folder / "model").write_text(self.digest())

    def weights(self) -> Any:
        return self.weight


def build_role(kind: str, engine: Any) -> tuple[Any, Callable[[Batch], Any]]:
    """A role around an engine, and its update of a batch."""
    given: dict[str, Any] = {"mini_batch": 6, "epochs": 2}
    if kind == "policy":
        objective = Objective(clip_low=0.2, clip_high=0.2, aggregate="token_mean", kl_weight=0.1)
        policy = LocalPolicy(engine, temperature=1.0, seed=0, objective=objective, initial=Counting(), **given)
        return policy, lambda b: policy.update(policy.score(b), b.mask_BT.float())[1]
    if kind == "critic":
        critic = LocalCritic(engine, clip=0.5, seed=0, **given)
        return critic, lambda b: critic.update(critic.estimate_values(b), b.mask_BT.float())
    if kind == "sft":
        model = SupervisedModel(engine)
        return model, lambda b: model.update(b, lr_scale=1.0)
    made = {"prm": ImplicitPrm, "offline prm": OfflinePrm}[kind]
    given = given if kind == "prm" else {}
    prm = made(engine, reference=FrozenReference(Counting()), loss=prm_loss("dpo"), beta=0.5, **given)
    return prm, prm.update


@pytest.mark.parametrize(
    ("kind", "steps", "scored"),
    [("policy", 4, 1), ("critic", 4, 1), ("prm", 4, 4), ("offline prm", 1, 1), ("sft", 1, 0)],
)
def test_every_role_learns_with_an_engine_that_has_no_model(
    kind: str, steps: int, scored: int, batch: Batch, tmp_path: Path
) -> None:
    engine = Counting(is_critic=kind == "critic")
    role, update = build_role(kind, engine)
    before = role.digest()
    report = update(batch)
    assert math.isfinite(report.loss)
    assert report.grad_norm > 0
    assert engine.calls == Counter({"accumulate": steps, "step": steps, "scores": scored})
    assert role.digest() != before
    save(role, tmp_path)
    resumed, _ = build_role(kind, Counting(is_critic=kind == "critic"))
    resumed.load(tmp_path)
    assert resumed.digest() == role.digest()
    role.export(tmp_path)
    assert (tmp_path / "model").read_text() == role.digest()
    if kind == "policy":
        assert role.weights() is engine.weight


@pytest.mark.parametrize("kind", ["policy", "critic", "prm", "offline prm", "sft"])
def test_what_an_engine_refuses_comes_with_the_batch(kind: str, batch: Batch) -> None:
    class Refusing(Counting):
        def step(self, loss: float, *, lr_scale: float = 1.0) -> float:
            raise NonFiniteError("the loss is nan; need finite numbers")

    _, update = build_role(kind, Refusing(is_critic=kind == "critic"))
    with pytest.raises(NonFiniteError) as caught:
        update(batch)
    assert caught.value.tensors is not None
