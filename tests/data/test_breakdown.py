import pytest

from priml.data.breakdown import MAX_SOURCES, source_origin, sources_in
from priml.types import Problem


def problems(*sources):
    return [Problem(id=str(i), prompt="?", answer="1", source=source) for i, source in enumerate(sources)]


@pytest.mark.parametrize(
    ("source", "origin"), [("taco", "taco"), ("numina/olympiads/7", "numina"), ("a b/c", "a b"), ("", "")]
)
def test_what_stands_behind_a_slash_is_a_place_within_a_source(source, origin):
    assert source_origin(problems(source)[0]) == origin


def test_sources_are_told_apart_when_there_are_several_but_not_one_per_problem():
    assert sources_in(problems("taco", "math/1", "math/2", "taco")) == ("math", "taco")
    assert sources_in(problems("math/1", "math/2")) == ()
    assert len(sources_in(problems(*map(str, range(MAX_SOURCES))))) == MAX_SOURCES
    assert sources_in(problems(*map(str, range(MAX_SOURCES + 1)))) == ()
