"""Ranks write what they copied aside while they do other things, and what goes wrong there is told."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from priml.commands.session import is_disk_full
from priml.distributed.ray.cluster import Cluster, ClusterTopology
from priml.distributed.ray.ranks import RankGroup, RankRoles
from priml.distributed.ray.roles import RemotePolicy
from priml.errors import RankLostError, RunError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

BEHIND_S = 5.0
JOIN_S = 600
"""Reached only by a failure, however busy the machine."""


def make(rank: int, size: int, address: str, report: Callable[[str], None]) -> RankRoles:
    """A role whose writes do what the folder's name says."""
    import time
    from errno import ENOSPC

    class Role:
        def digest(self) -> str:
            return "digest"

        def stage(self, folder: Path) -> list[Callable[[], None]]:
            return [lambda: self.write(folder)]

        def write(self, folder: Path) -> None:
            if folder.name == "full" and rank == 1:
                raise OSError(ENOSPC, "No space left on device")
            while folder.name == "held" or (folder.name == "behind" and rank == 1):
                if (folder / "go on").exists():
                    break
                time.sleep(0.02)
            (folder / f"{rank}").touch()

    return RankRoles({"policy": Role()}, {}, {"precision": "fp32"})


@pytest.fixture(scope="module")
def ranks(ray_here: Any) -> Iterator[RankGroup]:
    made, cluster = a_group()
    yield made
    made.close()
    cluster.close()


def a_group(behind_s: float = BEHIND_S) -> tuple[RankGroup, Cluster]:
    topology = ClusterTopology(ranks=2, samplers=1, verifiers=1, colocate=True, sampler_devices=1, spread=False)
    cluster = Cluster(topology, address=None, device="cpu")
    made = RankGroup(cluster, 2, make, timeout_s=behind_s)
    made.wait()
    return made, cluster


def writing(ranks: RankGroup, folder: Path) -> Future[None]:
    """The files of a checkpoint on their way, from a thread as in a run."""
    folder.mkdir()
    (write,) = RemotePolicy(ranks, "policy").stage(folder)
    return ThreadPoolExecutor(max_workers=1).submit(write)


def test_ranks_answer_other_calls_while_they_write(ranks: RankGroup, tmp_path: Path) -> None:
    folder = tmp_path / "held"
    done = writing(ranks, folder)
    assert ranks.call("policy", "digest") == "digest"
    assert not done.done()
    assert list(folder.iterdir()) == []
    (folder / "go on").touch()
    done.result(timeout=JOIN_S)
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "go on"]


def test_a_full_disk_of_one_rank_is_told_as_such(ranks: RankGroup, tmp_path: Path) -> None:
    error = writing(ranks, tmp_path / "full").exception(timeout=JOIN_S)
    assert isinstance(error, RunError)
    assert is_disk_full(error)


def test_a_rank_far_behind_the_others_is_named(ranks: RankGroup, tmp_path: Path) -> None:
    error = writing(ranks, tmp_path / "behind").exception(timeout=JOIN_S)
    (tmp_path / "behind" / "go on").touch()
    with pytest.raises(RunError, match="rank 1 did not write its shards of policy within 5 s of the others"):
        raise error or AssertionError


def test_a_rank_that_works_alone_and_hangs_is_named(ray_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("priml.distributed.ray.failures._ANSWER_S", 5.0)
    ranks, cluster = a_group()
    os.kill(ranks.pids[0], signal.SIGSTOP)
    with pytest.raises(RunError, match=r"rank 0 does not answer \(the others: rank 1 joining the process group\)"):
        ranks.call_rank0("policy", "digest")
    ranks.close()
    cluster.close()


def test_ranks_may_take_their_time_to_start(ray_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("priml.distributed.ray.failures._ANSWER_S", 0.01)
    ranks, cluster = a_group(behind_s=0.01)
    assert len(set(ranks.pids)) == 2, "both were built, and nobody was taken for hung"
    ranks.close()
    cluster.close()


def test_a_lost_rank_is_told_and_nobody_waits_for_files_when_the_run_has_ended(ray_here: Any, tmp_path: Path) -> None:
    ranks, cluster = a_group()
    (tmp_path / "later").mkdir()
    ended = writing(ranks, tmp_path / "later" / "held")
    ranks.close()
    with pytest.raises(RunError, match="the run ended before its ranks had written their shards of policy"):
        ended.result(timeout=JOIN_S)
    cluster.close()

    ranks, cluster = a_group()
    lost = writing(ranks, tmp_path / "held")
    threading.Timer(0.5, os.kill, (ranks.pids[1], signal.SIGKILL)).start()
    with pytest.raises(RankLostError, match="rank 1 of 2 was lost"):
        lost.result(timeout=JOIN_S)
    cluster.close()
