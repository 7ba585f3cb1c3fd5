"""Parse plain numbers exactly: integers, decimals, fractions, mixed numbers, powers of ten."""

import re
from fractions import Fraction

from priml.graders.math.normalize import closing

_MAX_EXPONENT = 60
_MAX_NUMBER = 100
_NUMERAL = r"(?:[0-9]{1,3}(?:[ ,][0-9]{3})+(?![0-9,])(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_DECIMAL = re.compile(rf"[+-]?{_NUMERAL}")
_SCIENTIFIC = re.compile(rf"([+-]?)({_NUMERAL}(?= ?[\\*eE])|(?=10\^))(?: ?\*? ?10\^|[eE])\{{?([+-]?[0-9]{{1,3}})\}}?")
_FRACTION = re.compile(
    rf"([+-]?)(?:([0-9]+)(?=\\frac| ))? ?(?:\\frac\{{([+-]?{_NUMERAL})\}}\{{([+-]?{_NUMERAL})\}}"
    rf"|\(?([+-]?{_NUMERAL})\)?/\(?([+-]?{_NUMERAL})\)?)"
)
_REPEATING = re.compile(r"([+-]?)([0-9]*)\.([0-9]*)\\(?:overline|bar)\{([0-9]{1,12})\}")


def parse_rational(text: str) -> Fraction | None:
    """Return the exact value of an integer, decimal, fraction, mixed number or power of ten; None for another text."""
    if not text or len(text) > _MAX_NUMBER:
        return None
    while text[:1] == "(" and text[-1:] == ")" and "," not in text and closing(text) == len(text) - 1:
        text = text[1:-1]
    if _DECIMAL.fullmatch(text):
        return _decimal(text)
    if found := _FRACTION.fullmatch(text):
        sign, whole, *parts = found.groups()
        over, under = (_decimal(part) for part in parts if part is not None)
        if under == 0 or (whole and not 0 <= over < under):  # 2\frac{5}{3} is a product, or a slip
            return None
        value = over / under + (int(whole) if whole else 0)
        return -value if sign == "-" else value
    if found := _SCIENTIFIC.fullmatch(text):
        sign, digits, exponent = found.groups()
        if abs(int(exponent)) > _MAX_EXPONENT:
            return None
        value = (_decimal(digits) if digits else 1) * Fraction(10) ** int(exponent)
        return -value if sign == "-" else value
    if found := _REPEATING.fullmatch(text):
        sign, whole, fixed, period = found.groups()
        start = Fraction(int((whole + fixed) or "0"), 10 ** len(fixed))
        value = start + Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
        return -value if sign == "-" else value
    return None


def _decimal(numeral: str) -> Fraction:
    return Fraction(numeral.replace(",", "").replace(" ", "").removesuffix("."))
