"""From the row of a programming data set to the tests a program must pass.

Two shapes are read: an object of tests in column `tests` (or its JSON text), with a `kind` and what belongs to it, and
the text of `reward_model.ground_truth` in the schema of verl and Eurus. Nothing of a row is evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from priml.errors import DataError
from priml.types import CodeTests

USUAL_IMPORTS = """\
import collections, functools, heapq, itertools, math, re, string
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
"""
"""What LeetCode has imported before a solution begins; call-based data sets in its manner count on it."""

NODES = """\
class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next


class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val = val
        self.left = left
        self.right = right
"""
"""The two classes that LeetCode has defined."""

Row = Mapping[str, Any]


def code_tests(row: Row) -> CodeTests:
    """The tests in a row.

    Raises:
        DataError: the row has no tests, or they are incomplete; the message says what was found and what was needed,
            not in which row.
    """
    tests = row.get("tests")
    if isinstance(tests, str):
        tests = _parsed(tests, "tests")
    if isinstance(tests, Mapping):
        return _own(row, tests)
    match row.get("reward_model"):
        case {"ground_truth": str(text)}:
            return _eurus(row, _parsed(text, "reward_model.ground_truth"))
    raise DataError("no tests: needed an object in column `tests`, or JSON text in `reward_model.ground_truth`")


def _own(row: Row, tests: Row) -> CodeTests:
    entry = row.get("entry_point")
    if entry is not None and not isinstance(entry, str):
        raise DataError(f"entry_point is {_show(entry)}, needed the name of a function")
    match tests.get("kind"):
        case "stdin":
            return _stdin(tests, "tests")
        case "call":
            return _call(row, tests, tests.get("fn_name") or entry, "tests")
        case "assert_list":
            return CodeTests(
                kind="assert_list",
                setup=_text(tests, "setup", optional=True),
                asserts=_texts(tests, "asserts"),
                entry_point=entry,
            )
        case "check":
            if not entry:
                raise DataError("entry_point is missing, needed the name of the function that `check` is given")
            return CodeTests(
                kind="check",
                setup=_text(tests, "prelude", optional=True),
                stub=_stub(row, entry),
                test=_text(tests, "test"),
                entry_point=entry,
            )
        case "script":
            return CodeTests(
                kind="script", setup=_script_setup(row, tests), test=_text(tests, "test"), entry_point=entry
            )
    raise DataError(f"tests.kind is {_show(tests.get('kind'))}, needed one of stdin, call, assert_list, check, script")


def _eurus(row: Row, tests: Any) -> CodeTests:
    place = "reward_model.ground_truth"
    if not isinstance(tests, Mapping):
        raise DataError(f"{place} is {_show(tests)}, needed an object with inputs and outputs")
    if "fn_name" not in tests:
        return _stdin(tests, place)
    arguments = [
        [_parsed(line, f"{place}: inputs[{number}]") for line in lines.split("\n")] if isinstance(lines, str) else lines
        for number, lines in enumerate(_items(tests, "inputs", place))
    ]
    outputs = [
        _parsed(text, f"{place}: outputs[{number}]") if isinstance(text, str) else text
        for number, text in enumerate(_items(tests, "outputs", place))
    ]
    return _call(row, {"inputs": arguments, "outputs": outputs}, tests["fn_name"], place)


def _stdin(tests: Row, place: str) -> CodeTests:
    inputs, outputs = _pairs(tests, place)
    for name, texts in (("inputs", inputs), ("outputs", outputs)):
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{place}: {name}[{number}] is {_show(text)}, needed text")
    return CodeTests(kind="stdin", inputs=inputs, outputs=outputs)


def _call(row: Row, tests: Row, name: Any, place: str) -> CodeTests:
    if not isinstance(name, str) or not name:
        raise DataError(f"{place}: fn_name is {_show(name)}, needed the name of the function to call")
    inputs, outputs = _pairs(tests, place)
    for number, arguments in enumerate(inputs):
        if not isinstance(arguments, list):
            raise DataError(f"{place}: inputs[{number}] is {_show(arguments)}, needed a list of arguments")
    if not _is_leetcode(row) and all(isinstance(output, list) and len(output) == 1 for output in outputs):
        outputs = tuple(output[0] for output in outputs)  # APPS wraps what Codewars functions return
    return CodeTests(kind="call", inputs=inputs, outputs=outputs, entry_point=name, setup=USUAL_IMPORTS + NODES)


def _pairs(tests: Row, place: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    inputs, outputs = _items(tests, "inputs", place), _items(tests, "outputs", place)
    if len(inputs) != len(outputs):
        raise DataError(f"{place}: found {len(inputs)} inputs and {len(outputs)} outputs, needed one output per input")
    return tuple(inputs), tuple(outputs)


def _items(tests: Row, name: str, place: str) -> list[Any]:
    items = tests.get(name)
    if not isinstance(items, list) or not items:
        raise DataError(f"{place}: {name} is {_show(items)}, needed a list that is not empty")
    return items


def _script_setup(row: Row, tests: Row) -> str:
    imports = tests.get("imports") or []
    if not all(isinstance(line, str) for line in imports):
        raise DataError(f"tests: imports is {_show(imports)}, needed a list of statements")
    return "\n".join([*imports, *([USUAL_IMPORTS, NODES] if _is_leetcode(row) else [])])


def _stub(row: Row, entry: str) -> str:
    """The prompt, if it is the beginning of the function, as in HumanEval."""
    prompt = row.get("prompt")
    return prompt if isinstance(prompt, str) and f"def {entry}(" in prompt else ""


def _is_leetcode(row: Row) -> bool:
    shown = row.get("starter_code") or row.get("prompt")
    if isinstance(shown, list):
        shown = "\n".join(turn["content"] for turn in shown if isinstance(turn, Mapping) and "content" in turn)
    return isinstance(shown, str) and "class Solution" in shown


def _text(tests: Row, name: str, *, optional: bool = False) -> str:
    text = tests.get(name)
    if text is None and optional:
        return ""
    if not isinstance(text, str) or not (text.strip() or optional):
        raise DataError(f"tests: {name} is {_show(text)}, needed text")
    return text


def _texts(tests: Row, name: str) -> tuple[str, ...]:
    texts = _items(tests, name, "tests")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"tests: {name}[{number}] is {_show(text)}, needed a statement")
    return tuple(texts)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}") from error


def _show(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
