from priml.graders.math.ast import expand_signs, free_symbols, has_log_without_base
from priml.graders.math.parser import parse


def test_letters_leave_the_constants_out():
    assert free_symbols(parse(r"a_1 x+\pi e^{i\theta}")) == {"a_1", "x", r"\theta"}
    assert free_symbols(parse("3")) == frozenset()


def test_double_signs_stand_for_their_values():
    assert expand_signs(parse("x")) == (parse("x"),)
    assert set(expand_signs(parse(r"1\pm x"))) == {parse("1-x"), parse("1+x")}
    assert len(expand_signs(parse(r"\pm 1\pm x"))) == 4
    assert set(expand_signs(parse(r"\pm 1\mp x"))) == {parse("1-x"), parse("-1+x")}


def test_logarithms_without_a_base_are_noticed():
    assert has_log_without_base(parse(r"1+\frac{\log 2}{3}"))
    assert not has_log_without_base(parse(r"\log_2 3+\ln 4"))
