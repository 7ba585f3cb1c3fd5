"""`priml train`: a new run, or the rest of one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from priml.commands.session import (
    Session,
    busy_machine,
    resume_hint,
    start_or_resume,
    training_session,
    watching,
)
from priml.config.backend import RayBackend
from priml.config.train import TrainConfig
from priml.data.sources import sources_in
from priml.data.stream import ProblemStream
from priml.errors import RankLostError, RunError
from priml.evaluate.evaluate import EvalSettings, evaluate
from priml.factories.algorithm import build_collect_spec
from priml.factories.components import Components, build_local_components
from priml.factories.data import load_prompts, load_source
from priml.factories.environments import observed_tokens
from priml.factories.models import check_adapters, check_lengths, check_replay
from priml.factories.ray import build_ray_components
from priml.factories.rollout import check_sampler, longest_sequence
from priml.graders.pool import Overlap, VerifierPool
from priml.learners.policy import LocalPolicy
from priml.learners.prm import ImplicitPrm
from priml.models.load import load_tokenizer
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin
from priml.training.alarms import Alarms
from priml.training.collect import FilterStatus, StarvedError
from priml.training.collectors import AsyncCollector, SyncCollector
from priml.training.gate import TrustGate
from priml.training.loop import Roles, train
from priml.training.online_run import Evaluate, Monitors, OnlineRun
from priml.training.records import Records
from priml.training.run import Schedule
from priml.training.timing import Clock
from priml.types import Group, Prompt

logger = logging.getLogger(__name__)

_SHOWN = {
    "outcome/mean": "outcome",
    "prm/pair_accuracy": "prm pairs",
    "policy/entropy": "entropy",
    "response/length_mean": "length",
    "eval/greedy": "held-out",
    "time/step": "s/step",
}


def run_training(given: TrainConfig | Path) -> dict[str, Any]:
    """Train a policy; returns the run's summary.

    `given`: settings, the folder of a run to resume, or a checkpoint in it to go on from.

    When a rank is lost, it begins again from the last checkpoint, as often as the settings allow.

    Raises:
        UsageError: the settings do not fit, or there is nothing to resume, or its data or weights have changed.
    """
    cfg, resume = start_or_resume(TrainConfig, given, "train")
    folder = RunFolder(cfg.run_dir)
    left = cfg.backend.restarts if isinstance(cfg.backend, RayBackend) else 0
    while True:
        try:
            with watching(cfg.checkpoint, folder, "train"):
                return _train(cfg, resume=resume or (folder.path if folder.config.is_file() else None))
        except RankLostError as error:
            if left == 0:
                raise RankLostError(f"{error}; {resume_hint(folder, 'train')}") from None
            left, resume = left - 1, None  # by now the newest checkpoint is the right one
            saved = next(reversed(folder.checkpoints()), None)
            start = f"checkpoint {saved.name}" if saved else "the start"
            logger.info(f"{error}; beginning again from {start} ({left} more times)")


def _train(cfg: TrainConfig, *, resume: Path | None) -> dict[str, Any]:
    check_sampler(cfg.sampler, cfg.backend)
    check_adapters(cfg)
    tokenizer = load_tokenizer(cfg.policy.model, trust_remote_code=cfg.policy.trust_remote_code)
    sources = {"train": cfg.data.train} | ({"evaluate": cfg.evaluate.data} if cfg.evaluate else {})
    loaded = {name: load_source(source) for name, source in sources.items()}
    prompts = {name: load_prompts(problems, tokenizer, cfg.data.prompt) for name, problems in loaded.items()}
    every = [prompt for chosen in prompts.values() for prompt in chosen]
    longest = longest_sequence(every, cfg.sampling.max_new_tokens)
    longest += observed_tokens(cfg.environment, tokenizer, cfg.data.prompt)
    check_lengths(cfg, longest)
    check_replay(cfg, longest)
    build_components = {"local": build_local_components, "ray": build_ray_components}[cfg.backend.kind]
    components = build_components(cfg, tokenizer, every)
    data = {name: problems.digest for name, problems in loaded.items()}
    begun_with = Origin("train", cfg.seed, data, components.digests, components.device, components.isolation)
    with (
        closing(components),
        training_session(
            cfg,
            RunFolder(cfg.run_dir),
            tokenizer,
            begun_with,
            resume=resume,
            steps=cfg.steps,
            shown=_SHOWN,
            custom=cfg.trackers,
        ) as session,
    ):
        return _run(cfg, session, components, prompts["train"], prompts.get("evaluate", ()))


def _run(
    cfg: TrainConfig, session: Session, components: Components, prompts: Sequence[Prompt], held_out: Sequence[Prompt]
) -> dict[str, Any]:
    """All steps that are still to do, and the summary."""
    logger.info(_describe(cfg, components, prompts, held_out))
    clock = Clock()
    session.console.show_phase(clock.current)
    collector = _build_collector(cfg, components, clock, ProblemStream(prompts, seed=cfg.seed))
    monitors = Monitors(
        components.records,
        clock,
        evaluate=_evaluation(cfg, components, collector, held_out) if cfg.evaluate else None,
        alarms=Alarms(cfg.alarms),
        gate=TrustGate(cfg.advantage.gate if cfg.prm else None),
        sources=sources_in(prompt.problem for prompt in prompts),
        idle=components.idle,
    )
    roles = {"policy": components.policy, "prm": components.prm, "critic": components.critic}
    run = OnlineRun(
        session.folder,
        roles={name: role for name, role in roles.items() if role is not None},
        stream=collector,
        schedule=Schedule(
            cfg.steps,
            cfg.checkpoint.every,
            cfg.checkpoint.keep,
            cfg.evaluate.every if cfg.evaluate else None,
            bool(cfg.evaluate and cfg.evaluate.keep_best),
            cfg.checkpoint.max_hours,
        ),
        monitors=monitors,
        trackers=session.trackers,
        interruption=session.interruption,
    )

    def work() -> None:
        if cfg.sampling.max_staleness:
            collector.sync(components.policy.weights(), version=session.completed)
        elif session.completed:
            components.sampler.load(components.policy.weights(), version=session.completed)
        try:
            train(_on_the_clock(components, collector, clock, session.interruption.forbid_abort), run)
        except StarvedError as error:
            learnt = _save_what_was_learnt(run)
            failure = RunError(f"step {run.completed + 1}: {error}{learnt}")
            failure.add_note(_save_what_was_sampled(run, components.records, error.groups))
            raise failure from error

    with closing(collector):
        return session.complete(run, work)


def _describe(cfg: TrainConfig, components: Components, prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> str:
    """The first words of a run: what it does, on what, and which settings make it another run."""
    k, device = cfg.sampling.group_size, components.device
    prm = cfg.implicit_prm
    paid = "no PRM" if cfg.prm is None else f"PRM {prm.loss.kind}, reference {prm.reference}" if prm else "your PRM"
    passes = cfg.steps * cfg.batch.prompts / len(prompts)
    repeated = f" ({passes:.1f} passes or more)" if passes > 1 else ""
    return (
        f"train: {cfg.steps} steps of {cfg.batch.prompts} prompts x {k} responses, {len(prompts)} problems"
        f"{repeated}, {len(held_out)} held out; {cfg.advantage.estimator}, {paid}, seed {cfg.seed}; "
        f"policy lr {cfg.policy.optimizer.lr:g}; {device['kind']} {device['precision']}{busy_machine()}"
    )


def _build_collector(
    cfg: TrainConfig, components: Components, clock: Clock, stream: ProblemStream
) -> SyncCollector | AsyncCollector:
    """What collects batches. Sampling and verifying are timed."""

    def overlapped(overlap: Overlap) -> None:  # graded while sampling goes on
        clock.add("verifier", "verify_overlapped", overlap.start, overlap.end, overlap.seconds)

    pool = VerifierPool(components.verifier, overlapped=overlapped, threads=components.threads)
    sampler = clock.wrap(components.sampler, "sampler", {"sample": "sample", "load": "sync"})
    verify = clock.wrap(pool, "verifier", {"__call__": "verify"})
    if not cfg.sampling.max_staleness:
        return SyncCollector(sampler, verify, stream, build_collect_spec(cfg))
    return AsyncCollector(
        sampler,
        verify,
        stream,
        build_collect_spec(cfg),
        max_staleness=cfg.sampling.max_staleness,
        last_step=cfg.steps,
        snapshot=components.snapshot,
        waited=lambda start, end: clock.add("sampler", "sampler_waited", start, end, end - start),
    )


def _on_the_clock(
    components: Components, collector: SyncCollector | AsyncCollector, clock: Clock, forbid_abort: Callable[[], None]
) -> Roles:
    """The roles as the loop gets them, each timed. Frozen models in this process are timed as `reference`. With its
    first update a step begins to change weights."""
    policy, prm, critic = components.policy, components.prm, components.critic
    if isinstance(policy, LocalPolicy) and policy.initial is not None:
        policy.initial = clock.wrap(policy.initial, "reference", {"scores": "reference"})
    if isinstance(prm, ImplicitPrm):
        prm.reference = clock.wrap(prm.reference, "reference", {"logprobs": "reference"})
    if isinstance(collector, AsyncCollector):  # what training waits for; in turns it waits for the parts themselves
        collector = clock.wrap(collector, "collector", {"collect": "collect", "sync": "snapshot"})
    return Roles(
        collector=collector,
        collate=components.records.collate,
        policy=clock.wrap(policy, "policy", {"score": "policy", "update": "policy"}, before_update=forbid_abort),
        prm=prm and clock.wrap(prm, "prm", {"update": "prm", "rewards": "prm"}, before_update=forbid_abort),
        advantages=components.advantages,
        critic=critic
        and clock.wrap(critic, "critic", {"estimate_values": "critic", "update": "critic"}, before_update=forbid_abort),
    )


def _evaluation(
    cfg: TrainConfig, components: Components, collector: SyncCollector | AsyncCollector, prompts: Sequence[Prompt]
) -> Evaluate:
    settings, verify = cfg.evaluate, VerifierPool(components.verifier, threads=components.threads)
    assert settings is not None, "there is something to evaluate on"

    def run(step: int, is_end: bool) -> dict[str, Any]:
        chosen = EvalSettings(
            greedy=True,
            samples=settings.samples if is_end else 0,
            temperature=settings.temperature,
            max_new_tokens=cfg.sampling.max_new_tokens,
            seed=cfg.seed,
            stream=-1 - step,
        )
        with collector.idle():
            return evaluate(components.sampler, verify, prompts, chosen).asdict()

    return run


def _save_what_was_sampled(run: OnlineRun, records: Records[Any], groups: Sequence[tuple[Group, FilterStatus]]) -> str:
    """Keep the responses of a starved step, and show some of them: the policy or the verifier may be at fault."""
    path = run.folder.untrained(run.completed + 1)
    path.parent.mkdir(exist_ok=True)
    records.save_untrained(path, run.completed + 1, groups)
    rows = pq.read_table(path, columns=["problem_id", "response", "gold", "answer", "verdict", "reason"]).to_pylist()
    shown = [rows[i * len(rows) // _SHOWN_RESPONSES] for i in range(min(_SHOWN_RESPONSES, len(rows)))]
    lines = [
        f"  problem {row['problem_id']}: {row['verdict']} ({row['reason']}), gold {_short(row['gold'])}, "
        f"answer {_short(row['answer'])}, response {_short(row['response'])}"
        for row in shown
    ]
    return "\n".join([f"{len(shown)} of the {len(rows)} responses, all of which are in {path}:", *lines])


_SHOWN_RESPONSES = 3


def _short(text: str | None) -> str:
    """The end of a text, where the answer stands."""
    return "none" if text is None else repr(text if len(text) <= 160 else f"...{text[-160:]}")


def _save_what_was_learnt(run: OnlineRun) -> str:
    """A starved run cannot go on with its settings, but its policy can start another one."""
    if run.completed == 0:
        return ""
    run.checkpoint()
    run.export()
    return f". The policy after step {run.completed} is in {run.folder.model}"
