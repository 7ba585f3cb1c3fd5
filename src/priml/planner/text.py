"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from priml.planner.batch import BatchPlan, Updates
from priml.planner.duration import Span
from priml.planner.facts import ModelFacts
from priml.planner.job import Job
from priml.planner.machine import TOKEN_SECONDS
from priml.planner.memory import Host, MemoryPlan, Phase, RoleMemory
from priml.planner.plan import Plan

WIDTH = 100


def write_plan(plan: Plan, *, source: str, color: bool = False) -> str:
    """Three lines that say what comes of it, then all sections.

    `source` names the settings and where the model's shape comes from.
    """
    out = StringIO()
    console = Console(file=out, width=WIDTH, force_terminal=color, highlight=False)
    console.print(Text(f"plan of {source}"))
    console.print(Padding(_bullets(tuple(_verdict(plan))), (1, 0, 0, 0)))
    for title, parts in _sections(plan):
        console.print(Text(f"\n{title}", style="bold"))
        for part in parts:
            console.print(Padding(part, (0, 0, 0, 2)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _sections(plan: Plan) -> Iterator[tuple[str, list[RenderableType]]]:
    job, batch = plan.job, plan.job.batch
    yield "machine and models", [_grid(_machine_lines(job))]
    yield "one step", [_grid(_batch_lines(job))]
    yield "rounded and dropped", [_bullets(batch.notes)]
    if plan.refusals:
        yield "REFUSED", [_bullets(plan.refusals)]
    for title, roles, phases in _devices(job, plan.memory):
        parts = [_role_table(roles, phases), Text("")] if roles else []
        yield title, [*parts, _phase_table(phases, plan.memory.capacity)]
    if job.machine.device.name != "cpu":  # there it is one memory
        yield "memory of the first node's host (the others need no more)", [_grid(_host_lines(plan.memory.host))]
    yield "time of a step (estimate)", [_time_table(plan), Text(_totals(plan))]
    yield "change first", [_bullets(plan.advice or ("nothing: this is as good as these settings get",))]
    yield "assumed", [_bullets(_assumptions(plan))]


# --- machine, batch ----------------------------------------------------------------------------------------------


def _machine_lines(job: Job) -> Iterator[tuple[str, str]]:
    machine, device = job.machine, job.machine.device
    count = f"{machine.devices} x {device.name}" + (f" in {machine.nodes} nodes" if machine.nodes > 1 else "")
    rate = device.fp32_tflops if job.precision == "fp32" else device.bf16_tflops
    yield (
        "machine",
        f"{count}: {device.memory_gib:g} GiB, {rate:.3g} TFLOP/s {job.precision}, {device.bandwidth:g} GB/s each"
        + (f"; link {device.link:g} GB/s" if machine.per_node > 1 else "")
        + (f", network {device.network:g} GB/s per device" if machine.nodes > 1 else ""),
    )
    yield "training", f"{_training_layout(job)}; weights fp32, computed in {job.precision}"
    yield "sampling", _sampling_layout(job)
    for remark in job.remarks:
        yield "", remark
    for model in job.models:
        facts = model.facts
        yield (
            model.role,
            f"{_number(facts.parameters)} parameters{_active(facts)}, {facts.layers} layers, vocabulary "
            f"{facts.vocabulary:,}"
            + (" (tied)" if facts.tied else "")
            + (f"; adapters of {_number(facts.adapters)} beside them learn" if facts.adapters else "")
            + ("" if model.is_trained else ", frozen")
            + ("; its weights are held once, with those above" if model.shares_weights else ""),
        )
    facts, longest = job.policy, job.lengths.longest
    if facts.positions is not None and facts.positions < longest:
        yield "", f"prompt and response may have {longest:,} tokens, the policy was made for {facts.positions:,}"


def _active(facts: ModelFacts) -> str:
    """Of a mixture of experts also what one token goes through, embeddings and head included, as on its card."""
    idle = facts.body - facts.active
    return f" ({_number(facts.parameters - idle)} active)" if idle else ""


def _training_layout(job: Job) -> str:
    layout = job.layout
    if not layout.is_sharded:
        return "everything on one device"
    way = f"all fully sharded over {_plural(layout.shards, 'device')} (FSDP2)"
    if layout.replicas > 1:
        way += f", {layout.replicas} such copies (HSDP)"
    return way + (", at rest in the host's memory" if layout.offload else "")


def _sampling_layout(job: Job) -> str:
    sampler, layout = job.cfg.sampler, job.layout
    sleeps = ", asleep while they work" if sampler.sleeps else ""
    if not layout.is_sharded and layout.devices == 1:
        own = "copies of the policy" if job.cfg.sampling.max_staleness else "the policy itself"
        engine = f"an engine ({sampler.kind}) beside it" if sampler.holds_own_weights else own
        return f"{engine}, in the same process{sleeps}"
    what = f"{_plural(layout.samplers, f'{sampler.kind} sampler')}"
    if layout.tensor_parallel > 1:
        what += f" over {layout.tensor_parallel} devices each"
    where = "on the devices that train" if layout.colocate else f"on {_plural(layout.sampling, 'device')} of their own"
    return f"{what}, {where}{sleeps}"


def _batch_lines(job: Job) -> Iterator[tuple[str, str]]:
    batch, collection, k = job.batch, job.batch.collection, job.batch.group_size
    rounds = " + ".join(map(str, collection.rounds))
    rounds = f"{rounds} = {collection.drawn:,}" if collection.rounds[1:] else rounds
    yield "sample", f"{rounds} prompts x {k} responses = {batch.sampled:,} responses"
    share = f"{collection.share:.0%} assumed to pass" if job.cfg.filter else "no filter"
    yield (
        "filter",
        f"{share} = {collection.drawn * collection.share:,.0f} prompts; {collection.kept:,} make the batch",
    )
    tokens = batch.responses * job.lengths.mean
    yield (
        "batch",
        f"{collection.kept:,} prompts x {k} = {batch.responses:,} responses x "
        f"({job.lengths.prompt:,.0f} + {job.lengths.response:,.0f}) tokens = {_number(tokens)} tokens",
    )
    for update in batch.updates:
        yield f"{update.role} learns", _update_line(update, batch, job)


def _update_line(update: Updates, batch: BatchPlan, job: Job) -> str:
    sizes, ranks = update.mini_batches, job.layout.ranks
    parts = (
        f"{len(sizes)} x {sizes[0]:,}" if sizes[-1] == sizes[0] else f"{len(sizes) - 1} x {sizes[0]:,} + {sizes[-1]:,}"
    )
    steps = f"{parts} responses" + (f", {update.epochs} times" if update.epochs > 1 else "")
    each = f"; {update.rows_per_rank[1]:,} a device and step" if ranks > 1 else ""
    passes = f"{_plural(update.micro_batches, 'micro-batch')} of up to {_plural(batch.micro_rows, 'row')}"
    return f"{steps} = {_plural(update.steps, 'optimizer step')}{each}; {passes}"


# --- memory ------------------------------------------------------------------------------------------------------


def _devices(job: Job, memory: MemoryPlan) -> Iterator[tuple[str, list[RoleMemory], list[Phase]]]:
    """One kind of device, or those that train and those that sample, with their roles and phases."""
    layout, phases = job.layout, list(memory.phases)
    if layout.colocate:
        name = f"each of {layout.devices} devices" if layout.devices > 1 else "the device"
        yield f"memory of {name}, at the length limits", list(memory.roles), phases
        return
    for samples, count in ((False, layout.ranks), (True, layout.sampling)):
        name = f"each of {count} devices" if count > 1 else "the device"
        yield (
            f"memory of {name} that {'sample' if samples else 'train'}{'' if count > 1 else 's'}, at the length limits",
            [role for role in memory.roles if (role.role == "sampler") == samples],
            [phase for phase in phases if phase.samples == samples],
        )


def _role_table(roles: list[RoleMemory], phases: list[Phase]) -> Table:
    unit = _unit(phases)
    caches = any(role.cache for role in roles)
    titles = ["weights", "AdamW moments", *(["cache"] if caches else []), "standing", "gradients while it learns"]
    table, rows = _table(unit[0], *titles), list[list[float]]()
    for role in roles:
        rows.append([role.weights, role.moments, *([role.cache] if caches else []), role.total])
        table.add_row(role.role, *(_size(cell, unit) for cell in (*rows[-1], role.gradients)))
    if roles[1:]:
        table.add_row("all", *(_size(sum(column), unit) for column in zip(*rows, strict=True)), "", style="bold")
    return table


def _phase_table(phases: list[Phase], capacity: float) -> RenderableType:
    unit = _unit(phases)
    peak = max(phases, key=lambda phase: phase.total)
    table = _table(unit[0], "standing", "gradients", "weight copies", "activations", "cache, logits", "total")
    for phase in phases:
        cells = (phase.standing, phase.gradients, phase.weights, phase.activations, phase.cache, phase.total)
        is_peak = phase is peak
        table.add_row(
            phase.name + (" <" if is_peak else ""),
            *(_size(cell, unit) for cell in cells),
            style="bold" if is_peak else "",
        )
    word = "fits" if peak.total <= capacity else "DOES NOT FIT"
    verdict = f"{word}: {peak.name} needs {_size(peak.total, unit)} of the {_size(capacity, unit)} {unit[0]} that a "
    return Group(table, Text(verdict + "program can use"))


def _host_lines(host: Host) -> Iterator[tuple[str, str]]:
    lines = {
        "shards at rest": host.shards,
        "weights on their way to samplers": host.weights,
        "checkpoint while it is written": host.checkpoint,
        "tokens of a step, all at the limit": host.tokens,
        "responses that the PRM learns from again": host.replay,
        "one model while it is loaded": host.loading,
        "most at one time": host.total,
    }
    yield from ((name, f"{size / 2**30:,.1f} GiB") for name, size in lines.items() if size)


# --- time --------------------------------------------------------------------------------------------------------


def _time_table(plan: Plan) -> Table:
    table = _table("seconds", "device", "wire", "host", "phase", "share", "moved", "copied", "waits for")
    time = plan.time
    for span in time.spans:
        table.add_row(*_span_cells(span, time.seconds), style="bold" if span is time.longest else "")
    sums = (_seconds(time.seconds), "", _moved(time.moved), _moved(time.copied), "")
    table.add_row("step", "", "", "", *sums, style="bold")
    return table


def _span_cells(span: Span, total: float) -> tuple[str, ...]:
    return (
        span.name,
        _seconds(span.compute) if span.compute else "",
        _seconds(span.wire) if span.wire else "",
        _seconds(span.host) if span.host else "",
        _seconds(span.seconds),
        f"{span.seconds / total:.0%}",
        _moved(span.moved),
        _moved(span.copied),
        span.limit,
    )


def _verdict(plan: Plan) -> Iterator[str]:
    """Does it run, how long, and what to change: what most readers look for."""
    peak, capacity = plan.memory.peak, plan.memory.capacity
    word = "REFUSED" if plan.refusals else "fits" if plan.memory.fits else "DOES NOT FIT"
    reason = f"; {plan.refusals[0]}" if plan.refusals else ""
    yield f"{word}: {peak.total / 2**30:.3g} of {capacity / 2**30:.3g} GiB of a device ({peak.name}){reason}"
    seconds, longest = plan.time.seconds, plan.time.longest
    yield f"about {seconds:,.3g} s a step, {_duration(plan)}; most of it is {longest.name}, waiting for {longest.limit}"
    yield f"change first: {plan.advice[0] if plan.advice else 'nothing'}"


def _duration(plan: Plan) -> str:
    steps, count = plan.job.cfg.steps, plan.job.layout.devices
    hours = steps * plan.time.seconds / 3600
    duration = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:.3g} minutes"
    devices = f" = {hours * count:,.1f} device hours" if count > 1 else ""
    return f"{duration}{devices} for {steps:,} steps"


def _totals(plan: Plan) -> str:
    job, seconds = plan.job, plan.time.seconds
    tokens = job.batch.sampled * job.lengths.response / seconds
    return (
        f"{_duration(plan)}; {_number(tokens)} response tokens a second; "
        f"bottleneck: {plan.time.longest.name}, waiting for {plan.time.longest.limit}"
    )


def _assumptions(plan: Plan) -> Iterator[str]:
    job, reached, sampler = plan.job, plan.job.machine.reached, plan.job.cfg.sampler
    engine = sampler.kind + (", eager" if sampler.launches == "kernels" else "")
    yield (
        f"a mean prompt of {job.lengths.prompt:,.0f} and a mean response of {job.lengths.response:,.0f} tokens, "
        "the longest at the limits (--prompt-tokens, --response-tokens)"
    )
    if job.cfg.filter:
        yield (
            f"{job.batch.collection.share:.3g} of the prompts pass the filter (--pass-rate); below about "
            f"{job.batch.collection.starves_below:.2g} a step starves"
        )
    yield (
        f"{reached.compute:.0%} of the peak FLOP/s, {reached.bandwidth:.0%} of the memory bandwidth"
        + (f", {reached.link:.0%} of link, network and PCIe" if job.layout.is_sharded else "")
        + f"; {job.layer_seconds * 1e3:g} ms per layer and decoding step ({engine})"
    )
    yield (
        f"{TOKEN_SECONDS * 1e6:g} microseconds a response token in one process for the batch, its advantages and the "
        "rollout file"
    )
    if job.layout.is_sharded:
        yield "wire, host and arithmetic overlap inside a phase, and phases follow one another"
    yield "not in it: grading beyond sampling, evaluation, checkpoints, start-up, uneven rows"


# --- cells -------------------------------------------------------------------------------------------------------


def _grid(lines: Iterable[tuple[str, str]], gap: int = 2) -> Table:
    table = Table.grid(padding=(0, gap))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, text in lines:
        table.add_row(name, Text(text))
    return table


def _bullets(lines: Iterable[str]) -> Table:
    return _grid((("-", line) for line in lines), gap=1)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        right = index > 0 and title != "waits for"
        table.add_column(title, justify="right" if right else "left", no_wrap=True, header_style="")
    return table


def _unit(phases: Sequence[Phase]) -> tuple[str, float]:
    return ("GiB", 2.0**30) if max(phase.total for phase in phases) >= 2**30 else ("MiB", 2.0**20)


def _size(size: float, unit: tuple[str, float]) -> str:
    if not size:
        return ""
    value = size / unit[1]
    return f"{value:,.1f}" if value >= 0.95 else f"{value:.2g}" if value >= 0.0095 else f"{value:.1g}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2g}"


def _moved(size: float) -> str:
    return f"{size / 1e9:,.0f} GB" if size else ""


def _number(number: float) -> str:
    for scale, word in ((1e9, " billion"), (1e6, " million")):
        if number >= scale:
            return f"{number / scale:.3g}{word}"
    return f"{number:,.0f}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("ch") else "s")
