"""The sums of a step: prompts drawn, responses kept, optimizer steps, rows per device, micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from priml.config.algorithm import DropOverlong, MaskOverlong
from priml.config.graders import ChoiceVerifier, ExactVerifier, MathVerifier
from priml.config.models import Critic, Policy, Prm
from priml.config.train import TrainConfig
from priml.planner.layout import pass_tokens


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens per prompt and response: what is expected, and the limits that the settings set."""

    prompt: float
    response: float
    longest_prompt: int
    longest_response: int

    @property
    def mean(self) -> float:
        return self.prompt + self.response

    @property
    def longest(self) -> int:
        """The longest row that can occur."""
        return self.longest_prompt + self.longest_response


@dataclass(frozen=True, slots=True)
class Collection:
    """How the prompts of a step come together."""

    rounds: tuple[int, ...]
    """Prompts sampled in each round."""
    kept: int
    surplus: float
    """Prompts that pass after the batch is full; they are sampled again in the next step."""
    share: float
    """Share of the prompts that pass the filter."""
    starves_below: float
    """With about this share or less the rounds are used up before the batch is full."""

    @property
    def drawn(self) -> int:
        """Prompts sampled in all."""
        return sum(self.rounds)

    @property
    def is_starved(self) -> bool:
        """Too few pass before the rounds are used up: the run would stop."""
        return self.share * self.drawn < self.kept - 1e-9


@dataclass(frozen=True, slots=True)
class Updates:
    """The optimizer steps that one role takes in a training step."""

    role: str
    mini_batch: int | None
    """As the settings have it."""
    mini_batches: tuple[int, ...]
    """Responses of each, one pass over the batch."""
    epochs: int
    micro_batches: int
    """Forward-backward passes on each device, in all of them together."""
    rows_per_rank: tuple[int, int]
    """Fewest and most responses of a mini-batch on one device."""

    @property
    def steps(self) -> int:
        return len(self.mini_batches) * self.epochs

    @property
    def key(self) -> str:
        """The setting that decides."""
        return f"{self.role.lower()}.mini_batch"


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One training step in numbers."""

    group_size: int
    collection: Collection
    updates: tuple[Updates, ...]
    scoring_passes: int
    """Micro-batches on each device of one pass over the batch without gradient."""
    micro_rows: int
    """Rows of a micro-batch at the expected length."""
    notes: tuple[str, ...]
    """What is rounded or dropped, and why."""
    refusals: tuple[str, ...]
    """What cannot be run, and what to change."""

    @property
    def sampled(self) -> int:
        """Responses generated."""
        return self.collection.drawn * self.group_size

    @property
    def responses(self) -> int:
        """Responses trained on."""
        return self.collection.kept * self.group_size


def expected_share(cfg: TrainConfig) -> float:
    """The share of prompts inside the filter's band if every number of right responses 0..K were equally likely.
    Replace this assumption by a measured share as soon as there is one."""
    if cfg.filter is None:
        return 1.0
    inside = _counts_inside(cfg)
    # A band that no share of whole right answers reaches can still be reached by scores between 0 and 1.
    return len(inside) / (cfg.sampling.group_size + 1) if inside else cfg.filter.high - cfg.filter.low


def collect(cfg: TrainConfig, share: float) -> Collection:
    """The rounds of a step when exactly `share` of every round passes: the arithmetic of `training.collect`."""
    wanted, first = cfg.batch.prompts, cfg.batch.draw or cfg.batch.prompts
    max_rounds = cfg.filter.max_rounds if cfg.filter else 20
    rounds = [first]
    while (passed := share * sum(rounds)) < wanted - 1e-9 and len(rounds) < max_rounds:
        pass_rate = max(passed, 1.0) / sum(rounds)
        rounds.append(min(math.ceil((wanted - passed) / pass_rate - 1e-9), 2 * first))
    return Collection(
        rounds=tuple(rounds),
        kept=wanted,
        surplus=max(share * sum(rounds) - wanted, 0.0),
        share=share,
        starves_below=min(wanted / (first + (max_rounds - 1) * 2 * first), 1.0),
    )


def plan_batch(cfg: TrainConfig, lengths: Lengths, share: float, ranks: int) -> BatchPlan:
    """The sums of one step on `ranks` devices."""
    collection, k = collect(cfg, share), cfg.sampling.group_size
    responses = collection.kept * k
    micro_rows = max(1, int(pass_tokens(cfg) // lengths.mean))

    def updates_for(role: str, settings: Policy | Prm | Critic, unit: int = 1) -> Updates:
        """Mini-batches are multiples of `unit` responses."""
        epochs = settings.passes if isinstance(settings, Prm) else settings.epochs
        rows = responses // unit
        size = min(max((settings.mini_batch or responses) // unit, 1), rows)
        sizes = tuple(unit * min(size, rows - start) for start in range(0, rows, size))
        per_rank = [math.ceil(size / ranks) for size in sizes]
        return Updates(
            role=role,
            mini_batch=settings.mini_batch,
            mini_batches=sizes,
            epochs=epochs,
            micro_batches=epochs * sum(math.ceil(rows / micro_rows) for rows in per_rank),
            rows_per_rank=(min(sizes) // ranks, max(per_rank)),
        )

    updates = [updates_for("policy", cfg.policy)]
    if cfg.critic:
        updates.insert(0, updates_for("critic", cfg.critic))
    if (prm := cfg.implicit_prm) and prm.forward != "frozen":
        updates.insert(0, updates_for("PRM", prm, unit=k))  # the PRM never splits a group
    return BatchPlan(
        group_size=k,
        collection=collection,
        updates=tuple(updates),
        scoring_passes=math.ceil(math.ceil(responses / ranks) / micro_rows),
        micro_rows=micro_rows,
        notes=(*_dropped(cfg, collection), *_rounded(cfg, updates, lengths, responses)),
        refusals=tuple(_refused(collection, updates, ranks)),
    )


# --- what is dropped, rounded, refused ---------------------------------------------------------------------------


def _counts_inside(cfg: TrainConfig) -> list[int]:
    k, band = cfg.sampling.group_size, cfg.filter
    assert band is not None
    return [n for n in range(k + 1) if band.low - 1e-9 <= n / k <= band.high + 1e-9]


def _dropped(cfg: TrainConfig, collection: Collection) -> Iterator[str]:
    k = cfg.sampling.group_size
    if cfg.filter:
        inside = _counts_inside(cfg)
        kept = f"{inside[0]} to {inside[-1]}" if inside[1:] else f"{inside[0]}" if inside else "no whole number"
        whole = isinstance(cfg.verify, MathVerifier | ChoiceVerifier | ExactVerifier)
        yield (
            f"filter {cfg.filter.low:g}..{cfg.filter.high:g}: keeps prompts with {kept} of {k} responses right"
            + ("" if whole else ", or a mean score in between")
            + f"; at the share assumed it drops {_count(collection.drawn * (1 - collection.share), 'prompt')} a step, "
            f"with all {k} responses of each"
        )
    if collection.surplus >= 0.5:
        yield (
            f"about {_count(collection.surplus, 'prompt')} a step pass when the batch is full already: responses are "
            "thrown away, the prompts come back in the next step"
        )
    yield (
        f"prompts longer than data.prompt.max_prompt_tokens={cfg.data.prompt.max_prompt_tokens} tokens are left out at "
        "the start of the run, which says how many"
    )
    limit = cfg.sampling.max_new_tokens
    if isinstance(cfg.overlong, DropOverlong):
        yield f"one response cut at {limit} tokens drops its prompt (overlong.kind: drop); not in the sums"
    elif isinstance(cfg.overlong, MaskOverlong):
        yield f"responses cut at {limit} tokens are no part of the policy's loss (overlong.kind: mask)"


def _rounded(cfg: TrainConfig, updates: Sequence[Updates], lengths: Lengths, responses: int) -> Iterator[str]:
    for update in updates:
        key, size, sizes = update.key, update.mini_batch, update.mini_batches
        if size is None:
            continue
        if size > responses:
            yield f"{key}={size} is more than the batch of {responses}: one optimizer step over all of it"
        elif sizes[0] != size:
            word = "rounded down" if sizes[0] < size else "raised"
            yield f"{key}={size} is {word} to {sizes[0]}: the PRM keeps the responses of a prompt together"
        if sizes[1:] and sizes[-1] != sizes[0]:
            yield f"{key}: the last of {len(sizes)} mini-batches has {sizes[-1]} responses instead of {sizes[0]}"
        fewest, most = update.rows_per_rank
        if fewest and fewest != most:
            yield f"{key}: {max(sizes)} responses do not divide evenly; a device gets {fewest} to {most} of them"
    if lengths.longest > pass_tokens(cfg):
        yield (
            f"a row of {pass_tokens(cfg) + 1} to {lengths.longest} tokens is longer than "
            f"backend.micro_batch_tokens={pass_tokens(cfg)} and is computed alone, over the budget"
        )
    if cfg.sampling.group_size > cfg.sampler.max_rows:
        yield (
            f"sampler.max_rows={cfg.sampler.max_rows} is less than a group of {cfg.sampling.group_size}: "
            "groups are sampled in several waves"
        )


def _refused(collection: Collection, updates: Sequence[Updates], ranks: int) -> Iterator[str]:
    if collection.is_starved:
        yield (
            f"filter.max_rounds: with a share of {collection.share:.3g} through the filter the step starves after "
            f"{len(collection.rounds)} rounds; need {collection.starves_below:.3g}: raise filter.max_rounds, widen "
            "filter.low/high, or use problems of more fitting difficulty"
        )
    for update in updates:
        if update.rows_per_rank[0] == 0:
            least, key = min(update.mini_batches), update.key
            yield (
                f"{key}: a mini-batch of {least} responses leaves {ranks - least} of {ranks} "
                f"devices without a row; need {ranks} or more in each: raise batch.prompts, sampling.group_size or "
                f"{key}, or use fewer devices"
            )


def _count(number: float, noun: str) -> str:
    rounded = round(number)
    return f"{rounded} {noun}" + ("" if rounded == 1 else "s")
