from priml.graders.math.split import is_top_level, split, split_relations


def test_texts_are_cut_outside_brackets_alone():
    assert split("(1,2),[3,4),5", ",") == ("(1,2)", "[3,4)", "5")
    assert split(r"\{1;2\};3", ";") == (r"\{1;2\}", "3")
    assert split("x", ",") == ("x",)
    assert split(r"1\lor2", r"\lor") == ("1", "2")


def test_relations_are_cut_with_their_signs():
    assert split_relations("0<x<=1") == (["0", "x", "1"], ["<", "<="])
    assert split_relations("P(X=2)=3") == (["P(X=2)", "3"], ["="])
    assert split_relations("x+1") == (["x+1"], [])


def test_a_place_is_outside_when_all_brackets_are_closed():
    assert is_top_level("(a)b", 3)
    assert not is_top_level("(a)b", 1)
