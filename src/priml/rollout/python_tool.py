"""Python as a tool: code blocks of a turn run in the sandbox, and their output is the observation."""

from __future__ import annotations

import re

from priml.rollout.environment import EnvironmentFailed, StepResult
from priml.sandbox import Limits, ProgramEnded, Sandbox, SandboxLost, Session
from priml.types import Problem

_BLOCK = re.compile(r"^```(?:python|py)[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_NO_OUTPUT = "(no output)"
# Runs in the sandbox. As in a notebook, names stay and a last expression is shown.
_INTERPRETER = """
import ast, contextlib, io, traceback
names = {"__name__": "__main__"}
def run(code):
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<code>", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<code>", "eval"), names)
        if value is not None:
            print(repr(value))
while True:
    code, output = receive().decode(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            run(code)
        except BaseException as error:
            shown = traceback.format_exception_only(error)
            print("".join(shown).strip())
    reply(output.getvalue().encode("utf-8", "replace")[:60000])
"""


class PythonTool:
    """An `Environment`. A turn without a code block is the last one. What one turn defines, later turns can use."""

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        """`limits` are those of each run of code; processor time and memory are those of the whole rollout."""
        self._sandbox = sandbox
        self._limits = limits
        self._session: Session | None = None

    def reset(self, problem: Problem) -> None:
        """Nothing is started before there is code."""

    def step(self, text: str) -> StepResult:
        """Run the code blocks of a turn, one after the other.

        Raises:
            EnvironmentFailed: the sandbox was lost, and with it what earlier turns had defined.
        """
        blocks = [match[1] for match in _BLOCK.finditer(text)]
        if not blocks:
            return StepResult("", done=True)
        try:
            return StepResult(self._run("\n".join(blocks)))
        except SandboxLost as error:
            raise EnvironmentFailed("python: sandbox lost") from error

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _run(self, code: str) -> str:
        if self._session is None:
            self._session = self._sandbox.open(_INTERPRETER, limits=self._limits)
        try:
            output = self._session.ask(code.encode("utf-8", "replace"))
        except ProgramEnded as error:
            self.close()  # the next code begins anew
            return f"(the program ended: {error.result.status}; its names are lost)"
        return output.decode("utf-8", "replace").rstrip() or _NO_OUTPUT
