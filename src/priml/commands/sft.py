"""`priml sft`: a new warm start, or the rest of one."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from priml.config.models import Pretrained
from priml.config.sft import SftConfig
from priml.factories.data import build_examples, load_prompts, load_source
from priml.factories.device import resolve_device
from priml.factories.learners import build_optimizer
from priml.learners.sft import SupervisedModel
from priml.models.checkpoint import weights_digest
from priml.models.load import check_tokens_fit, load_model, load_tokenizer
from priml.models.tiny import character_tokenizer, tiny_model
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
from priml.training.checkpoints import checkpoint_step, checkpoints, rewind
from priml.training.interrupt import Interruption
from priml.training.sft import collate_examples
from priml.training.supervised import DataSchedule, SupervisedRun, train_supervised

logger = logging.getLogger(__name__)

logger = logging.getLogger(__name__)

_SHOWN = {"sft/loss": "loss", "sft/grad_norm": "grad", "time/step": "s/step"}


def run_sft(cfg: SftConfig) -> Path:
    """Train on given responses; returns the folder of the trained model."""
    check_unused(cfg.run_dir, hint=f"go on with: priml sft {cfg.run_dir}; or ")
    return _sft(cfg, resume=False)


def resume_sft(folder: Path) -> Path:
    """Go on where the run stopped: at its newest checkpoint, or from the start when there is none.

    Raises:
        UsageError: the folder is not a warm start, it is finished, or its data or weights have changed.
    """
    return _sft(load_settings_to_resume(SftConfig, folder, command="sft"), resume=True)


def _sft(cfg: SftConfig, *, resume: bool) -> Path:
    folder = cfg.run_dir
    place = resolve_device(cfg.backend)
    start = cfg.model
    if isinstance(start, Pretrained):
        tokenizer = load_tokenizer(start.model, trust_remote_code=start.trust_remote_code)
    else:
        tokenizer = character_tokenizer()
    loaded = load_source(cfg.data)
    prompts = load_prompts(loaded, tokenizer, cfg.prompt)
    examples = build_examples(prompts, cfg.data, tokenizer, max_response_tokens=cfg.max_response_tokens)
    if isinstance(start, Pretrained):
        module = load_model(start.model, device=place.device, trust_remote_code=start.trust_remote_code)
        used = (ids for example in examples for ids in (example.prompt_ids, example.response_ids))
        check_tokens_fit(start.model, module, tokenizer, used)
    else:
        module = tiny_model(tokenizer, width=start.width, layers=start.layers, heads=start.heads, seed=cfg.seed)
        module = module.to(place.device)
    course = DataSchedule(examples=len(examples), epochs=cfg.epochs, batch=cfg.batch, warmup=cfg.warmup, seed=cfg.seed)

    with explain_full_disk(folder, lambda: resume_hint(folder, "sft")):
        data, weights = {"train": loaded.digest}, {"policy": weights_digest(module)}
        if resume:
            check_manifest(folder, data=data, weights=weights)
        else:
            create_run_dir(
                cfg, folder, place.device_facts, tokenizer, command="sft", seed=cfg.seed, data=data, weights=weights
            )
        newest = next(reversed(checkpoints(folder)), None)
        completed = checkpoint_step(newest) if newest else 0
        rewind(folder, completed)

        millions = sum(p.numel() for p in module.parameters()) / 1e6
        logger.info(
            f"sft: {len(examples)} examples, {course.steps} steps, {millions:.2f} M parameters, "
            f"{place.device} {place.precision}"
        )
        if resume:
            logger.info(f"resuming after step {completed} of {course.steps}")
        learner = SupervisedModel(place.model(module), tokenizer, build_optimizer(module, "SFT", cfg.optimizer))
        interruption = Interruption("finishing this step, then saving a checkpoint.")
        console = ProgressConsole("sft", total=course.steps, done=completed, shown=_SHOWN)
        run = SupervisedRun(
            folder,
            command="priml sft",
            learner=learner,
            steps=course.steps,
            checkpoint_every=cfg.checkpoint.every,
            keep_checkpoints=cfg.checkpoint.keep,
            trackers=[JsonlTracker(folder / "metrics.jsonl"), console],
            interruption=interruption,
        )
        try:
            with explain_failures(run, folder, command="sft"):
                if newest:
                    run.resume(newest)
                with interruption:
                    train_supervised(learner, course, partial(collate_examples, examples), run)
                run.finish({"seed": cfg.seed, "versions": versions()})
        finally:
            run.close()
    return folder / "model"
