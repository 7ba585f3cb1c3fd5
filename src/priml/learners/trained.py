"""What all trainable roles do with their model besides learning: tell its digest, save, load and export it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from priml.learners.optimizer import Optimizer
from priml.models.checkpoint import load_weights, save_model, stage_weights, weights_digest
from priml.models.forward import TokenModel
from priml.types import Tokenizer, Write

M = TypeVar("M", bound=TokenModel)


class Trained(Generic[M]):
    """A model, its tokenizer and its optimizer."""

    def __init__(
        self,
        model: M,
        tokenizer: Tokenizer,
        optimizer: Optimizer,
        write: Callable[[nn.Module, Any, Path], None] = save_model,
    ) -> None:
        """`write` exports module and tokenizer to a folder."""
        self._model = model
        self._tokenizer = tokenizer
        self._optimizer = optimizer
        self._write = write

    def digest(self) -> str:
        """sha256 of the weights."""
        return weights_digest(self._model.module)

    def stage(self, folder: Path) -> list[Write]:
        """Copy trained weights and optimizer state to host memory; what is returned writes them."""
        return [*stage_weights(self._model.module, folder / "weights.safetensors"), *self._optimizer.stage(folder)]

    def load(self, folder: Path) -> None:
        """Restore what was written there."""
        load_weights(self._model.module, folder / "weights.safetensors")
        self._optimizer.load(folder)

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder, or what the settings of adapters say."""
        self._write(self._model.module, self._tokenizer, folder)
