"""Decoding: the way that reproduces the model's own forward pass is found before anything is sampled."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import DynamicCache, Qwen2ForCausalLM

from priml.errors import ModelError
from priml.models.tiny import character_tokenizer, tiny_model
from priml.rollout.decoding import CachedDecoder, Decoding, choose_decoding

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_the_growing_cache_holds_what_the_plain_one_does(name: str, make_model: Any) -> None:
    module = make_model(name)
    caches: list[Any] = [CachedDecoder(module, CPU, max_new_tokens=1)._cache, DynamicCache(config=module.config)]
    steps = [torch.arange(12).view(3, 4), *(torch.tensor([[t], [t + 1], [t + 2]]) for t in range(150))]
    with torch.no_grad():
        for t, tokens_bl in enumerate(steps):
            if t in (3, 80):
                for cache in caches:
                    cache.reorder_cache(torch.tensor([2, 0, 2]))
            ours, plain = (module(input_ids=tokens_bl, past_key_values=c, use_cache=True).logits for c in caches)
            assert torch.equal(ours, plain)
    for ours, plain in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(ours.keys, plain.keys)
        assert torch.equal(ours.values, plain.values)
        assert ours.get_seq_length() == plain.get_seq_length()


class Forgetful(Qwen2ForCausalLM):
    """Its cache stays empty."""

    def forward(self, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Foreign(Qwen2ForCausalLM):
    """It takes a cache of its own alone."""

    def forward(self, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            raise ValueError("uses a cache of its own.\nSee the documentation.")
        return super().forward(*args, **kwargs)


class Unmasked(Qwen2ForCausalLM):
    """It looks at left padding, as states do whose architecture ignores the mask."""

    def forward(self, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Fickle(Qwen2ForCausalLM):
    """It never says the same twice."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        return type(output)(logits=output.logits + torch.randn_like(output.logits))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Qwen2ForCausalLM, Decoding()),
        (Unmasked, Decoding(equal_lengths=True)),
        (Foreign, Decoding(cached=False, equal_lengths=True)),
        (Forgetful, Decoding(cached=False, equal_lengths=True)),
    ],
)
def test_the_fastest_way_that_is_right_is_chosen(kind: Any, expected: Decoding, make_model: Any) -> None:
    assert choose_decoding(kind(make_model().config).eval(), CPU) == expected


def test_a_slow_way_says_so(make_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="priml"):
        choose_decoding(Foreign(make_model().config).eval(), CPU)
    assert "Foreign is decoded without a cache (ValueError: uses a cache of its own): each token" in caplog.text


def test_a_model_that_no_way_reproduces_is_refused(make_model: Any) -> None:
    with pytest.raises(ModelError, match="Fickle: decoding does not reproduce its own forward pass, with or without"):
        choose_decoding(Fickle(make_model().config).eval(), CPU)


def test_a_model_whose_logits_are_not_finite_is_refused_with_that_reason():
    tokenizer = character_tokenizer()
    module = tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0)
    with torch.no_grad():
        module.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="its logits are not finite numbers"):
        choose_decoding(module, torch.device("cpu"))
