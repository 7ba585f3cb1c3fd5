"""How many programs per second does the sandbox run, compared with a child process without isolation?

    bare          `python -I -S -c PROGRAM` by `subprocess.run`, the interpreter's real executable: nothing is isolated
    bubblewrap    one variant for each level of isolation that works on this machine; the others are listed with the
    gvisor        reason
    landlock

    program       prints a number
    numbers       imports numpy and sympy and prints a number
    session       starts, answers one message, is closed (not for `bare`)

Variants take turns. Each turn runs the same number of programs (of gVisor a tenth) from as many threads as there are
cores. Numbers are medians over the turns, ratios those of the same turn. Cold starts are measured three times: until a
sandbox is open, until the result of the first program, and until `auto` has attacked and chosen a sandbox.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common import arguments, write_results
from priml.sandbox import Limits, Sandbox, SandboxUnavailable, interpreter, open_sandbox
from priml.sandbox.choose import LEVELS

PROGRAM = "print(6 * 7)"
NUMBERS = "import numpy, sympy\nprint(6 * 7)"
SESSION = "reply(receive())"
WHATS = ("program", "numbers", "session")
PATIENT = Limits(wall_s=60.0, cpu_s=60)
THREADS = len(os.sched_getaffinity(0))

Run = Callable[[], None]


def main() -> None:
    """Measure, and write the JSON."""
    options = arguments(__doc__).parse_args()
    turns, programs, colds = (2, 20, 1) if options.quick else (7, 200, 5)
    sandboxes, refused = open_levels()
    rows: list[dict[str, Any]] = [{"level": name, "refused": reason} for name, reason in refused.items()]
    for name in sandboxes:
        rows += [{"level": name, "cold": True, **cold(name)} for _ in range(colds)]
    rows += list(warm(sandboxes, turns, programs))
    for sandbox in sandboxes.values():
        sandbox.close()
    rows += [{"level": "auto", "cold": True, "proven_s": proven_s()} for _ in range(colds if sandboxes else 0)]
    write_results(options.out, "sandbox", rows=rows, headline=headline(rows))


def open_levels() -> tuple[dict[str, Sandbox], dict[str, str]]:
    """The levels of this machine, and why the others are none."""
    sandboxes: dict[str, Sandbox] = {}
    refused: dict[str, str] = {}
    for name in LEVELS:
        try:
            sandboxes[name] = open_sandbox(name)  # type: ignore[arg-type]
        except SandboxUnavailable as error:
            refused[name] = str(error).replace(sys.base_prefix, "the interpreter's folder")
    return sandboxes, refused


def cold(name: str) -> dict[str, float]:
    """Seconds from nothing to an open sandbox, to the first result, and to the first result with numpy and sympy."""
    started = time.perf_counter()
    sandbox = LEVELS[name](1)
    opened = time.perf_counter() - started
    check(sandbox, PROGRAM)
    first = time.perf_counter() - started
    check(sandbox, NUMBERS)
    numbers = time.perf_counter() - started
    sandbox.close()
    return {"open_s": opened, "first_s": first, "first_numbers_s": numbers}


def proven_s() -> float:
    """Seconds to a sandbox that `auto` has chosen and attacked."""
    started = time.perf_counter()
    open_sandbox("auto").close()
    return time.perf_counter() - started


def warm(sandboxes: dict[str, Sandbox], turns: int, programs: int) -> Iterator[dict[str, Any]]:
    """A row per turn and arm."""
    arms: dict[tuple[str, str], Run] = {("bare", "program"): lambda: bare(PROGRAM)}
    for name, sandbox in sandboxes.items():
        arms[name, "program"] = lambda sandbox=sandbox: check(sandbox, PROGRAM)
        arms[name, "numbers"] = lambda sandbox=sandbox: check(sandbox, NUMBERS)
        arms[name, "session"] = lambda sandbox=sandbox: converse(sandbox)
    for (level, _), run in arms.items():
        if level != "gvisor":  # every zygote of every arm has served once
            rate(run, 4 * THREADS)
    for turn in range(turns):
        for (level, what), run in arms.items():
            count = programs // 10 if level == "gvisor" else programs  # each starts a container
            yield {"turn": turn, "level": level, "what": what, "per_s": rate(run, count)}


def rate(run: Run, programs: int) -> float:
    """Programs per second."""
    with ThreadPoolExecutor(THREADS) as threads:
        started = time.perf_counter()
        for done in [threads.submit(run) for _ in range(programs)]:
            done.result()
        return programs / (time.perf_counter() - started)


def bare(code: str) -> None:
    """What anybody would write who does not care what the program does."""
    command = [interpreter.executable(), "-I", "-S", "-c", code]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.stdout == "42\n", done


def check(sandbox: Sandbox, code: str) -> None:
    """One program, start to end."""
    result = sandbox.run(code, limits=PATIENT)
    assert result.stdout == "42\n", result


def converse(sandbox: Sandbox) -> None:
    """One session, one message."""
    with sandbox.open(SESSION, upcoming="") as session:
        assert session.ask(b"42") == b"42"


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, per level."""

    def per_s(level: str, what: str) -> list[float]:
        return [row["per_s"] for row in rows if (row["level"], row.get("what")) == (level, what)]

    def median(level: str, key: str) -> float:
        return round(statistics.median(row[key] for row in rows if row["level"] == level and key in row), 3)

    plain = per_s("bare", "program")
    found: dict[str, Any] = {"threads": THREADS, "bare_per_s": round(statistics.median(plain), 1)}
    for level in LEVELS:
        if not per_s(level, "program"):
            continue
        ratios = [ours / theirs for ours, theirs in zip(per_s(level, "program"), plain, strict=True)]
        found[level] = {f"{what}_per_s": round(statistics.median(per_s(level, what)), 1) for what in WHATS}
        found[level]["program_over_bare"] = round(statistics.median(ratios), 2)
        found[level] |= {key: median(level, key) for key in ("open_s", "first_s", "first_numbers_s")}
    if any("proven_s" in row for row in rows):
        found["auto_proven_s"] = median("auto", "proven_s")
    return found


if __name__ == "__main__":
    main()
