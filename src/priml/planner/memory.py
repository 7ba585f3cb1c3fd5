"""Memory per device and of each node's host: what is there in every step, and what each phase of a step adds."""

from __future__ import annotations

from dataclasses import dataclass

from priml.learners.replay import replay_bytes
from priml.planner.facts import ModelFacts
from priml.planner.job import Job, Model
from priml.planner.machine import PREFILL_TOKENS

FP32, BF16 = 4, 2

# For each token of the vocabulary while a row is sampled: the logits as they come, in fp32, log-probs and their
# exponentials in fp32, cumulative sums in fp64 (`rollout.transformers`).
_CHOICE_BYTES = {"fp32": 4 + 4 + 4 + 8, "bf16": 2 + 4 + 4 + 4 + 8}
_CACHE_ROOM = 64  # tokens of room that a growing cache takes at least

# Bytes of host memory for each response token (docs/cluster.md, "What a large step costs"). A sampled token: its id,
# log-prob and text. A token of the batch, padding included: in one process; or on Ray in the object store, in the first
# rank, and in every rank.
_SAMPLED, _LOCAL, _STORED, _FIRST_RANK, _EVERY_RANK = 12, 67, 53, 25, 24


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """Bytes that one role keeps on a device from the first step to the last."""

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
        """Without gradients, which exist only while the role learns."""
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
    """Keys and values of the rows being generated, where no engine has reserved memory for them, with the logits and
    tables of the sampler."""

    @property
    def total(self) -> float:
        return self.standing + self.gradients + self.weights + self.activations + self.cache

    @property
    def samples(self) -> bool:
        """A sampler's phase; other phases train and score."""
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
    other. Also the file that the workers of an engine over several devices read, and weights of engines that sleep."""
    checkpoint: float
    """A copy of what is being saved, while it is written."""
    tokens: float
    """The tokens of a step whose responses all reach the limit."""
    replay: float
    """Responses of earlier steps that the PRM learns from again (`prm.replay`), in every rank."""

    @property
    def total(self) -> float:
        """At the worst moment."""
        return self.shards + max(self.loading, self.weights + self.checkpoint + self.tokens + self.replay)


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
        return self.peak.total <= self.capacity


def plan_memory(job: Job) -> MemoryPlan:
    """Every role and phase of one step."""
    trainers = tuple(_trainer(job, model) for model in job.models)
    sampler = _sampler(job)
    while_training = sum(role.total for role in trainers)
    while_sampling = sampler.total
    if job.layout.colocate:
        while_sampling += while_training
        while_training += 0.0 if sampler.sleeps else sampler.total
    rows = _rows(job)
    phases = [_reading(job, while_sampling, rows), _writing(job, while_sampling, rows)]
    if job.cfg.sampling.max_staleness and job.layout.colocate:  # both at once, on one device
        while_training = max(phase.total for phase in phases)
    for model in job.models:
        if job.scored_share if model.role == "policy" else model.role != "PRM" or not model.is_trained:
            footprint, copies = model.facts.footprint, _gathered(job, model.facts)
            activations = footprint.scoring if model.is_trained else footprint.frozen
            phases.append(Phase(f"{model.role}: score", while_training, 0.0, copies, activations, 0.0))
    by_role = {role.role: role for role in trainers}
    for update in job.batch.updates:
        model = job.model(update.role)
        assert model is not None, "an updated role has a model"
        phases.append(_training(job, model, by_role[update.role], while_training))
    return MemoryPlan(
        roles=(*trainers, *([sampler] if sampler.total else [])),
        phases=tuple(phases),
        host=_host(job),
        capacity=job.machine.capacity,
        rows_at_once=rows,
    )


def cache_rooms(prompt: int, longest: int) -> tuple[int, int]:
    """Tokens of room in a growing cache at the end of a response, and before it grew last. `rollout.transformers`
    enlarges a full cache by a half, or by 64 tokens."""
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
    """Bytes of the keys, values and states of a row of so many tokens in a paged engine, over all of its devices."""
    return tokens * job.policy.cache * engine_bytes(job) + job.policy.state_bytes


# --- roles -------------------------------------------------------------------------------------------------------


def _trainer(job: Job, model: Model) -> RoleMemory:
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
    """An engine with its own weights; or a process with the policy as it was loaded, in fp32; or copies of what is
    trained, in this process; or nothing, where it samples from the trainer's weights."""
    sampler, layout = job.cfg.sampler, job.layout
    is_copied = job.cfg.sampling.max_staleness and not layout.is_sharded
    copies = 2 * FP32 * job.models[0].trainable if is_copied else 0.0
    if sampler.holds_own_weights:
        engine = engine_bytes(job) * job.policy.parameters * layout.samplers_per_device / layout.tensor_parallel
        return RoleMemory(
            role="sampler",
            weights=engine + copies,
            cache=(sampler.reserved_cache_gib or 0.0) * 2**30 * layout.samplers_per_device,
            sleeps=sampler.sleeps,
        )
    parameters = job.models[0].own_parameters if layout.is_sharded else 0
    return RoleMemory(role="sampler", weights=FP32 * parameters * layout.samplers_per_device + copies)


def _host(job: Job) -> Host:
    layout = job.layout
    ranks = min(layout.ranks, 1 if layout.spread else job.machine.per_node)
    state = 3 * FP32 * sum(model.trainable for model in job.models)  # weights and moments
    # All weights, moments and gradients.
    per_token = _STORED + _FIRST_RANK + ranks * _EVERY_RANK if layout.is_sharded else _LOCAL
    replay = job.cfg.implicit_prm.replay if job.cfg.implicit_prm else None
    state_bytes = FP32 * sum(model.own_parameters + 3 * model.trainable for model in job.models)
    return Host(
        shards=state_bytes * ranks / layout.shards if layout.offload else 0.0,
        loading=FP32 * max(model.facts.parameters for model in job.models),
        weights=(3 * sync_bytes(job) if layout.is_sharded else 0.0) + _beside_engines(job),
        checkpoint=state * ranks / layout.shards,
        tokens=job.lengths.longest_response * (_SAMPLED * job.batch.sampled + per_token * job.batch.responses),
        replay=ranks * replay_bytes(replay.keep, job.lengths.longest) if replay else 0.0,
    )


def _beside_engines(job: Job) -> float:
    """Bytes of a node's engines on its host: the file for the workers of an engine over several devices, and the
    weights of an engine that sleeps."""
    sampler, layout = job.cfg.sampler, job.layout
    if not sampler.holds_own_weights:
        return 0.0
    engines = min(layout.samplers, max(1, job.machine.per_node // sampler.devices))
    size = engines * engine_bytes(job) * job.policy.parameters
    return (size if sampler.devices > 1 else 0.0) + (size if sampler.sleeps else 0.0)


def sync_bytes(job: Job) -> float:
    """Bytes of weights that go to the samplers after a step. An engine gets all weights in its own type. A model like
    the trainer's, or an engine with separate adapters, gets what has been trained."""
    if job.cfg.sampler.holds_own_weights and not job.cfg.sampler.separate_adapters:
        return engine_bytes(job) * job.policy.parameters
    return FP32 * job.models[0].trainable


# --- sampling ----------------------------------------------------------------------------------------------------


def _rows(job: Job) -> int:
    """Rows at once: what a sampler gets and the settings allow; in a paged engine no more than its cache has room for
    at the expected length."""
    rows = -(-max(job.batch.collection.rounds) * job.batch.group_size // job.layout.samplers)
    rows = min(rows, job.cfg.sampler.max_rows)
    if (reserved := job.cfg.sampler.reserved_cache_gib) is not None:
        room = reserved * 2**30 * job.layout.tensor_parallel
        rows = min(rows, int(room / kept_row(job, job.lengths.mean)))
    return max(1, rows)


def _copies(job: Job) -> float:
    """bf16 copies of weights in a transformers sampler. Autocast keeps the copies of trained weights while it samples;
    of frozen ones it makes a new copy each time."""
    if job.cfg.sampler.holds_own_weights or job.precision == "fp32":
        return 0.0
    facts = job.policy
    kept = facts.adapters + facts.largest_matrix if facts.adapters else facts.parameters
    return BF16 * kept * job.layout.samplers_per_device


def _reading(job: Job, standing: float, rows: int) -> Phase:
    """The longest prompts, each once for all its responses."""
    prompts, longest = max(1, rows // job.batch.group_size), job.lengths.longest_prompt
    at_once = prompts * longest
    if job.is_paged:
        at_once = min(at_once, max(PREFILL_TOKENS, longest))
    samplers = job.layout.samplers_per_device
    cache = 0.0 if job.is_paged else prompts * (longest * job.policy.cache_bytes + job.policy.state_bytes)
    activations = at_once * job.policy.footprint.reading
    return Phase("sample: read", standing, 0.0, _copies(job), samplers * activations, samplers * cache)


def _writing(job: Job, standing: float, rows: int) -> Phase:
    """All rows at the limit. A paged engine has its cache already. In the growing cache one layer at a time keeps its
    old buffers until the new ones are filled."""
    lengths, cache = job.lengths, 0.0
    if not job.is_paged:
        room, before = cache_rooms(lengths.longest_prompt, lengths.longest - 1)
        cache = rows * (job.policy.cache_bytes * (room + before / job.policy.layers) + job.policy.state_bytes)
    # What the next token of a row is drawn from, and tables of its tokens, log-probs and random numbers.
    choice = job.policy.vocabulary * _CHOICE_BYTES[job.precision] + lengths.longest_response * (8 + 4 + 8)
    beside = job.layout.samplers_per_device * (cache + rows * choice)
    return Phase("sample: write", standing, 0.0, _copies(job), 0.0, beside)


# --- training ----------------------------------------------------------------------------------------------------


def _training(job: Job, model: Model, role: RoleMemory, standing: float) -> Phase:
    facts, gradients = model.facts, role.gradients
    if job.layout.is_sharded:
        # Whole gradients of what lies outside the blocks, and of the block in hand, in bf16 and, for the sum over
        # devices, in fp32.
        whole = facts.adapters / facts.layers if facts.adapters else facts.root + facts.largest_block
        gradients += (lowered(job) + FP32) * whole
    return Phase(f"{role.role}: learn", standing, gradients, _gathered(job, facts), facts.footprint.training, 0.0)


def _gathered(job: Job, facts: ModelFacts) -> float:
    """Full sharding gathers a block while the one before it computes. Weights outside the blocks stay gathered. Shards
    of `cpu_offload` are on the device for the same time, in fp32."""
    if not job.layout.is_sharded:
        return 0.0
    uploaded = FP32 / job.layout.shards if job.layout.offload else 0.0
    return (lowered(job) + uploaded) * (facts.root + 2 * facts.largest_block)
