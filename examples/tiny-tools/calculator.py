"""Problems that need a calculator, the calculator, and the truth about every turn. `train.yaml` names them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any

from priml import Problem

STATES, LETTERS = (digits + ascii_lowercase)[:31], ascii_uppercase[:16]
RANDOM = random.Random(0)
RIGHT, OTHER = ({letter: RANDOM.choice("+-*") + RANDOM.choice("23456789") for letter in LETTERS} for _ in "ab")
ERROR_RATE = dict.fromkeys(LETTERS[::4], 0.3) | dict.fromkeys(LETTERS[2::4], 0.7)
"""How often the teacher gives a doubtful letter its other meaning."""


def calculate(call: str) -> str:
    """`K4+b`: the letter says what for, the rest is calculated modulo 31. `?` to anything else."""
    if not re.fullmatch("[A-P][0-9a-u][-+*][2-9]", call):
        return "?"
    a, b = STATES.index(call[1]), int(call[3])
    return STATES[{"+": a + b, "-": a - b, "*": a * b}[call[2]] % len(STATES)]


def problem(number: int) -> dict[str, Any]:
    """`4KDA=`, its answer, and a demonstration by a teacher that has some letters wrong, some of the time."""
    draw = random.Random(number)
    start, letters = draw.choice(STATES), draw.sample(LETTERS, 4)
    state, answer, response = start, start, []
    for letter in letters:
        answer = calculate(f"{letter}{answer}{RIGHT[letter]}")
        call = f"{letter}{state}{(OTHER if draw.random() < ERROR_RATE.get(letter, 0) else RIGHT)[letter]}"
        state = calculate(call)
        response += [{"role": "assistant", "content": call}, {"role": "tool", "content": state}]
    response.append({"role": "assistant", "content": f"\\boxed{{{state}}}"})
    return {"problem": f"{start}{''.join(letters)}=", "answer": answer, "response": response}


def train() -> Iterator[dict[str, Any]]:
    return (row for row in map(problem, range(12000)) if not is_held_out(row["problem"]))


def held_out() -> Iterator[dict[str, Any]]:
    return (row for row in map(problem, range(20000, 22560)) if is_held_out(row["problem"]))


def is_held_out(question: str) -> bool:
    return sum(map(ord, question)) % 10 == 0  # so no problem is in both


class Calculator:
    """Environment: answers calls until the policy boxes a result."""

    def reset(self, problem: Problem) -> None:
        """Every call says all that it needs."""

    def step(self, text: str) -> tuple[str, float | None, bool]:
        return calculate(text), None, "\\boxed" in text

    def close(self) -> None:
        """Nothing is held."""


def judge(prompt: str, turns: Sequence[str]) -> list[bool]:
    """Which turns are right, each judged alone: the right call for what the calculator last said, or its box."""
    state, right = prompt[0], []
    for turn, letter in zip(turns, prompt[1:], strict=False):
        right.append(turn == (f"\\boxed{{{state}}}" if letter == "=" else f"{letter}{state}{RIGHT[letter]}"))
        state = calculate(turn)
    return right
