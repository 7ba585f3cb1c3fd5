"""The device of this process, and models as they compute on it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from priml.config.backend import Device, LocalBackend, RayBackend, tokens_per_pass
from priml.distributed.process_group import ProcessGroup
from priml.errors import ConfigError
from priml.models.forward import LanguageModel, Packing, TokenModel, ValueModel

M = TypeVar("M", bound=TokenModel)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """The device and the arithmetic of this process."""

    device: torch.device
    precision: str
    micro_batch_tokens: int = 1
    """Read by models that score or learn."""
    packing: Packing = "never"
    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    """The processes that work on the same batch."""
    shard: Callable[[TokenModel], None] | None = None
    """Shards a model over the process group."""

    @property
    def device_facts(self) -> dict[str, str]:
        """For the manifest."""
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else platform.processor() or "cpu"
        return {"kind": self.device.type, "name": name, "precision": self.precision}

    @property
    def loads_on(self) -> torch.device:
        """Where models are loaded. Those to be sharded: on the CPU of rank 0, which sends them to the others."""
        if self.shard is None:
            return self.device
        return torch.device("cpu" if self.process_group.rank == 0 else "meta")

    def load(
        self, load: Callable[..., PreTrainedModel], source: str, *, trust_remote_code: bool = False
    ) -> PreTrainedModel:
        """A model folder, by a function such as `load_model`. A collective.

        Raises:
            ModelError: rank 0, which alone reads the weights, cannot load it. All ranks raise it.
        """
        first: list[PreTrainedModel] = []
        self.process_group.broadcast_from_rank0(
            lambda: first.append(load(source, device=self.loads_on, trust_remote_code=trust_remote_code))
        )
        return first[0] if first else load(source, device=self.loads_on, trust_remote_code=trust_remote_code)

    def model(self, module: PreTrainedModel) -> LanguageModel:
        """A module as a language model on this device. Make its optimizer afterwards: sharding replaces weights."""
        return self._build(LanguageModel, module)

    def value_model(self, module: PreTrainedModel) -> ValueModel:
        """A module with one output as a value model on this device."""
        return self._build(ValueModel, module)

    def _build(self, kind: type[M], module: PreTrainedModel) -> M:
        model = kind(
            module,
            device=self.device,
            precision=self.precision,
            micro_batch_tokens=self.micro_batch_tokens,
            process_group=self.process_group,
            packing=self.packing,
        )
        if self.shard is not None:
            self.shard(model)
        return model


def resolve_device(backend: Device | RayBackend) -> DeviceSpec:
    """Resolve `auto` device and precision. Also switches off the progress bars of transformers.

    Raises:
        ConfigError: the device does not exist here.
    """
    transformers_logging.disable_progress_bar()
    name = backend.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` makes tensors, but has no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"backend.device: found {backend.device!r}, which does not work here ({reason}); use auto or cpu"
        ) from None
    precision = backend.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if not isinstance(backend, LocalBackend | RayBackend):  # an evaluation scores nothing
        return DeviceSpec(device, precision)
    tokens = tokens_per_pass(backend.micro_batch_tokens, on_cpu=device.type == "cpu")
    return DeviceSpec(device, precision, tokens, backend.packing)
