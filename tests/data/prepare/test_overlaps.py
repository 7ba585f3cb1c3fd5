import pytest

from priml.data.prepare.fingerprints import fingerprint
from priml.data.prepare.overlaps import Benchmarks, find_contaminated, find_duplicates
from priml.errors import DataError
from priml.types import Problem

LONG = (
    "A train leaves the station at noon and travels north with a steady speed of 40 miles per hour while another train "
    "leaves the same station one hour later and follows it on the same track until both of them arrive together "
    "how many minutes after the first departure do they meet if neither of them stops anywhere on its way and no "
    "signal holds them back while the weather stays as good as it was"
)


def problems(*pairs):
    return [Problem(f"p{i}", text, answer) for i, (text, answer) in enumerate(pairs)]


def duplicates(*pairs, drop_templates=False):
    rows = problems(*pairs)
    prints = [fingerprint(row.prompt) for row in rows]
    decisions = find_duplicates(rows, prints, threshold=0.8, drop_templates=drop_templates)
    return [(decision.is_kept, decision.reason, decision.other) for decision in decisions]


def test_the_first_of_equal_texts_is_kept():
    found = duplicates(("Find $x$: x = 3.", "3"), ("Other?", "1"), ("find x, x=3", "3"), ("Find $x$:  x = 3.", "4"))
    assert found[0] == found[1] == (True, "", None)
    assert found[2] == (False, "same text", "p0")
    assert found[3] == (False, "same text, another answer", "p0")


def test_other_signs_are_another_problem_if_the_answer_says_so():
    found = duplicates(("Evaluate $|5+3i|-2$.", "3"), ("Evaluate $|5-3i|+2$.", "7"))
    assert found[1] == (True, "same letters and digits, other signs and answer", "p0")


def test_a_near_copy_goes_and_one_with_other_numbers_is_a_class_of_its_own():
    near, numbers = LONG.replace("steady", "constant"), LONG.replace("40", "55")
    found = duplicates((LONG, "3"), (near, "3"), (numbers, "4"))
    assert found[1] == (False, "near copy", "p0")
    assert found[2] == (True, "same template, other numbers", "p0")
    assert duplicates((LONG, "3"), (numbers, "4"), drop_templates=True)[1][0] is False


def test_a_short_template_is_found_without_a_long_run_of_words():
    found = duplicates(("Compute $\\sin 60$.", "a"), ("Compute $\\sin 45$.", "b"), ("Compute $\\cos 45$.", "c"))
    assert [reason for _, reason, _ in found] == ["", "same template, other numbers", ""]


def test_what_was_dropped_drops_nothing_else():
    a = LONG
    b = a.replace("steady", "constant")
    c = b.replace("weather", "sky")
    found = duplicates((a, "1"), (b, "1"), (c, "1"))
    assert [kept for kept, _, _ in found] == [True, False, True], "c is near b alone"


def contaminated(texts, theirs, drop_templates=False):
    benchmarks = Benchmarks.of({"bench": [Problem(f"b{i}", text, "1") for i, text in enumerate(theirs)]})
    decisions, touching = find_contaminated(
        [fingerprint(text) for text in texts], benchmarks, threshold=0.8, share=0.5, drop_templates=drop_templates
    )
    return [(decision.is_kept, decision.reason, decision.other) for decision in decisions], touching


def test_problems_of_benchmarks_go_with_the_name_of_the_problem():
    words = LONG.split()
    half = " ".join([*["and", "now", "something", "else"], *words[:25]])
    texts = ["Fine?", LONG.upper(), LONG.replace("steady", "constant"), half, LONG.replace("40", "55")]
    found, touching = contaminated(texts, ["Something else?", LONG])
    assert found[0] == (True, "", None)
    assert found[1] == (False, "same text as a benchmark problem", "bench/b1")
    assert found[2] == (False, "near copy of a benchmark problem", "bench/b1")
    assert found[3] == (False, "half of its runs of words are in benchmarks", "bench/b1")
    assert found[4] == (True, "same template, other numbers than a benchmark problem", "bench/b1")
    assert touching == 4
    assert contaminated(texts[4:], [LONG], drop_templates=True)[0][0][0] is False


def test_a_single_shared_run_of_words_is_counted_and_drops_nothing():
    boilerplate = " express your answer as a common fraction in lowest terms"
    texts = ["What is the chance that two dice show the same number of points when thrown once" + boilerplate]
    found, touching = contaminated(texts, ["How many of the marbles are red in a bag with nine" + boilerplate])
    assert found == [(True, "", None)]
    assert touching == 1


def test_short_texts_and_no_rows_are_fine():
    assert contaminated(["", "?", "one two"], ["", "one"])[0] == [(True, "", None)] * 3
    assert contaminated([], ["one"]) == ([], 0)


def test_a_source_that_holds_a_benchmark_is_refused():
    sets = {"small": [Problem(str(i), f"Question {i}", "1") for i in range(4)]}
    benchmarks = Benchmarks.of(sets)
    benchmarks.check_not_among({"mine": frozenset({"question0", "else"})})
    with pytest.raises(DataError, match=r"data.mine: found 2 of the 4 problems of the benchmark small in it, need"):
        benchmarks.check_not_among({"other": frozenset(), "mine": frozenset({"question0", "question3"})})
