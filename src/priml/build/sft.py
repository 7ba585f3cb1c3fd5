"""`priml sft`."""

from __future__ import annotations

from pathlib import Path

from priml.build.data import Say, examples_of, load_source, prompts_of
from priml.build.folder import check_unclaimed, claim, explaining_full_disk
from priml.build.roles import place_of, stepper_of
from priml.config.parts import Pretrained
from priml.config.sft import SftConfig
from priml.models.checkpoint import weights_digest
from priml.models.load import load_model, load_tokenizer
from priml.models.tiny import character_tokenizer, tiny_model
from priml.roles.sft import SupervisedModel
from priml.telemetry.console import ProgressConsole
from priml.telemetry.jsonl import JsonlTracker
from priml.train.interrupt import Interruption
from priml.train.sft import steps_in, train_supervised

_SHOWN = {"sft/loss": "loss", "sft/grad_norm": "grad", "time/step": "s/step"}


def run_sft(cfg: SftConfig, say: Say) -> Path:
    """Train on given responses; returns the folder of the trained model."""
    folder = cfg.run_dir
    check_unclaimed(folder)
    place = place_of(cfg.backend)
    start = cfg.model
    if isinstance(start, Pretrained):
        tokenizer = load_tokenizer(start.model, trust_remote_code=start.trust_remote_code)
    else:
        tokenizer = character_tokenizer()
    loaded = load_source(cfg.data)
    prompts = prompts_of(loaded, tokenizer, cfg.prompt, say)
    examples = examples_of(prompts, cfg.data, tokenizer, max_response_tokens=cfg.max_response_tokens, say=say)
    if isinstance(start, Pretrained):
        module = load_model(start.model, device=place.device, trust_remote_code=start.trust_remote_code)
    else:
        module = tiny_model(tokenizer, width=start.width, layers=start.layers, heads=start.heads, seed=cfg.seed)
        module = module.to(place.device)
    model = SupervisedModel(place.model(module), tokenizer, stepper_of(module, "SFT", cfg.optimizer))

    with explaining_full_disk(folder, lambda: "remove the run folder and start again"):
        digests = {"policy": weights_digest(module)}
        claim(cfg, folder, place, seed=cfg.seed, data={"train": loaded.digest}, weights=digests)
        total = steps_in(len(examples), epochs=cfg.epochs, batch_size=cfg.batch)
        parameters = sum(p.numel() for p in module.parameters()) / 1e6
        say(
            f"sft: {len(examples)} examples, {total} steps, {parameters:.2f} M parameters, "
            f"{place.device} {place.precision}"
        )
        trackers = [JsonlTracker(folder / "metrics.jsonl"), ProgressConsole("sft", total=total, shown=_SHOWN)]
        try:
            with Interruption(
                "finishing this step, then stopping; a warm start saves nothing before its end."
            ) as asked:
                train_supervised(
                    model,
                    examples,
                    epochs=cfg.epochs,
                    batch_size=cfg.batch,
                    warmup=cfg.warmup,
                    seed=cfg.seed,
                    trackers=trackers,
                    interruption=asked,
                )
        finally:
            for tracker in trackers:
                tracker.close()
        model.export(folder / "model")
    return folder / "model"
