"""Processes of a process group, each running the roles of one tiny run on its share of the rows."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

JOIN_S = 600


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(size: int, task: dict[str, Any]) -> list[subprocess.CompletedProcess[str]]:
    """So many processes that work on a task (see `main`) together; raises when one of them fails."""
    task = task | {"size": size, "address": f"tcp://127.0.0.1:{free_port()}"}
    places = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps(task | {"rank": rank})],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    done = [
        subprocess.CompletedProcess(process.args, process.wait(), process.communicate(timeout=JOIN_S)[0])
        for process in running
    ]
    failed = [process.stdout for process in done if process.returncode]
    if failed:
        raise AssertionError("\n".join(failed))
    return done


def groups_batch(*, step: int, groups: int = 5, size: int = 3, seed: int = 0) -> Any:
    """Scattered groups of mixed outcomes, prompts of 1 to 6 and responses of 1 to 9 tokens."""
    import torch

    from priml.batch import Row, collate

    generator = torch.Generator().manual_seed(seed + step)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    def ids(count: int) -> list[int]:
        return torch.randint(3, 100, (count,), generator=generator).tolist()

    prompts = [ids(integer(1, 7)) for _ in range(groups)]
    rows = [
        Row(prompts[g], ids(length), outcome=float((g + sample) % 2), group=g, step_ends=(length - 1,))
        for sample in range(size)
        for g in range(groups)
        for length in [integer(1, 10)]
    ]
    return collate(rows, step=step)


@contextmanager
def watched(most: list[int]) -> Iterator[None]:
    """Note the most bytes of whole weights that this process holds when something is sharded."""
    import torch

    from priml.distributed import fsdp

    original = fsdp.fully_shard

    def whole_weight_bytes() -> int:
        whole = [found for found in gc.get_objects() if type(found) is torch.nn.Parameter and not found.is_meta]
        return sum({p.data_ptr(): p.numel() * p.element_size() for p in whole}.values())

    def watching(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        most.append(whole_weight_bytes())
        return original(*args, **kwargs)

    fsdp.fully_shard = watching
    try:
        yield
    finally:
        fsdp.fully_shard = original


def learn(
    device: Any, model: str, folder: Path, overrides: Sequence[str], *, steps: Sequence[int] = (1, 2), resume: str = ""
) -> None:
    """Train all roles on the same batches for some steps; write what they said, their weights and a checkpoint.

    `resume` names the checkpoint to begin with.
    """
    import torch
    from safetensors.torch import save_file

    from fakes import save, tiny_config
    from priml.factories.learners import build_critic, build_policy, build_prm
    from priml.models.load import load_model, load_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"settings-{device.process_group.rank}"
    cfg = tiny_config(place, Path(model), "advantage.preset=authors", *overrides)
    tokenizer = load_tokenizer(model)
    module = device.load(load_model, model)
    assert all(parameter.is_meta == (device.process_group.rank > 0) for parameter in module.parameters())
    assert cfg.prm
    prm = build_prm(cfg, cfg.prm, module, tokenizer, device)
    policy = build_policy(cfg, module, tokenizer, device, prm=prm)
    critic = build_critic(cfg, module, tokenizer, device)
    parts = {"policy": policy, "prm": prm} | ({"critic": critic} if cfg.critic else {})
    for name, part in parts.items() if resume else ():
        part.load(Path(resume) / name)
    said: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for step in steps:
        batch = policy.score(groups_batch(step=step))
        batch = critic.estimate_values(batch) if critic else batch
        prm_report = prm.update(batch)
        rewards_BT = prm.rewards(batch).rewards_BT
        advantages_BT = rewards_BT + 0.3 * (batch.outcomes_B.unsqueeze(1) - 0.5)
        critic_report = critic.update(batch, advantages_BT) if critic else None
        batch, policy_report = policy.update(batch, advantages_BT)
        for report in (prm_report, critic_report, policy_report):
            said |= {f"{step}/{name}": value for name, value in report.metrics().items()} if report else {}
        tensors |= {f"{step}/old": batch.old_logprobs_BT, f"{step}/rewards": rewards_BT}
    said["digest"] = {name: part.digest() for name, part in parts.items()}
    for name, part in parts.items():
        (folder / "checkpoint" / name).mkdir(parents=True, exist_ok=True)
        save(part, folder / "checkpoint" / name)
        part.export(folder / name)
    if device.process_group.rank == 0:
        save_file(tensors, folder / "said.safetensors")
        (folder / "said.json").write_text(json.dumps(said))


def main(task: dict[str, Any]) -> None:
    """`task`: model, out (a folder for each arm), arms: name -> {overrides, precision, replicas, resume, steps, model,
    packing}.

    With `watched`, each rank of the arm writes the most bytes of whole weights that it held into `held-RANK.json`.
    """
    import torch

    from priml.distributed.fsdp import sharding
    from priml.distributed.process_group import TorchProcessGroup
    from priml.factories.device import DeviceSpec

    cpu = torch.device("cpu")
    process_group = TorchProcessGroup(
        rank=task["rank"], size=task["size"], address=task["address"], device=cpu, timeout_s=300
    )
    for name, arm in task["arms"].items():
        precision = arm.get("precision", "fp32")
        shard = sharding(
            ranks=process_group.size, replicas=arm.get("replicas", 1), device=cpu, precision=precision, offload=False
        )
        tokens, packing = arm.get("micro_batch_tokens", 40), arm.get("packing", "never")
        device = DeviceSpec(cpu, precision, tokens, packing, process_group=process_group, shard=shard)
        more = {key: arm[key] for key in ("resume", "steps") if key in arm}
        folder, most = Path(task["out"]) / name, [0]
        with watched(most) if arm.get("watched") else nullcontext():
            learn(device, arm.get("model", task["model"]), folder, arm.get("overrides", ()), **more)
        (folder / f"held-{process_group.rank}.json").write_text(json.dumps(max(most)))
    process_group.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
