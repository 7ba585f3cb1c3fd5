"""The roles of a run on a Ray cluster: what each kind of actor makes of the settings, and who stands for it here.

The functions that end in `_there` run inside the actors; they call what the local backend calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from priml.backends.fsdp import sharding
from priml.backends.ray.door import Cluster, Crew
from priml.backends.ray.pools import (
    VERIFIER_THREADS,
    SamplerActor,
    SamplerPool,
    Speaker,
    VerifierActor,
    VerifierActors,
    copying_into,
)
from priml.backends.ray.ranks import (
    RankGroup,
    RemoteCritic,
    RemotePolicy,
    RemotePrm,
    Wire,
)
from priml.backends.ray.records import RecordsThere, RemoteRecords
from priml.backends.team import ProcessTeam
from priml.build.cast import Cast
from priml.build.data import Say
from priml.build.roles import (
    add_policy_adapters,
    critic_of,
    longest_of,
    place_of,
    policy_of,
    prm_of,
    sampler_of,
    step_ends_of,
    vllm_of,
)
from priml.build.verifiers import Judge, verifier_of
from priml.config import parts
from priml.config.train import TrainConfig
from priml.config.verify import Verify
from priml.models.load import check_tokens_fit, load_model, load_tokenizer
from priml.roles.base import NoCritic
from priml.roles.prm import NoPrm
from priml.rollout.push import probe_ids
from priml.train.records import LocalRecords, looked_over
from priml.types import Problem, Prompt


def cast_on_ray(
    cfg: TrainConfig, backend: parts.RayBackend, tokenizer: Any, prompts: Sequence[Prompt], say: Say
) -> Cast:
    """Start or join the cluster, start the actors, wait until all of them are ready.

    Raises:
        ConfigError: Ray is missing, or the cluster has not the room.
        UsageError: what the actors find wrong with the settings.
    """
    cluster = Cluster(_crew(cfg, backend), address=backend.address, device=backend.device)
    try:
        company = _company(cluster, cfg, backend, tokenizer, prompts, say)
        isolation = company.verifier.isolation()
        company.sampler.wait()
        facts = company.ranks.wait()
        policy = RemotePolicy(company.ranks, "policy")
        if isinstance(cfg.sampler, parts.VllmSampler):
            company.sampler.rehearse(policy.rehearsal(), apart=cfg.sampler.adapters == "apart")
    except BaseException:
        cluster.close()
        raise
    say(
        f"backend: {backend.ranks} ranks on {cluster.nodes} nodes ({facts['device']['kind']}), "
        f"{backend.samplers} samplers, {backend.verifiers} verifiers"
    )
    return Cast(
        policy=policy,
        prm=RemotePrm(company.ranks, "prm") if cfg.prm else NoPrm(),
        critic=RemoteCritic(company.ranks, "critic") if cfg.critic else NoCritic(),
        sampler=company.sampler,
        verifier=company.verifier,
        records=RemoteRecords(company.ranks),
        isolation=isolation,
        digests=facts["digests"],
        device=facts["device"],
        threads=company.verifier.size,
        idle=company.idle,
        close=company.close,
    )


@dataclass(frozen=True, slots=True)
class _Company:
    """The actors of a run."""

    cluster: Cluster
    ranks: RankGroup
    sampler: SamplerPool
    verifier: VerifierActors

    def idle(self, elapsed_s: float) -> dict[str, float]:
        """Share of the last so many seconds in which each pool had nothing to do, as metrics."""
        pools = {"trainer": self.ranks, "sampler": self.sampler, "verifier": self.verifier}
        return {
            f"idle/{name}": round(pool.busy.idle_share(elapsed_s, processes=pool.size), 4)
            for name, pool in pools.items()
        }

    def close(self) -> None:
        """End them."""
        self.ranks.close()
        self.cluster.close()


def _crew(cfg: TrainConfig, backend: parts.RayBackend) -> Crew:
    return Crew(
        ranks=backend.ranks,
        samplers=backend.samplers,
        verifiers=backend.verifiers,
        colocate=backend.colocate,
        sampler_devices=cfg.sampler.tensor_parallel if isinstance(cfg.sampler, parts.VllmSampler) else 1,
        spread=backend.placement == "spread",
    )


def _company(
    cluster: Cluster, cfg: TrainConfig, backend: parts.RayBackend, tokenizer: Any, prompts: Sequence[Prompt], say: Say
) -> _Company:
    """Start all of them."""
    there = cfg.model_copy(
        update={"backend": backend.model_copy(update={"device": "cuda" if cluster.on_gpu else "cpu"})}
    )
    longest = longest_of(prompts, cfg.sampling.max_new_tokens)
    largest = max((max(prompt.token_ids, default=0) for prompt in prompts), default=0)
    cwd = os.getcwd()
    ranks = RankGroup(
        cluster,
        backend.ranks,
        partial(roles_there, there, largest),
        timeout_s=backend.collective_timeout,
        wire=_wire(cfg, tokenizer),
    )
    devices = ranks.devices if cluster.must_tell_devices else []
    make_sampler = partial(sampler_there, there, longest)
    sampler = SamplerPool(
        lambda index: cluster.sampler(index, SamplerActor, make_sampler, cwd, devices=devices),
        backend.samplers,
        max_rows=cfg.sampler.max_rows,
        say=say,
    )
    verifier = VerifierActors(
        lambda held: cluster.verifier(
            VerifierActor, partial(verifier_there, cfg.verify), held, cwd, threads=VERIFIER_THREADS
        ),
        [prompt.problem for prompt in prompts],
        backend.verifiers,
        say=say,
    )
    return _Company(cluster=cluster, ranks=ranks, sampler=sampler, verifier=verifier)


def roles_there(
    cfg: TrainConfig, largest: int, rank: int, ranks: int, address: str, at: Callable[[str], None]
) -> dict[str, Any]:
    """The trainable roles of one rank, and what it computes on. `largest` is the largest token id in use."""
    backend = cfg.backend
    assert isinstance(backend, parts.RayBackend), "a rank is of this backend"
    alone = place_of(backend)
    team = ProcessTeam(
        rank=rank, size=ranks, address=address, device=alone.device, timeout_s=backend.collective_timeout, at=at
    )
    shard = sharding(
        ranks=ranks,
        replicas=backend.replicas,
        device=alone.device,
        precision=alone.precision,
        offload=backend.cpu_offload,
    )
    place = replace(alone, team=team, shard=shard)
    trust = cfg.policy.trust_remote_code
    tokenizer = load_tokenizer(cfg.policy.model, trust_remote_code=trust)
    module = load_model(cfg.policy.model, device=place.loads_on, trust_remote_code=trust)
    check_tokens_fit(cfg.policy.model, module, tokenizer, [[largest]])
    prm = prm_of(cfg, cfg.prm, module, tokenizer, place) if cfg.prm else None
    policy = policy_of(cfg, module, tokenizer, place, prm=prm)
    critic = critic_of(cfg, module, tokenizer, place) if cfg.critic else None
    records = RecordsThere(LocalRecords(step_ends_of(cfg, tokenizer)))
    roles = {"policy": policy, "prm": prm, "critic": critic, "records": records}
    return {name: role for name, role in roles.items() if role is not None} | {"device": place.device_facts}


def sampler_there(cfg: TrainConfig, longest: int) -> Speaker:
    """A sampler, and how it takes weights. One of transformers speaks with the policy's initial weights at first."""
    assert isinstance(cfg.backend, parts.RayBackend), "a sampler actor is of this backend"
    place = place_of(cfg.backend)
    source, trust = cfg.policy.model, cfg.policy.trust_remote_code
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    look_over = partial(looked_over, step_ends=step_ends_of(cfg, tokenizer))
    if isinstance(cfg.sampler, parts.VllmSampler):
        shape = load_model(source, device=torch.device("meta"), trust_remote_code=trust)
        engine = vllm_of(cfg.sampler, shape, tokenizer, place.precision, longest=longest, lora=cfg.policy.lora)
        return Speaker(engine, engine.receive, look_over)
    module = load_model(source, device=place.device, trust_remote_code=trust)
    add_policy_adapters(cfg, module)
    sampler = sampler_of(cfg.sampler, module, tokenizer, place, longest=longest)
    return Speaker(sampler, copying_into(module, sampler), look_over)


def verifier_there(settings: Verify, problems: Sequence[Problem]) -> Judge:
    """The verifier for these problems."""
    return verifier_of(settings, problems, lambda text: None)


def _wire(cfg: TrainConfig, tokenizer: Any) -> Wire | None:
    """Engines that keep weights in their own way are told what they should say with them."""
    if not isinstance(cfg.sampler, parts.VllmSampler):
        return None
    apart = cfg.sampler.adapters == "apart"
    return Wire(dtype=cfg.sampler.dtype, probe=tuple(probe_ids(tokenizer)), apart=apart)
