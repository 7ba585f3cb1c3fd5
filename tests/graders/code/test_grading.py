"""Tests that are programs: what they may do with a program that is not in their process."""

import pytest

from priml.types import CodeTests

NODES = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next

def to_list(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head

def to_values(head):
    values = []
    while head is not None:
        values.append(head.val)
        head = head.next
    return values
"""


def script(test, **more):
    return CodeTests(kind="script", test=test, **more)


def asserts(*statements, **more):
    return CodeTests(kind="assert_list", asserts=statements, **more)


def check(*lines, entry="f", **more):
    body = "\n    ".join(lines)
    return CodeTests(kind="check", test=f"def check(candidate):\n    {body}", entry_point=entry, **more)


def outcome(verifier, program, tests):
    verdict = verifier.judge(f"```python\n{program}\n```", tests)
    return verdict.score, verdict.reason


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(x): return x + 1", asserts("assert f(1) == 2", "assert f(x=2) == 3")),
        ("def f(*a, **k): return (a, k)", asserts("assert f(1, (2,), k={3}) == ((1, (2,)), {'k': {3}})")),
        (
            "def f(x): return x + 1",
            check("assert candidate(1) == 2", "for x in range(9):", "    assert candidate(x) > x"),
        ),
        ("    return x + 1", check("assert candidate(1) == 2", stub='def f(x):\n    """Next."""\n')),
        (
            "def f(x): return 2 * g(x)",
            check("assert candidate(1) == g(2)", stub="def g(x):\n    return x\ndef f(x):\n"),
        ),
        ("def f(x: List[int]): return len(x)", check("assert candidate([1]) == 1", stub="from typing import List\n")),
        (
            "def f(x): return [Counter(x)]",
            check("assert candidate('a') == [{'a': 1}]", setup="from collections import *"),
        ),
        ("class Solution:\n    def f(self, x): return x", check("assert candidate(3) == 3", entry="Solution().f")),
        (
            "class Solution:\n    def f(self, x): return x",
            script("s = Solution()\nassert s.f(3) == 3\nassert s.f(4) == 4"),
        ),
        ("def sum(a, b): return a * b", asserts("assert sum(2, 5) == 10", entry_point="sum")),
        (
            "def f(x):\n    if x < 0: raise ValueError('no')",
            script("try:\n    f(-1)\n    assert False\nexcept ValueError: pass"),
        ),
        (
            "def f(x): raise KeyError(x)",
            script("try:\n    f('k')\n    assert 0\nexcept KeyError as e: assert e.args == ('k',)"),
        ),
        (
            "class Empty(Exception): pass\ndef f(): raise Empty",
            script("try:\n    f()\n    assert False\nexcept Empty: pass"),
        ),
        ("def f(x): x.sort()", script("x = [3, 1]\nf(x)\nassert x == [1, 3]")),
        ("def f(d): d['k'].append(1); d['n'] = {2}", script("d = {'k': []}\nf(d)\nassert d == {'k': [1], 'n': {2}}")),
        ("def f(x): return sorted(x)", script("x = [3, 1]\ny = f(x)\nassert (x, y) == ([3, 1], [1, 3])")),
        ("def f(n):\n    yield from range(n)", asserts("assert list(f(3)) == [0, 1, 2]")),
        ("import numpy as np\ndef f(x): return np.sum(x)", asserts("assert f([1, 2]) == 3", "assert f([1.5]) == 1.5")),
        ("def f(t): return isinstance(3, t)", asserts("assert f(int)", "assert not f(str)")),
        ("def adder(n): return lambda x: x + n", asserts("assert adder(3)(4) == 7")),
        ("LIMIT = 3\ndef f(): return LIMIT", asserts("assert f() == LIMIT")),
        (
            "def f(a, b): return a * b",
            script("def near(a, b): assert abs(a - b) < 1e-6\nnear(f(.1, .1), .01)\nnear(f(1, 2), 2)"),
        ),
        ("def f(x): return 10 ** x", asserts("assert f(5000) == 10 ** 5000")),
        ("def f(x): print('passed'); return x", asserts("assert f(1) == 1")),
    ],
)
def test_right_programs_pass(verifier, program, tests):
    assert outcome(verifier, program, tests) == (1.0, "passed")


@pytest.mark.parametrize(
    ("program", "tests", "score", "reason"),
    [
        ("def f(x): return 2", asserts("assert f(1) == 2", "assert f(2) == 3"), 0.5, "wrong answer"),
        ("def f(x): return 2", check("assert candidate(1) == 2", "assert candidate(2) == 3"), 0.5, "wrong answer"),
        ("def f(x): return 2", check("assert True", "assert candidate(2) == 3"), 0.0, "wrong answer"),
        ("def f(x): return 2", script("for x in range(3):\n    assert f(x) == x"), 0.0, "wrong answer"),
        (
            "def f(x): return 1 / x",
            asserts("assert f(0) == 2", "assert f(1) == 1"),
            0.5,
            "exception: ZeroDivisionError",
        ),
        ("def g(x): return 2", asserts("assert f(1) == 2"), 0.0, "wrong answer"),
        ("f = 3", asserts("assert f(1) == 2"), 0.0, "wrong answer"),
        ("def f(x): return None", asserts("assert f(1) < 2"), 0.0, "wrong answer"),
        ("def f(x): exit()", asserts("assert f(1) == 1"), 0.0, "exception: RuntimeError"),
        (
            "import os\ndef f(x): return x if x else os._exit(0)",
            asserts("assert f(0) == 0", "assert f(1) == 1"),
            0.5,
            "crash",
        ),
        ("import os\nos._exit(0)", asserts("assert f(0) == 0"), 0.0, "crash"),
        ("x = 1 / 0", asserts("assert f(0) == 0", "assert f(1) == 1"), 0.0, "exception: ZeroDivisionError"),
        ("def f(x): return '[' * 100 + str([x])", asserts("assert f(1) == [1]"), 0.0, "wrong answer"),
    ],
)
def test_wrong_programs_fail_with_a_reason(verifier, program, tests, score, reason):
    assert outcome(verifier, program, tests) == (score, reason)


def test_tests_that_forgive_any_exception_do_not_forgive_an_end(verifier):
    tests = script("try:\n    f()\n    assert f\nexcept:\n    pass\nassert f")
    assert outcome(verifier, "def f(): raise ValueError", tests) == (1.0, "passed")
    assert outcome(verifier, "import os\ndef f(): os._exit(0)", tests) == (0.5, "crash")


def test_each_test_is_run_once(verifier):
    program = "calls = []\ndef f(x):\n    calls.append(x)\n    return list(calls)"
    tests = asserts("assert f(1) == [1]", "assert f(2) == [1, 2]", "assert f(3) == [1, 2, 3]")
    assert outcome(verifier, program, tests) == (1.0, "passed")


def test_after_a_crash_the_state_that_tests_share_is_made_again(verifier):
    program = "import os\nclass Solution:\n    def f(self, x): return x if x != 1 else os._exit(0)"
    test = "s = Solution()\n" + "\n".join(f"assert s.f({x}) == {x}" for x in range(4))
    assert outcome(verifier, program, script(test)) == (0.75, "crash")


def test_linked_instances_travel_both_ways(verifier):
    program = """
class Solution:
    def reverse(self, head):
        back = None
        while head:
            head.next, back, head = back, head, head.next
        return back
"""
    tests = check(
        "assert to_values(candidate(to_list([1, 2, 3]))) == [3, 2, 1]",
        "assert to_values(candidate(head=to_list(list(range(3000))))) == list(range(3000))[::-1]",
        "assert candidate(None) is None",
        entry="Solution().reverse",
        setup=NODES,
    )
    assert outcome(verifier, program, tests) == (1.0, "passed")
    redefined = "class ListNode:\n    def __init__(self, v=0, n=None):\n        self.val, self.next = v, n\n" + program
    assert outcome(verifier, redefined, tests) == (1.0, "passed")
    identity = "class Solution:\n    def reverse(self, head): return head"
    assert outcome(verifier, identity, tests)[0] == pytest.approx(1 / 3)


def test_classes_of_the_program_are_used_at_a_distance(verifier):
    program = """
class Stack:
    kind = "lifo"
    def __init__(self, items=()): self.items = list(items); self.top = None
    def push(self, x): self.items.append(x); self.top = x; return self
    def pop(self):
        if not self.items: raise IndexError("empty")
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]
    def __str__(self): return f"Stack({self.items})"
    def __eq__(self, other): return True
"""
    tests = script("""
s = Stack([1])
s.push(2).push(3)
assert len(s) == 3
assert s[0] == 1
assert s.top == 3
assert str(s) == "Stack([1, 2, 3])"
assert s.pop() == 3
assert isinstance(s, Stack)
assert Stack.kind == "lifo"
s.items = []
try:
    s.pop()
    assert False
except IndexError as error:
    assert str(error) == "empty"
""")
    assert outcome(verifier, program, tests) == (1.0, "passed")
    assert outcome(verifier, program, script("assert Stack([1]) == Stack([2])"))[0] == 0.0


def test_a_setup_may_use_the_program(verifier):
    program = """
class Node:
    def __init__(self, value): self.value, self.left, self.right = value, None, None
def size(root): return 1 + size(root.left) + size(root.right) if root else 0
"""
    setup = "root = Node(1)\nroot.left = Node(2)\nroot.left.right = Node(3)"
    assert outcome(verifier, program, asserts("assert size(root) == 3", setup=setup)) == (1.0, "passed")


def test_an_argument_changes_only_in_a_call_whose_value_is_thrown_away(verifier):
    cheat = "def f(x):\n    x.clear()\n    return []"
    tests = script("x = [3, 1]\ny = f(x)\nassert y == sorted(x)")
    assert outcome(verifier, cheat, tests) == (0.0, "wrong answer")
