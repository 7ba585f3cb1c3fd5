"""A sandbox elsewhere, by HTTP: services that answer `POST /run_code` as SandboxFusion does."""

import http.client
import json
import os
import threading
import time
import urllib.request
from typing import Any, Never

from priml.sandbox.base import Limits, SandboxLost, SandboxResult, SandboxUnavailable, Status
from priml.sandbox.running import is_memory_error

_GRACE_S = 30.0  # for the service's own queue and the way there and back
_MOST_BYTES = 16 << 20  # of a reply on top of the program's output, escaped


class HttpSandbox:
    """Implements `Sandbox` without `open`: this interface has no conversation.

    It isolates as well as the service does. The service gets our limits of time and memory; we cut the output.
    """

    def __init__(self, url: str, *, workers: int | None = None) -> None:
        self._turn = threading.BoundedSemaphore(workers or os.cpu_count() or 1)
        self._url = url.rstrip("/") + "/run_code"
        self.level = f"whatever the service at {url} provides"

    def run(self, code: str, *, stdin: str = "", limits: Limits = Limits()) -> SandboxResult:  # noqa: B008 (frozen)
        request = {
            "language": "python",
            "code": code,
            "stdin": stdin,
            "run_timeout": limits.wall_s,
            "memory_limit_MB": limits.memory_mib,
        }
        with self._turn:
            started = time.monotonic()
            reply = self._post(request, limits)
            return _result(reply, limits, seconds=time.monotonic() - started)

    def open(self, code: str, *, limits: Limits = Limits(), upcoming: str | None = None) -> Never:  # noqa: B008
        raise SandboxUnavailable(
            "an HTTP sandbox runs programs from start to end and cannot converse with them, so it can only grade tests "
            "of the kind `stdin`; for others use another `kind` of sandbox"
        )

    def close(self) -> None:
        """Nothing is kept between programs."""

    def _post(self, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
        call = urllib.request.Request(
            self._url, json.dumps(request).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(call, timeout=limits.wall_s + _GRACE_S) as answer:
                reply = json.loads(answer.read(_MOST_BYTES + 12 * limits.output_bytes))
        except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
            raise SandboxLost(f"sandbox: {self._url} did not answer as expected: {error}") from error
        if not isinstance(reply, dict) or reply.get("status") == "SandboxError" or not reply.get("run_result"):
            raise SandboxLost(f"sandbox: {self._url} failed: {str(reply)[:500]}")
        return reply["run_result"]


def _result(reply: dict[str, Any], limits: Limits, *, seconds: float) -> SandboxResult:
    stdout, stderr = reply.get("stdout") or "", reply.get("stderr") or ""
    code = reply.get("return_code")
    status: Status = "finished"
    if reply.get("status") == "TimeLimitExceeded":
        status = "time limit"
    elif len(stdout) + len(stderr) > limits.output_bytes:
        status = "output limit"
    elif code is None or code < 0:
        status = "crash"
    elif is_memory_error(code, stderr):
        status = "memory limit"
    shown = code if status in ("finished", "crash", "memory limit") else None
    limit = limits.output_bytes
    return SandboxResult(status, shown, stdout[:limit], stderr[:limit], reply.get("execution_time") or seconds)
