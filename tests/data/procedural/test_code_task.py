import re
from collections.abc import Callable
from itertools import accumulate
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.config.data import TinyCodeSource
from priml.data.procedural.code_task import INPUTS, LETTERS, CodeTask
from priml.data.procedural.tasks import StepJudgement
from priml.errors import DataError
from priml.types import CodeTests, Problem


def make_task(
    *, length: int = 6, doubtful: float = 0.3, wrong: float | tuple[float, ...] = (0.3, 0.7), seed: int = 0
) -> CodeTask:
    return CodeTask(TinyCodeSource(kind="tiny_code", length=length, doubtful=doubtful, wrong=wrong, seed=seed))


def function(program: str) -> Callable[[int], int]:
    """What a program of the task's own defines; it holds arithmetic and nothing else."""
    names: dict[str, Callable[[int], int]] = {}
    exec(program, names)
    return names["f"]


def extract_program(response: str) -> str:
    opened, program, closed = re.split(r"```(?:python\n)?", response)
    assert (opened, closed) == ("", "")
    return program


def code_tests(problem: Problem) -> CodeTests:
    assert problem.tests is not None
    return problem.tests


def share_passed(problem: Problem, program: str) -> float:
    tests, f = code_tests(problem), function(program)
    return fmean(f(*arguments) == value for arguments, value in zip(tests.inputs, tests.outputs, strict=True))


def same_function(program: str, other: str) -> bool:
    f, g = function(program), function(other)
    return all(f(x) == g(x) for x in range(5000))


def test_a_problem_names_its_operations_and_is_tested_by_calls():
    (problem,) = make_task(length=3).problems(split="train", count=1, seed=0)
    assert re.fullmatch(r"\w{3}=", str(problem.prompt))
    assert (problem.kind, problem.source, problem.id) == ("code", "tiny_code", f"tiny_code/{problem.prompt}")
    tests = code_tests(problem)
    assert (tests.kind, tests.entry_point) == ("call", "f")
    assert tests.inputs == tuple([x] for x in INPUTS)


def test_the_answer_is_a_program_that_passes_its_tests():
    for problem in make_task().problems(split="held_out", count=200, seed=0):
        assert share_passed(problem, problem.answer) == 1.0


def test_the_function_has_one_line_for_each_letter():
    (problem,) = make_task(length=4).problems(split="train", count=1, seed=0)
    first, second, third, fourth = str(problem.prompt).removesuffix("=")
    lines = problem.answer.splitlines()
    assert lines[0] == "def f(x):"
    for line, new, old in zip(lines[1:5], (first, second, third, fourth), ("x", first, second, third), strict=True):
        assert re.fullmatch(rf" {new}={old}(//|[-+*^|])[2-9]", line)
    assert lines[5:] == [f" return {fourth}"]


def test_without_doubtful_letters_the_teacher_writes_the_answer():
    task = make_task(doubtful=0.0)
    for trace in task.traces(task.problems(split="train", count=50, seed=0), seed=0):
        assert trace.response == f"```python\n{trace.problem.answer}```"
        judged = task.judge_steps(trace.problem, trace.response)
        assert (judged.right, judged.complete) == ((True,) * 6, True)


def test_the_teacher_errs_in_the_doubtful_letters_only_and_always_with_the_same_meaning():
    task = make_task(doubtful=0.3, wrong=(0.3, 0.7))
    written: dict[str, list[tuple[str, bool]]] = {}
    for trace in task.traces(task.problems(split="train", count=2000, seed=0), seed=0):
        judged = task.judge_steps(trace.problem, trace.response)
        for line, ok in zip(extract_program(trace.response).splitlines()[1:-1], judged.right, strict=True):
            written.setdefault(line[1], []).append((line[4:], ok))
    assert set(written) == set(LETTERS)
    wrong = {letter: {meaning for meaning, ok in uses if not ok} for letter, uses in written.items()}
    rates = sorted(1 - fmean(ok for _, ok in written[letter]) for letter in LETTERS if wrong[letter])
    assert {len(meanings) for meanings in wrong.values()} == {0, 1}
    assert len(rates) == 15  # exactly 30 % of 50
    assert rates == pytest.approx([0.3] * 8 + [0.7] * 7, abs=0.12)


def test_hardly_a_wrong_line_goes_unnoticed_and_some_tests_pass_nevertheless():
    shares: list[float] = []
    for seed in range(4):
        task = make_task(seed=seed)
        for trace in task.traces(task.problems(split="train", count=300, seed=0), seed=0):
            program = extract_program(trace.response)
            share = share_passed(trace.problem, program)
            if all(task.judge_steps(trace.problem, trace.response).right):
                assert share == 1.0
            elif share < 1.0 or not same_function(program, trace.problem.answer):
                shares.append(share)
    assert len(shares) > 500
    assert fmean(share == 1.0 for share in shares) < 0.01
    assert 0.15 < fmean(0.0 < share < 1.0 for share in shares) < 0.4


def test_lines_are_judged_one_by_one():
    task = make_task(length=3)
    (problem,) = task.problems(split="train", count=1, seed=0)
    head, first, second, third, tail = problem.answer.splitlines()

    def judged(*lines: str) -> StepJudgement:
        return task.judge_steps(problem, "```python\n" + "\n".join(lines) + "\n```")

    wrong = first[:-1] + ("2" if first[-1] != "2" else "3")

    def ends(*lines: str) -> tuple[int, ...]:  # the line breaks belong to their lines
        return tuple(accumulate(len(line) + 1 for line in ("```python", *lines)))[1:]

    def expected(right: tuple[bool, ...], *, complete: bool) -> StepJudgement:
        return StepJudgement(
            right, complete, tuple(end - 1 for end in ends(head, first, second, third)[1:])[: len(right)]
        )

    assert judged(head, first, second, third, tail) == expected((True,) * 3, complete=True)
    assert judged(head, wrong, second, third, tail) == expected((False, True, True), complete=True)
    assert judged(head, first, third, second, tail).right == (True, False, False)
    assert judged(head, first, second, tail) == expected((True, True), complete=False)
    assert judged(head, first, second, third, third, tail) == expected((True,) * 3, complete=False)
    assert task.judge_steps(problem, "no code") == StepJudgement(right=(), complete=False, ends=())
    assert task.judge_steps(problem, "") == StepJudgement(right=(), complete=False, ends=())


@settings(max_examples=25, deadline=None)
@given(length=st.integers(3, 20), seed=st.integers(0, 2**31), others=st.integers(0, 2**31))
def test_no_training_problem_is_ever_held_out(length: int, seed: int, others: int):
    train = make_task(length=length, seed=seed).problems(split="train", count=60, seed=seed)
    held_out = make_task(length=length, seed=others).problems(split="held_out", count=60, seed=others)
    assert len({p.prompt for p in train} | {p.prompt for p in held_out}) == 120


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, len(LETTERS)), seed=st.integers(0, 1000))
def test_letters_are_all_different(length: int, seed: int):
    for problem in make_task(length=length, seed=seed).problems(split="train", count=3, seed=seed):
        letters = str(problem.prompt).removesuffix("=")
        assert len(set(letters)) == len(letters) == length


def test_the_same_seed_gives_the_same_problems_and_answers():
    first, second = (make_task(seed=5) for _ in range(2))
    problems = first.problems(split="train", count=20, seed=1)
    assert problems == second.problems(split="train", count=20, seed=1)
    assert problems != second.problems(split="train", count=20, seed=2)
    assert list(first.traces(problems, seed=3)) == list(second.traces(problems, seed=3))
    assert problems[0].answer != make_task(seed=6).problems(split="train", count=1, seed=1)[0].answer


def test_asking_for_more_problems_than_there_are_is_refused():
    with pytest.raises(DataError, match=r"tiny_code task with length=1 .* count=60 were asked for; raise length"):
        make_task(length=1).problems(split="train", count=60, seed=0)
