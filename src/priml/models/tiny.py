"""A small Qwen2-type model with a character-level tokenizer, made on the spot and saved like any other."""

from __future__ import annotations

import string
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PAD, EOS, UNKNOWN, BOX = "<|pad|>", "<|end|>", "<|unknown|>", "\\boxed{"
"""The box opener is one token: it is a formality, and seven forced characters would dilute a short response."""


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Printable ASCII, one token a character, plus the special tokens and the box opener."""
    characters = [c for c in string.printable if c not in "\r\t\x0b\x0c"]
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNKNOWN, BOX, *characters])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_tokens([AddedToken(BOX, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(tokenizer: Any, *, width: int, layers: int, heads: int, seed: int) -> nn.Module:
    """A Qwen2 with random weights (a function of `seed`), tied embeddings, and room for 4096 tokens."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        # The usual base of 10,000 spends most rotation frequencies on distances no tiny task has; with 100 a two-layer
        # model finds "the token n back" about ten times sooner.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).float().eval()
