r"""Parse LaTeX expressions such as `\frac{1}{2} n(n+1)` into a syntax tree. Nothing is evaluated.

A recursive descent parser for texts from `normalize`. It knows numbers, variables, the four operations, powers, roots,
factorials, binomials, absolute values and elementary functions. For everything else the result is None, because a wrong
tree would be worse than none.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial

from priml.graders.math.ast import Apply, Expression, Letter, Number

FUNCTIONS = frozenset(
    re.findall(
        r"\S+",
        "arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch sin cos tan cot sec csc ln lg log exp "
        "cis",
    )
)
_OF_SEVERAL = frozenset(("max", "min", "gcd", "lcm"))
_INVERSE = {name.removeprefix("arc"): name for name in FUNCTIONS if name.startswith("arc")}
_GREEK = frozenset(
    re.findall(
        r"\S+",
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma "
        "tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar infty",
    )
)
_ACCENTS = frozenset(("bar", "overline", "vec", "overrightarrow", "hat", "widehat", "tilde", "dot", "ddot"))
_APPLIED = frozenset("fgh")
"""Letters that name a function when a bracket follows. It is unknown, so such a text is not parsed."""

_MAX_DEPTH = 30
_MAX_POSTFIX = 4
_NUMERAL = (
    r"(?<![_^])[0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?![0-9])(?:\.[0-9]+)?"  # x^2 100 is no 2100
    r"|[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
)
_TOKEN = re.compile(
    rf"\s*(?:({_NUMERAL})(?:[eE]([+-]?[0-9]{{1,3}})(?![0-9A-Za-z.]))?|(\\[A-Za-z]+|\\[{{}}])|(.))", re.DOTALL
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{4}")
_DIGITS = frozenset("0123456789")
_DEGREE = r"\text{degree}"


class _ParseError(Exception):
    """The text is not an expression that this parser knows."""


@lru_cache(maxsize=8192)
def parse(text: str) -> Expression | None:
    """Return the expression of a normalized text; None if it is not one, or is ambiguous."""
    if _WORD.search(_COMMAND.sub("", text.replace(_DEGREE, ""))):
        return None  # words, not a product of letters
    try:
        parser = _Parser(text)
        expression = parser.sum()
        return expression if parser.at_end else None
    except _ParseError:
        return None


_PREFIXES = frozenset(("\\sqrt", "\\frac", "\\binom", "\\lfloor", "\\lceil"))
_OPENING = {"(": ")", "[": "]", "{": "}"}
_SIGNS = {"+": "+", "-": "neg", "\\pm": "pm", "\\mp": "mp"}


class _Parser:
    """One pass over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0
        self._bars = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._tokens)

    def sum(self) -> Expression:
        terms = [self._signed(self._product)]
        while self._peek() in _SIGNS:
            terms.append(self._signed(self._product))
        return terms[0] if len(terms) == 1 else Apply("+", tuple(terms))

    def _signed(self, read: Callable[[], Expression]) -> Expression:
        """Return what `read` returns, with the sign before it, if there is one."""
        sign = _SIGNS.get(self._peek())
        if sign is None:
            return read()
        self._next()
        value = self._signed(read) if sign == "+" and self._peek() == "-" else read()  # 14 + -1
        return value if sign == "+" else Apply(sign, (value,))

    def _product(self) -> Expression:
        """Factors side by side or with signs between; a slash divides by one factor only: 1/2x is (1/2)x."""
        above, below = [self._factor()], list[Expression]()
        while True:
            token = self._peek()
            if token in ("*", "/"):
                self._next()
                (above if token == "*" else below).append(self._signed(self._factor))
            elif self._starts_factor(token):
                above.append(self._beside())
            else:
                over = _product(above)
                return Apply("/", (over, _product(below))) if below else over

    def _beside(self) -> Expression:
        """A factor without a sign before it: a number only after a bracket or factorial, or as the base of a power.

        `2 3` and `x2` have no meaning, but (x+1)2 and x 2^{x} are products.
        """
        before = self._tokens[self._at - 1]
        is_power = self._peek(1) == "^" and not _is_decimal(before)
        if _is_decimal(self._peek()) and before not in (")", "]", "!") and not is_power:
            raise _ParseError
        return self._factor()

    def _starts_factor(self, token: str) -> bool:
        if token == "|":
            return not self._bars
        return (
            token in _OPENING
            or _is_decimal(token)
            or (len(token) == 1 and token.isascii() and token.isalpha())
            or (token[:1] == "\\" and (token in _PREFIXES or token[1:] in _KNOWN or token[1:] in _ACCENTS))
        )

    def _factor(self) -> Expression:
        return self._function() if _names_function(self._peek()) else self._postfix(self._atom())

    def _postfix(self, value: Expression) -> Expression:
        for _ in range(_MAX_POSTFIX):
            match self._peek():
                case "^":
                    self._next()
                    value = Apply("^", (value, self._script()))
                    if self._peek() in ("^", "!"):
                        raise _ParseError  # x^2^3, 2^3!
                case "!":
                    self._next()
                    if self._peek() == "!":
                        raise _ParseError  # a double factorial, or a factorial of one
                    value = Apply("!", (value,))
                case "%":
                    self._next()
                    value = Apply("/", (value, Number(Fraction(100))))
                case token if token == _DEGREE:
                    self._next()
                    value = Apply("*", (value, Apply("/", (Letter("\\pi"), Number(Fraction(180))))))
                case _:
                    return value
        raise _ParseError

    def _script(self) -> Expression:
        """An exponent or a base: a group, or one token with its sign."""
        return self._signed(partial(self._atom, mixed=False))

    def _atom(self, *, mixed: bool = True) -> Expression:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _ParseError
        value = self._shallow_atom(mixed)
        self._depth -= 1
        return value

    def _shallow_atom(self, mixed: bool) -> Expression:
        token = self._next()
        if token in _OPENING:
            return self._until(_OPENING[token])
        if _is_decimal(token):
            value = Number(_decimal(token))
            return self._with_fraction(value) if mixed else value
        match token:
            case "|":
                self._bars += 1
                value = self.sum()
                self._expect("|")
                self._bars -= 1
                return Apply("abs", (value,))
            case "\\frac":
                return Apply("/", (self._argument(), self._argument()))
            case "\\binom":
                return Apply("binom", (self._argument(), self._argument()))
            case "\\sqrt":
                if self._peek() == "[":
                    self._next()
                    index = self._until("]")
                    return Apply("root", (self._argument(), index))
                return Apply("sqrt", (self._argument(whole_number=True),))
            case "\\lfloor" | "\\lceil":
                value = self._until("\\r" + token[2:])
                return Apply(token[2:], (value,))
        return self._letter(token)

    def _with_fraction(self, whole: Number) -> Number:
        r"""The mixed number 2\frac{1}{2} or `2 1/2` if a fraction of two integers follows; otherwise `whole`."""
        start = self._at
        if self._peek() == "\\frac":
            self._next()
            over, under = self._argument(), self._argument()
        elif _is_decimal(self._peek()) and self._peek(1) == "/" and _is_decimal(self._peek(2)):
            over, under = Number(_decimal(self._next())), Number(_decimal(self._tokens[self._at + 1]))
            self._at += 2
        else:
            return whole
        if isinstance(over, Number) and isinstance(under, Number):
            parts = (whole.value, over.value, under.value)
            if any(part.denominator != 1 for part in parts) or not 0 <= over.value < under.value:
                raise _ParseError  # 2\frac{5}{3} is a product, or a slip
            return Number(whole.value + over.value / under.value)
        self._at = start
        return whole

    def _letter(self, token: str) -> Expression:
        if token == "\\text" and self._tokens[self._at : self._at + 3] in (["{", "i", "}"], ["{", "e", "}"]):
            self._at += 3
            return Letter(self._tokens[self._at - 2])
        if token[1:] in _ACCENTS:
            return Letter(token + self._plain_group())
        if not (len(token) == 1 and token.isascii() and token.isalpha()) and token[1:] not in _GREEK:
            raise _ParseError
        name = token
        if self._peek() == "_":
            self._next()
            name = f"{token}_{self._plain_group()}"
        while self._peek() == "'":
            name += self._next()
        if self._peek() == "(":
            takes_number = len(token) == 1 and _is_decimal(self._peek(1)) and self._peek(2) == ")"
            if token in _APPLIED or name.endswith("'") or takes_number:
                raise _ParseError  # the argument of a function: f(x), y'(t), I(0)
        return Letter(name)

    def _plain_group(self) -> str:
        """The text under a subscript or an accent."""
        token = self._next()
        if token != "{":
            return token
        parts: list[str] = []
        while (token := self._next()) != "}":
            if token == "{":
                raise _ParseError
            parts.append(token)
        return "".join(parts)

    def _function(self) -> Expression:
        name = self._next()[1:]
        if name in _OF_SEVERAL:
            self._expect("(")
            return Apply(name, self._several())
        base: Expression | None = None
        power: Expression | None = None
        for _ in range(2):
            if self._peek() == "_" and name == "log" and base is None:
                self._next()
                base = self._script()
            elif self._peek() == "^" and power is None:
                self._next()
                power = self._script()
        if power == Apply("neg", (Number(Fraction(1)),)):
            if name not in _INVERSE:
                raise _ParseError
            name, power = _INVERSE[name], None
        argument = self._function_argument()
        value = Apply(name, (argument,)) if base is None else Apply("log", (argument, base))
        return value if power is None else Apply("^", (value, power))

    def _function_argument(self) -> Expression:
        r"""`\sin(x)y` takes the bracket alone, `\sin 2x` the product up to the next operator or function."""
        token = self._peek()
        if token in ("(", "{", "[", "|"):
            value = self._atom()
            if self._peek() in ("^", "!"):
                if token == "{":
                    return self._postfix(value)
                raise _ParseError  # \sin(x)^2
            if token == "{" and self._peek() == "(":
                raise _ParseError
            return value
        if _names_function(token):
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise _ParseError
            return self._function()
        factors = [self._signed(self._factor)]
        while self._starts_factor(token := self._peek()) and not _names_function(token) and token not in ("(", "|"):
            factors.append(self._beside())
        if self._peek() == "(":
            raise _ParseError  # \sin x (y+1)
        return _product(factors)

    def _several(self) -> tuple[Expression, ...]:
        values = [self.sum()]
        while self._peek() in (",", ";"):
            self._next()
            values.append(self.sum())
        self._expect(")")
        return tuple(values)

    def _argument(self, *, whole_number: bool = False) -> Expression:
        r"""The argument of \frac, \sqrt or \binom: a group, or a single character as in \frac12."""
        token = self._peek()
        if token == "{":
            return self._atom()
        if _is_decimal(token):
            self._next()
            if not whole_number and len(token) > 1:
                raise _ParseError
            return Number(_decimal(token))
        if token in ("(", "["):
            raise _ParseError
        return self._atom()

    def _until(self, closing: str) -> Expression:
        bars, self._bars = self._bars, 0
        value = self.sum()
        self._bars = bars
        self._expect(closing)
        return value

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        if not token:
            raise _ParseError
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise _ParseError


_KNOWN = _GREEK | FUNCTIONS | _OF_SEVERAL
_RUN_ON = re.compile(rf"(\\(?:{'|'.join(sorted(_KNOWN))}))([a-z])")


def _product(factors: list[Expression]) -> Expression:
    return factors[0] if len(factors) == 1 else Apply("*", tuple(factors))


def _names_function(token: str) -> bool:
    return token[:1] == "\\" and (token[1:] in FUNCTIONS or token[1:] in _OF_SEVERAL)


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    text = text.replace(_DEGREE, "°")
    for found in _TOKEN.finditer(text.strip()):
        number, exponent, command, character = found.groups()
        if number is not None:
            tokens.append(number + (f"e{exponent}" if exponent else ""))
        elif character == "°":
            tokens.append(_DEGREE)
        elif command is not None and (run_on := _RUN_ON.fullmatch(command)) and command[1:] not in _KNOWN:
            tokens += run_on.groups()  # \sinx, \pir: the space was lost
        else:
            tokens.append(command or character)
    return tokens


def _is_decimal(token: str) -> bool:
    return token[:1] in _DIGITS or (token[:1] == "." and len(token) > 1)


def _decimal(token: str) -> Fraction:
    digits, _, exponent = token.partition("e")
    value = Fraction(digits.replace(",", "").replace(" ", "").removesuffix("."))
    return value * Fraction(10) ** int(exponent) if exponent else value
