import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from priml.data.steps import NEWLINE, NUMBERED, join_steps, split_tokens, sums_of_steps
from priml.models.tiny import character_tokenizer

TOKENIZER = character_tokenizer()
QWEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers" / "qwen2.5"


def texts_of(text: str, pattern: str) -> list[str]:
    token_ids = (*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id)
    ends = split_tokens(token_ids, TOKENIZER, pattern)
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [TOKENIZER.decode(token_ids[a : b + 1], skip_special_tokens=True) for a, b in zip(starts, ends, strict=True)]


def test_lines_are_steps_with_the_blank_space_behind_them():
    assert texts_of("one\n\n  two\nthree", NEWLINE) == ["one\n\n  ", "two\n", "three"]


def test_a_last_line_break_does_not_make_a_step_of_the_eos():
    assert texts_of("one\ntwo\n", NEWLINE) == ["one\n", "two\n"]


def test_numbered_steps_begin_at_their_marks_and_what_comes_before_is_a_step():
    text = "Let us see.\nStep 1: add.\nStep 2: take Step 3 back.\nStep 10: done."
    assert texts_of(text, NUMBERED) == [
        "Let us see.\n",
        "Step 1: add.\n",
        "Step 2: take Step 3 back.\n",
        "Step 10: done.",
    ]
    assert texts_of("Step 1: all.", NUMBERED) == ["Step 1: all."]


def test_any_pattern_ends_a_step():
    assert texts_of("f0;12;done", ";") == ["f0;", "12;", "done"]


def test_given_steps_end_where_their_separator_ends():
    text, token_ids, ends = join_steps(["ab", "c", "def"], TOKENIZER, "\n\n")
    assert text == "ab\n\nc\n\ndef"
    assert token_ids[-1] == TOKENIZER.eos_token_id
    assert ends == [3, 6, 10]


def test_a_single_step_is_the_whole_response():
    _, token_ids, ends = join_steps(["all of it"], TOKENIZER, "\n\n")
    assert ends == [len(token_ids) - 1]


def test_characters_of_several_tokens_are_counted_as_characters():
    _, token_ids, ends = join_steps(["π≈3", "x"], TOKENIZER, "\n")
    assert TOKENIZER.decode(token_ids[: ends[0] + 1]) == "π≈3\n"


@pytest.mark.skipif(not QWEN.is_dir(), reason="the Qwen2.5 tokenizer is not on this machine")
def test_a_token_over_the_border_belongs_to_the_step_it_ends():
    tokenizer = AutoTokenizer.from_pretrained(str(QWEN))
    steps = ["We add 2 and 3.", "cafe\u0301 is normalised by this tokenizer.", "So \\boxed{5}."]
    _, token_ids, ends = join_steps(steps, tokenizer, "\n\n")
    starts = [0, *(end + 1 for end in ends[:-1])]
    found = [tokenizer.decode(token_ids[a : b + 1]) for a, b in zip(starts, ends, strict=True)]
    assert found[0] == "We add 2 and 3.\n\n"
    assert tokenizer.encode(".\n\n") == [token_ids[ends[0]]]
    assert found[1] == "café is normalised by this tokenizer.\n\n"
    assert re.fullmatch(r"So \\boxed\{5\}\.<\|.*\|>", found[2])


def test_step_sums_cover_every_token_once():
    assert sums_of_steps([1, 2, 4, 8], [0, 2, 3]) == [1, 6, 8]
    assert sums_of_steps([1, 2, 4, 8], [3]) == [15]


def test_steps_that_share_a_token_do_not_count_it_twice():
    assert sums_of_steps([1, 2, 4], [1, 1, 2]) == [3, 0, 4]
