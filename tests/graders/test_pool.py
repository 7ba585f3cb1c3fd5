import gc
import threading
import time

import pytest

from fakes import make_trajectory
from priml.errors import UsageError
from priml.graders.math import MathVerifier
from priml.graders.pool import VerifierPool, fan_out
from priml.types import Group, Problem, Prompt, Verdict


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
    trajectories = tuple(make_trajectory(text, sample=i) for i, text in enumerate(texts))
    return Group(prompt=Prompt(problem, "?", ()), trajectories=trajectories)


def test_every_response_gets_its_own_verdict_and_nothing_else_changes():
    groups = [a_group("p", "a", "xa", "xb", "a"), a_group("q", "b", "xa", "xb"), a_group("r", "c")]
    judged = VerifierPool(LastLetter())(groups)
    assert [[v.correct for v in g.verdicts] for g in judged] == [[True, False, True], [False, True], []]
    assert [(g.prompt, g.trajectories) for g in judged] == [(g.prompt, g.trajectories) for g in groups]
    assert all(group.verdicts == () for group in groups)


def test_the_undecided_are_asked_once_more_and_no_more():
    verifier = LastLetter()
    (group,) = VerifierPool(verifier)([a_group("p", "a", "a", "?a", "!a")])
    assert [v.label for v in group.verdicts] == ["correct", "correct", "undecided"]
    assert sorted(verifier.asked) == sorted(["a", "?a", "?a", "!a", "!a"])
    assert not group.is_decided


class Gate:
    """A verifier that grades nothing before it is opened; remembers what it was asked."""

    def __init__(self):
        self.opened = threading.Event()
        self.asked = []

    def grade(self, problem, response):
        assert self.opened.wait(60)
        self.asked.append(response)
        return Verdict.right("equal") if response == problem.answer else Verdict.wrong("different value")


def submit_all(pool, groups):
    for group in groups:
        for trajectory in group.trajectories:
            pool.submit(group.prompt, trajectory)


def test_a_thought_that_the_prompt_opened_and_no_one_closed_holds_no_answer():
    problem = Problem(id="1", prompt="?", answer="5", kind="math")
    texts = (
        r"so maybe \boxed{5}? wait, let me",
        r"so \boxed{4}?</think> It is \boxed{5}",
        r"\boxed{5}, says the text before <think> and",
    )
    trajectories = tuple(make_trajectory(text, sample=i) for i, text in enumerate(texts))
    group = Group(prompt=Prompt(problem, "?\n<think>\n", ()), trajectories=trajectories)
    (judged,) = VerifierPool(MathVerifier())([group])
    assert [verdict.reason for verdict in judged.verdicts] == ["no answer", "equal", "no answer"]


def test_what_was_submitted_is_graded_once_and_the_rest_when_it_is_asked_for():
    verifier = Gate()
    verifier.opened.set()
    pool = VerifierPool(verifier)
    groups = [a_group("p", "a", "a", "b", "a"), a_group("q", "b", "a", "b")]
    for group, index in ((groups[1], 1), (groups[0], 2), (groups[0], 0)):  # in the order they ended
        pool.submit(group.prompt, group.trajectories[index])
    judged = pool(groups)
    assert [[v.correct for v in g.verdicts] for g in judged] == [[True, False, True], [False, True]]
    assert sorted(verifier.asked) == ["a", "a", "a", "b", "b"]


def test_submitting_does_not_wait_and_the_call_does():
    verifier, overlaps = Gate(), []
    pool = VerifierPool(verifier, overlapped=overlaps.append)
    groups = [a_group("p", "a", *"ab" * 20)]
    submit_all(pool, groups)
    assert verifier.asked == [], "all of them wait at the gate, and this thread is here"
    threading.Timer(0.2, verifier.opened.set).start()
    (judged,) = pool(groups)
    assert [v.correct for v in judged.verdicts] == [True, False] * 20
    (overlap,) = overlaps
    assert overlap.seconds <= overlap.end - overlap.start


def test_the_overlap_is_the_time_in_which_anything_was_graded_before_the_call():
    started = threading.Semaphore(0)

    class Announced(Gate):
        def grade(self, problem, response):
            started.release()
            return super().grade(problem, response)

    verifier, overlaps = Announced(), []
    pool = VerifierPool(verifier, overlapped=overlaps.append)
    groups = [a_group("p", "a", "a", "b")]
    submit_all(pool, groups)
    for _ in range(2):
        started.acquire()
    time.sleep(0.5)  # both are being graded
    verifier.opened.set()
    while len(verifier.asked) < 2:
        time.sleep(0.001)
    time.sleep(1.0)  # the sampler goes on
    before = time.perf_counter()
    pool(groups)
    (overlap,) = overlaps
    assert 0.5 <= overlap.seconds <= overlap.end - overlap.start - 0.5
    assert overlap.start < before - 1.5 < before <= overlap.end


def test_without_submissions_there_is_no_overlap():
    overlaps = []
    VerifierPool(LastLetter(), overlapped=overlaps.append)([a_group("p", "a", "a")])
    assert overlaps == []


def test_submissions_of_groups_that_never_come_are_dropped():
    pool = VerifierPool(LastLetter())
    submit_all(pool, [a_group("p", "a", "a", "b")])
    (judged,) = pool([a_group("p", "b", "a", "b")])
    assert [v.correct for v in judged.verdicts] == [False, True]


class Broken:
    def __init__(self, error):
        self.error = error
        self.calls = 0

    def grade(self, problem, response):
        self.calls += 1
        raise self.error


@pytest.mark.parametrize("error", [UsageError("verify.function: returned None"), KeyboardInterrupt()])
def test_what_a_grading_raises_ends_the_sampling_and_reaches_the_caller(error):
    pool = VerifierPool(Broken(error))
    group = a_group("p", "a", "a")

    def sample_on():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            pool.submit(group.prompt, group.trajectories[0])
            time.sleep(0.01)

    with pytest.raises(type(error)) as raised:
        sample_on()
    assert raised.value is error
    with pytest.raises(type(error)):
        pool([group])


def test_after_a_failure_what_has_not_started_is_dropped():
    verifier = Broken(UsageError("no"))
    pool = VerifierPool(verifier)
    with pytest.raises(UsageError):
        pool([a_group("p", "a", *["a"] * 5000)])
    calls = verifier.calls
    time.sleep(0.2)
    assert verifier.calls <= calls + 16, "a thread may have had one in hand"


def test_no_thread_outlives_its_round():
    before = threading.active_count()
    for _ in range(5):
        VerifierPool(LastLetter())([a_group("p", "a", *["a"] * 40)])
    abandoned = VerifierPool(LastLetter())
    submit_all(abandoned, [a_group("p", "a", *["a"] * 40)])
    del abandoned
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_fanning_out_keeps_the_order_and_passes_errors_on():
    assert fan_out(lambda n: n * n, range(100)) == [n * n for n in range(100)]
    assert fan_out(str, []) == []
    with pytest.raises(ZeroDivisionError):
        fan_out(lambda n: 1 / n, [1, 0])
