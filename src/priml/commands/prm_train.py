"""`priml prm train`: an implicit PRM from labels of whole responses; a new run, or the rest of one."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from priml.batch import Row, batches_by_length
from priml.commands.session import start_or_resume, training_session, watching
from priml.config.models import CrossEntropyLoss
from priml.config.prm import Kto, PrmTrainConfig
from priml.data.labelled import split_held_out
from priml.errors import DataError
from priml.factories.device import DeviceSpec, resolve_device
from priml.factories.learners import build_optimizer
from priml.factories.models import lasting_source
from priml.factories.responses import Tokenized, load_responses, tokenize
from priml.learners.engine import TorchEngine
from priml.learners.offline_prm import OfflinePrm
from priml.learners.prm import BETA_TIMES_LENGTH
from priml.learners.prm_losses import prm_loss
from priml.learners.reference import FrozenReference
from priml.models.checkpoint import weights_digest
from priml.models.load import check_positions, check_tokens_fit, checkpoint_activations, load_model, load_tokenizer
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin
from priml.training.supervised import DataSchedule, HeldOut
from priml.types import Tokenizer

logger = logging.getLogger(__name__)

_COMMAND = "prm train"
_SHOWN = {
    "prm/loss": "loss",
    "prm/auc": "auc",
    "prm/pair_accuracy": "pairs",
    "eval/auc": "held-out auc",
    "eval/pair_accuracy": "held-out pairs",
    "time/step": "s/step",
}
_EVALUATED_AT_ONCE = 256


def run_prm_training(given: PrmTrainConfig | Path) -> dict[str, Any]:
    """Train a PRM; returns the run's summary.

    `given`: settings, the folder of a run to resume, or a checkpoint in it to go on from.

    Raises:
        UsageError: the settings do not fit, or there is nothing to resume, or its data or weights have changed.
    """
    cfg, resume = start_or_resume(PrmTrainConfig, given, _COMMAND)
    folder = RunFolder(cfg.run_dir)
    with watching(cfg.checkpoint, folder, _COMMAND):
        return _train(cfg, folder, resume)


def _train(cfg: PrmTrainConfig, folder: RunFolder, resume: Path | None) -> dict[str, Any]:
    device = resolve_device(cfg.backend)
    tokenizer = load_tokenizer(cfg.model, trust_remote_code=cfg.trust_remote_code)
    learn, held_out, data = _load_rows(cfg, tokenizer)
    units = _training_units(cfg, learn)
    module = load_model(cfg.model, device=device.device, trust_remote_code=cfg.trust_remote_code)
    used = (ids for row in (*learn, *held_out) for ids in (row.prompt_ids, row.response_ids))
    check_tokens_fit(cfg.model, module, tokenizer, used)
    longest = max(len(row.prompt_ids) + len(row.response_ids) for row in (*learn, *held_out))
    shorten = "prompt.max_prompt_tokens or max_response_tokens"
    check_positions(f"model: {cfg.model}", module, longest, shorten=shorten)
    begun_with = Origin(_COMMAND, cfg.seed, data, {"prm": weights_digest(module)}, device.device_facts)
    beta = cfg.beta
    if beta == "auto":
        beta = BETA_TIMES_LENGTH * len(learn) / sum(row.num_trained for row in learn)
    data_schedule = DataSchedule(
        examples=len(units), epochs=cfg.epochs, batch=cfg.batch, warmup=cfg.warmup, seed=cfg.seed
    )
    logger.info(
        f"{_COMMAND}: {len(learn)} responses in {len(units)} units, {len(held_out)} held out, {data_schedule.steps} "
        f"steps, loss {cfg.loss.kind}, beta {beta:.4g}, {device.device} {device.precision}"
    )
    with training_session(
        cfg, folder, tokenizer, begun_with, resume=resume, steps=data_schedule.steps, shown=_SHOWN
    ) as session:
        prm = _build_prm(cfg, module, tokenizer, device, beta)
        batches = [batch for _, batch in batches_by_length(held_out, _EVALUATED_AT_ONCE)]
        monitor = None
        if cfg.held_out and batches:
            monitor = HeldOut(lambda: prm.evaluate(batches), cfg.held_out.every, data_schedule.steps)
        return session.complete_supervised(
            prm,
            data_schedule,
            units,
            cfg.checkpoint,
            monitor,
            lambda: {"held_out": prm.evaluate(batches) if batches else {}, "beta": beta},
        )


def _build_prm(
    cfg: PrmTrainConfig, module: PreTrainedModel, tokenizer: Tokenizer, device: DeviceSpec, beta: float
) -> OfflinePrm:
    reference = FrozenReference(device.model(copy.deepcopy(module).requires_grad_(False)))
    if cfg.gradient_checkpointing:
        checkpoint_activations(module)
    weights = cfg.loss.model_dump(exclude={"kind"}) if isinstance(cfg.loss, Kto) else {}
    return OfflinePrm(
        TorchEngine(device.model(module), tokenizer, build_optimizer(module, "PRM", cfg.optimizer)),
        reference=reference,
        loss=prm_loss(cfg.loss.kind, **weights),
        beta=beta,
        reference_source=lasting_source(cfg.model),
    )


def _load_rows(cfg: PrmTrainConfig, tokenizer: Tokenizer) -> tuple[list[Row], list[Row], dict[str, str]]:
    """Rows to learn from, rows held out, and the digests of the files."""
    loaded = load_responses(cfg.data, needs_label=True)
    if loaded.has_pairs and isinstance(cfg.loss, CrossEntropyLoss | Kto):
        raise DataError(
            f"loss.kind: {cfg.loss.kind} needs to know which responses are right, and {cfg.data.path} holds pairs, "
            "which say only which is better; set loss.kind: dpo or nca, or give rows with a label"
        )
    digests = {"train": loaded.digest}
    learn, aside = list(loaded.responses), []
    if cfg.held_out is not None:
        if cfg.held_out.data is not None:
            other = load_responses(cfg.held_out.data, needs_label=True)
            digests["held_out"] = other.digest
            aside = list(other.responses)
        else:
            learn, aside = split_held_out(learn, cfg.held_out.share)
    if not learn:
        raise DataError(f"{cfg.data.path}: every prompt is held out; lower held_out.share, or give held_out.data")
    make = partial(tokenize, tokenizer=tokenizer, form=cfg.prompt, max_response_tokens=cfg.max_response_tokens)
    rows = [_whole(make(side), loaded.has_pairs) if side else [] for side in (learn, aside)]
    return rows[0], rows[1], digests


def _whole(tokenized: Sequence[Tokenized], has_pairs: bool) -> list[Row]:
    """Their rows; half a pair is left out."""
    rows = [one.row for one in tokenized]
    return [row for unit in _grouped(rows) if len(unit) == 2 for row in unit] if has_pairs else rows


def _training_units(cfg: PrmTrainConfig, rows: Sequence[Row]) -> list[list[Row]]:
    """Units that are learnt together: single responses, or groups with right and wrong ones."""
    if isinstance(cfg.loss, CrossEntropyLoss | Kto):
        return [[row] for row in rows]
    groups = _grouped(rows)
    units = [group for group in groups if len({row.outcome for row in group}) > 1]
    if not units:
        raise DataError(
            f"loss.kind: {cfg.loss.kind} compares right and wrong responses to the same prompt, and none of the "
            f"{len(groups)} prompts has both; set loss.kind: ce or kto, or give several responses per prompt"
        )
    if len(units) < len(groups):
        logger.info(f"{len(groups) - len(units)} of {len(groups)} prompts have nothing to compare and are left out")
    return units


def _grouped(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return list(groups.values())
