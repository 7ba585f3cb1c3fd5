"""One side of `step.py`: the loop of this package, with its default settings."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from common import assemble
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.factories.algorithm import build_advantages, build_collect_spec
from priml.factories.learners import build_policy
from priml.factories.rollout import build_sampler
from priml.graders.pool import VerifierPool
from priml.training.collectors import SyncCollector
from priml.training.loop import Roles, train
from priml.types import Problem, Verdict


class Steps:
    """Stands in for the run: a step for each line that comes in."""

    def __init__(self) -> None:
        self._began = (0.0, 0.0)

    def process_factor(self, report: Any) -> float:
        return 1.0

    def steps(self) -> Iterator[int]:
        for step, _ in enumerate(sys.stdin, start=1):
            self._began = time.process_time(), time.perf_counter()
            yield step

    def record(self, done: Any, *reports: Any) -> None:
        cpu, wall = self._began
        answer = {
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - wall,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "tokens": int(done.batch.response_lengths_B.sum()),
        }
        print(json.dumps(answer), flush=True)


class Share:
    """The share of letters."""

    def grade(self, problem: Problem, response: str) -> Verdict:
        score = sum(letter.isalpha() for letter in response) / max(len(response), 1)
        return Verdict(correct=score > 0.5, score=score, reason="counted")


def main(given: dict[str, Any]) -> None:
    """Steps until the input ends."""
    torch.set_num_threads(1)
    tree = {
        "run_dir": "unused",
        "policy": {"model": given["model"], "optimizer": {"lr": 1e-5}, "mini_batch": None},
        "prm": None,
        "sampling": {"group_size": given["group"], "max_new_tokens": given["new_tokens"]},
        "batch": {"prompts": given["prompts"]},
        "filter": None,
        "verify": {"kind": "exact"},
        "data": {"train": {"kind": "file", "path": given["data"]}, "prompt": {"template": "plain"}},
        "backend": given.get("backend", {}),
    }
    cfg = parse_config(TrainConfig, tree, where="benchmark")
    parts = assemble(cfg)
    longest = given["prompt_tokens"] + given["new_tokens"]
    sampler = parts.sampler
    if not given["ragged"]:
        endless = SimpleNamespace(eos_token_id=10_000, decode=parts.tokenizer.decode)
        parts.module.generation_config.eos_token_id = None
        sampler = build_sampler(cfg.sampler, parts.module, endless, parts.device, longest=longest)  # pyright: ignore
    policy = build_policy(cfg, parts.module, parts.tokenizer, parts.device)
    collector = SyncCollector(sampler, VerifierPool(Share()), parts.stream, build_collect_spec(cfg))
    roles = Roles(collector, parts.collate, policy, None, build_advantages(cfg))
    train(roles, Steps())  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
