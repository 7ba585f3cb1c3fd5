"""The pages of runs over HTTP: the same code as a report in one file, with rows and responses asked for when shown.

Read only, for one reader on this machine: every address begins with a random token, requests for other hosts are
refused, and nothing is ever written.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from priml.report.index import Query, RolloutIndex
from priml.report.logs import finite_numbers, read_run
from priml.report.page import inert_json, render, report_data
from priml.report.patterns import paid_patterns
from priml.report.rollouts import load_tokenizer, read_group
from priml.runs.folder import RunFolder

if TYPE_CHECKING:
    from starlette.requests import Request
    from tokenizers import Tokenizer

HOSTS = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class ServedRun:
    """One run and what is kept of it in memory: its table without tokens."""

    def __init__(self, path: Path) -> None:
        self.log = read_run(path)
        self.folder = RunFolder(path)
        self.index = RolloutIndex(self.folder.rollouts(0).parent)
        self._lock = threading.Lock()  # requests come on several threads
        self._tokenizer: Tokenizer | None = None

    def refresh(self) -> bool:
        """Read rollout files that are new."""
        with self._lock:
            return self.index.refresh()

    def page_data(self) -> dict[str, Any]:
        """What the page shows at first."""
        # First where the records end, then the records: one that comes between is sent twice, and none is missed.
        _, cursor = _new_lines(self.folder.metrics, Cursor())
        self.refresh()
        live = {"cursor": str(cursor), "finished": self.folder.summary.exists()}
        return {**report_data(read_run(self.folder.path), self.index), "live": live}

    def rows(self, query: Query) -> dict[str, Any]:
        """One page of the table."""
        self.refresh()
        return asdict(self.index.find(query))

    def group(self, step: int, problem: str) -> list[dict[str, Any]]:
        """All responses to a problem in a step, with their tokens."""
        self.refresh()
        rows = self.index.members(step, problem)
        if not rows:
            return []
        self._tokenizer = self._tokenizer or load_tokenizer(self.folder.tokenizer / "tokenizer.json")
        return [asdict(one) for one in read_group(self.folder.rollouts(step), rows, self._tokenizer)]

    def patterns(self) -> dict[str, Any] | None:
        """The best paid runs of tokens: read after the page, as they take longer than it."""
        self._tokenizer = self._tokenizer or load_tokenizer(self.folder.tokenizer / "tokenizer.json")
        found = paid_patterns(self.folder.rollout_files(), self._tokenizer)
        return asdict(found) if found else None

    def news(self, since: Cursor) -> tuple[str, dict[str, Any]]:
        """A tag that changes with the files, and what was recorded since."""
        self.refresh()
        metrics, now = _new_lines(self.folder.metrics, since)
        finished = self.folder.summary.exists()
        message = {"cursor": str(now), "metrics": metrics, "restarted": now.file != since.file and bool(since.position)}
        message |= {"rollouts": self.index.table.num_rows, "finished": finished}
        return f'"{now}-{self.index.table.num_rows}-{int(finished)}"', message


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader has come in the metrics: which file, and how many bytes."""

    file: int = 0
    position: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.position}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Of a request."""
        file, _, position = text.partition(":")
        return cls(int(file or 0), int(position or 0))


def _new_lines(path: Path, since: Cursor) -> tuple[list[Mapping[str, float]], Cursor]:
    """The records behind a cursor; all of them where the file is another, as after a resume."""
    if not path.exists():
        return [], Cursor()
    with path.open("rb") as file:
        status = path.stat()
        start = since.position if since.file == status.st_ino and since.position <= status.st_size else 0
        file.seek(start)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]  # the last line may be half written
    records: list[Mapping[str, float]] = []
    for line in whole.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the page has said so already
        if isinstance(record, dict):
            records.append(finite_numbers(record))
    return records, Cursor(status.st_ino, start + len(whole))


def make_app(runs: Sequence[ServedRun], token: str) -> Starlette:
    """The application. Addresses without the token do not exist."""
    routes = [
        Route("/", _page(runs)),
        Route("/rows", _answer(runs, lambda run, asked: run.rows(_query(asked)))),
        Route("/group", _answer(runs, lambda run, asked: run.group(int(asked["step"]), asked["problem"]))),
        Route("/patterns", _answer(runs, lambda run, asked: run.patterns())),
        Route("/news", _news(runs)),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS)), Middleware(GZipMiddleware)]
    return Starlette(routes=[Mount(f"/{token}", routes=routes)], middleware=middleware)


Asked = Mapping[str, str]
"""The parameters of a request."""
Endpoint = Callable[["Request"], Response]


def _page(runs: Sequence[ServedRun]) -> Endpoint:
    def show(request: Request) -> Response:
        return HTMLResponse(render(runs[0].page_data(), connect="'self'"), headers=_HEADERS)

    return show


def _answer(runs: Sequence[ServedRun], answer: Callable[[ServedRun, Asked], Any]) -> Endpoint:
    def respond(request: Request) -> Response:
        asked = request.query_params
        try:
            found = answer(runs[int(asked.get("run", "0"))], asked)
        except (ValueError, KeyError, IndexError) as error:
            return PlainTextResponse(f"{type(error).__name__}: {error}", 400, headers=_HEADERS)
        return Response(inert_json(found), media_type="application/json", headers=_HEADERS)

    return respond


def _news(runs: Sequence[ServedRun]) -> Endpoint:
    def answer(request: Request) -> Response:
        asked = request.query_params
        try:
            tag, message = runs[int(asked.get("run", "0"))].news(Cursor.parse(asked.get("after", "")))
        except (ValueError, IndexError) as error:
            return PlainTextResponse(f"{type(error).__name__}: {error}", 400, headers=_HEADERS)
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={**_HEADERS, "ETag": tag})
        return Response(inert_json(message), media_type="application/json", headers={**_HEADERS, "ETag": tag})

    return answer


def _query(asked: Asked) -> Query:
    """Parameters that are no part of a query are passed over."""
    kinds = get_type_hints(Query)
    values = {field.name: asked[field.name] for field in fields(Query) if field.name in asked}
    read: dict[str, Any] = {}
    for name, value in values.items():
        if kinds[name] is bool:
            read[name] = value == "true"
        else:
            read[name] = int(value) if name in ("page", "size", "first_step", "last_step") else value
    return Query(**read)
