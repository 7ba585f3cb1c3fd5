"""How accurate and how fast are graders of mathematical answers?

    ours         `priml.graders.math.verifier`, strict rules
    math_verify  math-verify alone, as its documentation uses it: the whole response, the gold in dollar signs
    authors      the rules of the program published with the paper (`rules: authors`)

There are three sets of labelled pairs: `dev` (`--dev`, left out if the file is absent), and from
`tests/graders/math/fixtures` our own `pairs` and the `hostile` answers (bombs, hedges, megabytes of text, code). The
graders take turns on a fifth of the pairs. CPU time is that of all processes. For ours it includes the start of
workers, for the others it does not. math-verify keeps its own time limits. A pair that takes one of the other two
longer than `LIMIT_S` is killed and counts as refused.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import arguments, write_results
from priml.graders.math import prime_rules
from priml.graders.math.verifier import MathVerifier

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "graders" / "math" / "fixtures"
ROUNDS = 5
LIMIT_S = {"dev": 15.0, "pairs": 15.0, "hostile": 2.0}
"""Wall time per pair for the graders that are not ours, by set."""


@dataclass(frozen=True)
class Pair:
    """One response, its gold answer, and whether the two are equal."""

    response: str
    gold: str
    is_correct: bool


@dataclass(frozen=True)
class Graded:
    """What a grader made of one pair."""

    verdict: bool | None
    """None: undecided, or killed at the limit."""
    wall_s: float
    cpu_s: float
    """Without worker processes."""
    ran_code: bool


def main() -> None:
    """Grade all sets with all graders, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--dev", type=Path, default=ROOT.parent / "shared" / "data" / "math_grading_dev.jsonl")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe"
        sets = {"dev": _dev(args.dev), "pairs": _own_pairs(), "hostile": _hostile(probe)}
        rounds = 1 if args.quick else ROUNDS
        if args.quick:
            sets = {name: pairs[:: max(1, len(pairs) // 10)] for name, pairs in sets.items()}
        rows = [
            _row(name, grader, number, part, probe)
            for name, pairs in sets.items()
            if pairs
            for number, part in enumerate(_parts(pairs, rounds))
            for grader in GRADERS
        ]
    write_results(args.out, "math_grading", rows=rows, headline=_headline(rows))


# --- pairs -------------------------------------------------------------------------------------------------------


def _dev(path: Path) -> list[Pair]:
    return [Pair(row["prediction"], row["gold"], row["correct"]) for row in _lines(path)] if path.exists() else []


def _own_pairs() -> list[Pair]:
    rows = _lines(FIXTURES / "math_pairs.jsonl")
    return [Pair(rf"\boxed{{{row['answer']}}}", row["gold"], row["correct"]) for row in rows]


def _hostile(probe: Path) -> list[Pair]:
    pairs = []
    for row in _lines(FIXTURES / "math_hostile.jsonl"):
        response = row["response"].replace("@", str(probe))
        if "repeat" in row:
            response = response.replace("§", row["repeat"][0] * row["repeat"][1])
        pairs.append(Pair(response, row["gold"], row["correct"]))
    return pairs


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _parts(pairs: Sequence[Pair], rounds: int) -> list[Sequence[Pair]]:
    """Each a cross-section of the whole."""
    return [pairs[start::rounds] for start in range(rounds)]


# --- graders -----------------------------------------------------------------------------------------------------


def _ours(pairs: Sequence[Pair], probe: Path, limit: float) -> tuple[list[Graded], float]:
    """What came of the pairs, and the CPU seconds of this process and the workers."""
    del limit  # it has its own
    verifier = MathVerifier(workers=1)
    before = _cpu_s()
    graded = []
    for pair in pairs:
        start, started = time.perf_counter(), time.process_time()
        verdict = verifier.compare(pair.response, pair.gold)
        seconds = time.perf_counter() - start
        graded.append(Graded(verdict.correct, seconds, time.process_time() - started, _was_written(probe)))
    verifier.close()  # the workers' time is counted when they have ended
    return graded, _cpu_s() - before


def _math_verify(response: str, gold: str) -> bool:
    import math_verify

    return math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(response))


def _authors(response: str, gold: str) -> bool:
    return prime_rules.are_equal(prime_rules.extract(response), gold)


def _in_child(grade: Callable[[str, str], bool]) -> Callable[..., tuple[list[Graded], float]]:
    def run(pairs: Sequence[Pair], probe: Path, limit: float) -> tuple[list[Graded], float]:
        child = _Child(grade)
        graded, cpu_s = [], 0.0
        for pair in pairs:
            start = time.perf_counter()
            verdict, seconds = child.ask(pair, limit)
            graded.append(Graded(verdict, time.perf_counter() - start, seconds, _was_written(probe)))
            cpu_s += seconds
        child.end()
        return graded, cpu_s

    return run


class _Child:
    """A process that grades, and is killed when it takes too long."""

    def __init__(self, grade: Callable[[str, str], bool]) -> None:
        self._grade = grade
        self._start()

    def ask(self, pair: Pair, limit: float) -> tuple[bool | None, float]:
        """The verdict, None if the process had to be killed, and its CPU seconds."""
        before = self._cpu_s()
        self._connection.send((pair.response, pair.gold))
        try:
            if self._connection.poll(limit):
                return self._connection.recv(), self._cpu_s() - before
        except EOFError:
            pass
        spent = self._cpu_s() - before
        self.end()
        self._start()
        return None, spent

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._grade, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.send(("1+x", "x+1"))  # the engine's first answer takes longer
        self._connection.recv()


def _serve(grade: Callable[[str, str], bool], connection: Any) -> None:
    import logging

    logging.disable()
    while True:
        response, gold = connection.recv()
        try:
            verdict = bool(grade(response, gold))
        except Exception:  # a grader that breaks has not said yes
            verdict = False
        connection.send(verdict)


GRADERS: dict[str, Callable[[Sequence[Pair], Path, float], tuple[list[Graded], float]]] = {
    "ours": _ours,
    "math_verify": _in_child(_math_verify),
    "authors": _in_child(_authors),
}


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _was_written(probe: Path) -> bool:
    if probe.exists():
        os.remove(probe)
        return True
    return False


# --- numbers -----------------------------------------------------------------------------------------------------


def _row(name: str, grader: str, number: int, pairs: Sequence[Pair], probe: Path) -> dict[str, Any]:
    graded, cpu_s = GRADERS[grader](pairs, probe, LIMIT_S[name])
    outcomes = list(zip(pairs, graded, strict=True))
    return {
        "set": name,
        "grader": grader,
        "round": number,
        "pairs": len(pairs),
        "wrong_pairs": sum(not pair.is_correct for pair in pairs),
        "wrong_accepted": sum(one.verdict is True and not pair.is_correct for pair, one in outcomes),
        "right_rejected": sum(one.verdict is not True and pair.is_correct for pair, one in outcomes),
        "over_1_s": sum(one.wall_s > 1 for one in graded),
        "ran_code": sum(one.ran_code for one in graded),
        "cpu_s": round(cpu_s, 4),
        "wall_ms": [round(1000 * one.wall_s, 3) for one in graded],
        "cpu_ms": [round(1000 * one.cpu_s, 3) for one in graded],
    }


def _headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sets = dict.fromkeys(row["set"] for row in rows)
    table = {name: {grader: _summary(rows, name, grader) for grader in GRADERS} for name in sets}
    speed = {
        name: statistics.median(
            ours["pairs"] / ours["cpu_s"] / (other["pairs"] / other["cpu_s"])
            for ours, other in zip(_of(rows, name, "ours"), _of(rows, name, "math_verify"), strict=True)
        )
        for name in sets
    }
    return {"speed_against_math_verify": {name: round(ratio, 1) for name, ratio in speed.items()}, **table}


def _summary(rows: Sequence[dict[str, Any]], name: str, grader: str) -> dict[str, Any]:
    mine = _of(rows, name, grader)
    total = {key: sum(row[key] for row in mine) for key in mine[0] if isinstance(mine[0][key], int) and key != "round"}
    times = {clock: sorted(ms for row in mine for ms in row[clock]) for clock in ("wall_ms", "cpu_ms")}
    return {
        "accuracy": round(1 - (total["wrong_accepted"] + total["right_rejected"]) / total["pairs"], 4),
        **total,
        "pairs_per_cpu_s": round(statistics.median(row["pairs"] / row["cpu_s"] for row in mine), 1),
        **{
            clock: {"p50": ms[len(ms) // 2], "p99": ms[int(len(ms) * 0.99)], "max": ms[-1]}
            for clock, ms in times.items()
        },
    }


def _of(rows: Sequence[dict[str, Any]], name: str, grader: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["set"], row["grader"]) == (name, grader)]


if __name__ == "__main__":
    main()
