import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priml.types import Problem
from priml.verify.math import MathVerifier, grade, grade_many

LABELLED = Path(__file__).parents[3] / "shared" / "data" / "math_grading_dev.jsonl"
TOWER = r"\boxed{9^{9^{9}}}"
SLOW_SUM = r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k}}"


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier(workers=2)
    yield verifier
    verifier.close()


def is_alive(pid):
    """Whether the process exists and is more than a zombie its init has not collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(claim, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("response", "gold", "label", "reason"),
    [
        (r"so \boxed{7}", "7", "correct", "equal"),
        (r"\boxed{x+1}", "1+x", "correct", "equal"),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", "correct", "equal"),
        (r"\boxed{\frac{-1-\sqrt{13}}{4}, \frac{-1+\sqrt{13}}{4}}", r"\frac{-1\pm\sqrt{13}}{4}", "correct", "equal"),
        (r"\boxed{2√2}", r"\sqrt{8}", "correct", "equal"),
        (r"\boxed{8}", "7", "wrong", "different value"),
        (r"\boxed{x+2}", "1+x", "wrong", "different value"),
        (r"\boxed{1.41421356}", r"\sqrt{2}", "wrong", "different value"),
        (r"\boxed{\pm 5}", "5", "wrong", "different value"),
        ("the answer is 7", "7", "wrong", "no answer"),
        (r"<think>\boxed{7}</think> done", "7", "wrong", "no answer"),
        (r"\boxed{}", "7", "wrong", "no answer"),
        (r"\boxed{" + "1+" * 200 + "1}", "201", "wrong", "too long"),
        (r"\boxed{((10!)!)!}", "7", "wrong", "too complex"),
        (r"\boxed{\frac{}{}^^}", "7", "wrong", "different value"),
    ],
)
def test_verdicts(verifier, response, gold, label, reason):
    verdict = verifier.compare(response, gold)
    assert (verdict.label, verdict.reason) == (label, reason)


def test_the_verdict_carries_the_answer():
    assert grade(r"\boxed{ 42 }", "7").answer == "42"
    assert grade("nothing", "7").answer is None


@given(st.integers() | st.decimals(-1000, 1000, places=3) | st.sampled_from("abcdxyzABCD"))
def test_the_gold_answer_in_a_box_is_always_correct(gold):
    assert grade(rf"Thus \boxed{{{gold}}}.", str(gold)).label == "correct"


def test_simple_answers_start_no_process():
    verifier = MathVerifier()
    assert verifier.grade(Problem(id="1", prompt="3+4", answer="7"), r"\boxed{7}").label == "correct"
    assert verifier.worker_pids == ()


def test_a_thousand_simple_responses_take_less_than_50_ms():
    items = [(f"3+4={i % 10}; so \\boxed{{{i % 10}}}", "7") for i in range(1000)]
    grade_many(items)
    seconds = []
    for _ in range(5):
        start = time.process_time()  # other work on this machine is not ours
        verdicts = grade_many(items)
        seconds.append(time.process_time() - start)
    assert sum(v.label == "correct" for v in verdicts) == 100
    assert min(seconds) < 0.05


def test_bombs_are_stopped_at_the_limit_and_the_pool_survives(verifier):
    verifier.compare(r"\boxed{x+1}", "1+x")
    for bomb in (TOWER, SLOW_SUM):
        start = time.monotonic()
        verdict = verifier.compare(bomb, "3+x")
        assert (verdict.label, verdict.reason) == ("wrong", "time limit")
        assert time.monotonic() - start < 4.0
    assert verifier.compare(r"\boxed{x+1}", "1+x").label == "correct"
    assert len(verifier.worker_pids) == 2


def test_a_worker_killed_from_outside_costs_a_retry_and_no_verdict():
    verifier = MathVerifier(workers=1, limit_s=1.5)
    verifier.compare(r"\boxed{x+1}", "1+x")
    (first,) = verifier.worker_pids
    threading.Timer(0.3, os.kill, (first, signal.SIGKILL)).start()
    assert verifier.compare(SLOW_SUM, "3").reason == "time limit"  # the retry ran into the limit
    assert verifier.worker_pids != (first,)
    (second,) = verifier.worker_pids
    os.kill(second, signal.SIGKILL)
    assert verifier.compare(r"\boxed{x+1}", "1+x").label == "correct"
    verifier.close()


def test_a_pair_whose_workers_are_killed_twice_is_undecided():
    verifier = MathVerifier(workers=1, limit_s=20.0)
    verifier.compare(r"\boxed{x+1}", "1+x")
    killed = set()

    def kill_each_worker_once():
        while len(killed) < 2:
            for pid in set(verifier.worker_pids) - killed:
                time.sleep(0.3)
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    thread = threading.Thread(target=kill_each_worker_once)
    thread.start()
    verdict = verifier.compare(SLOW_SUM, "3")
    thread.join()
    assert (verdict.label, verdict.reason, verdict.score) == ("undecided", "worker lost", None)
    verifier.close()


def test_workers_are_replaced_after_their_share():
    verifier = MathVerifier(workers=1, recycle_after=2)
    pids = []
    for _ in range(4):
        assert verifier.compare(r"\boxed{x+1}", "1+x").label == "correct"
        pids.append(verifier.worker_pids)
    assert pids[0] != pids[1] == pids[2] != pids[3]
    verifier.close()
    assert verifier.worker_pids == ()


# The child's main module is standard input, without an `if __name__ == "__main__"` guard.
CHILD = """
import sys, threading, time
sys.path[:0] = {path!r}
from priml.verify.math import MathVerifier
verifier = MathVerifier(workers=2, limit_s=60.0)
print(verifier.compare(r"\\boxed{{x+1}}", "1+x").label, *verifier.worker_pids, flush=True)
{then}
"""


def start_child(then):
    child = subprocess.Popen([sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdin.write(CHILD.format(path=sys.path, then=then))
    child.stdin.close()
    label, *pids = child.stdout.readline().split()
    assert label == "correct"
    assert len(pids) == 2
    return child, [int(pid) for pid in pids]


@pytest.mark.parametrize("last_signal", [signal.SIGKILL, signal.SIGTERM])
def test_idle_workers_do_not_outlive_a_killed_parent(last_signal):
    child, pids = start_child("time.sleep(60)")
    child.send_signal(last_signal)
    child.wait()
    wait_until(lambda: not any(map(is_alive, pids)))
    child.stdout.close()


def test_workers_end_with_the_program():
    child, pids = start_child("")
    assert child.wait(20) == 0
    assert not any(map(is_alive, pids))
    child.stdout.close()


def test_a_busy_worker_does_not_outlive_a_killed_parent():
    script = CHILD.replace("limit_s=60.0", "limit_s=1.0").format(
        path=sys.path, then=f"print('busy', flush=True); verifier.compare({SLOW_SUM!r}, '3')"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in child.stdout.readline().split()[1:]]
    child.stdout.readline()
    time.sleep(0.3)
    child.kill()
    child.wait()
    wait_until(lambda: not any(map(is_alive, pids)))
    child.stdout.close()


def test_ctrl_c_leaves_workers_alone_and_the_next_verdict_right():
    script = rf"""
import os, signal
try:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    verifier.compare({SLOW_SUM!r}, "3")
except KeyboardInterrupt:
    print("interrupted", verifier.compare(r"\boxed{{x+2}}", "2+x").label, flush=True)
"""
    child, _ = start_child(script)
    assert child.stdout.read().split() == ["interrupted", "correct"]
    assert child.wait(20) == 0
    child.stdout.close()


@pytest.mark.parametrize("rules", ["strict", "authors"])
@pytest.mark.parametrize(
    "payload",
    [
        r"\pi if open('{}','w') else 0",
        "[open('{}','w')]",
        r"\begin{{pmatrix}}open('{}','w')\end{{pmatrix}}",
        "__import__('os').system('touch {}')",
        "exec(\"open('{}','w')\")",
        r"\text{{__import__('pathlib').Path('{}').touch()}}",
        "x.__class__.__init__.__globals__['open']('{}','w')",
        "Symbol('x').func(open('{}','w'))",
    ],
)
def test_model_text_is_never_executed(tmp_path, payload, rules):
    touched = tmp_path / "x"
    for gold in ("3", r"2\pi", r"\begin{pmatrix}1\end{pmatrix}"):
        verdict = grade(r"\boxed{" + payload.format(touched) + "}", gold, rules=rules)
        assert verdict.label == "wrong"
    assert not touched.exists()


def test_workers_and_trainer_keep_to_their_imports():
    program = "import sys; sys.path[:0] = {}; import priml.verify.{}; print(*sys.modules)"

    def modules(name):
        command = [sys.executable, "-c", program.format(sys.path, name)]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    assert "torch" not in modules("math_worker")
    assert not {"torch", "sympy", "math_verify"} & modules("math")


def graded(rows):
    verdicts = grade_many([(row["prediction"], row["gold"]) for row in rows])
    mistakes = [
        f"{row['kind']}: gold {row['gold']} answer {verdict.answer} should be {row['correct']}: {verdict.reason}"
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict.correct != row["correct"]
    ]
    report = f"{1 - len(mistakes) / len(rows):.4f} of {len(rows)} right; mistakes:\n" + "\n".join(mistakes)
    return 1 - len(mistakes) / len(rows), report


def labelled_rows():
    if not LABELLED.exists():
        pytest.skip(f"the labelled pairs are not beside this checkout ({LABELLED.name})")
    return [json.loads(line) for line in LABELLED.read_text().splitlines()]


def test_accuracy_on_a_sample_of_labelled_pairs():
    accuracy, report = graded(random.Random(0).sample(labelled_rows(), 300))
    assert accuracy >= 0.99, report


@pytest.mark.slow
def test_accuracy_on_all_labelled_pairs():
    accuracy, report = graded(labelled_rows())
    assert accuracy >= 0.998, report
