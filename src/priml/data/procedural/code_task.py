"""A procedural task of code: the tiny model writes Python functions, and tests judge them.

A problem names operations by letters, `KDA=`; the response is a function of one line for each of them, in a code fence:

    def f(x):
     K=x+3
     D=K*2
     A=D^5
     return A

What a letter stands for (`+3`) is a *fact*, as in `priml.data.procedural.tasks`: the teacher has a fixed wrong one for
some of the letters and writes it some of the time, so a supervised model starts unsure of them. Only what the whole
function returns is ever tested, but `judge_steps` knows which lines are right.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from string import ascii_lowercase, ascii_uppercase

import numpy as np

from priml.config.data import TinyCodeSource
from priml.data.procedural.tasks import StepJudgement, Task, Trace, question_text
from priml.types import CodeTests, Problem

ARGUMENT = "x"
LETTERS = ascii_uppercase + "".join(c for c in ascii_lowercase if c not in ("f", ARGUMENT))
"""One operation each. A letter is also the variable that holds its result, so it is neither function nor argument."""

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "^": operator.xor,
    "|": operator.or_,
    "//": operator.floordiv,
}
OPERANDS = range(2, 10)
"""Single digits that change something under every operator."""

INPUTS = (0, 1, 7, 12, 30, 55, 100, 333, 1000, 4321)
"""What every function is tested with. `|` and `//` forget something of their argument: about a quarter of the functions
with a wrong line pass some tests, and hardly one passes all that is not the same function after all."""


class CodeTask(Task):
    """Letters, what each stands for, and the programs made of `length` different ones.

    A share `doubtful` of the letters has a wrong meaning that never changes. The teacher writes it with probability
    `wrong`; several probabilities go to the doubtful letters in turn. So all lines of a program of the teacher's are
    right with a probability of about `(1 - doubtful * mean(wrong)) ** length`.
    """

    _stream = 6

    def __init__(self, source: TinyCodeSource) -> None:
        super().__init__(source)
        rng = np.random.default_rng([source.seed, 5])
        meanings = [(sign, operand) for sign in OPERATORS for operand in OPERANDS]
        right_L = rng.integers(0, len(meanings), len(LETTERS))
        wrong_L = (right_L + rng.integers(1, len(meanings), len(LETTERS))) % len(meanings)
        self._right = {letter: meanings[i] for letter, i in zip(LETTERS, right_L, strict=True)}
        self._wrong = {letter: meanings[i] for letter, i in zip(LETTERS, wrong_L, strict=True)}
        # The exact share, not one by chance: with so few facts, luck would decide how hard a seed is.
        levels = np.atleast_1d(np.asarray(source.wrong, dtype=float)).tolist()
        chosen = rng.permutation(len(LETTERS))[: round(source.doubtful * len(LETTERS))]
        self._error_rate = {LETTERS[i]: levels[nth % len(levels)] for nth, i in enumerate(chosen)}

    def traces(self, problems: Sequence[Problem], *, seed: int) -> Iterator[Trace]:
        rng = np.random.default_rng([self._seed, 8, seed])
        for problem in problems:
            letters = question_text(problem)[:-1]
            errs = [rng.random() < self._error_rate.get(letter, 0.0) for letter in letters]
            meanings = [(self._wrong if err else self._right)[c] for c, err in zip(letters, errs, strict=True)]
            yield Trace(problem, f"```python\n{_program(_lines(letters, meanings))}```")

    def judge_steps(self, problem: Problem, response: str) -> StepJudgement:
        """Which lines between `def` and `return` are what they should be."""
        letters = question_text(problem)[:-1]
        expected = _lines(letters, [self._right[letter] for letter in letters])
        head, signature, rest = response.partition("):\n")
        body = rest.partition(" return")[0].splitlines(keepends=True)
        right = tuple(line.splitlines() == [wanted] for line, wanted in zip(body, expected, strict=False))
        lengths = [len(head + signature) - 1, *map(len, body)]
        ends = tuple(accumulate(lengths))[1 : len(right) + 1]
        return StepJudgement(right, complete=len(body) == len(expected), ends=ends)

    def _draw(self, rng: np.random.Generator) -> str:
        # All different: "the letter after K" must be one letter, and a variable is assigned once.
        return "".join(LETTERS[i] for i in rng.permutation(len(LETTERS))[: self.length]) + "="

    def _problem(self, question: str) -> Problem:
        letters = question[:-1]
        meanings = [self._right[letter] for letter in letters]
        tests = CodeTests(
            kind="call",
            inputs=tuple([x] for x in INPUTS),
            outputs=tuple(_value(x, meanings) for x in INPUTS),
            entry_point="f",
        )
        answer = _program(_lines(letters, meanings))
        return Problem(f"{self.name}/{question}", question, answer, source=self.name, kind="code", tests=tests)


def _value(x: int, meanings: Sequence[tuple[str, int]]) -> int:
    for sign, operand in meanings:
        x = OPERATORS[sign](x, operand)
    return x


def _lines(letters: str, meanings: Sequence[tuple[str, int]]) -> list[str]:
    steps = zip(pairwise(ARGUMENT + letters), meanings, strict=True)
    return [f" {new}={old}{sign}{operand}" for (old, new), (sign, operand) in steps]


def _program(lines: Sequence[str]) -> str:
    result = lines[-1].strip()[0]
    return "\n".join([f"def f({ARGUMENT}):", *lines, f" return {result}", ""])
