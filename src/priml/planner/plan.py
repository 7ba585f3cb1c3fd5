"""The plan of a run: batch, memory, time, and what to change first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from priml.planner.duration import RECORDS, StepTime, plan_time
from priml.planner.job import Job
from priml.planner.layout import layout_refusals, pass_tokens
from priml.planner.memory import MemoryPlan, Phase, kept_row, plan_memory


@dataclass(frozen=True, slots=True)
class Plan:
    """The needs of a run on a machine."""

    job: Job
    memory: MemoryPlan
    time: StepTime
    advice: tuple[str, ...]
    """What to change, the most useful first."""

    @property
    def refusals(self) -> tuple[str, ...]:
        """Reasons why the job cannot be run at all."""
        job = self.job
        return (
            *layout_refusals(job.layout, job.machine),
            *_engine_refusals(job),
            *_position_refusals(job),
            *job.batch.refusals,
        )


def make_plan(job: Job) -> Plan:
    """Plan batch, memory and time of a job, with refusals and advice."""
    memory = plan_memory(job)
    time = plan_time(job, memory)
    advice = (*_to_fit(job, memory), *_to_be_faster(job, memory, time))
    return Plan(job=job, memory=memory, time=time, advice=advice)


def _engine_refusals(job: Job) -> Iterator[str]:
    reserved, longest = job.cfg.sampler.reserved_cache_gib, job.lengths.longest
    if reserved is None:
        return
    needed = kept_row(job, longest) / job.cfg.sampler.devices
    if needed > reserved * 2**30:
        yield (
            f"sampler.kv_cache_gib: {reserved:g} GiB do not hold one response of {longest} tokens with its "
            f"prompt; need {_gib(needed)} or more on a device"
        )


def _position_refusals(job: Job) -> Iterator[str]:
    longest = job.lengths.longest
    for model in job.models:
        limit = model.facts.positions
        if model.facts.is_bound and limit is not None and limit < longest:
            yield (
                f"{model.role}: prompt and response may have {longest} tokens, and the model has {limit} positions; "
                "lower data.prompt.max_prompt_tokens or sampling.max_new_tokens"
            )


def _to_fit(job: Job, memory: MemoryPlan) -> Iterator[str]:
    """Changes that make the job fit into memory."""
    if memory.fits:
        return
    peak = memory.peak
    yield from _to_make_room_for_an_engine(job, memory)
    if peak.standing > memory.capacity:
        yield from _to_stand(job, peak)
    elif peak.samples:
        yield from _to_sample(job, memory)
    else:
        yield from _to_learn(job, memory)


def _to_make_room_for_an_engine(job: Job, memory: MemoryPlan) -> Iterator[str]:
    """Where trainer and engine share devices, or the engine alone is too large for one."""
    sampler, peak, over = job.cfg.sampler, memory.peak, memory.peak.total - memory.capacity
    if not sampler.holds_own_weights:
        return
    engine = next(role for role in memory.roles if role.role == "sampler")
    if not (peak.samples or sampler.sleeps) and job.layout.colocate:
        yield f"sampler.sleep: true; the engine then gives {_gib(engine.total)} back while the trainer works"
    if peak.samples or (job.layout.colocate and not sampler.sleeps):
        spare = kept_row(job, job.lengths.longest) / sampler.devices
        if engine.cache - over > spare:
            room = (engine.cache - over) / 2**30
            yield f"sampler.kv_cache_gib: {room:.1f} or less; fewer responses then run at once"
        elif sampler.devices < min(job.machine.per_node, job.layout.ranks):
            yield f"sampler.tensor_parallel: {2 * sampler.devices}; the engine's weights are then spread wider"


def _to_stand(job: Job, peak: Phase) -> Iterator[str]:
    cfg, lora = job.cfg, job.policy.adapters
    yield f"weights and optimizer state alone ({_gib(peak.standing)}) do not fit on a device: use more devices"
    if cfg.implicit_prm and cfg.implicit_prm.reference == "initial":
        model = job.model("reference")
        saved = _gib(4 * model.own_parameters / job.layout.shards) if model else "0"
        if model and model.own_parameters:
            yield f"prm.reference: policy saves the third model ({saved}); the PRM is then compared with the policy"
    if job.layout.replicas > 1:
        yield f"backend.replicas: 1; every model is then spread over all {job.layout.ranks} devices"
    if job.layout.is_sharded and not job.layout.offload:
        yield "backend.cpu_offload: true; shards and optimizer then rest in the host's memory, at the price of time"
    if not lora:
        yield "policy.lora: {} and prm.lora: {}; the weights then need no gradients and no moments"


def _to_sample(job: Job, memory: MemoryPlan) -> Iterator[str]:
    peak = memory.peak
    each = (peak.cache + peak.activations) / memory.rows_at_once
    rows = int(max(memory.capacity - peak.standing - peak.weights, 0.0) / each)
    if rows >= 1:
        yield f"sampler.max_rows: {_down(rows)} or less; every row takes up to {_gib(each)}"
    else:
        yield "the sampler has no room for a single row: use more devices, or a shorter sampling.max_new_tokens"


def _to_learn(job: Job, memory: MemoryPlan) -> Iterator[str]:
    cfg, peak = job.cfg, memory.peak
    over = peak.total - memory.capacity
    if not cfg.policy.gradient_checkpointing and peak.gradients:
        yield f"policy.gradient_checkpointing: true; {peak.name} holds {_gib(peak.activations)} of activations without"
    tokens = pass_tokens(cfg)
    if tokens > job.lengths.longest and peak.activations > over:
        wanted = int(tokens * (peak.activations - over) / peak.activations)
        yield (
            f"backend.micro_batch_tokens: {_down(max(wanted, job.lengths.longest))}; activations shrink with it, but "
            "not below those of the longest row"
        )
    yield "more devices: weights, gradients and moments are divided among them"


def _to_be_faster(job: Job, memory: MemoryPlan, time: StepTime) -> Iterator[str]:
    """Changes that shorten the longest phase."""
    cfg, longest = job.cfg, time.longest
    if longest.name == "sample" and longest.limit == "launches":
        if memory.rows_at_once < max(job.batch.collection.rounds) * job.batch.group_size / job.layout.samplers:
            yield "sampling waits for launches in several waves: raise sampler.max_rows as far as memory allows"
        else:
            yield (
                "sampling waits for launches, not for arithmetic: a shorter sampling.max_new_tokens saves in "
                "proportion, and a larger batch.prompts costs next to nothing"
            )
    elif longest.name == "sample":
        yield f"sampling waits for {longest.limit}: a lower sampling.max_new_tokens, or more devices"
    elif longest.limit == "the wire":
        yield (
            f"{longest.name} waits {longest.exposed:.0f} s for weights and gradients of other devices: raise "
            "backend.micro_batch_tokens, so that there are fewer passes"
        )
    elif longest.limit == "the host" and job.layout.offload and longest.copied:
        yield (
            f"{longest.name} waits for copies to and from the host's memory: raise backend.micro_batch_tokens, so that "
            "there are fewer, or use more devices and backend.cpu_offload: false"
        )
    elif longest.name == RECORDS:
        yield f"{RECORDS} are made by one process, whatever the devices: fewer responses a step (batch.prompts)"
    elif longest.limit == "launches":
        yield f"{longest.name} waits for launches: raise backend.micro_batch_tokens, so that there are fewer passes"
    elif cfg.policy.gradient_checkpointing and memory.fits:
        yield "policy.gradient_checkpointing: false, if memory allows: the forward pass is computed twice with it"
    if cfg.implicit_prm and cfg.implicit_prm.forward == "double" and cfg.advantage.preset != "verl":
        yield "prm.forward: single saves a pass of the PRM over the batch (similar reward in the paper)"
    yield from _to_draw_better(job)


def _to_draw_better(job: Job) -> Iterator[str]:
    """A first round that neither needs a second one nor throws much away."""
    collection = job.batch.collection
    enough = math.ceil(collection.kept / collection.share / 8 - 1e-9) * 8
    if collection.is_starved:
        return
    if len(collection.rounds) > 1:
        yield f"batch.draw: {enough}; at this pass rate one round of sampling is then enough instead of several"
    elif collection.surplus > 0.1 * collection.drawn and enough < collection.drawn:
        yield f"batch.draw: {enough}; {collection.surplus:.0f} prompts a step are sampled in vain at this pass rate"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _down(number: int) -> int:
    """To two digits, downwards."""
    scale = 10 ** max(len(str(number)) - 2, 0)
    return number // scale * scale
