"""What do adapters save, and what do they cost?

    full       policy and PRM train all their weights; the reference is a third copy
    adapters   policy and PRM train adapters of rank 16 on one copy of the weights, which is also the reference

A Qwen2 with random weights on a CPU, in float32. The two variants take turns: sampling from the policy, then two steps
of PRM and policy on random responses, of which the second is timed, then a checkpoint. `held_mib` is the size of all
tensors that exist between steps: weights, moments and the batch. A pass adds activations, the same in both, and
gradients.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from common import BACKEND, arguments, write_results
from priml.batch import Row, collate
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.factories.device import resolve_device
from priml.factories.learners import build_policy, build_prm
from priml.factories.rollout import build_sampler
from priml.models.load import load_model, load_tokenizer
from priml.models.tiny import character_tokenizer, tiny_model
from priml.rollout.base import SamplingSpec
from priml.types import Problem, Prompt

ARMS: dict[str, dict[str, Any]] = {"full": {}, "adapters": {"lora": {}}}
MIB = 2**20


def main() -> None:
    """Measure, and write the JSON."""
    options = arguments(__doc__).parse_args()
    width, layers, turns = (64, 2, 1) if options.quick else (256, 8, 5)
    with tempfile.TemporaryDirectory(prefix="priml-lora-") as folder:
        model, tokenizer = Path(folder) / "model", character_tokenizer()
        tiny_model(tokenizer, width=width, layers=layers, heads=8, seed=0).save_pretrained(model)
        tokenizer.save_pretrained(model)
        rows = list(measure(model, turns))
    write_results(options.out, "lora", rows=rows, headline=headline(rows) | {"width": width, "layers": layers})


def measure(model: Path, turns: int) -> Iterator[dict[str, Any]]:
    """A row per turn and arm."""
    for turn in range(turns):
        for arm in ARMS:
            yield {"arm": arm, "turn": turn, **one_run(str(model), arm)}


def one_run(model: str, arm: str) -> dict[str, float]:
    """One arm, with models of its own."""
    role = {"model": model, "mini_batch": None, **ARMS[arm]}
    prm = {"mini_batch": None, "beta": 0.05, **ARMS[arm]}
    data = {"train": {"kind": "walk", "count": 1}}
    tree = {"run_dir": "unused", "policy": role, "prm": prm, "data": data, "backend": BACKEND}
    tree |= {"steps": 1, "advantage": {"preset": "authors"}}  # PRIME as published
    cfg = parse_config(TrainConfig, tree, where="benchmark")
    device, tokenizer = resolve_device(cfg.backend), load_tokenizer(model)
    before = allocated_mib()
    module = load_model(model, device=device.device)
    assert cfg.prm
    made = build_prm(cfg, cfg.prm, module, tokenizer, device)
    policy = build_policy(cfg, module, tokenizer, device, prm=made)
    sampler = build_sampler(cfg.sampler, module, tokenizer, device, longest=64)
    problem = Problem(id="p", prompt="", answer="", source="benchmark")
    prompts = [Prompt(problem=problem, text="", token_ids=tuple(range(5, 13)))]
    spec = SamplingSpec(group_size=16, temperature=1.0, max_new_tokens=32, seed=0, step=1)
    seconds = {"sample_s": timed(lambda: sampler.sample(prompts, spec))}
    for step in (1, 2):
        batch = policy.score(responses(step))
        seconds["prm_s"] = timed(lambda batch=batch: made.update(batch))
        advantages_BT = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(step))
        seconds["policy_s"] = timed(lambda batch=batch, a=advantages_BT: policy.update(batch, a))
    allocated = allocated_mib() - before
    with tempfile.TemporaryDirectory(prefix="priml-lora-") as folder:
        for name, part in (("policy", policy), ("prm", made)):
            (Path(folder) / name).mkdir()
            for write in part.stage(Path(folder) / name):
                write()
        saved = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / MIB
    weights = Path(model, "model.safetensors").stat().st_size / MIB
    return {"weights_mib": weights, "held_mib": allocated, "checkpoint_mib": saved, **seconds}


def responses(step: int) -> Any:
    """Four groups of four random responses of 64 tokens."""
    generator = torch.Generator().manual_seed(step)
    rows = [
        Row(
            tuple(range(5, 13)), torch.randint(3, 200, (64,), generator=generator).tolist(), float(i % 2), i // 4, (63,)
        )
        for i in range(16)
    ]
    return collate(rows, step=step)


def timed(act: Any) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def allocated_mib() -> float:
    """All tensors of this process, each storage once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()) / MIB


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians by arm."""
    numbers = [name for name in rows[0] if name not in ("arm", "turn")]
    return {
        arm: {name: round(statistics.median(row[name] for row in rows if row["arm"] == arm), 3) for name in numbers}
        for arm in ARMS
    }


if __name__ == "__main__":
    main()
