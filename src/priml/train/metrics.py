"""The numbers of one step, from its rows. A number that means nothing is left out; none is ever NaN."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from priml.train.collect import GroupPool

_FATES = ("kept", "too_easy", "too_hard", "truncated", "undecided")


def rollout_metrics(rows: Sequence[Mapping[str, Any]], pool: GroupPool) -> dict[str, float]:
    """What was sampled (`rows` as in the rollout file, one per response) and what the filter made of it (prompts)."""
    labels = [row["verdict"] for row in rows]
    outcomes = [row["outcome"] for row in rows if row["outcome"] is not None]
    lengths = [len(row["response_ids"]) for row in rows]
    kept = [row for row in rows if row["fate"] == "kept"]
    return {
        **{f"verdict/{label}": labels.count(label) for label in ("correct", "wrong", "undecided")},
        "outcome/mean": _mean(outcomes),
        "outcome/kept_mean": _mean([row["outcome"] for row in kept]),
        "filter/sampled": len(pool.judged),
        **{f"filter/{fate}": pool.counts[fate] for fate in _FATES},
        "response/length_mean": _mean(lengths),
        "response/truncated": _mean([row["finish_reason"] == "length" for row in rows]),
        "tokens/sampled": sum(lengths),
        "tokens/trained": sum(len(row["response_ids"]) for row in kept),
    }


def peak_gib() -> float:
    """The most memory this process has held: on the GPU if it uses one, else in all."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    units_per_gib = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_gib


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
