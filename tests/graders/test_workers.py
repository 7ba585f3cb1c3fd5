import os

import pytest

from priml.errors import RunError
from priml.graders.workers import Failure, WorkerPool

WORKER = """
import ctypes, os, signal, time
from priml.graders.workers import serve

def main(start):
    serve(start, handle)

def handle(request):
    match request["do"]:
        case "pid":
            return {"pid": os.getpid()}
        case "echo":
            return {"text": request["text"], "seed": os.environ["PYTHONHASHSEED"]}
        case "allocate":
            return {"length": len(bytearray(1 << 32))}
        case "compute":
            while True:
                pass
        case "sleep":
            time.sleep(request["seconds"])
            return {}
        case "raise":
            raise ValueError("a bug, or a text that breaks the engine")
        case "segfault":
            ctypes.string_at(0)
        case "signal":
            os.kill(os.getpid(), request["signal"])
        case "chatter":
            os.write(1, b"noise" * 1000)
            os.write(2, b"noise" * 1000)
            return {}
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    (tmp_path / "a_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    pool = WorkerPool("a_worker", size=1, limit_s=1.0, memory_mib=512, recycle_after=100)
    yield pool
    pool.close()


def test_a_request_is_answered_by_another_process(pool):
    assert pool.pids == ()
    reply = pool.ask({"do": "pid"})
    assert len(pool.pids) == 1
    assert reply["pid"] not in (os.getpid(), *pool.pids), "a child of the worker"


@pytest.mark.parametrize("text", ["", "x" * 1_000_000, "\u2212½\x00\n", "\ud800"])
def test_any_text_travels_unharmed(pool, text):
    assert pool.ask({"do": "echo", "text": text})["text"] == text


def test_workers_hash_alike_so_that_verdicts_repeat(pool):
    assert pool.ask({"do": "echo", "text": ""})["seed"] == "0"


@pytest.mark.parametrize(
    ("request_", "failure"),
    [
        ({"do": "compute"}, Failure.TIME),
        ({"do": "allocate"}, Failure.MEMORY),
        ({"do": "raise"}, Failure.CRASH),
        ({"do": "segfault"}, Failure.CRASH),
        ({"do": "signal", "signal": 6}, Failure.CRASH),
        ({"do": "signal", "signal": 9}, Failure.LOST),
        ({"do": "signal", "signal": 15}, Failure.LOST),
    ],
)
def test_each_way_of_dying_has_its_name_and_the_pool_goes_on(pool, request_, failure):
    assert pool.ask(request_) is failure
    assert pool.ask({"do": "echo", "text": "on"})["text"] == "on"
    assert len(pool.pids) == 1


def test_another_process_serves_after_a_failure_and_after_its_share(tmp_path, monkeypatch):
    (tmp_path / "a_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    pool = WorkerPool("a_worker", size=1, limit_s=0.5, memory_mib=512, recycle_after=2)
    first, second, third = (pool.ask({"do": "pid"})["pid"] for _ in range(3))
    assert first == second != third
    assert pool.ask({"do": "compute"}) is Failure.TIME
    assert pool.ask({"do": "pid"})["pid"] not in (first, third)
    pool.close()


def test_a_child_that_is_killed_while_it_waits_is_not_missed(pool):
    os.kill(pool.ask({"do": "pid"})["pid"], 9)
    assert pool.ask({"do": "echo", "text": "on"})["text"] == "on"


def test_a_request_waits_for_no_import_after_a_failure(tmp_path, monkeypatch):
    """Counted, not timed: the module is imported once for each worker, whatever happens to the children."""
    (tmp_path / "a_worker.py").write_text(f"open({str(tmp_path / 'imports')!r}, 'a').write('.')\n{WORKER}")
    monkeypatch.syspath_prepend(tmp_path)
    pool = WorkerPool("a_worker", size=2, limit_s=0.1, memory_mib=512, recycle_after=100)
    for _ in range(4):
        assert pool.ask({"do": "compute"}) is Failure.TIME
        assert pool.ask({"do": "segfault"}) is Failure.CRASH
    assert pool.ask({"do": "echo", "text": "on"})["text"] == "on"
    assert len((tmp_path / "imports").read_text()) <= 2
    pool.close()


def test_chatter_of_the_engine_disturbs_nothing(pool, capfd):
    assert pool.ask({"do": "chatter"}) == {}
    assert pool.ask({"do": "echo", "text": "on"})["text"] == "on"
    assert "noise" not in "".join(capfd.readouterr())


def test_waiting_does_not_count_and_a_worker_that_waits_too_long_is_lost(pool, tmp_path, monkeypatch):
    assert pool.ask({"do": "sleep", "seconds": 1.2}) == {}, "as when other programs have the processor"
    (tmp_path / "a_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    impatient = WorkerPool("a_worker", size=1, limit_s=0.01, memory_mib=512, recycle_after=100)
    assert impatient.ask({"do": "sleep", "seconds": 600}) is Failure.LOST
    impatient.close()


def test_the_time_to_start_does_not_count(tmp_path, monkeypatch):
    (tmp_path / "late_worker.py").write_text(f"import time\nwhile time.process_time() < 1.0: pass\n{WORKER}")
    monkeypatch.syspath_prepend(tmp_path)
    pool = WorkerPool("late_worker", size=1, limit_s=0.5, memory_mib=512, recycle_after=100)
    assert pool.ask({"do": "echo", "text": "on"})["text"] == "on"
    pool.close()


def test_a_worker_that_can_never_start_ends_the_run_with_a_message(tmp_path, monkeypatch, capfd):
    (tmp_path / "broken_worker.py").write_text("import a_module_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    pool = WorkerPool("broken_worker", size=1, limit_s=0.5, memory_mib=512, recycle_after=100)
    assert pool.ask({"do": "pid"}) is Failure.LOST
    with pytest.raises(RunError, match=r"broken_worker.*priml doctor"):
        pool.ask({"do": "pid"})
    assert "a_module_nobody_has" in capfd.readouterr().err
    pool.close()


def test_a_collected_pool_leaves_no_process(tmp_path, monkeypatch):
    (tmp_path / "a_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    pool = WorkerPool("a_worker", size=2, limit_s=1.0, memory_mib=512, recycle_after=100)
    pool.ask({"do": "pid"})
    pids = pool.pids
    del pool
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
