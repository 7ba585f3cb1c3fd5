"""Computing with expressions: exact where possible, otherwise to many digits, and always in bounded time.

Rational arithmetic stays exact; roots, logarithms and the like are computed with mpmath to at least 256 bits, more when
the numbers involved differ widely in size or were written with many digits. Every step is counted against a budget and
bounded in size before it is taken, so no expression can hang or fill memory.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from mpmath import MPContext

from priml.graders.math.ast import Apply, Expression, Letter, Number

_PRECISION = 256  # bits
_SPREAD = 64
"""Factors of two between the largest and the smallest number in a computation before more precision is called for."""
_MAX_SPREAD = 1000
_MAX_BITS = 16_000
"""Of an exact number: some 4800 digits."""
_MAX_MAGNITUDE = 4000
"""Of an inexact number, as a power of two."""
_MAX_INTEGER = 1000
"""Largest argument of a factorial."""


class TooComplex(Exception):
    """An expression that is too much work: numbers too large, too many digits to tell apart, too many steps."""


class Unsure(Exception):
    """A value on which conventions differ."""


class Undefined(Exception):
    """No value: a division by zero, the logarithm of zero, the factorial of a half."""


class Outside(Exception):
    """Letters took values for which the expression is not real; other values may do."""


_local = threading.local()


def _context() -> Any:
    """mpmath keeps its precision in the context, so every thread has its own."""
    if not hasattr(_local, "context"):
        _local.context = MPContext()
    return _local.context


Value = Any  # Fraction, or mpf or mpc of this thread's context
Point = Mapping[str, Fraction]


class Budget:
    """How much work may still be done, in multiplications of 256-bit numbers: some microseconds each."""

    def __init__(self, left: int = 40_000) -> None:
        self._left = left

    def pay(self, cost: int) -> None:
        """Take from the budget.

        Raises:
            TooComplex: there is not enough left.
        """
        self._left -= cost
        if self._left < 0:
            raise TooComplex


class Arithmetic:
    """Evaluation of any number of expressions."""

    def __init__(self, budget: Budget, *, real: bool) -> None:
        """`real`: roots and logarithms of negative numbers are outside the domain, not complex."""
        self._budget = budget
        self._real = real
        self._mp = _context()
        self._mp.prec = _PRECISION
        self._low, self._high = 0, 0
        self._digits = 0  # of the longest number that was written out, in bits

    @property
    def precision(self) -> int:
        """Bits of the values computed last."""
        return self._mp.prec

    def agree(self, ours: Value, theirs: Value, precision: int) -> bool:
        """Whether two values computed to `precision` bits are equal, to half of them; rational ones exactly."""
        if isinstance(ours, Fraction) and isinstance(theirs, Fraction):
            return ours == theirs
        ours, theirs = self._mp.convert(ours), self._mp.convert(theirs)
        distance = abs(ours - theirs)
        return bool(distance <= self._mp.ldexp(max(abs(ours), abs(theirs)), -precision // 2))

    def close(self, value: Value, gold: Value, tolerance: float) -> bool:
        """Whether a value is within a relative tolerance of the gold one."""
        value, gold = self._mp.convert(value), self._mp.convert(gold)
        return bool(abs(value - gold) <= tolerance * abs(gold))

    def values(self, expressions: Sequence[Expression], point: Point, log_base: int | None = None) -> list[Value]:
        """The values at a point, all at one precision that fits the sizes of the numbers on the way.

        A logarithm without a base has `log_base`, None: the natural one.

        Raises:
            TooComplex: the budget is spent, or a number is too large.
            Unsure: a value on which conventions differ.
            Undefined: a division by zero and the like.
            Outside: not real at this point.
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
                return self._noted(value)
            case Letter("\\pi"):
                return +self._mp.pi
            case Letter("e"):
                return +self._mp.e
            case Letter("i"):
                return self._mp.mpc(0, 1)
            case Letter(name):
                if name not in point:
                    raise Unsure
                return point[name]
            case Apply("^", (Letter("e"), exponent)):
                return self.apply("exp", [self._evaluate(exponent, point, log_base)])
            case Apply("log", (argument,)) if log_base is not None:
                return self.apply("log", [self._evaluate(argument, point, log_base), Fraction(log_base)])
            case Apply(name, arguments):
                return self.apply(name, [self._evaluate(argument, point, log_base) for argument in arguments])

    def apply(self, name: str, values: list[Value]) -> Value:
        """One operation, paid for and with its result checked in size."""
        operation = _OPERATIONS.get(name)
        if operation is None:
            raise Unsure
        inexact = not all(isinstance(value, Fraction) for value in values)
        cost = (self._mp.prec // 128) ** 2 if inexact or name not in _CHEAP else 2
        self._budget.pay(cost * len(values))
        return self._noted(operation(self, values))

    def _noted(self, value: Value) -> Value:
        if isinstance(value, int):
            value = Fraction(value)
        if isinstance(value, Fraction):
            above, below = value.numerator.bit_length(), value.denominator.bit_length()
            if above + below > _MAX_BITS:
                raise TooComplex
            self._budget.pay((above + below) >> 9)
            magnitude = above - below
        else:
            if not self._mp.isfinite(value):
                raise Undefined
            magnitude = int(self._mp.mag(value)) if value else 0
            if abs(magnitude) > _MAX_MAGNITUDE:
                raise TooComplex
        if value:
            self._low, self._high = min(self._low, magnitude), max(self._high, magnitude)
        return value

    # Arithmetic. Fractions stay fractions; what is zero or real but for rounding is made so.

    def _inexact(self, values: list[Value]) -> list[Value]:
        return [self._mp.mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else v for v in values]

    def _clean(self, value: Value, scale: Value) -> Value:
        """Without rounding dust next to numbers of size `scale`."""
        dust = self._mp.ldexp(scale, -3 * self._mp.prec // 4)
        if isinstance(value, self._mp.mpc):
            if abs(value.imag) <= dust:
                value = value.real
            elif abs(value.real) <= dust:
                return self._mp.mpc(0, value.imag)
            else:
                return value
        return Fraction(0) if abs(value) <= dust else value

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
                self._noted(exact)
            else:
                inexact *= value
                self._noted(inexact)
        if all(isinstance(value, Fraction) for value in values):
            return exact
        product = inexact * self._inexact([exact])[0]
        return self._clean(product, abs(product))

    def _quotient(self, values: list[Value]) -> Value:
        over, under = values
        if under == 0:
            raise Undefined
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
                raise Undefined
            return Fraction(0)
        if not is_complex(base) and base < 0:
            if self._real:
                raise Outside
            if isinstance(exponent, Fraction) and exponent.denominator != 2:
                raise Unsure  # (-8)^{1/3}: -2, or its principal value
        if isinstance(base, Fraction) and isinstance(exponent, Fraction) and base > 0 and exponent.denominator <= 12:
            root = _exact_root(base, exponent.denominator)
            if root is not None:
                return self._integer_power(root, exponent.numerator)
        base, exponent = self._inexact(values)
        self._check_exponent(exponent, base)
        power = self._mp.power(base, exponent)
        return self._clean(power, abs(power))

    def _integer_power(self, base: Value, exponent: int) -> Value:
        if base == 0 and exponent <= 0:
            raise Undefined
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
            return self._negative([self._power([-base, 1 / index])])
        if self._real:
            raise Outside
        if index != 2:
            raise Unsure
        return self._mp.mpc(0, 1) * self._inexact([self._power([-base, 1 / index])])[0]

    def _log(self, values: list[Value]) -> Value:
        if len(values) == 2:
            return self._quotient([self._log(values[:1]), self._log(values[1:])])
        (argument,) = values
        if argument == 0:
            raise Undefined
        if not is_complex(argument) and argument < 0 and self._real:
            raise Outside
        return self._clean(self._mp.log(*self._inexact([argument])), 1)

    def _negative(self, values: list[Value]) -> Value:
        return -values[0]

    def _absolute(self, values: list[Value]) -> Value:
        return abs(values[0])

    def _floor(self, values: list[Value]) -> Value:
        (value,) = values
        if is_complex(value):
            raise Undefined
        if isinstance(value, Fraction):
            return Fraction(math.floor(value))
        nearest = self._mp.nint(value)  # of what is an integer but for rounding, that integer
        is_integer = abs(value - nearest) < self._mp.ldexp(1, -self._mp.prec // 2)
        return Fraction(int(nearest if is_integer else self._mp.floor(value)))

    def _ceiling(self, values: list[Value]) -> Value:
        return -self._floor([-values[0]])

    def _factorial(self, values: list[Value]) -> Value:
        number = self._integer(values[0])
        if number < 0:
            raise Undefined
        if number > _MAX_INTEGER:
            raise TooComplex
        self._budget.pay(number)
        return Fraction(math.factorial(number))

    def _binomial(self, values: list[Value]) -> Value:
        above, below = values[0], self._integer(values[1])
        if not isinstance(above, Fraction) or not 0 <= below <= _MAX_INTEGER:
            raise TooComplex
        self._budget.pay(4 * below)
        product = Fraction(1)
        for step in range(below):
            product *= (above - step) / (step + 1)
            self._noted(product)
        return product

    def _integer(self, value: Value) -> int:
        if isinstance(value, Fraction) and value.denominator == 1:
            return int(value)
        raise Outside if self._real else Undefined

    def _extreme(self, values: list[Value], choose: Any) -> Value:
        if any(map(is_complex, values)):
            raise Undefined
        return choose(values, key=lambda value: self._inexact([value])[0])

    def _integers(self, values: list[Value], combine: Any) -> Value:
        return Fraction(combine(*map(self._integer, values)))

    def _trigonometric(self, name: str, values: list[Value]) -> Value:
        """Sine, cosine and the rest by them; inverses and hyperbolic ones by mpmath."""
        (angle,) = self._inexact(values)
        if abs(angle) > (1 << 64):
            raise TooComplex
        if name in ("tan", "cot", "sec", "csc"):
            over, under = _QUOTIENTS[name]
            above = self._trigonometric(over, [angle]) if over else Fraction(1)
            return self._quotient([above, self._trigonometric(under, [angle])])
        if name in ("arcsin", "arccos", "arccosh") and not is_complex(angle) and abs(angle) > 1:
            raise Outside if self._real else Unsure
        if name in _RECIPROCAL:
            if angle == 0:
                raise Unsure  # conventions differ
            return self._trigonometric(_RECIPROCAL[name], [1 / angle])
        if name.endswith("h") and abs(angle) > _MAX_MAGNITUDE // 2:
            raise TooComplex
        value = getattr(self._mp, name.replace("arc", "a"))(angle)
        return self._clean(value, min(1, abs(angle)) if name not in ("cos", "cosh") else 1)


_QUOTIENTS = {"tan": ("sin", "cos"), "cot": ("cos", "sin"), "sec": ("", "cos"), "csc": ("", "sin")}
_RECIPROCAL = {"arcsec": "arccos", "arccsc": "arcsin"}
_CHEAP = frozenset(("+", "*", "/", "neg", "^", "abs", "floor", "ceil", "!", "binom", "max", "min", "gcd", "lcm"))
_OPERATIONS: dict[str, Any] = {
    "+": Arithmetic._sum,
    "*": Arithmetic._product,
    "/": Arithmetic._quotient,
    "^": Arithmetic._power,
    "neg": Arithmetic._negative,
    "abs": Arithmetic._absolute,
    "sqrt": Arithmetic._root,
    "root": Arithmetic._root,
    "exp": Arithmetic._exp,
    "ln": Arithmetic._log,
    "log": Arithmetic._log,
    "lg": lambda work, values: Arithmetic._log(work, [*values, Fraction(10)]),
    "floor": Arithmetic._floor,
    "ceil": Arithmetic._ceiling,
    "!": Arithmetic._factorial,
    "binom": Arithmetic._binomial,
    "max": lambda work, values: Arithmetic._extreme(work, values, max),
    "min": lambda work, values: Arithmetic._extreme(work, values, min),
    "gcd": lambda work, values: Arithmetic._integers(work, values, math.gcd),
    "lcm": lambda work, values: Arithmetic._integers(work, values, math.lcm),
    **{
        name: lambda work, values, name=name: Arithmetic._trigonometric(work, name, values)
        for name in (
            *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arcsec", "arccsc"),
            *("sinh", "cosh", "tanh", "coth", "sech", "csch"),
        )
    },
}


def is_complex(value: Value) -> bool:
    """Whether a value is not real."""
    return isinstance(value, _context().mpc)


def _exact_root(value: Fraction, index: int) -> Fraction | None:
    """The root of a positive fraction if it is a fraction."""
    over, under = (_integer_root(part, index) for part in (value.numerator, value.denominator))
    return None if over is None or under is None else Fraction(over, under)


def _integer_root(value: int, index: int) -> int | None:
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
