"""Settings of `priml sft`."""

from __future__ import annotations

from pydantic import PositiveInt

from priml.config.backend import LocalBackend
from priml.config.base import RunDir, Seed, Settings, Share
from priml.config.data import PromptFormat, Source
from priml.config.models import ExportDtype, InitialModel, SftOptimizer
from priml.config.schedule import SftCheckpoint


class SftHeldOut(Settings):
    """Responses that are not used for training, to see when more training only learns them by heart."""

    data: Source | None = None
    """Held-out responses; null takes a share of the training prompts."""
    share: Share = 0.05
    """Share of the training prompts that is held out, by a hash of the prompt. Without effect where `data` is given."""
    every: PositiveInt | None = 50
    """Optimizer steps between evaluations; null: only after the last."""


class SftConfig(Settings):
    """Supervised warm start: loss on the response only, cosine schedule (paper appendix D)."""

    run_dir: RunDir
    """Output folder, refused when it already holds a run (resume with `priml sft RUN_DIR`); the trained model is
    `run_dir/model`."""
    model: InitialModel
    """What to start from."""
    data: Source
    """Rows to learn responses from, in one of the usual forms (docs/data.md), or a procedural task that writes its own.
    """
    held_out: SftHeldOut | None = None
    """What it is evaluated on while it trains, as `held_out/loss`; null: nothing."""
    prompt: PromptFormat = PromptFormat()
    """How problems are rendered; use the same in training and evaluation."""
    seed: Seed = 0
    """Seeds new weights and the order of the data."""
    epochs: PositiveInt = 3
    """Passes over the data."""
    batch: PositiveInt = 96
    """Examples per optimizer step."""
    max_response_tokens: PositiveInt = 3072
    """Examples with longer responses are dropped and counted."""
    optimizer: SftOptimizer = SftOptimizer()
    """Peak learning rate and the rest."""
    warmup: Share = 0.1
    """Share of the steps with rising learning rate, before the cosine decay to zero."""
    export_dtype: ExportDtype = "auto"
    """Type of the weights that the run leaves. `auto`: as they came; new ones are float32. They are trained in float32
    whatever it is."""
    checkpoint: SftCheckpoint = SftCheckpoint()
    """Checkpoints."""
    backend: LocalBackend = LocalBackend()
    """Where it runs."""
