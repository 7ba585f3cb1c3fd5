import pyarrow.parquet as pq

from priml.data.prepare.decisions import KEPT, Decision, count_decisions, dropped, read_decisions, write_decisions
from priml.types import Message, Problem


def test_a_file_of_decisions_reads_back_and_is_whole_or_absent(tmp_path):
    rows = [
        (Problem("a", "1+1?", "2", "s"), KEPT),
        (Problem("b", (Message("system", "x"), Message("user", "1+2?")), "3", "s"), dropped("near copy", "a", 0.9)),
        (Problem("c", "?", "3", "s"), Decision(True, "a note", "b")),
    ]
    write_decisions(tmp_path / "1-read.parquet", rows)
    assert read_decisions(tmp_path / "1-read.parquet") == [(problem.id, decision) for problem, decision in rows]
    assert [path.name for path in tmp_path.iterdir()] == ["1-read.parquet"]
    found = pq.read_table(tmp_path / "1-read.parquet").to_pylist()[1]
    assert (found["problem"], found["decision"]) == ("1+2?", "dropped")


def test_reasons_are_counted_the_most_frequent_first():
    decisions = [KEPT, dropped("a"), dropped("b"), dropped("b"), Decision(True, "n")]
    assert count_decisions(decisions) == {"dropped": {"b": 2, "a": 1}, "noted": {"n": 1}}
    assert list(count_decisions(decisions)["dropped"]) == ["b", "a"]
