"""From the row of a programming data set to the tests a program must pass.

Two shapes are read: an object of tests in column `tests` (or its JSON text), with a `kind` and what belongs to it, and
the text of `reward_model.ground_truth` in the schema of verl and Eurus. Nothing of a row is evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from priml.data.rows import BadRowError, shown
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
        BadRowError: the row has no tests, or they are incomplete.
    """
    tests = row.get("tests")
    if isinstance(tests, str):
        tests = _parsed(tests, "tests")
    if isinstance(tests, Mapping):
        return _own(row, tests)
    match row.get("reward_model"):
        case {"ground_truth": str(text)}:
            return _eurus(row, _parsed(text, "reward_model.ground_truth"))
    raise BadRowError("no tests: needed an object in column `tests`, or JSON text in `reward_model.ground_truth`")


def _own(row: Row, tests: Row) -> CodeTests:
    entry = row.get("entry_point")
    if entry is not None and not isinstance(entry, str):
        raise BadRowError(f"entry_point is {shown(entry)}, needed the name of a function")
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
                raise BadRowError("entry_point is missing, needed the name of the function that `check` is given")
            prompt = row.get("prompt")
            return CodeTests(
                kind="check",
                setup=_text(tests, "prelude", optional=True),
                # The prompt may be the beginning of the function, as in HumanEval.
                stub=prompt if isinstance(prompt, str) and f"def {entry}(" in prompt else "",
                test=_text(tests, "test"),
                entry_point=entry,
            )
        case "script":
            return CodeTests(
                kind="script", setup=_script_setup(row, tests), test=_text(tests, "test"), entry_point=entry
            )
    raise BadRowError(
        f"tests.kind is {shown(tests.get('kind'))}, needed one of stdin, call, assert_list, check, script"
    )


def _eurus(row: Row, tests: object) -> CodeTests:
    where = "reward_model.ground_truth"
    if not isinstance(tests, Mapping):
        raise BadRowError(f"{where} is {shown(tests)}, needed an object with inputs and outputs")
    if "fn_name" not in tests:
        return _stdin(tests, where)
    arguments = [
        [_parsed(line, f"{where}: inputs[{number}]") for line in lines.split("\n")] if isinstance(lines, str) else lines
        for number, lines in enumerate(_items(tests, "inputs", where))
    ]
    outputs = [
        _parsed(text, f"{where}: outputs[{number}]") if isinstance(text, str) else text
        for number, text in enumerate(_items(tests, "outputs", where))
    ]
    return _call(row, {"inputs": arguments, "outputs": outputs}, tests["fn_name"], where)


def _stdin(tests: Row, where: str) -> CodeTests:
    inputs, outputs = _pairs(tests, where)
    for name, texts in (("inputs", inputs), ("outputs", outputs)):
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise BadRowError(f"{where}: {name}[{number}] is {shown(text)}, needed text")
    return CodeTests(kind="stdin", inputs=inputs, outputs=outputs)


def _call(row: Row, tests: Row, name: object, where: str) -> CodeTests:
    if not isinstance(name, str) or not name:
        raise BadRowError(f"{where}: fn_name is {shown(name)}, needed the name of the function to call")
    inputs, outputs = _pairs(tests, where)
    for number, arguments in enumerate(inputs):
        if not isinstance(arguments, list):
            raise BadRowError(f"{where}: inputs[{number}] is {shown(arguments)}, needed a list of arguments")
    if not _is_leetcode(row) and all(isinstance(output, list) and len(output) == 1 for output in outputs):
        outputs = tuple(output[0] for output in outputs)  # APPS wraps what Codewars functions return
    return CodeTests(kind="call", inputs=inputs, outputs=outputs, entry_point=name, setup=USUAL_IMPORTS + NODES)


def _pairs(tests: Row, where: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    inputs, outputs = _items(tests, "inputs", where), _items(tests, "outputs", where)
    if len(inputs) != len(outputs):
        raise BadRowError(
            f"{where}: found {len(inputs)} inputs and {len(outputs)} outputs, needed one output per input"
        )
    return tuple(inputs), tuple(outputs)


def _items(tests: Row, name: str, where: str) -> list[Any]:
    items = tests.get(name)
    if not isinstance(items, list) or not items:
        raise BadRowError(f"{where}: {name} is {shown(items)}, needed a list that is not empty")
    return items


def _script_setup(row: Row, tests: Row) -> str:
    imports = tests.get("imports") or []
    if not all(isinstance(line, str) for line in imports):
        raise BadRowError(f"tests: imports is {shown(imports)}, needed a list of statements")
    return "\n".join([*imports, *([USUAL_IMPORTS, NODES] if _is_leetcode(row) else [])])


def _is_leetcode(row: Row) -> bool:
    starter = row.get("starter_code") or row.get("prompt")
    if isinstance(starter, list):
        starter = "\n".join(turn["content"] for turn in starter if isinstance(turn, Mapping) and "content" in turn)
    return isinstance(starter, str) and "class Solution" in starter


def _text(tests: Row, name: str, *, optional: bool = False) -> str:
    text = tests.get(name)
    if text is None and optional:
        return ""
    if not isinstance(text, str) or not (text.strip() or optional):
        raise BadRowError(f"tests: {name} is {shown(text)}, needed text")
    return text


def _texts(tests: Row, name: str) -> tuple[str, ...]:
    texts = _items(tests, name, "tests")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise BadRowError(f"tests: {name}[{number}] is {shown(text)}, needed a statement")
    return tuple(texts)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"{where} is not JSON: {error}") from error
