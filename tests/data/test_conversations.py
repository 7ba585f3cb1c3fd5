"""Conversations are learned with the tokens of the chat template, and every turn of the assistant is."""

import numpy as np
import pytest

from priml.config.data import PromptFormat
from priml.data.chat import response_end
from priml.data.conversations import conversation_rows
from priml.errors import DataError
from priml.types import Message, Problem
from small_tokenizers import CHATML, bpe_tokenizer

PROMPT = (Message("system", "Be brief."), Message("user", "2 + 3?"))
ONE = (Message("assistant", "It is $5$."),)
THREE = (
    *ONE,
    Message("user", "And then?"),
    Message("assistant", "One.\n\nTwo."),
    Message("tool", "4"),
    Message("tool", "5"),
    Message("assistant", "Done."),
)
LLAMA3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
QWEN3 = (  # reasoning of earlier turns is removed; the last one gets an empty block if it has none
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if loop.last %}{% if '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1].lstrip() }}{% endif %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (  # the system message stands with the last question
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{% if loop.index0 == messages | map(attribute='role') "
    "| list | length - 1 - (messages[::-1] | map(attribute='role') | list).index('user') %}{{ messages[0].content }}"
    "\n{% endif %}{{ m.content }}<|im_start|>{% elif m.role == 'assistant' %} {{ m.content }}<|im_end|>{% endif %}"
    "{% endfor %}"
)
R1 = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
NO_END = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def rows(turns, template=CHATML, form=None, tokenizer=None, prompt=PROMPT):
    tokenizer = tokenizer or bpe_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    form = form or PromptFormat()
    problem = Problem("rows:3", prompt, "")
    end = response_end(tokenizer, form)
    return conversation_rows(problem, turns, tokenizer, form, end=end, group=0), tokenizer


def learned(row, tokenizer):
    mask = np.ones(len(row.response_ids), bool) if row.is_trained is None else row.is_trained
    return tokenizer.decode(np.asarray(row.response_ids)[mask], skip_special_tokens=False)


def as_dicts(messages):
    return [{"role": m.role, "content": m.content} for m in messages]


@pytest.mark.parametrize("turns", [ONE, THREE])
@pytest.mark.parametrize("template", [CHATML, LLAMA3])
def test_the_tokens_are_those_of_the_chat_template_up_to_the_end_of_the_last_turn(published_tokenizer, turns, template):
    (row,), tokenizer = rows(turns, template, tokenizer=published_tokenizer)
    ids = [*row.prompt_ids, *row.response_ids]
    whole = tokenizer.apply_chat_template(as_dicts([*PROMPT, *turns]), tokenize=True, return_dict=False)
    assert ids == whole[: len(ids)]
    assert tokenizer.decode(whole[len(ids) :]).strip() == ""


def test_every_turn_of_the_assistant_is_learned_with_its_end_and_nothing_else():
    (row,), tokenizer = rows(THREE)
    assert learned(row, tokenizer) == "It is $5$.<|im_end|>One.\n\nTwo.<|im_end|>Done.<|im_end|>"
    (row,), tokenizer = rows(ONE)
    assert row.is_trained is None
    assert learned(row, tokenizer) == "It is $5$.<|im_end|>"


def test_the_mask_is_that_of_a_template_which_marks_what_the_assistant_says():
    """NVIDIA-NeMo/Megatron-Bridge#3359: without the mark everything was learned."""
    marked = CHATML.replace(
        "{{ m.content }}<|im_end|>\n",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}",
    )
    (row,), tokenizer = rows(THREE)
    found = tokenizer.apply_chat_template(
        as_dicts([*PROMPT, *THREE]),
        chat_template=marked,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    mask = np.array(found["assistant_masks"], bool)[: len(row.prompt_ids) + len(row.response_ids)]
    assert mask[len(row.prompt_ids) :].tolist() == row.is_trained.tolist()
    assert not mask[: len(row.prompt_ids)].any()


@pytest.mark.parametrize("template", [QWEN3, MISTRAL])
def test_where_earlier_turns_change_each_turn_is_learned_behind_what_the_model_would_see(template):
    turns = (
        Message("assistant", "<think>\nhm\n</think>\n\nFive."),
        Message("user", "Then?"),
        Message("assistant", "<think>\nso\n</think>\n\nSix."),
    )
    found, tokenizer = rows(turns, template)
    assert len(found) == 2
    assert [row.is_trained for row in found] == [None, None]
    for row, messages in zip(found, ([*PROMPT], [*PROMPT, *turns[:2]]), strict=True):
        prompt = tokenizer.apply_chat_template(as_dicts(messages), tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(row.prompt_ids, skip_special_tokens=False) == prompt
    assert "hm" in learned(found[0], tokenizer)
    assert ("hm" in tokenizer.decode(found[1].prompt_ids)) == (template == MISTRAL)
    assert learned(found[1], tokenizer).endswith("so\n</think>\n\nSix.<|im_end|>")


def test_what_a_template_writes_in_the_last_turn_is_learned_too():
    (row,), tokenizer = rows(ONE, QWEN3)
    assert learned(row, tokenizer) == "<think>\n\n</think>\n\nIt is $5$.<|im_end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (R1, "rows:3: the chat template does not keep its prompt when the assistant has answered; rows with a problem"),
        (CHATML.replace("m.content", "m.content.split('$')[-1]"), "leaves out the text|leaves out what the assistant"),
        ("{{ raise_exception('no tools') }}", "rows:3: the chat template refused"),
    ],
)
def test_a_template_that_cannot_render_the_conversation_is_an_error_with_the_row(template, message: str):
    with pytest.raises(DataError, match=message):
        rows(ONE, template)


def test_a_turn_ends_with_the_token_that_ends_responses_even_if_the_template_writes_none():
    (row,), tokenizer = rows(THREE, NO_END)
    assert learned(row, tokenizer) == "It is $5$.<|im_end|>One.\n\nTwo.<|im_end|>Done.<|im_end|>"


def test_system_and_suffix_of_the_settings_stand_in_the_prompt():
    form = PromptFormat(system="Think.", suffix=" Box it.")
    (row,), tokenizer = rows(ONE, form=form, prompt=(Message("user", "2 + 3?"),))
    assert tokenizer.decode(row.prompt_ids, skip_special_tokens=False) == (
        "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n2 + 3? Box it.<|im_end|>\n<|im_start|>assistant\n"
    )
