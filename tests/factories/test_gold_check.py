"""A set whose golds cannot tell right from wrong is refused before a run."""

import json
import logging
import re

import pytest

from priml.config import graders as config
from priml.config.data import FileSource
from priml.errors import DataError, UsageError
from priml.factories.data import load_source
from priml.factories.graders import build_verifier
from priml.types import CodeTests, Message, Problem

MATH = config.MathVerifier()
CODE = config.CodeVerifier()


def problems(*answers, **more):
    return [Problem(f"p{n}", "?", answer, **more) for n, answer in enumerate(answers)]


def programs(*asserts, solution=None):
    meta = {} if solution is None else {"canonical_solution": solution}
    tests = CodeTests(kind="assert_list", asserts=asserts)
    return [Problem(f"p{n}", "?", "", kind="code", tests=tests, meta=meta) for n in range(3)]


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        (MATH, problems("42", "-3", "\\frac{1}{2}", "x^2 + 1", "(0, 1)", "\\text{Sunday}", "0.5")),
        (MATH, problems("1000", "999", "x=10", "90^\\circ")),
        (config.ChoiceVerifier(kind="choice"), problems("A", "B", "C")),
        (config.ExactVerifier(kind="exact"), problems("yes", "no", "7")),
        (config.ExactVerifier(kind="exact", place="whole"), problems("yes", "no", "7")),
        (CODE, programs("assert f(1) == 2")),
        (CODE, programs("assert f(1) == 2", solution="def f(x): return x + 1")),
        (CODE, programs("assert f(1) == 2", solution='["def f(x): return x + 1"]')),
    ],
)
def test_sets_of_ordinary_golds_pass(settings, given):
    verifier = build_verifier(settings, given).verifier
    assert verifier.grade(given[0], "no answer at all").correct is False


SENTENCE = "We add one and one and see that the sum of both of them is two, as was to be shown"


@pytest.mark.parametrize(
    ("settings", "given", "reason"),
    [
        (MATH, problems(SENTENCE, SENTENCE, "4"), r"'p0'.*its answer is a text of \d+ words"),
        (MATH.model_copy(update={"tolerance": 100.0}), problems("42", "43"), "a changed gold is graded correct"),
        (CODE, programs("assert True", "x = 1"), "broken tests"),
        (CODE, programs("f = 1", "assert f"), "a changed gold is graded"),
        (CODE, programs("assert f(1) == 2", solution="def f(x): return x + 2"), "its own gold is graded wrong"),
        (CODE, programs("assert f(1) == 2", solution="def g(x): return x + 1"), "its own gold is graded wrong"),
    ],
)
def test_a_set_that_cannot_tell_right_from_wrong_is_refused(settings, given, reason):
    with pytest.raises(DataError, match=reason):
        build_verifier(settings, given)


def test_a_few_odd_golds_do_not_refuse_a_set():
    given = problems(SENTENCE, "4", "5", "6")
    assert build_verifier(MATH, given).verifier.grade(given[1], r"\boxed{4}").correct


def test_a_function_is_tried_only_where_golds_are_checked(tmp_path):
    (tmp_path / "mine.py").write_text(
        "calls = []\ndef grade(problem, response):\n    calls.append(response)\n    return len(calls) == 1\n"
    )
    settings = config.CustomVerifier(kind="custom", function=f"{tmp_path / 'mine.py'}:grade")
    given = problems("1")
    verifier = build_verifier(settings, given, check=False).verifier
    assert verifier.grade(given[0], "?").correct, "this is the first call"


DAPO = "Solve it. The last line of your response should be of the form Answer: $Answer (without quotes)."


def test_a_set_that_asks_for_an_answer_line_gets_a_hint(caplog):
    given = [Problem("p", (Message(role="user", content=DAPO),), "34")]
    with caplog.at_level(logging.WARNING, logger="priml"):
        build_verifier(MATH, given)
    assert "bare_answers: true" in caplog.text
    caplog.clear()
    build_verifier(MATH.model_copy(update={"bare_answers": True}), given)
    assert not caplog.text


def test_a_row_whose_tests_test_nothing_is_named_or_skipped(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"question": "?", "test": "from solution import f\ndef test_f():\n    assert f(1) == 2"}
    path.write_text("\n".join(json.dumps(one) for one in (row, row | {"test": "print(f(1) == 2)"}, row)))
    with pytest.raises(DataError, match=r"rows.jsonl:2: broken tests: the tests assert nothing"):
        load_source(FileSource(path=path))
    assert len(load_source(FileSource(path=path, on_bad_row="skip")).problems) == 2


def custom(tmp_path, body):
    (tmp_path / "mine.py").write_text(f"from priml import Verdict\n\n\ndef grade(problem, response):\n    {body}\n")
    return config.CustomVerifier(kind="custom", function=f"{tmp_path / 'mine.py'}:grade")


def test_a_function_that_fails_in_every_call_is_refused_with_its_place(tmp_path):
    with pytest.raises(UsageError, match=r"judged none of 6 trial responses: KeyError in mine\.py, line 5"):
        build_verifier(custom(tmp_path, 'return problem.meta["nothing"]'), problems("1", "2", "3"))


@pytest.mark.parametrize(
    ("body", "warns"),
    [
        ('return Verdict.wrong("different")', r"pays nothing .*\\boxed\{1\}', wrong \(different\)\. .* always text"),
        ("return 0.5", "pays nonsense: the response .* got 0.5"),
        ('return "\\\\boxed{%s}" % problem.answer in response', None),
        ("return int(response[7:-1]) == int(problem.answer)", None),  # fails for nonsense alone
    ],
)
def test_a_function_that_pays_nonsense_or_no_gold_is_warned_of(tmp_path, caplog, body, warns):
    with caplog.at_level(logging.WARNING):
        build_verifier(custom(tmp_path, body), problems("1", "2", "3"))
    if warns is None:
        assert not caplog.records
    else:
        assert re.search(warns, caplog.text)
