"""GGUF files, as llama.cpp reads them, become ordinary model folders: `python -m priml.models.gguf FILE FOLDER`.

A model is never trained from such a file itself: its weights are rounded to a few bits, and transformers puts tokenizer
and configuration together from what the file says. Look at what the converted model writes before you train it.
"""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from priml.errors import ConfigError, ModelError, PrimlError
from priml.files import put_in_place

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUFFIX = ".gguf"
_DIGIT_BY_DIGIT = ("smollm",)
"""Kinds of text splitting that transformers 5.23 does not know, and that differ from GPT-2's in one thing: a digit is a
piece of its own. Else a number at the start of a paragraph has other tokens than the model was trained with."""


def refuse_gguf(source: str) -> None:
    """Refuse a model that is GGUF weights alone: a file, or a folder without other weights that could be trained.

    Raises:
        ModelError: it is; the message has the commands that convert it.
    """
    path = Path(source)
    files = _gguf_files(path)
    if files:
        raise ModelError(
            f"{path}: found GGUF weights, which are rounded and cannot be trained; need a folder with safetensors. "
            "Take the model that they were made from, or convert them with two commands and name the new folder: "
            f"`pip install 'priml[gguf]'` and `python -m priml.models.gguf {files[0]} {files[0].with_suffix('')}`"
        )


def convert(file: Path, folder: Path) -> None:
    """Write a folder with float32 weights, tokenizer and chat template. It is complete, or absent.

    Raises:
        ConfigError: the package gguf is not installed.
        ModelError: there is no such file, the folder exists, or transformers cannot read this architecture.
    """
    if not file.is_file():
        raise ModelError(f"{file}: no such file; give one that ends in {SUFFIX}")
    if folder.exists():
        raise ModelError(f"{folder}: exists already; give a folder that is to be made")
    split = _text_splitting(file)
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        module = _unpacked(AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32))
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{file}: transformers cannot read it ({reason}); take the model it was made from") from error
    if split in _DIGIT_BY_DIGIT:
        gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, gpt2])
    _write(module, tokenizer, folder)


def _gguf_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == SUFFIX else []
    return [] if any(path.glob("*.safetensors")) else sorted(path.glob(f"*{SUFFIX}"))


def _text_splitting(file: Path) -> str | None:
    """The kind that the file names."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ConfigError("GGUF files are read by the package gguf; type: pip install 'priml[gguf]'") from None
    try:
        field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{file}: not a GGUF file, or not all of it ({error}); download it again") from error
    return None if field is None else field.contents()


def _unpacked(module: PreTrainedModel) -> PreTrainedModel:
    """The same weights without the mark of a quantised model, which transformers would refuse to save."""
    config = copy.deepcopy(module.config)
    vars(config).pop("quantization_config", None)
    plain = type(module)(config)
    plain.load_state_dict(module.state_dict())
    plain.generation_config = module.generation_config
    return plain


def _write(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    module.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    put_in_place(aside, folder)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("found other than two arguments, need: python -m priml.models.gguf FILE.gguf NEW_FOLDER")
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except PrimlError as error:
        sys.exit(str(error))
