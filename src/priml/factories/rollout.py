"""The sampler of the settings, with the weights of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from priml.config.backend import LocalBackend, RayBackend
from priml.config.models import Lora
from priml.config.rollout import Sampler as SamplerSettings
from priml.config.rollout import TransformersSampler as TransformersSamplerSettings
from priml.config.rollout import VllmSampler as VllmSamplerSettings
from priml.config.train import TrainConfig
from priml.data.steps import step_ends
from priml.errors import ConfigError
from priml.factories.device import DeviceSpec
from priml.rollout.base import Sampler
from priml.rollout.transformers import TransformersSampler
from priml.types import Prompt, Tokenizer

if TYPE_CHECKING:
    from priml.rollout.vllm import VllmSampler


def check_sampler(settings: SamplerSettings, backend: LocalBackend | RayBackend) -> None:
    """Find out whether an engine of this process can be imported before models are loaded, which may take long.

    Raises:
        ConfigError: it cannot; the message says what to type.
    """
    if isinstance(settings, VllmSamplerSettings) and isinstance(backend, LocalBackend):
        from priml.rollout.vllm import import_vllm

        import_vllm()


def build_sampler(
    settings: SamplerSettings,
    module: nn.Module,
    tokenizer: Tokenizer,
    place: DeviceSpec,
    *,
    longest: int,
    lora: Lora | None = None,
) -> Sampler:
    """The sampler, speaking with the weights of `module`, which has adapters if there is `lora`. `longest`: tokens of
    the longest prompt and its response.

    Raises:
        ConfigError: the engine is not installed, or cannot be used here.
        ModelError: it cannot sample from this model.
    """
    if isinstance(settings, TransformersSamplerSettings):
        return TransformersSampler(
            module, tokenizer, device=place.device, precision=place.precision, max_rows=settings.max_rows
        )
    if place.device.index:
        raise ConfigError(
            f"backend.device: found {place.device}, and vLLM takes the first device that it sees; set backend.device: "
            f"cuda, and start with CUDA_VISIBLE_DEVICES={place.device.index}"
        )
    engine = build_vllm_engine(settings, module, tokenizer, place.precision, longest=longest, lora=lora)
    engine.verify_weight_sync_with(module)
    return engine


def build_vllm_engine(
    settings: VllmSamplerSettings,
    module: nn.Module,
    tokenizer: Tokenizer,
    precision: str,
    *,
    longest: int,
    lora: Lora | None,
) -> VllmSampler:
    """The engine for a module of this architecture, before `verify_weight_sync`. `precision`: the trainer's.

    Raises:
        ConfigError: the engine is not installed, or cannot be used here.
    """
    from priml.rollout.vllm import VllmSampler

    return VllmSampler(
        module,
        tokenizer,
        precision=precision,
        longest=longest,
        max_rows=settings.max_rows,
        kv_cache_gib=settings.kv_cache_gib,
        dtype=settings.dtype,
        tensor_parallel=settings.tensor_parallel,
        enforce_eager=settings.enforce_eager,
        sleep=settings.sleep,
        probe_bound=settings.probe_bound,
        adapter_rank=lora.rank if lora and settings.adapters == "apart" else None,
    )


def step_end_finder(cfg: TrainConfig, tokenizer: Tokenizer) -> Callable[[Sequence[int]], list[int]]:
    """Finds the tokens of a response that end a step, as the PRM is to see them."""
    return partial(step_ends, tokenizer=tokenizer, pattern=cfg.prm.step_pattern if cfg.prm else r"\n")


def longest_sequence(prompts: Iterable[Prompt], max_new_tokens: int) -> int:
    """Tokens of the longest of these prompts with the longest response to it."""
    return max(len(prompt.token_ids) for prompt in prompts) + max_new_tokens
