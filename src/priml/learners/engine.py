"""What a role needs of the machine: a model that scores, learns and is saved, in one process or over several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

from torch import Tensor

from priml.batch import Batch, TokenScores
from priml.distributed.process_group import ProcessGroup, total
from priml.learners.optimizer import Optimizer
from priml.models.checkpoint import load_weights, save_model, stage_weights
from priml.models.export import export
from priml.models.forward import MicroBatch, TokenModel
from priml.types import Tokenizer, Write

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MicroScoresT = TypeVar("MicroScoresT")
ScoresT = TypeVar("ScoresT")
ScoresT_co = TypeVar("ScoresT_co", covariant=True)
MicroScoresT_co = TypeVar("MicroScoresT_co", covariant=True)


class Scorer(Protocol[ScoresT_co]):
    """A model that need not learn."""

    def scores(self, batch: Batch, rows: Sequence[int] | None = None, *, temperature: float = 1.0) -> ScoresT_co:
        """What the model says of the trained tokens of these rows (None: of all).

        [B, T] on the CPU, 0 elsewhere, without gradient. Two models score the same rows in the same shapes, so equal
        weights give equal numbers.
        """
        ...

    def digest(self) -> str:
        """sha256 of the weights."""
        ...


class TrainerEngine(Scorer[ScoresT_co], Protocol[MicroScoresT_co, ScoresT_co]):
    """A model and its optimizer. Roles know nothing else of modules, devices and ranks.

    Every rank of a process group calls the same methods in the same order, with the same whole batch.
    """

    @property
    def process_group(self) -> ProcessGroup:
        """The ranks, for sums of what a role adds up by itself."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model reads."""
        ...

    def count_micro_batches(self, batch: Batch, rows: Sequence[int]) -> int:
        """How many micro-batches `accumulate` makes of these rows, over all ranks."""
        ...

    def accumulate(
        self,
        batch: Batch,
        rows: Sequence[int],
        loss: Callable[[MicroBatch, MicroScoresT_co], Tensor],
        *,
        temperature: float = 1.0,
    ) -> float:
        """Add the gradient of a mini-batch to what the optimizer will use. Returns its loss, that of all ranks.

        `loss(micro, scores)` is a micro-batch's share: a sum with the denominator of the mini-batch. `scores` are those
        of the micro-batch, [b, t] on its device.
        """
        ...

    def step(self, loss: float, *, lr_scale: float = 1.0) -> float:
        """Move the weights along the gradient. Returns its norm before clipping.

        Raises:
            NonFiniteError: `loss` or the norm is NaN or infinite; nothing has moved.
        """
        ...

    def stage(self, folder: Path) -> list[Write]:
        """Copy weights and optimizer state to host memory. Returns functions, each of which writes one file."""
        ...

    def load(self, folder: Path) -> None:
        """Restore what `stage` wrote."""

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder."""

    def weights(self) -> PreTrainedModel:
        """The newest weights, for a sampler. With several ranks each holds its shards."""
        ...


LanguageEngine: TypeAlias = TrainerEngine[tuple[Tensor, Tensor], TokenScores]
"""Scores are log-probs and entropies."""
ValueEngine: TypeAlias = TrainerEngine[Tensor, Tensor]
"""Scores are values."""


@dataclass(eq=False)
class TorchEngine(Generic[MicroScoresT, ScoresT]):
    """A `TrainerEngine` around a module of torch: whole in this process, or sharded over ranks by FSDP2."""

    model: TokenModel[MicroScoresT, ScoresT]
    tokenizer: Tokenizer
    optimizer: Optimizer
    write: Callable[[PreTrainedModel, Tokenizer, Path], None] = save_model
    """Exports module and tokenizer to a folder."""

    @property
    def process_group(self) -> ProcessGroup:
        return self.model.process_group

    @property
    def vocabulary(self) -> int:
        return self.model.vocabulary

    def scores(self, batch: Batch, rows: Sequence[int] | None = None, *, temperature: float = 1.0) -> ScoresT:
        return self.model.scores(batch, rows, temperature=temperature)

    def count_micro_batches(self, batch: Batch, rows: Sequence[int]) -> int:
        return self.model.count_micro_batches(batch, rows)

    def accumulate(
        self,
        batch: Batch,
        rows: Sequence[int],
        loss: Callable[[MicroBatch, MicroScoresT], Tensor],
        *,
        temperature: float = 1.0,
    ) -> float:
        share = 0.0
        with self.model.training():
            for micro in self.model.micro_batches(batch, rows):
                part = loss(micro, self.model.score(micro, temperature=temperature))
                part.backward()
                share += float(part.detach())
        return total(self.process_group, share)

    def step(self, loss: float, *, lr_scale: float = 1.0) -> float:
        return self.optimizer.step(loss, lr_scale=lr_scale)

    def digest(self) -> str:
        return self.model.digest()

    def stage(self, folder: Path) -> list[Write]:
        return [*stage_weights(self.model.module, folder / "weights.safetensors"), *self.optimizer.stage(folder)]

    def load(self, folder: Path) -> None:
        load_weights(self.model.module, folder / "weights.safetensors")
        self.optimizer.load(folder)

    def export(self, folder: Path) -> None:
        export(self.model, self.tokenizer, folder, self.write)

    def weights(self) -> PreTrainedModel:
        return self.model.module


EngineT = TypeVar("EngineT", LanguageEngine, ValueEngine)


@dataclass(eq=False)
class Trained(Generic[EngineT]):
    """A role with an engine of its own. On disk it is what the engine is."""

    engine: EngineT

    def digest(self) -> str:
        return self.engine.digest()

    def stage(self, folder: Path) -> list[Write]:
        return self.engine.stage(folder)

    def load(self, folder: Path) -> None:
        self.engine.load(folder)

    def export(self, folder: Path) -> None:
        self.engine.export(folder)
