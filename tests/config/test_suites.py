import pytest

from priml.config.eval import EvalConfig
from priml.config.load import parse_config
from priml.config.suites import PAPER, expand_suites, read_prompts, read_suite, suite_names
from priml.errors import ConfigError

NEEDED = {"run_dir": "run", "model": "m"}


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_says_where_it_is_and_under_which_licence(name):
    suite = read_suite(name)
    assert suite.local or suite.hub
    assert suite.licence
    assert suite.greedy or suite.samples, "something is sampled"
    assert bool(suite.published) is (name in PAPER)


def test_the_published_means_are_those_of_the_paper():
    means = {"GPT-4o": 45.6, "Llama-3.1-70B-Instruct": 37.0, "Qwen2.5-Math-7B-Instruct": 34.6}
    means |= {"Eurus-2-7B-SFT": 28.8, "Eurus-2-7B-PRIME": 43.9}
    for model, mean in means.items():
        assert sum(read_suite(name).published[model] for name in PAPER) / 7 == pytest.approx(mean, abs=0.15)


def test_the_prompt_is_that_of_the_training_data():
    prompts = read_prompts()
    actions = ["ASSESS", "ADVANCE", "VERIFY", "SIMPLIFY", "SYNTHESIZE", "PIVOT", "OUTPUT"]
    assert all(f"[{action}]\n" in prompts.system for action in actions)
    assert prompts.math == "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
    assert "```python\nYour code\n```" in prompts.code


def test_the_paper_is_its_seven_and_no_suite_comes_twice():
    assert expand_suites(["amc", "paper", "gsm8k", "amc"]) == (
        "amc", "aime24", "math500", "minerva", "olympiadbench", "leetcode", "livecodebench_v2", "gsm8k"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"suites": ["aime2024"]}, "suites: found 'aime2024', need some of paper, aime24, .*; did you mean 'aime24'?"),
        ({"suites": ["mathh500"]}, "did you mean 'math500'?"),
        ({}, "found neither data nor suites, need one of them"),
        ({"suites": ["amc"], "samples": {"amc23": 4}}, "samples: found 'amc23', need some of amc; did you mean 'amc'?"),
        (
            {"suites": ["amc"], "data": {"amc": {"kind": "chain"}}},
            "data: found 'amc', which is a suite of this run; give your data another name",
        ),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest_name(settings, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        parse_config(EvalConfig, NEEDED | settings, where="eval.yaml")
