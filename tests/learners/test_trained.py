"""What every trainable role does with its model besides learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fakes import save
from priml.learners.trained import Trained
from priml.models.checkpoint import weights_digest
from priml.models.load import load_model


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
    one, other = (Trained(language_model(m), tokenizer, s) for m, s in zip(modules, optimizers, strict=True))
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
    Trained(language_model(module), tokenizer, make_optimizer(module)).export(tmp_path)
    assert weights_digest(load_model(str(tmp_path), device=torch.device("cpu"))) == weights_digest(module)
