"""What travels to an engine, and how its arrival is verified."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from priml.models.checkpoint import checkpoint_state
from priml.models.lora import add_adapters
from priml.models.tiny import character_tokenizer
from priml.rollout.weight_sync import (
    PROBE,
    PROBE_TOKENS,
    WeightCopies,
    other_weights,
    probe_ids,
    verification_updates,
    weight_update_from,
)

TOKENIZER = character_tokenizer()


def random_module(*, tied: bool = True) -> Any:
    config = Qwen2Config(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).float().eval()


def test_the_probe_is_the_beginning_of_a_text():
    ids = probe_ids(TOKENIZER)
    assert len(ids) == PROBE_TOKENS
    assert PROBE.startswith(TOKENIZER.decode(ids))


@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_weights_go_by_the_names_of_a_checkpoint_tied_ones_once(tied: bool, adapters: bool):
    module = random_module(tied=tied)
    if adapters:
        add_adapters(module, key="policy.lora", base="base", rank=2, alpha=4.0, targets="all-linear", seed=0)
    sent = checkpoint_state(module)
    assert not any("lora" in name or "base_layer" in name for name in sent)
    assert "model.layers.1.mlp.up_proj.weight" in sent
    assert ("lm_head.weight" in sent) is not tied
    assert not any(tensor.requires_grad for tensor in sent.values())


def test_an_update_holds_the_log_probs_of_the_module():
    module, ids = random_module(), probe_ids(TOKENIZER)
    update = weight_update_from(module, ids, None)
    with torch.no_grad():
        expected_tV = module(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    torch.testing.assert_close(update.probe_logprobs_t, expected_tV[torch.arange(len(ids) - 1), torch.tensor(ids[1:])])


def test_adapters_come_separately_and_the_weights_beside_them_as_they_are():
    plain, module, ids = random_module(), random_module(), probe_ids(TOKENIZER)
    add_adapters(module, key="policy.lora", base="base", rank=2, alpha=4.0, targets="all-linear", seed=0)
    name = "model.layers.0.mlp.up_proj.weight"
    merged = weight_update_from(module, ids, None)
    with torch.no_grad():
        module.get_submodule("model.layers.0.mlp.up_proj.lora_B.default").weight.fill_(1.0)
    changed = weight_update_from(module, ids, None)
    assert torch.equal(merged.tensors[name], plain.get_parameter(name))
    assert not torch.equal(changed.tensors[name], plain.get_parameter(name))
    assert changed.adapter is None
    separate = weight_update_from(module, ids, None, separate_adapters=True)
    assert separate.tensors.keys() == changed.tensors.keys()
    assert torch.equal(separate.tensors[name], plain.get_parameter(name))
    assert torch.equal(separate.probe_logprobs_t, changed.probe_logprobs_t)
    later = weight_update_from(module, ids, None, separate_adapters=True, all_weights=False)
    assert later.tensors == {}
    assert later.adapter is not None
    assert later.adapter.tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"].unique().tolist() == [1.0]


def test_halving_leaves_no_trace():
    module = random_module()
    before = [parameter.clone() for parameter in module.parameters()]
    with other_weights(module):
        assert all(torch.equal(b / 2, p) for b, p in zip(before, module.parameters(), strict=True))
    assert all(map(torch.equal, before, module.parameters()))
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_verification_sends_another_model_first_and_the_real_one_last():
    module, ids = random_module(), probe_ids(TOKENIZER)
    name = "model.layers.0.mlp.up_proj.weight"
    before = module.get_parameter(name).detach().clone()
    sent = [
        (update.tensors[name].clone(), update.probe_logprobs_t) for update in verification_updates(module, ids, None)
    ]
    assert torch.equal(sent[0][0], before / 2)
    assert torch.equal(sent[1][0], before)
    assert (sent[0][1] - sent[1][1]).abs().max() > 1e-4
    assert torch.equal(sent[1][1], weight_update_from(module, ids, None).probe_logprobs_t)


@pytest.mark.parametrize("adapters", [False, True])
def test_a_copy_stays_as_it_is_while_the_module_and_the_other_copy_change(adapters: bool):
    module = random_module()
    if adapters:
        add_adapters(module, key="policy.lora", base="base", rank=2, alpha=4.0, targets="all-linear", seed=0)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    copies = WeightCopies(module)
    first = copies.snapshot(module, None)
    before = [parameter.clone() for parameter in first.parameters()]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(1.0)
    second = copies.snapshot(module, first)
    assert second is not first
    assert copies.snapshot(module, first) is second, "one that nobody reads is written over"
    for ours, theirs in zip(second.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert (ours is theirs) == (not theirs.requires_grad), "frozen weights are shared"
    assert all(torch.equal(now, then) for now, then in zip(first.parameters(), before, strict=True))
    assert not any(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True) if a is not b
    )
