"""A real server on a free port of this machine, and a client that knows nothing of priml."""

import gzip
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")

from priml.report.serve import ServedRun, make_app  # noqa: E402

MakeRun = Callable[..., Path]
Ask = Callable[..., tuple[int, dict[str, str], str]]


@pytest.fixture
def serve() -> Iterator[Callable[..., Ask]]:
    """`serve(folder)` -> `ask(path, method=, **headers)`, which gives status, headers and text."""
    running: list[tuple[Any, threading.Thread]] = []

    def start(*folders: Path) -> Ask:
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        app = make_app([ServedRun(folder) for folder in folders], "secret")
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
        return lambda path, method="GET", **headers: _ask(origin + path, method, headers)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


def _ask(url: str, method: str, headers: dict[str, str]) -> tuple[int, dict[str, str], str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=named), timeout=60) as answer:
            status, got, body = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        status, got, body = error.code, error.headers, error.read()
    body = gzip.decompress(body) if got.get("content-encoding") == "gzip" else body
    return status, {name.lower(): value for name, value in got.items()}, body.decode()


def test_the_page_is_that_of_the_report_and_may_ask_its_own_server_alone(make_run: MakeRun, serve: Callable[..., Ask]):
    status, headers, page = serve(make_run(steps=2))("/secret/")
    assert status == 200
    assert "connect-src 'self'; " in page
    assert "default-src 'none'; " in page
    assert '"inside":null' in page
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path", ["/", "/rows", "/secre/", "/SECRET/", "/secret/../", "/secret/config.yaml", "/secret/%2e%2e/x"]
)
def test_without_the_token_and_beside_the_page_there_is_nothing(
    make_run: MakeRun, serve: Callable[..., Ask], path: str
):
    assert serve(make_run(steps=1))(path)[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_another_host_is_refused(make_run: MakeRun, serve: Callable[..., Ask], host: str):
    assert serve(make_run(steps=1))("/secret/", host=host)[0] == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(make_run: MakeRun, serve: Callable[..., Ask], method: str):
    assert serve(make_run(steps=1))("/secret/rows", method)[0] == 405


def test_rows_are_filtered_sorted_and_paged(make_run: MakeRun, serve: Callable[..., Ask]):
    ask = serve(make_run(steps=3))
    found = json.loads(ask("/secret/rows?verdict=wrong&sort=paid&descending=true&size=10&page=2")[2])
    assert (len(found["rows"]), found["count"], found["total"]) == (10, 3 * 14, 84)
    assert {row["verdict"] for row in found["rows"]} == {"wrong"}


@pytest.mark.parametrize(
    "asked", ["sort=secret", "page=x", "page=0", "size=9999", "first_step=a", "run=7", "run=x", "pay=no"]
)
def test_a_request_that_means_nothing_says_so(make_run: MakeRun, serve: Callable[..., Ask], asked: str):
    status, _, text = serve(make_run(steps=1))(f"/secret/rows?{asked}")
    assert status == 400
    assert "Error: " in text


def test_the_responses_to_a_prompt_come_with_their_tokens(make_run: MakeRun, serve: Callable[..., Ask]):
    ask = serve(make_run(steps=2))
    group = json.loads(ask("/secret/group?step=2&problem=chain-001")[2])
    assert [one["sample"] for one in group] == [0, 1, 2, 3]
    assert "".join(group[0]["pieces"]).endswith("onerror=alert(1)><!--<script><|end|>")
    assert len(group[0]["numbers"]["process_rewards"]) == group[0]["num_tokens"]
    assert json.loads(ask("/secret/group?step=9&problem=chain-001")[2]) == []
    assert ask("/secret/group?step=2")[0] == 400


def test_news_are_what_was_recorded_since(make_run: MakeRun, serve: Callable[..., Ask]):
    run = make_run(steps=4)
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    (run / "summary.json").unlink()
    metrics.write_text("".join(lines[:3]))
    ask = serve(run)
    _, headers, text = ask("/secret/news")
    first = json.loads(text)
    assert [row["step"] for row in first["metrics"]] == [0, 1, 2]
    assert not first["finished"]
    cursor = f"/secret/news?after={first['cursor']}"
    assert ask(cursor, if_none_match=headers["etag"])[0] == 304, "nothing new costs nothing"
    with metrics.open("a") as file:
        file.write(lines[3] + '{"step": 4, "outcome/me')
    second = json.loads(ask(cursor, if_none_match=headers["etag"])[2])
    assert [row["step"] for row in second["metrics"]] == [3], "and a half-written line waits"
    (run / "rollouts" / "000004.parquet").unlink()
    (run / "summary.json").write_text("{}")
    third = json.loads(ask(f"/secret/news?after={second['cursor']}")[2])
    assert (third["metrics"], third["rollouts"], third["finished"]) == ([], 84, True)


def test_a_resumed_run_that_wrote_its_records_again_is_told(make_run: MakeRun, serve: Callable[..., Ask]):
    run = make_run(steps=3)
    ask = serve(run)
    cursor = json.loads(ask("/secret/news")[2])["cursor"]
    metrics = run / "metrics.jsonl"
    aside = run / "aside"
    aside.write_text(metrics.read_text().splitlines(keepends=True)[0])
    aside.replace(metrics)
    news = json.loads(ask(f"/secret/news?after={cursor}")[2])
    assert news["restarted"]
    assert [row["step"] for row in news["metrics"]] == [0]


def test_numbers_that_are_not_finite_do_not_break_an_answer(make_run: MakeRun, serve: Callable[..., Ask]):
    run = make_run(steps=1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "policy/loss": NaN, "prm/loss": 0.5, "digest/policy": "ab"}\n[1]\nnonsense\n')
    last = json.loads(serve(run)("/secret/news")[2])["metrics"][-1]
    assert last == {"step": 2, "prm/loss": 0.5}
