"""Stand-ins for the engines, and the tiny runs that several tests share."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from priml.batch import Batch, TokenScores
from priml.config.load import load_config
from priml.config.train import TrainConfig
from priml.learners.base import ProcessRewards, Trainable
from priml.rollout.base import Finished, SamplingSpec
from priml.types import FinishReason, Group, Problem, Prompt, Segment, Trajectory, Verdict


def make_prompt(name: str = "p", *, answer: str = "1") -> Prompt:
    """A prompt of three tokens."""
    problem = Problem(id=name, prompt=f"{name}?", answer=answer, source="fake")
    return Prompt(problem=problem, text=f"{name}?", token_ids=(7, 8, 9))


def make_trajectory(
    text: str = "ab", *, sample: int = 0, finish_reason: FinishReason = "stop", version: int = 0
) -> Trajectory:
    """A response of one token per character."""
    ids = np.array([ord(character) for character in text], np.int32)
    segment = Segment(ids, np.full(len(ids), -0.5, np.float32), version)
    return Trajectory((segment,), text, finish_reason, sample)


def make_verdict(score: float | None) -> Verdict:
    """1 is correct, None undecided, anything else wrong with that score."""
    return Verdict(correct=None if score is None else score == 1.0, score=score, reason="scripted")


def make_group(
    scores: Sequence[float | None], *, name: str = "p", finish_reasons: Sequence[FinishReason] | None = None
) -> Group:
    """A judged group with the given scores."""
    reasons = finish_reasons or ["stop"] * len(scores)
    trajectories = tuple(make_trajectory(sample=i, finish_reason=reason) for i, reason in enumerate(reasons))
    return Group(make_prompt(name), trajectories, tuple(make_verdict(score) for score in scores))


class ScriptedSampler:
    """A `Sampler` that answers from a table: problem id -> texts, cycled over the samples. `cut` hits the limit."""

    def __init__(self, script: Mapping[str, Sequence[str]]) -> None:
        self._script = dict(script)
        self.version = 0
        self.asked: list[list[str]] = []
        """Problem ids of each call."""

    def sample(self, prompts: Sequence[Prompt], spec: SamplingSpec, finished: Finished | None = None) -> list[Group]:
        self.asked.append([prompt.problem.id for prompt in prompts])
        groups = [Group(prompt, tuple(self._speak(prompt, i) for i in range(spec.group_size))) for prompt in prompts]
        for group in groups:
            for trajectory in group.trajectories:
                if finished is not None:
                    finished(group.prompt, trajectory)
        return groups

    def load(self, weights: object, version: int) -> None:
        self.version = version

    def _speak(self, prompt: Prompt, sample: int) -> Trajectory:
        texts = self._script[prompt.problem.id]
        text = texts[sample % len(texts)]
        reason: FinishReason = "length" if text == "cut" else "stop"
        return make_trajectory(text, sample=sample, finish_reason=reason, version=self.version)


class TableVerifier:
    """A `Verifier` that looks the response up; texts that are not in the table are wrong."""

    def __init__(self, scores: Mapping[str, float | None]) -> None:
        self._scores = dict(scores)

    def grade(self, problem: Problem, response: str) -> Verdict:
        return make_verdict(self._scores.get(response, 0.0))


Make = Callable[..., TrainConfig]

TINY_RUN = """
steps: 2
policy: {{model: {model}, optimizer: {{lr: 1.0e-3}}, mini_batch: 12}}
prm: {{beta: auto, optimizer: {{lr: 1.0e-3}}, mini_batch: 12, epochs: 2}}
sampling: {{group_size: 4, max_new_tokens: 6}}
batch: {{prompts: 6, draw: 9}}
data: {{train: {{kind: walk, length: 2, states: 4, operations: 5, count: 60}}}}
verify: {{kind: custom, function: "{judge}:grade"}}
checkpoint: {{every: 2}}
backend: {{device: cpu}}
"""
JUDGE = '''
def grade(problem, response):
    """Half of what a barely trained model writes: whether the first state is even."""
    return response[:1] in ("0", "2")
'''


def tiny_config(folder: Path, model: Path, *overrides: str) -> TrainConfig:
    """Settings of a run that takes about 50 ms a step; the verifier needs no knowledge of the task."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.py").write_text(JUDGE)
    path = folder / "train.yaml"
    path.write_text(TINY_RUN.format(model=model, judge=folder / "judge.py"))
    return load_config(TrainConfig, path, [f"run_dir={folder / 'run'}", *overrides])


def save(part: Trainable, folder: Path) -> None:
    """Stage and write at once."""
    for write in part.stage(folder):
        write()


@contextmanager
def messages() -> Iterator[list[str]]:
    """What the loggers of `priml` say meanwhile."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("priml")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)
    logger.setLevel(level)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All records, in the order they were written."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def timeless(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records without what differs between two runs of the same computation."""
    return [{k: v for k, v in m.items() if not k.startswith(("time/", "memory/"))} for m in metrics]


def read_rollouts(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """The rows of one step."""
    return pq.read_table(run_dir / "rollouts" / f"{step:06d}.parquet").to_pylist()


# --- a step at full size, on tensors without contents ------------------------------------------------------------

RESPONSES, LENGTH, PROMPT, GROUP = 16_384, 32_768, 1_024, 16
_EMPTY = FakeTensorMode(allow_non_fake_inputs=True)


def empty_tensor(width: int = LENGTH, dtype: torch.dtype = torch.float32) -> Tensor:
    """A row for each response, without memory."""
    with _EMPTY:
        return torch.empty(RESPONSES, width, dtype=dtype)


class LargeStep:
    """Every role but the sampler; what they make has the shapes of a large step."""

    def __init__(self, batch_type: type[Batch] = Batch) -> None:
        self._batch_type = batch_type

    def collate(self, groups: Sequence[Group], step: int) -> Batch:
        return self._batch_type(
            step=step,
            tokens_BL=empty_tensor(PROMPT + LENGTH, torch.int32),
            loss_mask_BL=empty_tensor(PROMPT + LENGTH, torch.bool),
            lengths_B=torch.full((RESPONSES,), PROMPT + LENGTH),
            prompt_lengths_B=torch.full((RESPONSES,), PROMPT),
            response_lengths_B=torch.full((RESPONSES,), LENGTH),
            outcomes_B=torch.arange(RESPONSES) % 2.0,
            groups_B=torch.arange(RESPONSES) // GROUP,
            step_ends=(),
            truncated_B=torch.zeros(RESPONSES, dtype=torch.bool),
            sampler_logprobs_BT=empty_tensor(),
            weight_versions_BT=empty_tensor(dtype=torch.int32),
        )

    def score(self, batch: Batch) -> Batch:
        return batch.with_old(TokenScores(empty_tensor(), empty_tensor()))

    def estimate_values(self, batch: Batch) -> Batch:
        return replace(batch, values_BT=empty_tensor())

    def update(self, batch: Batch, *targets: Any) -> Any:
        """A PRM is given no targets, and does not return the batch."""
        return (batch, None) if targets else None

    def rewards(self, batch: Batch) -> ProcessRewards:
        return ProcessRewards(empty_tensor(), empty_tensor(), empty_tensor(), beta=0.05)
