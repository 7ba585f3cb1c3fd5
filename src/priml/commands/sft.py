"""`priml sft`: a new warm start, or the rest of one."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from priml.batch import Row, batches_by_length
from priml.commands.session import start_or_resume, training_session, watching
from priml.config.models import Pretrained
from priml.config.sft import SftConfig
from priml.data.chat import response_end
from priml.data.labelled import split_held_out
from priml.errors import DataError
from priml.factories.data import build_examples, load_prompts, load_source
from priml.factories.device import DeviceSpec, resolve_device
from priml.factories.learners import build_optimizer
from priml.factories.models import export_dtype, folder_writer
from priml.learners.engine import TorchEngine
from priml.learners.sft import SupervisedModel
from priml.models.checkpoint import weights_digest
from priml.models.load import check_positions, check_tokens_fit, load_model, load_tokenizer
from priml.models.tiny import character_tokenizer, tiny_model
from priml.rollout.trajectories import eos_ids
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin
from priml.training.supervised import DataSchedule, HeldOut
from priml.types import Tokenizer

logger = logging.getLogger(__name__)

_SHOWN = {"sft/loss": "loss", "held_out/loss": "held-out loss", "sft/grad_norm": "grad", "time/step": "s/step"}
_EVALUATED_AT_ONCE = 256


def run_sft(given: SftConfig | Path) -> Path:
    """Train on responses; returns the folder of the trained model.

    `given`: settings, the folder of a run to resume, or a checkpoint in it to go on from.

    Raises:
        UsageError: the settings do not fit, or there is nothing to resume, or its data or weights have changed.
    """
    cfg, resume = start_or_resume(SftConfig, given, "sft")
    folder = RunFolder(cfg.run_dir)
    with watching(cfg.checkpoint, folder, "sft"):
        _train(cfg, folder, resume)
    return folder.model


def _train(cfg: SftConfig, folder: RunFolder, resume: Path | None) -> None:
    device, start = resolve_device(cfg.backend), cfg.model
    if isinstance(start, Pretrained):
        tokenizer = load_tokenizer(start.model, trust_remote_code=start.trust_remote_code)
    else:
        tokenizer = character_tokenizer()
    examples, aside, data = _load_examples(cfg, tokenizer)
    module = _initial_model(cfg, tokenizer, [*examples, *aside], device)
    begun_with = Origin("sft", cfg.seed, data, {"policy": weights_digest(module)}, device.device_facts)
    data_schedule = DataSchedule(
        examples=len(examples), epochs=cfg.epochs, batch=cfg.batch, warmup=cfg.warmup, seed=cfg.seed
    )
    millions = sum(p.numel() for p in module.parameters()) / 1e6
    logger.info(
        f"sft: {len(examples)} examples, {data_schedule.steps} steps, {millions:.2f} M parameters, "
        f"{device.device} {device.precision}"
    )
    with training_session(
        cfg, folder, tokenizer, begun_with, resume=resume, steps=data_schedule.steps, shown=_SHOWN
    ) as session:
        optimizer = build_optimizer(module, "SFT", cfg.optimizer)
        write = folder_writer(None, _export_dtype(cfg))
        learner = SupervisedModel(TorchEngine(device.model(module), tokenizer, optimizer, write=write))
        batches = [batch for _, batch in batches_by_length(aside, _EVALUATED_AT_ONCE)]
        monitor = None
        if cfg.held_out and batches:
            monitor = HeldOut(lambda: learner.evaluate(batches), cfg.held_out.every, data_schedule.steps)
        session.complete_supervised(learner, data_schedule, [[row] for row in examples], cfg.checkpoint, monitor)


def _load_examples(cfg: SftConfig, tokenizer: Tokenizer) -> tuple[list[Row], list[Row], dict[str, str]]:
    """Rows to learn, rows held out, and the digests of their sources."""
    make = partial(build_examples, tokenizer=tokenizer, form=cfg.prompt, max_response_tokens=cfg.max_response_tokens)
    loaded = load_source(cfg.data, demonstrations=True)
    digests = {"train": loaded.digest}
    learn, aside, beside = list(load_prompts(loaded, tokenizer, cfg.prompt)), [], cfg.data
    if cfg.held_out is not None and cfg.held_out.data is not None:
        beside = cfg.held_out.data
        other = load_source(beside, demonstrations=True)
        digests["held_out"] = other.digest
        aside = list(load_prompts(other, tokenizer, cfg.prompt))
    elif cfg.held_out is not None:
        learn, aside = split_held_out(learn, cfg.held_out.share)
        if not learn:
            raise DataError("every prompt is held out; lower held_out.share, or give held_out.data")
    return make(learn, cfg.data), make(aside, beside) if aside else [], digests


def _initial_model(cfg: SftConfig, tokenizer: Tokenizer, examples: list[Row], device: DeviceSpec) -> PreTrainedModel:
    start = cfg.model
    if not isinstance(start, Pretrained):
        module = tiny_model(tokenizer, width=start.width, layers=start.layers, heads=start.heads, seed=cfg.seed)
        return module.to(device.device)  # pyright: ignore[reportArgumentType]
    module = load_model(start.model, device=device.device, trust_remote_code=start.trust_remote_code)
    _stop_at(response_end(tokenizer, cfg.prompt), module, tokenizer)
    used = (ids for example in examples for ids in (example.prompt_ids, example.response_ids))
    check_tokens_fit(start.model, module, tokenizer, used)
    longest = max(len(example.prompt_ids) + len(example.response_ids) for example in examples)
    shorten = "prompt.max_prompt_tokens or max_response_tokens"
    check_positions(f"model: {start.model}", module, longest, shorten=shorten)
    return module


def _export_dtype(cfg: SftConfig) -> torch.dtype:
    start = cfg.model
    if isinstance(start, Pretrained):
        return export_dtype(cfg.export_dtype, start.model, trust_remote_code=start.trust_remote_code)
    return torch.float32 if cfg.export_dtype == "auto" else export_dtype(cfg.export_dtype, "", trust_remote_code=False)


def _stop_at(end: int, module: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """What the examples end with also ends a response of the model that is exported."""
    stops = eos_ids(module, tokenizer)
    if end not in stops and module.generation_config is not None:
        module.generation_config.eos_token_id = [*stops, end]
