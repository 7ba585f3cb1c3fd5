"""`priml train`: a new run, or the rest of one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from priml.config.backend import RayBackend
from priml.config.train import TrainConfig
from priml.data.breakdown import sources_in
from priml.data.stream import ProblemStream
from priml.errors import RankLostError, RunError
from priml.evaluate.evaluate import EvalSettings, evaluate
from priml.factories.algorithm import build_collect_spec
from priml.factories.backend import build_components
from priml.factories.components import Components
from priml.factories.data import load_prompts, load_source
from priml.factories.models import check_adapters
from priml.factories.rollout import check_sampler
from priml.graders.pool import Overlap, VerifierPool
from priml.models.load import load_tokenizer
from priml.runs.folder import (
    check_manifest,
    check_unused,
    create_run_dir,
    explain_failures,
    explain_full_disk,
    load_settings_to_resume,
    resume_hint,
    versions,
)
from priml.trackers.console import ProgressConsole
from priml.trackers.jsonl import JsonlTracker
from priml.training.alarms import Alarms
from priml.training.checkpoints import checkpoint_step, checkpoints, rewind
from priml.training.collect import StarvedError
from priml.training.interrupt import Interruption
from priml.training.loop import Roles, train
from priml.training.run import Run, Schedule
from priml.training.timing import Clock
from priml.types import Prompt

logger = logging.getLogger(__name__)

logger = logging.getLogger(__name__)

_SHOWN = {
    "outcome/mean": "outcome",
    "prm/pair_accuracy": "prm pairs",
    "policy/entropy": "entropy",
    "response/length_mean": "length",
    "eval/greedy": "held-out",
    "time/step": "s/step",
}


def run_training(cfg: TrainConfig) -> dict[str, Any]:
    """A new run; returns its summary."""
    check_unused(cfg.run_dir, hint=f"go on with: priml train {cfg.run_dir}; or ")
    return _with_restarts(cfg, resume=False)


def resume_training(folder: Path) -> dict[str, Any]:
    """Go on where the run stopped: at its newest checkpoint, or from the start when there is none.

    Raises:
        UsageError: the folder is not a training run, the run is finished, or its data or weights have changed.
    """
    return _with_restarts(load_settings_to_resume(TrainConfig, folder, command="train"), resume=True)


def _with_restarts(cfg: TrainConfig, *, resume: bool) -> dict[str, Any]:
    """Begin again from the last checkpoint when a rank is lost, as often as the settings allow."""
    left = cfg.backend.restarts if isinstance(cfg.backend, RayBackend) else 0
    while True:
        try:
            return _train(cfg, resume=resume or (cfg.run_dir / "config.yaml").is_file())
        except RankLostError as error:
            if left == 0:
                raise RankLostError(f"{error}; {resume_hint(cfg.run_dir, 'train')}") from None
            left -= 1
            saved = next(reversed(checkpoints(cfg.run_dir)), None)
            start = f"checkpoint {saved.name}" if saved else "the start"
            logger.info(f"{error}; beginning again from {start} ({left} more times)")


def _train(cfg: TrainConfig, *, resume: bool) -> dict[str, Any]:
    folder = cfg.run_dir
    check_sampler(cfg.sampler, cfg.backend)
    check_adapters(cfg)
    tokenizer = load_tokenizer(cfg.policy.model, trust_remote_code=cfg.policy.trust_remote_code)
    problems = load_source(cfg.data.train)
    prompts = load_prompts(problems, tokenizer, cfg.data.prompt)
    stream = ProblemStream(prompts, seed=cfg.seed)
    held_out = load_source(cfg.evaluate.data) if cfg.evaluate else None
    held_out_prompts = load_prompts(held_out, tokenizer, cfg.data.prompt) if held_out else ()
    cast = build_components(cfg, tokenizer, (*prompts, *held_out_prompts))

    with closing(cast), explain_full_disk(folder, lambda: resume_hint(folder, "train")):
        data = {"train": problems.digest} | ({"evaluate": held_out.digest} if held_out else {})
        if resume:
            check_manifest(folder, data=data, weights=cast.digests)
        else:
            create_run_dir(
                cfg,
                folder,
                cast.device,
                tokenizer,
                command="train",
                seed=cfg.seed,
                data=data,
                weights=cast.digests,
                isolation=cast.isolation,
            )
        (folder / "rollouts").mkdir(exist_ok=True)
        newest = next(reversed(checkpoints(folder)), None)
        completed = checkpoint_step(newest) if newest else 0
        rewind(folder, completed)

        clock = Clock()
        console = ProgressConsole("train", total=cfg.steps, done=completed, shown=_SHOWN)
        interruption = Interruption("finishing this step, then saving a checkpoint.")
        run = Run(
            folder,
            policy=cast.policy,
            prm=cast.prm,
            critic=cast.critic,
            stream=stream,
            records=cast.records,
            evaluate=_evaluation(cfg, cast, held_out_prompts) if held_out else None,
            schedule=_schedule(cfg),
            clock=clock,
            trackers=[JsonlTracker(folder / "metrics.jsonl"), console],
            interruption=interruption,
            sources=sources_in(prompt.problem for prompt in prompts),
            alarms=Alarms(cfg.alarms),
            idle=cast.idle,
        )
        if newest:
            run.resume(newest)
            cast.sampler.load(cast.policy.weights(), version=completed)
        if resume:
            logger.info(f"resuming after step {completed} of {cfg.steps}")
        roles = _on_the_clock(cast, clock)
        try:
            with explain_failures(run, folder, command="train"):
                with interruption:
                    train(roles, stream, build_collect_spec(cfg), run)
                return run.finish({"seed": cfg.seed, "versions": versions()})
        except StarvedError as error:
            raise RunError(f"step {run.completed + 1}: {error}{_keep_what_was_learnt(run)}") from error
        finally:
            run.close()


def _schedule(cfg: TrainConfig) -> Schedule:
    return Schedule(
        steps=cfg.steps,
        evaluate_every=cfg.evaluate.every if cfg.evaluate else None,
        checkpoint_every=cfg.checkpoint.every,
        keep_checkpoints=cfg.checkpoint.keep,
    )


def _on_the_clock(cast: Components, clock: Clock) -> Roles:
    """The roles as the loop gets them, each timed."""
    return Roles(
        sampler=clock.wrap(cast.sampler, "sampler", {"sample": "sample", "load": "sync"}),
        verify=clock.wrap(_reporting_overlap(cast, clock), "verifier", {"__call__": "verify"}),
        collate=cast.records.collate,
        policy=cast.timed_policy(clock),
        prm=cast.timed_prm(clock),
        advantages=cast.advantages,
        critic=cast.timed_critic(clock),
    )


def _reporting_overlap(cast: Components, clock: Clock) -> VerifierPool:
    """A pool for the loop alone: what it grades while sampling goes on is on the clock as `verify_overlapped`."""

    def overlapped(overlap: Overlap) -> None:
        clock.add("verifier", "verify_overlapped", overlap.start, overlap.end, overlap.seconds)

    return VerifierPool(cast.verifier, overlapped=overlapped, threads=cast.threads)


def _evaluation(cfg: TrainConfig, cast: Components, prompts: Sequence[Prompt]) -> Callable[[int, bool], dict[str, Any]]:
    settings, verify = cfg.evaluate, VerifierPool(cast.verifier, threads=cast.threads)
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
        return evaluate(cast.sampler, verify, prompts, chosen).asdict()

    return run


def _keep_what_was_learnt(run: Run) -> str:
    """A starved run cannot go on with its settings, but its policy can start another one."""
    if run.completed == 0:
        return ""
    run.checkpoint()
    run.export()
    return f". The policy after step {run.completed} is in {run.folder / 'model'}"
