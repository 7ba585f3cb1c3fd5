import json

import pytest

from priml.commands.eval import run_eval
from priml.commands.eval_compare import run_eval_compare
from priml.config.eval import EvalConfig
from priml.config.load import parse_config
from priml.errors import UsageError

TASK = {"kind": "walk", "length": 2, "states": 4, "operations": 5, "split": "held_out", "count": 6}


def evaluated(folder, model, **settings):
    tree = {"run_dir": str(folder), "model": str(model), "data": {"easy": TASK}, "samples": 2, "max_new_tokens": 6}
    run_eval(parse_config(EvalConfig, tree | {"backend": {"device": "cpu"}} | settings, where="test"))
    return folder


def test_two_evaluations_are_compared_problem_by_problem(tmp_path, warm_model):
    first, second = evaluated(tmp_path / "a", warm_model), evaluated(tmp_path / "b", warm_model, seed=1)
    table = run_eval_compare(first, second).splitlines()
    assert table[0] == f"first: {first}, second: {second}"
    means = [json.loads((folder / "eval.json").read_text())["easy"] for folder in (first, second)]
    for line, decoding in zip(table[2:4], ("greedy", "sampled"), strict=True):
        cells = line.split()
        assert cells[:2] == ["easy", decoding]
        assert cells[2:4] == [f"{100 * one[decoding]['mean']:.1f}" for one in means]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"max_new_tokens": 5}, r"easy: .* has the decoding .*'max_new_tokens': 6.*only the same decoding compares"),
        ({"data": {"easy": TASK | {"seed": 1}}}, r"easy: .* has other problems: .*only the same problems compare"),
        ({"data": {"hard": TASK}}, r"has the sets easy, .* has hard; need one of the same name in both"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, warm_model, other, said):
    first, second = evaluated(tmp_path / "a", warm_model), evaluated(tmp_path / "b", warm_model, **other)
    with pytest.raises(UsageError, match=said):
        run_eval_compare(first, second)


def test_a_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"found no eval\.json, need the folder of a finished evaluation"):
        run_eval_compare(tmp_path, tmp_path)
