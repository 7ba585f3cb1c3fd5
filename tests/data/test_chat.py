import pytest

from priml.config.data import PromptFormat
from priml.data.chat import build_prompts, render_prompt, require_eos, response_tokens
from priml.errors import DataError, ModelError
from priml.types import Message, Problem
from small_tokenizers import byte_tokenizer

CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x"
CHAT = (Message("system", "Think."), Message("user", "1+1?"))


BYTES = byte_tokenizer()


# --- prompts ---


def test_a_chat_goes_through_the_template_up_to_the_response():
    tokenizer = byte_tokenizer(template=CHATML, adds_bos=True)
    prompt = render_prompt(Problem("a", CHAT, "2"), tokenizer, PromptFormat(suffix=" Box it."))
    assert prompt.text == "<s>system\nThink.</s>\n<s>user\n1+1? Box it.</s>\n<s>assistant\n"
    assert list(prompt.token_ids) == tokenizer.apply_chat_template(
        [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1? Box it."}],
        add_generation_prompt=True,
        return_dict=False,
    )


def test_text_becomes_the_user_message_of_a_chat():
    prompt = render_prompt(Problem("a", "1+1?", "2"), byte_tokenizer(template=CHATML), PromptFormat(system="Be brief."))
    assert prompt.text == "<s>system\nBe brief.</s>\n<s>user\n1+1?</s>\n<s>assistant\n"


def test_a_system_message_of_the_problem_is_kept():
    tokenizer = byte_tokenizer(template=CHATML)
    problem = Problem("a", CHAT, "2")
    assert render_prompt(problem, tokenizer, PromptFormat(system="Be brief.")) == render_prompt(
        problem, tokenizer, PromptFormat()
    )


@pytest.mark.parametrize("use_chat", ["auto", "plain"])
def test_without_a_template_messages_are_joined_by_blank_lines(use_chat):
    tokenizer = byte_tokenizer(template=None if use_chat == "auto" else CHATML)
    prompt = render_prompt(
        Problem("a", "1+1?", "2"), tokenizer, PromptFormat(system="Be brief.", suffix="\nA:", template=use_chat)
    )
    assert prompt.text == "Be brief.\n\n1+1?\nA:"
    assert list(prompt.token_ids) == tokenizer.encode(prompt.text, add_special_tokens=False)


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("special", [{"bos_token": "<s>"}, {"bos_token": "</s>"}, {"unk_token": "</s>"}])
def test_bare_text_gets_bos_exactly_when_the_tokenizer_adds_it_and_never_eos(adds_bos, adds_eos, special):
    tokenizer = byte_tokenizer(adds_bos=adds_bos, adds_eos=adds_eos, **special)
    prompt = render_prompt(Problem("a", "1+1?", "2"), tokenizer, PromptFormat())
    assert prompt.text == ("<s>1+1?" if adds_bos and special == {"bos_token": "<s>"} else "1+1?")
    assert tokenizer.decode(prompt.token_ids) == prompt.text


@pytest.mark.parametrize("adds_bos", [False, True])
def test_bare_text_that_brings_its_own_bos_gets_no_second_one(adds_bos):
    prompt = render_prompt(Problem("a", "<s>1+1?", "2"), byte_tokenizer(adds_bos=adds_bos), PromptFormat())
    assert prompt.text == "<s>1+1?"
    assert len(prompt.token_ids) == 5


def test_a_text_around_the_question_is_a_prompt_for_a_base_model():
    text = "Question: {problem}\nAnswer:"
    prompt = render_prompt(
        Problem("p", "\\frac{1}{2}?", "1"), byte_tokenizer(), PromptFormat(text=text, template="plain")
    )
    assert prompt.text == "Question: \\frac{1}{2}?\nAnswer:"
    chat = render_prompt(
        Problem("p", CHAT, "2"), byte_tokenizer(), PromptFormat(text=text, suffix=" ", template="plain")
    )
    assert chat.text == "Think.\n\nQuestion: 1+1?\nAnswer: "


def test_a_demanded_template_must_be_there():
    with pytest.raises(ModelError, match="has no chat template; use auto or plain"):
        render_prompt(Problem("a", CHAT, "2"), byte_tokenizer(), PromptFormat(template="chat"))


def test_a_template_that_refuses_the_messages_is_reported_with_the_problem():
    with pytest.raises(ModelError, match=r"problem 'a' \(roles: system, user\): System role not supported; if"):
        render_prompt(Problem("a", CHAT, "2"), byte_tokenizer(template=NO_SYSTEM), PromptFormat())


def test_long_prompts_are_dropped_and_named_never_cut():
    problems = [Problem(str(length), "x" * length, "1") for length in (3, 5, 4, 6)]
    kept = build_prompts(problems, BYTES, PromptFormat(max_prompt_tokens=4))
    assert [len(prompt.token_ids) for prompt in kept.prompts] == [3, 4]
    assert kept.too_long == ("5", "6")


def test_a_data_set_of_long_prompts_only_is_refused():
    with pytest.raises(DataError, match=r"all 2 prompts .* max_prompt_tokens=4: the shortest has 5 tokens"):
        build_prompts(
            [Problem("a", "x" * 5, "1"), Problem("b", "x" * 6, "1")], BYTES, PromptFormat(max_prompt_tokens=4)
        )
    with pytest.raises(DataError, match="no problems"):
        build_prompts([], BYTES, PromptFormat(max_prompt_tokens=4))


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


# --- tokenizers like the published ones ---


def test_prompts_of_published_tokenizers_equal_those_of_their_own_template(published_tokenizer):
    prompt = render_prompt(Problem("a", CHAT, "2"), published_tokenizer, PromptFormat())
    assert (
        prompt.text == "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    conversation = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}]
    ids = published_tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert list(prompt.token_ids) == ids
    assert published_tokenizer.decode(response_tokens("so 2", published_tokenizer)) == "so 2<|im_end|>"
