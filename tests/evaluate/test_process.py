from priml.evaluate.process import bare, find_overlap, known_note

LONG = "A train leaves at noon and travels 60 miles in 2 hours. What is its speed?"


def test_only_letters_and_digits_count():
    assert bare("What is $2 + 2$?") == bare("what is 2+2") == "whatis22"


def test_problems_are_found_by_their_text_whatever_stands_around_them():
    training = {
        "plain": [LONG.upper(), "1+1?"],
        "templated": [f"<|user|>{LONG}\n\nBox the answer.<|assistant|>"],
        "other": ["A train leaves at noon."],
    }
    found = find_overlap([LONG, LONG + " ", "1 + 1", "2+2"], training)
    assert found.problems == 3
    assert found.seen == {"plain": 2, "templated": 1, "other": 0}


def test_a_short_problem_must_be_the_whole_prompt():
    assert find_overlap(["1+1?"], {"a": ["What is 1+1?"]}).seen == {"a": 0}


def test_what_is_known_is_told_by_ids_or_kind():
    assert "GSM8K" in str(known_note(["gsm8k-0"], kind="process_bench"))
    assert "847" in str(known_note(["math-0"], kind="process_bench"))
    assert "Omni-MATH" in str(known_note(["omnimath-3"], kind="process_bench"))
    assert "PRM800K" in str(known_note(["circular_1"], kind="prm_bench"))
    assert known_note(["own-1"], kind="process_bench") is None
    assert known_note([], kind="process_bench") is None
