import pyarrow.parquet as pq

from priml.data.prepare.fates import KEPT, Fate, count_fates, dropped, read_fates, write_fates
from priml.types import Message, Problem


def test_a_file_of_fates_reads_back_and_is_whole_or_absent(tmp_path):
    rows = [
        (Problem("a", "1+1?", "2", "s"), KEPT),
        (Problem("b", (Message("system", "x"), Message("user", "1+2?")), "3", "s"), dropped("near copy", "a", 0.9)),
        (Problem("c", "?", "3", "s"), Fate(True, "a note", "b")),
    ]
    write_fates(tmp_path / "1-read.parquet", rows)
    assert read_fates(tmp_path / "1-read.parquet") == [(problem.id, fate) for problem, fate in rows]
    assert [path.name for path in tmp_path.iterdir()] == ["1-read.parquet"]
    found = pq.read_table(tmp_path / "1-read.parquet").to_pylist()[1]
    assert (found["problem"], found["fate"]) == ("1+2?", "dropped")


def test_reasons_are_counted_the_most_frequent_first():
    fates = [KEPT, dropped("a"), dropped("b"), dropped("b"), Fate(True, "n")]
    assert count_fates(fates) == {"dropped": {"b": 2, "a": 1}, "noted": {"n": 1}}
    assert list(count_fates(fates)["dropped"]) == ["b", "a"]
