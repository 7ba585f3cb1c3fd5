"""The components of a run on a Ray cluster.

The functions that begin with `make_` run inside the actors. They call what the local backend calls.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

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
from priml.factories.custom import build_custom_prm
from priml.factories.device import resolve_device
from priml.factories.graders import build_verifier
from priml.factories.learners import build_critic, build_policy, build_prm
from priml.factories.models import add_policy_adapters
from priml.factories.rollout import SamplerInputs, build_unverified_sampler, longest_sequence, step_end_finder
from priml.learners.base import Critic, Policy, Prm
from priml.models.load import check_tokens_fit, load_model, load_tokenizer
from priml.rollout.engine import EngineSampler
from priml.rollout.weight_sync import probe_ids
from priml.training.advantages import AdvantageEstimator
from priml.training.records import LocalRecords, Records, annotate
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
    cluster = Cluster(_topology(cfg, backend), address=backend.address, device=backend.device)
    try:
        actors = _start_actors(cluster, cfg, backend, tokenizer, prompts)
        isolation = actors.verifier.isolation()
        actors.sampler.wait()
        facts = actors.ranks.wait()
        policy = RemotePolicy(actors.ranks, "policy")
        if cfg.sampler.holds_own_weights:
            actors.sampler.verify_weight_sync(
                policy.verification_weights(), separate_adapters=cfg.sampler.separate_adapters
            )
    except BaseException:
        cluster.close()
        raise
    logger.info(
        f"backend: {backend.ranks} ranks on {cluster.nodes} nodes ({facts['device']['kind']}), "
        f"{backend.samplers} samplers, {backend.verifiers} verifiers"
    )
    return Components(
        # The driver has references where these protocols have batches and tensors (`distributed/ray/refs.py`).
        policy=cast(Policy, policy),
        prm=_remote_prm(cfg, actors.ranks),
        critic=cast(Critic, RemoteCritic(actors.ranks, "critic")) if cfg.critic else None,
        advantages=cast(AdvantageEstimator, RemoteAdvantages(actors.ranks)),
        sampler=actors.sampler,
        verifier=actors.verifier,
        records=cast(Records, RemoteRecords(actors.ranks)),
        isolation=isolation,
        digests=facts["digests"],
        device=facts["device"],
        threads=actors.verifier.size,
        idle=actors.idle,
        close=actors.close,
    )


@dataclass(frozen=True, slots=True)
class _Actors:
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
        self.ranks.close()
        self.cluster.close()


def _topology(cfg: TrainConfig, backend: RayBackend) -> ClusterTopology:
    return ClusterTopology(
        ranks=backend.ranks,
        samplers=backend.samplers,
        verifiers=backend.verifiers,
        colocate=backend.colocate,
        sampler_devices=cfg.sampler.devices,
        spread=backend.placement == "spread",
    )


def _start_actors(
    cluster: Cluster, cfg: TrainConfig, backend: RayBackend, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> _Actors:
    remote_cfg = cfg.model_copy(
        update={"backend": backend.model_copy(update={"device": "cuda" if cluster.on_gpu else "cpu"})}
    )
    longest = longest_sequence(prompts, cfg.sampling.max_new_tokens)
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
    make_sampler = partial(make_sampler_worker, remote_cfg, longest)
    sampler = SamplerPool(
        lambda index: cluster.sampler(index, SamplerActor, make_sampler, cwd, devices=devices),
        backend.samplers,
        max_rows=cfg.sampler.max_rows,
    )
    verifier = VerifierActors(
        lambda problems: cluster.verifier(
            VerifierActor, partial(build_verifier, cfg.verify), problems, cwd, threads=VERIFIER_THREADS
        ),
        [prompt.problem for prompt in prompts],
        backend.verifiers,
    )
    return _Actors(cluster=cluster, ranks=ranks, sampler=sampler, verifier=verifier)


def _remote_prm(cfg: TrainConfig, ranks: RankGroup) -> Prm | None:
    match cfg.prm:
        case None:
            return None
        case CustomPrm():
            return cast(Prm, RemoteCustomPrm(ranks))
        case _:
            return cast(Prm, RemotePrm(ranks, "prm"))


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
    place = replace(device, process_group=process_group, shard=shard)
    trust = cfg.policy.trust_remote_code
    tokenizer = load_tokenizer(cfg.policy.model, trust_remote_code=trust)
    module = load_model(cfg.policy.model, device=place.loads_on, trust_remote_code=trust)
    check_tokens_fit(cfg.policy.model, module, tokenizer, [[largest]])
    prm = build_prm(cfg, cfg.implicit_prm, module, tokenizer, place) if cfg.implicit_prm else None
    policy = build_policy(cfg, module, tokenizer, place, prm=prm)
    critic = build_critic(cfg, module, tokenizer, place) if cfg.critic else None
    models = {"policy": policy, "prm": prm, "critic": critic}
    custom_prm = {"prm": build_custom_prm(cfg.prm, tokenizer)} if isinstance(cfg.prm, CustomPrm) else {}
    records = RankRecords(LocalRecords(step_end_finder(cfg, tokenizer)))
    return RankRoles(
        models={name: role for name, role in models.items() if role is not None},
        others={**custom_prm, "records": records, "advantages": build_advantages(cfg)},
        device=place.device_facts,
    )


def make_sampler_worker(cfg: TrainConfig, longest: int) -> SamplerWorker:
    """A sampler, and how it receives weights. One of transformers has the policy's initial weights at first."""
    assert isinstance(cfg.backend, RayBackend), "a sampler actor is of this backend"
    place = resolve_device(cfg.backend)
    source, trust = cfg.policy.model, cfg.policy.trust_remote_code
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    annotate_completion = partial(annotate, step_ends=step_end_finder(cfg, tokenizer))
    loads_on = torch.device("meta") if cfg.sampler.holds_own_weights else place.device
    module = load_model(source, device=loads_on, trust_remote_code=trust)
    if not cfg.sampler.holds_own_weights:
        add_policy_adapters(cfg, module)
    inputs = SamplerInputs(module, tokenizer, place, longest, cfg.policy.lora)
    sampler = build_unverified_sampler(cfg.sampler, inputs)
    receive = sampler.receive if isinstance(sampler, EngineSampler) else copying_into(module, sampler)
    return SamplerWorker(sampler, receive, annotate_completion)


def _weight_sync(cfg: TrainConfig, tokenizer: Tokenizer) -> WeightSyncSpec | None:
    """How weights travel to engines that keep a copy of their own."""
    sampler = cfg.sampler
    if not sampler.holds_own_weights:
        return None
    return WeightSyncSpec(
        dtype=sampler.compute_dtype, probe=tuple(probe_ids(tokenizer)), separate_adapters=sampler.separate_adapters
    )
