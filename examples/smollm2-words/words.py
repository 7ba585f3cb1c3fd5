"""One-step arithmetic word problems from templates. The settings beside it name its three functions."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from itertools import islice

NAMES = (
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Kate",
    "Leo",
    "Maria",
    "Noah",
    "Paul",
    "Sam",
)
THINGS = ("apples", "books", "cards", "coins", "cookies", "eggs", "flowers", "oranges", "pencils", "stamps", "toys")
PLACES = ("bags", "boxes", "jars", "baskets", "drawers")

SUMS = (
    "{name} has {a} {things}. {other} gives {name} {b} more {things}. How many {things} does {name} have now?",
    "{name} has {a} {things} and {other} has {b} {things}. How many {things} do they have together?",
    "There are {a} {things} on a table. {name} puts {b} more {things} on it. How many {things} are on the table now?",
    "{name} found {a} {things} in the morning and {b} {things} in the afternoon. How many {things} did {name} find?",
)
DIFFERENCES = (
    "{name} has {a} {things}. {name} gives {b} of them to {other}. How many {things} does {name} have left?",
    "There were {a} {things} in a shop. The shop sold {b} of them. How many {things} are left in the shop?",
    "{name} has {a} {things} and {other} has {b} {things}. How many more {things} does {name} have than {other}?",
    "{name} needs {a} {things} and already has {b}. How many more {things} does {name} need?",
)
PRODUCTS = (
    "{name} has {a} {places}. There are {b} {things} in each of them. How many {things} does {name} have?",
    "{name} buys {b} {things} every day. How many {things} does {name} buy in {a} days?",
    "Each of {a} children has {b} {things}. How many {things} do the children have together?",
)
QUOTIENTS = (
    "{name} shares {a} {things} equally among {b} children. How many {things} does each child get?",
    "{name} puts {a} {things} into {places}, {b} in each. How many {places} does {name} need?",
    "{b} friends found {a} {things} together and share them equally. How many {things} does each of them get?",
)


def problem(number: int) -> dict[str, str]:
    """A question, its answer, and a response that shows the form; the number says which."""
    draw = random.Random(number)
    name, other = draw.sample(NAMES, 2)
    texts = draw.choice((SUMS, DIFFERENCES, PRODUCTS, QUOTIENTS))
    a, b, sign, answer = _numbers(texts, draw)
    question = draw.choice(texts).format(
        name=name, other=other, a=a, b=b, things=draw.choice(THINGS), places=draw.choice(PLACES)
    )
    response = f"{a} {sign} {b} = {answer}, so the answer is \\boxed{{{answer}}}."
    return {"problem": question, "answer": str(answer), "response": response}


def demonstrations() -> Iterator[dict[str, str]]:
    return islice((row for row in map(problem, range(5_000, 10_000)) if not is_held_out(row["problem"])), 192)


def train() -> Iterator[dict[str, str]]:
    return (row for row in map(problem, range(5_000)) if not is_held_out(row["problem"]))


def held_out() -> Iterator[dict[str, str]]:
    return islice((row for row in map(problem, range(10_000, 15_000)) if is_held_out(row["problem"])), 128)


def is_held_out(question: str) -> bool:
    return zlib.crc32(question.encode()) % 10 == 0  # so no problem is in both


def _numbers(texts: tuple[str, ...], draw: random.Random) -> tuple[int, int, str, int]:
    """Two numbers of a question, the sign between them, and the result."""
    if texts is SUMS:
        a, b = draw.randint(2, 20), draw.randint(2, 20)
        return a, b, "+", a + b
    if texts is DIFFERENCES:
        a, b = draw.randint(2, 20), draw.randint(2, 20)
        return a + b, b, "-", a
    a, b = draw.randint(2, 9), draw.randint(2, 9)
    return (a, b, "*", a * b) if texts is PRODUCTS else (a * b, b, "/", a)
