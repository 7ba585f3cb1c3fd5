"""How vLLM's workers take new weights while they run: an engine for vLLM's weight-transfer interface.

The engines that vLLM brings move tensors between GPUs. This one takes what it is handed, which works on every device:
tensors in the memory of its own process, or a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
class Nothing(WeightTransferInitInfo):
    """There is nobody to meet."""


@dataclass
class Handed(WeightTransferUpdateInfo):
    """Weights under the names of a Hugging Face checkpoint: one of the two."""

    weights: Iterable[tuple[str, Tensor]] | None = None
    path: str | None = None
    """A safetensors file: its tensors are mapped, not copied, until a worker takes its shard."""


class CheckpointReceiver(WeightTransferEngine[Nothing, Handed]):
    """Every worker takes its own shard of what it is given."""

    init_info_cls = Nothing
    update_info_cls = Handed
    model: Any
    model_config: Any

    def init_transfer_engine(self, init_info: Nothing) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Make the layers take weights as they were before vLLM packed them."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Handed) -> None:
        """Load some of the weights, or all."""
        weights = update_info.weights if update_info.path is None else _mapped(update_info.path)
        assert weights is not None, "they come one way or the other"
        self.model.load_weights(iter(weights))

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
        """Nothing is held."""


class Registered:
    """vLLM mixes this into its workers. What counts is that each of their processes imports it, and so this module,
    before it asks for the engine of the name below."""


def _mapped(path: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 it is no mapping
            yield name, file.get_tensor(name)


WeightTransferEngineFactory.register_engine("priml", CheckpointReceiver)
