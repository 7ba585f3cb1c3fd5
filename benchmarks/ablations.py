"""The paper's ablations on the laptop task: the effect of each choice at an equal number of rollouts.

Every variant changes one thing of the same run: PRIME with RLOO, the authors' arithmetic, online cross-entropy PRM from
the SFT model. All have the same problems, the same number of rollouts and the same policy learning rate. So rows are
comparable within this table. A tuned rate would improve each of them (`sample_efficiency.py` tunes a few). Accuracy is
the mean outcome of fresh samples on unseen training problems, over the last five steps.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import arguments, write_results
from sample_efficiency import PRM, REGIMES, Regime, _toy, area, final, run, warm_start

LR = 1.5e-4
"""PRIME's best of the grid in `sample_efficiency.py`, where outcome-only RLOO prefers twice that."""
STEPS_OF_FIVE = ".{5}"
SFT, BASE, TRAINED = "<sft>", "<base>", "<trained>"
"""Stand for folders that are made before the runs."""


@dataclass(frozen=True)
class Variant:
    """One row: what differs from PRIME as published."""

    study: str
    name: str
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _prm(**changes: Any) -> dict[str, Any]:
    return {"prm": PRM | changes}


_ESTIMATORS = ("rloo", "grpo", "dr_grpo", "reinforce", "reinforce_pp", "ppo")
_CRITIC = {"ppo": {"critic": {"optimizer": {"lr": 1e-3}, "mini_batch": None}}}
VARIANTS = [
    *(
        Variant(
            "estimator",
            f"{name}{' + PRIME' if prm else ''}",
            {"prm": prm, "advantage": {"estimator": name}, **_CRITIC.get(name, {})},
        )
        for name in _ESTIMATORS
        for prm in (None, PRM)
    ),
    Variant("estimator", "PRIME as value model", {"prm": PRM, "advantage": {"estimator": "prime_value"}}),
    Variant("PRM init", "SFT model", _prm()),
    Variant("PRM init", "weaker base", _prm(init=BASE)),
    Variant("PRM init", "implicit PRM trained before", _prm(init=TRAINED, reference=SFT)),
    Variant("online", "trained before, frozen", _prm(init=TRAINED, reference=SFT, forward="frozen")),
    Variant("online", "trained before, online", _prm(init=TRAINED, reference=SFT)),
    Variant("reference", "initial", _prm()),
    Variant("reference", "policy", _prm(reference="policy")),
    Variant("forward", "single", _prm()),
    Variant("forward", "double", _prm(forward="double")),
    Variant("loss", "cross-entropy", _prm()),
    Variant("loss", "pairwise", _prm(loss={"kind": "pairwise"})),
    Variant("loss", "detached", _prm(loss={"kind": "detached"})),
    Variant("granularity", "token", _prm()),
    Variant("granularity", "step (five tokens)", _prm(granularity="step", step_pattern=STEPS_OF_FIVE)),
    Variant("granularity", "whole response", _prm(granularity="whole")),
    *(
        Variant(
            "K", f"{k} x {128 // k} prompts", _prm() | {"sampling": {"group_size": k}, "batch": {"prompts": 128 // k}}
        )
        for k in (4, 8, 16)
    ),
    *(
        Variant("process weight", f"{weight:g}", _prm() | {"advantage": {"process_weight": weight}})
        for weight in (0.0, 0.5, 1.0, 2.0)
    ),
    Variant(
        "process weight",
        "0, to 1 by step 40",
        _prm() | {"advantage": {"process_ramp": {"start": 0.0, "after": 20, "steps": 20}}},
    ),
    Variant("filter", "off", _prm()),
    Variant("filter", "on, 0.2 to 0.8", _prm() | {"filter": {"low": 0.2, "high": 0.8}}),
]


def main() -> None:
    """Run the variants, write the JSON and, if asked, the picture."""
    parser = arguments(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--studies", nargs="+", default=list(dict.fromkeys(v.study for v in VARIANTS)))
    parser.add_argument("--picture", type=Path, help="a chart as well: SVG or PNG")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="runs at once, one thread each")
    args = parser.parse_args()
    regime, seeds = REGIMES["chain_lucky"], args.seeds
    variants = [v for v in VARIANTS if v.study in args.studies]
    if args.quick:
        regime, seeds = _toy(regime), [0]
        variants = [v for v in variants if v.study == "online" or v.name == "ppo + PRIME"]
    jobs = list({_key(v, seed): (v, seed) for v in variants for seed in seeds}.values())  # the base run is shared
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        folders = pool.submit(prepare, args.models, regime, quick=args.quick).result()
        done: dict[str, dict[str, Any]] = {}
        try:
            for job, result in zip(jobs, pool.map(partial(_run, args.models, regime, folders), jobs), strict=True):
                done[_key(*job)] = result
                print(f"{job[0].study}, {job[0].name}, seed {job[1]}: {final(result['curve']):.3f}", flush=True)
        finally:  # whatever ends it, nothing is lost of what has been run
            finished = [v for v in variants if all(_key(v, seed) in done for seed in seeds)]
            report(finished, seeds, done, args.out, args.picture)


def report(
    variants: Sequence[Variant], seeds: Sequence[int], done: Mapping[str, Any], out: Path, picture: Path | None
) -> None:
    """The JSON, the table and, if asked, the picture, of the variants whose runs are done."""
    rows = [
        {"study": v.study, "variant": v.name, "changes": v.changes, "seed": seed, **done[_key(v, seed)]}
        for v in variants
        for seed in seeds
    ]
    table = [_row(v, [r for r in rows if (r["study"], r["variant"]) == (v.study, v.name)]) for v in variants]
    write_results(out, "ablations", rows=rows, headline={"lr": LR, "table": table})
    for row in table:
        print(
            f"{row['study']:<15} {row['variant']:<30} {row['final_mean']:.3f}  {row['final']}  area {row['area']:.3f}"
        )
    if picture is not None:
        draw(table, picture)


def prepare(models: Path, regime: Regime, *, quick: bool) -> dict[str, str]:
    """The warm start; a base that has seen a third of its examples; an implicit PRM trained with the policy frozen."""
    sft = warm_start(models, regime)
    short = [{**phase, "count": phase["count"] // 3} for phase in regime.sft]
    base = sft if quick else warm_start(models, Regime(**{**vars(regime), "name": f"{regime.name}-base", "sft": short}))
    trained = models / f"{regime.name}-prm"
    if not trained.exists():
        _train_prm(models, regime, trained, steps=2 if quick else 40)
    return {SFT: str(sft), BASE: str(base), TRAINED: str(trained)}


def _train_prm(models: Path, regime: Regime, folder: Path, *, steps: int) -> None:
    """An implicit PRM that has seen `steps` batches of the SFT policy's responses: PRIME with a policy that rests."""
    run(models, regime, {"prm": PRM, "steps": steps}, lr=1e-12, seed=1000, export_prm=folder)


def _run(models: Path, regime: Regime, folders: dict[str, str], job: tuple[Variant, int]) -> dict[str, Any]:
    variant, seed = job
    budget = regime.prompts * regime.group * regime.steps
    # With smaller draws, or the filter's refills, a step costs another number of rollouts: the budget ends the run.
    changes = {**_filled(variant.changes, folders), "steps": 4 * regime.steps}
    return run(models, regime, changes, lr=LR, seed=seed, budget=budget)


def _filled(tree: Any, folders: Mapping[str, str]) -> Any:
    if isinstance(tree, Mapping):
        return {name: _filled(value, folders) for name, value in tree.items()}
    return folders.get(tree, tree) if isinstance(tree, str) else tree


def _key(variant: Variant, seed: int) -> str:
    """Variants with the same settings are one run."""
    neutral = {"advantage": ({"estimator": "rloo"}, {"process_weight": 1.0}), "filter": (None,)}
    changes = {k: v for k, v in variant.changes.items() if v not in neutral.get(k, ())}
    if changes.get("sampling") == {"group_size": 8}:
        changes = {k: v for k, v in changes.items() if k not in ("sampling", "batch")}
    return f"{sorted(changes.items(), key=str)} {seed}"


def _row(variant: Variant, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    finals = [final(r["curve"]) for r in runs]
    return {
        "study": variant.study,
        "variant": variant.name,
        "final": [round(f, 3) for f in finals],
        "final_mean": round(statistics.mean(finals), 3),
        "area": round(statistics.mean(area(r["curve"]) for r in runs), 3),
        "ended": [r["ended"] for r in runs],
    }


def draw(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One bar per variant (mean final accuracy), a dot per seed."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.27 * len(table) + 1.2))
    studies = list(dict.fromkeys(row["study"] for row in table))
    for y, row in enumerate(table):
        axes.barh(y, row["final_mean"], color=f"C{studies.index(row['study'])}", alpha=0.55)
        axes.plot(row["final"], [y] * len(row["final"]), "k.", markersize=4)
    axes.set_yticks(range(len(table)), [f"{row['study']}: {row['variant']}" for row in table], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy of fresh samples at the end; bar: mean, dots: seeds")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
