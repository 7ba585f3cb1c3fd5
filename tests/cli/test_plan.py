"""`priml plan` as a shell sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIZE = ("--gpus", "1", "--device", "h200")


def test_it_plans_a_run_that_could_start(priml: Any, write: Callable[..., Path], training: dict[str, Any]):
    result = priml("plan", write("train.yaml", training))
    assert result.code == 0, result.err
    assert result.out.startswith("plan of ")
    assert "1 x cpu" in result.out
    assert "2 prompts x 2 responses = 4 responses" in result.out
    assert result.err == ""


def test_overrides_stand_before_or_behind_options(priml: Any, write: Callable[..., Path], training: dict[str, Any]):
    path = write("train.yaml", training)
    before, behind = priml("plan", path, "batch.prompts=3", *SIZE), priml("plan", path, *SIZE, "batch.prompts=3")
    assert before.code == behind.code == 0
    assert before.out == behind.out
    assert "3 prompts x 2 responses" in behind.out


def test_what_cannot_be_run_ends_with_exit_code_2_and_the_whole_plan(
    priml: Any, write: Callable[..., Path], training: dict[str, Any]
):
    result = priml("plan", write("train.yaml", training), "--gpus", "8")
    assert result.code == 2
    assert "REFUSED" in result.out
    assert "leaves 4 of 8 devices without a row" in " ".join(result.out.split())
    assert "time of a step" in result.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gpus", "0"), "--gpus: found 0, need a number above 0"),
        (("--gpus", "two"), "--gpus: invalid whole number value: 'two'"),
        (("--gpu-memory", "-3"), "--gpu-memory: found -3, need a number above 0"),
        (("--pass-rate", "1.5"), "--pass-rate: found 1.5, need a share between 0 and 1"),
        (("--device", "tpu"), "--device: found 'tpu', need one of h100"),
        (("--model-config", "none.json"), "--model-config: none.json does not exist"),
        (("--unknown",), "unrecognized arguments: --unknown"),
        (("--gpus", "1", "policy.lr=1"), "policy.lr: unknown key"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    priml: Any, write: Callable[..., Path], training: dict[str, Any], options: tuple[str, ...], said: str
):
    result = priml("plan", write("train.yaml", training), *options)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert result.out == ""
