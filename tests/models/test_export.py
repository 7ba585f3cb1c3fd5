"""A model folder gets its name when what it holds computes what the run computes, and not before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from priml.errors import RunError
from priml.models.checkpoint import save_model
from priml.models.export import export
from priml.models.forward import LanguageModel, ValueModel
from priml.models.load import load_critic, load_model
from priml.models.lora import add_adapters, save_adapter
from priml.models.tiny import character_tokenizer

CPU = torch.device("cpu")
TOKENIZER = character_tokenizer()
Write = Callable[[Any, Any, Path], None]


@pytest.fixture
def model(model_folder: Callable[[str], Path]) -> LanguageModel:
    """With adapters that have learnt something."""
    module = load_model(str(model_folder("qwen3_moe")), device=CPU)
    base = str(model_folder("qwen3_moe"))
    add_adapters(module, key="policy.lora", base=base, rank=2, alpha=4.0, targets="all-linear", seed=0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 if parameter.requires_grad else 0.0)
    return LanguageModel(module, CPU, "fp32", 1000)


def afterwards(write: Write, change: Callable[[dict[str, Any]], None]) -> Write:
    """Write the folder, and change its tensors."""

    def changed(module: Any, tokenizer: Any, folder: Path) -> None:
        write(module, tokenizer, folder)
        (path,) = folder.glob("*.safetensors")
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return changed


def move(tensors: dict[str, Any]) -> None:
    tensors[min(name for name in tensors if "q_proj" in name)] += 0.05


def lose(tensors: dict[str, Any]) -> None:
    del tensors[min(name for name in tensors if "q_proj" in name)]


@pytest.mark.parametrize("write", [save_model, save_adapter])
def test_a_right_export_has_its_name_and_nothing_is_left_beside_it(
    model: LanguageModel, tmp_path: Path, write: Write
) -> None:
    for _ in range(2):  # the second replaces the first
        export(model, TOKENIZER, tmp_path / "model", write)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("write", [save_model, save_adapter])
@pytest.mark.parametrize(
    ("change", "message"), [(move, "computes other numbers than the run"), (lose, "this export cannot be loaded")]
)
def test_an_export_that_is_not_the_run_is_removed(
    model: LanguageModel, tmp_path: Path, write: Write, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(RunError, match=f"model: .*{message}.*newest checkpoint"):
        export(model, TOKENIZER, tmp_path / "model", afterwards(write, change))
    assert not list(tmp_path.iterdir())


def test_a_critic_is_read_back_too(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    module: Any = load_critic(str(model_folder("qwen2")), device=CPU)
    with torch.no_grad():
        module.lm_head.weight.fill_(0.5)
    critic = ValueModel(module, CPU, "fp32", 1000)
    export(critic, TOKENIZER, tmp_path / "critic", save_model)
    with pytest.raises(RunError, match="computes other numbers"):
        export(critic, TOKENIZER, tmp_path / "critic", afterwards(save_model, move))
    assert not (tmp_path / "critic.partial").exists()
    assert (tmp_path / "critic" / "config.json").is_file(), "an earlier one is not touched"
