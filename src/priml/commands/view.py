"""`priml view`: the pages of runs on this machine, live while a run writes."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from priml.errors import UsageError


def run_view(folders: Sequence[Path], port: int, show: Callable[[str], None]) -> None:
    """Serve until interrupted. `port` 0 takes a free one; `show` gets the lines for the user.

    Raises:
        UsageError: a folder is not one of a run, the port is taken, or the `view` extra is not installed.
    """
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"view: found no {' and no '.join(missing)}, need both for `priml view`: pip install 'priml[view]'. "
            "Without them `priml report RUN_DIR` writes the page as a file"
        )
    from priml.report.serve import ServedRun, make_app

    runs = [ServedRun(folder) for folder in folders]
    listening = _listen(port)
    show(f"reading the rollouts of {', '.join(str(folder) for folder in folders)}")
    for run in runs:
        run.refresh()
    token = secrets.token_urlsafe(16)
    port = listening.getsockname()[1]
    for line in (
        f"page: http://127.0.0.1:{port}/{token}/",
        f"from another machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}, then the same address there",
        "It is read only, for this machine alone. Ctrl-C ends it.",
    ):
        show(line)
    _serve(make_app(runs, token), listening)


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()  # before the address is printed: who opens it at once waits, and is not refused
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--port: cannot listen on {port} ({reason}); give another, or 0 for a free one") from None
    return listening


def _serve(app: object, listening: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)  # pyright: ignore[reportArgumentType]
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        return
