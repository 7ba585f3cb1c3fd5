"""Memory per device: what stands there throughout, and what each phase of a step adds."""

from __future__ import annotations

from dataclasses import dataclass

from priml.plan.facts import ModelFacts
from priml.plan.job import Job
from priml.plan.machine import Engine

FP32, BF16 = 4, 2

# Beside each token of a row that is being drawn: the logits as they come, in fp32, the log-probs and their
# exponentials in fp32, and the cumulative sums in fp64 (`rollout.transformers`).
_CHOICE_BYTES = {"fp32": 4 + 4 + 4 + 8, "bf16": 2 + 4 + 4 + 4 + 8}
_CACHE_ROOM = 64  # tokens of room that a growing cache takes at least


@dataclass(frozen=True, slots=True)
class Standing:
    """What one role keeps on a device from the first step to the last, in bytes."""

    role: str
    weights: float
    moments: float
    """The two moving averages of AdamW."""
    gradients: float
    """Only while this role learns."""

    @property
    def total(self) -> float:
        """Always there: gradients are not."""
        return self.weights + self.moments


@dataclass(frozen=True, slots=True)
class Phase:
    """The worst moment of one phase, in bytes per device."""

    name: str
    standing: float
    gradients: float
    weights: float
    """Copies of weights: gathered from other devices for a while, or in the sampler's own precision."""
    activations: float
    """Activations, and (on one device) weights lowered to bf16 on the way."""
    cache: float
    """Keys and values of the rows being generated, with the logits and tables of the sampler."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.standing + self.gradients + self.weights + self.activations + self.cache


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory of one device."""

    roles: tuple[Standing, ...]
    phases: tuple[Phase, ...]
    capacity: float
    """What a program may use."""
    tensor_parallel: int
    """Devices that share one sampler."""
    rows_at_once: int
    """Responses generated at once on one device."""

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def fits(self) -> bool:
        """Whether every phase has room."""
        return self.peak.total <= self.capacity


def plan_memory(job: Job, engine: Engine) -> MemoryPlan:
    """Every role and phase of one step."""
    ranks = job.machine.ranks
    roles = tuple(
        Standing(
            role=model.role,
            weights=FP32 * model.facts.parameters / ranks,
            moments=2 * FP32 * model.facts.parameters / ranks if model.is_trained else 0.0,
            gradients=FP32 * model.facts.parameters / ranks if model.is_trained else 0.0,
        )
        for model in job.models
    )
    standing = sum(role.total for role in roles)
    degree, rows = _layout(job, engine, standing)
    phases = [_reading(job, engine, standing, degree, rows), _writing(job, engine, standing, degree, rows)]
    for model in job.models:
        if model.role != "PRM" or not model.is_trained:
            phases.append(_scoring(job, f"{model.role}: score", model.facts, standing, frozen=not model.is_trained))
    held = {role.role: role for role in roles}
    for update in job.batch.updates:
        facts = job.model(update.role)
        assert facts is not None, "who is updated has a model"
        phases.append(_training(job, facts, held[update.role], standing))
    return MemoryPlan(
        roles=roles,
        phases=tuple(phases),
        capacity=job.machine.capacity,
        tensor_parallel=degree,
        rows_at_once=rows,
    )


def cache_rooms(prompt: int, longest: int) -> tuple[int, int]:
    """Tokens of room in a growing cache that took a prompt and then one token after the other, and before it grew last:
    `rollout.transformers` enlarges by a half, or by 64 tokens, whenever it is full."""
    room, before = prompt + _CACHE_ROOM, 0
    while room < longest:
        room, before = room + 1 + max(_CACHE_ROOM, room // 2), room
    return room, before


def lowered(job: Job) -> int:
    """Bytes of a weight as it is computed with."""
    return FP32 if job.precision == "fp32" else BF16


def _layout(job: Job, engine: Engine, standing: float) -> tuple[int, int]:
    """How many devices share a sampler, and how many rows each device generates at once.

    One device per sampler as long as its weights leave half of the free memory to the cache, or else the smallest power
    of two that does, within a node. The rows are all rows of a device, as far as the settings (or, with pages, the
    memory for rows of expected length) allow.
    """
    weights, free, degree = lowered(job) * job.policy.parameters, job.machine.capacity - standing, 1
    if job.machine.is_sharded:
        while weights / degree > free / 2 and degree * 2 <= job.machine.per_node:
            degree *= 2
    rows = -(-max(job.batch.collection.rounds) * job.batch.group_size // job.machine.ranks)
    if engine.is_paged:
        room = free - weights / degree - _reading(job, engine, 0.0, degree, 1).activations
        per_row = job.lengths.mean * job.policy.cache * lowered(job) + _choice(job)
        return degree, max(1, min(rows, int(room / per_row)))
    return degree, min(rows, job.cfg.sampler.max_rows)


def _sampler_weights(job: Job, degree: int) -> float:
    """On one device the trained weights serve, lowered for as long as sampling lasts; else they are gathered."""
    if job.machine.is_sharded:
        return lowered(job) * job.policy.parameters / degree
    return BF16 * job.policy.parameters if job.precision == "bf16" else 0.0


def _reading(job: Job, engine: Engine, standing: float, degree: int, rows: int) -> Phase:
    """Prompts of the longest kind, each once, whatever the number of its responses."""
    prompts, longest = max(1, rows // job.batch.group_size), job.lengths.longest_prompt
    at_once = prompts * longest if engine.prefill_tokens is None else min(prompts * longest, engine.prefill_tokens)
    activations = at_once * job.policy.footprint.reading
    cache = prompts * longest * _cache_bytes(job)
    return Phase("sample: read", standing, 0.0, _sampler_weights(job, degree), activations, cache)


def _writing(job: Job, engine: Engine, standing: float, degree: int, rows: int) -> Phase:
    """With pages, rows of the expected length. Without, all rows at the limit: that is when memory runs out; and one
    layer after the other keeps its old buffers until the new ones are filled."""
    lengths, per_token = job.lengths, _cache_bytes(job)
    if engine.is_paged:
        cache = rows * max(lengths.mean, lengths.longest / rows) * per_token
    else:
        room, before = cache_rooms(lengths.longest_prompt, lengths.longest - 1)
        cache = rows * per_token * (room + before / job.policy.layers)
    return Phase("sample: write", standing, 0.0, _sampler_weights(job, degree), 0.0, cache + rows * _choice(job))


def _choice(job: Job) -> float:
    """Beside each row: what its next token is drawn from, and tables of its tokens, log-probs and random numbers."""
    return job.policy.vocabulary * _CHOICE_BYTES[job.precision] + job.lengths.longest_response * (8 + 4 + 8)


def _cache_bytes(job: Job) -> float:
    """Per token. Rows are spread over the devices, and so are the heads of a row where several share a sampler."""
    return job.policy.cache * lowered(job) if job.machine.is_sharded else job.policy.cache_bytes


def _scoring(job: Job, name: str, facts: ModelFacts, standing: float, *, frozen: bool) -> Phase:
    footprint = facts.footprint
    return Phase(name, standing, 0.0, _gathered(job, facts), footprint.frozen if frozen else footprint.scoring, 0.0)


def _training(job: Job, facts: ModelFacts, role: Standing, standing: float) -> Phase:
    gradients, weights = role.gradients, _gathered(job, facts)
    if job.machine.is_sharded:
        # Whole gradients of what lies outside the blocks, and of the block in hand, in bf16 and, for the sum over
        # devices, in fp32.
        gradients += (lowered(job) + FP32) * (facts.root + facts.largest_block)
    return Phase(f"{role.role}: learn", standing, gradients, weights, facts.footprint.training, 0.0)


def _gathered(job: Job, facts: ModelFacts) -> float:
    """Full sharding gathers a block while the one before it computes; what lies outside the blocks stays."""
    if not job.machine.is_sharded:
        return 0.0
    return lowered(job) * (facts.root + 2 * facts.largest_block)
