import pytest

from fakes import tiny_config
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.errors import DataError
from priml.factories.graders import build_verifier
from priml.sandbox import SandboxUnavailable
from priml.types import CodeTests, Problem

TESTS = CodeTests(kind="stdin", inputs=("1 2\n", "3 4\n"), outputs=("3\n", "7\n"))
UNSAFE = {"kind": "code", "sandbox": {"kind": "unsafe-subprocess"}}
MATH = Problem(id="m", prompt="?", answer="2", source="numina/1")
CODE = Problem(id="c", prompt="?", answer="", source="taco/1", kind="code", tests=TESTS)
CHOICE = Problem(id="l", prompt="?", answer="(B)", source="amc/1")

ADD = "```python\nprint(sum(map(int, input().split())))\n```"


def make_judge(verify, *problems):
    tree = {"run_dir": "r", "policy": {"model": "m"}, "data": {"train": {"kind": "chain"}}, "verify": verify}
    return build_verifier(parse_config(TrainConfig, tree, where="test").verify, problems)


def reason(judge, problem, response):
    return judge.verifier.grade(problem, response).reason


def test_mathematics_is_judged_and_other_kinds_are_refused_before_anything_runs():
    judge = make_judge({"kind": "math"}, MATH)
    assert reason(judge, MATH, r"\boxed{2}") == "equal"
    with pytest.raises(DataError, match=r"problem 'c' .* is of kind 'code', for which there is no verifier"):
        make_judge({"kind": "math"}, MATH, CODE)


@pytest.mark.parametrize("verify", [{"kind": "choice"}, {"kind": "exact"}])
def test_letters_and_texts_are_judged_whatever_the_kind(verify):
    problem = Problem(id="p", prompt="?", answer="B", kind="biology")
    judge = make_judge(verify, problem, CHOICE)
    assert reason(judge, problem, r"\boxed{B}") == "equal"
    assert reason(judge, CHOICE, r"\boxed{(B)}") == "equal"


def test_a_users_own_function_is_called(tmp_path, warm_model):
    judge = build_verifier(tiny_config(tmp_path, warm_model).verify, [MATH])
    assert judge.verifier.grade(MATH, "0").correct is True
    assert judge.verifier.grade(MATH, "1").correct is False


def test_programs_run_in_the_sandbox_that_was_asked_for_and_it_is_said(said):
    judge = make_judge(UNSAFE, CODE)
    verdict = judge.verifier.grade(CODE, ADD)
    assert (verdict.correct, verdict.score) == (True, 1.0)
    assert judge.verifier.grade(CODE, ADD.replace("sum", "max")).correct is False
    assert judge.isolation == ("none (unsafe-subprocess)",)
    assert said[-1] == "verify: programs run in a sandbox: none (unsafe-subprocess)"


def test_limits_and_scoring_reach_the_grader():
    half = ADD.replace("print(", "print(3 or ")
    assert make_judge(UNSAFE, CODE).verifier.grade(CODE, half).score == 0.5
    assert make_judge(UNSAFE | {"all_or_nothing": True}, CODE).verifier.grade(CODE, half).score == 0.0
    assert reason(make_judge(UNSAFE, CODE), CODE, "print(1)") == "no answer"
    assert make_judge(UNSAFE | {"bare_programs": True}, CODE).verifier.grade(CODE, ADD[10:-3]).correct is True
    slow = make_judge(UNSAFE | {"time_limit": 0.5, "stop_early": True}, CODE)
    assert reason(slow, CODE, "```python\nwhile True: pass\n```") == "time limit"


def test_kinds_and_sources_go_to_their_verifiers():
    mixed = {
        "kind": "mixed",
        "kinds": {"math": {"kind": "math"}, "code": UNSAFE},
        "sources": {"amc": {"kind": "choice"}},
    }
    judge = make_judge(mixed, MATH, CODE, CHOICE)
    assert reason(judge, MATH, r"\boxed{2}") == "equal"
    assert reason(judge, CODE, r"\boxed{2}") == "no answer"
    assert reason(judge, CHOICE, r"\boxed{(B) 42}") == "equal"


def test_a_sandbox_is_opened_only_when_there_is_code_to_run():
    mixed = {"kind": "mixed", "kinds": {"math": {"kind": "math"}, "code": UNSAFE}}
    assert make_judge(mixed, MATH).isolation == ()
    assert len(make_judge(mixed, MATH, CODE).isolation) == 1


def test_two_verifiers_with_the_same_sandbox_share_it():
    mixed = {"kind": "mixed", "kinds": {"code": UNSAFE}, "sources": {"apps": UNSAFE | {"all_or_nothing": True}}}
    apps = Problem(id="a", prompt="?", answer="", source="apps/1", kind="code", tests=TESTS)
    assert len(make_judge(mixed, CODE, apps).isolation) == 1


@pytest.mark.parametrize(
    ("verify", "problem", "said"),
    [
        ({"kind": "choice"}, MATH, "problem 'm': its answer is '2', needed the letter of an option"),
        ({"kind": "mixed", "kinds": {"math": UNSAFE}}, MATH, "problem 'm' .* has no tests"),
        ({"kind": "mixed", "kinds": {"math": {"kind": "math"}}}, CODE, r"kind 'code'.*\(there is one for: math\)"),
        (UNSAFE, MATH, r"problem 'm' .*of kind 'math'.*\(there is one for: code\)"),
    ],
)
def test_a_problem_that_its_verifier_cannot_judge_is_refused_before_the_run(verify, problem, said):
    with pytest.raises(DataError, match=said):
        make_judge(verify, problem)


def test_missing_isolation_is_missed_before_the_run(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")  # no `docker` here
    with pytest.raises(SandboxUnavailable):
        make_judge({"kind": "code", "sandbox": {"kind": "docker"}}, CODE)
