"""What vLLM's workers learn from us: to take new weights while they run. vLLM mixes the class into its own worker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from safetensors import safe_open
from torch import Tensor


class WeightReceiver:
    """Methods that `collective_rpc` calls in every worker, each of which takes its own shard of what it is given."""

    model_runner: Any
    """Of the worker this is mixed into."""

    def receive_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights by these, which have the names of a Hugging Face checkpoint."""
        self.model_runner.reload_weights(weights_iterator=iter(weights))
        self.refresh_tied_heads()

    def receive_file(self, path: str) -> None:
        """The same, from a safetensors file: tensors are mapped, not copied, until a worker takes its shard."""
        with safe_open(path, framework="pt") as file:
            self.receive_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 it is no mapping

    def refresh_tied_heads(self) -> None:
        """Repack every output head.

        On CPUs vLLM multiplies with a packed copy of the head. A reload repacks the layers that it loads, and a head
        that is tied to the embedding is not loaded: its copy would silently stay that of the old weights (0.32.0).
        Where nothing is packed, this does nothing.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import (  # pyright: ignore[reportMissingImports]
            ParallelLMHead,
        )

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
