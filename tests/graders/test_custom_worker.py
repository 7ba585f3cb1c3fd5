import numpy as np
import pytest
import torch

from priml.graders.custom_worker import reply_to
from priml.types import Verdict


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
    verdict = Verdict(**reply_to(result))
    assert (verdict.correct, verdict.score, verdict.reason) == (correct, score, "custom")


@pytest.mark.parametrize("verdict", [Verdict.wrong("too rude", "7"), Verdict.undecided("busy", layer="service")])
def test_a_verdict_is_passed_on(verdict):
    assert Verdict(**reply_to(verdict)) == verdict


@pytest.mark.parametrize(
    "result", [None, "yes", 1.5, -1, float("nan"), [1.0], {"score": 1.0}, np.ones(1), np.array(None)]
)
def test_anything_else_is_refused_with_what_was_found_and_what_is_needed(result):
    assert "must return a priml.types.Verdict, a bool, or a number from 0 to 1" in reply_to(result)["refused"]


@pytest.mark.parametrize(
    ("correct", "score", "said"),
    [
        ("yes", 1.0, "`correct` is 'yes' (str)"),
        (1, 1.0, "`correct` is 1 (int)"),
        (np.bool_(True), 1.0, "`correct` is"),
        (True, 7.0, "`score` is 7.0 (float)"),
        (True, float("nan"), "`score` is nan (float)"),
        (False, "0", "`score` is '0' (str)"),
    ],
)
def test_a_verdict_that_is_none_is_refused(correct, score, said):
    assert said in reply_to(Verdict(correct=correct, score=score, reason="x"))["refused"]


def test_texts_are_cut_and_fit_for_any_file():
    reply = reply_to(Verdict.wrong("a\ud800" * 10**6, "\udfff" * 10**6))
    assert reply["reason"] == "a?" * 100
    assert reply["answer"] == "?" * 300
