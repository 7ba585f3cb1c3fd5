import gzip
import json
from pathlib import Path

import pytest

from priml.data.process_files import CORRECT, read_prm_bench, read_process_bench
from priml.errors import DataError

PROCESS = Path(__file__).resolve().parents[3] / "shared" / "data" / "process"
needs_real_data = pytest.mark.skipif(not PROCESS.is_dir(), reason="the process labels are not on this machine")

CIRCULAR = {
    "classification": "circular",
    "idx": "p1",
    "modified_question": "1+1?",
    "modified_process": ["1. a", "2. b", "3. c"],
    "error_steps": [2, 3],
}
REDUNDANT = CIRCULAR | {
    "classification": "redundency",
    "error_steps": [3],
    "original_question": "1 + 1?",
    "original_process": ["1. a", "2. c"],
}


def lines(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_process_bench_row_names_its_first_wrong_step(tmp_path: Path):
    rows = [
        {"id": "gsm8k-0", "problem": "1+1?", "steps": ["a", "b"], "label": 1},
        {"id": "gsm8k-1", "problem": "1+1?", "steps": ["a"], "label": -1},
    ]
    first, second = read_process_bench(lines(tmp_path, *rows))[0]
    assert (first.id, first.first_wrong, first.response.steps, first.response.outcome) == ("gsm8k-0", 1, ("a", "b"), 0)
    assert (second.first_wrong, second.response.outcome) == (-1, 1.0)


@pytest.mark.parametrize(("label", "said"), [(2, "label is 2"), (-2, "label is -2"), ("1", "label is '1'")])
def test_a_label_that_names_no_step_is_refused(tmp_path: Path, label: object, said: str):
    path = lines(tmp_path, {"problem": "?", "steps": ["a", "b"], "label": label})
    with pytest.raises(DataError, match=f"rows.jsonl:1: {said}, needed the index of a step, 0 to 1, or -1"):
        read_process_bench(path)


def test_a_prm_bench_row_counts_its_steps_from_one(tmp_path: Path):
    (found,) = read_prm_bench(lines(tmp_path, CIRCULAR))[0]
    assert (found.id, found.wrong_steps, found.first_wrong) == ("circular_p1", {1, 2}, 1)


def test_unmodified_solutions_come_with_one_class_and_repeats_count_once(tmp_path: Path):
    found = read_prm_bench(lines(tmp_path, CIRCULAR, REDUNDANT, REDUNDANT | {"error_steps": []}))[0]
    assert [s.id for s in found] == ["circular_p1", "correct_p1", "redundency_p1"]
    assert (found[1].classification, found[1].problem, found[1].wrong_steps) == (CORRECT, "1 + 1?", frozenset())
    assert found[2].wrong_steps == {2}
    assert {s.twin for s in found} == {"p1"}


def test_a_prm_bench_row_without_steps_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="modified_process is None, needed a list of texts"):
        read_prm_bench(lines(tmp_path, CIRCULAR | {"modified_process": None}))


def test_a_limit_is_spread_over_the_file(tmp_path: Path):
    rows = [{"id": str(i), "problem": "?", "steps": ["a"], "label": 0} for i in range(10)]
    assert [s.id for s in read_process_bench(lines(tmp_path, *rows), limit=4)[0]] == ["0", "2", "5", "7"]
    assert len(read_process_bench(lines(tmp_path, *rows), limit=40)[0]) == 10


def test_compressed_files_are_read_whole(tmp_path: Path):
    rows = [{"id": f"math-{i}", "problem": "?", "steps": ["a", "b", "c"], "label": i % 4 - 1} for i in range(40)]
    path = lines(tmp_path, *rows)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    solutions, _ = read_process_bench(packed)
    assert solutions == read_process_bench(path)[0]
    assert (len(solutions), sum(s.first_wrong == -1 for s in solutions)) == (40, 10)


@needs_real_data
def test_the_published_files_are_read_whole():
    correct = {"gsm8k": (400, 193), "math": (1000, 406), "olympiadbench": (1000, 339), "omnimath": (1000, 241)}
    for name, (total, right) in correct.items():
        solutions, _ = read_process_bench(PROCESS / f"processbench_{name}.jsonl.gz")
        assert (len(solutions), sum(s.first_wrong == -1 for s in solutions)) == (total, right)


@needs_real_data
def test_the_published_prm_bench_loses_only_its_repeats():
    solutions, _ = read_prm_bench(PROCESS / "prmbench.jsonl.gz")
    modified = [s for s in solutions if s.classification != CORRECT]
    assert len(modified) == 6216 - 5
    assert len({s.classification for s in modified}) == 9
    assert sum(len(s.wrong_steps) for s in modified if s.classification == "multi_solutions") == 0
