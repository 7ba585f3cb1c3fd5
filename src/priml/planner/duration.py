"""Seconds and bytes of each phase of a step, from the peaks of the devices and the shares that programs reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from priml.names import GROUP_PRM_LOSSES
from priml.planner.batch import Updates
from priml.planner.facts import ModelFacts
from priml.planner.job import Job, Model
from priml.planner.machine import EAGER_LAYER_SECONDS, STORE_RATE, TOKEN_SECONDS
from priml.planner.memory import BF16, FP32, MemoryPlan, engine_bytes, lowered, sync_bytes

Limit = Literal["arithmetic", "memory bandwidth", "launches", "the wire", "the host", "nothing"]

RECORDS = "batch, advantages, rollout file"

_ADAM_BYTES = 7 * FP32  # reads weight, gradient and two moments; writes weight and two moments


@dataclass(frozen=True, slots=True)
class Span:
    """One phase. Arithmetic, wire and host overlap; the longest of them is what the phase takes."""

    name: str
    compute: float
    """Seconds that the device computes, waits for its memory, or launches."""
    limit: Limit
    """What the longest part waits for."""
    wire: float = 0.0
    """Seconds that transfers between devices take."""
    moved: float = 0.0
    """Bytes that one device receives and sends in them (each counted once)."""
    host: float = 0.0
    """Seconds of copies between a device and its host's memory, and of work on the host."""
    copied: float = 0.0
    """Bytes of those copies, per device."""

    @property
    def seconds(self) -> float:
        return max(self.compute, self.wire, self.host)

    @property
    def exposed(self) -> float:
        """Seconds that the device waits for the wire with nothing to compute."""
        return max(self.wire - self.compute, 0.0)


@dataclass(frozen=True, slots=True)
class StepTime:
    """The phases of a step, one after the other. The first is sampling."""

    spans: tuple[Span, ...]
    overlaps: bool = False
    """Sampling has devices of its own and goes on during the other phases."""

    @property
    def seconds(self) -> float:
        sampling, *training = (span.seconds for span in self.spans)
        return max(sampling, sum(training)) if self.overlaps else sampling + sum(training)

    @property
    def moved(self) -> float:
        """Bytes over the wire, per device."""
        return sum(span.moved for span in self.spans)

    @property
    def copied(self) -> float:
        """Bytes between a device and its host."""
        return sum(span.copied for span in self.spans)

    @property
    def longest(self) -> Span:
        return max(self.spans, key=lambda span: span.seconds)


def plan_time(job: Job, memory: MemoryPlan) -> StepTime:
    """Every phase of one step. Grading is not in it: it runs on processors while responses are still generated."""
    spans = [_sampling(job, memory)]
    if job.scored_share:
        spans.append(_scoring(job, "policy: score", job.policy, times=job.scored_share))
    for role in ("initial policy", "critic", "reference"):
        if model := job.model(role):
            spans.append(_scoring(job, f"{role}: score", model.facts))
    if (prm := job.cfg.implicit_prm) and (model := job.model("PRM")):
        extra = {"frozen": 1, "double": 1, "single": 0}[prm.forward]
        if prm.forward != "frozen" and prm.loss.kind in GROUP_PRM_LOSSES:
            extra += prm.passes  # scores of whole mini-batches before they are learnt from
        if prm.loss.kind == "likelihood" and prm.forward != "frozen":
            extra += 1  # the passes that train are over right responses alone
        spans += [_scoring(job, "PRM: score", model.facts, times=extra)] if extra else []
    for update in job.batch.updates:
        model = job.model(update.role)
        assert model is not None, "an updated role has a model"
        spans.append(_training(job, update, model))
    # One process does this with all tokens of a step, while devices wait.
    tokens = job.batch.sampled * job.lengths.response
    spans.append(Span(RECORDS, 0.0, "the host", host=TOKEN_SECONDS * tokens))
    if job.layout.is_sharded:
        spans += _push(job)
    return StepTime(tuple(spans), overlaps=bool(job.cfg.sampling.max_staleness) and not job.layout.colocate)


def _sampling(job: Job, memory: MemoryPlan) -> Span:
    """Each prompt is read once. Then every decoding step reads all weights, and the keys and values of every row."""
    facts, lengths, machine, layout = job.policy, job.lengths, job.machine, job.layout
    per_token = engine_bytes(job) * facts.cache if job.is_paged else facts.cache_bytes
    rate = machine.flops("fp32" if engine_bytes(job) == FP32 else "bf16")
    # Frozen weights are lowered anew for every token: read, written and read again.
    anew = not job.cfg.sampler.holds_own_weights and facts.adapters and job.precision == "bf16"
    weight = FP32 + 2 * BF16 if anew else engine_bytes(job)
    seconds, limits = 0.0, dict[Limit, float]()
    for drawn in job.batch.collection.rounds:
        rows = drawn * job.batch.group_size / layout.samplers
        if job.is_paged:
            steps = max(lengths.longest_response, rows * lengths.response / memory.rows_at_once)
        else:
            steps = -(-rows // memory.rows_at_once) * lengths.longest_response  # every wave waits for its longest row
        each = layout.samplers / layout.sampling  # of what a sampler does, the part of one device
        prefill = facts.forward_flops(drawn / layout.sampling * lengths.prompt, 0.0, lengths.prompt)
        decoded = rows * each * lengths.response
        context = lengths.prompt + lengths.response / 2
        read = steps * each * weight * facts.parameters + decoded * context * per_token
        parts: dict[Limit, float] = {
            "arithmetic": facts.forward_flops(decoded, decoded, 2.0 * context) / rate,
            "memory bandwidth": read / machine.memory_rate,
            "launches": steps * facts.layers * job.layer_seconds,
        }
        seconds += prefill / rate + max(parts.values())
        for limit, value in parts.items():
            limits[limit] = limits.get(limit, 0.0) + value
    return Span("sample", seconds, max(limits, key=lambda limit: limits[limit]))


def _scoring(job: Job, name: str, facts: ModelFacts, times: float = 1) -> Span:
    """Forward passes over the batch."""
    rows = job.batch.responses / job.layout.ranks * times
    flops = facts.forward_flops(rows * job.lengths.mean, rows * job.lengths.response, job.lengths.mean)
    passes = job.batch.scoring_passes * times
    moved = passes * _gather(job, facts)
    copied = passes * _shard(job, facts.parameters + facts.adapters) if job.layout.offload else 0.0
    return _span(
        job,
        name,
        flops=flops,
        launches=passes * facts.layers,
        moved=moved,
        wire=moved / _wire(job, job.layout.shards),
        copied=copied,
        host=copied / job.machine.pcie,
    )


def _training(job: Job, update: Updates, model: Model) -> Span:
    """Forward and backward over the batch, `epochs` times, and the optimizer steps."""
    facts, layout, machine = model.facts, job.layout, job.machine
    checkpointing = job.cfg.policy.gradient_checkpointing
    rows = job.batch.responses / layout.ranks * update.epochs
    flops = facts.training_flops(
        rows * job.lengths.mean, rows * job.lengths.response, job.lengths.mean, checkpointing=checkpointing
    )
    adam = update.steps * _ADAM_BYTES * model.trainable / layout.shards
    # Gathered for the forward and again for the backward pass; gradients are summed in fp32, over the shards of a copy
    # and then over the copies (a ring: all but one part, there and back).
    learnt = _shard(job, model.trainable)
    inside = update.micro_batches * (2 * _gather(job, facts) + learnt * (layout.shards - 1))
    across = update.micro_batches * 2 * learnt * (layout.replicas - 1) / layout.replicas
    copied = host = 0.0
    if layout.offload:  # shards up twice, gradients down, and the optimizer where they are
        copied = update.micro_batches * (2 * _shard(job, facts.parameters + facts.adapters) + learnt)
        host, adam = copied / machine.pcie + adam / machine.host_rate, 0.0
    return _span(
        job,
        f"{update.role}: learn",
        flops=flops,
        launches=update.micro_batches * facts.layers * (4 if checkpointing else 3),
        adam=adam,
        moved=inside + across,
        wire=inside / _wire(job, layout.shards) + across / _wire(job, layout.ranks),
        copied=copied,
        host=host,
    )


def _push(job: Job) -> list[Span]:
    """New weights to the samplers, once a step, while nothing else runs. The first rank gathers them and puts them into
    the object store of its host; the host of every sampler fetches them."""
    machine, size = job.machine, sync_bytes(job)
    whole = FP32 * (job.policy.parameters if job.cfg.sampler.holds_own_weights else job.models[0].trainable)
    gathered = whole * (job.layout.shards - 1) / job.layout.shards
    nodes = -(-job.layout.devices // machine.per_node)
    sent = size if nodes > 1 else 0.0
    return [
        Span("weights: gather", 0.0, "the wire", wire=gathered / _wire(job, job.layout.shards), moved=gathered),
        Span(
            "weights: to samplers",
            0.0,
            "the host",
            wire=sent / machine.wire(machine.devices),
            moved=sent,
            host=2 * size / machine.pcie + size / STORE_RATE,
            copied=2 * size,
        ),
    ]


def _gather(job: Job, facts: ModelFacts) -> float:
    """Bytes that a device receives to hold all weights once."""
    shards = job.layout.shards
    return lowered(job) * (facts.parameters + facts.adapters) * (shards - 1) / shards


def _shard(job: Job, parameters: float) -> float:
    """Bytes of one device's share, in fp32."""
    return FP32 * parameters / job.layout.shards


def _wire(job: Job, ranks: int) -> float:
    """Bytes per second of a collective over so many ranks: neighbouring devices, or each in a node of its own."""
    return job.machine.wire(ranks * (job.machine.per_node if job.layout.spread else 1))


def _span(
    job: Job,
    name: str,
    *,
    flops: float,
    launches: float,
    adam: float = 0.0,
    moved: float,
    wire: float,
    copied: float,
    host: float,
) -> Span:
    arithmetic = flops / job.machine.flops(job.precision)
    launching = launches * EAGER_LAYER_SECONDS
    compute = max(arithmetic, launching) + adam / job.machine.memory_rate
    limit: Limit = "arithmetic" if arithmetic >= launching else "launches"
    if max(wire, host) > compute:
        limit = "the wire" if wire >= host else "the host"
    return Span(name, compute, limit, wire, moved, host, copied)
