"""Offline implicit PRM: what does it learn from labels of whole responses, and what is it good for?

The SFT policy of the laptop task answers training problems eight times each. Answers are labelled only by outcome. With
each loss an offline PRM is trained on them. Then it scores eight answers each to held-out problems. The commands are
`priml eval`, `priml prm train`, `priml prm score` and `priml prm rank`. A seed repeats everything: facts, warm start,
problems and responses.

Over the held-out responses that have a wrong step (the PRM has never seen a label of a step):

    auc      of the reward, between the first wrong steps and the correct steps before them
    hit      how often the step with the lowest reward is the first wrong one; `chance` is 1 / number of steps

Over the held-out problems, with eight responses each: `pass@1` (any of them), `majority` vote, `oracle` (one of them is
correct), `best_of/HOW` (the response whose step rewards have the highest min, mean, sum or last) and `vote/HOW` (each
answer has the weight of the sum of sigmoid(score)).
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from common import BACKEND, LAPTOP, TOY, Setup, arguments, warm_start, write_results
from priml.commands.eval import run_eval
from priml.commands.prm_rank import run_prm_rank
from priml.commands.prm_score import run_prm_score
from priml.commands.prm_train import run_prm_training
from priml.config.data import ChainSource
from priml.config.eval import EvalConfig
from priml.config.load import parse_config
from priml.config.prm import PrmRankConfig, PrmScoreConfig, PrmTrainConfig
from priml.factories.data import build_task
from prm_quality import first_wrong_step, judged_tokens

LOSSES = ("ce", "dpo", "kto", "nca")
SAMPLES = 8
METHODS = ("pass@1", "majority", "oracle", "best_of/min", "best_of/mean", "best_of/sum", "best_of/last", "vote/sum")


def main() -> None:
    """Every seed and loss, then the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--problems", type=int, default=1024, help="training problems (%(default)s)")
    parser.add_argument("--held-out", type=int, default=384, help="held-out problems (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-4, help="peak learning rate (%(default)s)")
    args = parser.parse_args()
    setup, seeds, sizes = (TOY, [0], (48, 24)) if args.quick else (LAPTOP, args.seeds, (args.problems, args.held_out))
    rows = [row for seed in seeds for row in measure(setup, args.models, seed=seed, sizes=sizes, lr=args.lr)]
    headline = {loss: summary([row for row in rows if row["loss"] == loss]) for loss in LOSSES}
    setting = {"training_problems": sizes[0], "held_out_problems": sizes[1], "samples": SAMPLES, "lr": args.lr}
    write_results(args.out, "offline_prm", rows=rows, headline={"setting": setting, **headline})


def measure(setup: Setup, models: Path, *, seed: int, sizes: tuple[int, int], lr: float) -> list[dict[str, Any]]:
    """One row per loss; all losses see the same responses."""
    model = warm_start(setup, models, seed=seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample(setup, model, folder / "sampled", seed=seed, sizes=sizes)
        return [measure_loss(setup, model, folder, loss=loss, seed=seed, lr=lr) for loss in LOSSES]


def sample(setup: Setup, model: Path, folder: Path, *, seed: int, sizes: tuple[int, int]) -> None:
    """Responses of the supervised policy to both kinds of problems, judged by their boxed answer."""
    sources = {
        name: {**setup.task, "split": split, "count": count, "seed": seed}
        for name, split, count in zip(("train", "test"), ("train", "held_out"), sizes, strict=True)
    }
    settings = {
        "run_dir": str(folder),
        "model": str(model),
        "data": sources,
        "greedy": False,
        "samples": SAMPLES,
        "max_new_tokens": setup.task["length"] + 17,
        "seed": seed,
        "backend": {"device": BACKEND["device"]},
    }
    run_eval(parse_config(EvalConfig, settings, where="sampling"))


def measure_loss(setup: Setup, model: Path, folder: Path, *, loss: str, seed: int, lr: float) -> dict[str, Any]:
    """Train, score, rank."""
    place = folder / loss
    units = 256 if loss in ("ce", "kto") else 256 // SAMPLES  # 256 responses per step with every loss
    training = {
        "run_dir": str(place / "prm"),
        "model": str(model),
        "data": {"path": str(folder / "sampled" / "train.parquet"), "on_bad_row": "skip"},
        "held_out": {"every": None},
        "loss": {"kind": loss},
        "beta": "auto",
        "epochs": 2,
        "batch": units,
        "optimizer": {"lr": lr},
        "seed": seed,
        "backend": BACKEND,
    }
    trained = run_prm_training(parse_config(PrmTrainConfig, training, where=loss))
    scoring = {
        "run_dir": str(place / "scores"),
        "prm": {"model": str(place / "prm" / "model")},
        "data": {"path": str(folder / "sampled" / "test.parquet"), "on_bad_row": "skip"},
        "steps": {"kind": "pattern", "pattern": "."},  # every character is a step
        "backend": BACKEND,
    }
    run_prm_score(parse_config(PrmScoreConfig, scoring, where=loss))
    scores = place / "scores" / "scores.parquet"
    ranking = {"run_dir": str(place / "rank"), "data": {"path": str(scores)}, "seed": seed, "backend": BACKEND}
    print(run_prm_rank(parse_config(PrmRankConfig, ranking, where=loss)))
    ranked = json.loads((place / "rank" / "rank.json").read_text(encoding="utf-8"))
    return {
        "seed": seed,
        "loss": loss,
        "beta": round(trained["beta"], 4),
        "response_auc": round(json.loads((place / "scores" / "summary.json").read_text())["auc"], 4),
        **measure_first_error(setup, seed, pq.read_table(scores).to_pylist()),
        "curve": _rounded(ranked["curve"]),
        "above_majority": _rounded(ranked["above_majority"]),
    }


def measure_first_error(setup: Setup, seed: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How well the token rewards point at the first wrong step."""
    task = build_task(ChainSource(**setup.task, split="held_out", seed=seed))
    return first_wrong_step(map(judged_tokens(task), rows))


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and with n = 8 each seed's distance from majority voting with its interval."""
    means = {
        name: round(statistics.mean(row[name] for row in rows), 4)
        for name in ("auc", "hit", "chance", "response_auc")
        if all(row[name] is not None for row in rows)
    }
    at_8 = [row["curve"][-1] for row in rows]
    accuracy = {method: round(statistics.mean(point[method]["mean"] for point in at_8), 4) for method in METHODS}
    above = {
        method: [[row["above_majority"][method][key] for key in ("mean", "low", "high")] for row in rows]
        for method in ("best_of/min", "best_of/sum")
    }
    return means | {"best_of_8": accuracy, "above_majority_per_seed": above}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
