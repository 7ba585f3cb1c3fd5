"""`priml eval`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from priml.commands.session import explain_full_disk, start_or_resume
from priml.config.eval import EvalConfig
from priml.config.rollout import OpenAISampler as OpenAISettings
from priml.config.rollout import Sampler
from priml.data.steps import step_ends
from priml.errors import RunError, UsageError
from priml.evaluate.evaluate import score
from priml.evaluate.responses import ResponseStore, complete, missing
from priml.evaluate.tables import evaluation_table
from priml.factories.device import DeviceSpec, resolve_device
from priml.factories.environments import observed_tokens, with_environment
from priml.factories.eval_sets import EvalSet, answer_comparison, build_judges, load_eval_sets
from priml.factories.graders import Judge
from priml.factories.rollout import build_endpoint, build_sampler, check_sampler, longest_sequence
from priml.files import write_json, write_whole
from priml.graders.pool import VerifierPool
from priml.models.checkpoint import weights_digest
from priml.models.load import check_positions, check_tokens_fit, load_model, load_tokenizer
from priml.rollout.base import NumberedSampler
from priml.rollout.openai import OpenAISampler
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin, check_unchanged, create
from priml.runs.owner import owned
from priml.types import Prompt, Tokenizer

logger = logging.getLogger(__name__)


def run_eval(given: EvalConfig | Path, *, regrade: bool = False) -> dict[str, Any]:
    """Scores per set of problems, written to `run_dir/eval.json`, the responses beside it as parquet.

    `given`: settings, or the folder of a run to go on with: what it has sampled is not sampled again. `regrade`: grade
    all responses of that run again, and sample nothing.

    Raises:
        UsageError: the folder is taken, or is not that of an evaluation; data or weights are not those it began with;
            or there are responses to sample, and `regrade` samples none.
    """
    cfg, resumed = start_or_resume(EvalConfig, given, "eval")
    folder = RunFolder(cfg.run_dir)
    if resumed not in (None, folder.path):
        raise UsageError(f"{resumed}: an evaluation has no checkpoints; give its folder alone: priml eval {folder}")
    if not isinstance(cfg.sampler, OpenAISettings):
        check_sampler(cfg.sampler, cfg.backend)
    tokenizer = load_tokenizer(cfg.model, trust_remote_code=cfg.trust_remote_code) if cfg.model else None
    sets = load_eval_sets(cfg)
    run = _Evaluation(cfg, folder, tokenizer, sets, [one.prompts(tokenizer) for one in sets], build_judges(sets))
    if regrade:
        run.check_nothing_to_sample()
    device = resolve_device(cfg.backend)
    model = None if regrade else run.open_model(device)
    data = {one.name: one.loaded.digest for one in sets}
    isolation = tuple(dict.fromkeys(level for judge in run.judges for level in judge.isolation))
    weights = {"model": model.digest} if model and model.digest else {}
    begun_with = Origin("eval", cfg.seed, data, weights, device.device_facts, isolation)
    with explain_full_disk(folder, lambda: f"go on with: priml eval {folder}"), owned(folder):
        if resumed:
            check_unchanged(folder, begun_with)
        else:
            folder.check_unused()  # once more: another process may have used it since
            create(folder, cfg, tokenizer, begun_with, threads=torch.get_num_threads())
        return run.finish(model.sampler if model else lambda _: None, regrade=regrade)


@dataclass(frozen=True, slots=True)
class _Model:
    sampler: Callable[[EvalSet], NumberedSampler | None]
    """What samples a set; None: nothing is left to sample."""
    digest: str | None
    """Of its weights; None: a server has them."""


@dataclass(frozen=True, slots=True)
class _Evaluation:
    cfg: EvalConfig
    folder: RunFolder
    tokenizer: Tokenizer | None
    """None: a server has the model, and its tokenizer was not given."""
    sets: Sequence[EvalSet]
    prompts: Sequence[tuple[Prompt, ...]]
    """Of each set, as its verifier in `judges`."""
    judges: Sequence[Judge]

    def open_model(self, device: DeviceSpec) -> _Model:
        """The model of the settings, with all that can be checked before it samples.

        Raises:
            UsageError: it cannot be loaded or reached, or its context is too short.
        """
        if isinstance(self.cfg.sampler, OpenAISettings):
            return self._connect(self.cfg.sampler)
        assert self.cfg.model, "without a server the settings have a model"
        return self._load(self.cfg.model, self.cfg.sampler, device)

    def _connect(self, settings: OpenAISettings) -> _Model:
        samplers: dict[str, OpenAISampler] = {}
        endpoint = build_endpoint(settings)
        for one, prompts in zip(self.sets, self.prompts, strict=True):
            if not self._is_open(one, prompts):
                continue
            if not samplers:
                endpoint.check_model(self._longest())
            sampler = OpenAISampler(endpoint, self.tokenizer, one.form, concurrency=settings.concurrency)
            sampler.check(prompts[0])
            samplers[one.name] = sampler
        return _Model(lambda one: samplers.get(one.name), None)

    def _load(self, name: str, settings: Sampler, device: DeviceSpec) -> _Model:
        cfg, tokenizer = self.cfg, self.tokenizer
        assert tokenizer is not None, "it was loaded beside the model"
        module = load_model(name, device=device.device, trust_remote_code=cfg.trust_remote_code)
        used = (prompt.token_ids for chosen in self.prompts for prompt in chosen)
        check_tokens_fit(name, module, tokenizer, used)
        longest = self._longest() + observed_tokens(cfg.environment, tokenizer, cfg.prompt)
        check_positions(f"model: {name}", module, longest, shorten="prompt.max_prompt_tokens or max_new_tokens")
        sampler = build_sampler(settings, module, tokenizer, device, longest=longest)
        sampler = with_environment(sampler, cfg.environment, module, tokenizer, cfg.prompt)
        return _Model(lambda _: sampler, weights_digest(module))

    def _longest(self) -> int:
        return max(
            longest_sequence(chosen, one.settings.max_new_tokens)
            for one, chosen in zip(self.sets, self.prompts, strict=True)
        )

    def _is_open(self, one: EvalSet, prompts: Sequence[Prompt], *, lost: bool = False) -> bool:
        """Whether it has responses that were not sampled yet, apart from those that were `lost`."""
        known = self._store(one).read(lost=lost)
        return any(missing(known, name, spec, prompts) for name, spec in one.settings.specs.items())

    def check_nothing_to_sample(self) -> None:
        if self.cfg.environment is not None:
            raise UsageError(f"{self.folder}: its environment may have given verdicts; found --regrade, leave it away")
        for one, prompts in zip(self.sets, self.prompts, strict=True):
            if self._is_open(one, prompts, lost=True):
                raise UsageError(
                    f"{self.folder}: {one.name} has responses that were not sampled yet, and --regrade samples none; "
                    f"first: priml eval {self.folder}"
                )

    def finish(self, sampler: Callable[[EvalSet], NumberedSampler | None], *, regrade: bool) -> dict[str, Any]:
        """Do what is left of every set, and write the scores."""
        results: dict[str, Any] = {}
        ends = partial(step_ends, tokenizer=self.tokenizer) if self.tokenizer else _no_steps
        for one, prompts, judge in zip(self.sets, self.prompts, self.judges, strict=True):
            logger.info(f"{one.name}: {len(prompts)} problems")
            store, verify = self._store(one), VerifierPool(judge.verifier)
            graded = complete(sampler(one), verify, prompts, one.settings.specs, store, verdicts=not regrade)
            evaluation = score(graded, answer_comparison(one.verify, judge))
            store.write(graded, ends)
            results[one.name] = evaluation.asdict() | {"decoding": one.decoding}
        write_json(self.folder.results, results)
        published = {one.name: one.suite.published for one in self.sets if one.suite}
        write_whole(self.folder.table, evaluation_table(results, published))
        self._check_undecided(results)
        return results

    def _check_undecided(self, results: Mapping[str, Mapping[str, Any]]) -> None:
        for name, one in results.items():
            if one["undecided"] > self.cfg.max_undecided * one["responses"]:
                raise RunError(
                    f"{name}: {one['undecided']} of {one['responses']} responses are undecided, and max_undecided is "
                    f"{self.cfg.max_undecided:g}; ask for them again with: priml eval {self.folder}"
                )

    def _store(self, one: EvalSet) -> ResponseStore:
        return ResponseStore(self.folder.responses(one.name), self.folder.unfinished(one.name))


def _no_steps(_: Sequence[int]) -> list[int]:
    """Without tokens there are no steps."""
    return []
