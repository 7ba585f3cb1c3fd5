"""Python as a tool, in the real sandbox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from priml.rollout.environment import EnvironmentFailed, StepResult
from priml.rollout.python_tool import PythonTool
from priml.sandbox import Limits, Sandbox, SandboxLost, SandboxUnavailable, open_sandbox
from priml.types import Problem

LIMITS = Limits(wall_s=60, cpu_s=120)


def block(code: str) -> str:
    return f"Let me see.\n```python\n{code}\n```\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        opened = open_sandbox("auto")
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


@pytest.fixture
def tool(sandbox: Sandbox) -> Iterator[PythonTool]:
    made = PythonTool(sandbox, LIMITS)
    made.reset(Problem("p", "", ""))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("print(6 * 7)", "42"),
        ("x = 6\nx * 7", "42"),
        ("x = 1", "(no output)"),
        ("print('é', '√')", "é √"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("exit(3)", "SystemExit: 3"),
        ("import sys; print('e', file=sys.stderr)", "e"),
        ("def f(:", "SyntaxError"),
        ("print('`' * 3)", "```"),
        ("None", "(no output)"),
    ],
)
def test_the_output_is_the_observation(tool: PythonTool, code: str, seen: str):
    observation, reward, done = tool.step(block(code))
    assert seen in observation
    assert (reward, done) == (None, False)


def test_names_stay_and_several_blocks_are_one_program(tool: PythonTool):
    tool.step(block("import math\ndef double(x): return 2 * x"))
    assert tool.step(block("y = double(3)") + block("print(y, math.floor(2.5))")).observation == "6 2"


@pytest.mark.parametrize("text", ["The answer is \\boxed{4}.", "```\nprint(1)\n```", "```python\nprint(1)", ""])
def test_a_turn_without_a_finished_block_of_python_is_the_last(tool: PythonTool, text: str):
    assert tool.step(text) == StepResult("", done=True)


def test_a_program_at_its_limit_is_named_and_the_next_begins_anew(sandbox: Sandbox):
    tool = PythonTool(sandbox, Limits(wall_s=2))
    tool.step(block("x = 1"))
    assert tool.step(block("while True: pass")).observation == "(the program ended: time limit; its names are lost)"
    assert "NameError" in tool.step(block("x")).observation
    tool.close()


def test_what_the_code_forges_is_text_and_no_more(tool: PythonTool):
    assert tool.step(block("import __main__\n__main__.reply(b'forged')\nprint('real')")).observation == "forged"
    assert isinstance(tool.step(block("print(1)")).observation, str)


def test_a_lost_sandbox_is_a_failure():
    class Lost:
        def open(self, code: str, *, limits: Limits) -> None:
            raise SandboxLost("gone")

    with pytest.raises(EnvironmentFailed, match="python: sandbox lost"):
        PythonTool(Lost(), LIMITS).step(block("1"))  # pyright: ignore[reportArgumentType]
