from pathlib import Path

import pytest

from priml.config.data import FileSource
from priml.data.prepare.rules import dropped_for
from priml.data.sources import read_problems
from priml.types import Problem

MATH = Path(__file__).resolve().parents[4] / "shared" / "data" / "math"


def decision(text, answer="1", rules="careful", drawings=True, kind="math"):
    return dropped_for(Problem("p", text, answer, kind=kind), rules, drawings=drawings)


@pytest.mark.parametrize(
    ("text", "answer", "paper", "careful"),
    [
        ("What is 1+1?", "2", None, None),
        ("She improved by 3 points. Now?", "4", "proof", None),
        ("The TV show that starts at 7 lasts 2 hours.", "9", "proof", None),
        ("Tom must figure out how many figures he has.", "4", "figure", None),
        ("In the figure, AB = 3. Find BC.", "4", "figure", "figure"),
        ("In the diagram, AB = 3. Find BC.", "4", None, "figure"),
        ("The graph below shows f. Find f(2).", "4", None, "figure"),
        ("In the figure, AB = 3. [asy] draw((0,0)); [/asy] Find BC.", "4", "figure", None),
        ("Find the area enclosed by the graph of |x| + |y| = 3.", "18", None, None),
        ("Prove that there are infinitely many primes below 1000.", "1", "proof", "proof"),
        ("Let n > 2. Show that n is odd, and find n.", "3", "proof", "proof"),
        ("Euler disproved a conjecture. For how many n?", "144", "proof", None),
        ("Points A. B. C. are on a line. AC = 3.", "2", "choice", None),
        ("Which is it? (A) 1 (B) 2 (C) 3", "\\text{(B)}", "choice", "choice"),
        ("Which is it?\nA. $1$\nB. $2$\nC. $3$", "B", "choice", "choice"),
        (
            "Which is it? $\\textbf{(A)}\\ 1 \\qquad \\textbf{(B)}\\ 2 \\qquad \\textbf{(C)}\\ 3$",
            "(C)",
            "choice",
            "choice",
        ),
        ("Find the sum. (A) 1 (B) 2 (C) 3", "3", "choice", None),
        ("$246\\underline{\\hspace{5pt}}8$ is divisible by 9. The digit?", "7", "blank", None),
        ("The three-digit number \\underline{a}\\underline{b}1 is a square.", "36", "blank", None),
        ("Evaluate $i^3$.", "-i", "no digit", None),
        ("Which weekday is it?", "Sunday", "no digit", None),
        ("Why?", "Because " + "this sentence has many more words " * 3, "no digit", "sentence"),
    ],
)
def test_what_the_authors_filter_and_the_careful_one_drop(text: str, answer: str, paper, careful):
    assert (decision(text, answer, "paper"), decision(text, answer, "careful")) == (paper, careful)


def test_drawings_go_if_they_are_to_and_code_is_left_alone():
    text = "Find x. [asy] draw((0,0)); [/asy]"
    assert decision(text) is None
    assert decision(text, drawings=False) == decision(text, rules=None, drawings=False) == "drawing"
    assert decision("Prove that figure 1 is right", kind="code") is None


@pytest.mark.skipif(not MATH.is_dir(), reason="not on this machine")
def test_the_counts_on_math_and_gsm8k():
    found = {}
    for name in ("math_train_12k", "gsm8k_train"):
        problems = read_problems(FileSource(path=MATH / f"{name}.jsonl.gz")).problems
        for rules in ("paper", "careful"):
            reasons = [dropped_for(problem, rules, drawings=True) for problem in problems]
            found[name, rules] = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    assert found["math_train_12k", "paper"] == {
        None: 11546,
        "figure": 139,
        "proof": 2,
        "choice": 165,
        "blank": 16,
        "no digit": 132,
    }
    assert found["gsm8k_train", "paper"] == {None: 7426, "figure": 34, "proof": 13}
    assert found["gsm8k_train", "careful"] == {None: 7473}
    assert found["math_train_12k", "careful"] == {None: 11955, "choice": 43, "figure": 2}
