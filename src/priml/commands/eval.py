"""`priml eval`."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from priml.commands.session import output_folder
from priml.config.eval import EvalConfig
from priml.data.steps import step_ends
from priml.evaluate.evaluate import EvalSettings, evaluate
from priml.factories.data import load_prompts, load_source
from priml.factories.device import resolve_device
from priml.factories.environments import observed_tokens, with_environment
from priml.factories.graders import build_verifier
from priml.factories.rollout import build_sampler, check_sampler, longest_sequence
from priml.files import write_json
from priml.graders.pool import VerifierPool
from priml.models.checkpoint import weights_digest
from priml.models.load import check_positions, check_tokens_fit, load_model, load_tokenizer
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin, dated
from priml.training.records import rollout_rows, write_rollouts

logger = logging.getLogger(__name__)


def run_eval(cfg: EvalConfig) -> dict[str, Any]:
    """Scores per set of problems, written to `run_dir/eval.json`, the responses beside it as parquet."""
    folder = RunFolder(cfg.run_dir)
    folder.check_unused()
    cfg = cfg.model_copy(update={"prompt": dated(cfg.prompt, cfg.model)})
    device = resolve_device(cfg.backend)
    check_sampler(cfg.sampler, cfg.backend)
    tokenizer = load_tokenizer(cfg.model, trust_remote_code=cfg.trust_remote_code)
    loaded = {name: load_source(source) for name, source in cfg.data.items()}
    prompts = {name: load_prompts(source, tokenizer, cfg.prompt) for name, source in loaded.items()}
    judge = build_verifier(cfg.verify, [p.problem for chosen in prompts.values() for p in chosen])
    verify = VerifierPool(judge.verifier)
    module = load_model(cfg.model, device=device.device, trust_remote_code=cfg.trust_remote_code)
    used = (prompt.token_ids for chosen in prompts.values() for prompt in chosen)
    check_tokens_fit(cfg.model, module, tokenizer, used)
    longest = longest_sequence((p for chosen in prompts.values() for p in chosen), cfg.max_new_tokens)
    longest += observed_tokens(cfg.environment, tokenizer, cfg.prompt)
    check_positions(f"model: {cfg.model}", module, longest, shorten="prompt.max_prompt_tokens or max_new_tokens")
    sampler = build_sampler(cfg.sampler, module, tokenizer, device, longest=longest)
    sampler = with_environment(sampler, cfg.environment, module, tokenizer, cfg.prompt)
    settings = EvalSettings(
        greedy=cfg.greedy,
        samples=cfg.samples,
        temperature=cfg.temperature,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        stream=-1,
    )
    results: dict[str, Any] = {}
    ends = partial(step_ends, tokenizer=tokenizer)
    data, weights = {name: source.digest for name, source in loaded.items()}, {"model": weights_digest(module)}
    begun_with = Origin("eval", cfg.seed, data, weights, device.device_facts, judge.isolation)
    with output_folder(cfg, folder, tokenizer, begun_with):
        for name, chosen in prompts.items():
            logger.info(f"{name}: {len(chosen)} problems")
            began = time.perf_counter()
            evaluation = evaluate(sampler, verify, chosen, settings)
            results[name] = evaluation.asdict() | {"seconds": round(time.perf_counter() - began, 3)}
            rows = rollout_rows(0, [(group, None) for group in evaluation.groups], ends)
            write_rollouts(rows, folder.responses(name))  # the columns of training are null
        write_json(folder.results, results)
    return results
