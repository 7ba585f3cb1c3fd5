import json
from pathlib import Path

import pytest

from priml.graders.math.prime_rules import extract
from priml.graders.math.verifier import MathVerifier

CASES = json.loads((Path(__file__).parent / "fixtures" / "prime_rules.json").read_text())


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier(rules="authors", workers=1, limit_s=20.0)
    yield verifier
    verifier.close()


def test_the_published_verdicts_are_reproduced(verifier):
    verdicts = [verifier.compare(case["output"], case["reference"]) for case in CASES]
    assert [v.answer for v in verdicts] == [case["extracted"] for case in CASES]
    assert [v.correct for v in verdicts] == [case["correct"] for case in CASES]
    assert len(CASES) == 38


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Answer: 3. Or rather, the answer is 4", "4"),
        ("12 is the answer", "12"),
        ("It must be 5", "5"),
        ("a: 1\nb = 2", "2"),
        (r"\boxed{\boxed{5}}", "5"),
        ("7", "7"),
    ],
)
def test_markers_are_cut_in_turn_and_a_box_is_not_required(response, answer):
    assert extract(response) == answer


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("100001", "100000", True),  # within 1e-4
        ("100100", "100000", False),
        ("3", "300", True),  # a hundredth
        ("3", "30", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2.00001\end{pmatrix}", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}", False),
        ("(1, 2, 3)", "(1, 2, 4)", False),
        (r"x+y", r"y+x", True),
        (r"x+y", r"y-x", False),
    ],
)
def test_values_are_compared_leniently(verifier, answer, gold, correct):
    assert verifier.compare(rf"\boxed{{{answer}}}", gold).correct is correct
