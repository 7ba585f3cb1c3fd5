import pytest

from priml.errors import DataError
from priml.graders.math.verifier import MathVerifier
from priml.graders.mixed import MixedVerifier
from priml.types import Problem, Verdict


class Named:
    """Says who it is."""

    def __init__(self, name):
        self.name = name

    def grade(self, problem, response):
        return Verdict.right(self.name)


def problem(kind="math", source="numina"):
    return Problem(id="p", prompt="?", answer="7", kind=kind, source=source)


MIXED = MixedVerifier(
    {"math": Named("math"), "code": Named("code")},
    {"amc": Named("amc"), "apps/easy": Named("apps/easy"), "apps": Named("apps")},
)


@pytest.mark.parametrize(
    ("kind", "source", "judge"),
    [
        ("math", "numina", "math"),
        ("code", "taco", "code"),
        ("math", "amc", "amc"),
        ("logic", "amc", "amc"),
        ("math", "amc/2023/7", "amc"),
        ("code", "apps/easy/3", "apps/easy"),
        ("code", "apps/hard", "apps"),
        ("code", "apps_extra", "code"),
        ("math", "amc2023", "math"),
        ("math", "", "math"),
    ],
)
def test_the_source_decides_where_it_is_named_and_the_kind_elsewhere(kind, source, judge):
    assert MIXED.grade(problem(kind, source), "7").reason == judge


def test_a_problem_for_which_nobody_is_responsible_is_refused_with_what_there_is():
    with pytest.raises(
        DataError, match=r"'p' \(source 'numina'\) is of kind 'logic'.*one for: code, math; for sources"
    ):
        MIXED.grade(problem("logic"), "7")


def test_real_verifiers_stand_side_by_side():
    mixed = MixedVerifier({"math": MathVerifier(), "letters": Named("letters")})
    assert mixed.grade(problem(), r"\boxed{7}").reason == "equal"
    assert mixed.grade(problem(), "7").reason == "no answer"
    assert mixed.grade(problem("letters"), "7").reason == "letters"
