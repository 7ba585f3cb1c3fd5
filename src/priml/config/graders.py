"""Settings of verifiers, and of the sandboxes in which those of code run programs."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from priml.config.base import CustomFunction, Settings, ShortForm

Workers = Annotated[int, Field(ge=1, le=1024)]
"""Processes at one time."""


class MathVerifier(Settings):
    """Mathematical answers in a box, judged by value."""

    kind: Literal["math"] = "math"
    workers: Workers = 2
    """Worker processes for the few answers that need a symbolic engine."""
    time_limit: PositiveFloat = 0.8
    """Seconds of a worker's processor time per answer; over it the answer is wrong. Other load does not count."""
    rules: Literal["strict", "authors"] = "strict"
    """Exact equality, or the lenient rules of the authors' program (for parity, hackable)."""
    bare_answers: bool = False
    """Accept an answer without a box: what follows "the answer is", else the last formula, else the last number."""
    tolerance: PositiveFloat | Literal["row"] | None = None
    """Relative error allowed in numbers; null: exact. `row`: the absolute error in the row's `error`, where it has one,
    as in OlympiadBench."""
    digits: Literal["exact", "gold"] = "exact"
    """`gold`: where the gold answer is a decimal such as 1.6, all that rounds to it is right (1.63)."""
    units: Literal["convert", "exact"] = "convert"
    """Whether 500 cm is 5 m; a unit that one side leaves out is never missed."""

    @model_validator(mode="after")
    def _options_mean_something(self) -> Self:
        others = (self.bare_answers, self.tolerance, self.units, self.digits)
        if self.rules == "authors" and others != (False, None, "convert", "exact"):
            raise ValueError(
                "rules: authors has its own extraction and tolerance; leave out bare_answers, tolerance, units and "
                "digits, or set rules: strict"
            )
        return self


class _Sandbox(Settings):
    """Where programs run."""

    workers: Workers | None = None
    """Programs that run at once; null: one per core."""


class AutoSandbox(_Sandbox):
    """The strongest isolation that passes its self-test on this machine; without any, code is not run."""

    kind: Literal["auto"] = "auto"


class BubblewrapSandbox(_Sandbox):
    """Namespaces set up by bubblewrap, seccomp, Landlock and limits: the strongest local isolation, or refusal."""

    kind: Literal["bubblewrap"]


class GvisorSandbox(_Sandbox):
    """A gVisor container (`runsc`) for each program, or refusal: strong, and about a second slower for each program."""

    kind: Literal["gvisor"]


class LandlockSandbox(_Sandbox):
    """Landlock, seccomp and limits, for containers that allow no namespaces, or refusal."""

    kind: Literal["landlock"]


class DockerSandbox(_Sandbox):
    """Containers of the local Docker daemon."""

    kind: Literal["docker"]
    image: str = "python:3.11-slim"
    """An image with a Python interpreter and the packages that programs may import."""


class HttpSandbox(_Sandbox):
    """A service that runs code elsewhere (of the SandboxFusion kind)."""

    kind: Literal["http"]
    url: str
    """Its address, e.g. `http://localhost:8080`."""


class UnsafeSandbox(Settings):
    """No isolation at all: programs run as you, with your files and your network. Only on a machine made for it."""

    kind: Literal["unsafe-subprocess"]


Sandbox = Annotated[
    AutoSandbox | BubblewrapSandbox | GvisorSandbox | LandlockSandbox | DockerSandbox | HttpSandbox | UnsafeSandbox,
    Field(discriminator="kind"),
    ShortForm("auto"),
]


class CodeVerifier(Settings):
    """Programs, judged by the tests of their problem; the outcome is the share of tests passed."""

    kind: Literal["code"] = "code"
    sandbox: Sandbox = AutoSandbox()
    """Where programs run."""
    time_limit: PositiveFloat = 10.0
    """Seconds per start of the program: for one test with text as input, or for all the calls of one start."""
    memory_mib: PositiveInt = 1024
    """Memory that a program may allocate."""
    rules: Literal["strict", "authors"] = "strict"
    """Exact output but for trailing blanks and rounding, or the lenient comparison of the authors' program."""
    all_or_nothing: bool = False
    """Outcome 1 when all tests are passed, else 0."""
    stop_early: bool = False
    """Stop at the first failed test: faster, and the tests not run count as failed."""
    compare_tokens: bool = False
    """Compare output word by word, as the checkers of contests do: white space and line breaks do not count."""
    bare_programs: bool = False
    """Without a fenced code block, take the whole response for the program."""

    @model_validator(mode="after")
    def _comparison_means_something(self) -> Self:
        if self.rules == "authors" and self.compare_tokens:
            raise ValueError("rules: authors has its own comparison; leave out compare_tokens, or set rules: strict")
        return self


class ChoiceVerifier(Settings):
    """The letter of an option, in a box."""

    kind: Literal["choice"]
    bare_answers: bool = False
    """Without a box, what follows the last "answer is" counts."""


class ExactVerifier(Settings):
    """The exact text of the answer, apart from white space."""

    kind: Literal["exact"]
    place: Literal["boxed", "whole"] = "boxed"
    """The answer is in the last box, or is the whole response."""
    ignore_case: bool = False
    """Capitals do not matter."""


class CustomVerifier(Settings):
    """Your own function `grade(problem, response)`, in a process of its own."""

    kind: Literal["custom"]
    function: CustomFunction
    """`path/to/file.py:name` or `package.module:name`."""
    time_limit: PositiveFloat = 120.0
    """Seconds of a call, waiting included; over it the response is undecided."""
    memory_mib: PositiveInt = 4096
    """Memory that the function's process may allocate; raise it when the function holds a model."""


SingleVerifier = Annotated[
    MathVerifier | CodeVerifier | ChoiceVerifier | ExactVerifier | CustomVerifier,
    Field(discriminator="kind"),
    ShortForm("math"),
]


class MixedVerifier(Settings):
    """A verifier for each kind of problem, so that mathematics and code train in one run."""

    kind: Literal["mixed"]
    kinds: Annotated[dict[str, SingleVerifier], Field(min_length=1)]
    """By the `ability` of a row (`math` where it has none): `{math: {kind: math}, code: {kind: code}}`."""
    sources: dict[str, SingleVerifier] | None = None
    """By its `data_source`, or the part of it before a `/`; these go before `kinds`."""


Verify = Annotated[
    MathVerifier | CodeVerifier | ChoiceVerifier | ExactVerifier | CustomVerifier | MixedVerifier,
    Field(discriminator="kind"),
    ShortForm("math"),
]
