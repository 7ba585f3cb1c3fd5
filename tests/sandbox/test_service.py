"""Against a service that speaks the interface and really runs the code."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from priml.sandbox import Limits, SandboxLost, SandboxUnavailable, open_sandbox
from priml.sandbox.child import UnsafeSubprocess
from priml.sandbox.service import HttpSandbox


class Service(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, request["language"]) == ("/run_code", "python")
        if "break the service" in request["code"]:
            reply = {"status": "SandboxError", "message": "out of pods", "run_result": None}
        elif "break the reply" in request["code"]:
            reply = ["nonsense"]
        else:
            limits = Limits(wall_s=request["run_timeout"], memory_mib=request["memory_limit_MB"], output_bytes=1 << 22)
            result = UnsafeSubprocess().run(request["code"], stdin=request["stdin"], limits=limits)
            over = result.status == "time limit"
            run = {
                "status": "TimeLimitExceeded" if over else "Finished",
                "execution_time": result.seconds,
                "return_code": result.exit_code,
                "stdout": result.stdout,
                "stderr": result.stderr,
            }
            reply = {"status": "Success" if result.exit_code == 0 else "Failed", "message": "", "run_result": run}
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_programs_run_there(url: str):
    sandbox = open_sandbox("http", url=url)
    assert url in sandbox.level
    result = sandbox.run("print(input()[::-1])", stdin="abc\n")
    assert (result.status, result.exit_code, result.stdout) == ("finished", 0, "cba\n")


def test_endings_have_the_same_names_as_here(url: str):
    sandbox = HttpSandbox(url)
    assert sandbox.run("1 / 0").exit_code == 1
    assert sandbox.run("while True: pass", limits=Limits(wall_s=0.5)).status == "time limit"
    assert sandbox.run("x = bytearray(1 << 30)", limits=Limits(memory_mib=64)).status == "memory limit"
    assert sandbox.run("import os; os.abort()").status == "crash"
    cut = sandbox.run("print('x' * 9999)", limits=Limits(output_bytes=100))
    assert (cut.status, len(cut.stdout)) == ("output limit", 100)


@pytest.mark.parametrize("code", ["'break the service'", "'break the reply'"])
def test_a_failure_of_the_service_is_our_loss(url: str, code: str):
    with pytest.raises(SandboxLost, match="run_code"):
        HttpSandbox(url).run(code)


def test_a_service_that_is_not_there_is_refused_at_the_start():
    with pytest.raises(SandboxUnavailable, match="did not answer"):
        open_sandbox("http", url="http://127.0.0.1:9")


def test_it_cannot_converse_and_says_so(url: str):
    with pytest.raises(SandboxUnavailable, match="cannot converse"):
        HttpSandbox(url).open("receive()")
