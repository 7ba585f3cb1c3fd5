"""Where does a step's time go on 8, 64 and 512 GPUs, and what could overlap? The arithmetic of `priml plan`, no machine.

Two models in the paper's main run (256 prompts x 4, 3072 tokens, four optimizer steps), H100s in nodes of eight:

    strong   the paper's batch on every machine, as far as it divides
    weak     prompts and mini-batches grow with the machine, 32 prompts a GPU

Samplers are paged engines with recorded graphs, weights are fully sharded (FSDP2) over all GPUs, and phases follow one
another as in the loop. For each row: seconds per phase, seconds waiting for the wire with nothing to compute, bytes moved
per GPU, memory per GPU, and three bounds on the step: as it is; with sampling and training overlapped on the same GPUs'
time (the longer of the two decides); and with the wire free. Everything is an estimate from stated peaks (`assumptions`);
nothing here was measured.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from transformers import AutoConfig

from common import arguments, write_results
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.models.facts import model_facts
from priml.plan.batch import Lengths, expected_share, plan_batch
from priml.plan.job import Job, Model, training_shape
from priml.plan.machine import ENGINES, PRESETS, Machine
from priml.plan.plan import Plan, make_plan

ENGINE = ENGINES["vllm"]
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
PROMPT, RESPONSE = 256.0, 1435.0
"""Mean tokens: an assumption for prompts; for responses what a user of the authors' program logged in step 3."""


def main() -> None:
    """Plan every size, and write the JSON."""
    options = arguments(__doc__).parse_args()
    sizes = {"7b": SHAPES["7b"]} if options.quick else SHAPES
    rows = [
        row_of(name, scaling, plan)
        for name, shape in sizes.items()
        for scaling in ("strong", "weak")
        for plan in plans(name, shape, scaling, (8, 64) if options.quick else (8, 64, 512))
    ]
    show(rows)
    headline = {
        f"{row['model']} {row['scaling']} {row['gpus']}": {
            "step_s": row["step_s"],
            "longest": row["longest"],
            "tokens_per_gpu_s": row["tokens_per_gpu_s"],
        }
        for row in rows
        if row["fits"] and not row["refused"]
    }
    machine = Machine(PRESETS["h100"], per_node=8)
    assumed = {
        "device": asdict(machine.device),
        "reached": asdict(machine.reached),
        "engine": asdict(ENGINE),
        "prompt_tokens": PROMPT,
        "response_tokens": RESPONSE,
        "pass_rate": rows[0]["pass_rate"],
    }
    write_results(options.out, "scale_model", rows=rows, headline={"assumptions": assumed, "steps": headline})


def plans(name: str, shape: dict[str, Any], scaling: str, gpus: tuple[int, ...]) -> list[Plan]:
    """One plan per machine; the model is traced once, on the smallest, where micro-batches are largest."""
    facts, found = None, []
    for count in gpus:
        machine = Machine(PRESETS["h100"], per_node=8, nodes=count // 8)
        cfg = settings(scaling, count)
        lengths = Lengths(PROMPT, RESPONSE, cfg.data.prompt.max_prompt_tokens, cfg.sampling.max_new_tokens)
        if facts is None:
            config = AutoConfig.for_model("qwen2", **shape)
            facts = model_facts(name, config, training_shape(cfg, lengths, "bf16", machine))
        roles = (("policy", True), ("PRM", True), ("reference", False))
        models = tuple(Model(role, facts, is_trained) for role, is_trained in roles)
        batch = plan_batch(cfg, lengths, expected_share(cfg), machine.ranks)
        found.append(make_plan(Job(cfg, models, lengths, batch, machine, "bf16"), ENGINE))
    return found


def settings(scaling: str, gpus: int) -> TrainConfig:
    """The paper's, or those of a machine's size; the first round already draws what the filter will ask for."""
    factor = 1 if scaling == "strong" else gpus // 8
    tree = {
        "run_dir": "unused",
        "policy": {"model": "unused", "gradient_checkpointing": True, "mini_batch": 256 * factor},
        "prm": {"mini_batch": 256 * factor},
        "batch": {"prompts": 256 * factor, "draw": 432 * factor},
        "data": {"train": {"kind": "file", "path": "unused.parquet"}},
    }
    return parse_config(TrainConfig, tree, where="scale model")


def row_of(name: str, scaling: str, plan: Plan) -> dict[str, Any]:
    """What one machine does in a step."""
    job, time = plan.job, plan.time
    sampling = sum(span.seconds for span in time.spans if span.name == "sample")
    compute_only = sum(span.compute for span in time.spans)
    return {
        "model": name,
        "scaling": scaling,
        "gpus": job.machine.ranks,
        "responses": job.batch.responses,
        "pass_rate": job.batch.collection.share,
        "refused": list(plan.refusals),
        "step_s": round(time.seconds, 2),
        "longest": time.longest.name,
        "waits_for": time.longest.limit,
        "phases_s": {span.name: round(span.seconds, 2) for span in time.spans},
        "waiting_for_wire_s": round(sum(span.exposed for span in time.spans), 2),
        "moved_gb_per_gpu": round(time.moved / 1e9, 1),
        "step_overlapped_s": round(max(sampling, time.seconds - sampling), 2),
        "step_free_wire_s": round(compute_only, 2),
        "tokens_per_gpu_s": round(job.batch.sampled * job.lengths.response / time.seconds / job.machine.ranks, 1),
        "memory_gib": round(plan.memory.peak.total / 2**30, 1),
        "fits": plan.memory.fits,
        "tensor_parallel": plan.memory.tensor_parallel,
        "rows_at_once": plan.memory.rows_at_once,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A table for people."""
    names = list(rows[0]["phases_s"])
    print(f"{'':>4} {'':>6} {'GPUs':>4} {'step':>7} " + " ".join(f"{name:>19}" for name in names) + "  wire    GiB")
    for row in rows:
        phases = " ".join(f"{row['phases_s'][name]:19.1f}" for name in names)
        print(
            f"{row['model']:>4} {row['scaling']:>6} {row['gpus']:4} {row['step_s']:7.1f} {phases} "
            f"{row['waiting_for_wire_s']:5.1f} {row['memory_gib']:6.1f}  "
            + ("" if row["fits"] else "does not fit ")
            + ("refused" if row["refused"] else "")
        )


if __name__ == "__main__":
    main()
