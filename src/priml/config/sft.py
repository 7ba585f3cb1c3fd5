"""Settings of `priml sft`."""

from __future__ import annotations

from pydantic import PositiveInt

from priml.config.backend import LocalBackend
from priml.config.base import RunDir, Seed, Settings, Share
from priml.config.data import PromptFormat, Source
from priml.config.models import ExportDtype, InitialModel, SftOptimizer
from priml.config.schedule import SftCheckpoint


class SftConfig(Settings):
    """Supervised warm start: loss on the response only, cosine schedule (paper appendix D)."""

    run_dir: RunDir
    """Output folder, refused when it already holds a run (resume with `priml sft RUN_DIR`); the trained model is
    `run_dir/model`."""
    model: InitialModel
    """What to start from."""
    data: Source
    """Rows with a problem and a `response` (or `solution`), or a procedural task that writes its own. A response is
    text, or a list of turns and observations."""
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
