import pytest

from priml.graders.exact import ExactVerifier
from priml.types import Problem


def grade(response, gold="New York", **options):
    return ExactVerifier(**options).grade(Problem(id="p", prompt="?", answer=gold), response)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (r"\boxed{New York}", "equal"),
        ("\\boxed{ New\n  York }", "equal"),
        ("\\boxed{New\u00a0York}", "equal"),
        (r"\boxed{Boston} or rather \boxed{New York}", "equal"),
        (r"\boxed{new york}", "different text"),
        (r"\boxed{New York City}", "different text"),
        (r"\boxed{NewYork}", "different text"),
        (r"\boxed{New York, Boston}", "different text"),
        (r"\boxed{ }", "no answer"),
        ("New York", "no answer"),
        ("", "no answer"),
    ],
)
def test_the_last_box_must_hold_the_very_text(response, reason):
    verdict = grade(response)
    assert (verdict.reason, verdict.correct) == (reason, reason == "equal")


def test_capitals_do_not_matter_on_request():
    assert grade(r"\boxed{NEW YORK}", ignore_case=True).correct is True
    assert grade(r"\boxed{STRASSE}", "Straße", ignore_case=True).correct is True
    assert grade(r"\boxed{Boston}", ignore_case=True).correct is False


def test_two_ways_to_write_one_character_are_the_same():
    assert grade("\\boxed{cafe\u0301}", "café").correct is True


def test_the_whole_response_may_be_the_answer():
    assert grade(" New York\n", place="whole").correct is True
    assert grade("It is New York", place="whole").correct is False
    assert grade(" ", place="whole").reason == "no answer"
