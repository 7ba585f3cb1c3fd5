"""Where does the time of a step go on 8, 64 and 512 GPUs, and what could overlap? The arithmetic of `priml plan`.

Two models in the paper's main run (256 prompts x 4, 3072 tokens, four optimizer steps), on H100s in nodes of eight:

    strong   the paper's batch on every machine, as far as it divides
    weak     prompts and mini-batches grow with the machine, 32 prompts per GPU

It also plans the paper's own machine (8 x A800), with the seconds that the paper prints for it (Table 2 of arXiv
2502.01456v2).

Samplers are vLLM engines with recorded graphs on the devices of the ranks (one device per engine for 7B, four for 32B).
Weights are fully sharded (FSDP2) over all GPUs. Phases follow one another as in the loop. Inside a phase, network and
arithmetic overlap. A row has the seconds of every phase, the part of them that waits for the network, bytes moved and
memory per GPU. It also has two bounds: the step if the network cost nothing, and the step if sampling (which waits for
memory) overlapped perfectly with everything else (which waits for arithmetic). A plan that does not fit into memory has
no times.

Everything is estimated from stated peaks (`assumptions`). Nothing here was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import AutoConfig

from common import arguments, write_results
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.planner.batch import Lengths, expected_share, plan_batch
from priml.planner.job import Job, Model, training_shape
from priml.planner.layout import build_layout
from priml.planner.machine import LAUNCH_SECONDS, PRESETS, Machine
from priml.planner.plan import Plan, make_plan
from priml.planner.trace import model_facts

SHAPES = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "32b": {
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
SAMPLERS = {
    "7b": {"kv_cache_gib": 12.0, "tensor_parallel": 1},
    "32b": {"kv_cache_gib": 24.0, "tensor_parallel": 4, "sleep": True},
}
"""What of the engine depends on the model: those of the recipes in examples/."""
PROMPT, RESPONSE = 256.0, 1435.0
"""Mean tokens: an assumption for prompts; for responses what a user of the authors' program logged in step 3."""


PUBLISHED_S = {"step": 680.3, "sample": 281.7, "policy": 156.6, "PRM": 150.9, "other": 91.1}
"""The paper's seconds on 8 A800, with parameters, gradients and optimizer offloaded to the processor's memory."""


def main() -> None:
    """Plan every size, and write the JSON."""
    options = arguments(__doc__).parse_args()
    sizes = {"7b": SHAPES["7b"]} if options.quick else SHAPES
    machines = [
        Machine(PRESETS["h100"], per_node=8, nodes=nodes) for nodes in ((1, 8) if options.quick else (1, 8, 64))
    ]
    rows = [
        make_row(name, scaling, plan)
        for name, shape in sizes.items()
        for scaling in ("strong", "weak")
        for plan in plans(name, shape, scaling, machines)
    ]
    show(rows)
    paper = against_the_paper()
    print(f"the paper's machine, estimated and published: {paper}")
    headline = {
        f"{row['model']} {row['scaling']} {row['gpus']}": {
            "step_s": row["step_s"],
            "longest": row["longest"],
            "tokens_per_gpu_s": row["tokens_per_gpu_s"],
        }
        for row in rows
        if row["fits"] and not row["refused"]
    }
    assumed = {
        "device": asdict(machines[0].device),
        "reached": asdict(machines[0].reached),
        "layer_seconds": LAUNCH_SECONDS["graphs"],
        "samplers": SAMPLERS,
        "prompt_tokens": PROMPT,
        "response_tokens": RESPONSE,
        "pass_rate": rows[0]["pass_rate"],
    }
    write_results(options.out, "scale_model", rows=[*rows, paper], headline={"assumptions": assumed, "steps": headline})


def against_the_paper() -> dict[str, Any]:
    """The main run on the machine of the paper, phase by phase."""
    machine = Machine(PRESETS["a800"], per_node=8)
    [plan] = plans("7b", SHAPES["7b"], "strong", [machine])
    seconds = {span.name: span.seconds for span in plan.time.spans}
    estimated = {
        "step": plan.time.seconds,
        "sample": seconds["sample"],
        "policy": seconds["policy: learn"] + seconds["policy: score"],
        "PRM": seconds["PRM: learn"] + seconds["reference: score"],
        "other": seconds["batch, advantages, rollout file"]
        + seconds["weights: gather"]
        + seconds["weights: to samplers"],
    }
    return {
        "model": "7b",
        "machine": "8 x a800",
        "estimated_s": {name: round(value, 1) for name, value in estimated.items()},
        "published_s": PUBLISHED_S,
    }


def plans(name: str, shape: dict[str, Any], scaling: str, machines: Sequence[Machine]) -> list[Plan]:
    """One plan per machine; the model is traced once, on the smallest, where micro-batches are largest."""
    facts, found = None, []
    for machine in machines:
        cfg = settings(name, scaling, machine.devices)
        layout = build_layout(cfg)
        lengths = Lengths(PROMPT, RESPONSE, cfg.data.prompt.max_prompt_tokens, cfg.sampling.max_new_tokens)
        if facts is None:
            config = AutoConfig.for_model("qwen2", **shape)
            facts = model_facts(name, config, training_shape(cfg, lengths, "bf16", layout))
        roles = (("policy", True), ("PRM", True), ("reference", False))
        models = tuple(Model(role, facts, is_trained) for role, is_trained in roles)
        batch = plan_batch(cfg, lengths, expected_share(cfg), layout.ranks)
        found.append(make_plan(Job(cfg, models, lengths, batch, machine, layout, "bf16")))
    return found


def settings(name: str, scaling: str, gpus: int) -> TrainConfig:
    """The paper's, or those of a machine's size; the first round already draws what the filter will ask for."""
    factor = 1 if scaling == "strong" else gpus // 8
    tree = {
        "run_dir": "unused",
        "policy": {"model": "unused", "gradient_checkpointing": True, "mini_batch": 256 * factor},
        "prm": {"mini_batch": 256 * factor},
        "advantage": {"preset": "authors"},
        "batch": {"prompts": 256 * factor, "draw": 432 * factor},
        "data": {"train": {"kind": "file", "path": "unused.parquet"}},
        "sampler": {"kind": "vllm", "enforce_eager": False, **SAMPLERS[name]},
        "backend": {"kind": "ray", "ranks": gpus, "samplers": gpus // SAMPLERS[name]["tensor_parallel"]},
    }
    return parse_config(TrainConfig, tree, where="scale model")


def make_row(name: str, scaling: str, plan: Plan) -> dict[str, Any]:
    """What one machine does in a step."""
    job = plan.job
    row = {
        "model": name,
        "scaling": scaling,
        "gpus": job.machine.devices,
        "responses": job.batch.responses,
        "pass_rate": job.batch.collection.share,
        "refused": list(plan.refusals),
        "memory_gib": round(plan.memory.peak.total / 2**30, 1),
        "fits": plan.memory.fits,
        "tensor_parallel": job.layout.tensor_parallel,
        "rows_at_once": plan.memory.rows_at_once,
    }
    return row | (phase_times(plan) if plan.memory.fits else {})


def phase_times(plan: Plan) -> dict[str, Any]:
    """Seconds of a step, and of its parts."""
    job, time = plan.job, plan.time
    sampling = sum(span.seconds for span in time.spans if span.name == "sample")
    return {
        "step_s": round(time.seconds, 1),
        "longest": time.longest.name,
        "waits_for": time.longest.limit,
        "phases_s": {span.name: round(span.seconds, 2) for span in time.spans},
        "waiting_for_wire_s": round(sum(span.exposed for span in time.spans), 2),
        "moved_gb_per_gpu": round(time.moved / 1e9, 1),
        "step_overlapped_s": round(max(sampling, time.seconds - sampling), 1),
        "step_free_wire_s": round(sum(max(span.compute, span.host) for span in time.spans), 1),
        "tokens_per_gpu_s": round(job.batch.sampled * job.lengths.response / time.seconds / job.machine.devices, 1),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A table for people."""
    for row in rows:
        if row["fits"]:
            phases = "  ".join(f"{name} {seconds:.1f}" for name, seconds in row["phases_s"].items())
            said = f"step {row['step_s']:.1f} s: {phases}; waiting for the wire {row['waiting_for_wire_s']:.1f}"
        else:
            said = "does not fit"
        refused = "; REFUSED" if row["refused"] else ""
        print(f"{row['model']} {row['scaling']} {row['gpus']} GPUs, {row['memory_gib']} GiB: {said}{refused}")


if __name__ == "__main__":
    main()
