"""What engines share, shown by one that keeps a copy of the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from copy_engine import CopyEngine
from fakes import make_prompt
from priml.errors import ModelError, RunError
from priml.models.tiny import character_tokenizer, tiny_model
from priml.rollout.base import SamplingSpec
from priml.rollout.engine import engine_dtype, error_line

TOKENIZER = character_tokenizer()
SPEC = SamplingSpec(group_size=2, temperature=1.0, max_new_tokens=4, seed=0, step=1)


@pytest.fixture
def module() -> Any:
    return tiny_model(TOKENIZER, width=16, layers=1, heads=2, seed=0)


def moved(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def test_weights_arrive_and_versions_are_stamped(module: Any):
    engine = CopyEngine(module, TOKENIZER)
    engine.verify_weight_sync_with(module)
    engine.load(moved(module), version=4)
    (group,) = engine.sample([make_prompt()], SPEC)
    assert [(c.sample, c.weight_version) for c in group.trajectories] == [(0, 4), (1, 4)]
    assert engine.awake == 0


def test_an_engine_that_ignores_weights_is_refused(module: Any):
    engine = CopyEngine(module, TOKENIZER)
    engine.verify_weight_sync_with(module)
    engine.is_deaf = True
    with pytest.raises(RunError, match=r"weights of version 2 did not arrive in Copy .* the bound is 0.001"):
        engine.load(moved(module), version=2)
    with pytest.raises(ModelError, match=r"Qwen2ForCausalLM: Copy 1.0 does not follow when"):
        engine.verify_weight_sync_with(module)


def test_an_engine_that_fails_is_refused_and_put_to_rest(module: Any, monkeypatch: pytest.MonkeyPatch):
    engine = CopyEngine(module, TOKENIZER)

    def fail(token_ids: Sequence[int]) -> torch.Tensor:
        raise ValueError("no such layer.\nmore")

    monkeypatch.setattr(engine, "_probe_logprobs", fail)
    with pytest.raises(ModelError, match=r"Copy 1.0 cannot run this model here: no such layer; use sampler.kind"):
        engine.verify_weight_sync_with(module)
    assert engine.awake == 0


def test_samples_are_numbered_by_the_sampler_or_by_its_caller(module: Any):
    engine, prompts = CopyEngine(module, TOKENIZER), [make_prompt("a"), make_prompt("b")]

    def samples(**given: Any) -> list[list[int]]:
        return [[c.sample for c in group.trajectories] for group in engine.sample(prompts, SPEC, **given)]

    assert samples() == [[0, 1], [0, 1]]
    assert samples(numbers=[range(6, 8), range(2, 3)]) == [[6, 7], [2]]
    assert samples() == [[2, 3], [2, 3]]


def test_an_error_of_the_listener_ends_the_engines_work(module: Any):
    engine = CopyEngine(module, TOKENIZER)

    def refuse(*pair: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        engine.sample([make_prompt()], SPEC, refuse)
    assert (engine.awake, engine.log) == (0, ["ended"])


def test_what_does_not_fit_is_refused_before_anything_is_sampled(module: Any):
    engine = CopyEngine(module, TOKENIZER, longest=6)
    with pytest.raises(RunError, match="may be 7 tokens long, and Copy was started for 6"):
        engine.sample([make_prompt()], SPEC)
    assert engine.log == []


def test_an_engine_computes_as_the_trainer_does_unless_it_is_set():
    assert engine_dtype("auto", "bf16") == "bfloat16"
    assert engine_dtype("float32", "bf16") == "float32"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1 error\n  Value error, no GPU. [type=value_error]", "no GPU"),
        ("\n first.\nsecond", "first"),
        ("", "ValueError"),
    ],
)
def test_the_line_of_an_error_that_says_most(text: str, line: str):
    assert error_line(ValueError(text)) == line
