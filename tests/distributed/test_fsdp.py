"""Two processes with sharded models say and become what one process does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from priml.distributed.fsdp import sharding
from priml.errors import ConfigError
from priml.factories.device import DeviceSpec
from priml.models.checkpoint import save_model, weights_digest
from priml.models.load import load_model
from priml.models.tiny import character_tokenizer, tiny_model
from ranks import learn, run_ranks

CPU = torch.device("cpu")
CRITIC = ("advantage.estimator=ppo", "critic={optimizer: {lr: 1.0e-3}, mini_batch: 12}")
ADAPTER = ("policy.lora={rank: 4, export: adapter}", "prm.lora={rank: 4, export: adapter}")
pytestmark = pytest.mark.slow  # two ranks and one process learn everything that there is to learn

ARMS: dict[str, dict[str, Any]] = {
    "paper": {},
    # With frozen weights to be compared with: the first rewards are exactly 0 then, and not what rounding leaves.
    "ours": {"overrides": ("advantage.preset=priml", "prm.reference=initial")},
    "pairwise": {"overrides": ("prm.loss=pairwise", "policy.epochs=2", "loss.aggregate=token_mean")},
    "detached": {"overrides": ("prm.loss=detached", "loss.kl={weight: 0.1}")},
    "double": {"overrides": ("prm.forward=double", "prm.reference=policy", *CRITIC), "micro_batch_tokens": 1},
    "checkpointing": {"overrides": ("policy.gradient_checkpointing=true", "overlong.kind=mask")},
    "replicas": {"replicas": 2},
    "lora": {"overrides": ("policy.lora={rank: 4}", "prm.lora={rank: 4}", "loss.kl={weight: 0.1}")},
    "lora, policy": {"overrides": ("policy.lora={rank: 3}", "policy.gradient_checkpointing=true"), "replicas": 2},
    "deep": {"model": "deep", "overrides": ("loss.kl={weight: 0.1}",), "watched": True},
    "untied": {"model": "untied"},
    "packed": {"packing": "always", "overrides": CRITIC},
    "packed again": {"packing": "always", "model": "deep", "overrides": ("policy.gradient_checkpointing=true",)},
}
ABSOLUTE = 2e-5
"""Of numbers and weights after two steps in float32: sums are taken in another order, and nothing else differs. Rewards
are ten log-ratios here, and differ most: by 4e-6."""


def models_in(folder: Path) -> dict[str | None, Path]:
    """`deep`: most of its weights are in its blocks; `untied`: its files have two weights where its config has one."""
    tokenizer = character_tokenizer()
    models: dict[str | None, Path] = {"deep": folder / "deep", "untied": folder / "untied"}
    save_model(tiny_model(tokenizer, width=16, layers=5, heads=2, seed=0), tokenizer, folder / "deep")
    save_model(tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0), tokenizer, folder / "untied")
    path = folder / "untied" / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"] * 1.5}, path, {"format": "pt"})
    return models


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, warm_model: Path) -> Path:
    """Every arm by one process (`alone/`) and by two (`two/`); then one step more from the checkpoint of the two."""
    out = tmp_path_factory.mktemp("fsdp")
    models = models_in(out)
    arms = {name: arm | {"model": str(models.get(arm.get("model"), warm_model))} for name, arm in ARMS.items()}
    for name, arm in arms.items():
        place = DeviceSpec(CPU, "fp32", arm.get("micro_batch_tokens", 40))  # never packed
        learn(place, arm["model"], out / "alone" / name, arm.get("overrides", ()))
    arms |= {
        "bf16": {"precision": "bf16"},
        "on": {"resume": str(out / "two" / "paper" / "checkpoint"), "steps": [3]},
        "from one": {"resume": str(out / "alone" / "paper" / "checkpoint"), "steps": [3]},
        "adapter": {"overrides": (*ADAPTER, "loss.kl={weight: 0.1}")},
        "lora on": ARMS["lora"] | {"resume": str(out / "two" / "lora" / "checkpoint"), "steps": [3]},
    }
    run_ranks(2, {"model": str(warm_model), "out": str(out / "two"), "arms": arms})
    return out


def said(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "said.json").read_text())


def assert_alike(one: Path, other: Path, *, absolute: float = ABSOLUTE) -> None:
    ours, theirs = said(one), said(other)
    numbers = [name for name in ours if name != "digest"]
    assert len(numbers) > 10
    assert {n: theirs[n] for n in numbers} == pytest.approx({n: ours[n] for n in numbers}, abs=absolute, rel=1e-4)
    for path in ("said.safetensors", "policy/model.safetensors", "prm/model.safetensors"):
        expected, found = load_file(one / path), load_file(other / path)
        for name in expected.keys() | found.keys():
            torch.testing.assert_close(found[name], expected[name], atol=absolute, rtol=1e-4)


@pytest.mark.parametrize("arm", ARMS)
def test_two_ranks_say_and_become_what_one_process_does(runs: Path, arm: str) -> None:
    assert_alike(runs / "alone" / arm, runs / "two" / arm)


def test_no_rank_but_the_first_ever_holds_more_than_one_piece_whole(runs: Path) -> None:
    first, second = (json.loads((runs / "two" / "deep" / f"held-{rank}.json").read_text()) for rank in (0, 1))
    weights = load_file(runs / "two" / "deep" / "policy" / "model.safetensors")
    whole = sum(tensor.nbytes for tensor in weights.values())
    blocks = [sum(w.nbytes for name, w in weights.items() if f"layers.{i}." in name) for i in range(5)]
    assert second <= max(*blocks, whole - sum(blocks))
    assert second < whole / 4
    assert first >= whole, "the watch sees what there is"


def test_weights_that_only_the_files_tell_apart_stay_apart_on_all_ranks(runs: Path) -> None:
    for who in ("alone", "two"):
        trained = load_file(runs / who / "untied" / "policy" / "model.safetensors")
        assert not torch.allclose(trained["lm_head.weight"], trained["model.embed_tokens.weight"])


def test_what_the_first_rank_finds_wrong_with_a_model_all_ranks_say(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=200, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    model: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    save_model(model, character_tokenizer(), tmp_path / "model")
    with pytest.raises(AssertionError) as caught:
        run_ranks(2, {"model": str(tmp_path / "model"), "out": str(tmp_path), "arms": {"bad": {}}})
    assert len(re.findall(r"ModelError: .* the weights lm_head\.weight hold NaN", str(caught.value))) == 2


def test_in_bfloat16_they_agree_to_its_precision(runs: Path) -> None:
    ours, theirs = said(runs / "alone" / "paper"), said(runs / "two" / "bf16")
    for name in ("1/policy/entropy", "1/prm/loss"):
        assert theirs[name] == pytest.approx(ours[name], rel=2e-2)
    weights = load_file(runs / "two" / "bf16" / "policy" / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values()), "the masters stay in float32"


def test_a_checkpoint_of_two_ranks_goes_on_with_one_and_the_other_way_round(
    runs: Path, warm_model: Path, tmp_path: Path
) -> None:
    checkpoint = runs / "two" / "paper" / "checkpoint"
    assert not [
        path for path in checkpoint.rglob("*") if path.is_file() and path.suffix not in (".safetensors", ".json")
    ]
    learn(DeviceSpec(CPU, "fp32", 40), str(warm_model), tmp_path / "one", (), steps=(3,), resume=str(checkpoint))
    assert_alike(tmp_path / "one", runs / "two" / "on")
    assert_alike(tmp_path / "one", runs / "two" / "from one")
    start = said(runs / "two" / "paper")["digest"]
    learn(DeviceSpec(CPU, "fp32", 40), str(warm_model), tmp_path / "same", (), steps=(), resume=str(checkpoint))
    assert said(tmp_path / "same")["digest"] == start, "not a bit of the weights is lost on the way"


def test_a_digest_and_an_exported_file_do_not_say_how_many_ranks_there_were(
    runs: Path, warm_model: Path, tmp_path: Path
) -> None:
    checkpoint = runs / "two" / "paper" / "checkpoint"
    learn(DeviceSpec(CPU, "fp32", 40), str(warm_model), tmp_path, (), steps=(), resume=str(checkpoint))
    for name in ("policy", "prm"):
        for file in ("model.safetensors", "config.json"):
            assert (tmp_path / name / file).read_bytes() == (runs / "two" / "paper" / name / file).read_bytes()


def test_a_checkpoint_of_adapters_in_shards_goes_on_with_one_process(
    runs: Path, warm_model: Path, tmp_path: Path
) -> None:
    checkpoint, overrides = runs / "two" / "lora" / "checkpoint", ARMS["lora"]["overrides"]
    learn(DeviceSpec(CPU, "fp32", 40), str(warm_model), tmp_path, overrides, steps=(3,), resume=str(checkpoint))
    assert_alike(tmp_path, runs / "two" / "lora on")
    saved = [name for path in (checkpoint / "prm").rglob("*.safetensors") for name in load_file(path)]
    assert any(".lora_" in name for name in saved)
    assert not any("base_layer" in name for name in saved)


def test_adapters_in_shards_are_exported_whole(runs: Path) -> None:
    for name in ("policy", "prm"):
        found = load_model(str(runs / "two" / "adapter" / name), device=CPU)
        expected = load_model(str(runs / "two" / "lora" / name), device=CPU)
        assert weights_digest(found) == weights_digest(expected)


def test_there_is_nothing_to_offload_from_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"backend.cpu_offload: found true, .* set backend.cpu_offload: false"):
        sharding(ranks=1, replicas=1, device=CPU, precision="fp32", offload=True)
