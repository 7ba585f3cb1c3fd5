from priml.graders.math.ast import alternatives, has_bare_log, letters
from priml.graders.math.parser import parse


def test_letters_leave_the_constants_out():
    assert letters(parse(r"a_1 x+\pi e^{i\theta}")) == {"a_1", "x", r"\theta"}
    assert letters(parse("3")) == frozenset()


def test_double_signs_stand_for_their_values():
    assert alternatives(parse("x")) == (parse("x"),)
    assert set(alternatives(parse(r"1\pm x"))) == {parse("1-x"), parse("1+x")}
    assert len(alternatives(parse(r"\pm 1\pm x"))) == 4
    assert set(alternatives(parse(r"\pm 1\mp x"))) == {parse("1-x"), parse("-1+x")}


def test_logarithms_without_a_base_are_noticed():
    assert has_bare_log(parse(r"1+\frac{\log 2}{3}"))
    assert not has_bare_log(parse(r"\log_2 3+\ln 4"))
