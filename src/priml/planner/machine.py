"""Devices and their peaks, machines made of them, and the share of the peaks that programs reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, or the processor. Rates are peaks; what is reached is in `Reached`."""

    name: str
    bf16_tflops: float
    """Dense, with fp32 accumulation."""
    fp32_tflops: float
    memory_gib: float
    bandwidth: float
    """Bandwidth of its own memory, GB/s."""
    link: float
    """To the other devices of its node, GB/s in one direction."""
    network: float
    """To other nodes, GB/s in one direction and per device."""
    pcie: float
    """To the memory of its host, GB/s in one direction."""
    host: float
    """Its share of the bandwidth of that memory, GB/s."""
    reserve_gib: float
    """Never available: driver, libraries, fragmentation."""


# Sources: NVIDIA's data sheets of H100 SXM, H200 SXM, A100 80GB SXM and A800, and the Ada GPU architecture whitepaper
# (RTX 4090, no NVLink: PCIe 4.0 x16). NVLink figures are half of the printed total, which counts both directions.
# Network: one 400 Gb/s adapter per GPU beside H100 and H200, one of 200 Gb/s beside A100 and A800 (NVIDIA DGX), 10 Gb/s
# Ethernet beside a 4090. Memory is what the driver shows, not the decimal figure on the box. Host: PCIe 5.0 x16 beside
# H100 and H200, 4.0 x16 beside the others; memory of two processors shared by eight GPUs (8 channels of DDR5-4800 each
# in a DGX H100, of DDR4-3200 in a DGX A100), two channels of DDR5-5600 beside a 4090.
# cpu: per core at 3 GHz with AVX2 (32 operations a cycle); its memory is that of the machine it runs on.
PRESETS = {
    device.name: device
    for device in (
        Device("h100", 989.0, 67.0, 79.6, 3350.0, 450.0, 50.0, 64.0, 77.0, 1.5),
        Device("h200", 989.0, 67.0, 140.4, 4800.0, 450.0, 50.0, 64.0, 77.0, 1.5),
        Device("a100", 312.0, 19.5, 79.3, 2039.0, 300.0, 25.0, 32.0, 51.0, 1.5),
        Device("a800", 312.0, 19.5, 79.3, 2039.0, 200.0, 25.0, 32.0, 51.0, 1.5),
        Device("rtx4090", 165.2, 82.6, 24.0, 1008.0, 32.0, 1.25, 32.0, 90.0, 1.0),
        Device("cpu", 0.096, 0.096, 16.0, 20.0, 5.0, 1.25, 5.0, 20.0, 0.5),
    )
}


@dataclass(frozen=True, slots=True)
class Reached:
    """Shares of the peaks that long-running programs reach. Assumptions, not measurements of priml."""

    compute: float = 0.4
    """Share of the peak FLOP/s in training and scoring (large matrix products in a real model)."""
    bandwidth: float = 0.6
    """Share of the memory bandwidth while tokens are generated and the optimizer moves."""
    link: float = 0.7
    """Share of link and network in large collectives, and of PCIe in large copies."""


STORE_RATE = 4.0e9
"""Bytes per second at which a process writes into Ray's object store. An assumption, of the usual order."""

TOKEN_SECONDS = 0.5e-6
"""Seconds of the first rank, or the only process, for a response token besides passes of a model: batch, advantages,
rollout file. Measured on one thread (docs/results.md, "who holds a step")."""

EAGER_LAYER_SECONDS = 1.0e-3
"""What Python needs to launch one layer's operations in one direction. An assumption, of the usual order."""

LAUNCH_SECONDS = {"operations": EAGER_LAYER_SECONDS, "kernels": 3.0e-4, "graphs": 5.0e-5}
"""The same for one layer of a decoding step, by what Python launches (`config.rollout.SamplerSettings.launches`)."""

PREFILL_TOKENS = 8192
"""Prompt tokens that an engine with a paged cache reads at once."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Equal devices in equal nodes."""

    device: Device
    per_node: int = 1
    nodes: int = 1
    reached: Reached = Reached()

    @property
    def devices(self) -> int:
        return self.per_node * self.nodes

    @property
    def capacity(self) -> float:
        """Bytes that a program may use on one device."""
        return (self.device.memory_gib - self.device.reserve_gib) * 2**30

    def wire(self, devices: int) -> float:
        """Bytes per second of a collective over so many neighbouring devices: the slowest link decides."""
        slowest = self.device.network if devices > self.per_node else self.device.link
        return min(slowest, self.device.link) * 1e9 * self.reached.link

    @property
    def pcie(self) -> float:
        """Bytes per second between a device and the memory of its host."""
        return self.device.pcie * 1e9 * self.reached.link

    @property
    def host_rate(self) -> float:
        """Bytes per second from that memory, for the share of one device."""
        return self.device.host * 1e9 * self.reached.bandwidth

    @property
    def memory_rate(self) -> float:
        """Bytes per second from its own memory."""
        return self.device.bandwidth * 1e9 * self.reached.bandwidth

    def flops(self, precision: str) -> float:
        """Operations per second."""
        peak = self.device.fp32_tflops if precision == "fp32" else self.device.bf16_tflops
        return peak * 1e12 * self.reached.compute
