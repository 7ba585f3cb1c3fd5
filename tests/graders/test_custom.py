import asyncio
import time

import pytest

from priml.errors import UsageError
from priml.graders.custom import CustomVerifier, load_custom
from priml.graders.pool import fan_out
from priml.types import Problem, Verdict

PROBLEM = Problem(id="p", prompt="3+4", answer="7")


def verdict_of(result):
    return CustomVerifier(lambda problem, response: result, name="f").grade(PROBLEM, "7")


@pytest.mark.parametrize(
    ("result", "correct", "score"),
    [(True, True, 1.0), (False, False, 0.0), (1, True, 1.0), (0.25, False, 0.25), (1.0, True, 1.0), (0, False, 0.0)],
)
def test_bools_and_scores_become_verdicts(result, correct, score):
    verdict = verdict_of(result)
    assert (verdict.correct, verdict.score, verdict.reason) == (correct, score, "custom")


def test_a_verdict_is_passed_on():
    verdict = Verdict.wrong("too rude", "7")
    assert verdict_of(verdict) is verdict


@pytest.mark.parametrize("result", [None, "yes", 1.5, -1, float("nan"), [1.0], {"score": 1.0}])
def test_anything_else_is_refused_with_what_was_found_and_what_is_needed(result):
    with pytest.raises(UsageError, match=r"f returned .*Verdict, a bool, or a number from 0 to 1"):
        verdict_of(result)


def test_an_exception_in_the_function_decides_nothing():
    verdict = CustomVerifier(lambda problem, response: {}["missing"], name="f").grade(PROBLEM, "7")
    assert (verdict.label, verdict.reason) == ("undecided", "KeyError in f")


def test_the_function_sees_the_problem_and_the_response():
    verifier = CustomVerifier(lambda problem, response: response == problem.answer, name="f")
    assert verifier.grade(PROBLEM, "7").correct is True
    assert verifier.grade(PROBLEM, "8").correct is False


def test_async_calls_overlap_in_one_event_loop():
    loops = set()

    async def slow(problem, response):
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0.2)
        return response == problem.answer

    verifier = CustomVerifier(slow, name="slow")
    start = time.monotonic()
    verdicts = fan_out(lambda response: verifier.grade(PROBLEM, response), ["7"] * 8 + ["8"] * 8)
    assert time.monotonic() - start < 1.5
    assert [v.correct for v in verdicts] == [True] * 8 + [False] * 8
    assert len(loops) == 1


def test_an_exception_in_an_async_function_decides_nothing():
    async def broken(problem, response):
        raise TimeoutError

    assert CustomVerifier(broken, name="broken").grade(PROBLEM, "7").reason == "TimeoutError in broken"


def test_plain_functions_are_never_called_twice_at_once():
    running = []

    def careful(problem, response):
        running.append(1)
        time.sleep(0.005)
        alone = len(running) == 1
        running.pop()
        return alone

    verifier = CustomVerifier(careful, name="careful")
    assert all(v.correct for v in fan_out(lambda _: verifier.grade(PROBLEM, "7"), range(20)))


def test_a_function_is_loaded_from_a_file_or_a_module(tmp_path, monkeypatch):
    source = """
from dataclasses import dataclass

@dataclass
class Rule:
    answer: str

def grade(problem, response):
    return Rule(problem.answer).answer in response
"""
    (tmp_path / "my_rewards.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_rewards.py:grade", f"{tmp_path}/my_rewards.py:grade", "my_rewards:grade"):
        assert load_custom(name).grade(PROBLEM, "it is 7").correct is True


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rewards.py", "does not name a function"),
        ("my_rewards.py:", "does not name a function"),
        ("nowhere.py:grade", "no file nowhere.py"),
        ("no_such_package.rewards:grade", "no module named 'no_such_package'"),
        ("json.no_such_module:grade", "no module named 'json.no_such_module'"),
        ("my_rewards.py:grdae", r"no function 'grdae' \(it defines: grade\)"),
        ("my_rewards.py:limit", "no function 'limit'"),
    ],
)
def test_what_cannot_be_found_is_named(tmp_path, monkeypatch, name, message):
    (tmp_path / "my_rewards.py").write_text("limit = 3\ndef grade(problem, response): return True\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        load_custom(name)


def test_an_import_error_inside_the_users_module_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "needy_rewards.py").write_text("import a_module_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_nobody_has"):
        load_custom("needy_rewards:grade")
