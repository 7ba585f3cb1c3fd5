"""Memory per device, and of each node's host: what stands there throughout, and what each phase of a step adds."""

from __future__ import annotations

from dataclasses import dataclass

from priml.planner.facts import ModelFacts
from priml.planner.job import Job, Model

FP32, BF16 = 4, 2

# Beside each token of a row that is being drawn: the logits as they come, in fp32, the log-probs and their
# exponentials in fp32, and the cumulative sums in fp64 (`rollout.transformers`).
_CHOICE_BYTES = {"fp32": 4 + 4 + 4 + 8, "bf16": 2 + 4 + 4 + 4 + 8}
_CACHE_ROOM = 64  # tokens of room that a growing cache takes at least

# Bytes of host memory for each response token (docs/cluster.md, "What a large step costs"): of one that was sampled,
# its id, log-prob and text; of one of the batch, padding included, what is held of it and what is made on the way, in
# one process, or on Ray in the object store, in the first rank, and in every rank.
_SAMPLED, _LOCAL, _STORED, _FIRST_RANK, _EVERY_RANK = 12, 62, 48, 25, 24


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """What one role keeps on a device from the first step to the last, in bytes."""

    role: str
    weights: float
    moments: float = 0.0
    """The two moving averages of AdamW."""
    gradients: float = 0.0
    """Only while this role learns."""
    cache: float = 0.0
    """Set aside by an engine for keys and values."""
    sleeps: bool = False
    """Gives all of it back while others work."""

    @property
    def total(self) -> float:
        """Gradients come and go, and are not in it."""
        return self.weights + self.moments + self.cache


@dataclass(frozen=True, slots=True)
class Phase:
    """The worst moment of one phase, in bytes per device."""

    name: str
    standing: float
    gradients: float
    weights: float
    """Copies of weights: gathered from other devices for a while, or lowered to the sampler's precision."""
    activations: float
    """Activations, and (on one device) weights lowered to bf16 on the way."""
    cache: float
    """Keys and values of the rows being generated, where no engine has set memory aside for them, with the logits and
    tables of the sampler."""

    @property
    def total(self) -> float:
        return self.standing + self.gradients + self.weights + self.activations + self.cache

    @property
    def samples(self) -> bool:
        """Whether it is a sampler's; others train and score."""
        return self.name.startswith("sample")


@dataclass(frozen=True, slots=True)
class Host:
    """Memory of the first node's host, in bytes; the other nodes need no more."""

    shards: float
    """Weights, moments and gradients that rest there (`cpu_offload`)."""
    loading: float
    """One model, read whole by the first rank; gone when the run begins."""
    weights: float
    """The policy on its way to the samplers: gathered, and two versions in the object store while one replaces the
    other; the file that the workers of an engine over several devices read; those of engines that sleep."""
    checkpoint: float
    """A copy of what is being saved, while it is written."""
    tokens: float
    """What is known of each token of a step with responses at the limit, and on the way to it."""

    @property
    def total(self) -> float:
        """At its worst moment."""
        return self.shards + max(self.loading, self.weights + self.checkpoint + self.tokens)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory of one device, or of one of each kind where samplers have devices of their own."""

    roles: tuple[RoleMemory, ...]
    phases: tuple[Phase, ...]
    host: Host
    capacity: float
    """What a program may use of a device."""
    rows_at_once: int
    """Responses that a sampler generates at once."""

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def fits(self) -> bool:
        """Whether every phase has room."""
        return self.peak.total <= self.capacity


def plan_memory(job: Job) -> MemoryPlan:
    """Every role and phase of one step."""
    trainers = tuple(_standing(job, model) for model in job.models)
    sampler = _sampler(job)
    while_training = sum(role.total for role in trainers)
    while_sampling = sampler.total
    if job.layout.colocate:
        while_sampling += while_training
        while_training += 0.0 if sampler.sleeps else sampler.total
    rows = _rows(job)
    phases = [_reading(job, while_sampling, rows), _writing(job, while_sampling, rows)]
    for model in job.models:
        if model.role != "PRM" or not model.is_trained:
            phases.append(_scoring(job, model, while_training))
    by_role = {role.role: role for role in trainers}
    for update in job.batch.updates:
        model = job.model(update.role)
        assert model is not None, "who is updated has a model"
        phases.append(_training(job, model, by_role[update.role], while_training))
    return MemoryPlan(
        roles=(*trainers, *([sampler] if sampler.total else [])),
        phases=tuple(phases),
        host=_host(job),
        capacity=job.machine.capacity,
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


def engine_bytes(job: Job) -> int:
    """Bytes of a weight, key or value in the sampler."""
    dtype = job.cfg.sampler.compute_dtype
    return lowered(job) if dtype == "auto" else FP32 if dtype == "float32" else BF16


def kept_row(job: Job, tokens: float) -> float:
    """Bytes of the keys and values of so many tokens in a paged engine, over all of its devices."""
    return tokens * job.policy.cache * engine_bytes(job)


# --- roles -------------------------------------------------------------------------------------------------------


def _standing(job: Job, model: Model) -> RoleMemory:
    if job.layout.offload:
        return RoleMemory(role=model.role, weights=0.0)
    shards = job.layout.shards
    return RoleMemory(
        role=model.role,
        weights=FP32 * model.own_parameters / shards,
        moments=2 * FP32 * model.trainable / shards,
        gradients=FP32 * model.trainable / shards,
    )


def _sampler(job: Job) -> RoleMemory:
    """What the sampler has for itself: in the trainer's process nothing, unless it is an engine with weights of its
    own; in a process of its own the policy as it was loaded, in fp32."""
    sampler, layout = job.cfg.sampler, job.layout
    if sampler.holds_own_weights:
        return RoleMemory(
            role="sampler",
            weights=engine_bytes(job) * job.policy.parameters * layout.samplers_per_device / layout.tensor_parallel,
            cache=(sampler.reserved_cache_gib or 0.0) * 2**30 * layout.samplers_per_device,
            sleeps=sampler.sleeps,
        )
    parameters = job.models[0].own_parameters if layout.is_sharded else 0
    return RoleMemory(role="sampler", weights=FP32 * parameters * layout.samplers_per_device)


def _host(job: Job) -> Host:
    layout = job.layout
    ranks = min(layout.ranks, 1 if layout.spread else job.machine.per_node)
    state = 3 * FP32 * sum(model.trainable for model in job.models)  # weights and moments
    # All weights, moments and gradients.
    state_bytes = FP32 * sum(model.own_parameters + 3 * model.trainable for model in job.models)
    return Host(
        shards=state_bytes * ranks / layout.shards if layout.offload else 0.0,
        loading=FP32 * max(model.facts.parameters for model in job.models),
        weights=(3 * sync_bytes(job) if layout.is_sharded else 0.0) + _beside_engines(job),
        checkpoint=state * ranks / layout.shards,
        tokens=_tokens(job, ranks),
    )


def _tokens(job: Job, ranks: int) -> float:
    """Where the first rank is: on Ray with so many ranks, else in this process."""
    batch, longest = job.batch, job.lengths.longest_response
    each = _STORED + _FIRST_RANK + ranks * _EVERY_RANK if job.layout.is_sharded else _LOCAL
    return longest * (_SAMPLED * batch.collection.drawn * batch.group_size + each * batch.responses)


def _beside_engines(job: Job) -> float:
    """What the engines of a node have on its host: the file for the workers of one over several devices, and the
    weights of one that sleeps."""
    sampler, layout = job.cfg.sampler, job.layout
    if not sampler.holds_own_weights:
        return 0.0
    engines = min(layout.samplers, max(1, job.machine.per_node // sampler.devices))
    size = engines * engine_bytes(job) * job.policy.parameters
    return (size if sampler.devices > 1 else 0.0) + (size if sampler.sleeps else 0.0)


def sync_bytes(job: Job) -> float:
    """Bytes of what the samplers are given after a step: to an engine, all weights as it computes with them; to a model
    like the trainer's, or an engine that keeps adapters separate, what has been trained."""
    if job.cfg.sampler.holds_own_weights and not job.cfg.sampler.separate_adapters:
        return engine_bytes(job) * job.policy.parameters
    return FP32 * job.models[0].trainable


# --- sampling ----------------------------------------------------------------------------------------------------


def _rows(job: Job) -> int:
    """As many as a sampler gets and the settings allow; of an engine with pages, as many of the expected length as its
    cache has room for."""
    rows = -(-max(job.batch.collection.rounds) * job.batch.group_size // job.layout.samplers)
    rows = min(rows, job.cfg.sampler.max_rows)
    if (reserved := job.cfg.sampler.reserved_cache_gib) is not None:
        room = reserved * 2**30 * job.layout.tensor_parallel
        rows = min(rows, int(room / kept_row(job, job.lengths.mean)))
    return max(1, rows)


def _copies(job: Job) -> float:
    """Weights that a transformers sampler lowers: autocast keeps the copies of those that learn, as long as sampling
    lasts; of frozen ones it makes a new copy each time."""
    if job.cfg.sampler.holds_own_weights or job.precision == "fp32":
        return 0.0
    facts = job.policy
    kept = facts.adapters + facts.largest_matrix if facts.adapters else facts.parameters
    return BF16 * kept * job.layout.samplers_per_device


def _reading(job: Job, standing: float, rows: int) -> Phase:
    """Prompts of the longest kind, each once, whatever the number of its responses."""
    prompts, longest = max(1, rows // job.batch.group_size), job.lengths.longest_prompt
    at_once = prompts * longest
    if job.engine.prefill_tokens is not None:
        at_once = min(at_once, max(job.engine.prefill_tokens, longest))
    samplers = job.layout.samplers_per_device
    cache = 0.0 if job.engine.is_paged else prompts * longest * job.policy.cache_bytes
    activations = at_once * job.policy.footprint.reading
    return Phase("sample: read", standing, 0.0, _copies(job), samplers * activations, samplers * cache)


def _writing(job: Job, standing: float, rows: int) -> Phase:
    """An engine with pages has its cache already. Without, all rows at the limit: that is when memory runs out; and one
    layer after the other keeps its old buffers until the new ones are filled."""
    lengths, cache = job.lengths, 0.0
    if not job.engine.is_paged:
        room, before = cache_rooms(lengths.longest_prompt, lengths.longest - 1)
        cache = rows * job.policy.cache_bytes * (room + before / job.policy.layers)
    beside = job.layout.samplers_per_device * (cache + rows * _choice(job))
    return Phase("sample: write", standing, 0.0, _copies(job), 0.0, beside)


def _choice(job: Job) -> float:
    """Beside each row: what its next token is drawn from, and tables of its tokens, log-probs and random numbers."""
    return job.policy.vocabulary * _CHOICE_BYTES[job.precision] + job.lengths.longest_response * (8 + 4 + 8)


# --- training ----------------------------------------------------------------------------------------------------


def _scoring(job: Job, model: Model, standing: float) -> Phase:
    footprint = model.facts.footprint
    activations = footprint.scoring if model.is_trained else footprint.frozen
    return Phase(f"{model.role}: score", standing, 0.0, _gathered(job, model.facts), activations, 0.0)


def _training(job: Job, model: Model, role: RoleMemory, standing: float) -> Phase:
    facts, gradients = model.facts, role.gradients
    if job.layout.is_sharded:
        # Whole gradients of what lies outside the blocks, and of the block in hand, in bf16 and, for the sum over
        # devices, in fp32.
        whole = facts.adapters / facts.layers if facts.adapters else facts.root + facts.largest_block
        gradients += (lowered(job) + FP32) * whole
    return Phase(f"{role.role}: learn", standing, gradients, _gathered(job, facts), facts.footprint.training, 0.0)


def _gathered(job: Job, facts: ModelFacts) -> float:
    """Full sharding gathers a block while the one before it computes; what lies outside the blocks stays. Shards that
    rest in the host's memory are on the device as long, in fp32."""
    if not job.layout.is_sharded:
        return 0.0
    uploaded = FP32 / job.layout.shards if job.layout.offload else 0.0
    return (lowered(job) + uploaded) * (facts.root + 2 * facts.largest_block)
