"""Whether the process reward model deserves trust, from the responses that it has just paid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from priml.report.curves import Chart, Series

WINDOW = 10
"""Steps that are looked at, the last ones."""
RESAMPLES = 400
"""Of whole prompts, for the intervals: responses to one prompt are not independent."""
NUM_BINS = 10
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic with its 95 % interval from the bootstrap over prompts."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TrustCard:
    """What one can say of a PRM."""

    sentence: str
    advice: tuple[str, ...]
    auc: Interval
    pairs: Interval
    length: float | None
    """Correlation of pay and length among responses of the same outcome; None where all have one length."""
    reliability: Chart
    responses: int
    steps: tuple[int, int]


def trust_card(table: pa.Table, config: Mapping[str, Any]) -> TrustCard | None:
    """From the rows of `RolloutIndex.table`; None without paid responses, right and wrong ones."""
    judged = table.filter(table["paid"].is_valid()).select(["step", "problem_id", "verdict", "paid", "tokens"])
    if not judged.num_rows:
        return None
    rows = {name: np.array(judged[name].to_pylist()) for name in judged.column_names}
    steps = np.unique(rows["step"])[-WINDOW:]
    chosen = np.isin(rows["step"], steps) & np.isin(rows["verdict"], ["correct", "wrong"])
    scores, is_right = rows["paid"][chosen].astype(float), rows["verdict"][chosen] == "correct"
    # Before its first update a PRM that equals its reference pays exactly nothing: there is nothing to judge.
    if not (is_right.any() and (~is_right).any() and np.isfinite(scores).all() and scores.any()):
        return None
    names = np.char.add(rows["step"][chosen].astype(str), rows["problem_id"][chosen].astype(str))
    groups = np.unique(names, return_inverse=True)[1]
    area = _interval(scores, is_right, groups, _auc)
    pairs = _pair_interval(scores, is_right, groups)
    length = _net_of_outcome(scores, rows["tokens"][chosen], is_right)
    return TrustCard(
        sentence=_sentence(pairs),
        advice=_advice(pairs, length, config),
        auc=area,
        pairs=pairs,
        length=length,
        reliability=_reliability(scores, is_right),
        responses=len(scores),
        steps=(int(steps[0]), int(steps[-1])),
    )


def _auc(scores: Array, is_right: Array) -> float:
    """Ties count one half."""
    positive, negative = int(is_right.sum()), int((~is_right).sum())
    if not positive or not negative:
        return 0.5
    ranks = rankdata(scores)
    return float((ranks[is_right].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _interval(scores: Array, is_right: Array, groups: Array, statistic: Callable[[Array, Array], float]) -> Interval:
    rng = np.random.default_rng(0)
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(groups))[:-1])
    drawn: list[float] = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        drawn.append(statistic(scores[rows], is_right[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(statistic(scores, is_right), float(low), float(high))


def _pair_interval(scores: Array, is_right: Array, groups: Array) -> Interval:
    """Share of right responses paid above wrong ones to the same prompt, ties one half, mean over mixed prompts."""
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(groups))[:-1])
    mixed = [rows for rows in members if 0 < is_right[rows].sum() < len(rows)]
    shares = np.array([_auc(scores[rows], is_right[rows]) for rows in mixed]) if mixed else np.full(1, 0.5)
    rng = np.random.default_rng(0)
    means = shares[rng.integers(0, len(shares), (RESAMPLES, len(shares)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(shares.mean()), float(low), float(high))


def _net_of_outcome(scores: Array, lengths: Array, is_right: Array) -> float | None:
    """The correlation that is left after each outcome's mean is taken away from both."""
    pay, size = scores.astype(float), np.array([x or 0 for x in lengths], float)
    for outcome in (True, False):
        rows = is_right == outcome
        pay[rows] -= scores[rows].mean()
        size[rows] -= size[rows].mean()
    if not pay.any() or not size.any():
        return None
    return float((pay * size).sum() / np.sqrt((pay**2).sum() * (size**2).sum()))


def _reliability(scores: Array, is_right: Array) -> Chart:
    tenths = [rows for rows in np.array_split(np.argsort(scores, kind="stable"), NUM_BINS) if len(rows)]
    shares = tuple(float(is_right[rows].mean()) for rows in tenths)
    base = float(is_right.mean())
    return Chart(
        title="Are better paid responses right more often?",
        caption="Responses in ten equal parts by their pay, the worst paid first, and the share of each that is right. "
        "Rising: the pay means something. Flat at the dashed line, which is the share of all: it means nothing.",
        unit="share",
        steps=tuple(range(1, len(tenths) + 1)),
        series=(Series("right", shares, "points"), Series("all", (base,) * len(tenths), "rule")),
        bounds=(0, 1),
        axis="tenth",
    )


def _percent(interval: Interval) -> str:
    mean, low, high = 100 * interval.mean, 100 * interval.low, 100 * interval.high
    return f"{mean:.1f} % of the pairs (95 % interval {low:.1f} to {high:.1f})".replace(" %", "\N{NO-BREAK SPACE}%")


def _sentence(pairs: Interval) -> str:
    if pairs.high < 0.5:
        return f"It is mistaken: it pays the right response more in only {_percent(pairs)}, which is worse than chance."
    if pairs.low <= 0.5:
        return f"It cannot be told from chance: it pays the right response more in {_percent(pairs)}."
    word = "It can be trusted" if pairs.low > 0.7 else "It knows something, but errs often"
    return f"{word}: it pays the right response more in {_percent(pairs)}."


def _advice(pairs: Interval, length: float | None, config: Mapping[str, Any]) -> tuple[str, ...]:
    advice: list[str] = []
    if pairs.high < 0.5:
        advice.append("Its rewards push the wrong way: lower policy.optimizer.lr or prm.optimizer.lr, or set prm=null.")
    elif pairs.low <= 0.5:
        advice.append("Give it more to learn from (prm.replay, larger batches), or lower advantage.process_weight.")
    if length is not None and abs(length) > 0.5:
        which = "Longer" if length > 0 else "Shorter"
        advice.append(f"{which} responses are paid more, whatever their outcome: try prm.granularity: step.")
    prm = config.get("prm")
    if isinstance(prm, Mapping) and prm.get("forward") == "double":
        advice.append("prm.forward is double: it learnt from these responses before it paid them, which flatters it.")
    return tuple(advice)
