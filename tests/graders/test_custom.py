import asyncio
import time

import numpy as np
import pytest
import torch

from priml.errors import UsageError
from priml.graders.custom import CustomVerifier, load_custom
from priml.graders.pool import fan_out
from priml.types import Problem, Verdict

PROBLEM = Problem(id="p", prompt="3+4", answer="7")


def grade_with(result):
    return CustomVerifier(lambda problem, response: result, name="f").grade(PROBLEM, "7")


@pytest.mark.parametrize(
    ("result", "correct", "score"),
    [
        (True, True, 1.0),
        (False, False, 0.0),
        (1, True, 1.0),
        (0.25, False, 0.25),
        (1.0, True, 1.0),
        (0, False, 0.0),
        (np.bool_(True), True, 1.0),
        (np.float32(0.25), False, 0.25),
        (np.array(1), True, 1.0),
        (torch.tensor(False), False, 0.0),
        (torch.tensor(0.5), False, 0.5),
    ],
)
def test_bools_and_scores_become_verdicts(result, correct, score):
    verdict = grade_with(result)
    assert (verdict.correct, verdict.score, verdict.reason) == (correct, score, "custom")


def test_a_verdict_is_passed_on():
    verdict = Verdict.wrong("too rude", "7")
    assert grade_with(verdict) is verdict


@pytest.mark.parametrize(
    "result", [None, "yes", 1.5, -1, float("nan"), [1.0], {"score": 1.0}, np.ones(1), np.array(None)]
)
def test_anything_else_is_refused_with_what_was_found_and_what_is_needed(result):
    with pytest.raises(UsageError, match=r"f returned .*Verdict, a bool, or a number from 0 to 1"):
        grade_with(result)


def test_an_exception_in_the_function_decides_nothing():
    verdict = CustomVerifier(lambda problem, response: {}["missing"], name="f").grade(PROBLEM, "7")
    assert (verdict.label, verdict.reason) == ("undecided", "KeyError in f")


def test_the_function_sees_the_problem_and_the_response():
    verifier = CustomVerifier(lambda problem, response: response == problem.answer, name="f")
    assert verifier.grade(PROBLEM, "7").correct is True
    assert verifier.grade(PROBLEM, "8").correct is False


def test_async_calls_overlap_in_one_event_loop():
    loops, waiting, all_here = set(), [], asyncio.Event()

    async def meets_the_others(problem, response):
        loops.add(asyncio.get_running_loop())
        waiting.append(response)
        if len(waiting) == 16:
            all_here.set()
        await asyncio.wait_for(all_here.wait(), 60)  # returns only when all sixteen are in flight
        return response == problem.answer

    verifier = CustomVerifier(meets_the_others, name="meets_the_others")
    verdicts = fan_out(lambda response: verifier.grade(PROBLEM, response), ["7"] * 8 + ["8"] * 8)
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


def test_a_verifier_is_loaded_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("def grade(problem, response): return problem.answer in response")
    monkeypatch.chdir(tmp_path)
    assert load_custom("my_rewards.py:grade").grade(PROBLEM, "it is 7").correct is True
    with pytest.raises(UsageError, match=r"^verify\.function=.*no function 'grdae'"):
        load_custom("my_rewards.py:grdae")
