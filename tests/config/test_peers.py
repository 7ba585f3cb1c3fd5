from __future__ import annotations

import re
from pathlib import Path

import pytest

from priml.config.peers import TRL, VERL, translate
from priml.config.schema import leaves
from priml.config.train import TrainConfig


@pytest.mark.parametrize("ours", sorted({*TRL.values(), *VERL.values()}))
def test_what_a_foreign_key_is_here_exists_here(ours: str):
    named = re.match(r"[a-z_.]+", ours)
    assert named
    assert any(leaf == named[0] or leaf.startswith(f"{named[0]}.") for leaf in leaves(TrainConfig))


def test_a_key_of_verl_is_known_by_its_end_where_that_is_enough():
    assert translate("rollout.n") == "verl's rollout.n is sampling.group_size"
    assert translate("actor.optim.lr") == "verl's actor.optim.lr is policy.optimizer.lr"
    assert translate("optim.lr") is None  # of the actor, or of the reward model?
    assert translate("n") is None


@pytest.mark.parametrize(("page", "names"), [("from-trl.md", TRL), ("from-verl.md", VERL)])
def test_the_page_has_each_name(page: str, names: dict[str, str]):
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", text, re.MULTILINE))
    assert {theirs: ours.replace("`", "") for theirs, ours in rows.items()} == dict(names)
