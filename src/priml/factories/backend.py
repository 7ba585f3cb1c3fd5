"""One builder of the roles of a training run for each `backend.kind`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from priml.config.train import TrainConfig
from priml.factories.components import Components
from priml.factories.local import build_local_components
from priml.factories.ray import build_ray_components
from priml.types import Prompt, Tokenizer

BACKENDS: Mapping[str, Callable[[TrainConfig, Tokenizer, Sequence[Prompt]], Components]] = {
    "local": build_local_components,
    "ray": build_ray_components,
}


def build_components(cfg: TrainConfig, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> Components:
    """The roles of a run. `prompts` are all of the run, those of its evaluation included.

    Raises:
        UsageError: something that the settings name is missing, or does not fit.
    """
    return BACKENDS[cfg.backend.kind](cfg, tokenizer, prompts)
