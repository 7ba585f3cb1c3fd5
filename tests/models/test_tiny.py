"""The model made on the spot is an ordinary Hugging Face model, the same for the same seed."""

from __future__ import annotations

import string

import torch

from priml.models.checkpoint import weights_digest
from priml.models.tiny import BOX, EOS, PAD, character_tokenizer, tiny_model


def test_every_printable_character_is_one_token_and_comes_back() -> None:
    tokenizer = character_tokenizer()
    text = string.printable
    ids = tokenizer.encode(text)
    assert len(ids) == len(set(ids)) == len(text)
    assert tokenizer.decode(ids) == text


def test_the_box_opener_is_one_token_wherever_it_stands() -> None:
    tokenizer = character_tokenizer()
    ids = tokenizer.encode("a\\boxed{b}\\boxed{c}")
    assert ids.count(tokenizer.convert_tokens_to_ids(BOX)) == 2
    assert len(ids) == 7
    assert tokenizer.decode(ids) == "a\\boxed{b}\\boxed{c}"


def test_any_other_character_is_its_bytes_and_comes_back() -> None:
    tokenizer = character_tokenizer()
    for text in ("\u00e9", "\u20ac", "\u6570", "\U0001f600", "\x00\r\t"):
        ids = tokenizer.encode(text)
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text


def test_special_tokens_are_not_part_of_the_text() -> None:
    tokenizer = character_tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(t) for t in (PAD, "7", EOS)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "7"


def test_weights_are_a_function_of_the_seed_and_leave_the_global_one_alone() -> None:
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    digests = [weights_digest(tiny_model(tokenizer, width=8, layers=1, heads=2, seed=s)) for s in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.rand(1), expected)


def test_it_ends_with_the_tokenizers_eos_and_ties_its_embeddings() -> None:
    tokenizer = character_tokenizer()
    model = tiny_model(tokenizer, width=8, layers=1, heads=2, seed=0)
    assert model.config.eos_token_id == tokenizer.eos_token_id  # pyright: ignore
    assert model.lm_head.weight is model.model.embed_tokens.weight  # pyright: ignore
    assert not model.training
