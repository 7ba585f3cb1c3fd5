"""From the row of a programming data set to the tests a program must pass. Nothing of a row is evaluated.

| data as in | told by | kind of tests |
|---|---|---|
| our own files | `tests.kind` | as it says |
| Eurus, verl, APPS, TACO | `inputs` and `outputs`, with or without `fn_name`, in any of `_HOLDERS` | `stdin`, `call` |
| DeepCoder, open-r1 | a list of `{input, output}` in any of `_HOLDERS` | `stdin`, `call` |
| LiveCodeBench | such lists in `public_test_cases` and `private_test_cases` | `stdin`, `call` |
| CodeContests | `public_tests`, `private_tests`, `generated_tests` | `stdin` |
| MBPP | `test_list` | `assert_list` |
| HumanEval | `test` defines `check`, `entry_point` | `check` |
| Skywork | `test_code` beside `entry_point` in `reward_model.ground_truth` | `check` |
| KodCode | any other text in `test` | `script` |

All of these may be objects or their JSON text; null is as good as missing.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from priml.data.rows import BadRowError, shown
from priml.types import CodeTests, Message

USUAL_IMPORTS = """\
import sys
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from json import *
from typing import *
from builtins import *
import bisect, collections, copy, datetime, functools, heapq, io, itertools, json, math, operator, random, re
import statistics, string
try:
    from sortedcontainers import SortedDict, SortedList, SortedSet
except ImportError:
    pass
"""
"""What LeetCode and LiveCodeBench have imported before a solution begins; data sets in their manner count on it."""

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


_HOLDERS = ("tests", "reward_model.ground_truth", "input_output", "verification_info.test_cases")
_COLUMNS = ("tests", "input_output", "verification_info", "public_test_cases", "public_tests", "test_list", "test")
"""Columns of which one makes a row one of code."""
TEST_COLUMNS = frozenset(
    {*_COLUMNS, "reward_model", "private_test_cases", "private_tests", "generated_tests", "challenge_test_list"}
)
"""Columns that hold the tests of a program."""
_MAX_PACKED = 1 << 28


def is_code_row(row: Row) -> bool:
    """Whether a row that does not name its kind has tests."""
    truth = row.get("reward_model")
    if isinstance(truth, Mapping) and truth.get("ground_truth") is not None:
        text = truth["ground_truth"]
        return isinstance(text, Mapping) or (isinstance(text, str) and text.lstrip()[:1] == "{" and '"outputs"' in text)
    return any(row.get(name) is not None for name in _COLUMNS)


def code_tests(row: Row) -> CodeTests:
    """The tests in a row.

    Raises:
        BadRowError: the row has no tests, they are incomplete, or nobody could fail them.
    """
    for name in _HOLDERS:
        value = _cell(row, name)
        if value is not None:
            return _checked(_from_value(row, value, name))
    match row:
        case {"public_test_cases": public} if public is not None:
            private = _unpacked(row.get("private_test_cases"))
            cases = [*_listed(public, "public_test_cases"), *_listed(private, "private_test_cases")]
            return _checked(replace(_cases(row, cases, "public_test_cases"), setup=USUAL_IMPORTS + NODES))
        case {"public_tests": public} if public is not None:
            return _checked(_code_contests(row))
        case {"test_list": texts} if texts is not None:
            return _mbpp(row)
        case {"test": str(text)}:
            return _test_text(row, text)
    columns = ", ".join(_COLUMNS)
    raise BadRowError(f"no tests: needed an object in column `tests` or tests in one of {columns}, reward_model")


def with_interface(prompt: str | tuple[Message, ...], row: Row, tests: CodeTests) -> str | tuple[Message, ...]:
    """The question with what a program must be called by, if the question does not say it.

    Data sets keep it in a column of its own: `starter_code`, the asserts of MBPP, `test_info` of KodCode.
    """
    text = prompt if isinstance(prompt, str) else prompt[-1].content
    needed = _interface(row, tests)
    if needed is None or needed.strip() in text:
        return prompt
    text = f"{text}\n\n{needed}"
    return text if isinstance(prompt, str) else (*prompt[:-1], Message(role="user", content=text))


def _interface(row: Row, tests: CodeTests) -> str | None:
    if _own_kind(row) is not None:
        return None
    starter = row.get("starter_code")
    if isinstance(starter, str) and starter.strip():
        return f"Complete this code:\n```python\n{starter.rstrip()}\n```"
    if tests.kind == "assert_list":
        return "Your code should pass these tests:\n\n" + "\n".join(tests.asserts)
    info = row.get("test_info")
    items = [item for item in info if isinstance(item, Mapping)] if isinstance(info, list) else []
    signatures = [item["function_declaration"] for item in items if isinstance(item.get("function_declaration"), str)]
    if signatures:
        return "Use these signatures:\n```python\n" + "\n".join(signatures) + "\n```"
    return None


def _own_kind(row: Row) -> object:
    tests = _cell(row, "tests") if row.get("tests") is not None else None
    return tests.get("kind") if isinstance(tests, Mapping) else None


def _cell(row: Row, name: str) -> Any:
    """The value in a column of tests; JSON text is parsed."""
    column, _, key = name.partition(".")
    value = row.get(column)
    if key:
        value = _parsed(value, column) if isinstance(value, str) else value
        value = value.get(key) if isinstance(value, Mapping) else None
    return _parsed(value, name) if isinstance(value, str) else value


def _from_value(row: Row, value: object, where: str) -> CodeTests:
    if isinstance(value, list):
        return _cases(row, value, where)
    if isinstance(value, Mapping):
        if value.get("kind") is None and (value.get("inputs") is not None or value.get("outputs") is not None):
            return _eurus(row, value, where)
        if isinstance(text := value.get("test_code"), str) and isinstance(entry := value.get("entry_point"), str):
            return CodeTests(kind="check", setup=value.get("import_prefix") or "", test=text, entry_point=entry)
        if where == "tests":
            return _own(row, value)
    raise BadRowError(f"{where} is {shown(value)}, needed an object with inputs and outputs")


def _checked(tests: CodeTests) -> CodeTests:
    """Refuse what any program passes that does nothing."""
    if tests.kind == "stdin" and not any(text.strip() for text in tests.outputs):
        raise BadRowError("all expected outputs are empty: any program that prints nothing would pass")
    if tests.kind == "call" and all(value is None for value in tests.outputs):
        raise BadRowError("all expected values are null: any function that returns nothing would pass")
    return tests


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


def _eurus(row: Row, tests: Row, where: str) -> CodeTests:
    name = tests.get("fn_name")
    inputs, outputs = _items(tests, "inputs", where), _items(tests, "outputs", where)
    if not name:  # null or empty: LiveCodeBench writes it so
        joined = {"inputs": list(map(_joined_lines, inputs)), "outputs": list(map(_joined_lines, outputs))}
        return _stdin(joined, where)
    arguments = [_arguments(value, f"{where}: inputs[{number}]") for number, value in enumerate(inputs)]
    values = [_value(value, f"{where}: outputs[{number}]") for number, value in enumerate(outputs)]
    return _call(row, {"inputs": arguments, "outputs": values}, name, where)


def _cases(row: Row, cases: Sequence[object], where: str) -> CodeTests:
    """A list of `{input, output}`, each fed to the program or to its function."""
    if not cases:
        raise BadRowError(f"{where} is [], needed at least one test")
    names: set[object] = set()
    for number, case in enumerate(cases):
        if not isinstance(case, Mapping) or case.get("input") is None or case.get("output") is None:
            raise BadRowError(f"{where}[{number}] is {shown(case)}, needed an object with input and output")
        names.add(_function_name(row, case))
    if len(names) > 1:
        raise BadRowError(f"{where}: found tests of {len(names)} kinds or functions, needed one")
    pairs = {f"{name}s": [case[name] for case in cases if isinstance(case, Mapping)] for name in ("input", "output")}
    return _eurus(row, {**pairs, "fn_name": names.pop()}, where)


def _function_name(row: Row, case: Row) -> object:
    if case.get("testtype") == "stdin" or case.get("type") == "stdin_stdout":
        return None
    for holder in (case, case.get("metadata"), row.get("metadata"), row):
        value = _parsed(holder, "metadata") if isinstance(holder, str) else holder
        name = isinstance(value, Mapping) and (value.get("fn_name") or value.get("func_name"))
        if name:
            return name
    if case.get("testtype") == "functional" or case.get("type") == "function_call":
        raise BadRowError("the tests call a function but its name is nowhere: needed metadata.func_name or fn_name")
    return None


def _code_contests(row: Row) -> CodeTests:
    inputs: list[object] = []
    outputs: list[object] = []
    for name in ("public_tests", "private_tests", "generated_tests"):
        match _cell(row, name):
            case {"input": [*given], "output": [*expected]} if len(given) == len(expected):
                inputs += given
                outputs += expected
            case [*cases]:
                return _cases(row, cases, name)
            case None:
                continue
            case other:
                raise BadRowError(f"{name} is {shown(other)}, needed lists input and output of one length")
    return _stdin({"inputs": inputs, "outputs": outputs}, "public_tests")


def _mbpp(row: Row) -> CodeTests:
    parts = [row.get("test_setup_code"), *(row.get("test_imports") or [])]
    setup = "\n".join(text for text in parts if isinstance(text, str) and text.strip())
    return CodeTests(kind="assert_list", setup=setup, asserts=_texts({"asserts": row["test_list"]}, "asserts"))


def _test_text(row: Row, text: str) -> CodeTests:
    entry = row.get("entry_point")
    if "def check(" in text and isinstance(entry, str) and entry:
        return _own(row, {"kind": "check", "test": text})
    return _own(row, {"kind": "script", "test": text})


def _unpacked(packed: object) -> object:
    """Hidden tests of LiveCodeBench: JSON text, or that in a pickle of one text, packed. It is read, never unpickled.

    Raises:
        BadRowError: there is anything but one text in the pickle.
    """
    if not isinstance(packed, str) or not packed or packed.lstrip()[:1] == "[":
        return packed
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(packed, validate=True), _MAX_PACKED)
        parts = [(code.name, value) for code, value, _ in pickletools.genops(data)]
    except (binascii.Error, zlib.error, ValueError) as error:
        raise BadRowError(f"private_test_cases are neither JSON nor a packed text: {error}") from error
    texts = [value for name, value in parts if name in _TEXT_CODES]
    if len(texts) != 1 or any(name not in _TEXT_CODES | _FRAME_CODES for name, _ in parts):
        raise BadRowError("private_test_cases hold a pickle of more than one text, which is not read")
    return texts[0]


_TEXT_CODES = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_FRAME_CODES = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "STOP"}


def _listed(value: object, where: str) -> list[Any]:
    cases = _parsed(value, where) if isinstance(value, str) else value
    if cases is None:
        return []
    if not isinstance(cases, list):
        raise BadRowError(f"{where} is {shown(cases)}, needed a list of tests")
    return cases


def _joined_lines(value: object) -> object:
    """Text that is given as a list of its lines."""
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in value)
    return value


def _arguments(value: object, where: str) -> object:
    return [_parsed(line, where) for line in value.strip("\n").split("\n")] if isinstance(value, str) else value


def _value(value: object, where: str) -> object:
    return _parsed(value, where) if isinstance(value, str) else value


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
    return CodeTests(
        kind="call",
        inputs=inputs,
        outputs=outputs,
        entry_point=name,
        setup=USUAL_IMPORTS + NODES,
        in_place=re.search(rf"def {re.escape(name)}\(.*?\)\s*->\s*None\s*:", _starter(row), re.DOTALL) is not None,
        is_wrapped=not _is_leetcode(row) and all(isinstance(output, list) and len(output) == 1 for output in outputs),
    )


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
    return "class Solution" in _starter(row)


def _starter(row: Row) -> str:
    starter = row.get("starter_code") or row.get("prompt")
    if isinstance(starter, list):
        starter = "\n".join(str(turn["content"]) for turn in starter if isinstance(turn, Mapping) and "content" in turn)
    return starter if isinstance(starter, str) else ""


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
        return json.loads(text, parse_int=_whole_number)
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"{where} is not JSON: {error}") from error


def _whole_number(digits: str) -> int:
    """`int`, also of more digits than it takes."""
    return int(digits) if len(digits) < 4000 else int(Decimal(digits))
