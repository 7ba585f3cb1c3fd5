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

from priml.config.backend import RayBackend
from priml.config.graders import Verify
from priml.config.rollout import VllmSampler
from priml.config.train import TrainConfig
from priml.distributed.fsdp import sharding
from priml.distributed.process_group import TorchProcessGroup
from priml.distributed.ray.cluster import Cluster, ClusterTopology
from priml.distributed.ray.pools import (
    VERIFIER_THREADS,
    SamplerActor,
    SamplerPool,
    SamplerWorker,
    VerifierActor,
    VerifierActors,
    copying_into,
)
from priml.distributed.ray.ranks import (
    RankGroup,
    RemoteCritic,
    RemotePolicy,
    RemotePrm,
    WeightSyncSpec,
)
from priml.distributed.ray.records import RankRecords, RemoteRecords
from priml.factories.components import Components
from priml.factories.data import Say
from priml.factories.graders import Judge, build_verifier
from priml.factories.learners import (
    add_policy_adapters,
    build_critic,
    build_policy,
    build_prm,
    build_sampler,
    build_vllm_engine,
    longest_sequence,
    resolve_device,
    step_end_finder,
)
from priml.learners.base import NoCritic
from priml.learners.prm import NoPrm
from priml.models.load import check_tokens_fit, load_model, load_tokenizer
from priml.rollout.weight_sync import probe_ids
from priml.training.records import LocalRecords, annotate
from priml.types import Problem, Prompt


def build_components_on_ray(
    cfg: TrainConfig, backend: RayBackend, tokenizer: Any, prompts: Sequence[Prompt], say: Say
) -> Components:
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
        if isinstance(cfg.sampler, VllmSampler):
            company.sampler.verify_weight_sync(
                policy.verification_weights(), separate_adapters=cfg.sampler.adapters == "apart"
            )
    except BaseException:
        cluster.close()
        raise
    say(
        f"backend: {backend.ranks} ranks on {cluster.nodes} nodes ({facts['device']['kind']}), "
        f"{backend.samplers} samplers, {backend.verifiers} verifiers"
    )
    return Components(
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


def _crew(cfg: TrainConfig, backend: RayBackend) -> ClusterTopology:
    return ClusterTopology(
        ranks=backend.ranks,
        samplers=backend.samplers,
        verifiers=backend.verifiers,
        colocate=backend.colocate,
        sampler_devices=cfg.sampler.tensor_parallel if isinstance(cfg.sampler, VllmSampler) else 1,
        spread=backend.placement == "spread",
    )


def _company(
    cluster: Cluster, cfg: TrainConfig, backend: RayBackend, tokenizer: Any, prompts: Sequence[Prompt], say: Say
) -> _Company:
    """Start all of them."""
    there = cfg.model_copy(
        update={"backend": backend.model_copy(update={"device": "cuda" if cluster.on_gpu else "cpu"})}
    )
    longest = longest_sequence(prompts, cfg.sampling.max_new_tokens)
    largest = max((max(prompt.token_ids, default=0) for prompt in prompts), default=0)
    cwd = os.getcwd()
    ranks = RankGroup(
        cluster,
        backend.ranks,
        partial(make_rank_roles, there, largest),
        timeout_s=backend.collective_timeout,
        wire=_wire(cfg, tokenizer),
    )
    devices = ranks.devices if cluster.must_tell_devices else []
    make_sampler = partial(make_sampler_worker, there, longest)
    sampler = SamplerPool(
        lambda index: cluster.sampler(index, SamplerActor, make_sampler, cwd, devices=devices),
        backend.samplers,
        max_rows=cfg.sampler.max_rows,
        say=say,
    )
    verifier = VerifierActors(
        lambda held: cluster.verifier(
            VerifierActor, partial(make_rank_verifier, cfg.verify), held, cwd, threads=VERIFIER_THREADS
        ),
        [prompt.problem for prompt in prompts],
        backend.verifiers,
        say=say,
    )
    return _Company(cluster=cluster, ranks=ranks, sampler=sampler, verifier=verifier)


def make_rank_roles(
    cfg: TrainConfig, largest: int, rank: int, ranks: int, address: str, report_progress: Callable[[str], None]
) -> dict[str, Any]:
    """The trainable roles of one rank, and what it computes on. `largest` is the largest token id in use."""
    backend = cfg.backend
    assert isinstance(backend, RayBackend), "a rank is of this backend"
    alone = resolve_device(backend)
    process_group = TorchProcessGroup(
        rank=rank,
        size=ranks,
        address=address,
        device=alone.device,
        timeout_s=backend.collective_timeout,
        report_progress=report_progress,
    )
    shard = sharding(
        ranks=ranks,
        replicas=backend.replicas,
        device=alone.device,
        precision=alone.precision,
        offload=backend.cpu_offload,
    )
    place = replace(alone, process_group=process_group, shard=shard)
    trust = cfg.policy.trust_remote_code
    tokenizer = load_tokenizer(cfg.policy.model, trust_remote_code=trust)
    module = load_model(cfg.policy.model, device=place.loads_on, trust_remote_code=trust)
    check_tokens_fit(cfg.policy.model, module, tokenizer, [[largest]])
    prm = build_prm(cfg, cfg.prm, module, tokenizer, place) if cfg.prm else None
    policy = build_policy(cfg, module, tokenizer, place, prm=prm)
    critic = build_critic(cfg, module, tokenizer, place) if cfg.critic else None
    records = RankRecords(LocalRecords(step_end_finder(cfg, tokenizer)))
    roles = {"policy": policy, "prm": prm, "critic": critic, "records": records}
    return {name: role for name, role in roles.items() if role is not None} | {"device": place.device_facts}


def make_sampler_worker(cfg: TrainConfig, longest: int) -> SamplerWorker:
    """A sampler, and how it takes weights. One of transformers speaks with the policy's initial weights at first."""
    assert isinstance(cfg.backend, RayBackend), "a sampler actor is of this backend"
    place = resolve_device(cfg.backend)
    source, trust = cfg.policy.model, cfg.policy.trust_remote_code
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    annotate_completion = partial(annotate, step_ends=step_end_finder(cfg, tokenizer))
    if isinstance(cfg.sampler, VllmSampler):
        shape = load_model(source, device=torch.device("meta"), trust_remote_code=trust)
        engine = build_vllm_engine(
            cfg.sampler, shape, tokenizer, place.precision, longest=longest, lora=cfg.policy.lora
        )
        return SamplerWorker(engine, engine.receive, annotate_completion)
    module = load_model(source, device=place.device, trust_remote_code=trust)
    add_policy_adapters(cfg, module)
    sampler = build_sampler(cfg.sampler, module, tokenizer, place, longest=longest)
    return SamplerWorker(sampler, copying_into(module, sampler), annotate_completion)


def make_rank_verifier(settings: Verify, problems: Sequence[Problem]) -> Judge:
    """The verifier for these problems."""
    return build_verifier(settings, problems, lambda text: None)


def _wire(cfg: TrainConfig, tokenizer: Any) -> WeightSyncSpec | None:
    """Engines that keep weights in their own way are told what they should say with them."""
    if not isinstance(cfg.sampler, VllmSampler):
        return None
    separate = cfg.sampler.adapters == "apart"
    return WeightSyncSpec(dtype=cfg.sampler.dtype, probe=tuple(probe_ids(tokenizer)), separate_adapters=separate)
