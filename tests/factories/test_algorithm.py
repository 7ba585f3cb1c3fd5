"""Each of the six names in the settings becomes the part it names: the example names them all."""

from pathlib import Path

import pytest

from priml.config.load import load_config
from priml.config.models import CustomPrm
from priml.config.train import TrainConfig
from priml.errors import DataError, UsageError
from priml.factories.algorithm import build_estimator, build_surrogate
from priml.factories.data import load_source
from priml.factories.learners import build_custom_prm
from priml.maths import ESTIMATORS, SURROGATES
from priml.plugins import load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cfg(monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.chdir(ROOT)
    return load_config(TrainConfig, ROOT / "examples" / "custom" / "train.yaml")


def test_our_names_are_our_functions():
    assert build_estimator("rloo") is ESTIMATORS["rloo"]
    assert build_surrogate("gspo") is SURROGATES["gspo"]


def test_the_parts_of_the_example_can_be_built(cfg: TrainConfig, tmp_path: Path):
    assert callable(build_estimator(cfg.advantage.estimator))
    assert callable(build_surrogate(cfg.loss.surrogate))
    assert isinstance(cfg.prm, CustomPrm)
    assert build_custom_prm(cfg.prm, None)
    tracker = load(cfg.trackers[0].function, setting="trackers.function", takes=("folder",))(tmp_path)
    tracker.log({"step": 1, "outcome/mean": 0.5})
    tracker.close()
    assert (tmp_path / "outcome.csv").read_text().strip() == "1,0.5"
    problems = load_source(cfg.data.train).problems
    assert (problems[0].prompt, problems[0].answer, len(problems)) == ("0A=", "1", 512)


def test_a_function_that_is_not_there_is_named_with_its_setting(cfg: TrainConfig):
    with pytest.raises(UsageError, match=r"advantage.estimator='examples/custom/parts.py:nothing'"):
        build_estimator("examples/custom/parts.py:nothing")


def test_a_row_that_is_no_problem_is_named_with_the_function(cfg: TrainConfig, tmp_path: Path):
    (tmp_path / "rows.py").write_text("def rows():\n    return [{'problem': 'x'}]\n")
    source = cfg.data.train.model_copy(update={"function": f"{tmp_path}/rows.py:rows"})
    with pytest.raises(DataError, match=r"rows\.py:rows"):
        load_source(source)


def test_a_data_source_that_raises_is_named_with_its_line(cfg: TrainConfig, tmp_path: Path):
    (tmp_path / "rows.py").write_text("def rows():\n    yield {'problem': 'x', 'answer': '1'}\n    {}['y']\n")
    source = cfg.data.train.model_copy(update={"function": f"{tmp_path}/rows.py:rows"})
    with pytest.raises(UsageError, match=r"data\.function: .*rows\.py:rows fails: KeyError: 'y' .*line 3"):
        load_source(source)
