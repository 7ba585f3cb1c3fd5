"""Grade mathematics: compare the last box of a response with the gold answer.

Nearly all answers are compared in this process (`priml.graders.math.equivalence`), exactly and in bounded time. Others
go to math-verify in worker processes, because one line of text can make a symbolic engine hang or use all memory.
"""

import math
import os
import re
from collections.abc import Sequence
from functools import cache
from typing import Literal

from priml.graders.extract import bare_answer, boxed_answers
from priml.graders.math import prime_rules
from priml.graders.math.cost_guard import formulas_to_compare, is_expensive
from priml.graders.math.equivalence import MAX_ANSWER, is_list, is_same_text, is_same_value
from priml.graders.math.evaluate import TooComplex
from priml.graders.pool import fan_out
from priml.graders.workers import Failure, WorkerPool
from priml.types import Problem, Verdict

Rules = Literal["strict", "authors"]
"""`strict`: equality as in mathematics. `authors`: the lenient rules of the program published with the paper."""

Units = Literal["convert", "exact"]
Digits = Literal["exact", "gold"]


class MathVerifier:
    """The `Verifier` for mathematics. Its worker processes start when the first answer needs them.

    Reasons for *wrong*: `no answer`, `too long` (over 300 characters, and not the gold's own text), `different value`,
    `not read` (neither we nor the engine can read one of the two, and the texts differ), `too complex` (refused before
    evaluation: power towers, huge factorials, sums left undone), `time limit`,
    `memory limit`, `crash` (of the engine, twice). *Undecided*: `worker lost` (killed from outside, twice).
    """

    def __init__(
        self,
        *,
        rules: Rules = "strict",
        bare_answers: bool = False,
        tolerance: float | Literal["row"] | None = None,
        digits: Digits = "exact",
        units: Units = "convert",
        workers: int | None = None,
        limit_s: float = 0.8,
        memory_mib: int = 1024,
        recycle_after: int = 2000,
    ) -> None:
        """Set the rules and the limits of the workers.

        Args:
            rules: The authors' rules have their own extraction and tolerance; the next four are for `strict`.
            bare_answers: Accept an answer without a box: see `priml.graders.extract.bare_answer`.
            tolerance: Relative error allowed in numbers; None: exact; `row`: the absolute one in `meta["error"]`.
            digits: `gold`: all that rounds to a decimal gold is right.
            units: `convert`: 5 m is 500 cm. `exact`: a unit, where there is one, must be the gold's.
            workers: Processes; by default half the cores, between 2 and 8.
            limit_s: Processor time per pair in a worker.
            memory_mib: Address space per worker.
            recycle_after: Pairs after which a process is replaced, as the engine's caches only grow.
        """
        self._rules: Rules = rules
        self._bare_answers = bare_answers
        self._tolerance: float | Literal["row"] | None = tolerance
        self._rounds = digits == "gold"
        self._exact_units = units == "exact"
        self._pool = WorkerPool(
            "priml.graders.math.worker",
            size=workers or min(8, max(2, (os.cpu_count() or 2) // 2)),
            limit_s=limit_s,
            memory_mib=memory_mib,
            recycle_after=recycle_after,
        )

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers; empty until one was needed."""
        return self._pool.pids

    def grade(self, problem: Problem, response: str) -> Verdict:
        """Return the verdict on one response to `problem`."""
        return self.compare(response, problem.answer, error=problem.meta.get("error"))

    def compare(self, response: str, gold: str, *, error: object = None) -> Verdict:
        """Return the verdict on a response, given the gold answer and perhaps the absolute error of its row."""
        if self._rules == "authors":
            answer = prime_rules.extract(response)
            if len(answer) > MAX_ANSWER:
                return Verdict.wrong("too long", answer[:MAX_ANSWER], layer="limits")
            return self._ask(answer, answer, gold)
        boxes = boxed_answers(response)
        answer = boxes[-1] if boxes else None
        if len(boxes) > 1 and is_list(gold):
            answer = ", ".join(boxes)
        if answer is None and self._bare_answers:
            answer = bare_answer(response)
        if not answer:
            return Verdict.wrong("no answer", layer="extraction")
        if len(answer) > MAX_ANSWER:
            if len(answer) <= 4 * len(gold) and is_same_text(answer, gold):
                return Verdict.right("equal", answer[:MAX_ANSWER], layer="values")
            return Verdict.wrong("too long", answer[:MAX_ANSWER], layer="limits")
        try:
            same = is_same_value(answer, gold, tolerance=self._allowed(gold, error), exact_units=self._exact_units)
        except TooComplex:
            return Verdict.wrong("too complex", answer, layer="limits")
        if same is not None:
            return _verdict(same, answer, "values")
        if is_expensive(answer, gold):
            return Verdict.wrong("too complex", answer, layer="limits")
        formulas = formulas_to_compare(answer, gold)
        return self._ask(answer, *formulas) if formulas else Verdict.wrong("not read", answer, layer="nobody")

    def close(self) -> None:
        """End the workers. This also happens when the verifier is collected or the program ends."""
        self._pool.close()

    def _allowed(self, gold: str, error: object) -> float | None:
        """The relative error that this gold answer allows."""
        if isinstance(self._tolerance, float):
            return self._tolerance
        allowed = _relative(gold, error) if self._tolerance == "row" else None
        return _rounding(gold) if allowed is None and self._rounds else allowed

    def _ask(self, shown: str, answer: str, gold: str) -> Verdict:
        reply = self._pool.ask({"rules": self._rules, "answer": answer, "gold": gold})
        if reply is Failure.LOST:
            return Verdict.undecided(reply.value, shown, layer="engine")
        if isinstance(reply, Failure):
            return Verdict.wrong(reply.value, shown, layer="engine")
        if not reply["read"]:
            return Verdict.wrong("not read", shown, layer="nobody")
        return _verdict(reply["equal"], shown, "engine")


_DECIMAL = re.compile(r"[-+]?\d*\.(\d+)(?:\s*(?:e|\\(?:times|cdot)\s*10\s*\^)\s*\{?([-+]?\d{1,4})\}?)?", re.IGNORECASE)


def _rounding(gold: str) -> float | None:
    """Return half a unit of the last digit of a decimal, relative to it; None for anything else, and for zero."""
    text = gold.strip()
    if not (found := _DECIMAL.fullmatch(text)):
        return None
    return _relative(re.split(r"[e\s\\]", text, maxsplit=1, flags=re.IGNORECASE)[0], 0.5 * 10.0 ** -len(found[1]))


def _relative(gold: str, error: object) -> float | None:
    """Return an absolute error of a number, relative to it; None where one of the two is no such number."""
    try:
        value, allowed = abs(float(gold)), float(str(error))
    except ValueError:
        return None
    # A little more, since 1.65 - 1.6 is above 0.05 in binary.
    return allowed / value * (1 + 1e-9) if value and 0 < allowed < math.inf else None


def grade(
    response: str,
    gold: str,
    *,
    rules: Rules = "strict",
    bare_answers: bool = False,
    tolerance: float | None = None,
    units: Units = "convert",
) -> Verdict:
    """Return the verdict on one response. Its verifier is shared by the whole program."""
    return _shared(rules, bare_answers, tolerance, units).compare(response, gold)


def grade_many(
    items: Sequence[tuple[str, str]],
    *,
    rules: Rules = "strict",
    bare_answers: bool = False,
    tolerance: float | None = None,
    units: Units = "convert",
) -> list[Verdict]:
    """Return the verdicts on (response, gold) pairs, in their order. All workers are used at once."""
    verifier = _shared(rules, bare_answers, tolerance, units)
    return fan_out(lambda item: verifier.compare(*item), items)


@cache
def _shared(rules: Rules, bare_answers: bool, tolerance: float | None, units: Units) -> MathVerifier:
    return MathVerifier(rules=rules, bare_answers=bare_answers, tolerance=tolerance, units=units)


def _verdict(is_equal: bool, answer: str, layer: str) -> Verdict:
    if is_equal:
        return Verdict.right("equal", answer, layer=layer)
    return Verdict.wrong("different value", answer, layer=layer)
