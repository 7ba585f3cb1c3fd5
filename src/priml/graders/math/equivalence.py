"""Whether two mathematical answers are the same, by the rules a mathematician would sign.

Exact unless told otherwise: 123456 is not 123457. Order matters in tuples and intervals, not in sets and solution
lists. Several guesses are not one answer. A missing unit is tolerated, a different one is not.
"""

from __future__ import annotations

import re
from fractions import Fraction

from priml.graders.math.answer_types import (
    Assignments,
    Based,
    Chain,
    Either,
    Inequality,
    Matrix,
    Named,
    Quantity,
    RealSet,
    Sequence,
    Several,
    Unknown,
    Value,
    Words,
)
from priml.graders.math.ast import Apply, Expression, Letter, Number, letters
from priml.graders.math.atoms import spelling_key
from priml.graders.math.evaluate import Budget
from priml.graders.math.identity import proportional, same_number
from priml.graders.math.intervals import as_real_set
from priml.graders.math.normalize import normal_form
from priml.graders.math.parser import parse
from priml.graders.math.read import is_name, read
from priml.graders.math.split import split_relations

MAX_ANSWER = 300
"""Longest answer, in characters, that is compared as mathematics. A longer gold is matched by its own text."""


def same_value(answer: str, gold: str, *, tolerance: float | None = None) -> bool | None:
    """Whether two answers are the same value; None: they hold mathematics that is not understood here.

    `tolerance` is relative and applies to numbers, also those inside tuples and lists. The work is bounded: no text
    keeps this busy for longer than a tenth of a second.

    Raises:
        TooComplex: an expression takes more than that.
    """
    ours, theirs = normal_form(answer), normal_form(gold)
    if ours == theirs or ours.replace(";", ",") == theirs.replace(";", ","):
        return True
    if len(ours) > 2 and ours.isalpha() and theirs.isalpha() and ours.casefold() == theirs.casefold():
        return True
    if _is_choice(theirs) and _is_choice(ours):
        return ours.strip("()").upper() == theirs.strip("()")
    mine, wanted = read(ours), read(theirs)
    if isinstance(mine, Words) or isinstance(wanted, Words):
        key = spelling_key(ours)
        if key.isalpha() and key == spelling_key(theirs):
            return True  # yes, \text{Yes}
    comparison = _Comparison(tolerance)
    same = comparison.same(mine, wanted)
    is_alike = same is not False and _NUMBER.sub("", ours) == _NUMBER.sub("", theirs)
    return comparison.same_but_for_numbers(same, ours, theirs) if is_alike else same


def same_text(answer: str, gold: str) -> bool:
    """Whether two answers are written alike, but for spacing, commands of one meaning and the like."""
    return normal_form(answer) == normal_form(gold)


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
    """One rule per pair of kinds. The first argument is the answer, the second the gold."""

    def __init__(self, tolerance: float | None) -> None:
        self._tolerance = tolerance
        self._budget = Budget()

    def same(self, ours: Value, theirs: Value) -> bool | None:
        if isinstance(ours, Either) or isinstance(theirs, Either):
            return _any([self.same(a, b) for a in _readings(ours) for b in _readings(theirs)])
        if isinstance(ours, Named | Chain | Assignments) or isinstance(theirs, Named | Chain | Assignments):
            return self._same_equation(ours, theirs)
        if isinstance(ours, Unknown) or isinstance(theirs, Unknown):
            if ours == theirs:
                return True
            return False if _is_plain(theirs) else None
        if isinstance(ours, Words) or isinstance(theirs, Words):
            return _same_words(ours, theirs)
        return self._same_structure(ours, theirs)

    def same_but_for_numbers(self, same: bool | None, ours: str, theirs: str) -> bool | None:
        """Two texts that differ in numbers alone, and so far are the same or not understood.

        Of an equation the last side is mostly what counts. Between texts so alike the other sides do, too:
        y_2 = x is not y_3 = x, nor is a wrong equation right because its last side is. And of a sentence no engine
        reads more than a part.
        """
        if _STATEMENT.search(ours) is None:
            return False if same is None and _has_words(read(ours)) else same
        sides, wanted = split_relations(ours)[0], split_relations(theirs)[0]
        if len(sides) == 1 or (len(sides) == 2 and same and self._is_same_relation(read(ours), read(theirs))):
            return same  # the signs stand within brackets, or 2x+4y=6 is 4x+8y=12
        pairs = [(a, b) for a, b in zip(sides, wanted, strict=True) if a != b]
        return all(self.same(read(a), read(b)) for a, b in pairs)

    def _same_structure(self, ours: Value, theirs: Value) -> bool | None:
        match ours, theirs:
            case Quantity(), Quantity():
                return self._same_quantity(ours, theirs)
            case Sequence(), Sequence():
                return self._same_sequence(ours, theirs)
            case Several(), Several():
                return self._same_members(ours.items, theirs.items)
            case (Several(items, False), Sequence("()", others)) | (Sequence("()", items), Several(others, False)):
                return self._pairwise(items, others)  # the brackets of a tuple left out, or put around a list
            case (RealSet(), _) | (_, RealSet()):
                our_set, their_set = as_real_set(ours), as_real_set(theirs)
                return self._same_set(our_set, their_set) if our_set and their_set else False
            case Several(items), _:
                return _all([self.same(item, theirs) for item in items])
            case _, Several(items):
                return _all([self.same(ours, item) for item in items])
            case Matrix(), Matrix():
                return self._same_matrix(ours, theirs)
            case (Matrix(rows), Sequence("()", items)) | (Sequence("()", items), Matrix(rows)):
                entries = tuple(entry for row in rows for entry in row)
                return self._pairwise(entries, items) if 1 in (len(rows), len(rows[0])) else False
            case Based(), Based():
                return ours == theirs
            case Based(), Quantity(Number(value)):
                return ours.value == value
            case Quantity(Number(value)), Based():  # the base is a unit of sorts, and left out
                return not re.search("[A-F]", theirs.digits) and Fraction(theirs.digits) == value
            case Inequality(), Inequality() if ours.is_strict == theirs.is_strict:
                sides = [_difference(side.smaller, side.larger) for side in (ours, theirs)]
                return proportional(sides[0], sides[1], positive=True, budget=self._budget)
        return False

    # Numbers

    def _same_quantity(self, ours: Quantity, theirs: Quantity) -> bool | None:
        if ours.unit and theirs.unit and ours.unit != theirs.unit:
            return False
        same = self._same_number(ours.expression, theirs.expression)
        if ours.is_percent != theirs.is_percent:
            # 50 % is 1/2, written either way; a bare 50 is right only where the gold itself says per cent.
            as_parts = self._same_number(_parts(ours), _parts(theirs))
            return _any([as_parts, same]) if theirs.is_percent else as_parts
        if not same and (ours.unit == "degree") != (theirs.unit == "degree"):
            return _any([same, self._same_number(_radians(ours), _radians(theirs))])
        return same

    def _same_number(self, ours: Expression, theirs: Expression) -> bool | None:
        if isinstance(ours, Number) and isinstance(theirs, Number):
            distance = abs(ours.value - theirs.value)
            return distance <= (0 if self._tolerance is None else self._tolerance * abs(theirs.value))
        return same_number(ours, theirs, tolerance=self._tolerance, budget=self._budget)

    # Collections

    def _pairwise(self, ours: tuple[Value, ...], theirs: tuple[Value, ...]) -> bool | None:
        if len(ours) != len(theirs):
            return False
        return _all([self.same(a, b) for a, b in zip(ours, theirs, strict=True)])

    def _same_sequence(self, ours: Sequence, theirs: Sequence) -> bool | None:
        if ours.brackets != theirs.brackets:
            return False
        same = self._pairwise(ours.items, theirs.items)
        if same is False and ours.brackets == "::" and len(ours.items) == len(theirs.items) == 2:
            return self._same_ratio(ours, theirs)
        return same

    def _same_ratio(self, ours: Sequence, theirs: Sequence) -> bool:
        parts = [_plain_number(item) for item in ours.items + theirs.items]
        values = [part for part in parts if part]  # neither unknown nor zero
        return len(values) == 4 and values[0] * values[3] == values[1] * values[2]

    def _same_members(self, ours: tuple[Value, ...], theirs: tuple[Value, ...]) -> bool | None:
        """Every element of one has its equal in the other. A repeated element counts once."""
        table = [[self.same(a, b) for b in theirs] for a in ours]
        columns = [list(column) for column in zip(*table, strict=True)]
        return _all([_any(line) for line in table + columns])

    def _same_set(self, ours: RealSet, theirs: RealSet) -> bool | None:
        if len(ours.pieces) != len(theirs.pieces):
            return False
        verdicts: list[bool | None] = []
        for a, b in zip(ours.pieces, theirs.pieces, strict=True):
            verdicts.append((a.has_low, a.has_high) == (b.has_low, b.has_high))
            verdicts += [self._same_number(a.low, b.low), self._same_number(a.high, b.high)]
        return _all(verdicts)

    def _same_matrix(self, ours: Matrix, theirs: Matrix) -> bool | None:
        if len(ours.rows) != len(theirs.rows):
            return False
        return _all([self._pairwise(a, b) for a, b in zip(ours.rows, theirs.rows, strict=True)])

    # Equations

    def _same_equation(self, ours: Value, theirs: Value) -> bool | None:
        if _relation(ours) is not None and _relation(theirs) is not None:
            if isinstance(ours, Named) and isinstance(theirs, Named) and ours.name == theirs.name:
                return self.same(ours.value, theirs.value)
            if self._is_same_relation(ours, theirs):
                return True
        if isinstance(theirs, Assignments) or isinstance(ours, Assignments):
            return self._same_assignments(ours, theirs)
        if isinstance(theirs, Named) and not is_name(theirs.name):  # an equation: its right side alone will not do
            return None if isinstance(ours, Unknown) or isinstance(theirs.value, Unknown) else False
        if isinstance(ours, Named) and isinstance(theirs, Named) and _are_rivals(ours, theirs):
            return False
        our_value = ours.value if isinstance(ours, Named) else ours
        their_value = theirs.value if isinstance(theirs, Named) else theirs
        if isinstance(their_value, Chain):
            return self._same_chain(our_value, their_value)
        if isinstance(our_value, Chain):
            consistent = [self.same(a, b) for a, b in zip(our_value.sides, our_value.sides[1:], strict=False)]
            return _all([*consistent, self.same(our_value.sides[-1], their_value)])
        return self.same(our_value, their_value)

    def _is_same_relation(self, ours: Value, theirs: Value) -> bool:
        our_relation, their_relation = _relation(ours), _relation(theirs)
        if our_relation is None or their_relation is None:
            return False
        return bool(proportional(our_relation, their_relation, budget=self._budget))

    def _same_chain(self, ours: Value, theirs: Chain) -> bool | None:
        """The gold is an equation: only an equation will do, unless its sides are all one value."""
        if isinstance(ours, Chain):
            if len(ours.sides) == len(theirs.sides):
                verdict = _any([self._pairwise(ours.sides, side) for side in (theirs.sides, theirs.sides[::-1])])
                if verdict:
                    return True
            return None if _relation(theirs) is None or _relation(ours) is None else False
        if isinstance(ours, Unknown) or any(isinstance(side, Unknown) for side in theirs.sides):
            return None
        consistent = [self.same(a, b) for a, b in zip(theirs.sides, theirs.sides[1:], strict=False)]
        return _all([*consistent, self.same(ours, theirs.sides[-1])])

    def _same_assignments(self, ours: Value, theirs: Value) -> bool | None:
        match ours, theirs:
            case Assignments(), Assignments():
                mine, wanted = dict(ours.pairs), dict(theirs.pairs)
                if mine.keys() == wanted.keys():
                    return _all([self.same(mine[name], wanted[name]) for name in wanted])
                return False
            case Assignments(), Sequence() | Several(_, False):
                return self._pairwise(_in_order(ours), theirs.items)
            case Sequence() | Several(_, False), Assignments():
                return self._pairwise(ours.items, _in_order(theirs))
            case (Unknown(), _) | (_, Unknown()):
                return None
        return False


def _has_words(value: Value) -> bool:
    items = value.items if isinstance(value, Several) else (value,)
    return any(isinstance(item, Words) for item in items)


def _readings(value: Value) -> tuple[Value, ...]:
    return value.readings if isinstance(value, Either) else (value,)


def _same_words(ours: Value, theirs: Value) -> bool | None:
    if not isinstance(theirs, Words):
        return False
    if not isinstance(ours, Words):
        return False if theirs.is_pure else None
    if ours.key == theirs.key:
        return True
    return False if ours.is_pure or theirs.is_pure else None


def _is_plain(gold: Value) -> bool:
    """Numbers and single letters, alone or together: what cannot be read is not that."""
    match gold:
        case Quantity(Letter()) | Based() | RealSet():
            return True
        case Quantity(expression):
            return not letters(expression)
        case Sequence(_, items) | Several(items):
            return all(map(_is_plain, items))
    return False


def _plain_number(value: Value) -> Fraction | None:
    return value.expression.value if isinstance(value, Quantity) and isinstance(value.expression, Number) else None


def _parts(quantity: Quantity) -> Expression:
    if not quantity.is_percent:
        return quantity.expression
    return _divided(quantity.expression, Number(Fraction(100)))


def _radians(quantity: Quantity) -> Expression:
    if quantity.unit != "degree":
        return quantity.expression
    return Apply("*", (quantity.expression, Apply("/", (Letter("\\pi"), Number(Fraction(180))))))


def _divided(over: Expression, under: Number) -> Expression:
    return Number(over.value / under.value) if isinstance(over, Number) else Apply("/", (over, under))


def _difference(left: Expression, right: Expression) -> Expression:
    return Apply("+", (left, Apply("neg", (right,))))


def _relation(value: Value) -> Expression | None:
    """Left side minus right side of an equation among letters."""
    match value:
        case Named(name, Quantity(expression)):
            left = parse(name)
            if left is not None and (letters(expression) or len(letters(left)) > 1):
                return _difference(left, expression)
        case Chain((Quantity(left), Quantity(right))) if letters(left) | letters(right):
            return _difference(left, right)
    return None


def _are_rivals(ours: Named, theirs: Named) -> bool:
    """x = 3 and y = 3 say different things; y = 2x and f(x) = 2x do not."""
    return len(ours.name) == len(theirs.name) == 1 and ours.name != theirs.name


def _in_order(assignments: Assignments) -> tuple[Value, ...]:
    pairs = assignments.pairs if assignments.in_tuple else sorted(assignments.pairs, key=lambda pair: pair[0])
    return tuple(value for _, value in pairs)
