import math
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.config.data import ChainSource, WalkSource
from priml.data.procedural.tasks import OPERATIONS, STATES, ChainTask, StepJudgement, chain, walk
from priml.errors import DataError
from priml.graders.math import verifier as math_verifier
from priml.types import Problem


def make_chain(
    *, length: int = 10, doubtful: float = 0.2, wrong: float | tuple[float, ...] = 0.4, seed: int = 0
) -> ChainTask:
    return chain(ChainSource(kind="chain", length=length, modulus=19, doubtful=doubtful, wrong=wrong, seed=seed))


def make_walk(
    *, length: int = 10, doubtful: float = 0.2, wrong: float | tuple[float, ...] = 0.4, seed: int = 0
) -> ChainTask:
    return walk(WalkSource(kind="walk", length=length, doubtful=doubtful, wrong=wrong, seed=seed))


def ask(question: str) -> Problem:
    return Problem(id=question, prompt=question, answer="")


def test_a_chain_adds_with_the_letters_a_to_l_and_multiplies_with_m_to_x():
    task = make_chain()
    # 4, +11 = 15 (f), +4 = 19 = 0, +1 = 1; then x2 = 2, x13 = 26 = 7
    assert task.judge_steps(ask("4KDAMX="), "f0127\\boxed{7}") == StepJudgement(right=(True,) * 5, complete=True)


def test_every_operation_of_a_walk_is_a_permutation():
    task = make_walk()
    for op in OPERATIONS:
        reached = [
            new
            for old in STATES[:20]
            for new in STATES[:20]
            if task.judge_steps(ask(f"{old}{op}="), new).right == (True,)
        ]
        assert sorted(reached) == sorted(STATES[:20])


def test_walks_of_different_seeds_have_different_facts():
    problems = make_walk(seed=0).problems(split="train", count=50, seed=0)
    facts, others = (
        [next(make_walk(seed=s, doubtful=0).traces([p], seed=0)).response for p in problems] for s in (0, 1)
    )
    assert facts != others


@pytest.mark.parametrize("make", [make_chain, make_walk])
def test_without_doubtful_facts_the_teacher_is_right_in_every_step(make):
    task = make(doubtful=0.0)
    problems = task.problems(split="train", count=50, seed=0)
    for trace in task.traces(problems, seed=0):
        judged = task.judge_steps(trace.problem, trace.response)
        assert judged == StepJudgement(right=(True,) * 10, complete=True)
        assert judged.first_wrong is None
        assert trace.response.endswith(f"\\boxed{{{trace.problem.answer}}}")


def test_the_teacher_errs_at_its_rate_and_always_with_the_same_value():
    task = make_walk(length=40, doubtful=0.25, wrong=0.5)
    written: dict[tuple[str, str], list[tuple[str, bool]]] = {}
    for trace in task.traces(task.problems(split="train", count=1000, seed=0), seed=0):
        question = trace.problem.prompt
        assert isinstance(question, str)
        before = question[0] + trace.response[:39]
        right = task.judge_steps(trace.problem, trace.response).right
        for state, op, new, ok in zip(before, question[1:-1], trace.response[:40], right, strict=True):
            written.setdefault((state, op), []).append((new, ok))
    assert len(written) == 520
    wrong_values = [{new for new, ok in uses if not ok} for uses in written.values()]
    assert max(len(values) for values in wrong_values) == 1
    assert fmean(map(bool, wrong_values)) == pytest.approx(0.25, abs=0.05)
    rates = [
        1 - fmean(ok for _, ok in uses) for uses, values in zip(written.values(), wrong_values, strict=True) if values
    ]
    assert fmean(rates) == pytest.approx(0.5, abs=0.02)


def test_of_several_error_rates_each_doubtful_fact_has_one():
    task = make_walk(length=40, doubtful=1.0, wrong=(0.0, 1.0))
    seen: dict[tuple[str, str], set[bool]] = {}
    for trace in task.traces(task.problems(split="train", count=200, seed=0), seed=0):
        question = trace.problem.prompt
        assert isinstance(question, str)
        right = task.judge_steps(trace.problem, trace.response).right
        for state, op, ok in zip(question[0] + trace.response[:39], question[1:-1], right, strict=True):
            seen.setdefault((state, op), set()).add(ok)
    assert {len(outcomes) for outcomes in seen.values()} == {1}
    assert fmean(outcomes == {True} for outcomes in seen.values()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("length", "doubtful", "wrong"), [(15, 0.2, 0.4), (30, 0.15, 0.4), (60, 0.1, 0.5)])
def test_the_success_rate_of_the_teacher_follows_length_and_error_rate(length: int, doubtful: float, wrong: float):
    rates: list[float] = []
    for seed in range(4):  # over several tables of facts, as each has its own luck
        task = make_walk(length=length, doubtful=doubtful, wrong=wrong, seed=seed)
        traces = task.traces(task.problems(split="train", count=500, seed=0), seed=0)
        rates.append(fmean(t.response.endswith(f"{{{t.problem.answer}}}") for t in traces))
    all_right = (1 - doubtful * wrong) ** length
    assert math.log(fmean(rates)) == pytest.approx(math.log(all_right + (1 - all_right) / 20), abs=0.25)


def test_steps_are_judged_against_the_state_written_before_them():
    task = make_chain()
    problem = ask("4AAA=")  # 5, 6, 7
    assert task.judge_steps(problem, "567\\boxed{7}").right == (True, True, True)
    assert task.judge_steps(problem, "678\\boxed{8}").right == (False, True, True)
    assert task.judge_steps(problem, "568\\boxed{8}").right == (True, True, False)
    assert task.judge_steps(problem, "678").first_wrong == 0
    assert task.judge_steps(problem, "568").first_wrong == 2


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("", ()),
        ("5", (True,)),
        ("5\\boxed{5}", (True,)),
        ("5 67", (True,)),  # a space is no state
        ("5z", (True,)),  # neither is a character beyond the modulus
        ("\\boxed{7}", ()),
    ],
)
def test_a_response_that_breaks_off_or_cannot_be_read_is_incomplete(response: str, right: tuple[bool, ...]):
    assert make_chain().judge_steps(ask("4AAA="), response) == StepJudgement(right=right, complete=False)


def test_states_written_past_the_last_operation_are_not_judged():
    assert make_chain().judge_steps(ask("4A="), "59\\boxed{9}") == StepJudgement(right=(True,), complete=True)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(5, 80), seed=st.integers(0, 2**31), others=st.integers(0, 2**31))
def test_no_training_problem_is_ever_held_out(length: int, seed: int, others: int):
    train = make_chain(length=length, seed=seed).problems(split="train", count=60, seed=seed)
    held_out = make_chain(length=length, seed=others).problems(split="held_out", count=60, seed=others)
    questions = {p.prompt for p in train} | {p.prompt for p in held_out}
    assert len(questions) == 120
    assert len({p.id for p in train} | {p.id for p in held_out}) == 120


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 40), modulus=st.integers(3, 36), seed=st.integers(0, 100))
def test_a_question_says_all_there_is_to_know(length: int, modulus: int, seed: int):
    """Whoever follows the table from the question alone arrives at the answer, in one token per operation."""
    task = chain(ChainSource(kind="chain", length=length, modulus=modulus, doubtful=0.0, wrong=0.0, seed=seed))
    problems = task.problems(split="train", count=5, seed=seed)
    for trace in task.traces(problems, seed=seed):
        states = trace.response.removesuffix(f"\\boxed{{{trace.problem.answer}}}")
        assert len(states) == length
        assert states[-1] == trace.problem.answer
        assert task.judge_steps(trace.problem, trace.response).complete


def test_the_same_seed_gives_the_same_problems_and_answers():
    first, second = (make_chain(seed=5) for _ in range(2))
    problems = first.problems(split="train", count=20, seed=1)
    assert problems == second.problems(split="train", count=20, seed=1)
    assert problems != second.problems(split="train", count=20, seed=2)
    assert list(first.traces(problems, seed=3)) == list(second.traces(problems, seed=3))


def test_more_problems_of_a_seed_begin_with_the_same_ones():
    task = make_chain()
    assert task.problems(split="held_out", count=30, seed=0)[:10] == task.problems(split="held_out", count=10, seed=0)


def test_asking_for_more_problems_than_there_are_is_refused():
    with pytest.raises(DataError, match=r"length=1 .* count=600 were asked for; raise length or lower count"):
        make_chain(length=1).problems(split="train", count=600, seed=0)


@pytest.mark.parametrize("make", [make_chain, make_walk])
def test_the_math_verifier_agrees_with_the_table(make):
    """Digits are numbers to it and letters are symbols; both are graded without the symbolic engine's help."""
    task = make()
    for trace in task.traces(task.problems(split="held_out", count=100, seed=0), seed=0):
        answer = trace.problem.answer
        is_right = trace.response.endswith(f"\\boxed{{{answer}}}")
        assert math_verifier.grade(trace.response, answer).correct is is_right
        assert not any(
            math_verifier.grade(f"\\boxed{{{state}}}", answer).correct for state in STATES if state != answer
        )
