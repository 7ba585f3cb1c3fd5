"""What the driver has in the place of batches and tensors: references into the object store.

A number for each token never comes to the driver. Rank 0 puts it into the store, and the ranks of a node read one copy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from priml.batch import Batch
from priml.distributed.ray.cluster import Ref, fetch, import_ray


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Stands for a dataclass of tensors, or for one field of it."""

    ref: Ref
    field: str | None = None

    def get(self) -> Any:
        value = fetch(self.ref)
        return value if self.field is None else getattr(value, self.field)


@dataclass(frozen=True, slots=True)
class BatchRef:
    """Stands for a `Batch`."""

    parts: tuple[Ref, ...]
    """References to dictionaries of its fields. A later one replaces fields of earlier ones."""

    def get(self) -> Batch:
        return Batch(**{name: value for part in fetch(list(self.parts)) for name, value in part.items()})

    def replace(self, old: Batch, new: Batch) -> BatchRef:
        """The reference to `new`. This one stands for `old`; the fields that both share are not stored again."""
        names = [field.name for field in fields(Batch)]
        changed = {name: getattr(new, name) for name in names if getattr(new, name) is not getattr(old, name)}
        return BatchRef((*self.parts, import_ray().put(changed)))


@dataclass(frozen=True, slots=True)
class AdvantagesRef:
    """Stands for `Advantages`."""

    advantages_BT: TensorRef
    returns_BT: TensorRef


def get_value(value: object) -> Any:
    """What a reference stands for; any other value as it is."""
    return value.get() if isinstance(value, TensorRef | BatchRef) else value


def put_result(result: object) -> TensorRef | BatchRef:
    """A reference to what a role returned, which is in the store then."""
    if isinstance(result, Batch):
        return BatchRef((import_ray().put({field.name: getattr(result, field.name) for field in fields(Batch)}),))
    return TensorRef(import_ray().put(result))
