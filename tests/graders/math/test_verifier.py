import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.graders.choice import ChoiceVerifier
from priml.graders.math.verifier import MathVerifier, grade, grade_many
from priml.graders.pool import fan_out
from priml.types import Problem

LABELLED = Path(__file__).parents[4] / "shared" / "data" / "math_grading_dev.jsonl"
HOSTILE = Path(__file__).parent / "fixtures" / "math_hostile.jsonl"
"""Answers that try to be accepted, to hang the grader or to run as code: `category`, `gold`, `response`, `correct`.

`repeat`: a text and how often it stands in the place of `§`; `@` in code is the path of a file that must not appear.
"""
ENGINE = (r"\boxed{f(x)+1}", "1+f(x)")
"""A pair that needs the symbolic engine."""
SLOW = (r"\boxed{f(x)+(a+b+c+d+e)^{9}(a+b+c+d)^{9}(a+b+c)^{9}}", "f(x)")
"""One that keeps it busy for seconds."""


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier(workers=2, limit_s=1.0)  # of processor time: a busy machine changes nothing
    yield verifier
    verifier.close()


def is_alive(pid):
    """Whether the process exists and is more than a zombie its init has not collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=100.0):
    deadline = time.monotonic() + seconds
    while not condition():
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
        (r"\boxed{" + "1 + " * 200 + "1}", "1+" * 200 + "1", "correct", "equal"),
        (r"\boxed{" + "1+" * 200 + "2}", "1+" * 200 + "1", "wrong", "too long"),
        (r"\boxed{((10!)!)!}", "7", "wrong", "too complex"),
        (r"\boxed{9^{9^{9}}}", "7", "wrong", "too complex"),
        (r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k}}", "7", "wrong", "different value"),
        (r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k}}", r"\ln x", "wrong", "too complex"),
        (r"\boxed{f(x)+1}", "1+f(x)", "correct", "equal"),
        (r"\boxed{f(x)+2}", "1+f(x)", "wrong", "different value"),
        (r"\boxed{\frac{}{}^^}", "7", "wrong", "different value"),
        (r"\boxed{\frac{}{}^^}", "f(x)+1", "wrong", "not read"),
        (r"\boxed{8}, \boxed{9}", "8,9", "correct", "equal"),
        (r"\boxed{8}, \boxed{9}", "8", "wrong", "different value"),
        (r"\boxed{8}; so \boxed{9}", "9", "correct", "equal"),
    ],
)
def test_verdicts(verifier, response, gold, label, reason):
    verdict = verifier.compare(response, gold)
    assert (verdict.label, verdict.reason) == (label, reason)


def test_the_verdict_carries_the_answer():
    assert grade(r"\boxed{ 42 }", "7").answer == "42"
    assert grade("nothing", "7").answer is None


@settings(deadline=None)
@given(st.integers() | st.decimals(-1000, 1000, places=3) | st.sampled_from("abcdxyzABCD"))
def test_the_gold_answer_in_a_box_is_always_correct(gold):
    assert grade(rf"Thus \boxed{{{gold}}}.", str(gold)).label == "correct"


def test_what_is_understood_starts_no_process():
    verifier = MathVerifier()
    for gold, answer in (("7", "7"), (r"\sqrt{8}", r"2\sqrt{2}"), ("x^2-1", "(x-1)(x+1)"), ("[0,1)", r"0 \le x < 1")):
        problem = Problem(id="1", prompt="?", answer=gold)
        assert verifier.grade(problem, rf"\boxed{{{answer}}}").label == "correct"
    assert verifier.worker_pids == ()


def test_a_bare_answer_counts_only_where_it_is_allowed():
    assert grade("The answer is 7.", "7").reason == "no answer"
    assert grade("The answer is 7.", "7", bare_answers=True).label == "correct"
    assert grade(r"The answer is 7, that is \boxed{8}", "7", bare_answers=True).label == "wrong"
    assert grade(r"The answer is 7, \boxed{}", "7", bare_answers=True).reason == "no answer"
    assert grade("I give up", "7", bare_answers=True).reason == "no answer"


def test_a_tolerance_has_to_be_asked_for():
    assert grade(r"\boxed{3.1416}", r"\pi").label == "wrong"
    assert grade(r"\boxed{3.1416}", r"\pi", tolerance=1e-4).label == "correct"
    assert grade(r"\boxed{3.15}", r"\pi", tolerance=1e-4).label == "wrong"


def test_a_simple_response_costs_a_few_calls():
    items = [(f"3+4={i % 10}; so \\boxed{{{i % 10}}}", "7") for i in range(1000)]
    grade_many(items)
    calls = Counter()
    sys.setprofile(lambda frame, event, argument: calls.update([event]))  # a count is the same on a busy machine
    try:
        verdicts = grade_many(items)
    finally:
        sys.setprofile(None)
    assert calls["call"] < 50 * len(items)
    assert sum(v.label == "correct" for v in verdicts) == 100


def test_bombs_are_stopped_at_the_limit_and_the_pool_survives(verifier):
    verifier.compare(*ENGINE)
    verdict = verifier.compare(*SLOW)
    assert (verdict.label, verdict.reason) == ("wrong", "time limit")
    assert verifier.compare(*ENGINE).label == "correct"
    assert len(verifier.worker_pids) == 2


@pytest.mark.slow
def test_a_worker_killed_from_outside_costs_a_retry_and_no_verdict():
    verifier = MathVerifier(workers=1, limit_s=1.0)
    verifier.compare(*ENGINE)
    (first,) = verifier.worker_pids
    threading.Timer(0.3, os.killpg, (first, signal.SIGKILL)).start()
    assert verifier.compare(*SLOW).reason == "time limit"  # the retry ran into the limit
    assert verifier.worker_pids != (first,)
    (second,) = verifier.worker_pids
    os.killpg(second, signal.SIGKILL)
    assert verifier.compare(*ENGINE).label == "correct"
    verifier.close()


@pytest.mark.slow
def test_a_pair_whose_workers_are_killed_twice_is_undecided():
    verifier = MathVerifier(workers=1, limit_s=20.0)
    verifier.compare(*ENGINE)
    killed = set()

    def kill_each_worker_once():
        while len(killed) < 2:
            for pid in set(verifier.worker_pids) - killed:
                time.sleep(0.3)
                killed.add(pid)
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.05)

    thread = threading.Thread(target=kill_each_worker_once)
    thread.start()
    verdict = verifier.compare(*SLOW)
    thread.join()
    assert (verdict.label, verdict.reason, verdict.score) == ("undecided", "worker lost", None)
    verifier.close()


# The child's main module is standard input, without an `if __name__ == "__main__"` guard.
CHILD = """
import sys, threading, time
sys.path[:0] = {path!r}
from priml.graders.math.verifier import MathVerifier
verifier = MathVerifier(workers={workers}, limit_s=60.0)
print(verifier.compare(r"\\boxed{{f(x)+1}}", "1+f(x)").label, *verifier.worker_pids, flush=True)
{then}
"""


def start_child(then, workers=1):
    child = subprocess.Popen([sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdin.write(CHILD.format(path=sys.path, workers=workers, then=then))
    child.stdin.close()
    label, *pids = child.stdout.readline().split()
    assert label == "correct"
    assert len(pids) == workers
    return child, [int(pid) for pid in pids]


@pytest.mark.parametrize("last_signal", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_idle_workers_do_not_outlive_a_killed_parent(last_signal):
    child, pids = start_child("time.sleep(60)", workers=2)
    child.send_signal(last_signal)
    child.wait()
    wait_until(lambda: not any(map(is_alive, pids)))
    child.stdout.close()


def test_workers_end_with_the_program():
    child, pids = start_child("")
    assert child.wait(200) == 0
    assert not any(map(is_alive, pids))
    child.stdout.close()


def test_a_busy_worker_does_not_outlive_a_killed_parent():
    script = CHILD.replace("limit_s=60.0", "limit_s=1.0").format(
        path=sys.path, workers=1, then=f"print('busy', flush=True); verifier.compare(*{SLOW!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in child.stdout.readline().split()[1:]]
    child.stdout.readline()
    time.sleep(0.3)
    child.kill()
    child.wait()
    wait_until(lambda: not any(map(is_alive, pids)))
    child.stdout.close()


@pytest.mark.slow
def test_ctrl_c_leaves_workers_alone_and_the_next_verdict_right():
    script = rf"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell is born ignoring it
try:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    verifier.compare(*{SLOW!r})
except KeyboardInterrupt:
    print("interrupted", verifier.compare(r"\boxed{{f(x)+2}}", "2+f(x)").label, flush=True)
"""
    child, _ = start_child(script)
    assert child.stdout.read().split() == ["interrupted", "correct"]
    assert child.wait(200) == 0
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


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("priml.graders.math", {"torch", "transformers", "numpy", "pydantic", "sympy", "math_verify"}),
        ("priml.graders.math.worker", {"torch", "transformers", "numpy", "pydantic"}),
    ],
)
def test_the_library_imports_little(module, absent):
    program = f"import sys; sys.path[:0] = {sys.path!r}; import {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not absent & set(done.stdout.split())


def hostile_rows():
    return [json.loads(line) for line in HOSTILE.read_text(encoding="utf-8").splitlines()]


def hostile_response(row, probe):
    response = row["response"].replace("@", str(probe))
    return response.replace("§", row["repeat"][0] * row["repeat"][1]) if "repeat" in row else response


def test_hostile_answers_are_refused_quickly_and_run_nothing(verifier, tmp_path, monkeypatch):
    probe = tmp_path / "probe"
    monkeypatch.chdir(tmp_path)
    verifier.compare(*ENGINE)
    accepted, rejected, slow, undecided = [], [], [], []
    for row in hostile_rows():
        start = time.thread_time()
        verdict = verifier.compare(hostile_response(row, probe), row["gold"])
        if time.thread_time() - start > 20.0:  # none takes a quarter of a second
            slow.append(row)
        if verdict.correct is None:
            undecided.append(row)
        elif verdict.correct != row["correct"]:
            (accepted if verdict.correct else rejected).append(row)
    assert (accepted, rejected, slow, undecided) == ([], [], [], [])
    assert list(tmp_path.iterdir()) == []


def test_the_hostile_answers_are_many_and_most_are_wrong():
    rows = hostile_rows()
    assert len(rows) >= 400
    assert sum(row["correct"] for row in rows) < len(rows) // 10


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
    """Other pairs every day."""
    seed = datetime.now(UTC).date().isoformat()
    accuracy, report = graded(random.Random(seed).sample(labelled_rows(), 100))
    assert accuracy >= 0.998, f"seed {seed}: {report}"


@pytest.mark.slow
def test_a_busy_machine_changes_no_verdict(verifier):
    """Labelled pairs, those for the engine among them, alone and beside sixteen processes that only compute."""
    rows = [row for row in reported_rows() if row["kind"] in ("M11", "M12", "M13") and "choice" not in row]
    pairs = [(row["response"], row["gold"]) for row in rows]

    def verdicts():
        return [(verdict.label, verdict.reason) for verdict in fan_out(lambda pair: verifier.compare(*pair), pairs)]

    alone = verdicts()
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(16)]
    try:
        assert verdicts() == alone
    finally:
        for process in load:
            process.kill()
            process.wait()


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_ten_thousand_gradings_leave_no_process_file_or_growing_memory():
    def resident_mib():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    def grade_distinct(numbers):
        for n in numbers:
            assert verifier.compare(rf"\boxed{{{n}(x+1)+\sqrt{{{n}}}}}", rf"{n}x+\sqrt{{{n}}}+{n}").label == "correct"
            if n % 1000 == 0:
                assert verifier.compare(rf"\boxed{{f(x)+{n}}}", rf"{n}+f(x)").label == "correct"

    verifier = MathVerifier(workers=1, recycle_after=5, limit_s=20.0)
    grade_distinct(range(10_000))  # the caches are full now
    before, files = resident_mib(), set(os.listdir("/proc/self/fd"))
    grade_distinct(range(10_000, 20_000))
    assert resident_mib() - before < 30
    assert len(os.listdir("/proc/self/fd")) <= len(files) + 2
    pids = verifier.worker_pids
    verifier.close()
    assert len(pids) == 1
    assert not any(map(is_alive, pids))


@pytest.mark.exhaustive
def test_accuracy_on_all_labelled_pairs():
    accuracy, report = graded(labelled_rows())
    assert accuracy >= 0.998, report


GOLDS = (
    "math500.jsonl",
    "minerva_math.jsonl",
    "olympiadbench.jsonl",
    "college_math.jsonl.gz",
    "math_train_12k.jsonl.gz",
)


def golds_of_benchmarks(each: int, seed: int) -> list[str]:
    """So many gold answers of each benchmark, for one seed always the same."""
    chosen: list[str] = []
    for name in GOLDS:
        path = LABELLED.parent / "math" / name
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            answers = sorted({json.loads(line)["answer"] for line in lines})
        chosen += random.Random(f"{name}{seed}").sample(answers, min(each, len(answers)))
    return chosen


def rewritten(gold):
    """The same answer in other typesetting."""
    yield gold
    yield f"${gold}$"
    yield gold.replace(",", ", ") if "," in gold and not re.search(r"[0-9],[0-9]{3}|\{,\}", gold) else f"{{{gold}}}"
    if "\\frac" in gold:
        yield gold.replace("\\frac", "\\dfrac")
    if "(" in gold and "\\left" not in gold:
        yield gold.replace("(", "\\left(").replace(")", "\\right)")
    if found := re.fullmatch(r"\\frac\{(\d+)\}\{(\d+)\}", gold):
        yield f"{found[1]}/{found[2]}"
        yield f"\\frac{{{3 * int(found[1])}}}{{{3 * int(found[2])}}}"


def changed(gold, rng):
    """Answers with another digit, another sign, another letter."""
    if places := [at for at, character in enumerate(gold) if character.isdigit()]:
        at = rng.choice(places)
        yield f"{gold[:at]}{(int(gold[at]) + rng.randint(1, 9)) % 10}{gold[at + 1 :]}"
    if places := [at for at in range(1, len(gold) - 1) if gold[at] in "+-" and gold[at - 1] not in "{(^,["]:
        at = rng.choice(places)
        yield f"{gold[:at]}{'-' if gold[at] == '+' else '+'}{gold[at + 1 :]}"
    letters = re.findall(r"(?<![A-Za-z\\{])[a-z](?![A-Za-z])", gold)
    if letters and "\\text" not in gold:
        other = rng.choice([letter for letter in "abcmnpqrstuvw" if letter not in gold] or ["w"])
        yield re.sub(rf"(?<![A-Za-z\\]){rng.choice(letters)}(?![A-Za-z])", other, gold, count=1)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.skipif(not LABELLED.exists(), reason="the benchmarks' gold answers are not beside this checkout")
def test_golds_of_every_benchmark_are_right_themselves_and_wrong_when_changed(seed):
    """One in a thousand rewritten golds may be rejected, two in a thousand changed ones accepted.

    A changed gold may still be right: i^{26} = (i^4)^5 i^2 = -1 and i^{26} = (i^4)^6 i^2 = -1. These are counted with
    the others, and they are most of what is accepted.
    """
    golds, rng = golds_of_benchmarks(1000, seed), random.Random(seed)
    kept = [(answer, gold) for gold in golds for answer in rewritten(gold)]
    others = [(answer, gold) for gold in golds for answer in changed(gold, rng)]
    verdicts = grade_many([(f"Thus \\boxed{{{answer}}}.", gold) for answer, gold in kept + others])
    rejected = [pair for pair, verdict in zip(kept, verdicts, strict=False) if not verdict.correct]
    accepted = [pair for pair, verdict in zip(others, verdicts[len(kept) :], strict=True) if verdict.correct]
    print(f"{len(kept)} rewritten, {len(rejected)} rejected; {len(others)} changed, {len(accepted)} accepted")  # noqa: T201
    print(*accepted, sep="\n")  # noqa: T201
    assert len(rejected) <= 0.001 * len(kept), rejected
    assert len(accepted) <= 0.002 * len(others), accepted


REPORTED = Path(__file__).parent / "fixtures" / "math_reported.jsonl"
"""Inputs distilled from public reports on graders, and their neighbours: `kind`, `gold`, `response`, `correct`.

`choice`: the gold is the letter of an option; `bare_answers`: answers without a box count.
"""


UNSEEN = REPORTED.with_name("math_unseen.jsonl")
"""The same, from threads that were labelled before the grader saw them: two sets, one after the other."""


def reported_rows(path=REPORTED):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mistakes(rows):
    """The rows that are judged wrong, each with the reason."""
    graders = {bare: (MathVerifier(workers=1, bare_answers=bare), ChoiceVerifier(bare_answers=bare)) for bare in (0, 1)}
    found = []
    for row in rows:
        grader = graders["bare_answers" in row]["choice" in row]
        verdict = grader.grade(Problem(id="1", prompt="?", answer=row["gold"]), row["response"])
        found += [] if verdict.correct is row["correct"] else [(row, verdict.reason)]
    return found


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in reported_rows()}))
def test_what_people_reported_is_judged_right(kind):
    assert mistakes([row for row in reported_rows() if row["kind"] == kind]) == []


@pytest.mark.parametrize("number", [1, 2])
def test_what_was_not_seen_while_the_grader_was_written_is_judged_right(number):
    assert mistakes([row for row in reported_rows(UNSEEN) if row["set"] == number]) == []


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("1.63", "1.6", True),
        ("1.66", "1.6", False),
        ("2", "1.6", False),
        (r"\frac{13}{8}", "1.6", True),
        (r"\approx 1.63", "1.6", True),
        (r"1.63\text{ km}", "1.6", True),
        (r"4.53 \times 10^{33}", "4.5e33", True),
        (r"4.56 \times 10^{33}", "4.5e33", False),
        ("0.00354", r"3.5 \times 10^{-3}", True),
        ("-1.63", "1.6", False),
        ("10", "9", False),
        ("1.4e11", "1e11", False),
        ("0.001", "0.0", False),
    ],
)
def test_what_rounds_to_a_decimal_gold_is_right_where_its_digits_count(answer, gold, right):
    assert MathVerifier(digits="gold").compare(f"\\boxed{{{answer}}}", gold).correct is right


@pytest.mark.parametrize(
    ("answer", "error", "right"),
    [
        ("4.25", "1e-1", True),
        ("4.25", None, False),
        ("4.25", "a text", False),
        ("4.35", "1e-1", False),
        ("4.2", "0", True),
    ],
)
def test_the_error_that_a_row_allows_is_absolute_and_counts_where_it_is_asked_for(answer, error, right):
    problem = Problem("p", "?", "4.2", meta={"error": error})
    assert MathVerifier(tolerance="row").grade(problem, f"\\boxed{{{answer}}}").correct is right
    assert MathVerifier().grade(problem, f"\\boxed{{{answer}}}").correct is (answer == "4.2")
