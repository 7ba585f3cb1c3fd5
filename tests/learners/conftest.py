"""A tiny model and a batch of groups for the roles."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from priml.batch import Batch, Row, collate
from priml.learners.engine import TorchEngine
from priml.learners.optimizer import Optimizer
from priml.learners.prm import ImplicitPrm
from priml.learners.prm_losses import prm_loss
from priml.learners.reference import FrozenReference
from priml.models.forward import LanguageModel
from priml.models.tiny import character_tokenizer, tiny_model

CPU = torch.device("cpu")
EVERYTHING = 100_000


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return character_tokenizer()


@pytest.fixture
def module(tokenizer: Any) -> Any:
    made: Any = tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.2)
    return made


@pytest.fixture
def twin(module: Any) -> Callable[[], Any]:
    """Another module with the weights that `module` had at first."""
    pristine = copy.deepcopy(module)
    return lambda: copy.deepcopy(pristine)


@pytest.fixture(scope="session")
def language_model() -> Callable[..., LanguageModel]:
    def make(module: Any, micro_batch_tokens: int = EVERYTHING) -> LanguageModel:
        return LanguageModel(module, device=CPU, precision="fp32", micro_batch_tokens=micro_batch_tokens)

    return make


@pytest.fixture(scope="session")
def make_optimizer() -> Callable[..., Optimizer]:
    def make(module: Any, **changes: Any) -> Optimizer:
        given = {"role": "policy", "lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 0.0, "max_grad_norm": 1e9}
        return Optimizer(module, **(given | changes))

    return make


def groups_batch(*, step: int = 1, groups: int = 4, size: int = 3, seed: int = 0) -> Batch:
    """Scattered groups of mixed outcomes, prompts of 1 to 6 and responses of 1 to 9 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    def ids(count: int) -> list[int]:
        return torch.randint(3, 100, (count,), generator=generator).tolist()

    prompts = [ids(integer(1, 7)) for _ in range(groups)]
    rows: list[Row] = []
    for sample in range(size):
        for group in range(groups):
            length = integer(1, 10)
            ends = sorted({length // 3, length - 1})
            outcome = float((group + sample) % 2)
            rows.append(Row(prompts[group], ids(length), outcome=outcome, group=group, step_ends=ends))
    return collate(rows, step=step)


@pytest.fixture
def batch() -> Batch:
    return groups_batch()


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    return groups_batch


@pytest.fixture
def make_prm(tokenizer: Any, language_model: Any, make_optimizer: Any, twin: Any) -> Any:
    def make(
        module: Any, *, micro_batch_tokens: int = 100_000, reference: Any = None, lr: float = 1e-2, **changes: Any
    ) -> ImplicitPrm:
        given: dict[str, Any] = {
            "forward": "single",
            "loss": "ce",
            "beta": 0.5,
            "granularity": "token",
            "mini_batch": None,
            "epochs": 1,
        }
        if reference is None:
            reference = FrozenReference(language_model(twin().to(module.dtype), micro_batch_tokens))
        optimizer = {name: changes.pop(name) for name in ("max_grad_norm",) if name in changes}
        given |= changes
        given["loss"] = prm_loss(given["loss"])
        return ImplicitPrm(
            TorchEngine(
                language_model(module, micro_batch_tokens),
                tokenizer,
                make_optimizer(module, role="PRM", lr=lr, **optimizer),
            ),
            reference=reference,
            **given,
        )

    return make
