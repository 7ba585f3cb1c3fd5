"""A model folder that is read back before it gets its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from priml.batch import Batch, Row, collate
from priml.errors import ModelError, RunError
from priml.files import put_in_place
from priml.models.forward import TokenModel, ValueModel
from priml.models.load import load_critic, load_model
from priml.models.sharded import writes_whole_files
from priml.types import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROWS, _TOKENS = 4, 32
_KEPT = "what was learnt is in the newest checkpoint of the run"
_BOUNDS = {"fp32": 1e-3, "bf16": 0.1}
"""Largest mean difference by rounding, in nats per token, or in units of the value. Found are 1e-6 and 1e-2."""


def export(
    model: TokenModel,
    tokenizer: Tokenizer,
    folder: Path,
    write: Callable[[PreTrainedModel, Tokenizer, Path], None],
) -> None:
    """Write a model folder, load it, and compare what it computes with what the model computes. A collective.

    The comparison is on a few rows of random tokens. The folder is complete and right, or absent.

    Raises:
        RunError: it cannot be loaded, or computes something else.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    try:
        write(model.module, tokenizer, aside)
        batch = _probe(model.module)
        expected_BT = model.outputs(batch)
        model.process_group.broadcast_from_rank0(lambda: _verify(model, aside, folder, batch, expected_BT))
        if writes_whole_files():
            shutil.rmtree(folder, ignore_errors=True)
            put_in_place(aside, folder)
    finally:
        if writes_whole_files():
            shutil.rmtree(aside, ignore_errors=True)


def _probe(module: PreTrainedModel) -> Batch:
    """Random tokens, within the positions that the model has."""
    config = module.config.get_text_config()
    length = min(_TOKENS, getattr(config, "max_position_embeddings", None) or _TOKENS)
    tokens_BL = torch.randint(config.vocab_size, (_ROWS, length), generator=torch.Generator().manual_seed(0))
    return collate([Row(ids[:1], ids[1:], 0.0, 0, ()) for ids in tokens_BL.tolist()], step=0)


@torch.no_grad()
def _verify(model: TokenModel, aside: Path, folder: Path, batch: Batch, expected_BT: Tensor) -> None:
    cpu = torch.device("cpu")  # the device is full of the run
    # The code of a model from elsewhere has run before.
    trust = any(kind.__module__.startswith("transformers_modules") for kind in type(model.module).__mro__)
    try:
        load = load_critic if isinstance(model, ValueModel) else load_model
        module = load(str(aside), device=cpu, trust_remote_code=trust)
        found_BT = type(model)(module, cpu, "fp32", batch.tokens_BL.numel()).outputs(batch)
    except ModelError as error:
        raise RunError(f"{folder}: this export cannot be loaded ({error}), so it was removed; {_KEPT}") from error
    difference = float((found_BT - expected_BT).abs().mean())
    bound = _BOUNDS["bf16" if model.precision == "bf16" or _dtype(aside) in ("bfloat16", "float16") else "fp32"]
    if not difference <= bound:  # NaN is not below anything
        raise RunError(
            f"{folder}: this export computes other numbers than the run ({difference:.2g} apart per token, the bound "
            f"is {bound:g}), so it was removed; {_KEPT}"
        )


def _dtype(folder: Path) -> str | None:
    """What the weights of a folder are written in; None: an adapter, which is float32."""
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("dtype") if path.is_file() else None
