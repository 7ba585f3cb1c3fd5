import hashlib
import itertools
import math
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from priml.config.data import ChainSource, WalkSource
from priml.config.graders import ExactVerifier, MathVerifier
from priml.data.procedural.tasks import FILLERS, OPERATIONS, STATES, ChainTask, StepJudgement, chain, walk
from priml.data.steps import step_ends
from priml.errors import DataError
from priml.factories.graders import build_verifier
from priml.graders.math import verifier as math_verifier
from priml.models.tiny import character_tokenizer
from priml.types import Problem


def make_chain(*, length: int = 10, **changes: Any) -> ChainTask:
    return chain(ChainSource(kind="chain", length=length, **changes))


def make_walk(*, length: int = 10, **changes: Any) -> ChainTask:
    return walk(WalkSource(kind="walk", length=length, **changes))


def ask(question: str) -> Problem:
    return Problem(id=question, prompt=question, answer="")


def test_a_chain_adds_with_the_letters_a_to_l_and_multiplies_with_m_to_x():
    task = make_chain()
    # 4, +11 = 15 (f), +4 = 19 = 0, +1 = 1; then x2 = 2, x13 = 26 = 7
    assert task.judge_steps(ask("4KDAMX="), "f0127\\boxed{7}") == StepJudgement((True,) * 5, True, (0, 1, 2, 3, 4))


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
        assert judged == StepJudgement((True,) * 10, True, tuple(range(10)))
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
    judged = make_chain().judge_steps(ask("4AAA="), response)
    assert judged == StepJudgement(right, complete=False, ends=tuple(range(len(right))))


def test_states_written_past_the_last_operation_are_not_judged():
    assert make_chain().judge_steps(ask("4A="), "59\\boxed{9}") == StepJudgement((True,), True, (0,))


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


@pytest.mark.parametrize(
    ("make", "digest"),
    [
        (make_chain, "b20196af77a319c093138d60025b7fd3ffa8e93aafb827b104655de1ad63183a"),
        (make_walk, "e8ff51e42a3b43bd2aba41cad1ff238b89794beec40464cd66ba6f938d534c8f"),
    ],
)
def test_problems_and_answers_are_those_of_version_0_1(make, digest: str):
    """Until there was more than one state in the box, and before there were fillers: old runs can be repeated."""
    task = make(seed=3, wrong=0.4 if make is make_chain else (0.3, 0.7))
    sha = hashlib.sha256()
    for split in ("train", "held_out"):
        for trace in task.traces(task.problems(split=split, count=200, seed=3), seed=3):
            problem = trace.problem
            sha.update(repr((problem.id, problem.prompt, problem.answer, problem.kind, trace.response)).encode())
    assert sha.hexdigest() == digest


# --- several states in the box -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxed", "steps"), [(1, [9]), (2, [4, 9]), (3, [2, 5, 9]), (5, [1, 3, 5, 7, 9]), (10, range(10))]
)
@pytest.mark.parametrize("make", [make_chain, make_walk])
def test_the_box_holds_the_states_after_evenly_spread_steps(make, boxed: int, steps):
    task = make(boxed=boxed, doubtful=0.5)
    for trace in task.traces(task.problems(split="train", count=50, seed=0), seed=0):
        states, box = trace.response.removesuffix("}").split("\\boxed{")
        assert box == "".join(states[step] for step in steps)
        assert len(trace.problem.answer) == boxed
        if all(task.judge_steps(trace.problem, trace.response).right):
            assert box == trace.problem.answer


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 60), boxed=st.integers(1, 60), fillers=st.integers(0, 4), seed=st.integers(0, 100))
def test_every_box_has_its_size_and_ends_with_the_last_state(length: int, boxed: int, fillers: int, seed: int):
    boxed = min(boxed, length)
    source = WalkSource(kind="walk", length=length, boxed=boxed, fillers=fillers, seed=seed, count=3, operations=3)
    task = walk(source)
    tokenizer = character_tokenizer()
    for trace in task.traces(task.problems(split="train", count=3, seed=seed), seed=seed):
        judged = task.judge_steps(trace.problem, trace.response)
        box = trace.response.removesuffix("}").split("\\boxed{")[1]
        assert (len(box), box[-1]) == (boxed, trace.response[judged.ends[-1]])
        assert len(tokenizer.encode(trace.response, add_special_tokens=False)) + 1 == source.response_tokens


def luck(task: ChainTask) -> float:
    """Share of the teacher's right answers that have a wrong step."""
    traces = list(task.traces(task.problems(split="train", count=1500, seed=0), seed=0))
    right = [trace for trace in traces if trace.response.endswith(f"{{{trace.problem.answer}}}")]
    assert len(right) > 100
    return fmean(not all(task.judge_steps(trace.problem, trace.response).right) for trace in right)


@pytest.mark.parametrize("make", [make_chain, make_walk])
def test_the_more_states_are_boxed_the_less_is_luck_and_with_all_of_them_nothing(make):
    lucky, some, none = (luck(make(length=15, boxed=boxed, doubtful=0.3, wrong=0.5)) for boxed in (1, 5, 15))
    assert lucky > 0.2
    assert lucky / 2 > some > 0
    assert none == 0


def test_more_states_than_steps_are_refused():
    with pytest.raises(ValidationError, match=r"boxed: found 5, need at most length=4, as a step has one state"):
        make_walk(length=4, boxed=5)


def test_a_row_of_states_is_graded_as_text_though_it_may_look_like_a_number_or_a_product():
    """`1e3`, `007` and `0x1f` are numbers to mathematics, `ab` is `ba`, and `2i` is a product."""
    rng = np.random.default_rng(0)
    names = ["1e3", "007", "00a", "0x1", "2pi", "1e0", "100", "ab1", "b1a", "inf", "nan", "e10"]
    names += ["".join(rng.choice(list("0123456789abei"), 3)) for _ in range(60)]
    problems = [Problem(name, "", name, kind="text") for name in names]
    grade = build_verifier(ExactVerifier(kind="exact"), problems).verifier.grade
    for problem, answer in itertools.product(problems, names):
        assert grade(problem, f"abc.,;\\boxed{{{answer}}}").correct is (answer == problem.answer)
    as_mathematics = [("1e3", "1000"), ("007", "7"), ("ab1", "1ab")]
    assert any(math_verifier.grade(f"\\boxed{{{one}}}", other).correct for one, other in as_mathematics)


def test_mathematics_does_not_take_a_row_of_states():
    with pytest.raises(DataError, match=r"of kind 'text', for which there is no verifier"):
        build_verifier(MathVerifier(), make_walk(boxed=3).problems(split="train", count=3, seed=0))


@pytest.mark.parametrize("make", [make_chain, make_walk])
def test_the_exact_verifier_agrees_with_the_table(make):
    task = make(boxed=10, fillers=2)
    traces = list(task.traces(task.problems(split="held_out", count=1000, seed=0), seed=0))
    grade = build_verifier(ExactVerifier(kind="exact"), [trace.problem for trace in traces]).verifier.grade
    for trace in traces:
        all_right = all(task.judge_steps(trace.problem, trace.response).right)
        assert grade(trace.problem, trace.response).correct is all_right


# --- tokens without a meaning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_chain, make_walk])
def test_fillers_change_nothing_but_the_wording(make):
    plain, wordy = make(boxed=3), make(boxed=3, fillers=4)
    problems = plain.problems(split="train", count=200, seed=0)
    assert problems == wordy.problems(split="train", count=200, seed=0)
    seen: set[str] = set()
    for one, other in zip(plain.traces(problems, seed=0), wordy.traces(problems, seed=0), strict=True):
        steps, box = other.response.split("\\")
        assert f"{steps[:10]}\\{box}" == one.response
        seen |= set(steps[10:])
        assert len(steps) == 14
        judged = wordy.judge_steps(other.problem, other.response)
        assert judged.ends == tuple(range(10))
        assert (judged.right, judged.complete) == (plain.judge_steps(one.problem, one.response).right, True)
    assert seen == set(FILLERS)
    assert not seen & set(STATES + OPERATIONS + "=\\{}")


@settings(max_examples=100, deadline=None)
@given(wording=st.lists(st.text(FILLERS, max_size=4), min_size=4, max_size=4))
def test_any_filler_is_right_and_any_number_of_them(wording: list[str]):
    first, second, third, before_box = wording
    response = f"{first}5{second}6{third}8{before_box}\\boxed{{8}}"
    judged = make_chain(fillers=2).judge_steps(ask("4AAA="), response)
    assert (judged.right, judged.complete) == ((True, True, False), True)
    assert [response[end] for end in judged.ends] == ["5", "6", "8"]


def test_without_fillers_a_filler_ends_the_steps():
    assert make_chain().judge_steps(ask("4AAA="), "5,67") == StepJudgement((True,), False, (0,))


def test_a_pattern_ends_a_step_at_every_state():
    """As `prm.step_pattern`; the tokens that it finds after the steps are those of the box."""
    task, tokenizer = make_walk(fillers=2, boxed=4), character_tokenizer()
    for trace in task.traces(task.problems(split="train", count=20, seed=0), seed=0):
        ids = tokenizer.encode(trace.response, add_special_tokens=False)
        ends = step_ends(ids, tokenizer, "[0-9a-z]")
        assert tuple(ends[:10]) == task.judge_steps(trace.problem, trace.response).ends
