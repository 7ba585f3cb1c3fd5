"""The metrics of one step, from its rows. A metric without meaning is left out; none is ever NaN."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from priml.batch import Batch
from priml.data.sources import source_origin
from priml.maths.masking import masked_sum
from priml.maths.policy_loss import kl_k3
from priml.training.collect import FilterStatus
from priml.types import Group

_LABELS = ("correct", "wrong", "undecided")
_CHUNK_TOKENS = 2**22
"""Padded tokens whose log-probs are compared at once, in float64."""
_STATUSES = ("kept", "too_easy", "too_hard", "truncated", "undecided")


def rollout_metrics(
    rows: Sequence[Mapping[str, Any]], groups: Sequence[tuple[Group, FilterStatus]], sources: Sequence[str] = ()
) -> dict[str, float]:
    """Metrics of the responses (`rows` of the rollout file) and of the filter (`groups`).

    Outcomes and verdicts are given for each of `sources` as well, see `priml.data.sources`.
    """
    labels = [row["verdict"] for row in rows]
    outcomes = [row["outcome"] for row in rows if row["outcome"] is not None]
    lengths = [len(row["sampler_logprobs"]) for row in rows]
    kept = [row for row in rows if row["filter_status"] == "kept"]
    statuses = Counter(filter_status for _, filter_status in groups)
    return {
        **{f"verdict/{label}": labels.count(label) for label in _LABELS},
        "outcome/mean": _mean(outcomes),
        "outcome/kept_mean": _mean([row["outcome"] for row in kept]),
        "filter/sampled": len(groups),
        **{f"filter/{filter_status}": statuses[filter_status] for filter_status in _STATUSES},
        "response/length_mean": _mean(lengths),
        "response/truncated": _mean([row["finish_reason"] == "length" for row in rows]),
        "response/repetition": _mean(
            [
                repetition(trajectory.trained_ids) if trajectory.repetition is None else trajectory.repetition
                for group, _ in groups
                for trajectory in group.trajectories
            ]
        ),
        "tokens/sampled": sum(lengths),
        "tokens/trained": sum(len(row["sampler_logprobs"]) for row in kept),
        **{f"{name}/{source}": value for source in sources for name, value in _source_metrics(groups, source).items()},
    }


def mismatch_metrics(batch: Batch) -> dict[str, float]:
    """How far the sampler's log-probs are from the trainer's with the same weights, in nats per kept token.

    `mean` and `max` of the absolute difference, and the k3 estimate of KL(sampler || trainer). Empty when the sampler's
    log-probs are not known.
    """
    if batch.sampler_logprobs_BT is None:
        return {}
    mask_BT = batch.mask_BT
    difference, largest, kl = 0.0, 0.0, 0.0
    rows = max(1, _CHUNK_TOKENS // mask_BT.shape[1])
    for start in range(0, len(batch), rows):
        chosen = slice(start, start + rows)
        mask_bt = mask_BT[chosen]
        sampler_bt, trainer_bt = batch.sampler_logprobs_BT[chosen].double(), batch.old_logprobs_BT[chosen].double()
        difference_N = (sampler_bt - trainer_bt)[mask_bt].abs()
        difference += float(difference_N.sum())
        largest = max(largest, float(difference_N.max()))
        kl += float(masked_sum(kl_k3(sampler_bt, trainer_bt, mask_bt), mask_bt))
    tokens = int(batch.response_lengths_B.sum())
    return {
        "sampler/mismatch_mean": difference / tokens,
        "sampler/mismatch_max": largest,
        "sampler/mismatch_kl": kl / tokens,
    }


def staleness_metrics(batch: Batch) -> dict[str, float]:
    """How many updates the policy was ahead of the weights that sampled it: mean and maximum over kept tokens.

    Empty when the versions are not known.
    """
    if batch.weight_versions_BT is None:
        return {}
    behind_N = batch.step - 1 - batch.weight_versions_BT[batch.mask_BT]
    return {"sampler/staleness_mean": float(behind_N.double().mean()), "sampler/staleness_max": float(behind_N.max())}


def repetition(ids: NDArray[np.int32], *, n: int = 8) -> float:
    """Share of a response's n-grams that occurred earlier in it; 0 for a response shorter than n tokens."""
    count = len(ids) - n + 1
    written, width = ids.tobytes(), ids.itemsize  # slices of bytes are hashed much faster than tuples of numbers
    grams = {written[i * width : (i + n) * width] for i in range(count)}
    return 1 - len(grams) / count if grams else 0.0


def _source_metrics(groups: Sequence[tuple[Group, FilterStatus]], source: str) -> dict[str, float]:
    verdicts = [v for group, _ in groups if source_origin(group.prompt.problem) == source for v in group.verdicts]
    if not verdicts:
        return {}
    labels = [verdict.label for verdict in verdicts]
    outcomes = [verdict.score for verdict in verdicts if verdict.score is not None]
    counts = {f"verdict/{label}": float(labels.count(label)) for label in _LABELS}
    return counts | ({"outcome/mean": _mean(outcomes)} if outcomes else {})


def peak_gib() -> float:
    """Peak memory of this process: on the GPU if it uses one, else resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    units_per_gib = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_gib


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
