"""The components of a run on a Ray cluster.

The functions that begin with `make_` run inside the actors. They call what the local backend calls.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from priml.config.backend import RayBackend
from priml.config.models import CustomPrm
from priml.config.train import TrainConfig
from priml.distributed.fsdp import sharding
from priml.distributed.process_group import TorchProcessGroup
from priml.distributed.ray.cluster import Cluster, ClusterTopology
from priml.distributed.ray.graders import VERIFIER_THREADS, VerifierActor, VerifierActors
from priml.distributed.ray.ranks import RankGroup, RankRoles, WeightSyncSpec
from priml.distributed.ray.roles import (
    RankRecords,
    RemoteAdvantages,
    RemoteCritic,
    RemoteCustomPrm,
    RemotePolicy,
    RemotePrm,
    RemoteRecords,
)
from priml.distributed.ray.samplers import SamplerActor, SamplerPool, SamplerWorker, copying_into
from priml.factories.algorithm import build_advantages
from priml.factories.components import Components
from priml.factories.device import resolve_device
from priml.factories.environments import observed_tokens, with_environment
from priml.factories.graders import build_verifier
from priml.factories.learners import load_learners
from priml.factories.models import add_policy_adapters
from priml.factories.rollout import SAMPLERS, SamplerInputs, longest_sequence, step_end_finder
from priml.models.load import load_model, load_tokenizer
from priml.rollout.engine import EngineSampler
from priml.rollout.weight_sync import probe_ids
from priml.training.records import LocalRecords, annotate
from priml.types import Prompt, Tokenizer

logger = logging.getLogger(__name__)


def build_ray_components(cfg: TrainConfig, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> Components:
    """Start or join the cluster, start the actors, wait until all of them are ready.

    Raises:
        ConfigError: Ray is missing, or the cluster has not the room.
        UsageError: what the actors find wrong with the settings.
    """
    backend = cfg.backend
    assert isinstance(backend, RayBackend), "chosen by backend.kind"
    topology = ClusterTopology(
        ranks=backend.ranks,
        samplers=backend.samplers,
        verifiers=backend.verifiers,
        colocate=backend.colocate,
        sampler_devices=cfg.sampler.devices,
        spread=backend.placement == "spread",
    )
    cluster = Cluster(topology, address=backend.address, device=backend.device)
    try:
        return _start_components(cluster, cfg, backend, tokenizer, prompts)
    except BaseException:
        cluster.close()
        raise


def _start_components(
    cluster: Cluster, cfg: TrainConfig, backend: RayBackend, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> Components:
    ranks, sampler, verifier = _start_actors(cluster, cfg, backend, tokenizer, prompts)
    isolation = verifier.isolation()
    sampler.wait()
    facts = ranks.wait()
    policy = RemotePolicy(ranks, "policy")
    if cfg.sampler.holds_own_weights:
        sampler.verify_weight_sync(policy.verification_weights(), separate_adapters=cfg.sampler.separate_adapters)
    logger.info(
        f"backend: {backend.ranks} ranks on {cluster.nodes} nodes ({facts['device']['kind']}), "
        f"{backend.samplers} samplers, {backend.verifiers} verifiers"
    )
    prm = RemoteCustomPrm(ranks) if isinstance(cfg.prm, CustomPrm) else RemotePrm(ranks, "prm")
    pools = {"trainer": ranks, "sampler": sampler, "verifier": verifier}

    def idle(elapsed_s: float) -> dict[str, float]:
        shares = {name: pool.busy.idle_share(elapsed_s, processes=pool.size) for name, pool in pools.items()}
        return {f"idle/{name}": round(share, 4) for name, share in shares.items()}

    def close() -> None:
        ranks.close()
        cluster.close()

    return Components(
        policy=policy,
        prm=prm if cfg.prm else None,
        critic=RemoteCritic(ranks, "critic") if cfg.critic else None,
        advantages=RemoteAdvantages(ranks),
        sampler=sampler,
        verifier=verifier,
        records=RemoteRecords(ranks),
        isolation=isolation,
        digests=facts["digests"],
        device=facts["device"],
        threads=verifier.size,
        idle=idle,
        close=close,
    )


def _start_actors(
    cluster: Cluster, cfg: TrainConfig, backend: RayBackend, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> tuple[RankGroup, SamplerPool, VerifierActors]:
    remote_cfg = cfg.model_copy(
        update={"backend": backend.model_copy(update={"device": "cuda" if cluster.on_gpu else "cpu"})}
    )
    largest = max((max(prompt.token_ids, default=0) for prompt in prompts), default=0)
    cwd = os.getcwd()
    ranks = RankGroup(
        cluster,
        backend.ranks,
        partial(make_rank_roles, remote_cfg, largest),
        timeout_s=backend.collective_timeout,
        sync=_weight_sync(cfg, tokenizer),
    )
    devices = ranks.devices if cluster.must_choose_devices else []
    longest = longest_sequence(prompts, cfg.sampling.max_new_tokens)
    longest += observed_tokens(cfg.environment, tokenizer, cfg.data.prompt)
    make_sampler = partial(make_sampler_worker, remote_cfg, longest)
    sampler = SamplerPool(
        lambda index: cluster.sampler(index, SamplerActor, make_sampler, cwd, devices=devices),
        backend.samplers,
        max_rows=cfg.sampler.max_rows,
    )
    make_verifier = partial(build_verifier, cfg.verify)
    verifier = VerifierActors(
        lambda problems: cluster.verifier(VerifierActor, make_verifier, problems, cwd, threads=VERIFIER_THREADS),
        [prompt.problem for prompt in prompts],
        backend.verifiers,
    )
    return ranks, sampler, verifier


def make_rank_roles(
    cfg: TrainConfig, largest: int, rank: int, ranks: int, address: str, report_progress: Callable[[str], None]
) -> RankRoles:
    """The roles of one rank. `largest` is the largest token id in use."""
    backend = cfg.backend
    assert isinstance(backend, RayBackend), "a rank is of this backend"
    device = resolve_device(backend)
    process_group = TorchProcessGroup(
        rank=rank,
        size=ranks,
        address=address,
        device=device.device,
        timeout_s=backend.collective_timeout,
        report_progress=report_progress,
    )
    shard = sharding(
        ranks=ranks,
        replicas=backend.replicas,
        device=device.device,
        precision=device.precision,
        offload=backend.cpu_offload,
    )
    sharded = replace(device, process_group=process_group, shard=shard)
    tokenizer = load_tokenizer(cfg.policy.model, trust_remote_code=cfg.policy.trust_remote_code)
    learners = load_learners(cfg, tokenizer, sharded, [[largest]])
    roles = {
        "policy": learners.policy,
        "prm": learners.prm,
        "critic": learners.critic,
        "records": RankRecords(LocalRecords(step_end_finder(cfg, tokenizer))),
        "advantages": build_advantages(cfg),
    }
    return RankRoles(roles, learners.digests, sharded.device_facts)


def make_sampler_worker(cfg: TrainConfig, longest: int) -> SamplerWorker[Any]:
    """A sampler, and how it receives weights. One of transformers has the policy's initial weights at first."""
    assert isinstance(cfg.backend, RayBackend), "a sampler actor is of this backend"
    device = resolve_device(cfg.backend)
    source, trust = cfg.policy.model, cfg.policy.trust_remote_code
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    annotate_trajectory = partial(annotate, step_ends=step_end_finder(cfg, tokenizer))
    loads_on = torch.device("meta") if cfg.sampler.holds_own_weights else device.device
    module = load_model(source, device=loads_on, trust_remote_code=trust)
    if not cfg.sampler.holds_own_weights:
        add_policy_adapters(cfg, module)
    inputs = SamplerInputs(module, tokenizer, device, longest, cfg.policy.lora)
    sampler = SAMPLERS[cfg.sampler.kind].build(cfg.sampler, inputs)
    rollouts = with_environment(sampler, cfg.environment, module, tokenizer, cfg.data.prompt)
    if isinstance(sampler, EngineSampler):
        return SamplerWorker(rollouts, sampler.receive, annotate_trajectory, sampler.verify_weight_sync)
    return SamplerWorker(rollouts, copying_into(module, sampler), annotate_trajectory)


def _weight_sync(cfg: TrainConfig, tokenizer: Tokenizer) -> WeightSyncSpec | None:
    """How weights travel to engines that keep a copy of their own."""
    sampler = cfg.sampler
    if not sampler.holds_own_weights:
        return None
    return WeightSyncSpec(
        dtype=sampler.compute_dtype, probe=tuple(probe_ids(tokenizer)), separate_adapters=sampler.separate_adapters
    )
