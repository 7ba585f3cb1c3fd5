"""Rotary positions whose frequencies depend on how long the sequence is.

transformers takes the length of the longest row of a batch for all rows. A policy is a distribution given what stands
before a token. So each token is computed with the frequencies that the model has for its prefix alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from priml.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def frequency_switch(config: PreTrainedConfig) -> int | None:
    """Tokens of the longest sequence with the first frequencies of `longrope`; longer ones have the second. None: there
    is one set of frequencies."""
    lengths = [
        parameters.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for kind, parameters in _parameters(config)
        if kind in ("longrope", "su")
    ]
    return min((length for length in lengths if length), default=None)


def check_steady(module: PreTrainedModel, longest: int) -> None:
    """Refuse sequences in which `dynamic` frequencies change with every token. `longest`: tokens of the longest.

    A token's distribution would be of one pass over its prefix, for each token. Decoding with a cache is none of these.

    Raises:
        ModelError: there are such sequences.
    """
    config = module.config.get_text_config()
    steady = config.max_position_embeddings if any("dynamic" in kind for kind, _ in _parameters(config)) else None
    if steady is not None and longest > steady:
        raise ModelError(
            f"{type(module).__name__}: its RoPE is `dynamic`, whose frequencies change with every token after the "
            f"first {steady}, and a prompt with its response may have {longest}; shorten prompts or responses, or "
            "choose another `rope_type` in config.json, such as yarn"
        )


def _parameters(config: PreTrainedConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kinds of RoPE and their parameters; some architectures have several kinds of layers."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for parameters in (given, *(part for part in given.values() if isinstance(part, dict))):
        kind = parameters.get("rope_type", parameters.get("type"))
        if isinstance(kind, str):
            yield kind, parameters
