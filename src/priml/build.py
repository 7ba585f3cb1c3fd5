"""The composition root: settings become objects here and nowhere else. Heavy parts are imported by this module only
when a command needs it."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import priml
from priml.batch import Batch, Row, collate
from priml.config.eval import EvalConfig
from priml.config.load import dump_config, load_config
from priml.config.parts import (
    ChainSource,
    CustomVerifier,
    FileSource,
    HubSource,
    LocalBackend,
    Optimizer,
    PromptFormat,
    Pretrained,
    Prm,
    Source,
    Verify,
    WalkSource,
)
from priml.config.sft import SftConfig
from priml.config.train import TrainConfig
from priml.data.chat import build_prompts, response_tokens, step_ends
from priml.data.sources import file_digest, read_hub, read_problems
from priml.data.stream import ProblemStream
from priml.data.tasks import ChainTask, chain, walk
from priml.errors import ConfigError, DataError, ModelError, NonFiniteError, RunError, UsageError
from priml.evaluate.evaluate import EvalSettings, Evaluation, evaluate
from priml.models.checkpoint import weights_digest
from priml.models.forward import LanguageModel
from priml.models.load import load_model, load_tokenizer
from priml.models.tiny import character_tokenizer, tiny_model
from priml.roles.base import Prm as PrmRole
from priml.roles.optim import Stepper
from priml.roles.policy import LocalPolicy
from priml.roles.prm import FrozenReference, ImplicitPrm, NoPrm, Reference, RolloutReference
from priml.roles.sft import SupervisedModel
from priml.rollout.transformers import TransformersSampler
from priml.telemetry.console import ProgressConsole
from priml.telemetry.jsonl import JsonlTracker
from priml.telemetry.timing import Clock
from priml.train.loop import Roles, train
from priml.train.rollouts import rollout_rows, write_rollouts
from priml.train.run import Run, Schedule, checkpoints
from priml.train.sft import Example, steps_in, train_supervised
from priml.types import Group, Problem, Prompt
from priml.verify.custom import load_custom
from priml.verify.math import MathVerifier
from priml.verify.pool import ByKind, VerifierPool

Say = Callable[[str], None]

_SHOWN_IN_TRAINING = {
    "outcome/mean": "outcome",
    "prm/pair_accuracy": "prm pairs",
    "policy/entropy": "entropy",
    "response/length_mean": "length",
    "eval/greedy": "held-out",
    "time/step": "s/step",
}


# --- data --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadedSource:
    """Problems, and what the manifest says of them."""

    problems: tuple[Problem, ...]
    digest: str
    notes: tuple[str, ...] = ()
    """What was left out, for people to read."""


def task_of(source: ChainSource | WalkSource) -> ChainTask:
    """The procedural task behind a source: its table, teacher and step judge."""
    if isinstance(source, ChainSource):
        return chain(
            length=source.length,
            modulus=source.modulus,
            doubtful=source.doubtful,
            wrong=source.wrong,
            seed=source.seed,
        )
    return walk(
        length=source.length,
        states=source.states,
        operations=source.operations,
        doubtful=source.doubtful,
        wrong=source.wrong,
        seed=source.seed,
    )


def load_source(source: Source) -> LoadedSource:
    """Read or generate the problems of a source."""
    if isinstance(source, ChainSource | WalkSource):
        problems = task_of(source).problems(split=source.split, count=source.count, seed=source.seed)
        return LoadedSource(problems=tuple(problems), digest=_problems_digest(problems))
    options = {"on_bad_row": source.on_bad_row, "columns": source.columns, "limit": source.limit}
    if isinstance(source, FileSource):
        loaded = read_problems(source.path, **options)
        digest, place = file_digest(source.path), str(source.path)
    else:
        assert isinstance(source, HubSource)
        loaded = read_hub(source.dataset, split=source.split, name=source.name, revision=source.revision, **options)
        digest, place = _problems_digest(loaded.problems), source.dataset
    notes = ()
    if loaded.skipped:
        first = loaded.skipped[0]
        notes = (f"{place}: skipped {len(loaded.skipped)} bad rows, the first at {first.row}: {first.reason}",)
    return LoadedSource(problems=loaded.problems, digest=digest, notes=notes)


def prompts_of(loaded: LoadedSource, tokenizer: Any, form: PromptFormat, say: Say) -> tuple[Prompt, ...]:
    """Rendered prompts; what was dropped is said."""
    chosen = build_prompts(
        loaded.problems,
        tokenizer,
        max_prompt_tokens=form.max_prompt_tokens,
        system=form.system,
        suffix=form.suffix,
        use_chat=form.template,
    )
    for note in loaded.notes:
        say(note)
    if chosen.too_long:
        say(
            f"dropped {len(chosen.too_long)} of {len(loaded.problems)} prompts longer than "
            f"{form.max_prompt_tokens} tokens (the first: {chosen.too_long[0]})"
        )
    return chosen.prompts


def examples_of(source: Source, tokenizer: Any, form: PromptFormat, max_response_tokens: int, say: Say) -> list[Example]:
    """Prompts with the responses to learn: a task's teacher writes them, other rows bring them.

    Raises:
        DataError: a row has no response, or no example is short enough.
    """
    loaded = load_source(source)
    prompts = prompts_of(loaded, tokenizer, form, say)
    if isinstance(source, ChainSource | WalkSource):
        traces = task_of(source).traces([p.problem for p in prompts], seed=source.seed)
        responses = [trace.response for trace in traces]
    else:
        responses = [_response_of(prompt.problem) for prompt in prompts]
    examples = [
        Example(prompt_ids=prompt.token_ids, response_ids=response_tokens(response, tokenizer))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    kept = [e for e in examples if len(e.response_ids) <= max_response_tokens]
    if not kept:
        raise DataError(f"all {len(examples)} responses are longer than max_response_tokens={max_response_tokens}; raise it")
    if len(kept) < len(examples):
        say(f"dropped {len(examples) - len(kept)} of {len(examples)} responses longer than {max_response_tokens} tokens")
    return kept


def _response_of(problem: Problem) -> str:
    for name in ("response", "solution"):
        text = problem.meta.get(name)
        if isinstance(text, str) and text:
            return text
    raise DataError(
        f"problem {problem.id}: no response to learn from; need a `response` or `solution` column, "
        "or name one with data.columns: {response: COLUMN}"
    )


def _problems_digest(problems: Sequence[Problem]) -> str:
    sha = hashlib.sha256()
    for problem in problems:
        sha.update(json.dumps([problem.id, str(problem.prompt), problem.answer]).encode())
    return sha.hexdigest()


# --- models ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """The device and the arithmetic of this process."""

    device: torch.device
    precision: str
    micro_batch_tokens: int

    def model(self, module: nn.Module) -> LanguageModel:
        """A module as a language model here."""
        return LanguageModel(
            module, device=self.device, precision=self.precision, micro_batch_tokens=self.micro_batch_tokens
        )


def place_of(backend: LocalBackend) -> Place:
    """Resolve `auto` device and precision.

    Raises:
        ConfigError: the device does not exist here.
    """
    name = backend.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"backend.device: found {backend.device!r}, which does not work here ({reason}); use auto or cpu") from None
    precision = backend.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return Place(device=device, precision=precision, micro_batch_tokens=backend.micro_batch_tokens)


def stepper_of(module: nn.Module, role: str, settings: Optimizer) -> Stepper:
    """The optimizer of a role."""
    return Stepper(
        module,
        role=role,
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )


def prm_of(cfg: TrainConfig, settings: Prm, initial: nn.Module, tokenizer: Any, place: Place) -> ImplicitPrm:
    """The PRM and its reference.

    Raises:
        ModelError: its vocabulary is not the policy's.
    """
    if settings.init == "initial":
        module = copy.deepcopy(initial)
    else:
        _check_same_vocabulary(cfg.policy.model, tokenizer, settings.init, load_tokenizer(settings.init))
        module = load_model(settings.init, device=place.device)
        sizes = [m.get_output_embeddings().weight.shape[0] for m in (initial, module)]  # pyright: ignore
        if sizes[0] != sizes[1]:
            raise ModelError(f"prm.init: {settings.init} has {sizes[1]} output tokens, the policy {sizes[0]}")
    if cfg.policy.gradient_checkpointing:
        module.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
    reference: Reference = (
        RolloutReference()
        if settings.reference == "policy"
        else FrozenReference(place.model(copy.deepcopy(module).requires_grad_(False)))
    )
    return ImplicitPrm(
        place.model(module),
        tokenizer,
        reference,
        stepper_of(module, "PRM", settings.optimizer),
        forward=settings.forward,
        loss=settings.loss,
        beta=settings.beta,
        granularity=settings.granularity,
        mini_batch=settings.mini_batch,
        epochs=settings.epochs,
    )


def _check_same_vocabulary(policy: str, policy_tokenizer: Any, prm: str, prm_tokenizer: Any) -> None:
    ours, theirs = policy_tokenizer.get_vocab(), prm_tokenizer.get_vocab()
    if ours == theirs:
        return
    differing = next((t for t in ours if theirs.get(t) != ours[t]), None) or next(t for t in theirs if t not in ours)
    raise ModelError(
        f"prm.init: {prm} and policy.model: {policy} have different vocabularies ({len(theirs)} and {len(ours)} tokens; "
        f"{differing!r} is {theirs.get(differing)} and {ours.get(differing)}); token rewards need the same one: "
        "use prm.init: initial or a model of the same family"
    )


def verifier_of(settings: Verify) -> VerifierPool:
    """The verifier, lifted to groups. Rows of a kind it cannot judge are refused by name."""
    if isinstance(settings, CustomVerifier):
        return VerifierPool(load_custom(settings.function))
    math = MathVerifier(workers=settings.workers, limit_s=settings.time_limit, rules=settings.rules)
    return VerifierPool(ByKind({"math": math}))


# --- commands ----------------------------------------------------------------------------------------------------


def run_sft(cfg: SftConfig, say: Say) -> Path:
    """`priml sft`: returns the folder of the trained model."""
    _claim(cfg.run_dir, cfg)
    place = place_of(cfg.backend)
    if isinstance(cfg.model, Pretrained):
        tokenizer = load_tokenizer(cfg.model.model, trust_remote_code=cfg.model.trust_remote_code)
        module = load_model(cfg.model.model, device=place.device, trust_remote_code=cfg.model.trust_remote_code)
    else:
        tokenizer = character_tokenizer()
        module = tiny_model(
            tokenizer, width=cfg.model.width, layers=cfg.model.layers, heads=cfg.model.heads, seed=cfg.seed
        ).to(place.device)
    examples = examples_of(cfg.data, tokenizer, cfg.prompt, cfg.max_response_tokens, say)
    total = steps_in(len(examples), epochs=cfg.epochs, batch_size=cfg.batch)
    parameters = sum(p.numel() for p in module.parameters())
    say(f"sft: {len(examples)} examples, {total} steps, {parameters / 1e6:.2f} M parameters, {place.device} {place.precision}")
    _write_manifest(cfg.run_dir, cfg.seed, place, {"data": _problems_digest(load_source(cfg.data).problems)}, {})
    trackers = [
        JsonlTracker(cfg.run_dir / "metrics.jsonl"),
        ProgressConsole("sft", total=total, shown={"sft/loss": "loss", "sft/grad_norm": "grad", "time/step": "s/step"}),
    ]
    model = SupervisedModel(place.model(module), tokenizer, stepper_of(module, "SFT", cfg.optimizer))
    try:
        train_supervised(
            model,
            examples,
            epochs=cfg.epochs,
            batch_size=cfg.batch,
            warmup=cfg.warmup,
            seed=cfg.seed,
            trackers=trackers,
        )
    finally:
        for tracker in trackers:
            tracker.close()
    model.export(cfg.run_dir / "model")
    return cfg.run_dir / "model"


def run_training(cfg: TrainConfig, say: Say) -> dict[str, Any]:
    """`priml train CONFIG`: a new run."""
    _claim(cfg.run_dir, cfg)
    return _train(cfg, say, resume=False)


def resume_training(folder: Path, say: Say) -> dict[str, Any]:
    """`priml train RUN_DIR`: go on where the run stopped.

    Raises:
        UsageError: the folder is not a training run, or the run is finished.
    """
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder}: not a run folder (no config.yaml in it); give a settings file or a run folder")
    if (folder / "summary.json").is_file():
        raise UsageError(f"{folder}: this run is finished; look at it with: priml report {folder}")
    cfg = load_config(TrainConfig, folder / "config.yaml", [f"run_dir={json.dumps(str(folder))}"])
    return _train(cfg, say, resume=True)


def _train(cfg: TrainConfig, say: Say, *, resume: bool) -> dict[str, Any]:
    place = place_of(cfg.backend)
    tokenizer = load_tokenizer(cfg.policy.model, trust_remote_code=cfg.policy.trust_remote_code)
    loaded = load_source(cfg.data.train)
    stream = ProblemStream(prompts_of(loaded, tokenizer, cfg.data.prompt, say), seed=cfg.seed)
    held_out = load_source(cfg.evaluate.data) if cfg.evaluate else None
    held_out_prompts = prompts_of(held_out, tokenizer, cfg.data.prompt, say) if held_out else ()

    module = load_model(cfg.policy.model, device=place.device, trust_remote_code=cfg.policy.trust_remote_code)
    prm: PrmRole = prm_of(cfg, cfg.prm, module, tokenizer, place) if cfg.prm else NoPrm()
    if cfg.policy.gradient_checkpointing:
        module.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
    data_digests = {"train": loaded.digest} | ({"evaluate": held_out.digest} if held_out else {})
    weight_digests = {"policy": weights_digest(module)} | ({"prm": prm.digest() or ""} if cfg.prm else {})
    if resume:
        _check_manifest(cfg.run_dir, data_digests, weight_digests)
    else:
        _write_manifest(cfg.run_dir, cfg.seed, place, data_digests, weight_digests)

    policy = LocalPolicy(
        place.model(module),
        tokenizer,
        stepper_of(module, "policy", cfg.policy.optimizer),
        mini_batch=cfg.policy.mini_batch,
        epochs=cfg.policy.epochs,
        temperature=cfg.sampling.temperature,
        clip_low=cfg.loss.clip_low,
        clip_high=cfg.loss.clip_high,
        aggregate=cfg.loss.aggregate,
        seed=cfg.seed,
    )
    sampler = TransformersSampler(
        module, tokenizer, device=place.device, precision=place.precision, max_rows=cfg.sampler.max_rows
    )
    ends = partial(_step_ends, tokenizer, cfg.prm.step_pattern if cfg.prm else r"\n")
    clock = Clock()
    newest = checkpoints(cfg.run_dir)[-1:] if resume else []
    completed = int(newest[0].name) if newest else 0
    console = ProgressConsole("train", total=cfg.steps, done=completed, shown=_SHOWN_IN_TRAINING)
    verify = verifier_of(cfg.verify)
    run = Run(
        cfg.run_dir,
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
        trackers=[JsonlTracker(cfg.run_dir / "metrics.jsonl", completed=completed), console],
        step_ends=ends,
    )
    if newest:
        run.resume(newest[0])
        sampler.load(policy.weights(), version=run.completed)
        console.say(f"resuming after step {run.completed} of {cfg.steps}")
    roles = Roles(
        sampler=clock.wrap(sampler, "sampler", {"sample": "sample", "load": "sync"}),
        verify=clock.wrap(verify, "verifier", {"__call__": "verify"}),
        collate=partial(_collate, ends=ends),
        policy=clock.wrap(policy, "policy", {"recall": "policy", "update": "policy"}),
        prm=clock.wrap(_with_timed_reference(prm, clock), "prm", {"update": "prm", "rewards": "prm"}),
    )
    try:
        train(roles, stream, cfg, run)
        return run.finish({"seed": cfg.seed, "versions": versions()})
    except NonFiniteError as error:
        saved = run.save_failure(error)
        raise RunError(
            f"step {run.completed + 1}: {error}; stopped before the optimizer moved"
            + (f"; the batch is in {saved}" if saved else "")
            + "; lower the learning rate, or look at the batch"
        ) from error
    finally:
        run.close()


def run_eval(cfg: EvalConfig, say: Say) -> dict[str, Any]:
    """`priml eval`: scores per set of problems, written to `run_dir/eval.json`."""
    _claim(cfg.run_dir, cfg)
    place = place_of(cfg.backend)
    tokenizer = load_tokenizer(cfg.model, trust_remote_code=cfg.trust_remote_code)
    loaded = {name: load_source(source) for name, source in cfg.data.items()}
    prompts = {name: prompts_of(source, tokenizer, cfg.prompt, say) for name, source in loaded.items()}
    module = load_model(cfg.model, device=place.device, trust_remote_code=cfg.trust_remote_code)
    _write_manifest(
        cfg.run_dir,
        cfg.seed,
        place,
        {name: source.digest for name, source in loaded.items()},
        {"model": weights_digest(module)},
    )
    sampler = TransformersSampler(
        module, tokenizer, device=place.device, precision=place.precision, max_rows=cfg.sampler.max_rows
    )
    settings = EvalSettings(
        greedy=cfg.greedy,
        samples=cfg.samples,
        temperature=cfg.temperature,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        stream=-1,
    )
    results: dict[str, Any] = {}
    verify = verifier_of(cfg.verify)
    for name in prompts:
        began = time.perf_counter()
        evaluation = evaluate(sampler, verify, prompts[name], settings)
        results[name] = evaluation.asdict() | {"seconds": round(time.perf_counter() - began, 3)}
        _write_responses(evaluation, tokenizer, cfg.run_dir / f"{name}.parquet")
    (cfg.run_dir / "eval.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


# --- inside ------------------------------------------------------------------------------------------------------


def _evaluation(
    cfg: TrainConfig, sampler: TransformersSampler, verify: VerifierPool, prompts: Sequence[Prompt]
) -> Callable[[int, bool], dict[str, Any]]:
    settings = cfg.evaluate
    assert settings is not None

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


def _with_timed_reference(prm: PrmRole, clock: Clock) -> PrmRole:
    if isinstance(prm, ImplicitPrm):
        prm.reference = clock.wrap(prm.reference, "reference", {"logprobs": "reference"})
    return prm


def _collate(groups: Sequence[Group], step: int, *, ends: Callable[[Sequence[int]], list[int]]) -> Batch:
    rows = [
        Row(
            prompt_ids=group.prompt.token_ids,
            response_ids=completion.token_ids,
            outcome=verdict.score if verdict.score is not None else float("nan"),
            group=index,
            step_ends=ends(completion.token_ids),
        )
        for index, group in enumerate(groups)
        for completion, verdict in zip(group.completions, group.verdicts, strict=True)
    ]
    return collate(rows, step=step)


def _step_ends(tokenizer: Any, pattern: str, token_ids: Sequence[int]) -> list[int]:
    return step_ends(token_ids, tokenizer, pattern)


def _write_responses(evaluation: Evaluation, tokenizer: Any, path: Path) -> None:
    rows = rollout_rows(0, [(g, "surplus") for g in evaluation.groups], partial(_step_ends, tokenizer, r"\n"))
    for row in rows:
        row["fate"] = None
    write_rollouts(rows, path)


def _claim(folder: Path, cfg: SftConfig | TrainConfig | EvalConfig) -> None:
    """Make the run folder ours, or refuse: nothing is ever overwritten."""
    if (folder / "config.yaml").exists() or (folder / "metrics.jsonl").exists():
        go_on = f"go on with: priml train {folder}; or " if isinstance(cfg, TrainConfig) else ""
        raise UsageError(f"run_dir: {folder} already holds a run; {go_on}choose another run_dir, or remove the folder")
    try:
        (folder / "rollouts" if isinstance(cfg, TrainConfig) else folder).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"run_dir: {folder} cannot be made a folder ({error.strerror}); choose another run_dir") from None
    (folder / "config.yaml").write_text(dump_config(cfg), encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    found = {"python": platform.python_version(), "priml": priml.__version__}
    for name in ("torch", "transformers", "safetensors", "numpy", "pydantic", "math-verify", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _write_manifest(
    folder: Path, seed: int, place: Place, data: dict[str, str], weights: dict[str, str]
) -> None:
    device = torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else platform.processor() or "cpu"
    manifest = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "versions": versions(),
        "host": {"name": platform.node(), "system": platform.platform(), "threads": torch.get_num_threads()},
        "device": {"kind": place.device.type, "name": device, "precision": place.precision},
        "seed": seed,
        "sha256": {"data": data, "initial_weights": weights},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _check_manifest(folder: Path, data: dict[str, str], weights: dict[str, str]) -> None:
    """A resumed run must start from the same data and weights, or its rewards would jump."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UsageError(f"{folder}: manifest.json is missing, so the run cannot be resumed safely; start a new run")
    recorded = json.loads(path.read_text())["sha256"]
    for what, now in (("data", data), ("initial_weights", weights)):
        for name, digest in now.items():
            if recorded[what].get(name) != digest:
                raise UsageError(
                    f"{folder}: the {what.replace('_', ' ')} ({name}) are not those the run began with "
                    f"(sha256 {digest[:12]}, recorded {str(recorded[what].get(name))[:12]}); restore them, or start a new run"
                )
