"""The sampler of the settings, with the weights of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel

from priml.config.backend import Device, RayBackend
from priml.config.models import Lora
from priml.config.rollout import OpenAISampler as OpenAISettings
from priml.config.rollout import Sampler as AnySampler
from priml.config.rollout import TransformersSampler as TransformersSettings
from priml.config.rollout import VllmSampler as VllmSettings
from priml.config.train import TrainConfig
from priml.data.steps import step_ends
from priml.errors import ConfigError
from priml.factories.device import DeviceSpec
from priml.rollout.base import PoolableSampler
from priml.rollout.endpoint import Endpoint
from priml.rollout.engine import EngineSampler
from priml.rollout.transformers import TransformersSampler
from priml.rollout.vllm import VllmSampler, import_vllm
from priml.types import Prompt, Tokenizer


@dataclass(frozen=True, slots=True)
class SamplerInputs:
    """What samplers are built from, beside their settings."""

    module: PreTrainedModel
    """The policy. A sampler that holds its own weights reads only the architecture: it may lie on the meta device."""
    tokenizer: Tokenizer
    device: DeviceSpec
    longest: int
    """Tokens of the longest prompt and its response."""
    lora: Lora | None = None
    """The adapters of the module, if it has them."""


def _build_transformers(settings: TransformersSettings, inputs: SamplerInputs) -> PoolableSampler:
    device = inputs.device
    return TransformersSampler(
        inputs.module, inputs.tokenizer, device=device.device, precision=device.precision, max_rows=settings.max_rows
    )


def _build_vllm(settings: VllmSettings, inputs: SamplerInputs) -> PoolableSampler:
    device, lora = inputs.device, inputs.lora
    if device.device.index:
        raise ConfigError(
            f"backend.device: found {device.device}, and vLLM takes the first device that it sees; set backend.device: "
            f"cuda, and start with CUDA_VISIBLE_DEVICES={device.device.index}"
        )
    return VllmSampler(
        inputs.module,
        inputs.tokenizer,
        precision=device.precision,
        longest=inputs.longest,
        max_rows=settings.max_rows,
        kv_cache_gib=settings.kv_cache_gib,
        dtype=settings.dtype,
        tensor_parallel=settings.tensor_parallel,
        enforce_eager=settings.enforce_eager,
        sleep=settings.sleep,
        probe_bound=settings.probe_bound,
        adapter_rank=lora.rank if lora and settings.separate_adapters else None,
    )


@dataclass(frozen=True, slots=True)
class SamplerKind:
    """How the samplers of one `kind` are made."""

    build: Callable[..., PoolableSampler]
    """From its settings and `SamplerInputs`. With weights of its own it needs `verify_weight_sync` before it samples.

    Raises:
        ConfigError: the engine is not installed, or cannot be used here.
        ModelError: it cannot sample from this model.
    """
    check: Callable[[], None] = lambda: None
    """Raises ConfigError when something that it needs is not installed."""


SAMPLERS = {
    "transformers": SamplerKind(_build_transformers),
    "vllm": SamplerKind(_build_vllm, check=import_vllm),
}
"""By `sampler.kind`."""


def check_sampler(settings: AnySampler, backend: Device | RayBackend) -> None:
    """Check whether a sampler of this process can be built, before models are loaded.

    Raises:
        ConfigError: it cannot; the message says what to type.
    """
    if backend.kind == "local":
        SAMPLERS[settings.kind].check()


def build_sampler(
    settings: AnySampler,
    module: PreTrainedModel,
    tokenizer: Tokenizer,
    device: DeviceSpec,
    *,
    longest: int,
    lora: Lora | None = None,
) -> PoolableSampler:
    """The sampler with the weights of `module`, which has adapters if there is `lora`. `longest`: tokens of the longest
    prompt and its response.

    Raises:
        ConfigError: the engine is not installed, or cannot be used here.
        ModelError: it cannot sample from this model.
    """
    sampler = SAMPLERS[settings.kind].build(settings, SamplerInputs(module, tokenizer, device, longest, lora))
    if isinstance(sampler, EngineSampler):
        sampler.verify_weight_sync_with(module)
    return sampler


def build_endpoint(settings: OpenAISettings) -> Endpoint:
    """The server of the settings. Nothing is asked of it yet.

    Raises:
        ConfigError: the package that speaks with it is not installed.
    """
    return Endpoint(
        settings.base_url,
        settings.model,
        timeout=settings.timeout,
        retries=settings.retries,
    )


def step_end_finder(cfg: TrainConfig, tokenizer: Tokenizer) -> Callable[[Sequence[int]], list[int]]:
    """Finds the tokens of a response that end a step, as the PRM is to see them."""
    return partial(step_ends, tokenizer=tokenizer, pattern=cfg.prm.step_pattern if cfg.prm else r"\n")


def longest_sequence(prompts: Iterable[Prompt], max_new_tokens: int) -> int:
    """Tokens of the longest of these prompts with the longest response to it."""
    return max(len(prompt.token_ids) for prompt in prompts) + max_new_tokens
