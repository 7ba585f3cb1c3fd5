"""A synthetic run folder, written to the contract of the run folder: small, deterministic, and hostile."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"
EOS = "<|end|>"


def character_tokenizer() -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate([EOS, "<|unknown|>", *string.printable])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = Fuse()
    return tokenizer


def write_run(folder: Path, *, steps: int = 12, prm: bool = True, parts: tuple[str, ...] | None = None) -> Path:
    """Write a finished run, or only the named `parts` of one."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    every = {
        "config.yaml": _write_config,
        "manifest.json": _write_manifest,
        "metrics.jsonl": _write_metrics,
        "spans.jsonl": _write_spans,
        "rollouts": _write_rollouts,
        "summary.json": _write_summary,
        "tokenizer": _write_tokenizer,
    }
    for name, write in every.items():
        if parts is None or name in parts:
            write(folder, steps, prm, rng)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(steps=12, prm=True, parts=None)` -> a run folder."""
    return lambda **options: write_run(tmp_path / "runs" / "demo", **options)


def _write_config(folder: Path, steps: int, prm: bool, rng: np.random.Generator) -> None:
    config = {
        "run_dir": str(folder),
        "seed": 3,
        "steps": steps,
        "policy": {"model": "models/sft"},
        "prm": {"init": "initial", "reference": "initial", "forward": "single", "beta": "auto", "granularity": "token"}
        if prm
        else None,
        "batch": {"prompts": 32},
        "sampling": {"group_size": 4},
        "advantage": {"estimator": "rloo", "preset": "authors"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def _write_manifest(folder: Path, steps: int, prm: bool, rng: np.random.Generator) -> None:
    manifest = {
        "format": 2,
        "created": "2026-01-02T03:04:05Z",
        "versions": {"priml": "0.1.0", "python": "3.11.9", "torch": "2.13.0"},
        "host": {"name": "somewhere", "threads": 2},
        "device": {"kind": "cpu", "precision": "fp32"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _write_metrics(folder: Path, steps: int, prm: bool, rng: np.random.Generator) -> None:
    rows: list[dict[str, Any]] = [{"step": 0, "eval/greedy": 0.21, "eval/sampled": 0.18, "time/evaluate": 1.5}]
    for step in range(1, steps + 1):
        grown = 1 - math.exp(-2.5 * step / steps)
        noise = lambda size=0.02: float(rng.normal() * size)  # noqa: E731
        row: dict[str, Any] = {
            "step": step,
            "outcome/mean": 0.2 + 0.6 * grown + noise(),
            "outcome/kept_mean": 0.48 + 0.06 * grown + noise(),
            "verdict/correct": int(200 * (0.2 + 0.6 * grown)),
            "verdict/wrong": int(200 * (0.8 - 0.6 * grown)),
            "verdict/undecided": int(step == 5),
            "filter/sampled": 56,
            "filter/kept": 32,
            "filter/too_easy": int(20 * grown),
            "filter/too_hard": 20 - int(20 * grown),
            "filter/truncated": 3,
            "filter/undecided": int(step == 5),
            "policy/loss": noise(),
            "policy/grad_norm": 0.4 + noise(0.05),
            "policy/entropy": 0.5 - 0.3 * grown + noise(0.01),
            "policy/clip_fraction": 0.004 + abs(noise(0.002)),
            "policy/kl_old": 0.001 + abs(noise(0.0004)),
            "policy/ratio_max": 1.6 + abs(noise(0.2)),
            "response/length_mean": 33 + noise(1),
            "response/truncated": 0.01 + abs(noise(0.01)),
            "time/sample": 0.42 + abs(noise(0.05)),
            "time/verify": 0.03 + abs(noise(0.01)),
            "time/policy": 0.31 + abs(noise()),
            "time/sync": 0.004,
            "tokens/sampled": 7000,
            "tokens/trained": 4200,
            "memory/peak_gib": 1.234,
        }
        if prm:
            row |= {
                "prm/beta": 1.51,
                "prm/loss": math.log(2) - 0.35 * grown + noise(0.03),
                "prm/grad_norm": 1.1 + noise(0.1),
                "prm/accuracy": 0.5 + 0.27 * grown + noise(),
                "prm/auc": 0.5 + 0.35 * grown + noise(),
                "prm/pair_accuracy": 0.5 + 0.32 * grown + noise(),
                "prm/reward_mean": 0.3 * grown + noise(),
                "prm/length_correlation": noise(0.1),
                "time/prm": 0.35 + abs(noise()),
                "time/reference": 0.09 + abs(noise(0.01)),
            }
        row["time/step"] = sum(v for k, v in row.items() if k.startswith("time/")) + 0.05
        if step % 4 == 0:
            row |= {"eval/greedy": 0.21 + 0.6 * grown, "time/evaluate": 1.4, "digest/policy": "ab12"}
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_spans(folder: Path, steps: int, prm: bool, rng: np.random.Generator) -> None:
    lines: list[dict[str, Any]] = []
    now = 3.0
    for step in range(1, steps + 1):
        phases = [("sampler", "sample", 0.22), ("verifier", "verify", 0.02), ("sampler", "sample", 0.2)]
        phases += [("verifier", "verify", 0.02), ("policy", "policy", 0.06)]
        phases += [("reference", "reference", 0.09), ("prm", "prm", 0.35)] if prm else []
        phases += [("policy", "policy", 0.3), ("sampler", "sync", 0.01)]
        for role, phase, seconds in phases:
            lines.append({"step": step, "role": role, "phase": phase, "start": now, "end": now + seconds})
            now += seconds
        now += 0.1
    (folder / "spans.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_rollouts(folder: Path, steps: int, prm: bool, rng: np.random.Generator) -> None:
    tokenizer = character_tokenizer()
    (folder / "rollouts").mkdir()
    for step in range(1, steps + 1):
        rows: list[dict[str, Any]] = []
        for problem in range(7):
            for sample in range(4):
                filter_status = "kept" if problem < 5 else "too_hard" if problem == 5 else "undecided"
                is_right = filter_status == "kept" and (problem + sample) % 2 == 0
                rows.append(_row(rng, tokenizer, step, problem, sample, filter_status, is_right, prm))
        table = pa.Table.from_pylist(rows, schema=_SCHEMA)
        pq.write_table(table, folder / "rollouts" / f"{step:06d}.parquet")


def _row(
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    step: int,
    problem: int,
    sample: int,
    filter_status: str,
    is_right: bool,
    prm: bool,
) -> dict[str, Any]:
    states = [int(x) for x in rng.integers(0, 19, 9)]
    text = "".join(f"{a} + {b} = {(a + b) % 19}\n" for a, b in pairwise(states))
    answer = "7" if is_right else "12"
    text += f"The answer is \\boxed{{{answer}}}."
    if problem == 1 and sample == 0:
        text += HOSTILE
    ids = [*tokenizer.encode(text).ids, tokenizer.token_to_id(EOS)]
    n = len(ids)
    floats = lambda scale, shift=0.0: [float(x) for x in rng.normal(shift, scale, n)]  # noqa: E731
    is_kept = filter_status == "kept"
    rewards = None
    if is_kept and prm:
        # In step 2 the PRM is mistaken in every other response.
        is_paid = is_right != (step == 2 and sample >= 2)
        rewards = [0.0] * n if step == 1 else floats(0.03, 0.012 if is_paid else -0.012)
    verdict = "undecided" if filter_status == "undecided" else "correct" if is_right else "wrong"
    return {
        "step": step,
        "problem_id": f"chain-{problem:03d}",
        "source": "chain",
        "sample": sample,
        "weight_version": step - 1,
        "prompt": "4+7*3-2+8*5=",
        "response": text,
        "response_ids": ids,
        "finish_reason": "stop",
        "outcome": None if verdict == "undecided" else float(is_right),
        "verdict": verdict,
        "reason": {"correct": "equal", "wrong": "different value", "undecided": "worker lost"}[verdict],
        "answer": None if verdict == "undecided" else answer,
        "gold": "7",
        "filter_status": filter_status,
        "step_ends": [i for i, char in enumerate(text) if char == "\n"] + [n - 1],
        "sampler_logprobs": [-abs(x) for x in floats(0.3)],
        "old_logprobs": [-abs(x) for x in floats(0.3)] if is_kept else None,
        "entropies": [abs(x) for x in floats(0.4)] if is_kept else None,
        "prm_logprobs": [-abs(x) for x in floats(0.3)] if is_kept and prm else None,
        "ref_logprobs": [-abs(x) for x in floats(0.3)] if is_kept and prm else None,
        "process_rewards": rewards,
        "advantages": floats(1.0, 0.4 if is_right else -0.4) if is_kept else None,
    }


_FLOATS = pa.list_(pa.float32())
_SCHEMA = pa.schema(
    [
        *((name, pa.int32()) for name in ("step", "sample", "weight_version")),
        *((name, pa.string()) for name in ("problem_id", "source", "prompt", "response", "finish_reason")),
        *((name, pa.string()) for name in ("verdict", "reason", "answer", "gold", "filter_status")),
        *((name, pa.list_(pa.int32())) for name in ("response_ids", "step_ends")),
        ("outcome", pa.float32()),
        *((name, _FLOATS) for name in ("sampler_logprobs", "old_logprobs", "entropies", "prm_logprobs")),
        *((name, _FLOATS) for name in ("ref_logprobs", "process_rewards", "advantages")),
    ]
)


def _write_summary(folder: Path, steps: int, prm: bool, rng: np.random.Generator) -> None:
    score = lambda mean, half: {"mean": mean, "low": mean - half, "high": mean + half, "n": 500}  # noqa: E731
    summary = {
        "accuracy": {
            "before": {
                "greedy": score(0.214, 0.035),
                "sampled": score(0.181, 0.028),
                "pass_at": {"1": score(0.181, 0.028), "4": score(0.402, 0.04)},
                "undecided": 0,
            },
            "after": {
                "greedy": score(0.764, 0.037),
                "sampled": score(0.731, 0.031),
                "pass_at": {"1": score(0.731, 0.031), "4": score(0.842, 0.032)},
                "undecided": 0,
            },
        },
        "steps": steps,
        "seconds": 1.3 * steps,
        "tokens": {"sampled": 7000 * steps, "trained": 4200 * steps},
        "versions": {"priml": "0.1.0", "torch": "2.13.0"},
        "seed": 3,
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def _write_tokenizer(folder: Path, steps: int, prm: bool, rng: np.random.Generator) -> None:
    (folder / "tokenizer").mkdir()
    character_tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
