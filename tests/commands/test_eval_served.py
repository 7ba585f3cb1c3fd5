"""`priml eval` with a server."""

import json
import multiprocessing
import random
import shutil
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest

from priml.commands.eval import run_eval
from priml.config.data import WalkSource
from priml.config.eval import EvalConfig
from priml.config.load import parse_config
from priml.errors import ConfigError, RunError
from priml.factories.data import load_source
from priml.rollout.base import SamplingSpec
from priml.rollout.openai import response_seed
from servers.stand_in import StandIn, question

TASK = {"kind": "walk", "length": 3, "states": 4, "operations": 5, "split": "held_out"}
COUNT, SAMPLES = 12, 4
SOURCE = WalkSource.model_validate({**TASK, "count": COUNT})
ALL = COUNT * (1 + SAMPLES)


def config(run_dir, server, *, sampler=None, **settings):
    tree = {
        "run_dir": str(run_dir),
        "data": {"two": {**TASK, "count": COUNT}},
        "samples": SAMPLES,
        "max_new_tokens": 6,
        "verify": {"kind": "exact"},
        "sampler": {"kind": "openai", "base_url": server.url, "model": "tiny", "retries": 0, **(sampler or {})},
        **settings,
    }
    return parse_config(EvalConfig, tree, where="test")


def asked(body):
    """A response of the evaluation; None: the question before it."""
    return None if body["max_tokens"] == 1 else (question(body), body.get("seed"))


def test_a_server_is_evaluated_and_the_key_is_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    with StandIn() as server:
        results = run_eval(config(tmp_path / "run", server))
        assert run_eval(tmp_path / "run", regrade=True) == results
        assert len(server.requests) == ALL + 1
    assert results["two"]["responses"] == ALL
    assert results["two"]["tokens"] is None, "without a tokenizer nobody has counted them"
    assert results["two"]["majority_at"]["4"]["n"] == COUNT
    rows = pq.read_table(tmp_path / "run" / "two.parquet").to_pylist()
    assert len({row["response"] for row in rows}) > 1
    assert not any(row["sampler_logprobs"] for row in rows)
    assert not any(b"very-secret" in path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert run_eval(tmp_path / "run") == results, "all is there: the server, which is gone, is not needed"


def test_with_a_tokenizer_tokens_are_counted_and_compared(tmp_path, warm_model):
    from priml.models.load import load_tokenizer

    tokenizer = load_tokenizer(str(warm_model))
    with StandIn(count=lambda body: len(tokenizer.encode(question(body), add_special_tokens=True))) as server:
        cfg = config(tmp_path / "run", server, model=str(warm_model), prompt={"template": "plain"})
        found = run_eval(cfg)["two"]
    assert found["tokens"]["mean"] > 3
    with (
        StandIn(count=lambda _: 99) as server,
        pytest.raises(ConfigError, match=r"reads 99 tokens in the prompt of problem"),
    ):
        run_eval(config(tmp_path / "other", server, model=str(warm_model), prompt={"template": "plain"}))
    assert not (tmp_path / "other" / "config.yaml").exists(), "nothing was begun"


def test_lost_responses_are_undecided_and_asked_for_again(tmp_path):
    with StandIn() as server:
        whole = run_eval(config(tmp_path / "whole", server))

    def fault(number, body):
        return "error" if asked(body) and number % 5 == 0 else None

    with StandIn(fault=fault) as server:
        cfg = config(tmp_path / "run", server)
        with pytest.raises(RunError, match=r"12 of 60 responses are undecided.*priml eval"):
            run_eval(cfg)
        assert json.loads((tmp_path / "run" / "eval.json").read_text())["two"]["undecided"] == 12
        rows = pq.read_table(tmp_path / "run" / "two.parquet").to_pylist()
        assert Counter(row["reason"] for row in rows)["request lost: status 500"] == 12
        with pytest.raises(RunError, match="12 of 60"):
            run_eval(tmp_path / "run", regrade=True)
        server.requests.clear()
        server.fault = lambda *_: None
        assert run_eval(tmp_path / "run") == whole
        assert len(server.requests) == 12 + 1


def kill_and_go_on(tmp_path, *, kills, seed):
    """Kill an evaluation so often after random numbers of requests, then let it end."""
    chooser = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["priml.commands.eval", "openai"])
    folder = tmp_path / "run"
    with StandIn() as server:
        whole = run_eval(config(tmp_path / "whole", server))
    with StandIn(latency=0.02) as server:
        cfg = config(folder, server, sampler={"concurrency": 3})
        for _ in range(kills):
            stored = stored_in(folder)
            begin, wait = len(server.requests), chooser.randrange(1, ALL // (kills + 1) * 2)
            started = (folder / "config.yaml").exists()
            if not started:
                shutil.rmtree(folder, ignore_errors=True)
            process = context.Process(target=run_eval, args=(folder if started else cfg,))
            process.start()
            while process.is_alive() and len(server.requests) < begin + wait:
                time.sleep(0.001)
            process.kill()
            process.join()
            new = Counter(asked(body) for body in server.requests[begin:] if asked(body))
            assert not set(new) & stored, "what was finished is not asked for again"
        begin, stored = len(server.requests), stored_in(folder)
        assert run_eval(folder) == whole
        assert len(server.requests) - begin == ALL - len(stored) + 1
    tables = [pq.read_table(path / "two.parquet") for path in (folder, tmp_path / "whole")]
    assert tables[0].equals(tables[1])


def stored_in(folder):
    """The responses that are on the disk, as `asked` names them."""
    path = folder / "two.partial.jsonl"
    text = path.read_text() if path.exists() else ""
    problems = {problem.id: problem.prompt for problem in load_source(SOURCE).problems}
    spec = SamplingSpec(SAMPLES, 1.0, 6, 0, -1)
    found = set()
    for line in text[: text.rfind("\n") + 1].splitlines():
        row = json.loads(line)
        seed = response_seed(spec, row["problem_id"], row["sample"]) if row["decoding"] == "sampled" else None
        found.add((problems[row["problem_id"]], seed))
    return found


def test_a_killed_evaluation_goes_on_and_asks_nothing_twice(tmp_path):
    kill_and_go_on(tmp_path, kills=2, seed=1)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    kill_and_go_on(tmp_path, kills=20, seed=2)
