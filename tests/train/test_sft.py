import math

import numpy as np
import pytest
import torch

from priml.errors import Interrupted, NonFiniteError, RunError
from priml.train.interrupt import Interruption
from priml.train.sft import Example, learning_rate_scale, steps_in, train_supervised


class Learner:
    """Remembers its batches; on a chosen step it does what it is told instead."""

    def __init__(self, on_step=None, act=None):
        self.batches, self.scales = [], []
        self._on_step, self._act = on_step, act

    def update(self, batch, *, lr_scale):
        self.batches.append(batch)
        self.scales.append(lr_scale)
        if batch.step == self._on_step:
            self._act()
        return 1.0, 2.0


class Log:
    def __init__(self):
        self.records = []

    def log(self, metrics):
        self.records.append(metrics)


EXAMPLES = [Example(prompt_ids=(1,), response_ids=(10 + i, 3)) for i in range(5)]


def learn(model, *, epochs=2, seed=0, interruption=None):
    log = Log()
    train_supervised(
        model,
        EXAMPLES,
        epochs=epochs,
        batch_size=2,
        warmup=0.5,
        seed=seed,
        trackers=[log],
        interruption=interruption or Interruption("."),
    )
    return log.records


def seen(model):
    return [batch.tokens_BL[:, 1].tolist() for batch in model.batches]


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own():
    model = Learner()
    records = learn(model)
    order = [example for batch in seen(model) for example in batch]
    assert sorted(order[:5]) == sorted(order[5:]) == [10, 11, 12, 13, 14]
    assert order[:5] != order[5:]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert records[2]["tokens/trained"] == 2  # the last batch of an epoch is smaller


def test_the_order_follows_from_the_seed():
    first, same, other = Learner(), Learner(), Learner()
    learn(first), learn(same), learn(other, seed=1)
    assert seen(first) == seen(same) != seen(other)


def test_the_learning_rate_rises_linearly_then_falls_as_a_cosine():
    scales = [learning_rate_scale(step, 10, warmup=0.2) for step in range(1, 11)]
    assert scales[:2] == [0.5, 1.0]
    assert np.all(np.diff(scales[1:]) < 0)
    assert scales[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 8 / 9)))
    assert scales[-1] > 0, "the last step is not wasted"
    assert learning_rate_scale(1, 1, warmup=0.0) == 1.0


def test_the_schedule_reaches_the_model():
    model = Learner()
    learn(model)
    assert model.scales == [learning_rate_scale(step, 6, warmup=0.5) for step in range(1, 7)]


def test_steps_count_the_smaller_last_batch():
    assert steps_in(5, epochs=2, batch_size=2) == 6


def test_an_interrupted_warm_start_finishes_its_step_and_says_that_nothing_was_saved():
    interruption = Interruption(".")
    model = Learner(on_step=3, act=lambda: setattr(interruption, "requested", True))
    with pytest.raises(Interrupted, match=r"after step 3 of 6.*nothing was saved"):
        learn(model, interruption=interruption)
    assert len(model.batches) == 3


def test_a_non_finite_loss_names_its_step():
    def explode():
        raise NonFiniteError("SFT loss is nan")

    with pytest.raises(RunError, match="step 2: SFT loss is nan"):
        learn(Learner(on_step=2, act=explode))


def test_prompt_tokens_get_no_gradient():
    from priml.models.forward import LanguageModel
    from priml.models.tiny import character_tokenizer, tiny_model
    from priml.roles.sft import SupervisedModel

    tokenizer = character_tokenizer()
    module = tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0)

    class Still:
        """Keeps the gradient instead of stepping."""

        def step(self, loss, *, lr_scale):
            return 0.0

    model = SupervisedModel(
        LanguageModel(module, device=torch.device("cpu"), precision="fp32", micro_batch_tokens=100), tokenizer, Still()
    )
    prompt, response = (20, 21, 22), (30, 31)
    from priml.batch import Row, collate

    loss, _ = model.update(collate([Row(prompt, response, 0.0, 0, ())], step=1), lr_scale=1.0)
    logprobs_TV = module(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    by_hand = -(logprobs_TV[2, 30] + logprobs_TV[3, 31]) / 2
    gradient = module.get_output_embeddings().weight.grad.clone()
    module.zero_grad()
    by_hand.backward()
    assert loss == pytest.approx(float(by_hand.detach()), abs=1e-5)
    torch.testing.assert_close(gradient, module.get_output_embeddings().weight.grad, atol=1e-6, rtol=1e-4)
