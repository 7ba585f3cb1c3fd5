import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from priml.data.chat import build_prompts, render_prompt, require_eos, response_tokens, step_ends
from priml.errors import ConfigError, DataError, ModelError
from priml.types import Message, Problem

QWEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers" / "qwen2.5"
MATH = QWEN.parents[1] / "math"
needs_qwen = pytest.mark.skipif(not QWEN.is_dir(), reason="the Qwen tokenizer is not on this machine")

CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x"
CHAT = (Message("system", "Think."), Message("user", "1+1?"))


def byte_tokenizer(
    *,
    adds_bos: bool = False,
    adds_eos: bool = False,
    template: str | None = None,
    merge: tuple[str, str] | None = None,
    **special: str,
):
    """Byte-level BPE with one merge at most: mostly one token a byte, so a character may take four."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(["".join(merge)] if merge else [])]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[merge] if merge else []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    if adds_bos or adds_eos:
        shape = f"{'<s> ' * adds_bos}$A{' </s>' * adds_eos}"
        ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
        backend.post_processor = processors.TemplateProcessing(single=shape, special_tokens=ids)
    special = special or {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece_tokenizer():
    """Llama's way: spaces belong to words, unknown characters fall back on bytes, the first space is dropped."""
    words = ["\u2581", "\u2581one", "\u2581two", "one", "two", ".", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), *((word, -1.0) for word in words)], 0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=False)


BYTES = byte_tokenizer()
SENTENCEPIECE = sentencepiece_tokenizer()


# --- prompts ---


def test_a_chat_goes_through_the_template_up_to_the_response():
    tokenizer = byte_tokenizer(template=CHATML, adds_bos=True)
    prompt = render_prompt(Problem("a", CHAT, "2"), tokenizer, suffix=" Box it.")
    assert prompt.text == "<s>system\nThink.</s>\n<s>user\n1+1? Box it.</s>\n<s>assistant\n"
    assert list(prompt.token_ids) == tokenizer.apply_chat_template(
        [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1? Box it."}],
        add_generation_prompt=True,
        return_dict=False,
    )


def test_text_becomes_the_user_message_of_a_chat():
    prompt = render_prompt(Problem("a", "1+1?", "2"), byte_tokenizer(template=CHATML), system="Be brief.")
    assert prompt.text == "<s>system\nBe brief.</s>\n<s>user\n1+1?</s>\n<s>assistant\n"


def test_a_system_message_of_the_problem_is_kept():
    tokenizer = byte_tokenizer(template=CHATML)
    problem = Problem("a", CHAT, "2")
    assert render_prompt(problem, tokenizer, system="Be brief.") == render_prompt(problem, tokenizer)


@pytest.mark.parametrize("use_chat", ["auto", "plain"])
def test_without_a_template_messages_are_joined_by_blank_lines(use_chat):
    tokenizer = byte_tokenizer(template=None if use_chat == "auto" else CHATML)
    prompt = render_prompt(Problem("a", "1+1?", "2"), tokenizer, system="Be brief.", suffix="\nA:", use_chat=use_chat)
    assert prompt.text == "Be brief.\n\n1+1?\nA:"
    assert list(prompt.token_ids) == tokenizer.encode(prompt.text, add_special_tokens=False)


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("special", [{"bos_token": "<s>"}, {"bos_token": "</s>"}, {"unk_token": "</s>"}])
def test_bare_text_gets_bos_exactly_when_the_tokenizer_adds_it_and_never_eos(adds_bos, adds_eos, special):
    tokenizer = byte_tokenizer(adds_bos=adds_bos, adds_eos=adds_eos, **special)
    prompt = render_prompt(Problem("a", "1+1?", "2"), tokenizer)
    assert prompt.text == ("<s>1+1?" if adds_bos and special == {"bos_token": "<s>"} else "1+1?")
    assert tokenizer.decode(prompt.token_ids) == prompt.text


@pytest.mark.parametrize("adds_bos", [False, True])
def test_bare_text_that_brings_its_own_bos_gets_no_second_one(adds_bos):
    prompt = render_prompt(Problem("a", "<s>1+1?", "2"), byte_tokenizer(adds_bos=adds_bos))
    assert prompt.text == "<s>1+1?"
    assert len(prompt.token_ids) == 5


def test_a_text_around_the_question_is_a_prompt_for_a_base_model():
    text = "Question: {problem}\nAnswer:"
    prompt = render_prompt(Problem("p", "\\frac{1}{2}?", "1"), byte_tokenizer(), text=text, use_chat="plain")
    assert prompt.text == "Question: \\frac{1}{2}?\nAnswer:"
    chat = render_prompt(Problem("p", CHAT, "2"), byte_tokenizer(), text=text, suffix=" ", use_chat="plain")
    assert chat.text == "Think.\n\nQuestion: 1+1?\nAnswer: "


def test_a_demanded_template_must_be_there():
    with pytest.raises(ModelError, match="has no chat template; use auto or plain"):
        render_prompt(Problem("a", CHAT, "2"), byte_tokenizer(), use_chat="chat")


def test_a_template_that_refuses_the_messages_is_reported_with_the_problem():
    with pytest.raises(ModelError, match=r"problem 'a' \(roles: system, user\): System role not supported; if"):
        render_prompt(Problem("a", CHAT, "2"), byte_tokenizer(template=NO_SYSTEM))


def test_long_prompts_are_dropped_and_named_never_cut():
    problems = [Problem(str(length), "x" * length, "1") for length in (3, 5, 4, 6)]
    kept = build_prompts(problems, BYTES, max_prompt_tokens=4)
    assert [len(prompt.token_ids) for prompt in kept.prompts] == [3, 4]
    assert kept.too_long == ("5", "6")


def test_a_data_set_of_long_prompts_only_is_refused():
    with pytest.raises(DataError, match=r"all 2 prompts .* max_prompt_tokens=4: the shortest has 5 tokens"):
        build_prompts([Problem("a", "x" * 5, "1"), Problem("b", "x" * 6, "1")], BYTES, max_prompt_tokens=4)
    with pytest.raises(DataError, match="no problems"):
        build_prompts([], BYTES, max_prompt_tokens=4)


# --- responses ---


def test_a_response_ends_with_one_eos():
    plain = BYTES.encode("so 2", add_special_tokens=False)
    assert response_tokens("so 2", BYTES) == (*plain, BYTES.eos_token_id)
    assert response_tokens("so 2</s>", BYTES) == (*plain, BYTES.eos_token_id)
    assert response_tokens("", BYTES) == (BYTES.eos_token_id,)


def test_a_response_gets_no_bos_and_only_one_eos_from_a_tokenizer_that_adds_both():
    tokenizer = byte_tokenizer(adds_bos=True, adds_eos=True)
    assert tokenizer.decode(response_tokens("so 2", tokenizer)) == "so 2</s>"


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = byte_tokenizer(bos_token="<s>")
    with pytest.raises(ModelError, match=r"no EOS token.*set `eos_token`"):
        require_eos(tokenizer)
    with pytest.raises(ModelError, match="no EOS token"):
        response_tokens("so 2", tokenizer)


# --- steps ---


def ends_by_definition(token_ids: list[int], tokenizer, pattern: str) -> list[int]:
    """Quadratic: for each match, the first token with which all of it has been written."""
    written = [tokenizer.decode(token_ids[: i + 1], skip_special_tokens=True) for i in range(len(token_ids))]
    known = [len(text.rstrip("\ufffd")) for text in written]
    ends = {next(i for i, n in enumerate(known) if n >= m.end()) for m in re.finditer(pattern, written[-1]) if m.end()}
    return sorted(ends | {len(token_ids) - 1})


def test_each_newline_and_the_last_token_end_a_step():
    assert step_ends(BYTES.encode("a\nbc\n\nd", add_special_tokens=False), BYTES) == [1, 4, 5, 6]


def test_a_newline_before_eos_leaves_eos_a_step_of_its_own():
    assert step_ends(response_tokens("a\nb\n", BYTES), BYTES) == [1, 3, 4]


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
    ids = list(response_tokens(text, BYTES))
    assert step_ends(ids, BYTES, pattern) == ends_by_definition(ids, BYTES, pattern)


@given(
    words=st.lists(st.sampled_from([" one", "one", " two", ".", "\n", " ", "\u00e9", "\u3002", "\U0001d465"])),
    pattern=SEPARATORS,
)
def test_steps_of_sentencepiece_text_end_where_the_definition_says(words, pattern):
    ids = list(response_tokens("".join(words), SENTENCEPIECE))
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


# --- the real tokenizer ---


@pytest.fixture(scope="module")
def qwen():
    return AutoTokenizer.from_pretrained(QWEN)


@needs_qwen
def test_qwen_prompts_equal_those_of_its_own_template(qwen):
    prompt = render_prompt(Problem("a", CHAT, "2"), qwen)
    assert (
        prompt.text == "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    conversation = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}]
    ids = qwen.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert list(prompt.token_ids) == ids
    assert qwen.decode(response_tokens("so 2", qwen)) == "so 2<|im_end|>"


@needs_qwen
def test_qwen_steps_of_real_solutions_end_where_the_definition_says(qwen):
    rows = [json.loads(line) for line in (MATH / "math500.jsonl").read_text().splitlines()[:40]]
    for row in rows:
        ids = list(response_tokens(row["solution"] + "\n\u2220\U0001d465\u3002\n\n\U0001f600.", qwen))
        for pattern in (r"\n", r"\n\n", r"\.\s", "\u3002"):
            assert step_ends(ids, qwen, pattern) == ends_by_definition(ids, qwen, pattern)


@needs_qwen
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 60))
def test_qwen_steps_of_random_tokens_end_at_the_tokens_with_newlines(qwen, seed, length):
    # Whatever an untrained model writes: tokens that are halves of characters, special tokens, all languages.
    newline = qwen.encode("\n")[0]
    rng = random.Random(seed)
    ids = [rng.choice((newline, rng.randrange(len(qwen)))) for _ in range(length)]
    ends = step_ends(ids, qwen)
    assert {i for i, token_id in enumerate(ids) if token_id == newline} <= set(ends)
    assert ends[-1] == length - 1
