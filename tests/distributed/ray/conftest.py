"""The object store as a dictionary, for tests that ask what goes into it and who takes it out."""

from __future__ import annotations

from typing import Any

import pytest


class Store:
    """What was put, by number; and the number of times that something was got."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        self.got = 0

    def put(self, value: Any) -> int:
        self.values[len(self.values)] = value
        return len(self.values) - 1

    def get(self, ref: int | list[int]) -> Any:
        self.got += 1
        return [self.values[one] for one in ref] if isinstance(ref, list) else self.values[ref]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """In the place of Ray's."""
    made = Store()
    for module in ("refs", "trajectories"):
        monkeypatch.setattr(f"priml.distributed.ray.{module}.fetch", made.get)
    monkeypatch.setattr("priml.distributed.ray.refs.import_ray", lambda: made)
    return made
