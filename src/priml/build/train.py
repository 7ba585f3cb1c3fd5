"""`priml train`: a new run, or the rest of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from priml.build.data import Say, load_source, prompts_of
from priml.build.folder import check_manifest, check_unclaimed, claim, explaining_full_disk, versions
from priml.build.roles import place_of, policy_of, prm_of, sampler_of, verifier_of
from priml.config.load import load_config
from priml.config.train import TrainConfig
from priml.data.chat import step_ends
from priml.data.stream import ProblemStream
from priml.errors import Interrupted, NonFiniteError, RunError, UsageError
from priml.evaluate.evaluate import EvalSettings, evaluate
from priml.models.checkpoint import weights_digest
from priml.models.load import load_model, load_tokenizer
from priml.roles.base import Prm
from priml.roles.prm import ImplicitPrm, NoPrm
from priml.rollout.base import Sampler
from priml.telemetry.console import ProgressConsole
from priml.telemetry.jsonl import JsonlTracker
from priml.telemetry.timing import Clock
from priml.train.checkpoints import checkpoints, rewind, step_of
from priml.train.collect import StarvedError, collate_groups
from priml.train.interrupt import Interruption
from priml.train.loop import Roles, train
from priml.train.run import Run, Schedule
from priml.types import Prompt
from priml.verify.pool import VerifierPool

_SHOWN = {
    "outcome/mean": "outcome",
    "prm/pair_accuracy": "prm pairs",
    "policy/entropy": "entropy",
    "response/length_mean": "length",
    "eval/greedy": "held-out",
    "time/step": "s/step",
}


def run_training(cfg: TrainConfig, say: Say) -> dict[str, Any]:
    """A new run; returns its summary."""
    check_unclaimed(cfg.run_dir, hint=f"go on with: priml train {cfg.run_dir}; or ")
    return _train(cfg, say, resume=False)


def resume_training(folder: Path, say: Say) -> dict[str, Any]:
    """Go on where the run stopped: at its newest checkpoint, or from the start when there is none.

    Raises:
        UsageError: the folder is not a training run, the run is finished, or its data or weights have changed.
    """
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder}: not a run folder (no config.yaml in it); give a settings file or a run folder")
    if (folder / "summary.json").is_file():
        raise UsageError(f"{folder}: this run is finished; look at it with: priml report {folder}")
    cfg = load_config(TrainConfig, folder / "config.yaml", [f"run_dir={json.dumps(str(folder))}"])
    return _train(cfg, say, resume=True)


def _train(cfg: TrainConfig, say: Say, *, resume: bool) -> dict[str, Any]:
    folder = cfg.run_dir
    place = place_of(cfg.backend)
    tokenizer = load_tokenizer(cfg.policy.model, trust_remote_code=cfg.policy.trust_remote_code)
    problems = load_source(cfg.data.train)
    stream = ProblemStream(prompts_of(problems, tokenizer, cfg.data.prompt, say), seed=cfg.seed)
    held_out = load_source(cfg.evaluate.data) if cfg.evaluate else None
    held_out_prompts = prompts_of(held_out, tokenizer, cfg.data.prompt, say) if held_out else ()
    verify = verifier_of(cfg.verify)
    module = load_model(cfg.policy.model, device=place.device, trust_remote_code=cfg.policy.trust_remote_code)
    prm = prm_of(cfg, cfg.prm, module, tokenizer, place) if cfg.prm else NoPrm()
    policy = policy_of(cfg, module, tokenizer, place)
    sampler = sampler_of(cfg.sampler, module, tokenizer, place)
    ends = partial(step_ends, tokenizer=tokenizer, pattern=cfg.prm.step_pattern if cfg.prm else r"\n")

    with explaining_full_disk(folder, lambda: _how_to_go_on(folder)):
        data = {"train": problems.digest} | ({"evaluate": held_out.digest} if held_out else {})
        weights = {"policy": weights_digest(module)} | ({"prm": prm.digest() or ""} if cfg.prm else {})
        if resume:
            check_manifest(folder, data=data, weights=weights)
        else:
            claim(cfg, folder, place, seed=cfg.seed, data=data, weights=weights)
        (folder / "rollouts").mkdir(exist_ok=True)
        newest = next(reversed(checkpoints(folder)), None)
        completed = step_of(newest) if newest else 0
        rewind(folder, completed)

        clock = Clock()
        console = ProgressConsole("train", total=cfg.steps, done=completed, shown=_SHOWN)
        interruption = Interruption("finishing this step, then saving a checkpoint.")
        run = Run(
            folder,
            policy=policy,
            prm=prm,
            stream=stream,
            evaluate=_evaluation(cfg, sampler, verify, held_out_prompts) if held_out else None,
            schedule=Schedule(
                steps=cfg.steps,
                evaluate_every=cfg.evaluate.every if cfg.evaluate else None,
                checkpoint_every=cfg.checkpoint.every,
                keep_checkpoints=cfg.checkpoint.keep,
            ),
            clock=clock,
            trackers=[JsonlTracker(folder / "metrics.jsonl"), console],
            step_ends=ends,
            interruption=interruption,
        )
        if newest:
            run.resume(newest)
            sampler.load(policy.weights(), version=completed)
        if resume:
            console.say(f"resuming after step {completed} of {cfg.steps}")
        roles = Roles(
            sampler=clock.wrap(sampler, "sampler", {"sample": "sample", "load": "sync"}),
            verify=clock.wrap(verify, "verifier", {"__call__": "verify"}),
            collate=partial(collate_groups, step_ends=ends),
            policy=clock.wrap(policy, "policy", {"recall": "policy", "update": "policy"}),
            prm=_timed_prm(prm, clock),
        )
        try:
            with interruption:
                train(roles, stream, cfg, run)
            return run.finish({"seed": cfg.seed, "versions": versions()})
        except NonFiniteError as error:
            saved = run.save_failure(error)
            raise RunError(
                f"step {run.completed + 1}: {error}; stopped before the optimizer moved"
                + (f"; the batch is in {saved}" if saved else "")
                + "; lower the learning rate, or look at the batch"
            ) from error
        except StarvedError as error:
            raise RunError(f"step {run.completed + 1}: {error}{_keep_what_was_learnt(run)}") from error
        except KeyboardInterrupt:
            raise Interrupted(f"stopped at once, unsaved; go on with: priml train {folder}") from None
        finally:
            run.close()


def _how_to_go_on(folder: Path) -> str:
    saved = checkpoints(folder)
    start = f"checkpoint {saved[-1].name}" if saved else "the start: no checkpoint had been saved"
    return f"go on with: priml train {folder} (from {start})"


def _evaluation(
    cfg: TrainConfig, sampler: Sampler, verify: VerifierPool, prompts: Sequence[Prompt]
) -> Callable[[int, bool], dict[str, Any]]:
    settings = cfg.evaluate
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
        return evaluate(sampler, verify, prompts, chosen).asdict()

    return run


def _timed_prm(prm: ImplicitPrm | NoPrm, clock: Clock) -> Prm:
    if isinstance(prm, NoPrm):
        return prm
    prm.reference = clock.wrap(prm.reference, "reference", {"logprobs": "reference"})
    return clock.wrap(prm, "prm", {"update": "prm", "rewards": "prm"})


def _keep_what_was_learnt(run: Run) -> str:
    """A starved run cannot go on with its settings, but its policy can start another one."""
    if run.completed == 0:
        return ""
    run.checkpoint()
    run.export()
    return f". The policy after step {run.completed} is in {run.folder / 'model'}"
