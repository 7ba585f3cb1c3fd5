"""Evaluate expressions: exactly where possible, otherwise to many digits, and always in bounded time.

Rational arithmetic is exact. Roots, logarithms and the like are computed with mpmath to at least 256 bits, and to more
when the numbers differ widely in size or have many digits. Each step is charged to a budget and checked for its size
before it is done, so no expression can hang or fill the memory.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from mpmath import MPContext

from priml.graders.math.ast import Apply, Expression, Letter, Number

_PRECISION = 256  # bits
_SPREAD = 64
"""Ratio of the largest to the smallest number of a computation, in bits; above it the precision is raised."""
_MAX_SPREAD = 1000
_MAX_BITS = 16_000
"""Maximum size of an exact number: about 4800 digits."""
_MAX_MAGNITUDE = 4000
"""Maximum size of an inexact number, as a power of two."""
_MAX_INTEGER = 1000
"""Maximum argument of a factorial."""


class TooComplex(Exception):
    """The expression needs too much work: too large numbers, too many digits, or too many steps."""


class Undecidable(Exception):
    """Conventions differ on the value."""


class NoValue(Exception):
    """The expression has no value: division by zero, logarithm of zero, factorial of a half."""


class OutOfDomain(Exception):
    """The expression is not real at this point; it may be at another one."""


_local = threading.local()


def _context() -> Any:
    """Return this thread's mpmath context, because a context holds the precision."""
    if not hasattr(_local, "context"):
        _local.context = MPContext()
    return _local.context


Value = Any  # Fraction, or mpf or mpc of this thread's context
Point = Mapping[str, Fraction]


class Budget:
    """The work that is left, in multiplications of 256-bit numbers (some microseconds each)."""

    def __init__(self, left: int = 40_000) -> None:
        self._left = left

    def spend(self, cost: int) -> None:
        """Subtract `cost`.

        Raises:
            TooComplex: less than `cost` was left.
        """
        self._left -= cost
        if self._left < 0:
            raise TooComplex


class Evaluator:
    """Evaluates expressions on one budget."""

    def __init__(self, budget: Budget, *, real: bool) -> None:
        """`real`: roots and logarithms of negative numbers raise `OutOfDomain` instead of being complex."""
        self._budget = budget
        self._real = real
        self._mp = _context()
        self._mp.prec = _PRECISION
        self._low, self._high = 0, 0
        self._digits = 0  # of the longest number that was written out, in bits

    @property
    def precision(self) -> int:
        """Precision of the last values, in bits."""
        return self._mp.prec

    def agree(self, answer: Value, gold: Value, precision: int) -> bool:
        """Return whether two values are equal: rational ones exactly, others to half of their `precision` bits."""
        if isinstance(answer, Fraction) and isinstance(gold, Fraction):
            return answer == gold
        answer, gold = self._mp.convert(answer), self._mp.convert(gold)
        distance = abs(answer - gold)
        return bool(distance <= self._mp.ldexp(max(abs(answer), abs(gold)), -precision // 2))

    def close(self, value: Value, gold: Value, tolerance: float) -> bool:
        """Return whether a value is within the relative tolerance of the gold value."""
        value, gold = self._mp.convert(value), self._mp.convert(gold)
        return bool(abs(value - gold) <= tolerance * abs(gold))

    def values(self, expressions: Sequence[Expression], point: Point, log_base: int | None = None) -> list[Value]:
        """Return the values at a point, all at one precision that suits the sizes of the numbers.

        `log_base` is the base of logarithms without one; None: natural.

        Raises:
            TooComplex: the budget is spent, or a number is too large.
            Undecidable: conventions differ on a value.
            NoValue: there is a division by zero or the like.
            OutOfDomain: an expression is not real at this point.
        """
        self._mp.prec = _PRECISION
        while True:
            self._low, self._high, self._digits = 0, 0, 0
            results = [self._evaluate(expression, point, log_base) for expression in expressions]
            spread = self._high - self._low
            needed = _PRECISION + 5 * spread + 2 * self._digits
            exact = all(isinstance(result, Fraction) for result in results)
            if exact or (spread <= _SPREAD and 2 * self._digits < _PRECISION // 4) or self._mp.prec >= needed:
                return results
            if spread > _MAX_SPREAD or self._mp.prec > _PRECISION:
                raise TooComplex  # a number that should be zero shrinks as the precision grows
            self._mp.prec = needed

    def _evaluate(self, expression: Expression, point: Point, log_base: int | None) -> Value:
        match expression:
            case Number(value):
                self._digits = max(self._digits, value.denominator.bit_length())
                return self._checked(value)
            case Letter("\\pi"):
                return +self._mp.pi
            case Letter("e"):
                return +self._mp.e
            case Letter("i"):
                return self._mp.mpc(0, 1)
            case Letter(name):
                if name not in point:
                    raise Undecidable
                return point[name]
            case Apply("^", (Letter("e"), exponent)):
                return self.apply("exp", [self._evaluate(exponent, point, log_base)])
            case Apply("log", (argument,)) if log_base is not None:
                return self.apply("log", [self._evaluate(argument, point, log_base), Fraction(log_base)])
            case Apply(name, arguments):
                return self.apply(name, [self._evaluate(argument, point, log_base) for argument in arguments])

    def apply(self, name: str, values: list[Value]) -> Value:
        """Apply one operation: charge it to the budget and check the size of its result."""
        operation = _OPERATIONS.get(name)
        if operation is None:
            raise Undecidable
        inexact = not all(isinstance(value, Fraction) for value in values)
        cost = (self._mp.prec // 128) ** 2 if inexact or name not in _CHEAP else 2
        self._budget.spend(cost * len(values))
        return self._checked(operation(self, values))

    def _checked(self, value: Value) -> Value:
        if isinstance(value, int):
            value = Fraction(value)
        if isinstance(value, Fraction):
            above, below = value.numerator.bit_length(), value.denominator.bit_length()
            if above + below > _MAX_BITS:
                raise TooComplex
            self._budget.spend((above + below) >> 9)
            magnitude = above - below
        else:
            if not self._mp.isfinite(value):
                raise NoValue
            magnitude = int(self._mp.mag(value)) if value else 0
            if abs(magnitude) > _MAX_MAGNITUDE:
                raise TooComplex
        if value:
            self._low, self._high = min(self._low, magnitude), max(self._high, magnitude)
        return value

    # Fractions stay fractions. Rounding errors next to zero and to real numbers are removed.

    def _inexact(self, values: list[Value]) -> list[Value]:
        return [self._mp.mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else v for v in values]

    def _clean(self, value: Value, scale: Value) -> Value:
        """Remove rounding errors, which are relative to `scale`."""
        noise = self._mp.ldexp(scale, -3 * self._mp.prec // 4)
        if isinstance(value, self._mp.mpc):
            if abs(value.imag) <= noise:
                value = value.real
            elif abs(value.real) <= noise:
                return self._mp.mpc(0, value.imag)
            else:
                return value
        return Fraction(0) if abs(value) <= noise else value

    def _sum(self, values: list[Value]) -> Value:
        if all(isinstance(value, Fraction) for value in values):
            return sum(values, Fraction(0))
        terms = self._inexact(values)
        return self._clean(self._mp.fsum(terms), max(map(abs, terms)))

    def _product(self, values: list[Value]) -> Value:
        if 0 in values:
            return Fraction(0)
        exact = Fraction(1)
        inexact = self._mp.mpf(1)
        for value in values:
            if isinstance(value, Fraction):
                exact *= value
                self._checked(exact)
            else:
                inexact *= value
                self._checked(inexact)
        if all(isinstance(value, Fraction) for value in values):
            return exact
        product = inexact * self._inexact([exact])[0]
        return self._clean(product, abs(product))

    def _quotient(self, values: list[Value]) -> Value:
        over, under = values
        if under == 0:
            raise NoValue
        if isinstance(over, Fraction) and isinstance(under, Fraction):
            return over / under
        over, under = self._inexact(values)
        quotient = over / under
        return self._clean(quotient, abs(quotient))

    def _power(self, values: list[Value]) -> Value:
        base, exponent = values
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            return self._integer_power(base, int(exponent))
        if base == 0:
            if is_complex(exponent) or exponent < 0:
                raise NoValue
            return Fraction(0)
        if not is_complex(base) and base < 0:
            if self._real:
                raise OutOfDomain
            if isinstance(exponent, Fraction) and exponent.denominator != 2:
                raise Undecidable  # (-8)^{1/3}: -2, or its principal value
        if isinstance(base, Fraction) and isinstance(exponent, Fraction) and base > 0 and exponent.denominator <= 12:
            over, under = (_integer_root(part, exponent.denominator) for part in (base.numerator, base.denominator))
            if over is not None and under is not None:
                return self._integer_power(Fraction(over, under), exponent.numerator)
        base, exponent = self._inexact(values)
        self._check_exponent(exponent, base)
        power = self._mp.power(base, exponent)
        return self._clean(power, abs(power))

    def _integer_power(self, base: Value, exponent: int) -> Value:
        if base == 0 and exponent <= 0:
            raise NoValue
        if isinstance(base, Fraction):
            if abs(base) == 1:
                return base if exponent % 2 else Fraction(1)
            if base and abs(exponent) * max(base.numerator.bit_length(), base.denominator.bit_length()) > _MAX_BITS:
                raise TooComplex
            return base**exponent
        if abs(exponent) > _MAX_MAGNITUDE:
            raise TooComplex
        self._check_exponent(self._mp.mpf(exponent), base)
        power = base**exponent
        return self._clean(power, abs(power))

    def _check_exponent(self, exponent: Value, base: Value) -> None:
        if abs(exponent) * (abs(int(self._mp.mag(base))) + 1) > 2 * _MAX_MAGNITUDE:
            raise TooComplex

    def _exp(self, values: list[Value]) -> Value:
        (exponent,) = self._inexact(values)
        if abs(exponent) > _MAX_MAGNITUDE // 2:
            raise TooComplex
        power = self._mp.exp(exponent)
        return self._clean(power, abs(power))

    def _root(self, values: list[Value]) -> Value:
        base, index = values if len(values) == 2 else (values[0], Fraction(2))
        if not isinstance(index, Fraction) or index.denominator != 1 or not 1 <= index <= 1000:
            raise TooComplex
        if is_complex(base) or base >= 0:
            return self._power([base, 1 / index])
        if index % 2:
            return -self._power([-base, 1 / index])
        if self._real:
            raise OutOfDomain
        if index != 2:
            raise Undecidable
        return self._mp.mpc(0, 1) * self._inexact([self._power([-base, 1 / index])])[0]

    def _log(self, values: list[Value]) -> Value:
        if len(values) == 2:
            return self._quotient([self._log(values[:1]), self._log(values[1:])])
        (argument,) = values
        if argument == 0:
            raise NoValue
        if not is_complex(argument) and argument < 0 and self._real:
            raise OutOfDomain
        return self._clean(self._mp.log(*self._inexact([argument])), 1)

    def _floor(self, values: list[Value]) -> Value:
        (value,) = values
        if is_complex(value):
            raise NoValue
        if isinstance(value, Fraction):
            return Fraction(math.floor(value))
        nearest = self._mp.nint(value)  # an integer with a rounding error is that integer
        is_integer = abs(value - nearest) < self._mp.ldexp(1, -self._mp.prec // 2)
        return Fraction(int(nearest if is_integer else self._mp.floor(value)))

    def _factorial(self, values: list[Value]) -> Value:
        number = self._integer(values[0])
        if number < 0:
            raise NoValue
        if number > _MAX_INTEGER:
            raise TooComplex
        self._budget.spend(number)
        return Fraction(math.factorial(number))

    def _binomial(self, values: list[Value]) -> Value:
        above, below = values[0], self._integer(values[1])
        if not isinstance(above, Fraction) or not 0 <= below <= _MAX_INTEGER:
            raise TooComplex
        self._budget.spend(4 * below)
        product = Fraction(1)
        for step in range(below):
            product *= (above - step) / (step + 1)
            self._checked(product)
        return product

    def _integer(self, value: Value) -> int:
        if isinstance(value, Fraction) and value.denominator == 1:
            return int(value)
        raise OutOfDomain if self._real else NoValue

    def _extreme(self, values: list[Value], choose: Callable[..., Value]) -> Value:
        if any(map(is_complex, values)):
            raise NoValue
        return choose(values, key=lambda value: self._inexact([value])[0])

    def _integers(self, values: list[Value], combine: Callable[..., int]) -> Value:
        return Fraction(combine(*map(self._integer, values)))

    def _trigonometric(self, name: str, values: list[Value]) -> Value:
        """Sine, cosine, the functions made of them, and by mpmath the inverse and hyperbolic ones."""
        (angle,) = self._inexact(values)
        if abs(angle) > (1 << 64):
            raise TooComplex
        if name in ("tan", "cot", "sec", "csc"):
            over, under = _QUOTIENTS[name]
            above = self._trigonometric(over, [angle]) if over else Fraction(1)
            return self._quotient([above, self._trigonometric(under, [angle])])
        if name in ("arcsin", "arccos", "arccosh") and not is_complex(angle) and abs(angle) > 1:
            raise OutOfDomain if self._real else Undecidable
        if name in _RECIPROCAL:
            if angle == 0:
                raise Undecidable  # conventions differ
            return self._trigonometric(_RECIPROCAL[name], [1 / angle])
        if name.endswith("h") and abs(angle) > _MAX_MAGNITUDE // 2:
            raise TooComplex
        value = getattr(self._mp, name.replace("arc", "a"))(angle)
        return self._clean(value, min(1, abs(angle)) if name not in ("cos", "cosh") else 1)


_QUOTIENTS = {"tan": ("sin", "cos"), "cot": ("cos", "sin"), "sec": ("", "cos"), "csc": ("", "sin")}
_RECIPROCAL = {"arcsec": "arccos", "arccsc": "arcsin"}
_CHEAP = frozenset(("+", "*", "/", "neg", "^", "abs", "floor", "ceil", "!", "binom", "max", "min", "gcd", "lcm"))
_OPERATIONS: dict[str, Callable[[Evaluator, list[Value]], Value]] = {
    "+": Evaluator._sum,
    "*": Evaluator._product,
    "/": Evaluator._quotient,
    "^": Evaluator._power,
    "neg": lambda _, values: -values[0],
    "abs": lambda _, values: abs(values[0]),
    "sqrt": Evaluator._root,
    "root": Evaluator._root,
    "exp": Evaluator._exp,
    "cis": lambda evaluator, values: Evaluator._exp(evaluator, [values[0] * evaluator._mp.mpc(0, 1)]),
    "ln": Evaluator._log,
    "log": Evaluator._log,
    "lg": lambda evaluator, values: Evaluator._log(evaluator, [*values, Fraction(10)]),
    "floor": Evaluator._floor,
    "ceil": lambda evaluator, values: -Evaluator._floor(evaluator, [-values[0]]),
    "!": Evaluator._factorial,
    "binom": Evaluator._binomial,
    "max": lambda evaluator, values: Evaluator._extreme(evaluator, values, max),
    "min": lambda evaluator, values: Evaluator._extreme(evaluator, values, min),
    "gcd": lambda evaluator, values: Evaluator._integers(evaluator, values, math.gcd),
    "lcm": lambda evaluator, values: Evaluator._integers(evaluator, values, math.lcm),
    **{
        name: lambda evaluator, values, name=name: Evaluator._trigonometric(evaluator, name, values)
        for name in (
            *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arcsec", "arccsc"),
            *("sinh", "cosh", "tanh", "coth", "sech", "csch"),
        )
    },
}


def is_complex(value: Value) -> bool:
    """Return whether a value is complex."""
    return isinstance(value, _context().mpc)


def _integer_root(value: int, index: int) -> int | None:
    """Return the root of a positive integer if it is an integer, else None."""
    if index == 2:
        root = math.isqrt(value)
    else:
        root = round(value ** (1 / index)) if value < 1 << 50 else 1 << (value.bit_length() // index + 1)
        while value >= 1 << 50:  # Newton from above
            closer = ((index - 1) * root + value // root ** (index - 1)) // index
            if closer >= root:
                break
            root = closer
    return root if root**index == value else None
