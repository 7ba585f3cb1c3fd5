"""`priml try`: the model before and after a run, side by side on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from priml.config.backend import LocalBackend
from priml.config.load import load_config
from priml.config.train import TrainConfig
from priml.errors import UsageError
from priml.factories.data import LoadedSource, load_prompts, load_source
from priml.factories.device import resolve_device
from priml.factories.rollout import build_sampler, longest_sequence
from priml.models.load import load_model, load_tokenizer
from priml.rollout.base import SamplingSpec
from priml.runs.folder import RunFolder
from priml.runs.manifest import read_manifest
from priml.types import Problem, Prompt

SHOWN = 3
"""Problems that are taken where no prompt is given."""
_TAIL = 600
"""Characters of a response that are shown: its end, where the answer is."""


def run_try(folder: RunFolder, questions: Sequence[str], *, width: int) -> str:
    """Greedy responses of the initial and the trained policy to these questions; without any, to held-out problems.

    Raises:
        UsageError: the folder is no run of `priml train`, or has no trained policy yet.
    """
    if not folder.config.is_file() or read_manifest(folder)["kind"] != "train":
        raise UsageError(f"{folder}: found no run of `priml train`, need the folder of one")
    if not folder.model.is_dir():
        raise UsageError(f"{folder}: found no model/ in it, need a finished run; first: priml train {folder}")
    cfg = load_config(TrainConfig, folder.config)
    prompts = _prompts(cfg, questions)
    before, after = (_respond(cfg, name, prompts) for name in (cfg.policy.model, str(folder.model)))
    return "\n".join(_block(*row, width) for row in zip(prompts, before, after, strict=True))


def _prompts(cfg: TrainConfig, questions: Sequence[str]) -> tuple[Prompt, ...]:
    if questions:
        problems = tuple(Problem(f"prompt {i + 1}", question, "") for i, question in enumerate(questions))
    else:
        found = load_source(cfg.evaluate.data if cfg.evaluate else cfg.data.train).problems
        problems = found[:: max(1, len(found) // SHOWN)][:SHOWN]
    tokenizer = load_tokenizer(cfg.policy.model, trust_remote_code=cfg.policy.trust_remote_code)
    return load_prompts(LoadedSource(problems, ""), tokenizer, cfg.data.prompt)


def _respond(cfg: TrainConfig, name: str, prompts: Sequence[Prompt]) -> list[str]:
    """What this model writes, most likely tokens first. The sampler is our own, whatever the run used."""
    device = resolve_device(LocalBackend())
    trust = cfg.policy.trust_remote_code
    module, tokenizer = load_model(name, device=device.device, trust_remote_code=trust), load_tokenizer(name)
    longest = longest_sequence(prompts, cfg.sampling.max_new_tokens)
    sampler = build_sampler(TrainConfig.model_fields["sampler"].default, module, tokenizer, device, longest=longest)
    spec = SamplingSpec(1, 0.0, cfg.sampling.max_new_tokens, cfg.seed, 0)
    return [group.trajectories[0].text for group in sampler.sample(prompts, spec)]


def _block(prompt: Prompt, before: str, after: str, width: int) -> str:
    problem = prompt.problem
    question = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1].content
    table = Table("before", "after", box=box.SIMPLE_HEAD, show_edge=False, expand=True, padding=(0, 1))
    for column in table.columns:
        column.ratio = 1
    table.add_row(*(Text(_end(text), overflow="fold") for text in (before, after)))
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(table)
    gold = f"  (gold: {problem.answer})" if problem.answer else ""
    return f"{problem.id}: {_end(question)}{gold}\n" + "\n".join(map(str.rstrip, captured.get().splitlines())) + "\n"


def _end(text: str) -> str:
    return text if len(text) <= _TAIL else f"...{text[-_TAIL:]}"
