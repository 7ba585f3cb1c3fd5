"""How many tokens per second do the samplers produce, and what does a weight sync to vLLM cost?

    transformers   the sampler in this package, with a key-value cache
    vllm           the engine, where it is installed (`make setup-vllm`, then run this with .venv-vllm/bin/python)

Both have the same random weights, prompts and lengths, and take turns in one process. Rates are medians over repeats,
ratios those of the same repeat. `push` is `Sampler.load`: sending all weights and verifying that they arrived.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from common import BACKEND, arguments, write_results
from priml.config.backend import LocalBackend
from priml.config.rollout import TransformersSampler, VllmSampler
from priml.factories.device import resolve_device
from priml.factories.rollout import build_sampler
from priml.models.tiny import character_tokenizer, tiny_model
from priml.rollout.base import SamplingSpec
from priml.types import Problem, Prompt


@dataclass(frozen=True)
class Load:
    """A model, and how much it is to say."""

    model: Mapping[str, int]
    prompts: int
    prompt_tokens: int
    group_size: int
    new_tokens: int


# Half a million weights as in `make quickstart`, and 32 million.
LOADS = {
    "small": Load({"width": 128, "layers": 2, "heads": 4}, 32, 17, 8, 32),
    "large": Load({"width": 640, "layers": 6, "heads": 10}, 8, 64, 8, 128),
}
TOY = {"toy": Load({"width": 64, "layers": 1, "heads": 2}, 4, 9, 2, 8)}


def main() -> None:
    """Run every load, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    args = parser.parse_args()
    loads, repeats = (TOY, 5) if args.quick else ({name: LOADS[name] for name in args.loads}, args.repeats)
    rows = [row for name, load in loads.items() for row in measure(name, load, repeats=repeats)]
    headline = {name: summary([row for row in rows if row["load"] == name]) for name in loads}
    write_results(args.out, "sampler_speed", rows=rows, headline=headline)


def measure(name: str, load: Load, *, repeats: int) -> Iterator[dict[str, Any]]:
    """One row per repeat and sampler."""
    tokenizer = character_tokenizer()
    module = tiny_model(tokenizer, **load.model, seed=0)
    device = resolve_device(LocalBackend.model_validate(BACKEND))
    generator = torch.Generator().manual_seed(0)
    prompts = [
        Prompt(
            problem=Problem(id=str(i), prompt="", answer=""),
            text="",
            token_ids=tuple(torch.randint(3, 100, (load.prompt_tokens,), generator=generator).tolist()),
        )
        for i in range(load.prompts)
    ]
    kinds = {"transformers": TransformersSampler()}
    if importlib.util.find_spec("vllm") is not None:
        kinds["vllm"] = VllmSampler(kind="vllm", kv_cache_gib=0.5)
    longest = load.prompt_tokens + load.new_tokens
    samplers = {
        kind: build_sampler(chosen, module, tokenizer, device, longest=longest) for kind, chosen in kinds.items()
    }
    for repeat in range(repeats + 1):
        for kind in list(samplers) if repeat % 2 else reversed(samplers):
            began = time.perf_counter()
            samplers[kind].load(module, version=repeat)
            loaded = time.perf_counter()
            groups = samplers[kind].sample(prompts, SamplingSpec(load.group_size, 1.0, load.new_tokens, 0, repeat))
            ended = time.perf_counter()
            if repeat:  # the first one warms up
                tokens = sum(len(c.token_ids) for group in groups for c in group.trajectories)
                seconds = {"push_s": round(loaded - began, 6), "sample_s": round(ended - loaded, 6)}
                yield {"load": name, "sampler": kind, "repeat": repeat, "tokens": tokens} | seconds


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians; the ratio is that of vLLM to transformers."""
    rates = {
        kind: [row["tokens"] / row["sample_s"] for row in rows if row["sampler"] == kind]
        for kind in dict.fromkeys(row["sampler"] for row in rows)
    }
    found: dict[str, Any] = {"tokens_per_s": {kind: round(statistics.median(rate)) for kind, rate in rates.items()}}
    if "vllm" in rates:
        pairs = zip(rates["vllm"], rates["transformers"], strict=True)
        found["ratio"] = round(statistics.median(ours / theirs for ours, theirs in pairs), 2)
        found["push_s"] = round(statistics.median(row["push_s"] for row in rows if row["sampler"] == "vllm"), 3)
    return found


if __name__ == "__main__":
    main()
