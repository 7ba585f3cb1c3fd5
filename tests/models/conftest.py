"""Tiny random models, and batches for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from architectures import VOCABULARY, model_folders, save_random
from priml.batch import Batch, Row, collate


def random_batch(prompts: Sequence[int] = (3, 7, 1, 5, 2), responses: Sequence[int] = (4, 2, 9, 1, 6)) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(VOCABULARY, (count,), generator=generator).tolist()

    rows = [
        Row(ids(p), ids(r), outcome=float(i % 2), group=i // 2, step_ends=())
        for i, (p, r) in enumerate(zip(prompts, responses, strict=True))
    ]
    return collate(rows, step=1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return model_folders(tmp_path_factory)


@pytest.fixture
def batch() -> Batch:
    return random_batch()


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    return random_batch


@pytest.fixture(scope="session")
def save_tiny_model() -> Callable[..., Path]:
    return save_random
