import json
import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from priml.data.chat import response_tokens
from priml.data.steps import NEWLINE, NUMBERED, join_steps, split_tokens, step_ends, sums_of_steps
from priml.errors import ConfigError
from priml.models.tiny import character_tokenizer
from sampling import SEED
from small_tokenizers import QWEN, SOLUTIONS, byte_tokenizer, sentencepiece_tokenizer

TOKENIZER = character_tokenizer()
BYTES = byte_tokenizer()
SENTENCEPIECE = sentencepiece_tokenizer()
MATH = QWEN.parents[1] / "math"


def step_texts(text: str, pattern: str) -> list[str]:
    token_ids = (*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id)
    ends = split_tokens(token_ids, TOKENIZER, pattern)
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [TOKENIZER.decode(token_ids[a : b + 1], skip_special_tokens=True) for a, b in zip(starts, ends, strict=True)]


def test_lines_are_steps_with_the_blank_space_behind_them():
    assert step_texts("one\n\n  two\nthree", NEWLINE) == ["one\n\n  ", "two\n", "three"]


def test_a_last_line_break_does_not_make_a_step_of_the_eos():
    assert step_texts("one\ntwo\n", NEWLINE) == ["one\n", "two\n"]


def test_numbered_steps_begin_at_their_marks_and_what_comes_before_is_a_step():
    text = "Let us see.\nStep 1: add.\nStep 2: take Step 3 back.\nStep 10: done."
    assert step_texts(text, NUMBERED) == [
        "Let us see.\n",
        "Step 1: add.\n",
        "Step 2: take Step 3 back.\n",
        "Step 10: done.",
    ]
    assert step_texts("Step 1: all.", NUMBERED) == ["Step 1: all."]


def test_any_pattern_ends_a_step():
    assert step_texts("f0;12;done", ";") == ["f0;", "12;", "done"]


def test_given_steps_end_where_their_separator_ends():
    text, token_ids, ends = join_steps(["ab", "c", "def"], TOKENIZER, "\n\n", end=TOKENIZER.eos_token_id)
    assert text == "ab\n\nc\n\ndef"
    assert token_ids[-1] == TOKENIZER.eos_token_id
    assert ends == [3, 6, 10]


def test_a_single_step_is_the_whole_response():
    _, token_ids, ends = join_steps(["all of it"], TOKENIZER, "\n\n", end=TOKENIZER.eos_token_id)
    assert ends == [len(token_ids) - 1]


def test_characters_of_several_tokens_are_counted_as_characters():
    _, token_ids, ends = join_steps(["π≈3", "x"], TOKENIZER, "\n", end=TOKENIZER.eos_token_id)
    assert TOKENIZER.decode(token_ids[: ends[0] + 1]) == "π≈3\n"


def test_a_token_over_the_border_belongs_to_the_step_it_ends(published_tokenizer):
    tokenizer = published_tokenizer
    steps = ["We add 2 and 3.", "cafe\u0301 is normalised by this tokenizer.", "So \\boxed{5}."]
    _, token_ids, ends = join_steps(steps, tokenizer, "\n\n", end=tokenizer.eos_token_id)
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


# --- where steps end ---


def ends_by_definition(token_ids: list[int], tokenizer, pattern: str) -> list[int]:
    """Quadratic: for each match, the first token with which all of it has been written."""
    written = [tokenizer.decode(token_ids[: i + 1], skip_special_tokens=True) for i in range(len(token_ids))]
    known = [len(text.rstrip("\ufffd")) for text in written]
    ends = {next(i for i, n in enumerate(known) if n >= m.end()) for m in re.finditer(pattern, written[-1]) if m.end()}
    return sorted(ends | {len(token_ids) - 1})


def test_each_newline_and_the_last_token_end_a_step():
    assert step_ends(BYTES.encode("a\nbc\n\nd", add_special_tokens=False), BYTES) == [1, 4, 5, 6]


def test_a_newline_before_eos_leaves_eos_a_step_of_its_own():
    assert step_ends(response_tokens("a\nb\n", BYTES, BYTES.eos_token_id), BYTES) == [1, 3, 4]


def test_a_separator_over_several_tokens_ends_a_step_with_its_last_one():
    ids = BYTES.encode("a\n\nb\nc", add_special_tokens=False)
    assert step_ends(ids, BYTES, r"\n\n") == [2, 5]
    assert step_ends(ids, BYTES, r"\n+") == [2, 4, 5]


def test_a_match_without_width_ends_the_step_before_it():
    ids = BYTES.encode("Step 1: a Step 2: b", add_special_tokens=False)
    assert step_ends(ids, BYTES, r"(?=Step \d)") == [len("Step 1: a ") - 1, len(ids) - 1]


def test_a_separator_of_several_bytes_is_found_at_its_last_byte():
    ids = BYTES.encode("\u2220A\u3002\U0001d465=1\u3002", add_special_tokens=False)
    assert step_ends(ids, BYTES, "\u3002") == [6, 15]


def test_a_token_that_ends_one_character_and_begins_the_next_ends_a_step_with_the_first():
    tokenizer = byte_tokenizer(merge=("\u0120", "\u00e2"))  # a space and the first of the three bytes of an angle sign
    ids = tokenizer.encode("a. \u2220", add_special_tokens=False)
    assert len(ids) == 5
    assert step_ends(ids, tokenizer, r"\. ") == [2, 4]


def test_a_response_without_tokens_has_no_steps():
    assert step_ends([], BYTES) == []


def test_a_pattern_that_is_not_one_is_refused():
    with pytest.raises(ConfigError, match=r"'\(' is not a regular expression"):
        step_ends([1], BYTES, "(")


SEPARATORS = st.sampled_from([r"\n", r"\n\n", r"\. ", r"(?=\n)", r"\u3002", r"\s+"])


@given(text=st.text(st.sampled_from("a \n.\u00e9\u3002\U0001d465")), pattern=SEPARATORS)
def test_steps_of_byte_level_text_end_where_the_definition_says(text, pattern):
    ids = list(response_tokens(text, BYTES, BYTES.eos_token_id))
    assert step_ends(ids, BYTES, pattern) == ends_by_definition(ids, BYTES, pattern)


@given(
    words=st.lists(st.sampled_from([" one", "one", " two", ".", "\n", " ", "\u00e9", "\u3002", "\U0001d465"])),
    pattern=SEPARATORS,
)
def test_steps_of_sentencepiece_text_end_where_the_definition_says(words, pattern):
    ids = list(response_tokens("".join(words), SENTENCEPIECE, SENTENCEPIECE.eos_token_id))
    assert step_ends(ids, SENTENCEPIECE, pattern) == ends_by_definition(ids, SENTENCEPIECE, pattern)


@given(st.lists(st.integers(0, 255), min_size=1))
def test_newlines_among_bytes_that_make_no_characters_are_found(raw):
    token_of_byte = {byte: BYTES.convert_tokens_to_ids(symbol) for byte, symbol in byte_symbols().items()}
    ends = step_ends([token_of_byte[byte] for byte in raw], BYTES)
    assert ends == sorted({i for i, byte in enumerate(raw) if byte == ord("\n")} | {len(raw) - 1})


def byte_symbols() -> dict[int, str]:
    """The printable stand-in of each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


class DecodeCounter:
    """The byte tokenizer, counting the tokens it is asked to decode."""

    def __init__(self):
        self.tokens = 0

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        self.tokens += len(token_ids)
        return BYTES.decode(token_ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize(("byte", "most"), [(ord("a"), 3), (0x80, 14)])
def test_the_work_is_linear_in_the_length_even_for_bytes_that_make_no_characters(byte, most):
    counter = DecodeCounter()
    step_ends([BYTES.convert_tokens_to_ids(byte_symbols()[byte])] * 3000, counter)
    assert counter.tokens <= most * 3000


def test_steps_of_real_solutions_end_where_the_definition_says(published_tokenizer):
    """Eight published ones, others in each run: the definition decodes every beginning of a text."""
    published = (MATH / "math500.jsonl").read_text().splitlines() if MATH.is_dir() else []
    chosen = random.Random(SEED).sample(published, min(8, len(published)))
    for solution in (*SOLUTIONS, *(json.loads(line)["solution"] for line in chosen)):
        ids = list(
            response_tokens(
                solution + "\n\u2220\U0001d465\u3002\n\n\U0001f600.",
                published_tokenizer,
                published_tokenizer.eos_token_id,
            )
        )
        for pattern in (r"\n", r"\n\n", r"\.\s", "\u3002"):
            expected = ends_by_definition(ids, published_tokenizer, pattern)
            assert step_ends(ids, published_tokenizer, pattern) == expected, f"sample {SEED}"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), length=st.integers(1, 60))
def test_steps_of_random_tokens_end_at_the_tokens_with_newlines(published_tokenizer, seed, length):
    # Whatever an untrained model writes: tokens that are halves of characters, special tokens, all languages.
    (newline,) = published_tokenizer.encode("\n")
    rng = random.Random(seed)
    ids = [rng.choice((newline, rng.randrange(len(published_tokenizer)))) for _ in range(length)]
    ends = step_ends(ids, published_tokenizer)
    assert {i for i, token_id in enumerate(ids) if token_id == newline} <= set(ends)
    assert ends[-1] == length - 1
