import gzip
import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from priml.config.data import FileSource, HubSource
from priml.data.rows import BadRow, file_digest
from priml.data.sources import (
    MAX_SOURCES,
    LoadedProblems,
    read_hub,
    read_problems,
    source_origin,
    sources_in,
    with_unique_ids,
)
from priml.errors import ConfigError, DataError
from priml.types import CodeTests, Message, Problem

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real data sets are not on this machine")

EURUS_ROW = {
    "data_source": "numina_olympiads",
    "prompt": [
        {"role": "system", "content": "Think in steps."},
        {"role": "user", "content": "What is 6 x 7?\n\nPresent the answer in LaTex format: \\boxed{Your answer}"},
    ],
    "ability": "math",
    "reward_model": {"ground_truth": "42", "style": "rule"},
    "extra_info": {"index": 0, "split": "dummy"},
}


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path, **options) -> LoadedProblems:
    return read_problems(FileSource(path=path, **options))


def read_row(tmp_path: Path, row: object, **options) -> Problem:
    return read(write_lines(tmp_path / "rows.jsonl", row), **options).problems[0]


# --- row shapes ---


def test_a_verl_row_is_read_as_it_is(tmp_path):
    problem = read_row(tmp_path, EURUS_ROW)
    assert problem.id == "rows:1"
    assert problem.prompt == tuple(Message(**turn) for turn in EURUS_ROW["prompt"])
    assert (problem.answer, problem.source, problem.kind) == ("42", "numina_olympiads", "math")
    assert problem.meta["extra_info"] == {"index": 0, "split": "dummy"}


def test_a_code_row_keeps_its_tests_letter_for_letter(tmp_path):
    tests = ' {"inputs": ["1 ####"], "outputs": ["2"]}\n'
    row = EURUS_ROW | {"ability": "code", "reward_model": {"ground_truth": tests, "style": "rule"}}
    problem = read_row(tmp_path, row)
    assert (problem.kind, problem.answer) == ("code", "")
    assert problem.tests == CodeTests(kind="stdin", inputs=("1 ####",), outputs=("2",))
    assert set(problem.meta) == {"extra_info"}, "the tests are in one place"


PROGRAM_ROW = {
    "id": "add",
    "prompt": "Write add(a, b).",
    "entry_point": "add",
    "tests": {"kind": "assert_list", "setup": "", "asserts": ["assert add(1, 2) == 3"]},
    "canonical_solution": "def add(a, b):\n    return a + b",
}


def test_a_row_with_tests_needs_no_answer_and_no_ability(tmp_path):
    problem = read_row(tmp_path, PROGRAM_ROW)
    assert (problem.id, problem.kind, problem.answer, problem.prompt) == ("add", "code", "", "Write add(a, b).")
    assert problem.tests == CodeTests(kind="assert_list", asserts=("assert add(1, 2) == 3",), entry_point="add")
    assert problem.meta["canonical_solution"] == PROGRAM_ROW["canonical_solution"]


def test_what_the_row_says_of_its_kind_goes_before_its_columns(tmp_path):
    problem = read_row(tmp_path, PROGRAM_ROW | {"ability": "math", "answer": "7"})
    assert (problem.kind, problem.answer, problem.tests) == ("math", "7", None)
    named = PROGRAM_ROW | {"domain": "code"}
    assert read_row(tmp_path, named, columns={"kind": "domain"}).kind == "code"


def test_a_plain_row_keeps_its_other_columns_in_meta(tmp_path):
    row = {
        "id": "a/1",
        "source": "AIME",
        "problem": "1+1?",
        "answer": "2",
        "level": 3,
        "meta": {"year": 2024},
        "x": None,
    }
    problem = read_row(tmp_path, row)
    assert problem == Problem("a/1", "1+1?", "2", source="AIME", meta={"level": 3, "year": 2024})


@pytest.mark.parametrize("column", ["problem", "question", "prompt"])
def test_the_question_may_stand_in_any_of_three_columns(tmp_path, column):
    assert read_row(tmp_path, {column: "1+1?", "answer": "2"}).prompt == "1+1?"


def test_two_possible_questions_must_be_told_apart(tmp_path):
    row = {"problem": "1+1?", "prompt": "Solve 1+1", "answer": "2"}
    with pytest.raises(DataError, match=r"could be any of problem, prompt; say which with columns: \{prompt: NAME\}"):
        read_row(tmp_path, row)
    assert read_row(tmp_path, row, columns={"prompt": "prompt"}).prompt == "Solve 1+1"


def test_named_columns_reach_into_objects(tmp_path):
    row = {"query": "1+1?", "label": {"value": "2"}, "trace": "one, two", "key": 7}
    columns = {"prompt": "query", "answer": "label.value", "response": "trace", "id": "key"}
    problem = read_row(tmp_path, row, columns=columns)
    assert (problem.id, problem.prompt, problem.answer, problem.source) == ("7", "1+1?", "2", "rows")
    assert problem.meta["response"] == "one, two"


def test_a_column_whose_name_has_a_dot_is_found(tmp_path):
    assert (
        read_row(tmp_path, {"problem": "1+1?", "final.answer": "2"}, columns={"answer": "final.answer"}).answer == "2"
    )


def test_an_unknown_field_in_columns_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'anwser'.*id, prompt, answer"):
        read_row(tmp_path, {"problem": "1+1?", "answer": "2"}, columns={"anwser": "answer"})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("  \\frac{1}{2} ", "\\frac{1}{2}"),
        ("(1,234)", "(1,234)"),
        (18, "18"),
        (142.0, "142"),
        (0.5, "0.5"),
        (1e22, "10000000000000000000000"),
        (2.5e-7, "0.00000025"),
        (0, "0"),
        ("so 9*2\n#### 18", "18"),
        ("...\n#### 1,234,567", "1234567"),
        ("...\n#### 1,23", "1,23"),
    ],
)
def test_answers_become_the_text_a_grader_reads(tmp_path, given, kept):
    assert read_row(tmp_path, {"question": "?", "answer": given}).answer == kept


def test_the_reasoning_before_a_gsm8k_answer_is_kept_as_its_solution(tmp_path):
    assert read_row(tmp_path, {"question": "?", "answer": "9*2=18\n#### 18"}).meta["solution"] == "9*2=18\n#### 18"


# --- rows that cannot be used ---

BAD_ROWS = {
    "no answer": ({"problem": "1+1?"}, "no answer: needed a value in answer, found values in problem"),
    "null answer": ({"problem": "1+1?", "answer": None}, "no answer"),
    "empty answer": ({"problem": "1+1?", "answer": " "}, "answer is empty"),
    "true as an answer": ({"problem": "1+1?", "answer": True}, "answer is True, needed text or a finite number"),
    "infinite answer": ('{"problem": "1+1?", "answer": Infinity}', "answer is inf"),
    "list of answers": ({"problem": "1+1?", "answer": ["2", "3"]}, r"answer is \['2', '3'\]"),
    "no final answer": ({"problem": "1+1?", "answer": "two ####"}, "nothing follows the last ####"),
    "no question": ({"answer": "2"}, "no prompt: needed a value in problem or question or prompt"),
    "empty question": ({"problem": "", "answer": "2"}, "problem is empty"),
    "no ground truth": (EURUS_ROW | {"reward_model": {"style": "rule"}}, "needed a value in reward_model.ground_truth"),
    "empty chat": (EURUS_ROW | {"prompt": []}, r"prompt is \[\], needed text or a list of chat messages"),
    "unknown role": (EURUS_ROW | {"prompt": [{"role": "tool", "content": "x"}]}, r"prompt\[0\] is"),
    "chat of the assistant": (EURUS_ROW | {"prompt": [{"role": "assistant", "content": "x"}]}, "role 'assistant'"),
    "unhashable role": (EURUS_ROW | {"prompt": [{"role": ["user"], "content": "x"}]}, r"prompt\[0\] is"),
    "code without tests": ({"problem": "Add.", "ability": "code", "answer": "3"}, "no tests: needed an object"),
    "tests of no kind": (PROGRAM_ROW | {"tests": {"asserts": ["assert True"]}}, "tests.kind is None, needed one of"),
    "tests cut off": (EURUS_ROW | {"ability": "code", "reward_model": {"ground_truth": "{"}}, "is not JSON"),
    "odd id": ({"id": [1], "problem": "1+1?", "answer": "2"}, r"the id is \[1\]"),
    "odd source": ({"source": True, "problem": "1+1?", "answer": "2"}, "the source is True"),
    "half a character": ('{"problem": "\\ud800", "answer": "2"}', "half a Unicode character at position 1"),
    "broken JSON": ('{"problem": "1+1?", "answer": 2', r"broken JSON \(.*\) at character"),
    "huge number": ('{"problem": "1+1?", "answer": ' + "9" * 5000 + "}", "unreadable JSON"),
    "deep list": ("[" * 200_000, "unreadable JSON"),
    "a list": ("[1]", "found a list, needed an object"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_row_that_cannot_be_used_stops_with_its_line_or_is_left_out_with_its_reason(tmp_path, row, reason):
    good = {"problem": "2+2?", "answer": "4"}
    path = write_lines(tmp_path / "rows.jsonl", good, "", row, good)
    with pytest.raises(DataError, match=re.escape(f"{path}:3: ") + f".*{reason}.*on_bad_row: skip"):
        read(path, on_bad_row="stop")
    loaded = read(path, on_bad_row="skip")
    assert [problem.id for problem in loaded.problems] == ["rows:1", "rows:4"]
    assert [bad.row for bad in loaded.skipped] == [3]
    assert re.search(reason, loaded.skipped[0].reason)


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"problem": "1+1?", "answer": "2"}\n{"problem": "caf\xe9?", "answer": "2"}\n')
    assert read(path, on_bad_row="skip").skipped == (
        BadRow(2, "not UTF-8 (invalid continuation byte) at byte 17; convert it to UTF-8"),
    )


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "1+1?", "answer": "2"}\n', encoding="utf-8-sig")
    assert len(read(path).problems) == 1


def test_a_file_without_a_usable_row_is_refused_even_when_bad_rows_are_skipped(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", {"q": "1+1?"}, {"q": "2+2?"})
    with pytest.raises(DataError, match=r"none of its 2 rows can be used.*rows.jsonl:1.*no prompt"):
        read(path, on_bad_row="skip")


def test_the_limit_counts_usable_rows(tmp_path):
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(9)]
    path = write_lines(tmp_path / "rows.jsonl", "junk", *rows)
    loaded = read(path, on_bad_row="skip", limit=3)
    assert [problem.id for problem in loaded.problems] == ["rows:2", "rows:3", "rows:4"]
    assert len(loaded.skipped) == 1


# --- files ---


def test_every_format_gives_the_same_problems(tmp_path):
    rows = [EURUS_ROW, EURUS_ROW | {"reward_model": {"ground_truth": "\\frac12", "style": "rule"}}]
    lines = write_lines(tmp_path / "rows.jsonl", *rows)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write(lines.read_bytes())
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    expected = read(lines).problems
    for suffix in ("jsonl.gz", "json", "parquet"):
        assert read(tmp_path / f"rows.{suffix}").problems == expected


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet", "rows.json"])
def test_a_file_of_no_bytes_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    pq.write_table(pa.table({"problem": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="is empty"):
        read(tmp_path / "rows.parquet")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such data file: .*nowhere.jsonl"):
        read(tmp_path / "nowhere.jsonl")


def test_a_folder_is_answered_with_the_files_in_it(tmp_path):
    write_lines(tmp_path / "train.jsonl", {})
    with pytest.raises(DataError, match=r"is a folder; name one file in it: train.jsonl"):
        read(tmp_path)


def test_an_unknown_suffix_is_answered_with_the_known_ones(tmp_path):
    (tmp_path / "rows.csv").write_text("problem,answer\n")
    with pytest.raises(DataError, match=r"rows.csv.*\.jsonl, \.jsonl\.gz, \.json, \.parquet"):
        read(tmp_path / "rows.csv")


@pytest.mark.parametrize("cut", [5, -8])
def test_a_cut_gzip_file_is_refused(tmp_path, cut):
    packed = gzip.compress(b'{"problem": "1+1?", "answer": "2"}\n' * 100)
    (tmp_path / "rows.jsonl.gz").write_bytes(packed[:cut])
    with pytest.raises(DataError, match=r"cannot read .*rows.jsonl.gz"):
        read(tmp_path / "rows.jsonl.gz", on_bad_row="skip")


def test_json_lines_called_json_are_answered_with_the_right_name(tmp_path):
    with pytest.raises(DataError, match=r"must be called \.jsonl"):
        read(write_lines(tmp_path / "rows.json", {"a": 1}, {"a": 2}))
    with pytest.raises(DataError, match="found one object, needed a list"):
        read(write_lines(tmp_path / "rows.json", {"a": 1}))


def test_the_digest_is_the_sha256_of_the_bytes(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"abc")
    assert file_digest(tmp_path / "rows.jsonl") == hashlib.sha256(b"abc").hexdigest()


# --- ids ---


def test_ids_that_come_again_are_numbered_around_those_that_exist(tmp_path):
    rows = [{"id": row_id, "problem": "?", "answer": "1"} for row_id in ("a", "a", "a#2", "a", "b")]
    loaded = read(write_lines(tmp_path / "rows.jsonl", *rows))
    assert [problem.id for problem in loaded.problems] == ["a", "a#3", "a#2", "a#4", "b"]


@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#2#2", "a#3"]), max_size=12))
def test_unique_ids_are_unique_and_first_comers_keep_theirs(ids):
    renamed = [problem.id for problem in with_unique_ids(Problem(row_id, "?", "1") for row_id in ids)]
    assert len(set(renamed)) == len(ids)
    assert all(new == old for i, (old, new) in enumerate(zip(ids, renamed, strict=True)) if old not in ids[:i])


# --- the Hub library ---


@pytest.fixture
def saved_dataset(tmp_path, monkeypatch) -> Path:
    datasets = pytest.importorskip("datasets", reason="needs the extra priml[hub]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "eurus"
    folder.mkdir()
    datasets.Dataset.from_list([EURUS_ROW, EURUS_ROW]).to_parquet(folder / "train.parquet")
    return folder


def test_a_data_set_saved_to_disk_is_read_and_its_labels_have_their_names(tmp_path):
    """OpenRLHF/OpenRLHF#425: `load_dataset` refuses such a folder. The gold of a class label was its number."""
    datasets = pytest.importorskip("datasets", reason="needs the extra priml[hub]")
    table = datasets.Dataset.from_dict({"problem": ["a", "b"], "answer": [2, 0]})
    table.cast_column("answer", datasets.ClassLabel(names=["7", "8", "9"])).save_to_disk(tmp_path / "saved")
    problems = read_hub(HubSource(kind="hub", dataset=str(tmp_path / "saved"))).problems
    assert [problem.answer for problem in problems] == ["9", "7"]


def test_a_data_set_of_the_hub_library_gives_the_same_problems_as_its_file(saved_dataset):
    from_hub = read_hub(HubSource(kind="hub", dataset=str(saved_dataset), split="train")).problems
    from_file = read(saved_dataset / "train.parquet").problems
    assert [(p.prompt, p.answer, p.source, p.kind, p.meta) for p in from_hub] == [
        (p.prompt, p.answer, p.source, p.kind, p.meta) for p in from_file
    ]
    assert [p.id for p in from_hub] == ["eurus:1", "eurus:2"]


def test_a_split_that_does_not_exist_is_refused(saved_dataset):
    with pytest.raises(DataError, match=r"cannot load the data set .*eurus, test: .*train.*Check its name"):
        read_hub(HubSource(kind="hub", dataset=str(saved_dataset), split="test"))


def test_a_data_set_that_does_not_exist_is_refused(saved_dataset):
    with pytest.raises(DataError, match=r"cannot load the data set .*nowhere"):
        read_hub(HubSource(kind="hub", dataset=str(saved_dataset.parent / "nowhere"), split="train"))


def test_without_the_hub_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'priml\[hub\]'"):
        read_hub(HubSource(kind="hub", dataset="PRIME-RL/Eurus-2-RL-Data", split="train"))


# --- whole files ---


def eurus_rows() -> list[dict[str, object]]:
    """A file of the Eurus schema in small: mathematics, programs that read input, and functions that are called."""
    stdin = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
    call = {"fn_name": "add", "inputs": ["1\n2", "3\n4"], "outputs": ["3", "7"]}
    truths = [("math", "\\frac{1}{2}"), ("code", json.dumps(stdin)), ("code", json.dumps(call)), ("math", "42")]
    return [
        EURUS_ROW
        | {
            "ability": ability,
            "reward_model": {"ground_truth": truth, "style": "rule"},
            "extra_info": {"index": index, "split": "dummy"},
        }
        for index, (ability, truth) in enumerate(truths)
    ]


def test_a_file_of_both_kinds_is_the_same_from_parquet_and_from_compressed_lines(tmp_path):
    rows = eurus_rows()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    from_parquet, from_lines = (read(tmp_path / f"rows.{suffix}").problems for suffix in ("parquet", "jsonl.gz"))
    assert from_parquet == from_lines
    assert [problem.kind for problem in from_lines] == ["math", "code", "code", "math"]
    assert [problem.answer for problem in from_lines] == ["\\frac{1}{2}", "", "", "42"]
    assert [problem.tests and problem.tests.kind for problem in from_lines] == [None, "stdin", "call", None]


MATH_ROWS = {
    "aime22_23.jsonl": 60,
    "aime24.jsonl": 30,
    "aime_1983_2021_train.jsonl.gz": 909,
    "amc23_40.jsonl": 40,
    "amc_aimo83.jsonl": 83,
    "college_math.jsonl.gz": 2818,
    "gsm8k_test.jsonl": 1319,
    "gsm8k_train.jsonl.gz": 7473,
    "math500.jsonl": 500,
    "math_train_12k.jsonl.gz": 12000,
    "minerva_math.jsonl": 272,
    "olympiadbench.jsonl": 675,
}


@needs_real_data
@pytest.mark.parametrize(("name", "rows"), MATH_ROWS.items())
def test_real_math_files_are_read_to_the_last_row(name, rows):
    loaded = read(REAL_DATA / "math" / name)
    assert len(loaded.problems) == len({problem.id for problem in loaded.problems}) == rows
    assert not loaded.skipped


@needs_real_data
def test_the_real_eurus_sample_is_the_same_from_parquet_and_from_lines():
    from_parquet = read(REAL_DATA / "rl" / "eurus_schema_sample.parquet").problems
    from_lines = read(REAL_DATA / "rl" / "eurus_schema_sample.jsonl.gz").problems
    assert from_parquet == from_lines
    assert [sum(problem.kind == kind for problem in from_lines) for kind in ("math", "code")] == [600, 400]
    code = next(problem for problem in from_lines if problem.kind == "code")
    assert code.tests is not None
    assert len(code.tests.inputs) == len(code.tests.outputs) > 0
    kinds = Counter(problem.tests.kind for problem in from_lines if problem.tests)
    assert kinds == {"call": 300, "stdin": 100}


CODE_ROWS = {
    "apps_sample_5.jsonl": 5,
    "code_contests_stdin_a.jsonl.gz": 83,
    "codeforces_stdin.jsonl.gz": 408,
    "humaneval.jsonl": 164,
    "humanevalplus.jsonl.gz": 164,
    "leetcode_test_180.jsonl.gz": 180,
    "leetcode_train.jsonl.gz": 1836,
    "mbpp_1_510.jsonl": 510,
    "mbppplus_le510.jsonl.gz": 231,
}


@needs_real_data
@pytest.mark.parametrize(("name", "rows"), CODE_ROWS.items())
def test_real_code_files_are_read_to_the_last_row(name, rows):
    loaded = read(REAL_DATA / "code" / name)
    assert len({problem.id for problem in loaded.problems}) == rows
    assert all(problem.kind == "code" and problem.tests and not problem.answer for problem in loaded.problems)


# --- sources told apart ---


def named_by_source(*sources):
    return [Problem(id=str(i), prompt="?", answer="1", source=source) for i, source in enumerate(sources)]


@pytest.mark.parametrize(
    ("source", "origin"), [("taco", "taco"), ("numina/olympiads/7", "numina"), ("a b/c", "a b"), ("", "")]
)
def test_what_stands_behind_a_slash_is_a_place_within_a_source(source, origin):
    assert source_origin(named_by_source(source)[0]) == origin


def test_sources_are_told_apart_when_there_are_several_but_not_one_per_problem():
    assert sources_in(named_by_source("taco", "math/1", "math/2", "taco")) == ("math", "taco")
    assert sources_in(named_by_source("math/1", "math/2")) == ()
    assert len(sources_in(named_by_source(*map(str, range(MAX_SOURCES))))) == MAX_SOURCES
    assert sources_in(named_by_source(*map(str, range(MAX_SOURCES + 1)))) == ()


@pytest.mark.parametrize("field", ["id", "source", "ability"])
def test_half_a_character_in_a_label_is_a_bad_row(tmp_path: Path, field: str):
    with pytest.raises(DataError, match=r":1: the \w+ holds half a Unicode character at position 2"):
        read_row(tmp_path, {"problem": "1+1", "answer": "2", field: "a\ud800"})


def test_a_gold_answer_without_end_is_a_bad_row(tmp_path: Path):
    with pytest.raises(DataError, match="answer has 200,000 characters, needed an answer of at most 100,000"):
        read_row(tmp_path, {"problem": "1+1", "answer": "9" * 200_000})
