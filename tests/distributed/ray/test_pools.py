"""Pools of samplers and verifiers whose processes are killed while they work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import tiny_config
from priml.distributed.ray.graders import VerifierActor, VerifierActors
from priml.distributed.ray.samplers import SamplerActor, SamplerPool
from priml.distributed.ray.trajectories import fetch_trajectories
from priml.errors import ConfigError
from priml.factories.components import Components, build_local_components
from priml.factories.data import load_prompts, load_source
from priml.factories.ray import build_ray_components
from priml.models.load import load_tokenizer
from priml.rollout.base import SamplingSpec
from priml.types import Prompt

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SPEC = SamplingSpec(group_size=4, temperature=1.0, max_new_tokens=6, seed=0, step=1)


class Stage:
    """The roles of a tiny run here and on Ray."""

    def __init__(self, folder: Path, model: Path) -> None:
        tokenizer = load_tokenizer(str(model))
        local = tiny_config(folder / "local", model, "sampler.max_rows=16")
        ray = tiny_config(
            folder / "ray", model, "sampler.max_rows=16", "backend={kind: ray, ranks: 1, samplers: 2, verifiers: 2}"
        )
        problems = load_source(local.data.train)
        self.prompts: list[Prompt] = list(load_prompts(problems, tokenizer, local.data.prompt))[:24]
        self.here: Components = build_local_components(local, tokenizer, self.prompts)
        self.there: Components = build_ray_components(ray, tokenizer, self.prompts)


@pytest.fixture(scope="module")
def stage(ray_here: Any, tmp_path_factory: pytest.TempPathFactory, warm_model: Path) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("pools"), warm_model)
    yield made
    made.there.close()


def test_what_the_making_of_an_actor_raises_reaches_the_driver_as_it_is(ray_here: Any) -> None:
    def refuse(*given: Any) -> Any:  # in here, so that it travels whole: actors cannot import this module
        raise ConfigError("nothing can be made of this; change that")

    def start(actor: type, *args: Any) -> Any:
        return ray_here.remote(actor).options(num_cpus=0).remote(*args)

    cwd = os.getcwd()
    samplers = SamplerPool(lambda index: start(SamplerActor, refuse, cwd, ()), 2, max_rows=1)
    with pytest.raises(ConfigError, match="nothing can be made of this; change that"):
        samplers.wait()
    verifiers = VerifierActors(lambda problems: start(VerifierActor, refuse, problems, cwd), [], 2)
    with pytest.raises(ConfigError, match="nothing can be made of this; change that"):
        verifiers.isolation()


def tokens(groups: Any) -> list[list[tuple[int, ...]]]:
    return [[tuple(trajectory.token_ids) for trajectory in group.trajectories] for group in fetch_trajectories(groups)]


def test_two_samplers_say_what_one_says_and_a_killed_one_is_replaced(stage: Stage, said: list[str]) -> None:
    pool: Any = stage.there.sampler
    expected = tokens(stage.here.sampler.sample(stage.prompts, SPEC))
    heard: list[tuple[Prompt, Any]] = []

    def finished(prompt: Prompt, trajectory: Any) -> None:
        if not heard:  # the others have their work by now
            os.kill(pool.pids[0], signal.SIGKILL)
        heard.append((prompt, trajectory))

    groups = pool.sample(stage.prompts, SPEC, finished)
    assert tokens(groups) == expected
    assert {id(trajectory) for _, trajectory in heard} == {id(c) for group in groups for c in group.trajectories}
    os.kill(pool.pids[1], signal.SIGKILL)
    again = SamplingSpec(group_size=4, temperature=1.0, max_new_tokens=6, seed=0, step=2)
    assert tokens(pool.sample(stage.prompts, again)) == tokens(stage.here.sampler.sample(stage.prompts, again))
    assert [text for text in said if text.startswith("sampler")] == [
        f"sampler {index} was lost; another one takes its place and its work" for index in (0, 1)
    ]


def test_a_replaced_sampler_speaks_with_the_newest_weights(stage: Stage) -> None:
    pool: Any = stage.there.sampler
    pool.load(stage.there.policy.weights(), version=7)
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    groups = pool.sample(stage.prompts[:4], SPEC)
    assert {c.weight_version for group in fetch_trajectories(groups) for c in group.trajectories} == {7}


def test_a_killed_verifier_is_replaced_and_its_work_done_again(stage: Stage, said: list[str]) -> None:
    verifier: Any = stage.there.verifier
    problem = stage.prompts[0].problem
    before = verifier.pids
    assert verifier.grade(problem, "0").correct
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert [verifier.grade(problem, text).correct for text in ("0", "1", "2", "3")] == [True, False, True, False]
    assert len([text for text in said if text.startswith("verifier")]) in (1, 2)
    assert set(before) != set(verifier.pids)
