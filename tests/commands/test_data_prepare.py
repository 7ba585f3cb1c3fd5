import json

import pyarrow.parquet as pq
import pytest

from priml.commands import data_prepare
from priml.commands.data_prepare import run_data_prepare
from priml.config.data import FileSource
from priml.config.load import parse_config
from priml.config.prepare import DataPrepareConfig
from priml.data.prepare.decisions import read_decisions
from priml.data.sources import read_problems
from priml.errors import DataError, RunError, UsageError

ROWS = [
    {"id": "a", "problem": "What is 1+1?", "answer": "2"},
    {"id": "b", "problem": "what is 1 + 1", "answer": "2"},
    {"id": "c", "problem": "Prove that 1+1=2.", "answer": "2"},
    {"id": "d", "problem": "What is 2+7?", "answer": "9"},
    {"id": "e", "problem": "In the benchmark, is 7 odd? Write 1 for yes.", "answer": "1"},
    {"id": "f", "problem": "A question without an answer?"},
]
BENCHMARK = [{"problem": "In the benchmark is 7 odd? Write 1 for yes!", "answer": "1"}] + [
    {"problem": f"Another question, number {i}", "answer": "1"} for i in range(4)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "file", "path": str(path)}


def config(tmp_path, name="run", **settings):
    tree = {
        "run_dir": str(tmp_path / name),
        "data": {"mine": {**write(tmp_path / "rows.jsonl", ROWS), "on_bad_row": "skip"}},
        "decontaminate": {"data": {"bench": write(tmp_path / "bench.jsonl", BENCHMARK)}},
        **settings,
    }
    return parse_config(DataPrepareConfig, tree, where="test")


def stage(cfg, name):
    return {
        row: (decision.is_kept, decision.reason, decision.other)
        for row, decision in read_decisions(cfg.run_dir / "stages" / name)
    }


def test_every_row_has_its_fate_in_a_file_of_each_stage(tmp_path, said):
    cfg = config(tmp_path)
    summary = run_data_prepare(cfg)
    read = stage(cfg, "1-read.parquet")
    assert [row for row, (kept, _, _) in read.items() if kept] == ["a", "b", "c", "d", "e"]
    kept, reason, other = read["mine:6"]
    assert (kept, reason) == (False, "unreadable")
    assert "no answer" in str(other)
    assert stage(cfg, "2-rules.parquet")["c"] == (False, "proof", None)
    assert stage(cfg, "3-dedup.parquet")["b"] == (False, "same text", "a")
    assert stage(cfg, "3-dedup.parquet")["d"] == (True, "same template, other numbers", "a")
    assert stage(cfg, "4-decontaminate.parquet")["e"][:2] == (False, "same text as a benchmark problem")
    assert "c" not in stage(cfg, "3-dedup.parquet"), "a row that is gone enters no further stage"
    assert set(stage(cfg, "5-programs.parquet")) == {"a", "d"}
    assert [one["kept"] for one in summary["stages"]] == [5, 4, 3, 2, 2]
    assert [problem.id for problem in read_problems(FileSource(path=cfg.run_dir / "train.parquet")).problems] == [
        "a",
        "d",
    ]
    assert said[1].startswith("rules: 5 rows, 4 kept, 1 proof")
    columns = pq.read_schema(cfg.run_dir / "stages" / "1-read.parquet").names
    assert columns == ["id", "source", "kind", "problem", "answer", "decision", "reason", "other", "value"]


def test_the_card_says_what_was_done_and_what_not(tmp_path):
    cfg = config(tmp_path)
    run_data_prepare(cfg)
    card = (cfg.run_dir / "README.md").read_text()
    assert "| mine | 6 | 2 |" in card
    assert "| rules | 5 | 4 | 1 proof | none |" in card
    assert "Benchmarks: bench." in card
    assert "Not done: difficulty." in card
    run_data_prepare(config(tmp_path, "other", decontaminate=None, rules=None, dedup=None, programs=None))
    card = (tmp_path / "other" / "README.md").read_text()
    assert "Not done: rules, dedup, decontaminate, programs, difficulty." in card


class KilledError(BaseException):
    """Ends a run as the kernel would."""


def test_a_killed_preparation_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    whole, cfg = config(tmp_path, "whole"), config(tmp_path, "killed")
    run_data_prepare(whole)

    def die(*args, **kwargs):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(data_prepare, "find_contaminated", die)
        with pytest.raises(KilledError):
            run_data_prepare(cfg)
    assert [path.name for path in sorted((cfg.run_dir / "stages").glob("*.parquet"))] == [
        "1-read.parquet",
        "2-rules.parquet",
        "3-dedup.parquet",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(data_prepare, "find_duplicates", die)  # done before, not asked again
        run_data_prepare(cfg.run_dir)
    for name in ("train.parquet", "summary.json", "stages/4-decontaminate.parquet"):
        assert (cfg.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes()
    with pytest.raises(UsageError, match=r"this preparation is finished; what it did is in .*README.md"):
        run_data_prepare(cfg.run_dir)


def interrupted(cfg, monkeypatch):
    def die(*args, **kwargs):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(data_prepare, "find_contaminated", die)
        with pytest.raises(KilledError):
            run_data_prepare(cfg)


def test_other_data_or_settings_are_refused(tmp_path, monkeypatch):
    cfg = config(tmp_path)
    interrupted(cfg, monkeypatch)
    with pytest.raises(UsageError, match=r"already holds a run; go on with: priml data prepare .*; or choose another"):
        run_data_prepare(cfg)
    settings = cfg.run_dir / "config.yaml"
    before = settings.read_text()
    settings.write_text(before.replace("rules: careful", "rules: paper"))
    with pytest.raises(UsageError, match=r"config.yaml: found other settings than those it began with"):
        run_data_prepare(cfg.run_dir)
    settings.write_text(before)
    write(tmp_path / "bench.jsonl", BENCHMARK[:3])
    with pytest.raises(UsageError, match=r"the data \(decontaminate bench\) are not those the run began with"):
        run_data_prepare(cfg.run_dir)


def test_a_benchmark_among_the_training_files_is_refused(tmp_path):
    both = {"mine": write(tmp_path / "good.jsonl", ROWS[:5]), "test": write(tmp_path / "again.jsonl", BENCHMARK)}
    with pytest.raises(DataError, match=r"data.test: found 5 of the 5 problems of the benchmark bench in it, need"):
        run_data_prepare(config(tmp_path, data=both))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_missing_data_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no such data file: .*nowhere.jsonl"):
        run_data_prepare(config(tmp_path, data={"mine": {"kind": "file", "path": str(tmp_path / "nowhere.jsonl")}}))
    asked = {"suites": ["aime24"], "data_root": str(tmp_path)}
    with pytest.raises(DataError, match=r"suites: aime24: found no file .*aime24.jsonl, need it"):
        run_data_prepare(config(tmp_path, decontaminate=asked))


def test_nothing_left_is_a_failure_that_names_the_stage(tmp_path):
    data = {"mine": write(tmp_path / "proofs.jsonl", [ROWS[2]])}
    with pytest.raises(RunError, match=r"rules drops every row that is left; see .*stages for why"):
        run_data_prepare(config(tmp_path, data=data))


def test_pass_rates_decide_and_are_on_record(tmp_path, monkeypatch):
    rates = {"a": 0.0, "d": 0.5, "b": 1.0}
    monkeypatch.setattr(data_prepare, "_pass_rates", lambda settings, problems, folder: rates)
    rows = [*ROWS[:2], *ROWS[3:5]]
    data = {"mine": write(tmp_path / "good.jsonl", rows)}
    cfg = config(tmp_path, data=data, decontaminate=None, dedup=None, difficulty={"model": "m"})
    summary = run_data_prepare(cfg)
    assert stage(cfg, "4-difficulty.parquet") == {
        "a": (False, "too hard", None),
        "b": (False, "too easy", None),
        "d": (True, "", None),
        "e": (False, "prompt too long, or all responses undecided", None),
    }
    assert summary["stages"][-1]["more"] == {"policy": "m"}


@pytest.mark.slow
def test_a_policy_is_sampled_and_its_rates_are_those_of_its_responses(tmp_path, warm_model):
    data = {"walk": {"kind": "walk", "length": 2, "states": 4, "operations": 5, "count": 12}}
    more = {"samples": 4, "max_new_tokens": 12, "low": 0.0, "high": 1.0, "verify": {"kind": "exact"}}
    difficulty = {"model": str(warm_model), "backend": {"device": "cpu"}, **more}
    cfg = config(tmp_path, data=data, decontaminate=None, dedup=None, difficulty=difficulty)
    run_data_prepare(cfg)
    outcomes: dict[str, list[float]] = {}
    for row in pq.read_table(cfg.run_dir / "difficulty" / "problems.parquet").to_pylist():
        outcomes.setdefault(row["problem_id"], []).append(row["outcome"])
    found = pq.read_table(cfg.run_dir / "stages" / "4-difficulty.parquet").to_pylist()
    assert {row["id"]: row["value"] for row in found} == {name: sum(o) / 4 for name, o in outcomes.items()}
    assert len(found) == 12
