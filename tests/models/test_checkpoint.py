"""Weights and optimizer state survive the disk to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from priml.errors import ModelError
from priml.models.checkpoint import (
    load_optimizer,
    load_weights,
    save_model,
    stage_optimizer,
    stage_weights,
    weights_digest,
)
from priml.models.load import load_model, load_tokenizer, stored_dtype
from priml.models.tiny import character_tokenizer, tiny_model
from priml.types import Write


def model(seed: int, width: int = 16) -> Any:
    return tiny_model(character_tokenizer(), width=width, layers=1, heads=2, seed=seed)


def write(writes: list[Write]) -> None:
    for each in writes:
        each()


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def move(module: Any, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_weights_come_back_exactly_and_tied_ones_are_stored_once(tmp_path: Path) -> None:
    saved, restored = model(0), model(1)
    write(stage_weights(saved, tmp_path / "weights.safetensors"))
    load_weights(restored, tmp_path / "weights.safetensors")

    assert same_weights(saved, restored)
    assert restored.lm_head.weight is restored.model.embed_tokens.weight
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


@pytest.mark.parametrize("other", ["narrower", "one more layer"])
def test_weights_of_another_architecture_are_refused_untouched(tmp_path: Path, other: str) -> None:
    write(stage_weights(model(0), tmp_path / "weights.safetensors"))
    tokenizer = character_tokenizer()
    width, layers = (8, 1) if other == "narrower" else (16, 2)
    target = tiny_model(tokenizer, width=width, layers=layers, heads=2, seed=1)
    before = weights_digest(target)

    with pytest.raises(ModelError, match="these weights belong to another architecture"):
        load_weights(target, tmp_path / "weights.safetensors")
    assert weights_digest(target) == before


@pytest.mark.parametrize("fused", [False, True])
def test_a_restored_optimizer_takes_the_same_steps(tmp_path: Path, fused: bool) -> None:
    straight = model(0)
    optimizer = torch.optim.AdamW(straight.parameters(), lr=1e-2, betas=(0.8, 0.9), fused=fused)
    move(straight, optimizer, 1)
    move(straight, optimizer, 2)
    write(stage_weights(straight, tmp_path / "weights.safetensors"))
    write(stage_optimizer(optimizer, tmp_path))

    resumed = model(5)
    resumed_optimizer = torch.optim.AdamW(resumed.parameters(), lr=1e-2, betas=(0.8, 0.9), fused=fused)
    load_weights(resumed, tmp_path / "weights.safetensors")
    load_optimizer(resumed_optimizer, tmp_path)
    for seed in (3, 4):
        move(straight, optimizer, seed)
        move(resumed, resumed_optimizer, seed)

    assert same_weights(straight, resumed)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "optimizer.json",
        "optimizer.safetensors",
        "weights.safetensors",
    ]
    assert json.loads((tmp_path / "optimizer.json").read_text())[0]["betas"] == [0.8, 0.9]


def test_what_is_written_is_the_state_as_it_was_when_it_was_staged(tmp_path: Path) -> None:
    module = model(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    move(module, optimizer, 1)
    (tmp_path / "before").mkdir()
    (tmp_path / "later").mkdir()
    write([*stage_weights(module, tmp_path / "before" / "weights.safetensors")])
    write([*stage_optimizer(optimizer, tmp_path / "before")])
    staged = [
        *stage_weights(module, tmp_path / "later" / "weights.safetensors"),
        *stage_optimizer(optimizer, tmp_path / "later"),
    ]
    optimizer.param_groups[0]["lr"] = 3.0
    move(module, optimizer, 2)
    write(staged)
    for name in ("weights.safetensors", "optimizer.safetensors", "optimizer.json"):
        assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_an_optimizer_that_has_not_moved_comes_back_too(tmp_path: Path) -> None:
    module = model(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    write(stage_optimizer(optimizer, tmp_path))
    load_optimizer(optimizer, tmp_path)
    assert optimizer.state_dict()["state"] == {}


def test_an_exported_folder_loads_as_any_other(tmp_path: Path) -> None:
    tokenizer, module = character_tokenizer(), model(3)
    save_model(module, tokenizer, tmp_path)

    loaded = load_model(str(tmp_path), device=torch.device("cpu"))
    reloaded = load_tokenizer(str(tmp_path))

    assert same_weights(module, loaded)
    for text in ("3KA=\\boxed{7}\n", " two  spaces,\n\n lines\t\u00e9 ", "don't 1234"):
        assert reloaded.encode(text) == tokenizer.encode(text)
        assert reloaded.decode(reloaded.encode(text)) == text
    assert (reloaded.eos_token_id, reloaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert not list(tmp_path.glob("*.bin"))


def test_the_digest_sees_every_bit_and_every_dtype(save_tiny_model: Callable[..., Path]) -> None:
    module = model(0)
    before = weights_digest(module)
    assert weights_digest(model(0)) == before
    with torch.no_grad():
        last = list(module.parameters())[-1]
        last.view(-1)[-1] = torch.nextafter(last.view(-1)[-1], torch.tensor(2.0))
    assert weights_digest(module) != before
    assert weights_digest(module.bfloat16()) != before

    scalar = nn.Module()
    scalar.temperature = nn.Parameter(torch.tensor(1.0))
    assert len(weights_digest(scalar)) == 64


def test_no_module_of_ours_reads_or_writes_pickles() -> None:
    sources = (Path(__file__).parents[2] / "src" / "priml").rglob("*.py")
    words = ("torch.load", "torch.save", "import pickle\n", "pickle.load")
    ours = {"custom.py", "custom_worker.py"}  # what the trainer sends to a process of its own; JSON comes back
    offenders = [path.name for path in sources for word in words if word in path.read_text() and path.name not in ours]
    assert offenders == []


@pytest.mark.parametrize("name", ["qwen2", "llama", "qwen3_moe", "gpt2"])
def test_a_model_is_written_in_the_type_that_is_asked_for(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """instructlab/training#477: twice the size. intel/auto-round#2385: tensors that are not what config.json says."""
    module: Any = load_model(str(model_folder(name)), device=torch.device("cpu"))
    before = {name: p.clone() for name, p in module.named_parameters()}
    save_model(module, character_tokenizer(), tmp_path, dtype=torch.bfloat16)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert stored_dtype(str(tmp_path)) == torch.bfloat16
    again: Any = load_model(str(tmp_path), device=torch.device("cpu"))
    for name, p in again.named_parameters():
        assert torch.equal(p, before[name].bfloat16().float())
