"""A server with the interface of OpenAI, of the standard library alone, and as broken as a test wants it.

`python tests/servers/stand_in.py 8000` serves until it is stopped: any text gets an answer that its hash and the seed
determine.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Body = Mapping[str, Any]

FAULTS = ("limit", "error", "hang", "cut", "half", "drop", "empty", "aborted", "null")
"""`limit`: 429 with Retry-After; `error`: 500; `hang`: no answer; `cut`: JSON that ends early; `half`: a body shorter
than announced; `drop`: the connection closes; `empty`: no text and no tokens; `aborted`: the server gave up;
`null`: JSON that is no answer."""


def question(body: Body) -> str:
    """What was asked: the last message, or the whole text."""
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


def hashed(body: Body) -> str:
    """An answer of one digit, which the question and the seed decide."""
    text = f"{question(body)}/{body.get('seed')}/{body['temperature']}"
    return f"It is \\boxed{{{int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10}}}"


@dataclass
class StandIn:
    """`with StandIn() as server:` it answers at `server.url`."""

    answer: Callable[[Body], str | Mapping[str, Any]] = hashed
    """The text, or the whole choice."""
    fault: Callable[[int, Body], str | int | None] = lambda number, body: None
    """What goes wrong with this request (numbered from 0): one of `FAULTS`, a status, or the words with which it is
    refused; None: nothing."""
    count: Callable[[Body], int | None] = lambda body: None
    """The tokens of a prompt, for `usage`; None: it tells none."""
    models: Sequence[str] | None = ("tiny",)
    """Names; None: it cannot list them."""
    context: int | None = None
    """Longest sequence, as vLLM tells and enforces it."""
    latency: float = 0.0
    """Seconds of every answer."""
    retry_after: float = 0.01
    """Seconds, of `limit`."""
    requests: list[Body] = field(default_factory=list)
    """Everything that was asked for, in its order."""
    headers: list[Mapping[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> StandIn:
        self._loop, self._numbers, ready = asyncio.new_event_loop(), itertools.count(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                payload = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._reply(first.split()[1], headers, payload, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _reply(self, path: str, headers: Mapping[str, str], payload: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open."""
        if path.endswith("/models"):
            status, found = (500, {}) if self.models is None else (200, {"data": [self._model(m) for m in self.models]})
            return await _send(writer, status, json.dumps(found))
        body = json.loads(payload)
        self.requests.append(body)
        self.headers.append(headers)
        self.times.append(time.monotonic())
        fault = self.fault(next(self._numbers), body)
        await asyncio.sleep(3600 if fault == "hang" else self.latency)
        if fault == "drop":
            return False
        if fault == "limit":
            return await _send(writer, 429, '{"error": {"message": "slowly"}}', {"Retry-After": f"{self.retry_after}"})
        if fault == "error" or isinstance(fault, int):
            status = fault if isinstance(fault, int) else 500
            return await _send(writer, status, '{"error": {"message": "as the test wants it", "code": "test"}}')
        tokens = self.count(body)
        if self.context and (tokens or 0) + body["max_tokens"] > self.context:
            fault = f"longest is {self.context}"
        if fault is not None and fault not in FAULTS:
            return await _send(writer, 400, json.dumps({"error": {"message": fault}}))
        text = "null" if fault == "null" else json.dumps(self._completion(body, fault, tokens))
        if fault == "half":
            await _send(writer, 200, text[: len(text) // 2], {"Content-Length": str(len(text))})
            return False
        return await _send(writer, 200, text[: len(text) // 2] if fault == "cut" else text)

    def _completion(self, body: Body, fault: str | int | None, tokens: int | None) -> Mapping[str, Any]:
        answer = self.answer(body) if fault != "empty" else ""
        choice = dict(answer) if isinstance(answer, Mapping) else _choice(answer, "messages" in body)
        if fault == "aborted":
            choice["finish_reason"] = "abort"
        spoken = 0 if fault == "empty" else 5
        usage = None if tokens is None else {"prompt_tokens": tokens, "completion_tokens": spoken}
        return {"id": "1", "object": "completion", "created": 0, "model": body["model"], "choices": [choice]} | (
            {"usage": usage} if usage else {}
        )

    def _model(self, name: str) -> Mapping[str, Any]:
        return {"id": name, "object": "model"} | ({"max_model_len": self.context} if self.context else {})


def _choice(text: str, is_chat: bool) -> dict[str, Any]:
    content = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    return {"index": 0, "finish_reason": "stop"} | content


async def _send(writer: asyncio.StreamWriter, status: int, text: str, headers: Mapping[str, str] | None = None) -> bool:
    data = text.encode()
    fields = {"Content-Type": "application/json", "Content-Length": str(len(data))} | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"HTTP/1.1 {status} -\r\n{head}\r\n".encode() + data)
    await writer.drain()
    return True


if __name__ == "__main__":
    with StandIn(port=int(sys.argv[1]), count=lambda body: len(question(body))) as running:
        sys.stdout.write(f"{running.url}\n")
        sys.stdout.flush()
        threading.Event().wait()
