"""Compare two mathematical answers as a mathematician would.

The comparison is exact unless a tolerance is given: 123456 is not 123457. Order matters in tuples and intervals,
not in sets and lists of solutions. Several guesses are not one answer. A unit may be missing, but not different.
"""

import re
from dataclasses import replace
from fractions import Fraction

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
from priml.graders.math.ast import Apply, Expression, Letter, Number, free_symbols, without_denominators
from priml.graders.math.evaluate import Budget
from priml.graders.math.identity import is_proportional, is_same_number
from priml.graders.math.intervals import as_real_set
from priml.graders.math.normalize import normalize
from priml.graders.math.parser import parse
from priml.graders.math.read import is_bare_name, is_of_angles, is_operation, read, text_key
from priml.graders.math.split import split_relations
from priml.graders.math.units import conversion

MAX_ANSWER = 300
"""Maximum length, in characters, of an answer that is compared as mathematics; a longer one must be the gold text."""


def is_same_value(answer: str, gold: str, *, tolerance: float | None = None, exact_units: bool = False) -> bool | None:
    """Return whether two answers have the same value; None: the parser does not know their mathematics.

    With `exact_units`, 5 m and 500 cm are different. `tolerance` is relative. It applies to numbers, also to those
    inside tuples and lists. The work is bounded: about a tenth of a second at most.

    Raises:
        TooComplex: an expression needs more work than that.
    """
    answer, gold = normalize(answer), normalize(gold)
    if answer == gold or answer.replace(";", ",") == gold.replace(";", ","):
        return True
    if len(answer) > 2 and answer.isalpha() and gold.isalpha() and answer.casefold() == gold.casefold():
        return True
    if _is_choice(gold) and _is_choice(answer):
        return answer.strip("()").upper() == gold.strip("()")
    if _CONSTANT.search(gold) and "c" not in _COMMAND.sub("", gold):
        answer = _SMALL_C.sub("C", answer)
    if _is_short_word(gold) and answer.isalpha():
        return answer.casefold() == gold.casefold()
    parsed_answer, parsed_gold = read(answer), read(gold)
    if isinstance(parsed_gold, BasedNumeral) and answer.upper() == parsed_gold.digits:
        return True
    if isinstance(parsed_answer, Words) or isinstance(parsed_gold, Words):
        key = text_key(answer)
        if key.isalpha() and key == text_key(gold):
            return True  # yes, \text{Yes}
    comparison = _Comparison(tolerance, exact_units=exact_units)
    same = comparison.same(parsed_answer, parsed_gold)
    if not same and (_DEGREE in answer) != (_DEGREE in gold):
        same = comparison.same_without_degrees(answer, gold) or same
    is_alike = same is not False and _NUMBER.sub("", answer) == _NUMBER.sub("", gold)
    return comparison.same_but_for_numbers(same, answer, gold) if is_alike else same


def is_same_text(answer: str, gold: str) -> bool:
    """Return whether two answers differ in typesetting only."""
    return normalize(answer).replace(";", ",") == normalize(gold).replace(";", ",")


def is_list(gold: str) -> bool:
    """Return whether the gold answer has several parts: a list of solutions, a set, a tuple, several names."""
    return isinstance(read(normalize(gold)), Unordered | Ordered | Assignments)


_CONSTANT = re.compile(r"[+-]C(?![A-Za-z])|C_")
"""A constant of integration: its letter may be small."""
_COMMAND = re.compile(r"\\[A-Za-z]+")
_SMALL_C = re.compile(r"(?<![A-Za-z\\])c(?![A-Za-z]{2})")


def _is_short_word(text: str) -> bool:
    """Return whether a text of two or three letters is a word, and not a product such as abc or xy."""
    if not (text.isalpha() and text.isascii() and 2 <= len(text) <= 3):
        return False
    letters, is_one_case = sorted(text), text.islower() or text.isupper()
    is_product = not set(text.casefold()) & set("aeiou") or (is_one_case and letters == list(text))
    return not is_product or text.casefold() in ("no", "on", "or", "do", "go", "for", "not", "yes")


_DEGREE = r"\text{degree}"
_NUMBER = re.compile(r"[0-9]+")
_STATEMENT = re.compile(r"=|\\approx")


def _is_choice(text: str) -> bool:
    letter = text.strip("()")
    return len(letter) == 1 and letter in "ABCDEabcd"


def _all(verdicts: list[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _any(verdicts: list[bool | None]) -> bool | None:
    if True in verdicts:
        return True
    return None if None in verdicts else False


class _Comparison:
    """One rule for each pair of types. The first argument is the answer, the second the gold answer."""

    def __init__(self, tolerance: float | None, *, exact_units: bool) -> None:
        self._tolerance = tolerance
        self._exact_units = exact_units
        self._budget = Budget()

    def same(self, answer: Value, gold: Value) -> bool | None:
        if isinstance(answer, Ambiguous) or isinstance(gold, Ambiguous):
            return _any([self.same(a, b) for a in _readings(answer) for b in _readings(gold)])
        if isinstance(answer, Inequality) != isinstance(gold, Inequality):
            solved = gold if isinstance(answer, Inequality) else answer
            solved = solved.value if isinstance(solved, NamedValue) else solved
            return None if isinstance(solved, RealSet | Unparsed) or as_real_set(solved) else False
        match answer, gold:
            case Unordered(items), NamedValue(name, Unordered() as values) if _has_names(items):
                return self.same(answer, replace(values, items=tuple(NamedValue(name, item) for item in values.items)))
        if isinstance(answer, NamedValue | Equation | Assignments) or isinstance(
            gold, NamedValue | Equation | Assignments
        ):
            return self._same_equation(answer, gold)
        if isinstance(answer, Unparsed) or isinstance(gold, Unparsed):
            if answer == gold:
                return True
            return False if _is_plain(gold) and "vmatrix" not in str(answer) else None
        if isinstance(answer, Words) or isinstance(gold, Words):
            return _same_words(answer, gold)
        return self._same_structure(answer, gold)

    def same_without_degrees(self, answer: str, gold: str) -> bool | None:
        r"""Compare formulas of which one has the signs of degrees, as `180^\circ - 2a` and `180 - 2a`."""
        sides = [read(side.replace(_DEGREE, "")) for side in (answer, gold)]
        is_formula = all(
            isinstance(side, Quantity) and free_symbols(side.expression) and not side.unit for side in sides
        )
        return self.same(*sides) if is_formula and not is_of_angles(answer + gold) else None

    def same_but_for_numbers(self, same: bool | None, answer: str, gold: str) -> bool | None:
        """Correct the verdict on two texts that differ only in numbers. `same` is the verdict so far, True or None.

        In other equations only the last side counts. Here every side must be the same: y_2 = x is not y_3 = x, and a
        wrong equation is not right because its last side is. Sentences that differ in a number are different, because
        the symbolic engine reads only a part of a sentence.
        """
        if _STATEMENT.search(answer) is None:
            parsed = read(answer)
            items = parsed.items if isinstance(parsed, Unordered) else (parsed,)
            return False if same is None and any(isinstance(item, Words) for item in items) else same
        parsed = read(answer)
        if isinstance(parsed.value if isinstance(parsed, NamedValue) else parsed, Unordered | Assignments):
            return same  # each element was compared as a whole
        answer_sides, gold_sides = split_relations(answer)[0], split_relations(gold)[0]
        if len(answer_sides) == 1:
            return same  # the signs stand within brackets
        if len(answer_sides) == 2 and same and self._is_same_relation(read(answer), read(gold)):
            return True  # 2x+4y=6 is 4x+8y=12
        pairs = [(a, b) for a, b in zip(answer_sides, gold_sides, strict=True) if a != b]
        return all(self.same(read(a), read(b)) for a, b in pairs)

    def _same_structure(self, answer: Value, gold: Value) -> bool | None:
        match answer, gold:
            case Quantity(), Quantity():
                return self._same_quantity(answer, gold)
            case Ordered(), Ordered():
                return self._same_ordered(answer, gold)
            case Unordered(), Unordered():
                if len(answer.items) == len(gold.items) and not (answer.in_braces or gold.in_braces):
                    return self._same_list(answer.items, gold.items)
                return self._same_members(answer.items, gold.items)
            case (Unordered(items, False), Ordered("()", others)) | (Ordered("()", items), Unordered(others, False)):
                return self._pairwise(items, others)  # the brackets of a tuple left out, or put around a list
            case (RealSet(), _) | (_, RealSet()):
                answer_set, gold_set = as_real_set(answer), as_real_set(gold)
                return self._same_set(answer_set, gold_set) if answer_set and gold_set else False
            case Unordered(items), _:
                return _all([self.same(item, gold) for item in items])
            case _, Unordered(items):
                return _all([self.same(answer, item) for item in items])
            case Matrix(rows), Matrix(others):
                if len(rows) != len(others):
                    return False
                return _all([self._pairwise(a, b) for a, b in zip(rows, others, strict=True)])
            case (Matrix(rows), Ordered("()", items)) | (Ordered("()", items), Matrix(rows)):
                entries = tuple(entry for row in rows for entry in row)
                return self._pairwise(entries, items) if 1 in (len(rows), len(rows[0])) else False
            case BasedNumeral(), BasedNumeral():
                return answer == gold
            case BasedNumeral(), Quantity(Number(value)):
                return answer.value == value
            case Quantity(Number(value)), BasedNumeral():  # like a unit, the base may be left out
                return not re.search("[A-F]", gold.digits) and Fraction(gold.digits) == value
            case Ordered("::", (Quantity(a), Quantity(b))), Quantity(c):
                return self._same_number(Apply("/", (a, b)), c)
            case Quantity(c), Ordered("::", (Quantity(a), Quantity(b))):
                return self._same_number(c, Apply("/", (a, b)))
            case (Matrix(rows), Ordered("[]", items)) | (Ordered("[]", items), Matrix(rows)):
                lines = [item.items if isinstance(item, Ordered | Unordered) else (item,) for item in items]
                return len(lines) == len(rows) and _all(list(map(self._pairwise, rows, lines)))
            case Inequality(), Inequality() if answer.signs == gold.signs:
                return self._same_inequality(answer, gold)
        return False

    # Numbers

    def _same_quantity(self, answer: Quantity, gold: Quantity) -> bool | None:
        if {answer.unit, gold.unit} == {"degree", "rad"}:
            return self._same_number(_radians(answer), _radians(gold))
        if answer.unit and gold.unit:
            rate = conversion(answer.unit, gold.unit)
            if rate is None or (rate != 1 and self._exact_units):
                return False
            answer = replace(answer, expression=_times(answer.expression, rate), unit=gold.unit)
        if answer.is_percent != gold.is_percent and (answer.unit or gold.unit):
            return False
        same = self._same_number(answer.expression, gold.expression)
        if answer.is_percent != gold.is_percent:
            # 50 % is 1/2, written either way; a bare 50 is right only where the gold itself says per cent.
            as_parts = self._same_number(_parts(answer), _parts(gold))
            return _any([as_parts, same]) if gold.is_percent else as_parts
        if not same and (answer.unit == "degree") != (gold.unit == "degree"):
            return _any([same, self._same_number(_radians(answer), _radians(gold))])
        return same

    def _same_number(self, answer: Expression, gold: Expression) -> bool | None:
        if isinstance(answer, Number) and isinstance(gold, Number):
            distance = abs(answer.value - gold.value)
            return distance <= (0 if self._tolerance is None else self._tolerance * abs(gold.value))
        return is_same_number(answer, gold, tolerance=self._tolerance, budget=self._budget)

    # Collections

    def _pairwise(self, answer: tuple[Value, ...], gold: tuple[Value, ...]) -> bool | None:
        if len(answer) != len(gold):
            return False
        return _all([self.same(a, b) for a, b in zip(answer, gold, strict=True)])

    def _same_ordered(self, answer: Ordered, gold: Ordered) -> bool | None:
        if answer.brackets != gold.brackets:
            return False
        same = self._pairwise(answer.items, gold.items)
        if same is not False or answer.brackets not in ("::", "mod"):
            return same
        answers, golds = _numbers(answer.items), _numbers(gold.items)
        if answers is None or golds is None or len(answers) != len(golds):
            return False
        if answer.brackets == "mod":
            return answers[1] == golds[1] != 0 and (answers[0] - golds[0]) % golds[1] == 0
        if len(golds) == 2 and all(pair[0] < 24 and 10 <= pair[1] < 60 for pair in (answers, golds)):
            return False  # a time of day: 6:30 is not 3:15
        return 0 not in answers and len({a / b for a, b in zip(answers, golds, strict=True) if b}) == 1

    def _same_list(self, answer: tuple[Value, ...], gold: tuple[Value, ...]) -> bool | None:
        """Each element of one is an element of the other, as often: 1, 1, 2 is not 1, 2, 2."""
        left, unknown = list(gold), False
        for item in answer:
            verdicts = [self.same(item, other) for other in left]
            unknown = unknown or None in verdicts
            if True not in verdicts:
                return None if unknown else False
            del left[verdicts.index(True)]
        return True

    def _same_members(self, answer: tuple[Value, ...], gold: tuple[Value, ...]) -> bool | None:
        """Each element of one has an equal in the other. Repetition does not matter."""
        table = [[self.same(a, b) for b in gold] for a in answer]
        columns = [list(column) for column in zip(*table, strict=True)]
        return _all([_any(line) for line in table + columns])

    def _same_set(self, answer: RealSet, gold: RealSet) -> bool | None:
        if len(answer.pieces) != len(gold.pieces):
            return False
        verdicts: list[bool | None] = []
        for a, b in zip(answer.pieces, gold.pieces, strict=True):
            verdicts.append((a.has_low, a.has_high) == (b.has_low, b.has_high))
            verdicts += [self._same_number(a.low, b.low), self._same_number(a.high, b.high)]
        return _all(verdicts)

    # Equations and inequalities

    def _same_inequality(self, answer: Inequality, gold: Inequality) -> bool | None:
        same = self._pairwise(answer.sides, gold.sides)
        match answer.sides, gold.sides:
            case (Quantity(a), Quantity(b)), (Quantity(c), Quantity(d)) if not same:
                positive = gold.signs != ("≠",)
                sides = _difference(a, b), _difference(c, d)
                return is_proportional(*sides, positive=positive, budget=self._budget)
        return same

    def _same_equation(self, answer: Value, gold: Value) -> bool | None:
        if _relation(answer) is not None and _relation(gold) is not None:
            if isinstance(answer, NamedValue) and isinstance(gold, NamedValue) and answer.name == gold.name:
                return self.same(answer.value, gold.value)
            if self._is_same_relation(answer, gold):
                return True
        if isinstance(gold, Assignments) or isinstance(answer, Assignments):
            return self._same_assignments(answer, gold)
        if not isinstance(answer, NamedValue | Unparsed) and _is_unsolved(gold):
            return False  # its right side alone will not do
        answer_value = answer.value if isinstance(answer, NamedValue) else answer
        gold_value = gold.value if isinstance(gold, NamedValue) else gold
        if isinstance(answer, NamedValue) and isinstance(gold, NamedValue) and not _may_name_one(answer, gold):
            return False  # the engine would compare what is on the right alone
        if isinstance(gold_value, Equation):
            if gold_value is gold and isinstance(answer, NamedValue) and not is_bare_name(answer.name):
                return False  # another statement with the same right side
            return self._same_sides(answer_value, gold_value)
        if isinstance(answer_value, Equation):
            return _all([self._is_consistent(answer_value), self.same(answer_value.sides[-1], gold_value)])
        return self.same(answer_value, gold_value)

    def _is_same_relation(self, answer: Value, gold: Value) -> bool:
        answer_relation, gold_relation = _relation(answer), _relation(gold)
        if answer_relation is None or gold_relation is None:
            return False
        if is_proportional(answer_relation, gold_relation, budget=self._budget):
            return True
        cleared = without_denominators(answer_relation), without_denominators(gold_relation)
        return cleared != (answer_relation, gold_relation) and bool(is_proportional(*cleared, budget=self._budget))

    def _same_sides(self, answer: Value, gold: Equation) -> bool | None:
        """Compare with an equation: only an equation is right, unless all sides of the gold have one value."""
        if isinstance(answer, Equation):
            if len(answer.sides) == len(gold.sides):
                verdict = _any([self._pairwise(answer.sides, side) for side in (gold.sides, gold.sides[::-1])])
                if verdict:
                    return True
            if _relation(gold) is not None and _relation(answer) is not None:
                return False
            return _all([self._is_consistent(answer), self.same(answer.sides[-1], gold)])
        if isinstance(answer, Unparsed) or any(isinstance(side, Unparsed) for side in gold.sides):
            return None
        return _all([self._is_consistent(gold), self.same(answer, gold.sides[-1])])

    def _is_consistent(self, equation: Equation) -> bool | None:
        return _all([self.same(a, b) for a, b in zip(equation.sides, equation.sides[1:], strict=False)])

    def _same_assignments(self, answer: Value, gold: Value) -> bool | None:
        match answer, gold:
            case Assignments(), Assignments():
                answer_values, gold_values = dict(answer.pairs), dict(gold.pairs)
                if answer_values.keys() == gold_values.keys():
                    return _all([self.same(answer_values[name], gold_values[name]) for name in gold_values])
                return False
            case Assignments(), Ordered(_, items) | Unordered(items, False) if not _has_names(items):
                return self._pairwise(_in_order(answer), items)
            case Ordered(_, items) | Unordered(items, False), Assignments() if not _has_names(items):
                return self._pairwise(items, _in_order(gold))
            case Assignments(), Quantity():
                return _all([self.same(value, gold) for _, value in answer.pairs])
            case Quantity(), Assignments():
                return _all([self.same(answer, value) for _, value in gold.pairs])
            case (Unparsed(), _) | (_, Unparsed()):
                return None
        return False


def _has_names(items: tuple[Value, ...]) -> bool:
    return any(isinstance(item, NamedValue) for item in items)


def _readings(value: Value) -> tuple[Value, ...]:
    return value.readings if isinstance(value, Ambiguous) else (value,)


def _same_words(answer: Value, gold: Value) -> bool | None:
    if not isinstance(gold, Words):
        return False
    if not isinstance(answer, Words):
        return False if gold.is_pure or "ldots" in gold.key else None
    if answer.key == gold.key:
        return True
    return False if answer.is_pure or gold.is_pure else None


def _numbers(values: tuple[Value, ...]) -> list[Fraction] | None:
    numbers = [
        value.expression.value
        for value in values
        if isinstance(value, Quantity) and isinstance(value.expression, Number)
    ]
    return numbers if len(numbers) == len(values) else None


def _is_plain(gold: Value) -> bool:
    """Return whether the gold is made of numbers and single letters; an unparsed answer is then wrong."""
    match gold:
        case Quantity(Letter()) | BasedNumeral() | RealSet() | Words(_, True):
            return True
        case Quantity(expression):
            return not free_symbols(expression)
        case Ordered(_, items) | Unordered(items):
            return all(map(_is_plain, items))
    return False


def _times(expression: Expression, rate: Fraction) -> Expression:
    if isinstance(expression, Number):
        return Number(expression.value * rate)
    return expression if rate == 1 else Apply("*", (expression, Number(rate)))


def _parts(quantity: Quantity) -> Expression:
    expression = quantity.expression
    if not quantity.is_percent:
        return expression
    hundred = Fraction(100)
    if isinstance(expression, Number):
        return Number(expression.value / hundred)
    return Apply("/", (expression, Number(hundred)))


def _radians(quantity: Quantity) -> Expression:
    if quantity.unit != "degree":
        return quantity.expression
    return Apply("*", (quantity.expression, Apply("/", (Letter("\\pi"), Number(Fraction(180))))))


def _difference(left: Expression, right: Expression) -> Expression:
    return Apply("+", (left, Apply("neg", (right,))))


def _relation(value: Value) -> Expression | None:
    """Return left side minus right side of an equation with variables, else None."""
    match value:
        case NamedValue(name, Quantity(expression)):
            left = parse(name)
            if left is not None and (free_symbols(expression) or len(free_symbols(left)) > 1):
                return _difference(left, expression)
        case Equation((Quantity(left), Quantity(right))) if free_symbols(left) | free_symbols(right):
            return _difference(left, right)
    return None


def _is_unsolved(gold: Value) -> bool:
    """Return whether it is an equation such as x + y = 0 or x^2 + y^2 = 25; a + b = 5 only describes the 5."""
    if not isinstance(gold, NamedValue) or is_bare_name(gold.name):
        return False
    if re.search("[0-9]", gold.name):
        return not is_operation(gold.name)
    match gold.value:
        case Quantity(expression):
            return bool(free_symbols(expression)) or expression == Number(Fraction(0))
        case Unparsed() | Ordered("::"):
            return False
    return True


_DECORATION = re.compile(r"[\s{}]|\\(?:angle|triangle|overline|vec|overrightarrow|text|m)(?![A-Za-z])|^m(?=\\angle)")


def _may_name_one(answer: NamedValue, gold: NamedValue) -> bool:
    """Return whether two names may be of one thing: AB and |AB|, y and f(x) of formulas, words and anything."""
    keys = [_DECORATION.sub("", side.name) for side in (answer, gold)]
    keys = [key.strip("|[]") if len(key) > 3 else key for key in keys]
    if keys[0] == keys[1] and (answer.name == gold.name or len(keys[0]) > 1):
        return True
    if any(re.search(r"\\text\{[^{}]*[A-Za-z]{3}", side.name) for side in (answer, gold)):
        return True
    is_formula = isinstance(gold.value, Quantity) and bool(free_symbols(gold.value.expression))
    return is_formula and sorted(key.endswith(")") for key in keys) == [False, True] and "y" in keys


def _in_order(assignments: Assignments) -> tuple[Value, ...]:
    pairs = assignments.pairs if assignments.in_tuple else sorted(assignments.pairs, key=lambda pair: pair[0])
    return tuple(value for _, value in pairs)
