"""Joining a cluster, and being refused."""

import sys

import pytest

from priml.backends.ray.door import Cluster, Crew, the_ray
from priml.errors import ConfigError


def test_without_ray_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"backend.kind: ray needs .* pip install 'priml\[cluster\]'"):
        the_ray()


@pytest.mark.ray
def test_a_cluster_without_the_room_is_refused_with_what_is_missing(ray_here):
    crew = Crew(ranks=50, samplers=3, verifiers=2, colocate=False, spread=False)
    with pytest.raises(ConfigError, match=r"need 55 CPUs \(it has 8\); lower backend.ranks, samplers or verifiers"):
        Cluster(crew, address=None, device="cpu")
    with pytest.raises(ConfigError, match=r"and 53 GPUs \(it has 0\)"):
        Cluster(crew, address=None, device="cuda")
