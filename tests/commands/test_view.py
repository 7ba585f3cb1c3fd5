import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from priml.commands import view
from priml.commands.view import run_view
from priml.errors import UsageError


def test_it_prints_where_the_page_is_serves_it_and_ends_in_peace(tmp_path: Path):
    pytest.importorskip("uvicorn")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "outcome/mean": 0.5}\n')
    command = [sys.executable, "-m", "priml.cli.main", "view", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(4)]
            found = re.search(r"http://127\.0\.0\.1:(\d+)/[\w-]{20,}/", lines[1])
            assert found, lines
            assert f"ssh -L {found[1]}:127.0.0.1:{found[1]} " in lines[2]
            with urllib.request.urlopen(found[0], timeout=60) as answer:
                assert tmp_path.name in answer.read().decode()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")


def test_a_port_that_is_taken_is_named(tmp_path: Path):
    pytest.importorskip("uvicorn")
    (tmp_path / "metrics.jsonl").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port: cannot listen on {port} \(.*give another"):
            run_view([tmp_path], port, print)
    with pytest.raises(UsageError, match="--port: cannot listen on 99999"):
        run_view([tmp_path], 99999, print)


def test_without_the_extra_it_says_what_to_install_and_what_works_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(view, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(UsageError, match=r"found no uvicorn.*pip install 'priml\[view\]'.*priml report RUN_DIR"):
        run_view([tmp_path], 0, print)


def test_a_folder_that_is_no_run_is_refused_before_a_port_is_taken(tmp_path: Path):
    pytest.importorskip("starlette")
    with pytest.raises(UsageError, match="not a run folder"):
        run_view([tmp_path], 0, print)
