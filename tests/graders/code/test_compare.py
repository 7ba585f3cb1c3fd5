import collections
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priml.graders.code.compare import authors_same_output, same_item, same_output, same_tokens, same_value
from priml.graders.code.wire import Codec, Refused


def refuse(value):
    raise Refused


def packed(value):
    return json.loads(json.dumps(Codec({}, to_handle=refuse, from_handle=refuse).pack(value)))


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("3\n", "3"),
        ("3", "3\n"),
        ("1 2 \n3\t\n\n\n", "1 2\n3"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("0.3333333", "0.33333333333"),
        ("2.0000000001", "2"),
        ("5.0", "5"),
        ("1e3", "1000.0"),
        ("x 0.50", "x 0.5"),
        ("1000000.5", "1000000.6"),
        ("nan", "nan"),
        ("", "\n"),
    ],
)
def test_outputs_that_are_the_same(printed, expected):
    assert same_output(printed, expected)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("3", "4"),
        ("3\n4", "3 4"),
        ("2 1", "1 2"),
        ("1  2", "1 2"),
        (" 3", "3"),
        ("\n3", "3"),
        ("yes", "YES"),
        ("007", "7"),
        ("1000000006.0", "1000000007"),
        ("1000000006", "1000000007"),
        ("0.34", "0.33"),
        ("1", "1\n1"),
        ("", "0"),
        ("inf", "1e400"),
        ("nan", "0.0"),
        ("3 passed", "3"),
    ],
)
def test_outputs_that_differ(printed, expected):
    assert not same_output(printed, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (3.0, 3),
        (0.1 + 0.2, 0.3),
        (1, True),
        ((1, 2), [1, 2]),
        ([(1, 2)], [[1, 2]]),
        ({1: 2}, {"1": 2}),
        ({"1": 2}, {"1": 2}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        ({1, 2}, {2, 1.0}),
        (frozenset({(1, 2)}), {(1, 2)}),
        (math.nan, math.nan),
        (math.inf, math.inf),
        (None, None),
        ("a", "a"),
        (b"a", b"a"),
        (10**400, 10**400),
        ((1, 2), (1, 2)),
        (1j, 1j),
    ],
)
def test_values_that_are_the_same(value, expected):
    assert same_value(packed(value), expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 4),
        ("3", 3),
        (3, "3"),
        (None, False),
        (None, 0),
        ([1, 2], [2, 1]),
        ([1], [1, 2]),
        ([1, 2], (1, 2)),
        ({1, 2}, [1, 2]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1, "b": 1}, {"a": 1}),
        ({1}, {2}),
        (1000000006.0, 1000000007),
        (math.nan, 1.0),
        (math.inf, 1.0),
        (10**400, 1.5),
        (b"a", "a"),
        ([[9]], [9]),
        (9, [9]),
        (iter([1]), [1]),
    ],
)
def test_values_that_differ(value, expected):
    assert not same_value(packed(value), expected)


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {},
        {"value": {"handle": 0, "class": "int"}},
        {"value": {"instance": 0}, "instances": [["Node", {}]]},
        {"value": {"int": "junk"}},
        {"value": {"int": 3}},
        {"value": 3, "more": 1},
        {"value": {"set": 3}},
        {"value": {"dict": [[1]]}},
        {"value": {"dict": [1]}},
        {"outcomes": ["passed"]},
    ],
)
@pytest.mark.parametrize("expected", [3, [1], {1}, {"a": 1}, None, "passed"])
def test_messages_that_are_no_values_are_no_answers(message, expected):
    assert not same_value(message, expected)


def test_the_authors_compare_leniently():
    assert authors_same_output("2 1 1\n", "1 2")
    assert authors_same_output("  a\n\n b", "a\nb")
    assert authors_same_output("1.0000001\n2", "1\n2.0")
    assert authors_same_output("0.12341 x", "x 0.12341")
    assert not authors_same_output("3", "4")
    assert same_item(packed(9), [9])
    assert not same_item(packed(8), [9])


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=15,
)


@given(nested)
def test_every_value_is_itself(value):
    assert same_value(packed(value), value)


@given(nested, nested)
def test_what_python_holds_for_equal_is_the_same(value, expected):
    if value == expected:
        assert same_value(packed(value), expected)


@given(st.text(max_size=60))
def test_every_text_is_itself(text):
    assert same_output(text, text)
    assert authors_same_output(text, text)


@given(st.text(alphabet="0123.e-+ \nnaif", max_size=30), st.text(alphabet="0123.e-+ \nnaif", max_size=30))
def test_comparing_texts_never_fails_and_is_never_stricter_for_the_authors(printed, expected):
    same_output(printed, expected)
    authors_same_output(printed, expected)


@pytest.mark.parametrize("expected", ["\n3\n2\n", "  3\n2", "\r\n3\r\n2\r\n", "\n\n 3\n2 \n\n"])
def test_white_space_around_the_expected_text_does_not_count(expected):
    assert same_output("3\n2\n", expected)
    assert same_output(expected, expected)
    assert not same_output("3\n 2\n", expected)
    assert not same_output("3 2\n", expected)


@pytest.mark.parametrize("printed", ["1 2 3", "1\n2\n3\n", "  1  2\t3", "1 2.0 3"])
def test_tokens_are_compared_without_the_white_space_between_them(printed):
    assert same_tokens(printed, "1 2\n3\n")


@pytest.mark.parametrize("printed", ["1 23", "12 3", "1 2", "1 2 3 4", "3 2 1", "", "1,2,3"])
def test_other_tokens_differ(printed):
    assert not same_tokens(printed, "1 2\n3\n")
