"""A share of a matrix that is too large for every run: another one each time, the same again with its seed."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

SEED = os.environ.get("SAMPLE_SEED") or os.environ.get("PYTEST_XDIST_TESTRUNUID", str(time.time_ns()))[-6:]
"""Every process of a run needs the same. `SAMPLE_SEED=... pytest ...` repeats a sample; test ids show the seed."""


def tenth(cases: Sequence[T]) -> list[T]:
    """In their order, so that cases which share a fixture follow each other."""
    chosen = random.Random(SEED).sample(range(len(cases)), -(-len(cases) // 10))
    return [cases[index] for index in sorted(chosen)]
