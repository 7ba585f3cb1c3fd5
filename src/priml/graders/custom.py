"""A user's own function as a verifier, named in the settings: `my_rewards.py:grade` or `package.module:function`."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from numbers import Real
from typing import TypeVar

from priml.errors import UsageError
from priml.plugins import load
from priml.types import Problem, Verdict

Function = Callable[[Problem, str], object]
Result = TypeVar("Result")


class CustomVerifier:
    """The `Verifier` around a function called as `function(problem, response)`.

    It may return a `Verdict`, a bool, or a score in [0, 1] (correct at 1). It may be `async`: then up to 16 calls run
    at once, in one event loop in a daemon thread that lives as long as this object, so that clients kept between calls
    stay valid. A plain function is never called from two threads at once.

    An exception in it tells nothing about the response, so it makes the verdict *undecided*, with the type of the
    exception as reason.
    """

    def __init__(self, function: Function, *, name: str) -> None:
        """`name` is the function's name in messages."""
        self._function = function
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def grade(self, problem: Problem, response: str) -> Verdict:
        """Return the function's verdict.

        Raises:
            UsageError: the function returned something else than a verdict, a bool or a number in [0, 1].
        """
        try:
            with self._lock:
                result = self._function(problem, response)
            if inspect.isawaitable(result):
                result = asyncio.run_coroutine_threadsafe(_wait_for(result), self._running_loop()).result()
        except Exception as error:  # the user's code: an error in it is not the response's doing
            return Verdict.undecided(f"{type(error).__name__} in {self._name}")
        if getattr(result, "ndim", None) == 0:
            result = result.item()  # pyright: ignore[reportAttributeAccessIssue]  # numpy's and torch's numbers
        return self._verdict(result)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="verify-async", daemon=True).start()
            return self._loop

    def _verdict(self, result: object) -> Verdict:
        match result:
            case Verdict():
                return result
            case bool():
                return Verdict.right("custom") if result else Verdict.wrong("custom")
            case Real() if 0 <= float(result) <= 1:  # NaN is not
                return Verdict(correct=float(result) == 1.0, score=float(result), reason="custom")
        raise UsageError(
            f"verify.function: {self._name} returned {result!r} ({type(result).__name__}); "
            "it must return a priml.types.Verdict, a bool, or a number from 0 to 1."
        )


def load_custom(function: str) -> CustomVerifier:
    """Build the verifier around the function that `function` names (see `priml.plugins.load`)."""
    return CustomVerifier(load(function, setting="verify.function", takes=("problem", "response")), name=function)


async def _wait_for(awaitable: Awaitable[Result]) -> Result:
    return await awaitable
