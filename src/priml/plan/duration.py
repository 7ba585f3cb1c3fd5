"""Seconds and bytes of each phase of a step, from stated peaks and the shares of them that are reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from priml.plan.batch import Updates
from priml.plan.facts import ModelFacts
from priml.plan.job import Job
from priml.plan.machine import EAGER_LAYER_SECONDS, Engine
from priml.plan.memory import FP32, MemoryPlan, lowered

Limit = Literal["arithmetic", "memory bandwidth", "launches", "the wire", "nothing"]

_ADAM_BYTES = 7 * FP32  # reads weight, gradient and two moments; writes weight and two moments


@dataclass(frozen=True, slots=True)
class Span:
    """One phase. Arithmetic and wire overlap; the longer of the two is what the phase takes."""

    name: str
    compute: float
    """Seconds of arithmetic, of memory traffic or of launches: what the device itself takes."""
    wire: float
    """Seconds that collectives take."""
    limit: Limit
    """What the longer part waits for."""
    moved: float
    """Bytes that one device receives and sends in collectives (each counted once)."""

    @property
    def seconds(self) -> float:
        """What the phase takes."""
        return max(self.compute, self.wire)

    @property
    def exposed(self) -> float:
        """Of it, waiting for the wire with nothing to compute."""
        return max(self.wire - self.compute, 0.0)


@dataclass(frozen=True, slots=True)
class StepTime:
    """The phases of a step, one after the other."""

    spans: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(span.seconds for span in self.spans)

    @property
    def moved(self) -> float:
        """Bytes over the wire, per device."""
        return sum(span.moved for span in self.spans)

    @property
    def longest(self) -> Span:
        """The bottleneck."""
        return max(self.spans, key=lambda span: span.seconds)


def plan_time(job: Job, memory: MemoryPlan, engine: Engine) -> StepTime:
    """Every phase of one step. Grading is not in it: it runs on processors while responses are still generated."""
    spans = [_sampling(job, memory, engine), _scoring(job, "policy: score", job.policy)]
    for role in ("initial policy", "critic", "reference"):
        if facts := job.model(role):
            spans.append(_scoring(job, f"{role}: score", facts))
    if (prm := job.cfg.prm) and (facts := job.model("PRM")):
        extra = {"frozen": 1, "double": 1, "single": 0}[prm.forward]
        if prm.forward != "frozen" and prm.loss in ("pairwise", "detached"):
            extra += prm.epochs  # scores of the whole mini-batch before it is learnt from
        spans += [_scoring(job, "PRM: score", facts, times=extra)] if extra else []
    for update in job.batch.updates:
        facts = job.model(update.role)
        assert facts is not None, "who is updated has a model"
        spans.append(_training(job, update, facts))
    if job.machine.is_sharded:
        spans.append(_push(job))
    return StepTime(tuple(spans))


def _sampling(job: Job, memory: MemoryPlan, engine: Engine) -> Span:
    """Prompts are read once each; then every decoding step reads all weights, and the keys and values of every row."""
    facts, lengths, machine = job.policy, job.lengths, job.machine
    degree, seconds, limits = memory.tensor_parallel, 0.0, dict[Limit, float]()
    per_token = lowered(job) * facts.cache if machine.is_sharded else facts.cache_bytes
    for drawn in job.batch.collection.rounds:
        rows = drawn * job.batch.group_size / machine.ranks  # on one device
        prefill = facts.forward_flops(drawn / machine.ranks * lengths.prompt, 0.0, lengths.prompt)
        decoded = rows * lengths.response
        flops = facts.forward_flops(decoded, decoded, 2.0 * (lengths.prompt + lengths.response / 2))
        if engine.is_paged:
            steps = max(lengths.longest_response, decoded / memory.rows_at_once)
        else:
            steps = -(-rows // memory.rows_at_once) * lengths.longest_response  # every wave waits for its longest row
        read = steps * lowered(job) * facts.parameters / degree
        read += decoded * (lengths.prompt + lengths.response / 2) * per_token
        parts: dict[Limit, float] = {
            "arithmetic": flops / machine.flops(job.precision),
            "memory bandwidth": read / machine.memory_rate,
            "launches": steps * facts.layers * engine.layer_seconds,
        }
        seconds += prefill / machine.flops(job.precision) + max(parts.values())
        for limit, value in parts.items():
            limits[limit] = limits.get(limit, 0.0) + value
    return Span("sample", seconds, 0.0, max(limits, key=lambda limit: limits[limit]), 0.0)


def _scoring(job: Job, name: str, facts: ModelFacts, times: int = 1) -> Span:
    """Forward passes over the batch."""
    rows = job.batch.responses / job.machine.ranks * times
    flops = facts.forward_flops(rows * job.lengths.mean, rows * job.lengths.response, job.lengths.mean)
    passes = job.batch.scoring_passes * times
    moved = passes * _gather(job, facts)
    return _span(job, name, flops, passes * facts.layers, 0.0, moved)


def _training(job: Job, update: Updates, facts: ModelFacts) -> Span:
    """Forward and backward over the batch, `epochs` times, and the optimizer steps."""
    checkpointing = job.cfg.policy.gradient_checkpointing
    rows = job.batch.responses / job.machine.ranks * update.epochs
    flops = facts.training_flops(
        rows * job.lengths.mean, rows * job.lengths.response, job.lengths.mean, checkpointing=checkpointing
    )
    launches = update.micro_batches * facts.layers * (4 if checkpointing else 3)
    adam = update.steps * _ADAM_BYTES * facts.parameters / job.machine.ranks
    # Gathered for the forward and again for the backward pass; gradients are summed in fp32.
    share = (job.machine.ranks - 1) / job.machine.ranks
    moved = update.micro_batches * (2 * _gather(job, facts) + FP32 * facts.parameters * share)
    return _span(job, f"{update.role}: learn", flops, launches, adam, moved)


def _push(job: Job) -> Span:
    """New weights to the samplers, once a step, with nothing else to do meanwhile."""
    moved = _gather(job, job.policy)
    return Span("weights to samplers", 0.0, moved / job.machine.wire, "the wire", moved)


def _gather(job: Job, facts: ModelFacts) -> float:
    """Bytes that a device receives to hold all weights once."""
    return lowered(job) * facts.parameters * (job.machine.ranks - 1) / job.machine.ranks


def _span(job: Job, name: str, flops: float, launches: float, adam: float, moved: float) -> Span:
    arithmetic = flops / job.machine.flops(job.precision)
    launching = launches * EAGER_LAYER_SECONDS
    compute = max(arithmetic, launching) + adam / job.machine.memory_rate
    wire = moved / job.machine.wire if moved else 0.0
    limit: Limit = "arithmetic" if arithmetic >= launching else "launches"
    return Span(name, compute, wire, "the wire" if wire > compute else limit, moved)
