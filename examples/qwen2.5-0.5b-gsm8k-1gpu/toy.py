"""The plan of this recipe, and one step of it at toy size."""

from __future__ import annotations

from pathlib import Path

from toys import plan_and_train

SETTINGS = Path(__file__).with_name("train.yaml")


def run(out: Path) -> None:
    plan_and_train(SETTINGS, out, "gsm8k", plan="--gpus 1 --gpu-memory 80 --prompt-tokens 110 --response-tokens 300")
