import gzip
import json
from pathlib import Path

import pytest

from priml.config.eval import EvalConfig
from priml.config.graders import MathVerifier
from priml.config.load import parse_config
from priml.config.suites import read_suite, suite_names
from priml.errors import DataError
from priml.factories.eval_sets import load_eval_sets

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data folder is not here")


def settings(suites, root=DATA, **more):
    tree = {"run_dir": "run", "model": "m", "suites": suites, "data_root": str(root), **more}
    return parse_config(EvalConfig, tree, where="test")


@needs_data
@pytest.mark.parametrize("name", [n for n in suite_names() if (local := read_suite(n).local) and local.sha256])
def test_every_suite_with_a_known_file_has_its_problems(name):
    (found,) = load_eval_sets(settings([name]))
    local = read_suite(name).local
    assert local
    assert len(found.loaded.problems) == local.count
    assert found.form.suffix
    assert "[ASSESS]" in str(found.form.system)
    assert {problem.kind for problem in found.loaded.problems} == {read_suite(name).ask}


@needs_data
def test_each_suite_has_its_own_decoding_and_the_settings_win():
    aime, math500 = load_eval_sets(settings(["aime24", "math500"], samples={"aime24": 16}))
    assert aime.decoding == {
        "max_new_tokens": 4096, "greedy": True, "samples": 16, "temperature": 0.3, "top_p": 0.95
    }  # fmt: skip
    assert math500.decoding == {"max_new_tokens": 8192, "greedy": True}
    own = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 100, "samples": 2, "prompt": {"suffix": "!"}}
    (aime,) = load_eval_sets(settings(["aime24"], **own))
    assert aime.decoding == {"max_new_tokens": 100, "greedy": True, "samples": 2, "temperature": 1.0, "top_p": 1.0}
    assert (aime.form.system, aime.form.suffix) == (None, "!")


@needs_data
def test_the_authors_protocol_has_their_system_message_and_their_rules():
    (amc,) = load_eval_sets(settings(["amc"], protocol="authors"))
    assert amc.form.system
    assert "\n" not in amc.form.system
    assert "\\n" in amc.form.system
    assert isinstance(amc.verify, MathVerifier)
    assert amc.verify.rules == "authors"


@needs_data
def test_a_file_that_is_not_the_one_is_refused(tmp_path):
    (tmp_path / "math").mkdir()
    text = (DATA / "math" / "aime24.jsonl").read_text()
    (tmp_path / "math" / "aime24.jsonl").write_text(text.replace('"204"', '"203"'))
    with pytest.raises(DataError, match="it is another version of this benchmark; restore it"):
        load_eval_sets(settings(["aime24"], tmp_path))
    (tmp_path / "math" / "aime24.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"aime24: found no file .*; leave data_root away to take HuggingFaceH4/aime_2024"
    ):
        load_eval_sets(settings(["aime24"], tmp_path))


def test_another_count_is_refused_and_a_suite_without_a_file_too(tmp_path):
    (tmp_path / "code").mkdir()
    row = {"question_id": "abc311_c", "question_content": "?", "public_test_cases": [{"input": "1", "output": "1"}]}
    with gzip.open(tmp_path / "code" / "livecodebench_v2.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"livecodebench_v2: found 1 problems in .*, need 511"):
        load_eval_sets(settings(["livecodebench_v2"], tmp_path))
    with pytest.raises(DataError, match="aime25: found no place to take it from, need it on the Hub"):
        load_eval_sets(settings(["aime25"], tmp_path))


@needs_data
def test_problems_with_a_known_error_are_flagged():
    (found,) = load_eval_sets(settings(["humanevalplus"]))
    assert [p.id for p in found.loaded.problems if "erratum" in p.meta] == ["HumanEval/32"]
