"""What does PRIME add to a step of outcome-only reinforcement learning?

    none     no PRM
    single   the PRM learns from the batch, and the same forward pass gives the rewards
    double   the batch is scored once more after the update

    batch    the models alone, on one batch of real responses, for two sizes of model: all that a variant adds to a step
             (reference, PRM update, rewards; the advantages in every variant), less what `none` takes for it
    step     whole training steps with their phases. All variants see the same responses: the policy's learning rate is
             too small for anything to change

The price is the time added, divided by the time of the plain forward passes over the kept responses that PRIME needs,
measured in the same run with the same micro-batches. These are 4 for `single` (the PRM's forward and backward count 3,
the reference 1) and 5 for `double`. Variants take turns. Numbers are medians over repeats. Ratios are those of the same
repeat.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import LAPTOP, TOY, Parts, Setup, arguments, assemble, collect, train_config, warm_start, write_results
from priml.batch import Batch
from priml.config.train import TrainConfig
from priml.factories.algorithm import build_advantages, build_collect_spec
from priml.factories.learners import build_policy, build_prm
from priml.learners.base import Policy, Prm
from priml.models.tiny import tiny_model
from priml.training.collectors import SyncCollector
from priml.training.loop import Roles, train
from priml.training.records import FinishedStep
from priml.training.timing import Clock

PASSES = {"single": 4, "double": 5}
ARMS = ("none", *PASSES)
LAPTOP_SIZE = "width 128, 2 layers"
WIDER = {"width 256, 4 layers": {"width": 256, "layers": 4, "heads": 4}}
"""With random weights, which take no less time."""


def main() -> None:
    """Run both parts, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()
    setup, repeats = (TOY, 5) if args.quick else (LAPTOP, args.repeats)
    model = warm_start(setup, args.models, seed=0)
    sizes = [LAPTOP_SIZE] if args.quick else [LAPTOP_SIZE, *WIDER]

    steps = list(whole_steps(setup, model, repeats=repeats))
    batches = {size: list(roles_alone(setup, model, size, repeats=repeats)) for size in sizes}
    headline = {"batch": {size: _price(rows) for size, rows in batches.items()}, "step": _compare(steps)}
    rows = [*steps, *(row for size in sizes for row in batches[size])]
    write_results(args.out, "prime_overhead", rows=rows, headline=headline)


# --- the roles alone ---------------------------------------------------------------------------------------------


def roles_alone(setup: Setup, model: Path, size: str, *, repeats: int) -> Iterator[dict[str, Any]]:
    """One row per repeat: seconds of a forward pass, and of each arm's work."""
    cfgs = {arm: _config(setup, model, arm) for arm in ARMS}
    parts = assemble(cfgs["none"])
    batch = parts.collate(collect(parts, cfgs["none"], step=1), 1)
    module = tiny_model(parts.tokenizer, **WIDER[size], seed=0) if size in WIDER else parts.module
    scorer = parts.device.model(module)
    prms = {arm: _prm(cfg, module, parts) for arm, cfg in cfgs.items()}
    for repeat in range(repeats + 1):
        seconds = {"forward": _seconds(lambda: scorer.scores(batch))}
        for arm in _in_turn(ARMS, repeat):
            seconds[arm] = _seconds(lambda arm=arm: _judge(prms[arm], batch, cfgs[arm]))
        if repeat:  # the first one warms up
            yield {"part": "batch", "size": size, "repeat": repeat, "tokens": int(batch.response_lengths_B.sum())} | {
                name: round(value, 6) for name, value in seconds.items()
            }


def _judge(prm: Prm | None, batch: Batch, cfg: TrainConfig) -> Tensor:
    """What the loop does with the PRM, or without one, up to the advantages."""
    if prm:
        prm.update(batch)
    process = prm.rewards(batch) if prm else None
    return build_advantages(cfg).estimate(batch, process, 1.0).advantages_BT


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _price(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "forward_s": _median(row["forward"] for row in rows),
        "added_s": {arm: _median(row[arm] - row["none"] for row in rows) for arm in PASSES},
        "price": {
            arm: _median((row[arm] - row["none"]) / (passes * row["forward"]) for row in rows)
            for arm, passes in PASSES.items()
        },
    }


# --- whole steps -------------------------------------------------------------------------------------------------


class _OneStep:
    """Stands in for `Run`: lets the loop do a single step and keeps its numbers."""

    def __init__(self, step: int, clock: Clock) -> None:
        self._step = step
        self._clock = clock
        self.seconds: dict[str, float] = {}
        self.tokens_BL = torch.empty(0)

    def process_factor(self, report: Any) -> float:
        return 1.0

    def steps(self) -> Iterator[int]:
        self._clock.take()
        self._began = time.perf_counter()
        yield self._step

    def record(self, done: FinishedStep, *reports: Any) -> None:
        elapsed = time.perf_counter() - self._began
        phases, _ = self._clock.take()
        rest_of_step = {"other": elapsed - sum(phases.values()), "step": elapsed}
        self.seconds = {name: round(value, 6) for name, value in (phases | rest_of_step).items()}
        self.tokens_BL = done.batch.tokens_BL


def whole_steps(setup: Setup, model: Path, *, repeats: int) -> Iterator[dict[str, Any]]:
    """One row per step and arm: seconds of each phase. `forward` is the policy's pass over the kept responses, which
    every arm does to recall its log-probs."""
    trainers = {arm: _trainer(_config(setup, model, arm, policy_lr=1e-12)) for arm in ARMS}
    for step in range(1, repeats + 2):
        done = {arm: trainers[arm](step) for arm in _in_turn(ARMS, step)}
        tokens_BL = done["none"].tokens_BL
        assert all(torch.equal(tokens_BL, one.tokens_BL) for one in done.values()), "the arms saw different responses"
        if step > 1:  # the first one warms up
            yield from ({"part": "step", "arm": arm, "repeat": step - 1} | done[arm].seconds for arm in ARMS)


def _trainer(cfg: TrainConfig) -> Callable[[int], _OneStep]:
    parts, clock = assemble(cfg), Clock()
    prm = _prm(cfg, parts.module, parts)
    policy: Policy = build_policy(cfg, parts.module, parts.tokenizer, parts.device)
    if prm is not None:
        prm.reference = clock.wrap(prm.reference, "reference", {"logprobs": "reference"})
        prm = clock.wrap(prm, "prm", {"update": "prm", "rewards": "prm"})
    sampler = clock.wrap(parts.sampler, "sampler", {"sample": "sample", "load": "sync"})
    verify = clock.wrap(parts.verify, "verifier", {"__call__": "verify"})
    roles = Roles(
        collector=SyncCollector(sampler, verify, parts.stream, build_collect_spec(cfg)),
        collate=parts.collate,
        policy=clock.wrap(policy, "policy", {"score": "forward", "update": "policy"}),
        prm=prm,
        advantages=build_advantages(cfg),
    )

    def one_step(step: int) -> _OneStep:
        run = _OneStep(step, clock)
        train(roles, run)  # pyright: ignore[reportArgumentType]
        return run

    return one_step


def _compare(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    arms = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    phases = ("sample", "verify", "forward", "policy", "reference", "prm", "sync", "other", "step")
    pairs = {arm: list(zip(arms[arm], arms["none"], strict=True)) for arm in PASSES}
    return {
        "seconds": {arm: {p: _median(r.get(p, 0.0) for r in steps) for p in phases} for arm, steps in arms.items()},
        "times_longer": {arm: _median(a["step"] / b["step"] for a, b in pairs[arm]) for arm in PASSES},
        "price": {
            arm: _median((row["prm"] + row["reference"]) / (passes * row["forward"]) for row in arms[arm])
            for arm, passes in PASSES.items()
        },
    }


# --- shared ------------------------------------------------------------------------------------------------------


def _config(setup: Setup, model: Path, arm: str, *, policy_lr: float = 3e-4) -> TrainConfig:
    policy = {"model": str(model), "optimizer": {"lr": policy_lr, "weight_decay": 0.0}, "mini_batch": None}
    prm = {"forward": arm, "beta": "auto", "optimizer": {"lr": 1e-4}, "mini_batch": None}
    return train_config(setup, model, seed=0, policy=policy, prm=None if arm == "none" else prm)


def _prm(cfg: TrainConfig, module: Any, parts: Parts) -> Any:
    return build_prm(cfg, cfg.prm, copy.deepcopy(module), parts.tokenizer, parts.device) if cfg.prm else None


def _in_turn(arms: Sequence[str], repeat: int) -> list[str]:
    """Another arm first each time."""
    first = repeat % len(arms)
    return [*arms[first:], *arms[:first]]


def _median(values: Any) -> float:
    return round(statistics.median(values), 4)


if __name__ == "__main__":
    main()
