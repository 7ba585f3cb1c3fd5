r"""Parse an answer: split it at brackets, separators and relation signs, down to single expressions.

What `read` does not know becomes `Unparsed`. Nothing is computed except the order of interval ends.
"""

import re
from fractions import Fraction
from functools import lru_cache
from itertools import product

from priml.graders.math.answer_types import (
    Ambiguous,
    Assignments,
    BasedNumeral,
    Equation,
    Inequality,
    Matrix,
    NamedValue,
    Ordered,
    Quantity,
    RealSet,
    Unordered,
    Unparsed,
    Value,
    Words,
)
from priml.graders.math.ast import Apply, Number, expand_signs, free_symbols
from priml.graders.math.identity import approximate
from priml.graders.math.intervals import (
    INFINITY,
    MINUS_INFINITY,
    REALS,
    as_real_set,
    complement,
    intersection,
    interval,
    points,
    union,
)
from priml.graders.math.normalize import closing
from priml.graders.math.numerals import parse_rational
from priml.graders.math.parser import FUNCTIONS, parse
from priml.graders.math.split import RELATION, split, split_at, split_relations
from priml.graders.math.units import split_unit

_MAX_DEPTH = 6
_LEADING = re.compile(r"^(?:\\(?:approx|therefore|implies|Rightarrow|to|iff)(?![A-Za-z]) ?|[=:~] ?)+")


@lru_cache(maxsize=8192)
def read(text: str) -> Value:
    """Parse a normalized text."""
    return _read(text, 0)


def _read(text: str, depth: int) -> Value:
    text = _LEADING.sub("", text).strip()
    number = parse_rational(text)
    if number is not None and "," not in text:
        return Quantity(Number(number))
    if depth > _MAX_DEPTH:
        return Unparsed(text)
    if not depth and _SENTENCE.search(_TEXT.sub("", text)):
        return Words(text_key(text), is_pure=True)
    depth += 1
    if _MATRIX.fullmatch(text) or ("\\begin" in text and not text.startswith("\\{")):
        return _read_matrix(text, depth)
    if congruent := _CONGRUENCE.fullmatch(text):
        remainder = Ordered("mod", (_read(congruent[2], depth), _read(congruent[3], depth)))
        return NamedValue(congruent[1].strip(), remainder) if congruent[1] else remainder
    if _SET_OPERATION.search(text) and all(map(RELATION.search, split_at(text, _SET_OPERATION)[0])):
        return _read_set_operation(text, depth) or Unparsed(text)
    if found := _read_list(text, depth):
        return found
    value, has_condition, condition = text.partition("\\if ")
    if has_condition:
        return Ordered("if", (_read(value, depth), _read(condition, depth)))
    if found := _read_relation(text, depth):
        return found
    if found := _read_set_operation(text, depth):
        return found
    if found := _read_brackets(text, depth):
        return found
    return read_atom(text)


# Lists


def _read_list(text: str, depth: int) -> Value | None:
    for separator in ("\\or", "\\lor", "\\land", ";", ","):
        parts = split(text, separator)
        if len(parts) == 1:
            continue
        if separator in ("\\lor", "\\land") and not any(map(_VALUE.search, parts)):
            return Ordered(separator, tuple(_read(part, depth) for part in sorted(part.strip() for part in parts)))
        if separator == "," and not _is_comma_list(text, parts):
            return None
        return _joined(_complete(parts), separator, depth)
    return None


_VALUE = re.compile(r"[0-9=<>≠]")
"""What a solution has and a proposition has not."""


def _is_comma_list(text: str, parts: tuple[str, ...]) -> bool:
    """Return whether commas separate elements: not in 1,234,567, and not where one name has a list of values."""
    related = [part for part in parts if RELATION.search(part)]
    if related:
        return len(related) > 1
    return not _GROUPED.search(text)


def _complete(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Complete `x≠1, 2` to `x≠1, x≠2`."""
    head, sign, _ = parts[0].partition("≠")
    if not sign:
        return parts
    return (parts[0], *(part if RELATION.search(part) else f"{head}≠{part}" for part in parts[1:]))


def _joined(parts: tuple[str, ...], separator: str, depth: int) -> Value:
    values = tuple(_read(part, depth) for part in parts if part.strip())
    if len(values) == 1:
        return values[0]
    names = [value.name for value in values if isinstance(value, NamedValue)]
    if len(set(names)) <= 1:  # x > 1 and x < 3; of other sets their list
        sets = [inner for inner in map(_without_name, values) if isinstance(inner, RealSet)]
        if values and len(sets) == len(values):
            common = sets[0]
            for other in sets[1:]:
                common = intersection(common, other)
            joined = common if separator not in ("\\or", "\\lor") and common.pieces else union(sets)
            return NamedValue(names[0], joined) if names else joined
    if names and len(names) == len(values) == len(set(names)):
        return Assignments(tuple((v.name, v.value) for v in values if isinstance(v, NamedValue)), in_tuple=False)
    if len(set(names)) == 1 and isinstance(values[0], NamedValue):
        return NamedValue(names[0], Unordered(_flat(tuple(map(_without_name, values))), in_braces=False))
    return Unordered(_flat(values), in_braces=False)


def _without_name(value: Value) -> Value:
    return value.value if isinstance(value, NamedValue) else value


def _flat(values: tuple[Value, ...]) -> tuple[Value, ...]:
    r"""Put the values of a \pm into the list that contains it."""
    flat: list[Value] = []
    for value in values:
        flat += value.items if isinstance(value, Unordered) and not value.in_braces else (value,)
    return tuple(flat)


# Equations and inequalities

_SIMPLE_NAME = re.compile(r"[A-Za-z\\ +*|()\[\]{},;.':^/-]+")
_IN_NAMES = re.compile(r"_\{?[^{}=]*\}?|(?<=[A-Za-z])\([^()]*\)|\^\{?-1\}?|\^\{\\prime\}|\\text\{[^{}]*\}")
_LETTER = r"(?:[A-Za-z]|\\(?!text|pi(?![a-z]))[A-Za-z]+(?: ?[A-Z]+|\{[A-Za-z]+\})?)"
_LETTER += r"(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))?'*(?:\^\{?-1\}?)?"
_BARE_NAME = re.compile(
    rf"{_LETTER}(?:\([^()=<>]*(?:\([^()]*\))?[^()=<>]*\))?|[A-Z]{{2,4}}|\|[A-Z]{{2,4}}\||\[[A-Z]{{3,6}}\]|\([^()]*\)"
    r"|\\(?:text|overline|angle|triangle|widehat|vec|overrightarrow)\{[^{}]*\}(?:_\{?[^{}]*\}?)?"
    r"|(?:m ?)?\\(?:angle|triangle) ?[A-Z]{1,4}|[A-Z](?::[A-Z])+|[a-z](?::[a-z])+|\{[a-z]_[a-z]\}"
)


_KNOWN_NAME = re.compile(rf"[ei]$|\\(?:{'|'.join(FUNCTIONS)})(?![A-Za-z])")


def is_bare_name(text: str) -> bool:
    r"""Return whether a side of a relation is nothing but a name: `x`, `f(2)`, `a_1`, `AB`, `\angle ABC`, `(x,y)`."""
    return _BARE_NAME.fullmatch(text) is not None and not _KNOWN_NAME.match(text)


def is_operation(text: str) -> bool:
    """Return whether a side of an equation is a sum, product, integral or limit: the other side is its value."""
    return text.startswith(_OPERATIONS)


_OPERATIONS = tuple(f"\\{name}" for name in ("int", "iint", "iiint", "oint", "sum", "prod", "lim"))


def is_name(text: str) -> bool:
    r"""Return whether the left side of an equation describes the answer: a name, or `a+b`, `\sin A`, `100m+n`.

    A formula in one variable with a number in it does not: 2x = 6 is an equation that is not solved.
    """
    if is_operation(text):
        return True
    if text.count(" ") > 4:
        return False  # a sentence
    expression = parse(text)
    if expression is not None and not free_symbols(expression):
        return False
    rest = _IN_NAMES.sub("x", text)
    if re.search(r"[A-Za-z]", rest) and _SIMPLE_NAME.fullmatch(rest):
        described = parse(rest)
        return described is None or bool(free_symbols(described))  # not a constant
    return expression is not None and len(free_symbols(expression)) > 1


def _read_relation(text: str, depth: int) -> Value | None:
    parts, signs = split_relations(text)
    if not signs:
        return None
    if any(not part for part in parts):
        return Unparsed(text)
    kinds = set(signs)
    if kinds <= {"=", "\\approx"}:
        return _read_equation(parts, signs, depth)
    if signs == ["\\in"]:
        return NamedValue(parts[0], _read(parts[1], depth)) if is_bare_name(parts[0]) else Unparsed(text)
    if signs == ["≠"] and is_bare_name(parts[0]):
        excluded = _read(parts[1], depth)
        pieces = points(excluded.items if isinstance(excluded, Unordered) else (excluded,))
        if pieces is not None:
            return NamedValue(parts[0], complement(union([RealSet(pieces)])))
    if kinds <= {">", ">="}:
        parts, signs = parts[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
    elif not (kinds <= {"<", "<="} or signs == ["≠"]):
        return _read_words(text)
    return _read_inequality(parts, signs, depth)


def _read_equation(parts: list[str], signs: list[str], depth: int) -> Value:
    name = ""
    letters = parts[:-1]
    if len(letters) == len(set(letters)) > 1 and all(
        re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?", side) for side in letters
    ):
        value = _read(parts[-1], depth)
        if isinstance(value, Quantity) and not free_symbols(value.expression):
            return Assignments(tuple((letter, value) for letter in letters), in_tuple=False)
    while len(parts) > 1 and is_name(parts[0]) and not (name and _is_statement(parts[0])):
        name, parts, signs = name or parts[0], parts[1:], signs[1:]
    if not name and len(parts) == 2 and re.fullmatch(r"[A-Za-z]", parts[1]) and parts[1] not in "ei":
        name, parts, signs = parts[1], parts[:1], []
    values = tuple(_read(part, depth) for part in parts)
    if "\\approx" in signs:
        values = _without_copy(values, signs.index("\\approx") + 1)
    value = values[0] if len(values) == 1 else Equation(values)
    if not name:
        return value
    if name[0] == "(" and isinstance(value, Ordered):
        names = split(name[1:-1], ";") if ";" in name else split(name[1:-1], ",")
        if len(names) == len(value.items):
            return Assignments(tuple(zip(names, value.items, strict=True)), in_tuple=True)
    return NamedValue(name, value)


def _is_statement(side: str) -> bool:
    """Return whether a further side of an equation says something, and is not one more name."""
    return re.search("[0-9]", side) is not None or (parse(side) is None and not is_bare_name(side))


def _without_copy(values: tuple[Value, ...], length: int) -> tuple[Value, ...]:
    """Return the sides without what follows the sign of approximation, unless it is no rounded copy of them."""
    at, *copies = (
        approximate(value.expression) if isinstance(value, Quantity) and not value.is_percent else None
        for value in values[length - 1 :]
    )
    is_copy = at is None or all(copy is None or abs(copy - at) <= _ROUNDING * abs(at) for copy in copies)
    return values[:length] if is_copy else values


_ROUNDING = 0.05


def _read_inequality(parts: list[str], signs: list[str], depth: int) -> Value:
    expressions = [parse(part) for part in parts]
    if len(parts) <= 3 and signs != ["≠"]:
        middles = [1] if len(parts) == 3 else [0, 1]
        for at in middles:
            ends = [expression for index, expression in enumerate(expressions) if index != at]
            if is_bare_name(parts[at]) and all(end is not None and not free_symbols(end) - {"\\infty"} for end in ends):
                low = expressions[at - 1] if at else MINUS_INFINITY
                high = expressions[at + 1] if at + 1 < len(parts) else INFINITY
                assert low is not None
                assert high is not None
                found = interval(low, high, at > 0 and signs[at - 1] == "<=", at < len(signs) and signs[at] == "<=")
                if found is not None:
                    return NamedValue(parts[at], found)
    return Inequality(tuple(_read(part, depth) for part in parts), tuple(signs))


# Sets of real numbers

_SET_OPERATION = re.compile(r"\\cup(?![A-Za-z]) ?|\\cap(?![A-Za-z]) ?|\\setminus(?![A-Za-z]) ?|\\backslash ?")


def _read_set_operation(text: str, depth: int) -> Value | None:
    if text == "\\mathbb{R}":
        return REALS
    if text in ("\\emptyset", "\\{\\}"):
        return RealSet(())
    pieces, signs = split_at(text, _SET_OPERATION)
    if not signs and text.startswith("\\mathbb{R}-"):
        pieces, signs = ["\\mathbb{R}", text.removeprefix("\\mathbb{R}-")], ["\\setminus"]
    if not signs:
        return None
    sets = [as_real_set(_without_name(_read(piece, depth))) for piece in pieces]
    if None in sets or len({*signs} - {"\\backslash"}) > 1:
        return Unparsed(text)
    known = [found for found in sets if found is not None]
    if signs[0] == "\\cup":
        return union(known)
    result = known[0]
    for other in known[1:]:
        result = intersection(result, other if signs[0] == "\\cap" else complement(other))
    return result


# Brackets


def _read_brackets(text: str, depth: int) -> Value | None:
    if text.startswith("\\{") and text.endswith("\\}") and closing(text) == len(text) - 1:
        inside = text[2:-2].strip()
        if inside in ("\\emptyset", "\\{\\}"):
            return Words(text, is_pure=True)  # a set that has an element
        for sign in ("|", ":"):
            described, found, condition = inside.partition(sign)
            if found and re.match(r"[A-Za-z](?:\\in(?![A-Za-z])|$)", described.replace(" ", "")):
                value, name = _read(condition, depth), described.partition("\\in")[0].strip()
                is_other = value.name != name if isinstance(value, NamedValue) else name not in condition
                return Words(text, is_pure=True) if is_other else _without_name(value)
        return _either(tuple(Unordered(_flat(items), in_braces=True) for items in _read_items(inside, depth)))
    if text[:1] not in ("(", "[", "]") or text[-1:] not in (")", "]", "["):
        return None
    if text[0] != "]" and text[-1] != "[" and closing(text) != len(text) - 1:
        return None
    brackets, inside = text[0] + text[-1], text[1:-1]
    if len(split(inside, ";")) == len(split(inside, ",")) == 1:
        return _read(inside, depth)
    brackets = {"](": "((", "][": "()", "[[": "[)", "([": "()", "]]": "(]", "))": "()"}.get(brackets, brackets)
    readings = tuple(_with_signs(brackets, items, inside) for items in _read_items(inside, depth))
    number = None if "," in inside else parse_rational(inside)
    if brackets == "()" and number is not None:
        readings += (Quantity(Number(number)),)
    return _either(readings)


def _with_signs(brackets: str, items: tuple[Value, ...], inside: str) -> Value:
    r"""Return the tuple, or for (\pm 1, 2) the tuples that it stands for."""
    choices = [item.items if isinstance(item, Unordered) and not item.in_braces else (item,) for item in items]
    count = max(map(len, choices), default=1)
    if count == 1 or not re.search(r"\\[pm][pm](?![a-z])", inside):
        return Ordered(brackets, items)
    alike = [choice * count if len(choice) == 1 else choice for choice in choices]
    combined = zip(*alike, strict=True) if "\\mp" in inside else product(*choices)
    return Unordered(tuple(Ordered(brackets, combination) for combination in combined), in_braces=False)


def _read_items(inside: str, depth: int) -> list[tuple[Value, ...]]:
    """Return the elements between brackets; twice when a comma may also separate thousands."""
    if ";" in inside and len(parts := split(inside, ";")) > 1:
        return [tuple(_read(part, depth) for part in parts)]
    parts = split(inside, ",")
    listed = tuple(_read(part, depth) for part in parts if part.strip())
    grouped = parse_rational(inside) if len(parts) > 1 else None
    return [listed] if grouped is None else [listed, (Quantity(Number(grouped)),)]


# Matrices

_MATRIX = re.compile(
    r"[(\[]?\\begin\{([pbB]?(?:small)?matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1\}[)\]]?", re.DOTALL
)


def _read_matrix(text: str, depth: int) -> Value:
    head, sign, rest = text.partition("=")
    if sign and "\\begin" not in head and is_name(head):
        value = _read_matrix(rest, depth)
        return value if isinstance(value, Unparsed) else NamedValue(head, value)
    found = _MATRIX.fullmatch(text)
    if found is None or "\\begin" in found[2]:
        return Unparsed(text)
    rows = [row for row in re.split(r"\\cr ?(?:\[[^\[\]]*\])?", found[2]) if row.strip()]
    entries = tuple(tuple(_read(entry, depth) for entry in row.split("&")) for row in rows)
    return Matrix(entries) if len({len(row) for row in entries}) == 1 else Unparsed(text)


# Single values

_CONGRUENCE = re.compile(r"(?:([^=<>]*)\\equiv ?)?([^=<>]+)\\mod\{([^{}]*)\}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{1,2}/[0-9]{1,2}/[0-9]{4}")
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sep(?:t(?:ember)?)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)"
)
_DAY = re.compile(
    rf"({_MONTH})\.?~? ?([0-9]{{1,2}})(?:st|nd|rd|th)?(?:[,;]? ?([0-9]{{4}}))?"
    rf"|([0-9]{{1,2}})(?:st|nd|rd|th)? ?({_MONTH})(?:[,;]? ?([0-9]{{4}}))?",
    re.IGNORECASE,
)
_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_BASE_NAMES = re.findall(r"\w+", "zero one two three four five six seven eight nine ten eleven twelve")
_SENTENCE = re.compile(
    r"[a-z]\.[A-Z]|(?<![\\A-Za-z])(?:is|are|has|have|takes?|will|we|then|there|when|where)(?![A-Za-z])"
)
"""Its formulas alone do not say what it says."""
_BASED = re.compile(
    r"(?:\\(?:text|overline)\{|\(|\{)?(-?[0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?)[)}]?(?:_\{?|(?= ?\\text| base))\(?"
    rf"(?:\\text\{{)?(?: ?base)? ?\}}? ?([0-9]{{1,2}}|{'|'.join(_BASE_NAMES[2:])})\)?\}}*"
)
_RATIO = re.compile(r"[0-9.]+(?::[0-9.]+)+")
_MATHEMATICAL = re.compile(r"[A-Za-z0-9\\{}()\[\]|+*/^_=<>!.,;:%&'$ -]*")
_NO_FORMULA = re.compile(r"[0-9] [0-9]|:")
_OF_ANGLES = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|cis)(?![a-z])")
_NO_ANSWER = re.compile(r"≠|\\(?:neg|lnot|not|nexists|notin|[lc]?dots[cb]?|square|Box)(?![A-Za-z])|\.\.|\?")
"""Denials, open ends and blanks."""
_LONG_WORD = re.compile(r"[A-Za-z]{4}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_SYMBOL = re.compile(r"\\mathbb\{[A-Z]\}(?:\^[+*-])?")


def read_atom(text: str) -> Value:
    """Parse a text that has no separator or relation sign outside brackets, except commas for thousands."""
    if _DATE.fullmatch(text):
        return Words(text, is_pure=True)
    if day := _DAY.fullmatch(_TEXT.sub(r"\1", text).strip()):
        month, number, year = (day[1], day[2], day[3]) if day[1] else (day[5], day[4], day[6])
        return Words(f"{month[:3]}{number}{year or ''}".casefold(), is_pure=True)
    if based := _BASED.fullmatch(text):
        digits, base = based[1].upper(), int(based[2]) if based[2].isdigit() else _BASE_NAMES.index(based[2])
        if 2 <= base <= 16 and len(digits) <= 100 and all(int(d, 16) < base for d in digits if d not in "-."):
            return BasedNumeral(digits, base)
    quantity = _read_quantity(text)
    if quantity is not None:
        values = tuple(Quantity(e, quantity.unit, quantity.is_percent) for e in expand_signs(quantity.expression))
        single: Value = values[0] if len(values) == 1 else Unordered(values, in_braces=False)
        if _GROUPED.search(text) and len(parts := split(text, ",")) > 1:
            listed = tuple(_read_quantity(part) or Unparsed(part) for part in parts)
            return _either((single, Unordered(listed, in_braces=False)))
        return single
    if _RATIO.fullmatch(text) and ":0" not in text:
        return Ordered("::", tuple(_read_quantity(part) or Unparsed(part) for part in text.split(":")))
    return _read_words(text)


def is_of_angles(text: str) -> bool:
    """Return whether there is a function of an angle in it, to which degrees matter."""
    return _OF_ANGLES.search(text) is not None


def _read_quantity(text: str) -> Quantity | None:
    unit, factor = "", Fraction(1)
    if (measured := split_unit(text)) and not (measured.unit == "degree" and is_of_angles(measured.value)):
        text, unit, factor = measured.value, measured.unit, measured.factor
    is_percent = text.endswith("%")
    text = text.removesuffix("%").strip()
    number = parse_rational(text)
    expression = parse(text) if number is None else Number(number)
    if expression is None:
        return None
    if factor != 1:
        expression = Apply("*", (expression, Number(factor)))
    return Quantity(expression, unit, is_percent)


def _read_words(text: str) -> Value:
    """Return `Words` for text and `Unparsed` for a formula that the parser does not know."""
    plain = _TEXT.sub(r"\1", text)
    if meaning := _MEANINGS.get(text_key(text)):
        return meaning
    is_text = (
        _TEXT.search(text) is not None
        or _SYMBOL.fullmatch(text) is not None
        or _LONG_WORD.search(_COMMAND.sub("", plain)) is not None
        or _MATHEMATICAL.fullmatch(plain) is None
        or _NO_ANSWER.search(text) is not None
        or _NO_FORMULA.search(plain) is not None
        or not re.search(r"[A-Za-z\\]", plain)
    )
    if not is_text:
        return Unparsed(text)
    return Words(text_key(text), is_pure=not re.search(r"[\\=+*/^<>]", plain))


_NUMBER_WORDS = re.findall(
    r"\S+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty",
)
_ORDINALS = re.findall(r"\w+", "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
_MEANINGS: dict[str, Value] = {
    **{word: Quantity(Number(Fraction(number))) for number, word in enumerate(_NUMBER_WORDS)},
    **{word: Quantity(Number(Fraction(number))) for number, word in enumerate(_ORDINALS, 1)},
    **dict.fromkeys(("nosolution", "nosolutions", "norealsolution", "norealsolutions", "emptyset"), RealSet(())),
    **dict.fromkeys(("allrealnumbers", "allreals", "allrealnumber", "realnumbers", "thereals", "allrealx"), REALS),
}
"""Words that have a value."""


def text_key(text: str) -> str:
    """Return the text for comparisons: lower case, without spaces, full stops and brackets."""
    return re.sub(r"[\s.,;\"{}()~]", "", _TEXT.sub(r"\1", text)).casefold()


def _either(readings: tuple[Value, ...]) -> Value:
    """Return the only reading, or `Ambiguous` for several."""
    return readings[0] if len(readings) == 1 else Ambiguous(readings)
