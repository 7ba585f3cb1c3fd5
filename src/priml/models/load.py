"""Loading Hugging Face causal language models, critics and tokenizers, with errors that say what to do."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils import logging as transformers_logging

from priml.errors import ModelError
from priml.models.gguf import refuse_gguf
from priml.models.lora import adapter_base, has_adapters, merge_adapter
from priml.models.rope import check_steady
from priml.types import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

logger = logging.getLogger(__name__)

_GROWING = ("xglm",)
"""Architectures whose table of positions grows."""
_SENTENCE = "What is 1 + 1?"
_LINES = 3
"""How many lines of an error are shown: the first alone often ends in a colon."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a model folder or Hub id.

    Raises:
        ModelError: it cannot be loaded, or has no end-of-sequence token (responses could never end).
    """
    _check_folder(source, adapter=True)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        written = tokenizer.encode(_SENTENCE, add_special_tokens=False)
    except Exception as error:  # of a library, for any reason
        raise ModelError(_refusal(source, "tokenizer", error)) from None
    if set(written) <= {tokenizer.unk_token_id}:  # transformers makes one without a vocabulary if the file is missing
        raise ModelError(
            f"{source}: the tokenizer has no token for any character of {_SENTENCE!r}, so its vocabulary is missing; "
            f"{_next_move(Path(source), 'tokenizer')}"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{source}: the tokenizer has no EOS token, so responses could never end; "
            "set `eos_token` in its tokenizer_config.json"
        )
    return tokenizer


def load_model(source: str, *, device: torch.device, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model with fp32 weights, dropout off, in eval mode.

    fp32 masters: at the paper's learning rates most bf16 updates round to nothing. Dropout is off because a ratio
    of two stochastic forward passes is noise. Only safetensors are read: a pickle can run code.

    A folder that holds an adapter alone, in peft's format, gives the model it belongs to with the adapter added. On the
    meta device it is the architecture alone, and no weights are read.

    Raises:
        ConfigError: the folder holds an adapter, and peft is not installed.
        ModelError: it is not a model folder, not a causal language model, or some of its weights are missing.
    """
    base = adapter_base(source)
    if base is not None:
        try:
            return merge_adapter(load_model(base, device=device, trust_remote_code=trust_remote_code), source).eval()
        except ModelError as error:
            raise ModelError(f"{source} holds an adapter of {base}. {error}") from None
    wanted = "causal language model"
    model, missing = _load(AutoModelForCausalLM, source, wanted, device, trust_remote_code=trust_remote_code)
    if has_adapters(model):  # transformers puts them in by itself where peft is installed
        raise ModelError(f"{source}: found an adapter on the Hub, which is read from a folder only; download it first")
    if missing:  # transformers would train on with random numbers in their place
        raise ModelError(_incomplete(source, model, missing, wanted))
    if device.type != "meta":
        _check_finite(source, model)
    _remove_dropout(model)
    return model.eval().to(device)  # pyright: ignore[reportArgumentType]


def stored_dtype(source: str, *, trust_remote_code: bool = False) -> torch.dtype:
    """The type in which a model came, by its configuration; float32 if that names none."""
    base = adapter_base(source) or source
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    except Exception as error:  # of a library, for any reason
        raise ModelError(_refusal(base, "configuration", error)) from None
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def load_critic(source: str, *, device: torch.device, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal model with one output per token instead of its head, from a language model or a saved critic.

    fp32 weights, dropout off, in eval mode. A language model has no such head; a new one is zero, so every value is 0
    at first and no random number is drawn. On the meta device it is the architecture alone.

    Raises:
        ModelError: it is not a model folder, not a causal language model, or weights other than the head's are missing.
    """
    wanted = "causal language model"
    model, missing = _load(
        AutoModelForCausalLM,
        source,
        wanted,
        device,
        trust_remote_code=trust_remote_code,
        ignore_mismatched_sizes=True,  # a saved critic: its head has one row
    )
    projection: Any = model.get_output_embeddings()
    if projection is None or model.base_model is model:
        raise ModelError(f"{source}: {type(model).__name__} has no head over a base model; give a {wanted}")
    name = next(name for name, module in model.named_modules() if module is projection)
    missing -= {f"{name}.weight", f"{name}.bias"}
    if missing:
        raise ModelError(_incomplete(source, model, missing, wanted))
    head = nn.Linear(projection.weight.shape[1], 1, device=projection.weight.device, dtype=torch.float32)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    _fill_head(head, source, name)
    _remove_dropout(model)
    return model.eval().to(device)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def _fill_head(head: nn.Linear, source: str, name: str) -> None:
    """What was saved, or zeros. Critics of priml 0.1 were token classifiers."""
    head.weight.zero_()
    head.bias.zero_()
    if head.weight.is_meta:
        return
    for path in Path(source).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for saved in set(file.keys()) & {f"{owner}.weight" for owner in (name, "score", "classifier")}:
                if file.get_slice(saved).get_shape()[0] == 1:
                    head.weight.copy_(file.get_tensor(saved))
                    bias = saved.removesuffix("weight") + "bias"
                    if bias in file.keys():  # noqa: SIM118 # not a mapping
                        head.bias.copy_(file.get_tensor(bias))


def checkpoint_activations(module: PreTrainedModel) -> None:
    """Gradient checkpointing: keep the inputs of each block alone, and compute the rest again in the backward pass.

    Raises:
        ModelError: the architecture cannot.
    """
    # transformers 5.23 has a new name for it; the old one warns there, and is gone in version 6.
    enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"policy.gradient_checkpointing: {error}; set it to false") from None


def check_tokens_fit(source: str, module: PreTrainedModel, tokenizer: Tokenizer, used: Iterable[Iterable[int]]) -> None:
    """Refuse to run with tokens that the model has no embedding for. `used` are the texts of the run, as tokens.

    Only tokens that occur count. Published tokenizers may have special ones beyond the end of the table, such as the
    image token of a text model.

    Raises:
        ModelError: the EOS token or a token of a text lies beyond the embedding table.
    """
    rows = len(cast(Tensor, module.get_input_embeddings().weight))
    largest = max(tokenizer.eos_token_id, max((max(ids, default=0) for ids in used), default=0))
    if largest >= rows:
        raise ModelError(
            f"{source}: the tokenizer writes {tokenizer.convert_ids_to_tokens(largest)!r} as token {largest}, but the "
            f"model has embeddings for tokens 0 to {rows - 1} only; use the tokenizer that belongs to the weights, or "
            "resize the model's embeddings (`resize_token_embeddings`) and train them first"
        )


@dataclass(frozen=True, slots=True)
class PositionLimit:
    """Tokens of a sequence that a model was made for."""

    tokens: int
    is_hard: bool
    """There is no position behind them: a table ends. Rotary embeddings go on, to where the model was never trained."""


def position_limit(module: PreTrainedModel) -> PositionLimit | None:
    """The longest sequence by the model's configuration; None if it names none or has no positions at all."""
    config = module.config.get_text_config()
    tokens = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if tokens is None:
        return None
    if getattr(config, "rope_parameters", None) or config.model_type in _GROWING:
        return PositionLimit(tokens, is_hard=False)
    embeddings = (m.weight for m in module.modules() if isinstance(m, nn.Embedding))
    tables = [t for t in (*embeddings, *module.buffers()) if t is not module.get_input_embeddings().weight]
    sizes = {size for table in tables for size in table.shape}
    # OPT and its like keep two rows for padding.
    is_hard = config.model_type == "mpt" or not sizes.isdisjoint((tokens, tokens + 2))
    return PositionLimit(tokens, is_hard=True) if is_hard else None


def check_positions(key: str, module: PreTrainedModel, longest: int, *, shorten: str) -> None:
    """Refuse sequences that are longer than the model has positions; warn where it was merely never trained on them.
    `key` names the model, `shorten` the settings that bound the sequences.

    Raises:
        ModelError: the model has fewer positions, or changes its frequencies on the way (`check_steady`).
    """
    check_steady(module, longest)
    limit = position_limit(module)
    if limit is None or longest <= limit.tokens:
        return
    found = (
        f"{key}: sequences may have {longest} tokens (prompt and response), and the model has {limit.tokens} positions"
    )
    if limit.is_hard:
        raise ModelError(f"{found}; lower {shorten}, or take a model with more positions")
    logger.warning(
        f"{found}; what it writes beyond them is worth little: lower {shorten}, or extend its rope_parameters"
    )


def _load(
    auto: type[_BaseAutoModelClass], source: str, wanted: str, device: torch.device, **options: bool
) -> tuple[PreTrainedModel, set[str]]:
    """The model in fp32, and the names of the weights that its files lack, or have in another shape. On the meta device
    nothing is missing."""
    _check_folder(source)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it prints a table of what is missing
    try:
        if device.type == "meta":
            config = AutoConfig.from_pretrained(source, trust_remote_code=options["trust_remote_code"])
            with torch.device("meta"):
                model = auto.from_config(config, dtype=torch.float32, trust_remote_code=options["trust_remote_code"])
            with suppress(OSError):  # without a file the configuration counts
                model.generation_config = GenerationConfig.from_pretrained(source)
            return model, set()
        model, report = auto.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # of a library, for any reason
        raise ModelError(_refusal(source, wanted, error)) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    _check_stored(source, model, report["unexpected_keys"])
    return model, set(report["missing_keys"]) | {name for name, *_ in report["mismatched_keys"]}


def _check_stored(source: str, model: nn.Module, unexpected: Iterable[str]) -> None:
    """Refuse files of more layers than the configuration has, and weights in whole numbers or 8 bits, which mean
    nothing without their scales. Name weights that have no place in the model."""
    known = {name for name, _ in model.named_parameters()}
    alike = {_LAYER.sub("*", name) for name in known}
    extra = sorted(name for name in unexpected if name not in known)
    if further := [name for name in extra if _LAYER.search(name) and _LAYER.sub("*", name) in alike]:
        raise ModelError(
            f"{source}: found the weights {further[0]} in its files, need none beyond the layers of its configuration; "
            "mend num_hidden_layers in config.json, or download or export it again"
        )
    if extra:
        logger.warning(f"{source}: {len(extra)} weights of its files have no place in the model, the first {extra[0]}")
    for path in Path(source).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in known.intersection(file.keys()):
                if (found := file.get_slice(name).get_dtype()) not in _FLOATS:
                    raise ModelError(
                        f"{path}: found the weights {name} as {found}, need floating point numbers of 16 bits or more "
                        f"({', '.join(_FLOATS)}): take the model that they were made from"
                    )


def _incomplete(source: str, model: nn.Module, missing: set[str], wanted: str) -> str:
    return (
        f"{source}: {len(missing)} weights of {type(model).__name__} are missing, the first {min(missing)}; "
        f"need a complete {wanted}: download or export it again"
    )


def _remove_dropout(model: nn.Module) -> None:
    """In dropout layers, and in the rates that attention functions read at every call."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith(("pdrop", "layerdrop"))):
                vars(module)[name] = 0.0


def _check_folder(source: str, *, adapter: bool = False) -> None:
    """`adapter`: a folder with an adapter alone is accepted."""
    if not source:
        raise ModelError("found an empty model name; give a Hugging Face folder or a Hub id")
    path = Path(source)
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    refuse_gguf(source)
    if looks_local and not path.is_dir():
        raise ModelError(f"{source}: no such model folder; give a Hugging Face folder or a Hub id")
    if looks_local and not ((path / "config.json").is_file() or (adapter and adapter_base(source))):
        is_run = (path / "model" / "config.json").is_file() or adapter_base(str(path / "model"))
        hint = f"did you mean {path / 'model'}?" if is_run else "give a Hugging Face folder or a Hub id"
        raise ModelError(f"{source}: not a model folder (no config.json in it); {hint}")
    if looks_local:
        _check_index(path)


def _check_index(folder: Path) -> None:
    """An index of weights may name any file, and transformers reads a pickle that it names."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    try:
        files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: found no index of weights ({error!r}); download or export it again") from None
    for name in sorted(map(str, files)):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{path}: found the file {name!r} in it, need names of safetensors files in this folder: others can "
                "run code; download or export it again"
            )


def _refusal(source: str, wanted: str, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = " ".join(lines[:_LINES]).rstrip(".")
    if not isinstance(error, OSError | ImportError | RuntimeError | ValueError):  # a bare key
        reason = f"{type(error).__name__}: {reason}"
    if "trust_remote_code" in str(error):
        code = "the Python code that ships with it"
        return f"{source}: no {wanted} without {code}; read that, then set trust_remote_code: true"
    if Path(source).is_dir():
        return f"{source}: no {wanted} could be loaded from this folder: {reason}; {_next_move(Path(source), wanted)}"
    return (
        f"{source}: not a folder here, and no {wanted} could be fetched from the Hugging Face Hub: {reason}; "
        "check the spelling, the network, HF_HUB_OFFLINE, and (private models) that you are logged in"
    )


def _next_move(folder: Path, wanted: str) -> str:
    """What to do about a folder that cannot be loaded."""
    with suppress(OSError, ValueError):
        if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
            return "its weights are quantised and cannot be trained: take the model that they were made from"
    if wanted == "tokenizer":
        return "copy the tokenizer's files into it: tokenizer.json, or those of its base model"
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        return (
            "it has pickled weights alone, which can run code and are never read: where you trust them, load it with "
            "transformers once and save it again, as safetensors"
        )
    return "download or export it again"


def _check_finite(source: str, model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter.detach().sum()) and not torch.isfinite(parameter.detach()).all():
            raise ModelError(f"{source}: the weights {name} hold NaN or infinite numbers; take an earlier checkpoint")
