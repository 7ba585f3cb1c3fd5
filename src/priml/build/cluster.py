"""The roles of a run on a Ray cluster: what each kind of actor makes of the settings, and who stands for it here.

The functions that end in `_there` run inside the actors; they call what the local backend calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from priml.backends.fsdp import sharding
from priml.backends.ray.door import Cluster, Crew
from priml.backends.ray.pools import VERIFIER_THREADS, SamplerActor, SamplerPool, VerifierActor, VerifierActors
from priml.backends.ray.ranks import RankGroup, RemoteCritic, RemotePolicy, RemotePrm
from priml.backends.team import ProcessTeam
from priml.build.cast import Cast
from priml.build.data import Say
from priml.build.roles import add_policy_adapters, critic_of, longest_of, place_of, policy_of, prm_of, sampler_of
from priml.build.verifiers import Judge, verifier_of
from priml.config import parts
from priml.config.train import TrainConfig
from priml.models.load import check_tokens_fit, load_model, load_tokenizer
from priml.roles.base import NoCritic
from priml.roles.prm import NoPrm
from priml.types import Problem, Prompt


def cast_on_ray(
    cfg: TrainConfig, backend: parts.RayBackend, tokenizer: Any, prompts: Sequence[Prompt], say: Say
) -> Cast:
    """Start or join the cluster, start the actors, wait until all of them are ready.

    Raises:
        ConfigError: Ray is missing, or the cluster has not the room.
        UsageError: what the actors find wrong with the settings.
    """
    crew = Crew(
        ranks=backend.ranks,
        samplers=backend.samplers,
        verifiers=backend.verifiers,
        colocate=backend.colocate,
        spread=backend.placement == "spread",
    )
    cluster = Cluster(crew, address=backend.address, device=backend.device)
    try:
        cfg = cfg.model_copy(
            update={"backend": backend.model_copy(update={"device": "cuda" if cluster.on_gpu else "cpu"})}
        )
        problems = [prompt.problem for prompt in prompts]
        longest = longest_of(prompts, cfg.sampling.max_new_tokens)
        largest = max((max(prompt.token_ids, default=0) for prompt in prompts), default=0)
        cwd = os.getcwd()
        ranks = RankGroup(
            cluster, backend.ranks, partial(roles_there, cfg, largest), timeout_s=backend.collective_timeout
        )
        sampler = SamplerPool(
            lambda index: cluster.sampler(index, SamplerActor, partial(sampler_there, cfg, longest), cwd),
            backend.samplers,
            max_rows=cfg.sampler.max_rows,
            say=say,
        )
        verifier = VerifierActors(
            lambda held: cluster.verifier(
                VerifierActor, partial(verifier_there, cfg.verify), held, cwd, threads=VERIFIER_THREADS
            ),
            problems,
            backend.verifiers,
            say=say,
        )
        isolation = verifier.isolation()
        facts = ranks.wait()
    except BaseException:
        cluster.close()
        raise
    say(
        f"backend: {backend.ranks} ranks on {cluster.nodes} nodes ({facts['device']['kind']}), "
        f"{backend.samplers} samplers, {backend.verifiers} verifiers"
    )

    def idle(elapsed_s: float) -> dict[str, float]:
        pools = {"trainer": ranks, "sampler": sampler, "verifier": verifier}
        return {
            f"idle/{name}": round(pool.busy.idle_share(elapsed_s, processes=pool.size), 4)
            for name, pool in pools.items()
        }

    return Cast(
        policy=RemotePolicy(ranks, "policy"),
        prm=RemotePrm(ranks, "prm") if cfg.prm else NoPrm(),
        critic=RemoteCritic(ranks, "critic") if cfg.critic else NoCritic(),
        sampler=sampler,
        verifier=verifier,
        isolation=isolation,
        digests=facts["digests"],
        device=facts["device"],
        threads=verifier.size,
        idle=idle,
        close=cluster.close,
    )


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
    roles = {"policy": policy, "prm": prm, "critic": critic}
    return {name: role for name, role in roles.items() if role is not None} | {"device": place.device_facts}


def sampler_there(cfg: TrainConfig, longest: int) -> tuple[Any, Any]:
    """A sampler and the model it speaks with, the policy's initial weights at first."""
    assert isinstance(cfg.backend, parts.RayBackend), "a sampler actor is of this backend"
    place = place_of(cfg.backend)
    trust = cfg.policy.trust_remote_code
    tokenizer = load_tokenizer(cfg.policy.model, trust_remote_code=trust)
    module = load_model(cfg.policy.model, device=place.device, trust_remote_code=trust)
    add_policy_adapters(cfg, module)
    return sampler_of(cfg.sampler, module.requires_grad_(False), tokenizer, place, longest=longest), module


def verifier_there(settings: parts.Verify, problems: Sequence[Problem]) -> Judge:
    """The verifier for these problems."""
    return verifier_of(settings, problems, lambda text: None)
