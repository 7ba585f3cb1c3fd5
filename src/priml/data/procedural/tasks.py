"""Procedural tasks: nothing is downloaded, and every step of any response can be checked.

`Task` is what they share; `ChainTask` is mathematics, `code_task.CodeTask` is code. A problem of mathematics starts in
a state and applies operations one after another, `4KDA=`. The response writes the state after each operation and boxes
the last one, `f01\\boxed{1}`, or several. Each state is one character and one token; signs without a meaning may stand
before the box, `f01.,;\\boxed{1}`. What an operation does to a state is a *fact* (a table entry). A model learns the
facts from a teacher that writes a fixed wrong value for some of them, some of the time. So a supervised model starts
with errors it is unsure of. Only what is in the box is ever verified, but `judge_steps` knows the truth.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from priml.config.data import ChainSource, TinyCodeSource, WalkSource
from priml.errors import DataError
from priml.types import Problem

STATES = "0123456789abcdefghijklmnopqrstuvwxyz"
OPERATIONS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FILLERS = ".,;:!?+-/"
"""Signs without a meaning. None is a state, an operation, or a part of LaTeX."""

Split = Literal["train", "held_out"]
_HELD_OUT_SHARE = 10  # one problem in ten
_PATIENCE = 100  # draws per problem asked for: ten times what held-out problems need while there are enough of them


@dataclass(frozen=True, slots=True)
class Trace:
    """A teacher's worked answer to one problem."""

    problem: Problem
    response: str


@dataclass(frozen=True, slots=True)
class StepJudgement:
    """The truth about a response's steps. Each is judged alone: one wrong step does not make the later ones wrong."""

    right: tuple[bool, ...]
    """One per written step."""
    complete: bool
    """As many steps as operations were written."""
    ends: tuple[int, ...]
    """Where each written step ends: the place of its last character in the response."""

    @property
    def first_wrong(self) -> int | None:
        """Index of the first wrong step; None when every written step is right."""
        return next((i for i, ok in enumerate(self.right) if not ok), None)


class Task(ABC):
    """Problems, a teacher that makes mistakes, and the truth about every step."""

    _stream: ClassVar[int]
    """Random stream of the training problems; held-out ones have the next."""

    def __init__(self, source: ChainSource | WalkSource | TinyCodeSource) -> None:
        self.name, self.length, self._seed = source.kind, source.length, source.seed

    def problems(self, *, split: Split, count: int, seed: int) -> list[Problem]:
        """Distinct problems of one split; a hash of the question decides the split, so splits cannot overlap.

        Raises:
            DataError: there are not that many.
        """
        rng = np.random.default_rng([self._seed, self._stream + (split == "held_out"), seed])
        found: dict[str, None] = {}  # a set that keeps its order
        for _ in range(_PATIENCE * (count + 100)):
            question = self._draw(rng)
            if _find_split(question) == split and question not in found:
                found[question] = None
                if len(found) == count:
                    return [self._problem(question) for question in found]
        raise DataError(
            f"the {self.name} task with length={self.length} has hardly more than {len(found)} {split} problems, and "
            f"count={count} were asked for; raise length or lower count"
        )

    @abstractmethod
    def traces(self, problems: Sequence[Problem], *, seed: int) -> Iterator[Trace]:
        """The teacher's answers, with its errors in doubtful facts."""

    @abstractmethod
    def judge_steps(self, problem: Problem, response: str) -> StepJudgement:
        """Which steps of a response are right."""

    @abstractmethod
    def _draw(self, rng: np.random.Generator) -> str: ...

    @abstractmethod
    def _problem(self, question: str) -> Problem: ...


class ChainTask(Task):
    """States, operations and the table of what each operation does to each state; `chain` and `walk` make two kinds.

    A share `doubtful` of the facts has a wrong value that never changes. The teacher writes it with probability `wrong`
    (of several probabilities, each fact draws one). All steps of its answers are right with a probability of about
    `p = (1 - doubtful * mean(wrong)) ** length`. Where operations are permutations, an answer with a wrong step arrives
    at the right state by luck once in `states`, so accuracy is about `p + (1 - p) / states`. With several states in the
    box, every wrong step must be mended by another one before the next boxed state. With all of them, luck is 0.
    """

    _stream = 2

    def __init__(self, source: ChainSource | WalkSource, table_OS: np.ndarray) -> None:
        super().__init__(source)
        self._table_OS = table_OS
        self._num_ops, self._num_states = table_OS.shape
        self._boxed_steps = [(i + 1) * self.length // source.boxed - 1 for i in range(source.boxed)]
        self._num_fillers = source.fillers
        rng = np.random.default_rng([source.seed, 1])
        levels = np.atleast_1d(np.asarray(source.wrong, dtype=float))
        is_doubtful_OS = rng.random(table_OS.shape) < source.doubtful
        shift_OS = rng.integers(1, self._num_states, table_OS.shape)  # never zero
        self._wrong_OS = (table_OS + shift_OS) % self._num_states
        self._error_rate_OS = np.where(is_doubtful_OS, levels[rng.integers(0, len(levels), table_OS.shape)], 0.0)

    def traces(self, problems: Sequence[Problem], *, seed: int) -> Iterator[Trace]:
        rng = np.random.default_rng([self._seed, 4, seed])
        wording = np.random.default_rng([self._seed, 9, seed])  # its own, so that the errors are those without fillers
        for problem in problems:
            state, ops = _parse(question_text(problem))
            errors = rng.random(self.length)
            states = ""
            for op, draw in zip(ops, errors, strict=True):
                table_OS = self._wrong_OS if draw < self._error_rate_OS[op, state] else self._table_OS
                state = int(table_OS[op, state])
                states += STATES[state]
            # Behind the states: a model of two layers learns that a state follows from the token before it and from the
            # operation at a fixed distance, but hardly that it follows from a state further back.
            signs = "".join(FILLERS[i] for i in wording.integers(len(FILLERS), size=self._num_fillers))
            yield Trace(problem, f"{states}{signs}\\boxed{{{self.answer(states)}}}")

    def judge_steps(self, problem: Problem, response: str) -> StepJudgement:
        """Which written states follow from their predecessors.

        A state is one token, so the steps are the response's first tokens; anything that is no state ends them. In a
        task with fillers, these are passed over wherever they stand.
        """
        state, ops = _parse(question_text(problem))
        signs = FILLERS if self._num_fillers else ""
        places = [i for i, symbol in enumerate(response) if symbol not in signs]
        right: list[bool] = []
        for op, place in zip(ops, places, strict=False):
            written = STATES.find(response[place])
            if not 0 <= written < self._num_states:
                break
            right.append(written == int(self._table_OS[op, state]))
            state = written
        return StepJudgement(tuple(right), complete=len(right) == len(ops), ends=tuple(places[: len(right)]))

    def answer(self, states: str) -> str:
        """What belongs into the box after these states, one for each step."""
        return "".join(states[step] for step in self._boxed_steps)

    @property
    def num_facts(self) -> int:
        """Entries of the table."""
        return self._table_OS.size

    @property
    def num_doubtful(self) -> int:
        """Facts that the teacher sometimes gets wrong."""
        return int(np.count_nonzero(self._error_rate_OS))

    def _draw(self, rng: np.random.Generator) -> str:
        state, ops = rng.integers(self._num_states), rng.integers(0, self._num_ops, self.length)
        return STATES[state] + "".join(OPERATIONS[op] for op in ops) + "="

    def _problem(self, question: str) -> Problem:
        state, ops = _parse(question)
        states = ""
        for op in ops:
            state = int(self._table_OS[op, state])
            states += STATES[state]
        # A row of states is a name: to mathematics 1e3 is a number, and ab is ba.
        kind = "math" if len(self._boxed_steps) == 1 else "text"
        return Problem(f"{self.name}/{question}", question, self.answer(states), source=self.name, kind=kind)


def chain(source: ChainSource) -> ChainTask:
    """Chained arithmetic modulo a prime: the letters A to L add 1 to 12, M to X multiply by 2 to 13."""
    states = np.arange(source.modulus)
    rules = [states + n for n in range(1, 13)] + [states * n for n in range(2, 14)]
    return ChainTask(source, np.stack(rules) % source.modulus)


def walk(source: WalkSource) -> ChainTask:
    """A walk through random permutations, one letter each. The facts are unrelated, so none helps with another."""
    rng = np.random.default_rng([source.seed, 0])
    return ChainTask(source, np.stack([rng.permutation(source.states) for _ in range(source.operations)]))


def question_text(problem: Problem) -> str:
    """The prompt of a procedural problem, which is never a chat."""
    assert isinstance(problem.prompt, str)
    return problem.prompt


def _parse(question: str) -> tuple[int, list[int]]:
    return STATES.index(question[0]), [OPERATIONS.index(letter) for letter in question[1:-1]]


def _find_split(question: str) -> Split:
    digest = hashlib.blake2b(question.encode(), digest_size=4).digest()
    return "held_out" if int.from_bytes(digest, "big") % _HELD_OUT_SHARE == 0 else "train"
