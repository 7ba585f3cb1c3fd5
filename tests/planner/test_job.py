from typing import Any

import pytest

from priml.planner.batch import Lengths
from priml.planner.job import frozen_roles, training_shape
from priml.planner.layout import Layout

ONE, EIGHT = Layout(), Layout(ranks=8, samplers=8, is_sharded=True)
LENGTHS = Lengths(256.0, 1536.0, 1024, 3072)


def test_the_largest_micro_batch_is_rows_of_the_longest_kind(make_settings: Any):
    shape = training_shape(make_settings(), LENGTHS, "bf16", ONE)
    assert (shape.rows, shape.length, shape.predicted, shape.precision) == (4, 4096, 3072, "autocast")
    assert shape.tokens == 16384


def test_it_has_a_row_at_least_and_no_more_than_a_step_has_on_a_device(make_settings: Any):
    assert training_shape(make_settings(backend={"micro_batch_tokens": 100}), LENGTHS, "fp32", ONE).rows == 1
    few = make_settings(policy={"model": "m", "mini_batch": 16}, prm={"mini_batch": 16})
    assert training_shape(few, LENGTHS, "bf16", EIGHT).rows == 2


@pytest.mark.parametrize(
    ("precision", "layout", "expected"), [("fp32", EIGHT, "fp32"), ("bf16", EIGHT, "bf16"), ("bf16", ONE, "autocast")]
)
def test_shards_are_bf16_and_one_device_lowers_on_the_way(
    make_settings: Any, precision: str, layout: Layout, expected: str
):
    assert training_shape(make_settings(), LENGTHS, precision, layout).precision == expected


def test_the_third_model_is_held_only_where_something_is_compared_with_it(make_settings: Any):
    kl = {"kl": {"weight": 0.01}}
    assert frozen_roles(make_settings()) == {"reference": "initial"}
    assert frozen_roles(make_settings(prm=None)) == {}
    assert frozen_roles(make_settings(prm={"reference": "policy"})) == {}
    assert frozen_roles(make_settings(loss=kl)) == {"reference": "initial"}  # the same weights serve both
    assert frozen_roles(make_settings(prm=None, loss=kl)) == {"initial policy": "initial"}
    assert frozen_roles(make_settings(prm={"init": "a", "reference": "b"}, loss=kl)) == {
        "reference": "b",
        "initial policy": "initial",
    }
