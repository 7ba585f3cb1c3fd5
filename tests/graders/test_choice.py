import pytest
from hypothesis import given
from hypothesis import strategies as st

from priml.errors import DataError
from priml.graders.choice import ChoiceVerifier, chosen_letter
from priml.types import Problem


def grade(response, gold="C", **options):
    return ChoiceVerifier(**options).grade(Problem(id="p", prompt="?", answer=gold), response)


@pytest.mark.parametrize(
    "answer",
    [
        "C", "c", "(C)", "( C )", "[C]", "C.", "C)", "C:", "(C).", "$C$", r"\text{C}", r"\text{(C)}", r"\textbf{(C) }",
        r"\mathrm{C}", r"(\text{C})", r"\left(C\right)", "**C**", "**(C)**", "Option C", "option (C)", "Choice: C",
        "The answer: C", "(C) 42", "C. 42", "C: forty-two", "C) 4.2 m/s", r"\textbf{(C)}\ 42", "(C) x",
        "(C) Both were right", "C. a dog and a cat", "(C) A dog", "C.\n42",
    ],
)  # fmt: skip
def test_a_letter_with_or_without_its_option_is_a_choice(answer):
    assert chosen_letter(answer) == "C"


@pytest.mark.parametrize(
    "answer",
    [
        "", "42", "forty-two", "Cat", "C D", "C or D", "C and D", "C, D", "C/D", "C & D", "(C) or (D)", "(C), (D)",
        "(C)(D)", "CD", "ABCDE", "C. D.", "C) or D)", "C: D", "C; D", "A B C D", "(C) 42 or (D) 43",
        "option C or option D", r"\text{C or D}", r"\{C, D\}", "C = 5", "C5", "C'", "-C", "not C", "C?", "(CD)", "()",
        "C or", "(C) and (A)",
    ],
)  # fmt: skip
def test_no_letter_or_several_is_no_choice(answer):
    assert chosen_letter(answer) is None


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (r"so \boxed{C}", "equal"),
        (r"\boxed{\text{(C)}}", "equal"),
        (r"\boxed{D} no, wait: \boxed{(C) 42}", "equal"),
        (r"\boxed{C} no, wait: \boxed{D}", "different choice"),
        (r"\boxed{C}</think> \boxed{B}", "different choice"),
        (r"<think>\boxed{C}</think> it is C", "no answer"),
        (r"\boxed{42}", "not a choice"),
        (r"\boxed{C \text{ or } D}", "not a choice"),
        (r"\boxed{}", "no answer"),
        ("The answer is (C)", "no answer"),
        ("", "no answer"),
    ],
)
def test_the_last_box_decides(response, reason):
    verdict = grade(response)
    assert (verdict.reason, verdict.correct) == (reason, reason == "equal")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("The answer is (C).", "equal"),
        ("The correct answer is **C**", "equal"),
        ("Answer: C\n", "equal"),
        ("The answer is C: 42", "equal"),
        ("The answer is D. But no: the answer is C.", "equal"),
        ("The answer is C or D.", "not a choice"),
        ("The answer is forty-two", "not a choice"),
        (r"The answer is C. \boxed{D}", "different choice"),
        ("I like options", "no answer"),
    ],
)
def test_bare_answers_count_on_request(response, reason):
    assert grade(response, bare_answers=True).reason == reason


@pytest.mark.parametrize("gold", ["C", "(C)", "c.", r"\text{(C)}", "(C) 42"])
def test_the_right_letter_may_be_dressed_too(gold):
    assert grade(r"\boxed{C}", gold).correct is True


@pytest.mark.parametrize("gold", ["42", "A, C", "none"])
def test_a_right_answer_that_is_no_letter_is_a_mistake_in_the_data(gold):
    with pytest.raises(DataError, match=f"problem 'p': its answer is '{gold}', needed the letter of an option"):
        grade(r"\boxed{C}", gold)


@given(st.text(alphabet=list("ABCDabcd().,:;/&|{}$*\\ \n12or"), max_size=40))
def test_whatever_is_written_two_choices_never_count(text):
    """If a second letter were read as the choice, answering with both would pay."""
    letter = chosen_letter(text)
    assert letter is None or chosen_letter(f"{text} or ({'B' if letter == 'A' else 'A'})") is None
