from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priml.report import index
from priml.report.index import LONGEST_TEXT, Query, RolloutIndex, read_scalars

MakeRun = Callable[..., Path]


def make_index(run: Path) -> RolloutIndex:
    table = RolloutIndex(run / "rollouts")
    table.refresh()
    return table


def test_every_response_is_a_row_dropped_ones_too(make_run: MakeRun):
    table = make_index(make_run(steps=3)).table
    assert table.num_rows == 3 * 7 * 4
    assert set(table["filter_status"].to_pylist()) == {"kept", "too_hard", "undecided"}
    unpaid = [row for row in table.to_pylist() if row["paid"] is None]
    assert {row["filter_status"] for row in unpaid} == {"too_hard", "undecided"}


def test_paid_and_tokens_are_those_of_the_file(make_run: MakeRun):
    run = make_run(steps=2)
    rows = pq.read_table(run / "rollouts" / "000002.parquet").to_pylist()
    for row, scalars in zip(rows, read_scalars(run / "rollouts" / "000002.parquet").to_pylist(), strict=True):
        assert scalars["tokens"] == len(row["response_ids"])
        if row["process_rewards"] is not None:
            assert scalars["paid"] == pytest.approx(sum(row["process_rewards"]), abs=1e-5)


def test_segments_count_all_tokens_and_what_a_file_lacks_is_unknown(tmp_path: Path):
    segments = [[{"num_tokens": 2, "weight_version": 1}, {"num_tokens": 5, "weight_version": None}], None]
    path = tmp_path / "000007.parquet"
    pq.write_table(pa.table({"problem_id": ["a", "b"], "segments": segments}), path)
    first, second = read_scalars(path).to_pylist()
    assert (first["step"], first["row"], first["tokens"], first["paid"], first["verdict"]) == (7, 0, 7, None, None)
    assert (second["row"], second["tokens"]) == (1, None)


def test_above_compares_with_the_mean_of_the_prompt_and_one_nan_stays_alone(tmp_path: Path):
    path = tmp_path / "000001.parquet"
    rewards = [[1.0, 1.0], [0.0], None, [float("nan")], [3.0]]
    pq.write_table(pa.table({"problem_id": ["a", "a", "a", "b", "c"], "process_rewards": rewards}), path)
    rows = read_scalars(path).to_pylist()
    assert [row["above"] for row in rows[:3]] == [1.0, -1.0, None]
    assert (rows[4]["paid"], rows[4]["above"]) == (3.0, 0.0)


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        (Query(filter_status="too_hard"), lambda row: row["filter_status"] == "too_hard"),
        (Query(verdict="correct"), lambda row: row["verdict"] == "correct"),
        (Query(pay="wrong_paid"), lambda row: row["verdict"] == "wrong" and (row["above"] or 0) > 0),
        (Query(pay="right_unpaid"), lambda row: row["verdict"] == "correct" and (row["above"] or 0) < 0),
        (Query(problem="chain-003"), lambda row: row["problem_id"] == "chain-003"),
        (Query(first_step=2, last_step=2), lambda row: row["step"] == 2),
        (Query(text="WORKER"), lambda row: row["reason"] == "worker lost"),
        (
            Query(verdict="wrong", text="chain-001"),
            lambda r: r["verdict"] == "wrong" and r["problem_id"] == "chain-001",
        ),
    ],
)
def test_a_filter_finds_what_it_says(make_run: MakeRun, query: Query, holds: Callable[[dict], bool]):
    table = make_index(make_run(steps=3))
    expected = [row for row in table.table.to_pylist() if holds(row)]
    assert expected
    assert table.find(query).count == len(expected)
    assert all(holds(row) for row in table.find(query).rows)


def test_pages_of_a_sorted_table_are_its_whole_in_order(make_run: MakeRun):
    table = make_index(make_run(steps=2))
    pages = [table.find(Query(sort="paid", descending=True, page=page, size=20)) for page in (1, 2, 3, 4)]
    paid = [row["paid"] for page in pages for row in page.rows]
    assert len(paid) == pages[0].total == 56
    known = [value for value in paid if value is not None]
    assert known == sorted(known, reverse=True)
    assert paid[len(known) :] == [None] * (56 - len(known)), "the unpaid stand last"


def test_search_inside_of_responses_says_where_it_stopped(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    table = make_index(make_run(steps=3))
    whole = table.find(Query(inside="ONERROR=alert"))
    assert (whole.count, whole.note) == (3, "")
    monkeypatch.setattr(index, "SEARCH_SECONDS", -1.0)
    cut = table.find(Query(inside="onerror=alert"))
    assert (cut.count, cut.note) == (1, "Searched for -1 s: the responses back to step 3.")


def test_only_what_is_new_is_read_and_what_went_away_is_forgotten(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    run = make_run(steps=3)
    last = run / "rollouts" / "000003.parquet"
    kept_bytes = last.read_bytes()
    last.unlink()
    table = make_index(run)
    assert not table.refresh()
    read: list[str] = []
    original = index.read_scalars
    monkeypatch.setattr(index, "read_scalars", lambda path: read.append(path.name) or original(path))
    last.write_bytes(kept_bytes)
    assert table.refresh()
    assert (read, table.table.num_rows) == (["000003.parquet"], 84)
    last.unlink()
    assert table.refresh()
    assert table.table.num_rows == 56


def test_members_are_the_responses_to_a_prompt_in_a_step(make_run: MakeRun):
    table = make_index(make_run(steps=2))
    assert table.members(2, "chain-001") == [4, 5, 6, 7]
    assert table.members(2, "nowhere") == table.members(9, "chain-001") == []


@pytest.mark.parametrize("options", [{"sort": "response"}, {"pay": "well"}, {"page": 0}, {"size": 100_000}])
def test_a_query_that_means_nothing_is_refused(options: dict):
    with pytest.raises(ValueError, match=r"found .* need"):
        Query(**options)


def test_a_long_answer_is_cut_in_the_table(tmp_path: Path):
    path = tmp_path / "000001.parquet"
    pq.write_table(pa.table({"answer": ["\N{PILE OF POO}" * 5000]}), path)
    assert read_scalars(path)["answer"].to_pylist() == ["\N{PILE OF POO}" * LONGEST_TEXT]
