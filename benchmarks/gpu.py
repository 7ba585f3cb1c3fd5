"""Everything that can only be measured on a GPU, in a few minutes and one command.

    python benchmarks/gpu.py --minutes 8 --out benchmarks/results/gpu/DATE.json

It needs torch, transformers and the core dependencies of priml. It needs no Ray, no vLLM and no network. If the
checkout is not installed, put `src` on PYTHONPATH. Without a GPU every part runs on the CPU. `--quick` runs all parts
at toy size, in this process except for the first.

Each part runs in its own process with a time limit. A part that fails, hangs or runs out of memory loses only itself.
The JSON is written again after each part. The parts, in order:

    devices     versions, the device, and the rates that it reaches: bf16 matrix products, copies
    fsdp        one FSDP2 rank over NCCL (gloo on a CPU): scores and an update, against one process
    head        log-probs and their gradient: the chunked head against whole logits, time and memory
    learn       scoring and policy update at the shapes of Qwen2.5 0.5B and 1.5B, random weights: tokens/s and MFU
    sample      tokens/s of the sampler at those shapes
    price       what PRIME adds to a step, in forward passes over the kept responses
    plan        the memory that `priml plan` states, against the memory that a step takes
    tests       the tests marked `gpu`
    quickstart  examples/laptop-math: warm start, PRIME, evaluation, in bf16 on a GPU
    profile     a trace of one policy update for chrome://tracing or Perfetto, and its most expensive operations

MFU (model FLOP/s utilisation) counts matrix products once: 2 operations for each weight and token, and three times that
for an update. It does not count what is computed again. It has three conventions of attention: `without` it, `causal`
(a token attends to half of the row on average), `full` (to all of it, as in PaLM, arXiv 2204.02311).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
PROMPT_GROUP = 8


@dataclass(frozen=True)
class Shape:
    """A Qwen2 architecture and how much of it is measured."""

    name: str
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def config(self) -> Qwen2Config:
        """As published, but for the weights."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )

    def flops(self, tokens: int, predicted: int, length: float) -> dict[str, float]:
        """Of one forward pass, by convention of attention; `predicted` tokens go through the head."""
        square = 2 * self.width**2 + 2 * self.width**2 * self.kv_heads / self.heads
        body = self.layers * (square + 3 * self.width * self.hidden)
        plain = 2.0 * body * tokens + 2.0 * self.width * self.vocabulary * predicted
        full = 4.0 * self.width * self.layers * tokens * length
        return {"without": plain, "causal": plain + full / 2, "full": plain + full}


@dataclass(frozen=True)
class Size:
    """How large the parts are."""

    shapes: tuple[Shape, ...]
    prompts: int
    """Of eight responses each, where something is learnt or scored."""
    prompt_tokens: int
    response_tokens: int
    micro_batch_tokens: int
    sampled_rows: tuple[int, ...]
    sampled_tokens: int
    head_tokens: int
    matrix: int
    copied: int
    """Bytes."""
    repeats: int


FULL = Size(
    shapes=(
        Shape("Qwen2.5-0.5B", 896, 4864, 24, 14, 2, 151936),
        Shape("Qwen2.5-1.5B", 1536, 8960, 28, 12, 2, 151936),
    ),
    prompts=8,
    prompt_tokens=256,
    response_tokens=768,
    micro_batch_tokens=16384,
    sampled_rows=(64, 256),
    sampled_tokens=256,
    head_tokens=4096,
    matrix=8192,
    copied=2**31,
    repeats=3,
)
TOY = Size(
    shapes=(Shape("toy", 64, 128, 2, 4, 2, 512),),
    prompts=2,
    prompt_tokens=8,
    response_tokens=16,
    micro_batch_tokens=256,
    sampled_rows=(16,),
    sampled_tokens=8,
    head_tokens=64,
    matrix=128,
    copied=2**20,
    repeats=1,
)


# --- the parts ---------------------------------------------------------------------------------------------------


def part_devices(size: Size, device: torch.device, out: Path) -> dict[str, Any]:
    """What is here, and the rates that it reaches."""
    a, b = (torch.randn(size.matrix, size.matrix, device=device, dtype=torch.bfloat16) for _ in range(2))
    product_s = time_it(lambda: a @ b, device, repeats=5)
    bytes_ = torch.empty(size.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(bytes_)
    copy_s = time_it(lambda: target.copy_(bytes_), device, repeats=5)
    found: dict[str, Any] = {
        "bf16_tflops": 2 * size.matrix**3 / product_s / 1e12,
        "copy_gb_s": 2 * size.copied / copy_s / 1e9,
        "sdpa": {
            name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")()
            for name in ("flash", "mem_efficient", "math", "cudnn")
        },
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "memory_gib": properties.total_memory / 2**30,
            "capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": list(torch.cuda.nccl.version()),
        }
    return found


def part_fsdp(size: Size, device: torch.device, out: Path) -> dict[str, Any]:
    """One rank of FSDP2 beside one process, both in fp32: the same scores, the same update."""
    from priml.distributed.fsdp import sharding
    from priml.distributed.process_group import TorchProcessGroup

    shape = replace(size.shapes[0], layers=2)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    group = TorchProcessGroup(rank=0, size=1, address=address, device=device, timeout_s=60)
    try:
        scores: list[Tensor] = []
        seconds: dict[str, float] = {}
        for name in ("one process", "fsdp"):
            bench = Bench.of(shape, size, device, precision="fp32")
            if name == "fsdp":
                shard = sharding(ranks=1, replicas=1, device=device, precision="fp32", offload=False)
                bench = replace(bench, spec=replace(bench.spec, process_group=group, shard=shard))
            policy, batch = bench.policy(), bench.batch()
            batch = policy.score(batch)
            advantages_BT = torch.ones(batch.mask_BT.shape)
            policy.update(batch, advantages_BT)
            seconds[name] = time_it(lambda p=policy, b=batch: p.score(b), device, repeats=size.repeats)
            scores += [batch.old_logprobs_BT, policy.score(batch).old_logprobs_BT]
    finally:
        group.close()
    before, after = (float((scores[i + 2] - scores[i]).abs().max()) for i in (0, 1))
    moved = float((scores[1] - scores[0]).abs().max())
    return {"logprob_difference": before, "after_an_update": after, "moved_by_it": moved, "score_s": seconds}


def part_head(size: Size, device: torch.device, out: Path) -> dict[str, Any]:
    """Log-probs, entropies and all gradients of tokens from hidden states, chunked and materialised."""
    from priml.maths.logprobs import token_logprobs

    shape, tokens = size.shapes[0], size.head_tokens
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(tokens, shape.width, generator=generator).to(device).requires_grad_()
    weight_VD = (torch.randn(shape.vocabulary, shape.width, generator=generator) * 0.02).to(device).requires_grad_()
    targets_N = torch.randint(shape.vocabulary, (tokens,), generator=generator).to(device)

    def materialised() -> tuple[Tensor, Tensor]:
        logprobs_NV = nn.functional.linear(hidden_ND, weight_VD).float().log_softmax(-1)
        logprobs_N = logprobs_NV.gather(1, targets_N[:, None]).squeeze(1)
        return logprobs_N, -(logprobs_NV.exp() * logprobs_NV).sum(-1)

    def with_gradients(make: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
        hidden_ND.grad = weight_VD.grad = None
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logprobs_N, entropies_N = make()
        (logprobs_N.sum() + 0.01 * entropies_N.sum()).backward()
        return logprobs_N.detach()

    makes = {"chunked": lambda: token_logprobs(hidden_ND, weight_VD, targets_N), "materialised": materialised}
    result: dict[str, Any] = {"tokens": tokens, "vocabulary": shape.vocabulary}
    logprobs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    for name, make in makes.items():
        logprobs[name] = with_gradients(make)
        assert hidden_ND.grad is not None
        gradients[name] = hidden_ND.grad.clone()
        result[name] = {
            "seconds": time_it(lambda m=make: with_gradients(m), device, repeats=size.repeats),
            "added_mib": added_by(lambda m=make: with_gradients(m), device) / 2**20,
        }
    result["times_faster"] = result["materialised"]["seconds"] / result["chunked"]["seconds"]
    result["share_of_memory"] = result["chunked"]["added_mib"] / result["materialised"]["added_mib"]
    result["logprob_difference"] = float((logprobs["chunked"] - logprobs["materialised"]).abs().max())
    gap = (gradients["chunked"] - gradients["materialised"]).norm() / gradients["materialised"].norm()
    result["gradient_difference"] = float(gap)
    return result


def part_learn(size: Size, device: torch.device, out: Path) -> dict[str, Any]:
    """Scoring (a forward pass) and policy update of whole batches."""
    return {shape.name: _learn(shape, size, device) for shape in size.shapes}


def _learn(shape: Shape, size: Size, device: torch.device) -> dict[str, Any]:
    bench = Bench.of(shape, size, device)
    policy, batch = bench.policy(), bench.batch()
    batch = policy.score(batch)
    advantages_BT = torch.randn(batch.mask_BT.shape)
    length = size.prompt_tokens + size.response_tokens
    tokens, predicted = len(batch) * length, int(batch.response_lengths_B.sum())
    passes = {"score": lambda: policy.score(batch), "update": lambda: policy.update(batch, advantages_BT)}
    result: dict[str, Any] = {"tokens": tokens, "row": length, "precision": bench.spec.precision}
    for name, work in passes.items():
        seconds = time_it(work, device, repeats=size.repeats)
        once = shape.flops(tokens, predicted, length)
        rates = {kind: flops * (3 if name == "update" else 1) / seconds for kind, flops in once.items()}
        result[name] = {"seconds": seconds, "tokens_per_s": tokens / seconds}
        result[name]["tflops"] = {kind: rate / 1e12 for kind, rate in rates.items()}
        peak = stated_peak(device)
        result[name]["mfu"] = peak and {kind: rate / (peak * 1e12) for kind, rate in rates.items()}
    result["peak_gib"] = peak_gib(device)
    return result


def part_sample(size: Size, device: torch.device, out: Path) -> dict[str, Any]:
    """Tokens a second of the sampler in this package, which records no CUDA graphs."""
    from priml.rollout.base import SamplingSpec

    result: dict[str, Any] = {"cuda_graphs": False}
    for shape in size.shapes:
        bench = Bench.of(shape, size, device)
        sampler = bench.sampler()
        for rows in size.sampled_rows:
            prompts = bench.prompts(rows // PROMPT_GROUP)
            spec = SamplingSpec(PROMPT_GROUP, 1.0, size.sampled_tokens, seed=0, step=0)
            sampler.sample(prompts[:1], replace(spec, max_new_tokens=4))
            began = time.perf_counter()
            groups = sampler.sample(prompts, spec)
            synchronise(device)
            seconds = time.perf_counter() - began
            tokens = sum(len(c.token_ids) for group in groups for c in group.trajectories)
            result[f"{shape.name}, {rows} rows"] = {
                "tokens": tokens,
                "tokens_per_s": tokens / seconds,
                "steps_per_s": size.sampled_tokens / seconds,
                "prompt_tokens": size.prompt_tokens,
                "precision": bench.spec.precision,
            }
    return result


def part_price(size: Size, device: torch.device, out: Path) -> dict[str, Any]:
    """Seconds of PRM update and rewards, over those of as many forward passes as PRIME cannot do without."""
    bench = Bench.of(size.shapes[0], size, device)
    scorer = bench.policy()
    batch = scorer.score(bench.batch())
    forward_s = time_it(lambda: scorer.score(batch), device, repeats=size.repeats)
    result: dict[str, Any] = {"forward_s": forward_s}
    for forward, passes in {"single": 4, "double": 5}.items():
        prm = bench.prm(forward)
        added_s = time_it(lambda p=prm: (p.update(batch), p.rewards(batch)), device, repeats=size.repeats)
        result[forward] = {"added_s": added_s, "passes": passes, "price": added_s / (passes * forward_s)}
    return result


def part_plan(size: Size, device: torch.device, out: Path) -> dict[str, Any]:
    """What each phase of a step adds to the memory, and what `priml plan` says of it, in MiB."""
    from priml.commands.plan import PlanOptions, run_plan
    from priml.rollout.base import SamplingSpec

    bench = Bench.of(size.shapes[0], size, device)
    shape_file = out.parent / "config.json"
    shape_file.write_text(json.dumps(bench.shape.config.to_dict()))
    on_gpu = device.type == "cuda"
    options = PlanOptions(
        gpus=1 if on_gpu else None, device=preset(device) if on_gpu else None, model_config=shape_file
    )
    phases = {p.name: p for p in run_plan(bench.cfg, options, settings=out.parent / "train.yaml")[0].memory.phases}
    prm, policy, sampler = bench.prm("single"), bench.policy(), bench.sampler()
    batch = policy.score(bench.batch())
    advantages_BT = torch.randn(batch.mask_BT.shape)
    spec = SamplingSpec(PROMPT_GROUP, 1.0, size.response_tokens, seed=0, step=0)
    works: dict[str, Callable[[], object]] = {  # these updates take the whole batch, so none scores it first
        "PRM: learn": lambda: prm.update(batch),
        "policy: learn": lambda: policy.update(batch, advantages_BT),
        "sample: write": lambda: sampler.sample(bench.prompts(size.prompts), spec),
    }
    prm.update(batch)  # from here on the optimizers have their state
    policy.update(batch, advantages_BT)
    result: dict[str, Any] = {}
    for name, work in works.items():
        planned = (phases[name].total - phases[name].standing) / 2**20
        measured = added_by(work, device) / 2**20
        result[name] = {"planned_mib": planned, "measured_mib": measured, "ratio": planned / measured}
    return result


def part_tests(size: Size, device: torch.device, out: Path) -> dict[str, Any]:
    """The tests marked `gpu`. Without a GPU they skip themselves."""
    report = out.parent / "tests.xml"
    options = ["-q", "-m", "gpu", "-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", str(ROOT / "tests" / "gpu")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not report.exists():
        raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        counts = {name: count + int(suite.get(name, 0)) for name, count in counts.items()}
    bad = [case for case in ElementTree.parse(report).getroot().iter("testcase") if len(case) and case[0].tag in FAILED]
    return counts | {"failed": {str(case.get("name")): str(case[0].get("message"))[:500] for case in bad}}


FAILED = ("failure", "error")


def part_quickstart(size: Size, device: torch.device, out: Path) -> dict[str, Any]:
    """The files of examples/laptop-math on this device."""
    from priml.cli.main import main as priml

    example, run = ROOT / "examples" / "laptop-math", out.parent / "quickstart"
    precision = "bf16" if device.type == "cuda" else "auto"
    backend = json.dumps({"device": device.type, "precision": precision, "micro_batch_tokens": 65536})
    toy = size is TOY
    sft_sizes = ["data.count=320"] if toy else []
    train_sizes = ["steps=1", "batch.prompts=4", "filter=null", "data.train.count=16", "evaluate.data.count=8"]
    seconds = {}
    for command, file, settings in (
        ("sft", "sft.yaml", [f"run_dir={run / 'sft'}", *sft_sizes]),
        ("train", "train.yaml", [f"run_dir={run}", f"policy.model={run / 'sft' / 'model'}", *(train_sizes * toy)]),
    ):
        began = time.perf_counter()
        code = priml([command, str(example / file), f"backend={backend}", *settings])
        if code:
            raise RuntimeError(f"priml {command} ended with {code}")
        seconds[command] = time.perf_counter() - began
    accuracy = json.loads((run / "summary.json").read_text())["accuracy"]
    names = ("greedy", "sampled")
    return {"seconds": seconds} | {
        when: {name: scores[name]["mean"] for name in names if name in scores} for when, scores in accuracy.items()
    }


def part_profile(size: Size, device: torch.device, out: Path) -> dict[str, Any]:
    """Where the time of a policy update goes."""
    bench = Bench.of(size.shapes[0], size, device)
    policy, batch = bench.policy(), bench.batch()
    batch = policy.score(batch)
    advantages_BT = torch.randn(batch.mask_BT.shape)
    policy.update(batch, advantages_BT)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        policy.update(batch, advantages_BT)
        synchronise(device)
    profiler.export_chrome_trace(str(out.parent / "trace.json.gz"))
    key = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))[:15]
    total = sum(getattr(event, key) for event in profiler.key_averages())
    return {event.key[:80]: {"share": getattr(event, key) / total, "calls": event.count} for event in events}


PARTS: dict[str, tuple[Callable[[Size, torch.device, Path], dict[str, Any]], float]] = {
    "devices": (part_devices, 60),
    "fsdp": (part_fsdp, 60),
    "head": (part_head, 60),
    "learn": (part_learn, 120),
    "sample": (part_sample, 120),
    "price": (part_price, 90),
    "plan": (part_plan, 120),
    "tests": (part_tests, 90),
    "quickstart": (part_quickstart, 240),
    "profile": (part_profile, 60),
}
"""Each with the seconds after which it is given up."""


# --- what parts share --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """A model of random weights on the device, and the roles around it."""

    shape: Shape
    size: Size
    spec: Any
    cfg: Any
    tokenizer: Any

    @classmethod
    def of(cls, shape: Shape, size: Size, device: torch.device, precision: str = "bf16") -> Bench:
        """For this shape: settings as a user would write them."""
        from priml.config.load import parse_config
        from priml.config.train import TrainConfig
        from priml.factories.device import resolve_device
        from priml.models.tiny import character_tokenizer

        settings = {
            "run_dir": "unused",
            "policy": {"model": shape.name, "mini_batch": None, "export_dtype": "float32"},  # no such folder
            "prm": {"mini_batch": None},
            "advantage": {"preset": "authors"},  # PRIME as published
            "sampling": {"group_size": PROMPT_GROUP, "max_new_tokens": size.response_tokens},
            "batch": {"prompts": size.prompts},
            "filter": None,
            "data": {"train": {"kind": "chain"}, "prompt": {"max_prompt_tokens": size.prompt_tokens}},
            "backend": {"device": device.type, "precision": precision, "micro_batch_tokens": size.micro_batch_tokens},
        }
        cfg = parse_config(TrainConfig, settings, where="benchmark")
        return cls(shape, size, resolve_device(cfg.backend), cfg, character_tokenizer())

    def module(self) -> nn.Module:
        """The model, in fp32 as it is trained."""
        torch.manual_seed(0)
        with self.spec.device:
            module = Qwen2ForCausalLM(self.shape.config).float().eval()
        module.generation_config.eos_token_id = None  # pyright: ignore[reportOptionalMemberAccess]
        return module

    def policy(self) -> Any:
        """A policy of its own."""
        from priml.factories.learners import build_policy

        made = build_policy(self.cfg, self.module(), self.tokenizer, self.spec)
        made.scores_in_update = False  # to measure scoring by itself
        return made

    def prm(self, forward: str) -> Any:
        """A PRM and its reference."""
        from priml.factories.learners import build_prm

        settings = self.cfg.prm.model_copy(update={"forward": forward})
        return build_prm(self.cfg, settings, self.module(), self.tokenizer, self.spec)

    def sampler(self) -> Any:
        """The sampler in this package. No token ends a response, so that every row is as long as it may be."""
        from priml.factories.rollout import build_sampler

        longest = self.size.prompt_tokens + self.size.response_tokens
        endless = SimpleNamespace(eos_token_id=-1, decode=self.tokenizer.decode)
        return build_sampler(self.cfg.sampler, self.module(), endless, self.spec, longest=longest)  # pyright: ignore

    def prompts(self, count: int) -> list[Any]:
        """Made-up prompts of full length."""
        from priml.types import Problem, Prompt

        ids = self._ids(count, self.size.prompt_tokens)
        return [Prompt(Problem(id=str(i), prompt="", answer=""), "", tuple(row)) for i, row in enumerate(ids)]

    def batch(self) -> Any:
        """Prompts and responses at their limits, half of them right."""
        from priml.batch import Row, collate

        count = self.size.prompts * PROMPT_GROUP
        prompts, responses = self._ids(count, self.size.prompt_tokens), self._ids(count, self.size.response_tokens)
        last = self.size.response_tokens - 1
        rows = [
            Row(prompt, response, outcome=float(i % 2), group=i // PROMPT_GROUP, step_ends=[last])
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        return collate(rows, step=1)

    def _ids(self, rows: int, tokens: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(tokens)
        return torch.randint(3, self.shape.vocabulary, (rows, tokens), generator=generator).tolist()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_it(work: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """Median wall seconds, after a first time that warms up."""
    taken = []
    for _ in range(repeats + 1):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def added_by(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes beyond those at the start, as the allocator counts them."""
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def peak_gib(device: torch.device) -> float | None:
    """The most memory of the device so far."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def preset(device: torch.device) -> str | None:
    """The name under which `priml plan` knows the device."""
    from priml.planner.machine import PRESETS

    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower().replace(" ", "")
    return next((known for known in PRESETS if known != "cpu" and known in name), None)


def stated_peak(device: torch.device) -> float | None:
    """Dense bf16 TFLOP/s from the data sheet; None for a device that is not known."""
    from priml.planner.machine import PRESETS

    name = preset(device)
    return PRESETS[name].bf16_tflops if name else None


# --- running them ------------------------------------------------------------------------------------------------


def main() -> None:
    """All parts, each in a process; or, inside of one, that part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the JSON goes; a trace is put beside it")
    parser.add_argument("--quick", action="store_true", help="toy size, about a minute on a processor")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas; by default all")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)  # as other benchmarks have it
    args = parser.parse_args()
    if args.part:
        run_part(args.part, TOY if args.quick else FULL, args.out)
        return
    unknown = [name for name in args.parts.split(",") if name not in PARTS]
    if unknown:
        parser.error(f"--parts: found {', '.join(unknown)}; need some of {', '.join(PARTS)}")
    run_all(args.parts.split(","), args.out, quick=args.quick, minutes=args.minutes)


def run_part(name: str, size: Size, out: Path) -> None:
    """One part, in this process; what it found, or why it found nothing, as JSON."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found: dict[str, Any] = {"result": PARTS[name][0](size, device, out)}
    except Exception as error:  # the border of a part: whatever stops it is its result, and the next part runs
        found = {"error": f"{type(error).__name__}: {error}"[:2000], "traceback": traceback.format_exc()[-4000:]}
    out.write_text(json.dumps(found))


def run_all(names: Sequence[str], out: Path, *, quick: bool, minutes: float) -> None:
    """Part after part while there is time; the JSON is written after each."""
    ends = time.monotonic() + 60 * minutes
    rows: list[dict[str, Any]] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            left = ends - time.monotonic()
            result = Path(folder) / f"{name}.json"
            run = run_here if quick and name != "devices" else run_apart
            rows.append(run(name, result, quick=quick, limit_s=min(PARTS[name][1], left)))
            print(f"{name:<12}{rows[-1]['status']:<12}{rows[-1]['seconds']:6.1f} s", flush=True)
            write(out, rows)
        trace = Path(folder) / "trace.json.gz"
        if trace.exists() and not quick:
            out.with_suffix(".trace.json.gz").write_bytes(trace.read_bytes())
    print("\n" + table(rows))


def run_here(name: str, out: Path, *, quick: bool, limit_s: float) -> dict[str, Any]:
    """A part in this process, whose imports are done: at toy size they would take most of the time."""
    began = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        run_part(name, TOY if quick else FULL, out)
    return {"part": name, "seconds": round(time.monotonic() - began, 1), **outcome(out, "it left no result")}


def outcome(out: Path, otherwise: str) -> dict[str, Any]:
    """What a part wrote, and whether that is a result."""
    found = json.loads(out.read_text()) if out.exists() else {"error": otherwise}
    return {"status": "failed" if "error" in found else "done", **found}


def run_apart(name: str, out: Path, *, quick: bool, limit_s: float) -> dict[str, Any]:
    """A part in a process of its own."""
    if limit_s < 5:
        return {"part": name, "status": "no time", "seconds": 0.0}
    command = [sys.executable, __file__, "--part", name, "--out", str(out), *(["--quick"] if quick else [])]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
        otherwise = f"ended with {done.returncode}: {done.stderr[-2000:]}"
    except subprocess.TimeoutExpired:
        otherwise = f"not done after {limit_s:.0f} s"
    return {"part": name, "seconds": round(time.monotonic() - began, 1), **outcome(out, otherwise)}


def write(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The file of results so far."""
    from priml.files import write_json
    from priml.runs.manifest import versions

    on_gpu = torch.cuda.is_available()
    machine = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
    }
    headline = {row["part"]: row.get("result", row.get("error", row["status"])) for row in rows}
    write_json(out, {"name": "gpu", "versions": versions(), "machine": machine, "headline": headline, "rows": rows})


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every number with its name, part by part."""
    lines = []
    for row in rows:
        lines.append(f"{row['part']} ({row['status']}, {row['seconds']:.1f} s)")
        lines += [f"    {key:<64}  {value}" for key, value in flat(row.get("result", row.get("error", "")))]
    return "\n".join(lines)


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Leaves of nested mappings, with the way to them."""
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in flat(inner, f"{name} / {key}" if name else str(key))]
    return [(name, f"{value:.4g}" if isinstance(value, float) else str(value).splitlines()[0] if value else str(value))]


if __name__ == "__main__":
    main()
