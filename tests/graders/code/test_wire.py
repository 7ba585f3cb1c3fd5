import collections
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from priml.graders.code.wire import MAX_DEPTH, Codec, Refused


class Node:
    def __init__(self, val, next=None):
        self.val, self.next = val, next


def refuse(value):
    raise Refused(type(value).__name__)


CODEC = Codec({"Node": Node}, to_handle=refuse, from_handle=refuse)


def travel(value):
    return CODEC.unpack(json.loads(json.dumps(CODEC.pack(value))))


numbers = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
plain = st.none() | numbers | st.text() | st.binary()
hashable = st.recursive(plain, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
values = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.sets(hashable, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(collections.deque)
    ),
    max_leaves=20,
)


@given(values)
def test_values_arrive_as_they_were(value):
    arrived = travel(value)
    assert type(arrived) is type(value)
    assert arrived == value


@pytest.mark.parametrize(
    "value",
    [10**4000, -(10**30), range(3, 90, 2), collections.Counter("abca"), collections.OrderedDict(a=1), int, type(None)],
)
def test_rarer_values_arrive_as_they_were(value):
    assert travel(value) == value
    assert type(travel(value)) is type(value)


def test_not_a_number_and_the_infinities_arrive():
    assert math.isnan(travel(math.nan))
    assert travel([math.inf, -math.inf]) == [math.inf, -math.inf]


def test_numpy_scalars_arrive_as_numbers():
    assert [type(travel(value)) for value in (np.int64(3), np.float64(0.5), np.bool_(True))] == [int, float, bool]


def test_iterators_arrive_as_iterators():
    assert list(travel(map(str, [1, 2]))) == ["1", "2"]
    assert list(travel(x for x in "ab")) == ["a", "b"]


def test_long_chains_and_rings_of_instances_arrive():
    head = None
    for number in range(20_000):
        head = Node(number, head)
    arrived, count = travel(head), 0
    while arrived is not None:
        arrived, count = arrived.next, count + 1
    assert count == 20_000
    ring = Node(1)
    ring.next = ring
    arrived = travel(ring)
    assert arrived.next is arrived


def test_subclasses_and_strange_objects_do_not_travel():
    class Equal(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    class Point(collections.namedtuple("Point", "x")):
        pass

    for value in (Equal(3), Point(1), object(), lambda: 0, [object()], {"a": Equal(1)}, np.arange(3)):
        with pytest.raises(Refused):
            CODEC.pack(value)


def test_depth_is_bounded():
    deep = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    endless = []
    endless.append(endless)
    for value in (deep, endless):
        with pytest.raises(Refused, match="containers"):
            CODEC.pack(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["value", "instances", "int", "set", "dict", "range", "type", "instance", "bytes", "iterator"]
            ),
            inner,
            max_size=2,
        )
    ),
    max_leaves=10,
)


@given(json_values | json_values.map(lambda value: {"value": value}))
def test_a_forged_message_is_refused_or_gives_a_plain_value(message):
    try:
        value = CODEC.unpack(message)
    except Refused:
        return
    assert type(value).__module__ in ("builtins", "collections", "test_wire") or type(value) is Node
