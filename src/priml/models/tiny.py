"""A small Qwen2-type model with a byte-level tokenizer, made on the spot and saved like any other."""

from __future__ import annotations

from typing import cast

import torch
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from priml.types import Tokenizer

PAD, EOS, BOX = "<|pad|>", "<|end|>", "\\boxed{"
"""The box opener is one token: it is a formality, and seven forced characters would dilute a short response."""


def character_tokenizer() -> Tokenizer:
    """One token for each ASCII character, and for each byte of any other, plus PAD, EOS and the box opener.

    Of the class that belongs to the model: transformers and vLLM read the tokenizer of a Qwen2 folder as this class,
    whatever it was saved as, and would silently lose the spaces and line breaks of another kind.
    """
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, BOX, *sorted(ByteLevel.alphabet())])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token=EOS, pad_token=PAD, unk_token=None)  # pyright: ignore[reportArgumentType]
    tokenizer.add_tokens([AddedToken(BOX, normalized=False)])  # pyright: ignore[reportArgumentType]
    return cast(Tokenizer, tokenizer)


def tiny_model(tokenizer: Tokenizer, *, width: int, layers: int, heads: int, seed: int) -> PreTrainedModel:
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).float().eval()
