"""Does the PRM find the first wrong step, from outcome labels alone?

The chain task knows which steps of a response are correct. The PRM only learns whether the final answer is.

    frozen   a policy that never changes. Each fresh batch is scored before the PRM learns from it. All losses, with
             replay and without, see the same responses. A seed repeats everything: facts, warm start, problems and
             responses.
    online   PRIME runs, in which the policy changes while the PRM learns: at the pace of the quickstart, and at a
             slower one with a larger batch and three passes of the PRM over it; or the run of `--run`.

Over the responses that have a wrong step:

    auc      of the reward, between the first wrong steps and the correct steps before them
    hit      how often the step with the lowest reward is the first wrong one; `chance` is 1 / number of steps

With `--run` and `--judge`, the run is one with an environment. Its steps are the turns, and their rewards are summed.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from common import LAPTOP, TOY, Setup, arguments, assemble, collect, train_config, warm_start, write_results
from priml.commands.train import run_training
from priml.config.data import ChainSource, WalkSource
from priml.config.load import load_config
from priml.config.models import Prm
from priml.config.train import TrainConfig
from priml.data.procedural.tasks import Task
from priml.factories.data import build_task
from priml.factories.learners import build_prm
from priml.maths.prm_loss import auc
from priml.models.load import load_tokenizer
from priml.plugins import load
from priml.types import Problem

Judged = tuple[Sequence[bool], Sequence[float]]
"""Which steps of a response are right, and the reward of each."""
PRMS: dict[str, dict[str, Any]] = {
    "ce": {},
    "pairwise": {"loss": {"kind": "pairwise"}},
    "likelihood": {"loss": {"kind": "likelihood"}},
    "ce, replay": {"replay": {"passes": 2}},
    "likelihood, replay": {"loss": {"kind": "likelihood"}, "replay": {"passes": 2}},
}
"""By what they change of the settings."""
LAST = 10
"""The headline is the mean over this many last batches."""
PACES: dict[str, dict[str, Any]] = {
    "quickstart": {"steps": 60},
    "slow": {
        "steps": 45,
        "policy": {"optimizer": {"lr": 5e-5, "weight_decay": 0.0}, "mini_batch": None},
        "prm": {"beta": "auto", "optimizer": {"lr": 1e-4}, "mini_batch": None, "epochs": 3},
        "batch": {"prompts": 48},
    },
}
"""Online runs by what they change of the laptop settings. The slow one was found by three trials on seed 0."""


def main() -> None:
    """Run both parts, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", default=["frozen", *PACES], choices=["frozen", *PACES])
    parser.add_argument("--run", type=Path, help="a finished PRIME run, and nothing else; on a chain or walk task")
    parser.add_argument("--judge", help="of runs with turns: FILE.py:FUNCTION(prompt, turns) -> which turns are right")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=45)
    args = parser.parse_args()
    setup, seeds, batches = (TOY, [0], 5) if args.quick else (LAPTOP, args.seeds, args.batches)

    rows: list[dict[str, Any]] = []
    headline: dict[str, Any] = {}
    if "frozen" in args.parts and not args.run:
        rows += [row for seed in seeds for row in frozen(setup, args.models, seed=seed, batches=batches)]
        headline["frozen"] = {loss: _summary([r for r in rows if r["loss"] == loss], seeds) for loss in PRMS}
    for pace in [] if args.run else [pace for pace in PACES if pace in args.parts]:
        changes = PACES[pace] | ({"steps": 5, "batch": {"prompts": setup.prompts}} if args.quick else {})
        with tempfile.TemporaryDirectory() as folder:
            later = list(online(_train(setup, args.models, Path(folder) / "run", seed=seeds[0], **changes)))
        rows += [row | {"pace": pace} for row in later]
        headline[pace] = _by_fifths(later)
    if args.run:
        later = list(online(args.run, args.judge))
        rows += later
        headline["run"] = _by_fifths(later)
    headline["largest_reward_at_step_1"] = max(row["largest_reward"] for row in rows if row["step"] == 1)
    write_results(args.out, "prm_quality", rows=rows, headline=headline)


# --- a frozen policy ---------------------------------------------------------------------------------------------


def frozen(setup: Setup, models: Path, *, seed: int, batches: int) -> Iterator[dict[str, Any]]:
    """One row per batch and loss."""
    cfg = train_config(setup, warm_start(setup, models, seed=seed), seed=seed)
    parts, task = assemble(cfg), _task(cfg)
    assert cfg.implicit_prm is not None
    base = cfg.implicit_prm.model_dump()
    prms = {
        name: build_prm(cfg, Prm.model_validate(base | changes), parts.module, parts.tokenizer, parts.device)
        for name, changes in PRMS.items()
    }
    for step in range(1, batches + 1):
        groups = collect(parts, cfg, step)
        batch = parts.collate(groups, step)
        answers = [(group.prompt.problem, trajectory.text) for group in groups for trajectory in group.trajectories]
        for loss, prm in prms.items():
            report = prm.update(batch)
            rewards_BT = prm.rewards(batch).rewards_BT  # of the forward pass before the update
            scored = zip(answers, rewards_BT.tolist(), strict=True)
            yield {
                "part": "frozen",
                "seed": seed,
                "loss": loss,
                "step": step,
                "pair_accuracy": round(report.pair_accuracy, 4),
                "response_auc": None if report.auc is None else round(report.auc, 4),
                "prm_loss": None if report.loss is None else round(report.loss, 4),
                **first_wrong_step(judged_states(task, *answer, rewards) for answer, rewards in scored),
                "largest_reward": round(float(rewards_BT.abs().max()), 4),
            }


def first_wrong_step(judged: Iterable[Judged]) -> dict[str, float | int | None]:
    """How well rewards point at the first wrong step of each response that has one."""
    wrong: list[float] = []
    right_before: list[float] = []
    hits: list[bool] = []
    chances: list[float] = []
    for right, rewards in judged:
        if all(right):
            continue
        first, steps = right.index(False), len(right)
        wrong.append(rewards[first])
        right_before += rewards[:first]
        others = [*rewards[:first], *rewards[first + 1 : steps]]
        hits.append(all(rewards[first] < reward for reward in others))  # a PRM that says nothing hits nothing
        chances.append(1 / steps)
    labels = torch.tensor([True] * len(right_before) + [False] * len(wrong))
    area = auc(torch.tensor([*right_before, *wrong]), labels)
    return {
        "auc": None if area is None else round(float(area), 4),
        "hit": round(statistics.mean(hits), 4) if hits else None,
        "chance": round(statistics.mean(chances), 4) if chances else None,
        "responses": len(hits),
    }


# --- a policy that learns ----------------------------------------------------------------------------------------


def online(run: Path, judge: str | None = None) -> Iterator[dict[str, Any]]:
    """One row per step of a run, from its records. `judge` judges turns."""
    judged = _judged_turns(run, judge) if judge else judged_tokens(_task(load_config(TrainConfig, run / "config.yaml")))
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        metrics = json.loads(line)
        step = metrics["step"]
        if step == 0:  # the evaluation before training
            continue
        columns = ["problem_id", "prompt", "gold", "response", "response_ids", "segments", "process_rewards"]
        table = pq.read_table(run / "rollouts" / f"{step:06d}.parquet", columns=columns)
        kept = [judged(row) for row in table.to_pylist() if row["process_rewards"] is not None]
        yield {
            "part": "online",
            "step": step,
            "outcome": round(metrics["outcome/mean"], 4),
            "pair_accuracy": round(metrics["prm/pair_accuracy"], 4),
            "response_auc": round(metrics["prm/auc"], 4) if "prm/auc" in metrics else None,
            **first_wrong_step(kept),
            "largest_reward": round(max(abs(reward) for _, rewards in kept for reward in rewards), 4),
        }


def judged_tokens(task: Task) -> Callable[[Mapping[str, Any]], Judged]:
    """Judges rows of rollout files. Each step is a token."""

    def judged(row: Mapping[str, Any]) -> Judged:
        problem = Problem(row["problem_id"], row["prompt"], row["gold"])
        return judged_states(task, problem, row["response"], row["process_rewards"])

    return judged


def judged_states(task: Task, problem: Problem, response: str, rewards: Sequence[float]) -> Judged:
    """Each step is a state, one token; fillers between states are no steps."""
    judgement = task.judge_steps(problem, response)
    return judgement.right, [rewards[end] for end in judgement.ends]


def _judged_turns(run: Path, judge: str) -> Callable[[Mapping[str, Any]], Judged]:
    """Each step is a turn, with the sum of the rewards of their tokens."""
    tokenizer = load_tokenizer(str(run / "model"))
    is_right = load(judge, setting="--judge", takes=("prompt", "turns"))

    def judged(row: Mapping[str, Any]) -> Judged:
        turns: list[str] = []
        rewards: list[float] = []
        start = paid = 0
        for segment in row["segments"]:
            end = start + segment["num_tokens"]
            if segment["weight_version"] is not None:
                turns.append(tokenizer.decode(row["response_ids"][start:end], skip_special_tokens=True))
                rewards.append(sum(row["process_rewards"][paid : paid + end - start]))
                paid += end - start
            start = end
        return is_right(row["prompt"], turns), rewards

    return judged


def _train(setup: Setup, models: Path, folder: Path, *, seed: int, **changes: Any) -> Path:
    model = warm_start(setup, models, seed=seed)
    run_training(train_config(setup, model, seed=seed, run_dir=str(folder), **changes))
    return folder


def _task(cfg: TrainConfig) -> Task:
    source = cfg.data.train
    if not isinstance(source, ChainSource | WalkSource):
        raise SystemExit(f"data.train.kind is {source.kind}: the truth about steps is known for chain and walk only")
    return build_task(source)


# --- the numbers to quote ----------------------------------------------------------------------------------------

_MEASURES = ("auc", "hit", "chance", "pair_accuracy", "response_auc")


def _summary(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Mean over the last batches: of each seed, and of the seeds; and the curve, five batches to a point."""
    last = {seed: [row for row in rows if row["seed"] == seed][-LAST:] for seed in seeds}
    per_seed = {name: [_mean(last[seed], name) for seed in seeds] for name in _MEASURES}
    end = max(row["step"] for row in rows)
    curve = [
        {"batches": f"{start}-{min(start + 4, end)}"}
        | {name: _mean([r for r in rows if start <= r["step"] < start + 5], name) for name in ("auc", "hit")}
        for start in range(1, end + 1, 5)
    ]
    means = {name: _round_mean(values) for name, values in per_seed.items()}
    return {"last_batches": LAST, "mean": means, "seeds": per_seed, "curve": curve}


def _by_fifths(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    cuts = [round(len(rows) * i / 5) for i in range(6)]
    return [
        {"steps": f"{rows[start]['step']}-{rows[end - 1]['step']}"}
        | {name: _mean(rows[start:end], name) for name in ("outcome", *_MEASURES)}
        for start, end in pairwise(cuts)
        if end > start
    ]


def _mean(rows: Iterable[Mapping[str, Any]], name: str) -> float | None:
    return _round_mean([row[name] for row in rows])


def _round_mean(values: Iterable[float | None]) -> float | None:
    """Mean of those there are; a batch may lack one class."""
    found = [value for value in values if value is not None]
    return round(statistics.mean(found), 4) if found else None


if __name__ == "__main__":
    main()
