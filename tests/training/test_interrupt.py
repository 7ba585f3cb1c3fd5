import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from priml.training.interrupt import Interruption, StepAborted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_a_request_and_the_second_stops_at_once(number, capfd):
    with Interruption("finishing this step.") as interruption:
        assert not interruption.requested
        os.kill(os.getpid(), number)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert capfd.readouterr().err == f"\n{number.name}: finishing this step. Once more stops now, unsaved.\n"


def test_what_has_changed_nothing_is_left_at_once_and_what_has_begun_may_end(capfd):
    with Interruption(".") as interruption:
        interruption.allow_abort()
        with pytest.raises(StepAborted):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StepAborted):
            interruption.allow_abort()
    with Interruption(".") as interruption:
        interruption.allow_abort()
        interruption.forbid_abort()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested
        interruption.forbid_abort()  # the next model's update: the PRM has learned, so the step is done to its end


def test_a_step_that_does_not_end_is_ended(capfd):
    with Interruption(".", within_s=0.1) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(600)
        assert "this step has not ended within 0.1 s" in capfd.readouterr().err
    with Interruption(".", within_s=0.1) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        interruption.lift_limit()
        time.sleep(0.3)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption("."):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Interruption(".") as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_it_does_nothing():
    seen = []

    def work():
        with Interruption(".") as interruption:
            seen.append(interruption.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


STUCK = """
import os, signal, sys, threading, time

from priml.training.interrupt import Interruption
from priml.types import Trajectory, Group, Problem, Prompt
from priml.graders.pool import VerifierPool


class Stuck:
    def grade(self, problem, response):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(3600)


trajectories = tuple(Trajectory((), "text", "stop", i) for i in range(40))
group = Group(Prompt(Problem("p", "?", "1"), "?", ()), trajectories)
pool = VerifierPool(Stuck())
try:
    with Interruption("finishing this step."):
        if sys.argv[1] == "submitted":
            for trajectory in trajectories:
                pool.submit(group.prompt, trajectory)
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        pool([group])
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("how", ["submitted", "asked"])
def test_the_second_signal_does_not_wait_for_a_verifier_that_hangs(how):
    done = subprocess.run([sys.executable, "-c", STUCK, how], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
