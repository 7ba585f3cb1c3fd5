"""Facts of a model for a plan, read off its architecture: no weights are loaded, and none are made.

The real module is built of fake tensors: those of the meta device, which have shapes and no contents, but say that they
are elsewhere. Counts are its parameters. Memory comes from running the real passes on it while every operation's result
is counted until it is freed: there is no formula that an unknown architecture would make wrong. Where all layers repeat
the first two, passes run with 2 and with 4 of them, and memory is extrapolated: it is linear in the number of layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from priml.config.models import Lora
from priml.errors import ModelError
from priml.maths.logprobs import token_logprobs
from priml.models.gguf import refuse_gguf
from priml.models.load import checkpoint_activations, position_limit
from priml.models.lora import adapter_base
from priml.planner.facts import Footprint, ModelFacts, Shape

_REFUSALS = (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError)
_CACHE_TOKENS = 64


def read_config(source: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model: from a folder (that of an adapter, too), a `config.json`, or the Hugging Face Hub.

    Raises:
        ModelError: there is none, or it is of no architecture that transformers knows.
    """
    base = adapter_base(source)
    if base is not None:
        return read_config(base, trust_remote_code=trust_remote_code)
    path = Path(source)
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not path.exists():
        raise ModelError(
            f"{source}: no such model folder, and a plan needs its config.json; make or fetch the model first, or give "
            "a config.json of its shape: --model-config FILE"
        )
    refuse_gguf(source)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except _REFUSALS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if looks_local:
            raise ModelError(f"{source}: no usable config.json: {reason}; give that of a causal model") from None
        raise ModelError(
            f"{source}: not a folder here, and its config.json could not be fetched from the Hugging Face Hub: {reason}"
            "; check the spelling, the network and HF_HUB_OFFLINE, or give a copy of the file: --model-config FILE"
        ) from None


def model_facts(name: str, config: PreTrainedConfig, shape: Shape, *, trust_remote_code: bool = False) -> ModelFacts:
    """Counts, and the memory of passes over a micro-batch of this shape.

    Raises:
        ModelError: the architecture is no causal language model, cannot be traced, or has none of the layers that
            adapters are asked for.
    """

    def made(dtype: torch.dtype) -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code).eval()

    try:
        with _Shapes() as shapes:
            module = made(torch.bfloat16 if shape.precision == "bf16" else torch.float32)
            counts = _counts(name, module)
            # A sampler has fp32 weights, sharded or not, and lowers them on the way.
            sampling_model = made(torch.float32) if shape.precision == "bf16" else module
            sampling_precision = "fp32" if shape.precision == "fp32" else "autocast"
            kept = _extrapolated(sampling_model, lambda: _cache(sampling_model, sampling_precision))
            experts, routed = _extrapolated(module, lambda: _experts(module, shapes))
            adapters = _insert_adapters(name, module, shape.adapters) if shape.adapters else 0
            footprint = _footprint(module, shape)
    except _REFUSALS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(
            f"{name}: this architecture cannot be planned: {reason}; use a causal language model"
        ) from None
    return ModelFacts(
        name=name,
        **counts,
        active=counts["body"] - experts + routed,
        cache=kept[0],
        cache_bytes=kept[1],
        state_bytes=kept[2],
        footprint=footprint,
        adapters=adapters,
    )


def _counts(name: str, module: PreTrainedModel) -> dict[str, Any]:
    """Counts of the module before anything is added to it."""
    head: Any = module.get_output_embeddings()
    embedding: Any = module.get_input_embeddings()
    if head is None or module.base_model is module:
        raise ModelError(f"{name}: {type(module).__name__} has no output projection; give a causal language model")
    text = module.config.get_text_config()
    parameters = _count(module.parameters())
    outside = _count({id(p): p for p in (*head.parameters(), *embedding.parameters())}.values())
    heads = getattr(text, "num_attention_heads", 0)  # none in a recurrent model
    limit = position_limit(module)
    return {
        "parameters": parameters,
        "body": parameters - outside,
        "head": head.weight.numel(),
        "embedding": embedding.weight.numel(),
        "tied": head.weight is embedding.weight,
        "layers": text.num_hidden_layers,
        "largest_block": max(_count(block.parameters()) for block in _blocks(module, text.num_hidden_layers)[1]),
        "largest_matrix": max(m.weight.numel() for m in (head, *module.modules()) if isinstance(m, nn.Linear)),
        "width": heads and heads * (getattr(text, "head_dim", None) or text.hidden_size // heads),
        "positions": limit and limit.tokens,
        "is_bound": limit is not None and limit.is_hard,
        "vocabulary": head.weight.shape[0],
    }


def _experts(module: PreTrainedModel, shapes: _Shapes) -> tuple[int, int]:
    """Parameters of routed experts, and those of them that one token is multiplied with."""
    shapes.experts, shapes.multiplied = {}, 0
    tokens_bl = torch.zeros(1, _CACHE_TOKENS, dtype=torch.long)
    with torch.no_grad():
        module.base_model(input_ids=tokens_bl, use_cache=False)
    return sum(shapes.experts.values()), shapes.multiplied // _CACHE_TOKENS


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _blocks(module: nn.Module, layers: int) -> tuple[str, nn.ModuleList]:
    """The transformer blocks, and their path: the list of as many modules as there are layers, or the module alone."""
    for path, found in module.named_modules():
        if isinstance(found, nn.ModuleList) and len(found) == layers:
            return path, found
    return "", nn.ModuleList([module])


# --- adapters ----------------------------------------------------------------------------------------------------


class _Adapted(nn.Module):
    """A linear layer that stays as it is, and beside it two small ones that learn: the operations of peft's layer, in
    its order, so that a plan needs no peft."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer
        kind = {"bias": False, "dtype": layer.weight.dtype}
        self.lowers, self.raises = (
            nn.Linear(layer.in_features, rank, **kind),
            nn.Linear(rank, layer.out_features, **kind),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return out + self.raises(self.lowers(x.to(self.lowers.weight.dtype))) * 2.0


def _insert_adapters(name: str, module: PreTrainedModel, adapters: Lora) -> int:
    """Freeze the module and put adapters into it; how many parameters they have."""
    head = module.get_output_embeddings()
    linear = {path: m for path, m in module.named_modules() if isinstance(m, nn.Linear) and m is not head}
    wanted = adapters.targets
    chosen = [path for path in linear if wanted == "all-linear" or path.rpartition(".")[2] in wanted]
    if not chosen:
        found = ", ".join(sorted({path.rpartition(".")[2] for path in linear}))
        raise ModelError(
            f"{name}: lora.targets: found {wanted if wanted == 'all-linear' else ', '.join(wanted)}, need names of its "
            f"linear layers: {found}"
        )
    module.requires_grad_(False)
    for path in chosen:
        parent, _, own = path.rpartition(".")
        setattr(module.get_submodule(parent), own, _Adapted(linear[path], adapters.rank))
    return _count(p for p in module.parameters() if p.requires_grad)


# --- operations --------------------------------------------------------------------------------------------------


class _Shapes(FakeTensorMode):
    """Fake tensors that also know the product of tokens with the experts they are routed to, whatever its type: torch's
    own rule takes bf16 alone. The rows of each expert depend on contents, those of the result do not."""

    def __init__(self) -> None:
        super().__init__()
        self.experts: dict[int, int] = {}
        """Parameters by tensor of experts."""
        self.multiplied = 0
        """Rows times parameters of one expert, summed over products."""

    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> object:
        if func is not torch.ops.aten._grouped_mm.default:
            return super().__torch_dispatch__(func, types, args, kwargs)
        left, right = args[:2]
        if right.dim() == 2:  # the gradient of the experts
            groups = (args[2] if len(args) > 2 else kwargs["offs"]).shape[0]
            return left.new_empty(groups, left.shape[0], right.shape[1])
        self.experts[right.untyped_storage()._cdata] = right.numel()
        self.multiplied += left.shape[0] * right[0].numel()
        return left.new_empty(left.shape[0], right.shape[2])


# --- memory ------------------------------------------------------------------------------------------------------


class _Live(TorchDispatchMode):
    """Bytes of all storages that operations have made and that still exist, and the most there ever were."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {id(tensor.untyped_storage()) for tensor in known}
        self._bytes = 0
        self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        self.peak = max(self.peak, self._bytes)
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._bytes += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._bytes -= size


def _footprint(module: PreTrainedModel, shape: Shape) -> Footprint:
    """Trace training, and scoring with weights that are trained elsewhere and that never are."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)  # there since the first micro-batch of a step

    def peak(**of: bool) -> int:
        return _extrapolated(module, lambda: (_trace(module, shape, **of),))[0]

    scoring = peak(learns=False)
    if shape.checkpointing:
        checkpoint_activations(module)
        module.train()
    training = peak(learns=True)
    module.eval().requires_grad_(False)
    frozen = peak(learns=False)
    reading = peak(learns=False, head=False) / shape.tokens
    return Footprint(training=training, scoring=scoring, frozen=frozen, reading=reading)


def _extrapolated(module: PreTrainedModel, measure: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """The result of `measure` for all layers, extrapolated from 2 and 4 of them where they repeat."""
    config = module.config.get_text_config()
    path, blocks = _blocks(module, config.num_hidden_layers)
    layers = len(blocks)
    if layers <= 4 or not _repeats(config, blocks):
        return measure()
    parent, _, name = path.rpartition(".")
    stack = module.get_submodule(parent)
    measured = []
    for depth in (2, 4):
        setattr(stack, name, blocks[:depth])
        measured.append(measure())
    setattr(stack, name, blocks)
    return tuple(low + (high - low) * (layers - 2) // 2 for low, high in zip(*measured, strict=True))


def _repeats(config: PreTrainedConfig, blocks: nn.ModuleList) -> bool:
    """Whether each block is like the one two before it, as in models that alternate between two kinds of attention:
    in its class, in the shapes of its parameters, and in what the configuration lists by layer."""
    by_layer = [v for v in config.to_dict().values() if isinstance(v, list) and len(v) == len(blocks)]
    kinds = [
        (type(block), [(n, p.shape) for n, p in block.named_parameters()], [listed[i] for listed in by_layer])
        for i, block in enumerate(blocks)
    ]
    return kinds[2:] == kinds[:-2]


def _trace(module: PreTrainedModel, shape: Shape, *, learns: bool, head: bool = True) -> int:
    """The worst moment of one pass, as `models.forward.LanguageModel` makes it; without the `head`, only its body."""
    limit = position_limit(module)
    # What has no more positions is refused, with the rest of the plan beside it.
    length = min(shape.length, limit.tokens) if limit and limit.is_hard else shape.length
    tokens_bl = torch.zeros(shape.rows, length, dtype=torch.long)
    predicted = min(shape.predicted, length - 1)
    gradients = (p.grad for p in module.parameters() if p.grad is not None)
    known = [*module.parameters(), *module.buffers(), *gradients, tokens_bl]
    with _Live(known) as live, torch.set_grad_enabled(learns):
        with torch.autocast("cpu", torch.bfloat16, enabled=shape.precision == "autocast"):
            hidden_blD = module.base_model(input_ids=tokens_bl, use_cache=False).last_hidden_state
            if not head:
                return live.peak
            # As many as the mask would select; what a mask selects is not known without contents.
            hidden_ND = hidden_blD[:, -predicted - 1 : -1].reshape(-1, hidden_blD.shape[-1])
            targets_N = tokens_bl[:, -predicted:].reshape(-1)
            projection: Any = module.get_output_embeddings()
            logprobs_N, entropies_N = token_logprobs(
                hidden_ND, projection.weight, targets_N, head_bias_V=getattr(projection, "bias", None)
            )
        del hidden_blD, hidden_ND
        if learns:
            (logprobs_N + 0.0 * entropies_N).sum().backward()
    return live.peak


@torch.no_grad()
def _cache(module: PreTrainedModel, precision: str) -> tuple[int, int, int]:
    """Elements and bytes of the key-value cache per token, and bytes of recurrent states per row."""
    cache: Any = DynamicCache(config=module.config)
    cache.layers = [_AsGiven() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    tokens_bl = torch.zeros(1, _CACHE_TOKENS, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        module.base_model(input_ids=tokens_bl, past_key_values=cache, use_cache=True)
    used = [layer for layer in cache.layers if getattr(layer, "is_initialized", False)]
    kept: list[Any] = [tensor for layer in used for tensor in (layer.keys, layer.values)]
    states = [vars(layer).get(name, {}) for layer in cache.layers for name in ("conv_states", "recurrent_states")]
    fixed = sum(t.nbytes for by_number in states for t in by_number.values() if t is not None)
    return sum(t.numel() for t in kept) // _CACHE_TOKENS, sum(t.nbytes for t in kept) // _CACHE_TOKENS, fixed


class _AsGiven(DynamicLayer):
    """Keys and values in the types they come in, as the sampler keeps them."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states
