"""What all learners do with their model besides learning: digest, save, load, export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from transformers import PreTrainedModel

from priml.learners.optimizer import Optimizer
from priml.models.checkpoint import load_weights, save_model, stage_weights, weights_digest
from priml.models.export import export
from priml.models.forward import TokenModel
from priml.types import Tokenizer, Write

M = TypeVar("M", bound=TokenModel)


@dataclass(eq=False)
class Trained(Generic[M]):
    """A model, its tokenizer and its optimizer."""

    model: M
    tokenizer: Tokenizer
    optimizer: Optimizer
    write: Callable[[PreTrainedModel, Tokenizer, Path], None] = save_model
    """Exports module and tokenizer to a folder."""

    def digest(self) -> str:
        return weights_digest(self.model.module)

    def stage(self, folder: Path) -> list[Write]:
        return [*stage_weights(self.model.module, folder / "weights.safetensors"), *self.optimizer.stage(folder)]

    def load(self, folder: Path) -> None:
        load_weights(self.model.module, folder / "weights.safetensors")
        self.optimizer.load(folder)

    def export(self, folder: Path) -> None:
        export(self.model, self.tokenizer, folder, self.write)
