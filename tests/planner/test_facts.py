from dataclasses import replace
from typing import Any

import pytest


def test_the_operations_of_a_pass_are_two_for_each_weight_and_token(qwen_7b: Any):
    flops = qwen_7b.forward_flops(1000.0, 400.0, 0.0)
    assert flops == 2.0 * (1000 * qwen_7b.body + 400 * qwen_7b.head)
    # 6 N D, the usual rule, within the share of the embeddings and of attention
    training = qwen_7b.training_flops(1000.0, 1000.0, 1000.0, checkpointing=False)
    assert training == pytest.approx(6 * qwen_7b.parameters * 1000, rel=0.1)


def test_attention_grows_with_the_square_of_the_length(qwen_7b: Any):
    assert qwen_7b.attention_flops(2000.0, 2000.0) == 4 * qwen_7b.attention_flops(1000.0, 1000.0)
    # 4 multiplications and additions per width, pair of tokens and layer; each sees half of the others
    assert qwen_7b.attention_flops(1000.0, 1000.0) == 4 * 3584 * 28 * 1000 * 1000 / 2


def test_checkpointing_computes_the_forward_pass_once_more(qwen_7b: Any):
    once = qwen_7b.forward_flops(100.0, 50.0, 10.0)
    assert qwen_7b.training_flops(100.0, 50.0, 10.0, checkpointing=True) == 4 * once


def test_what_lies_outside_the_blocks_is_counted_once_when_tied(qwen_7b: Any):
    from dataclasses import replace

    assert qwen_7b.root == 2 * 544_997_376
    assert replace(qwen_7b, tied=True).root == 544_997_376


def test_going_back_through_weights_that_stay_takes_no_more_than_going_forward(qwen_7b: Any):
    from dataclasses import replace

    adapted = replace(qwen_7b, adapters=1000)
    tokens, predicted, length = 100.0, 50.0, 10.0
    forward, attention = adapted.forward_flops(tokens, predicted, length), adapted.attention_flops(tokens, length)
    training = adapted.training_flops(tokens, predicted, length, checkpointing=False)
    # forward, back, attention once more, the adapters' own gradients, the head once more
    assert training == 2 * forward + attention + 2 * 1000 * tokens + 2 * qwen_7b.head * predicted
    again = adapted.training_flops(tokens, predicted, length, checkpointing=True)
    assert again == 3 * forward + attention + 2 * 1000 * tokens


@pytest.mark.parametrize("tied", [False, True])
def test_a_critic_has_one_output_and_a_bias_instead_of_the_head(qwen_7b: Any, tied: bool):
    facts = replace(qwen_7b, tied=tied, parameters=qwen_7b.body + (1 if tied else 2) * qwen_7b.head)
    critic = facts.as_critic
    assert critic.head == 3584 + 1
    assert critic.parameters == qwen_7b.body + qwen_7b.embedding + 3585
    assert critic.root == qwen_7b.embedding + 3585
