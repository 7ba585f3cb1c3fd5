"""How vLLM's workers take new weights while they run: an engine for vLLM's weight-transfer interface.

The engines of vLLM move tensors between GPUs. This one works on every device: it takes tensors in the memory of its own
process, or a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from torch import Tensor
from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngineFactory,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (  # pyright: ignore[reportMissingImports]
    ParallelLMHead,
)
from vllm.model_executor.model_loader.reload import (  # pyright: ignore[reportMissingImports]
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)


@dataclass
class NoInit(WeightTransferInitInfo):
    """No connection is made."""


@dataclass
class Weights(WeightTransferUpdateInfo):
    """Weights under the names of a Hugging Face checkpoint: one of the two."""

    weights: Iterable[tuple[str, Tensor]] | None = None
    path: str | None = None
    """A safetensors file. Its tensors are mapped, not copied, until a worker takes its shard."""


class CheckpointReceiver(WeightTransferEngine[NoInit, Weights]):
    """Every worker takes its own shard of the weights."""

    init_info_cls = NoInit
    update_info_cls = Weights
    model: Any
    model_config: Any

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Make the layers take weights as they were before vLLM packed them."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Weights) -> None:
        """Load some of the weights, or all."""
        if update_info.path is None:
            assert update_info.weights is not None, "weights come as tensors or as a file"
            self.model.load_weights(iter(update_info.weights))
        else:
            with safe_open(update_info.path, framework="pt") as file:
                self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        """Pack the layers again, and every output head.

        On CPUs vLLM multiplies with a packed copy of the head. A reload repacks the layers that it loads, and a head
        that is tied to the embedding is not loaded: its copy would silently stay that of the old weights (0.32.0).
        Where nothing is packed, repacking does nothing.
        """
        finalize_layerwise_reload(self.model, self.model_config)
        self.refresh_tied_heads()

    def refresh_tied_heads(self) -> None:
        """Repack every output head."""
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing to close."""


class Registered:
    """vLLM mixes this into its workers. Their processes so import this module, which registers the engine below."""


WeightTransferEngineFactory.register_engine("priml", CheckpointReceiver)
