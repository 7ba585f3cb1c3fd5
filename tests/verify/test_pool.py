import threading

import pytest

from priml.errors import DataError
from priml.types import Completion, Group, Problem, Prompt, Verdict
from priml.verify.math import MathVerifier
from priml.verify.pool import ByKind, VerifierPool, fan_out


class LastLetter:
    """A verifier that is undecided the first time it sees a response that holds a `?`."""

    def __init__(self):
        self.asked = []
        self._lock = threading.Lock()

    def grade(self, problem, response):
        with self._lock:
            self.asked.append(response)
            first_time = self.asked.count(response) == 1
        if "!" in response or ("?" in response and first_time):
            return Verdict.undecided("worker lost")
        return Verdict.right("equal") if response[-1] == problem.answer else Verdict.wrong("different value")


def a_group(name, answer, *texts, kind="math"):
    problem = Problem(id=name, prompt="?", answer=answer, kind=kind)
    completions = tuple(
        Completion(token_ids=(), text=text, finish_reason="stop", logprobs=(), sample=i, weight_version=0)
        for i, text in enumerate(texts)
    )
    return Group(prompt=Prompt(problem, "?", ()), completions=completions)


def test_every_response_gets_its_own_verdict_and_nothing_else_changes():
    groups = [a_group("p", "a", "xa", "xb", "a"), a_group("q", "b", "xa", "xb"), a_group("r", "c")]
    judged = VerifierPool(LastLetter())(groups)
    assert [[v.correct for v in g.verdicts] for g in judged] == [[True, False, True], [False, True], []]
    assert [(g.prompt, g.completions) for g in judged] == [(g.prompt, g.completions) for g in groups]
    assert all(group.verdicts == () for group in groups)


def test_the_undecided_are_asked_once_more_and_no_more():
    verifier = LastLetter()
    (group,) = VerifierPool(verifier)([a_group("p", "a", "a", "?a", "!a")])
    assert [v.label for v in group.verdicts] == ["correct", "correct", "undecided"]
    assert sorted(verifier.asked) == sorted(["a", "?a", "?a", "!a", "!a"])
    assert not group.is_decided


def test_kinds_go_to_their_verifiers():
    by_kind = ByKind({"math": MathVerifier(), "letters": LastLetter()})
    judged = VerifierPool(by_kind)([a_group("p", "7", r"\boxed{7}", "7"), a_group("q", "7", "x7", kind="letters")])
    assert [[v.reason for v in g.verdicts] for g in judged] == [["equal", "no answer"], ["equal"]]


def test_a_kind_without_a_verifier_is_refused_by_name():
    with pytest.raises(DataError, match=r"'p'.*'code'.*math"):
        VerifierPool(ByKind({"math": LastLetter()}))([a_group("p", "7", "7", kind="code")])


def test_fanning_out_keeps_the_order_and_passes_errors_on():
    assert fan_out(lambda n: n * n, range(100)) == [n * n for n in range(100)]
    assert fan_out(str, []) == []
    with pytest.raises(ZeroDivisionError):
        fan_out(lambda n: 1 / n, [1, 0])
