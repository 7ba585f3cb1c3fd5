"""Who collects the batches: in turns with training (`SyncCollector`), or while it goes on (`AsyncCollector`)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, Protocol, TypeVar

from priml.data.stream import ProblemStream
from priml.graders.base import GroupVerifier
from priml.rollout.base import Sampler
from priml.training.collect import CollectSpec, GroupPool
from priml.types import Prompt, Trajectory

W = TypeVar("W")
W_contra = TypeVar("W_contra", contravariant=True)


class Collector(Protocol[W_contra]):
    """Samples, verifies and filters the groups of each step."""

    def collect(self, step: int) -> GroupPool:
        """The groups of this step, verified and filtered. Steps are asked for one after the other.

        Raises:
            StarvedError: too few prompts passed the filter.
        """
        ...

    def sync(self, weights: W_contra, version: int) -> None:
        """Hand over the policy's weights after an update. The next batch that is begun is sampled with them."""

    def state(self) -> dict[str, Any]:
        """Where the prompts stood after the last collected batch, fit for JSON."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with the prompts from there. Called before the first `collect`."""

    def idle(self) -> AbstractContextManager[None]:
        """Inside the block nothing is collected, and the sampler has the newest weights."""
        ...

    def close(self) -> None:
        """Collect no more. What is being sampled is dropped."""


class SyncCollector(Generic[W]):
    """Collects when it is asked. Every batch is sampled by the newest policy."""

    def __init__(self, sampler: Sampler[W], verify: GroupVerifier, stream: ProblemStream, spec: CollectSpec) -> None:
        self._sampler = sampler
        self._verify = verify
        self._stream = stream
        self._spec = spec

    def collect(self, step: int) -> GroupPool:
        return collect_groups(step, self._sampler, self._verify, self._stream, self._spec)

    def sync(self, weights: W, version: int) -> None:
        self._sampler.load(weights, version)

    def state(self) -> dict[str, Any]:
        return self._stream.state()

    def load(self, state: Mapping[str, Any]) -> None:
        self._stream.load(state)

    def idle(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """Nothing goes on between calls."""


def collect_groups(
    step: int,
    sampler: Sampler[Any],
    verify: GroupVerifier,
    stream: ProblemStream,
    spec: CollectSpec,
    check: Callable[[], None] = lambda: None,
) -> GroupPool:
    """Sample, verify and filter until the batch of a step is full. `check` is called with each response; what it
    raises ends the sampling."""

    def finished(prompt: Prompt, trajectory: Trajectory) -> None:
        check()
        verify.submit(prompt, trajectory)

    pool = spec.new_pool()
    while not pool.is_full:
        groups = sampler.sample(stream.take(pool.next_draw), spec.sampling_at(step), finished)  # sample; verify
        pool.add(verify(groups))  # verify the rest; filter
    stream.put_back(pool.surplus)
    return pool


class _StoppedError(Exception):
    """The collector was closed while it sampled."""


class AsyncCollector(Generic[W]):
    """Collects in a thread of its own, ahead of training.

    The batch of step n is begun as soon as the batch before is full and the weights after update n - 1 - S are there,
    where S is `max_staleness`. It is sampled as a whole with the newest weights of that moment. So no token is older
    than the bound, and none is thrown away. With S = 1 these are always the weights after update n - 2 (at the start
    the first ones), and seeded runs are reproducible. With more it depends on who is faster.
    """

    def __init__(
        self,
        sampler: Sampler[W],
        verify: GroupVerifier,
        stream: ProblemStream,
        spec: CollectSpec,
        *,
        max_staleness: int,
        last_step: int,
        snapshot: Callable[[W, W | None], W],
        waited: Callable[[float, float], None] = lambda start, end: None,
    ) -> None:
        """`snapshot(weights, in_use)` copies weights, because training goes on to change them; it must leave `in_use`,
        its result that the sampler reads, as it is. Nothing is sampled for steps after
        `last_step`. `waited` is told, in seconds of `time.perf_counter`, when sampling stood still for want of newer
        weights."""
        self._sampler = sampler
        self._verify = verify
        self._stream = stream
        self._spec = spec
        self._max_staleness = max_staleness
        self._last_step = last_step
        self._snapshot = snapshot
        self._waited = waited
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._state = stream.state()
        # The rest is shared with the thread, and guarded by `_changed`.
        self._pools: deque[tuple[GroupPool, dict[str, Any]]] = deque()
        self._pending: tuple[W, int] | None = None
        self._in_use: W | None = None
        self._version = 0
        self._failure: BaseException | None = None
        self._is_sampling = False
        self._is_paused = False
        self._is_stopped = False

    def collect(self, step: int) -> GroupPool:
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, args=(step,), name="collect", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._pools or self._failure)
            if not self._pools:
                assert self._failure is not None
                raise self._failure
            pool, self._state = self._pools.popleft()
            return pool

    def sync(self, weights: W, version: int) -> None:
        with self._changed:
            self._pending = self._snapshot(weights, self._in_use), version
            self._version = version
            self._changed.notify_all()

    def state(self) -> dict[str, Any]:
        return self._state

    def load(self, state: Mapping[str, Any]) -> None:
        self._stream.load(state)
        self._state = dict(state)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """As in `Collector`. It waits until the batch in progress is full."""
        with self._changed:
            self._is_paused = True
            self._changed.wait_for(lambda: not self._is_sampling)
            self._load_pending()
        try:
            yield
        finally:
            with self._changed:
                self._is_paused = False
                self._changed.notify_all()

    def close(self) -> None:
        """End the thread. What it was sampling is dropped at the next response."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    # --- in the thread -------------------------------------------------------------------------------------------

    def _work(self, first: int) -> None:
        try:
            finished: GroupPool | None = None
            for step in range(first, self._last_step + 1):
                # In one locked block, so that training cannot go on with the last batch, and sync, before it is decided
                # which weights the next one gets.
                with self._changed:
                    self._deliver(finished)
                    self._begin(step)
                finished = collect_groups(step, self._sampler, self._verify, self._stream, self._spec, self._check)
            with self._changed:
                self._deliver(finished)
        except _StoppedError:
            pass
        except BaseException as error:  # raised again in `collect`
            with self._changed:
                self._failure = error
                self._is_sampling = False
                self._changed.notify_all()

    def _deliver(self, pool: GroupPool | None) -> None:
        if pool is not None:
            self._pools.append((pool, self._stream.state()))
        self._is_sampling = False
        self._changed.notify_all()

    def _begin(self, step: int) -> None:
        start = time.perf_counter()
        oldest = step - 1 - self._max_staleness
        self._changed.wait_for(lambda: self._is_stopped or (self._version >= oldest and not self._is_paused))
        self._check()
        self._waited(start, time.perf_counter())
        self._load_pending()
        self._is_sampling = True

    def _load_pending(self) -> None:
        if self._pending is not None:
            self._in_use, version = self._pending
            self._pending = None
            self._sampler.load(self._in_use, version)

    def _check(self) -> None:
        if self._is_stopped:
            raise _StoppedError
