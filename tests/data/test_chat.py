import datetime

import pytest

from priml.config.data import PromptFormat
from priml.data.chat import (
    build_prompts,
    render_prompt,
    require_eos,
    response_end,
    response_tokens,
    special_tokens_in,
)
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
    with pytest.raises(ModelError, match=r"problem 'a': .* roles system, user: System role not supported; if"):
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


# --- templates of other kinds ---

PARTS = (
    "{% for m in messages %}<s>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}"
    "{% endfor %}</s>\n{% endfor %}"
)
DEAF = "{% for m in messages if m.role != 'system' %}<s>{{ m.role }}\n{{ m.content | trim }}</s>\n{% endfor %}"


@pytest.mark.parametrize("template", [PARTS, "{{ messages[-1].content[0]['text'] + '' }}"], ids=["loop", "index"])
def test_a_template_that_reads_parts_alone_gets_parts(template):
    """huggingface/trl#5868: templates of models that also see leave texts out, without an error."""
    prompt = render_prompt(Problem("a", "1 + 1?\n", "2"), byte_tokenizer(template=template), PromptFormat())
    assert "1 + 1?\n" in prompt.text


def test_a_template_that_leaves_a_message_out_is_refused():
    tokenizer = byte_tokenizer(template=DEAF)
    assert "1+1?" in render_prompt(Problem("a", " 1+1? ", "2"), tokenizer, PromptFormat()).text
    with pytest.raises(ModelError, match=r"problem 'a': .* leaves out the text of the system message; if it"):
        render_prompt(Problem("a", "1+1?", "2"), tokenizer, PromptFormat(system="Be brief."))
    with pytest.raises(ModelError, match=r"problem 'a': .* leaves out the text of the user message; if it"):
        render_prompt(Problem("a", "1+1?", "2"), byte_tokenizer(template="{{ messages[0].role }}"), PromptFormat())


def test_reasoning_of_earlier_turns_may_be_left_out():
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    chat = (Message("user", "1+1?"), Message("assistant", "<think>easy</think>2"), Message("user", "2+2?"))
    assert render_prompt(Problem("a", chat, "4"), byte_tokenizer(template=template), PromptFormat()).text == (
        "1+1?\n2\n2+2?\n"
    )


def test_arguments_reach_the_template_and_unknown_ones_are_refused():
    template = CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    tokenizer = byte_tokenizer(template=template)
    problem = Problem("a", "1+1?", "2")
    plain = render_prompt(problem, tokenizer, PromptFormat()).text
    quiet = render_prompt(problem, tokenizer, PromptFormat(template_kwargs={"enable_thinking": False})).text
    assert quiet == plain + "<think></think>"
    for name in ("enable_thinkin", "messages"):
        with pytest.raises(ModelError, match=f"template_kwargs: found {name}, need names that the chat template reads"):
            render_prompt(problem, tokenizer, PromptFormat(template_kwargs={name: False}))


DATED = "{{ strftime_now('%d %b %Y') if strftime_now is defined else 'never' }}\n" + CHATML


@pytest.mark.parametrize("pattern", ["%d %b %Y", "%Y-%m-%d", "%-d. %B %y, %A", "100%% %j"])
def test_a_template_that_writes_the_date_writes_that_of_the_settings(pattern):
    template = f"{{%- set day = strftime_now({pattern!r}) %}}\nToday: {{{{ day }}}}\n" + CHATML
    date = datetime.date(2026, 2, 3)
    prompt = render_prompt(Problem("a", "1+1?", "2"), byte_tokenizer(template=template), PromptFormat(date=date))
    assert prompt.text.startswith(f"Today: {date.strftime(pattern.replace('%%', '%'))}\n")


def test_a_fixed_date_changes_nothing_else():
    """The line break at the start of a template, a question whether there is a clock, and its use in a macro."""
    template = (
        "\n{% macro head() %}{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}{% endmacro %}"
        "{{ head() }}\n" + CHATML
    )
    tokenizer, problem = byte_tokenizer(template=template), Problem("a", "1+1?", "2")
    this_year = PromptFormat(date=datetime.date.today())
    assert render_prompt(problem, tokenizer, this_year) == render_prompt(problem, tokenizer, PromptFormat())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages | length", "syntax error in line 1: unexpected end"),
        ("{{ tools | length }}", r"TypeError: object of type 'NoneType' has no len\(\); give .* {tools: \[\]}"),
        ("{{ messages[0].content.parts() }}", "undefined|no attribute"),
        ({"rag": CHATML, "tool_use": CHATML}, "has the chat templates rag, tool_use, need one named default"),
    ],
)
def test_a_template_that_fails_is_told_as_what_it_is(template, message):
    with pytest.raises(ModelError, match=message):
        render_prompt(Problem("a", "1+1?", "2"), byte_tokenizer(template=template), PromptFormat())


def test_a_template_that_wants_a_list_of_tools_can_have_one():
    tokenizer = byte_tokenizer(template="{{ tools | length }}" + CHATML)
    prompt = render_prompt(Problem("a", "1+1?", "2"), tokenizer, PromptFormat(template_kwargs={"tools": []}))
    assert prompt.text.startswith("0<s>user")


# --- responses ---


@pytest.mark.parametrize("behind", ["<|im_end|>\n", " <|im_end|>", "<|im_end|></s>"])
def test_a_response_ends_as_the_template_ends_a_turn(behind):
    """Gemma, Qwen2.5 (base): the template ends turns with another token than the tokenizer's EOS."""
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}" + behind + "{% endfor %}"
    tokenizer = byte_tokenizer(template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    end = response_end(tokenizer, PromptFormat())
    assert tokenizer.decode([end]) == "<|im_end|>"
    for text in ("so 2", "so 2<|im_end|>", "so 2<|im_end|>\n", "so 2</s>\n"):
        assert tokenizer.decode(response_tokens(text, tokenizer, end)) == "so 2<|im_end|>"
    assert response_end(tokenizer, PromptFormat(template="plain")) == tokenizer.eos_token_id


@pytest.mark.parametrize("behind", ["\n", "", " ### End\n"])
def test_where_a_template_ends_turns_with_plain_text_a_response_ends_with_eos(behind):
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}" + behind + "{% endfor %}"
    tokenizer = byte_tokenizer(template=template)
    assert response_end(tokenizer, PromptFormat()) == tokenizer.eos_token_id


def test_a_response_ends_with_one_eos():
    plain = BYTES.encode("so 2", add_special_tokens=False)
    assert response_tokens("so 2", BYTES, BYTES.eos_token_id) == (*plain, BYTES.eos_token_id)
    assert response_tokens("so 2</s>", BYTES, BYTES.eos_token_id) == (*plain, BYTES.eos_token_id)
    assert response_tokens("", BYTES, BYTES.eos_token_id) == (BYTES.eos_token_id,)


def test_a_response_gets_no_bos_and_only_one_eos_from_a_tokenizer_that_adds_both():
    tokenizer = byte_tokenizer(adds_bos=True, adds_eos=True)
    assert tokenizer.decode(response_tokens("so 2", tokenizer, tokenizer.eos_token_id)) == "so 2</s>"


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = byte_tokenizer(bos_token="<s>")
    with pytest.raises(ModelError, match=r"no EOS token.*set `eos_token`"):
        require_eos(tokenizer)
    with pytest.raises(ModelError, match="no EOS token"):
        response_end(tokenizer, PromptFormat())


# --- tokenizers like the published ones ---


def test_prompts_of_published_tokenizers_equal_those_of_their_own_template(published_tokenizer):
    prompt = render_prompt(Problem("a", CHAT, "2"), published_tokenizer, PromptFormat())
    assert (
        prompt.text == "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    conversation = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}]
    ids = published_tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert list(prompt.token_ids) == ids
    assert (
        published_tokenizer.decode(
            response_tokens("so 2", published_tokenizer, response_end(published_tokenizer, PromptFormat()))
        )
        == "so 2<|im_end|>"
    )


def test_special_tokens_in_the_text_of_a_problem_are_found():
    tokenizer = byte_tokenizer()
    eos = tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id)
    chat = (Message("system", f"be {eos}"), Message("user", "1+1"))
    problems = [
        Problem(id=name, prompt=prompt, answer="") for name, prompt in (("a", "1+1"), ("b", f"x{eos}"), ("c", chat))
    ]
    assert [(problem.id, token) for problem, token in special_tokens_in(problems, tokenizer)] == [
        ("b", eos),
        ("c", eos),
    ]
