"""Joining a cluster, and being refused."""

import sys
import time
from typing import Any

import pytest

from priml.distributed.ray.cluster import Cluster, ClusterTopology, fetch, import_ray
from priml.errors import ConfigError, RankLostError


def test_without_ray_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"backend.kind: ray needs .* pip install 'priml\[cluster\]'"):
        import_ray()


@pytest.mark.ray
def test_a_cluster_without_the_room_is_refused_with_what_is_missing(ray_here):
    topology = ClusterTopology(ranks=50, samplers=3, verifiers=2, colocate=False, sampler_devices=1, spread=False)
    with pytest.raises(ConfigError, match=r"need 55 CPUs \(it has 8\); lower backend.ranks, samplers or verifiers"):
        Cluster(topology, address=None, device="cpu")
    with pytest.raises(ConfigError, match=r"and 53 GPUs \(it has 0\)"):
        Cluster(topology, address=None, device="cuda")


class Told:
    """An actor that was told of devices."""

    def __init__(self, devices: tuple[str, ...]) -> None:
        self._devices = devices

    def devices(self) -> tuple[str, ...]:
        return self._devices


@pytest.mark.ray
def test_an_engine_on_several_devices_shares_those_of_neighbouring_ranks(ray_here):
    topology = ClusterTopology(ranks=4, samplers=2, verifiers=1, colocate=True, sampler_devices=2, spread=False)
    cluster = Cluster(topology, address=None, device="cpu")
    try:
        engines = [cluster.sampler(i, Told, devices=[["4"], ["5"], ["6"], ["7"]]) for i in range(2)]
        assert ray_here.get([engine.devices.remote() for engine in engines]) == [["4", "5"], ["6", "7"]]
    finally:
        cluster.close()


@pytest.mark.ray
def test_engines_apart_have_room_for_all_their_devices_and_ray_chooses_them(ray_here):
    topology = ClusterTopology(ranks=2, samplers=2, verifiers=2, colocate=False, sampler_devices=2, spread=False)
    cluster = Cluster(topology, address=None, device="cpu")
    try:
        engine = cluster.sampler(1, Told, devices=[])
        assert ray_here.get(engine.devices.remote()) == ()
    finally:
        cluster.close()
    larger = ClusterTopology(ranks=2, samplers=2, verifiers=2, colocate=False, sampler_devices=4, spread=False)
    with pytest.raises(ConfigError, match=r"need 12 CPUs \(it has 8\)"):
        Cluster(larger, address=None, device="cpu")


@pytest.mark.ray
def test_what_is_lost_with_whoever_held_it_is_told_so_that_the_step_can_be_done_again(ray_here: Any) -> None:
    class Holder:
        def hold(self) -> list[Any]:
            import ray

            return [ray.put(b"x" * 1_000_000)]

    holder = ray_here.remote(Holder).options(num_cpus=0).remote()
    (ref,) = ray_here.get(holder.hold.remote())
    assert len(fetch(ref)) == 1_000_000
    ray_here.kill(holder)

    def ask() -> None:
        for _ in range(600):  # until its end has got about
            fetch(ref)
            time.sleep(0.1)

    with pytest.raises(RankLostError, match="lost with the process or the node that held it"):
        ask()
