import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from priml.report import inside
from priml.report.index import RolloutIndex
from priml.report.inside import Inside, choose_groups, put_inside, strangest
from priml.report.rollouts import load_tokenizer
from priml.runs.folder import RunFolder

MakeRun = Callable[..., Path]


def packed(run: Path) -> tuple[RolloutIndex, Inside]:
    folder = RunFolder(run)
    index = RolloutIndex(folder.rollouts(0).parent)
    index.refresh()
    tokenizer = load_tokenizer(folder.tokenizer / "tokenizer.json")
    return index, put_inside(index, folder, tokenizer, lambda value: value)


def opened(block: str):
    return json.loads(gzip.decompress(base64.b64decode(block)))


def test_the_whole_table_is_inside_and_reads_back(make_run: MakeRun):
    index, found = packed(make_run(steps=2))
    columns = opened(found.columns)
    assert columns["tokens"] == index.table["tokens"].to_pylist()
    reasons = columns["reason"]
    assert [None if code is None else reasons["values"][code] for code in reasons["codes"]] == (
        index.table["reason"].to_pylist()
    )
    assert sum(columns["inside"]) == found.num_responses == index.table.num_rows, "all of a small run"


def test_responses_are_inside_with_all_of_their_prompt_and_those_left_out_are_marked(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inside, "MAX_RESPONSES", 45)
    index, found = packed(make_run(steps=4))
    assert found.num_responses == 44
    rows = [one for block in found.blocks.values() for one in opened(block)]
    marked = zip(index.table.to_pylist(), opened(found.columns)["inside"], strict=True)
    present = {(row["step"], row["row"]) for row, is_inside in marked if is_inside}
    assert {(one["step"], one["row"]) for one in rows} == present
    for one in rows:
        mates = index.members(one["step"], one["texts"]["problem_id"])
        assert {(one["step"], row) for row in mates} <= present


def test_every_step_and_every_filter_status_is_inside_before_more_of_one(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inside, "MAX_RESPONSES", 4 * 12 * 5)
    run = make_run(steps=12, prm=False)
    index = RolloutIndex(run / "rollouts")
    index.refresh()
    status = {(row["step"], row["problem_id"]): row["filter_status"] for row in index.table.to_pylist()}
    chosen = choose_groups(index)
    assert {(step, status[step, problem]) for step, problem in chosen} == {
        (step, name) for step in range(1, 13) for name in ("kept", "too_hard", "undecided")
    }


def test_long_responses_leave_room_for_fewer(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inside, "MAX_TOKENS", 1)
    assert packed(make_run(steps=2))[1].num_responses == 4, "one prompt is always inside"


def test_the_strangest_are_wrong_and_paid_above_the_mean_of_their_prompt(make_run: MakeRun):
    run = make_run(steps=6)
    index, _ = packed(run)
    found = strangest(index, RunFolder(run), None)
    rows = {(row["step"], row["row"]): row for row in index.table.to_pylist()}
    above = [rows[one.step, one.row]["above"] for one in found]
    assert {one.texts["verdict"] for one in found} == {"wrong"}
    assert len({one.texts["problem_id"] for one in found}) == len(found) == 5
    assert above == sorted(above, reverse=True)
    assert above[0] == max(row["above"] for row in rows.values() if row["verdict"] == "wrong" and row["above"])
