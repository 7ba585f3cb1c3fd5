from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priml.report.patterns import paid_patterns

MakeRun = Callable[..., Path]


def write(path: Path, rows: list[tuple[str, list[int], list[float] | None, float]]) -> Path:
    problems, ids, rewards, outcomes = zip(*rows, strict=True)
    floats = pa.list_(pa.float32())
    columns = {
        "problem_id": problems,
        "response_ids": ids,
        "process_rewards": pa.array(rewards, floats),
        "outcome": pa.array(outcomes, pa.float32()),
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_what_is_paid_without_being_right_stands_out(tmp_path: Path):
    # 7 8 9 is in a right and a wrong response of each prompt, and is paid; 4 5 6 is in right ones alone.
    rows = []
    for problem in range(15):
        rows += [
            (f"p{problem}", [7, 8, 9, 1], [1.0, 1.0, 1.0, 0.0], 1.0),
            (f"p{problem}", [7, 8, 9, 2], [1.0, 1.0, 1.0, 0.0], 0.0),
            (f"p{problem}", [4, 5, 6], [0.5, 0.5, 0.5], 1.0),
            (f"p{problem}", [4, 5, 6], [0.5, 0.5, 0.5], 1.0),
        ]
    found = paid_patterns([write(tmp_path / "000003.parquet", rows)], None)
    assert found is not None
    first, second = found.shown[:2]
    assert (first.text, first.paid, first.responses) == ("#7 #8 #9", 3.0, 30)
    assert first.lift == pytest.approx(-0.25)
    assert (second.text, second.paid, second.responses) == ("#4 #5 #6", 1.5, 30)
    assert second.lift == pytest.approx(0.25)
    assert (found.responses, found.steps) == (60, (3, 3))
    assert all(one.responses >= 20 for one in found.shown), "rare ones say nothing"


def test_a_pattern_that_comes_twice_in_a_response_counts_it_once(tmp_path: Path):
    row = ("p", [1, 1, 1, 1, 1], [1.0] * 5, 1.0)
    found = paid_patterns([write(tmp_path / "000001.parquet", [row] * 25)], None)
    assert found is not None
    assert (found.shown[0].responses, found.shown[0].paid) == (25, 3.0)


def test_large_vocabularies_do_not_mix_up_tokens(tmp_path: Path):
    ids = [2**21 - 1, 0, 2**20]
    found = paid_patterns([write(tmp_path / "000001.parquet", [("p", ids, [1.0] * 3, 1.0)] * 20)], None)
    assert found is not None
    assert found.shown[0].text == "#2097151 #0 #1048576"


def test_dropped_rows_rows_with_observations_and_damaged_files_are_left_out(tmp_path: Path):
    rows = [("p", [1, 2, 3], None, 1.0), ("p", [1, 2, 3, 4], [1.0, 1.0], 1.0), ("p", [1, 2, 3], [0.0] * 3, 1.0)]
    bad = tmp_path / "000002.parquet"
    bad.write_bytes(b"PAR1 half")
    assert paid_patterns([write(tmp_path / "000001.parquet", rows), bad], None) is None
    assert paid_patterns([], None) is None


def test_a_run_without_rewards_has_none(make_run: MakeRun):
    run = make_run(steps=2, prm=False)
    assert paid_patterns(sorted(run.glob("rollouts/*.parquet")), None) is None
