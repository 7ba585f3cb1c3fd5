"""Settings of the backend: where a run computes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from priml.config.base import Settings, ShortForm


def tokens_per_pass(chosen: int | Literal["auto"], *, on_cpu: bool) -> int:
    """What `micro_batch_tokens` means on a device."""
    return chosen if chosen != "auto" else 2048 if on_cpu else 16384


class Device(Settings):
    """Everything in this process, on one device."""

    kind: Literal["local"] = "local"
    device: str = "auto"
    """`auto` (CUDA when there is one, else CPU), `cpu`, `cuda`, `cuda:1`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute type; weights and optimizer stay fp32. `auto`: bf16 on CUDA devices that have it, fp32 elsewhere."""


class LocalBackend(Device):
    """Everything in this process, on one device, where models score or learn."""

    micro_batch_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens per pass, computed padding included. Changes memory and speed, never the loss. `auto`: 2048 on a CPU,
    whose cache they suit, 16384 elsewhere."""
    packing: Literal["auto", "always", "never"] = "auto"
    """Lay the rows of a pass end to end, without padding, and compute a prompt once for all its responses. `auto`: on
    a CPU, where it pays and the architecture allows it. `always` refuses an architecture that does not."""


class RayBackend(Settings):
    """Roles as Ray actors, on one machine or many (the `cluster` extra): policy, PRM, reference and critic sharded over
    the same ranks with FSDP2, samplers and verifiers in pools. See docs/cluster.md."""

    kind: Literal["ray"]
    address: str | None = None
    """A running Ray cluster: `auto` for the one this machine belongs to, or `ray://HOST:10001`; null starts Ray on this
    machine alone and ends it with the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the ranks compute on: `auto` is `cuda` where the cluster has GPUs. One rank takes one device."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute type; weights and optimizer stay fp32. `auto`: bf16 on CUDA devices that have it, fp32 elsewhere."""
    micro_batch_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens per pass of a rank, computed padding included. Changes memory and speed, never the loss. `auto`: 2048 on a
    CPU, whose cache they suit, 16384 elsewhere."""
    packing: Literal["auto", "always", "never"] = "auto"
    """Lay the rows of a pass end to end, without padding, and compute a prompt once for all its responses. `auto`: on
    a CPU, where it pays and the architecture allows it. `always` refuses an architecture that does not."""
    ranks: PositiveInt = 2
    """Processes that train, each on its share of the rows and with its share of the weights; a run may be resumed with
    another number of them."""
    replicas: PositiveInt = 1
    """Copies of the sharded models (HSDP): with several nodes, one copy a node keeps most of the traffic inside."""
    samplers: PositiveInt = 1
    """Processes that sample."""
    colocate: bool = True
    """Samplers share the devices of the ranks, taking turns; `false` gives each a device of its own."""
    verifiers: PositiveInt = 1
    """Processes that grade; each has the workers that `verify` sets."""
    placement: Literal["pack", "spread"] = "pack"
    """Ranks on as few nodes as possible, or each on a node of its own."""
    cpu_offload: bool = False
    """Keep the shards in the CPU's memory and run the optimizer there: for models too large for the GPUs."""
    collective_timeout: PositiveFloat = 1800.0
    """Seconds that a rank waits for the others before the run ends. The longest update, and reading a model in the
    first rank, must take less."""
    restarts: Annotated[int, Field(ge=0)] = 2
    """How often the run begins again from its last checkpoint when a rank is lost."""

    @model_validator(mode="after")
    def _shares_are_whole(self) -> Self:
        if self.ranks % self.replicas:
            raise ValueError(
                f"need ranks to be a multiple of replicas, got ranks={self.ranks}, replicas={self.replicas}; change one"
            )
        if self.cpu_offload and self.device == "cpu":
            raise ValueError("cpu_offload: there is nothing to offload from with device: cpu; set cpu_offload: false")
        return self


Backend = Annotated[LocalBackend | RayBackend, Field(discriminator="kind"), ShortForm("local")]
