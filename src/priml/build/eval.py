"""`priml eval`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from priml.build.data import Say, load_source, prompts_of
from priml.build.folder import check_unclaimed, claim, explaining_full_disk
from priml.build.roles import check_sampler, longest_of, place_of, sampler_of
from priml.build.verifiers import verifier_of
from priml.config.eval import EvalConfig
from priml.data.chat import step_ends
from priml.evaluate.evaluate import EvalSettings, Evaluation, evaluate
from priml.models.checkpoint import weights_digest
from priml.models.load import check_tokens_fit, load_model, load_tokenizer
from priml.telemetry.files import write_json
from priml.train.rollouts import rollout_rows, write_rollouts
from priml.verify.pool import VerifierPool


def run_eval(cfg: EvalConfig, say: Say) -> dict[str, Any]:
    """Scores per set of problems, written to `run_dir/eval.json`, the responses beside it as parquet."""
    folder = cfg.run_dir
    check_unclaimed(folder)
    place = place_of(cfg.backend)
    check_sampler(cfg.sampler, cfg.backend)
    tokenizer = load_tokenizer(cfg.model, trust_remote_code=cfg.trust_remote_code)
    loaded = {name: load_source(source) for name, source in cfg.data.items()}
    prompts = {name: prompts_of(source, tokenizer, cfg.prompt, say) for name, source in loaded.items()}
    judge = verifier_of(cfg.verify, [p.problem for chosen in prompts.values() for p in chosen], say)
    verify = VerifierPool(judge.verifier)
    module = load_model(cfg.model, device=place.device, trust_remote_code=cfg.trust_remote_code)
    used = (prompt.token_ids for chosen in prompts.values() for prompt in chosen)
    check_tokens_fit(cfg.model, module, tokenizer, used)
    longest = longest_of((p for chosen in prompts.values() for p in chosen), cfg.max_new_tokens)
    sampler = sampler_of(cfg.sampler, module, tokenizer, place, longest=longest)
    settings = EvalSettings(
        greedy=cfg.greedy,
        samples=cfg.samples,
        temperature=cfg.temperature,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        stream=-1,
    )
    results: dict[str, Any] = {}
    with explaining_full_disk(folder, lambda: "remove the run folder and start again"):
        digests = {name: source.digest for name, source in loaded.items()}
        weights = {"model": weights_digest(module)}
        claim(
            cfg,
            folder,
            place.device_facts,
            tokenizer,
            command="eval",
            seed=cfg.seed,
            data=digests,
            weights=weights,
            isolation=judge.isolation,
        )
        for name, chosen in prompts.items():
            say(f"{name}: {len(chosen)} problems")
            began = time.perf_counter()
            evaluation = evaluate(sampler, verify, chosen, settings)
            results[name] = evaluation.asdict() | {"seconds": round(time.perf_counter() - began, 3)}
            _write_responses(evaluation, tokenizer, folder / f"{name.replace('/', '-')}.parquet")
        write_json(folder / "eval.json", results)
    return results


def _write_responses(evaluation: Evaluation, tokenizer: Any, path: Path) -> None:
    """In the columns of a rollout file; those of training are null."""
    ends = partial(step_ends, tokenizer=tokenizer)
    write_rollouts(rollout_rows(0, [(group, None) for group in evaluation.groups], ends), path)
