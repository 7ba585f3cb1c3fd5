"""Rows to learn from, as public data sets for supervised training have them."""

import json

import pytest

from priml.config.data import FileSource
from priml.data.demonstrations import TURNS, to_demonstration
from priml.data.sources import read_problems
from priml.errors import DataError

ASK, SAY = {"role": "user", "content": "What color is the sky?"}, {"role": "assistant", "content": "It is blue."}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT = {"from": "human", "value": "What color is the sky?"}, {"from": "gpt", "value": "It is blue."}
PAIR = [("user", "What color is the sky?"), ("assistant", "It is blue.")]
TOLD = [("system", "Be brief."), *PAIR]
AGAIN = [("user", "Why?"), ("assistant", "Rayleigh."), *PAIR]

FORMS = {
    # TRL, docs/dataset_formats, and data sets of the Hub in that form
    "messages": ({"messages": [ASK, SAY]}, PAIR),
    "messages with a system message": ({"messages": [SYSTEM, ASK, SAY]}, TOLD),
    "messages with an empty system message": ({"messages": [SYSTEM | {"content": ""}, ASK, SAY]}, None),
    "messages and source (SmolTalk)": ({"messages": [ASK, SAY], "source": "smol-magpie"}, PAIR),
    "messages, prompt and prompt_id (UltraChat)": (
        {"prompt": "What color is the sky?", "prompt_id": "f0e3", "messages": [ASK, SAY]},
        PAIR,
    ),
    "messages with names and null (Capybara)": (
        {"source": "Airoboros", "messages": [ASK | {"name": None}, SAY | {"tool_calls": None}], "num_turns": 2},
        PAIR,
    ),
    "messages, tools empty": ({"messages": [ASK, SAY], "tools": []}, PAIR),
    "problem, messages and answer (OpenR1)": ({"problem": "p", "answer": "1", "messages": [ASK, SAY]}, PAIR),
    "tool messages": (
        {"messages": [ASK, SAY, {"role": "tool", "content": ""}, {"role": "tool", "content": "4"}, SAY]},
        [*PAIR, ("tool", ""), ("tool", "4"), PAIR[1]],
    ),
    "prompt and completion as text": ({"prompt": "What color is the sky?", "completion": "It is blue."}, PAIR),
    "prompt and completion as messages": ({"prompt": [ASK], "completion": [SAY]}, PAIR),
    "prompt as messages, completion as text": ({"prompt": [SYSTEM, ASK], "completion": "It is blue."}, TOLD),
    "prompt, completion and metadata": (
        {"prompt": [ASK], "completion": [SAY], "extra_info": {"index": 3}, "id": 7},
        PAIR,
    ),
    # LLaMA-Factory, data/README.md
    "alpaca": ({"instruction": "What color is the sky?", "input": "", "output": "It is blue."}, PAIR),
    "alpaca, input null": ({"instruction": "What color is the sky?", "input": None, "output": "It is blue."}, PAIR),
    "alpaca with input": (
        {"instruction": "Name its color.", "input": "the sky", "output": "Blue."},
        [("user", "Name its color.\nthe sky"), ("assistant", "Blue.")],
    ),
    "alpaca with text (Stanford)": (
        {"instruction": "What color is the sky?", "input": "", "output": "It is blue.", "text": "Below is ..."},
        PAIR,
    ),
    "alpaca with system": (
        {"instruction": "What color is the sky?", "output": "It is blue.", "system": "Be brief."},
        TOLD,
    ),
    "alpaca with history": (
        {
            "instruction": "What color is the sky?",
            "input": "",
            "output": "It is blue.",
            "history": [["Why?", "Rayleigh."]],
        },
        AGAIN,
    ),
    "alpaca with empty history and system": (
        {"instruction": "What color is the sky?", "output": "It is blue.", "system": "", "history": []},
        PAIR,
    ),
    # sharegpt
    "sharegpt": ({"conversations": [HUMAN, GPT]}, PAIR),
    "sharegpt with ids (Vicuna)": ({"id": "identity_0", "conversations": [HUMAN, GPT]}, PAIR),
    "sharegpt with a system turn (SlimOrca)": (
        {"conversations": [{"from": "system", "value": "Be brief.", "weight": None}, HUMAN, GPT | {"weight": 1.0}]},
        TOLD,
    ),
    "sharegpt with system and tools empty": (
        {"conversations": [HUMAN, GPT], "system": "Be brief.", "tools": ""},
        TOLD,
    ),
    "sharegpt of several turns": (
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Rayleigh."}, HUMAN, GPT]},
        AGAIN,
    ),
    "sharegpt with role and content (OpenThoughts)": ({"conversations": [ASK, SAY], "system": None}, PAIR),
    "sharegpt with an observation": (
        {"conversations": [HUMAN, GPT, {"from": "observation", "value": "4"}, GPT]},
        [*PAIR, ("tool", "4"), PAIR[1]],
    ),
    "Eurus-2-SFT-Data": (
        {"id": 1, "task": "Math", "dataset": "NuminaMath", "system": "Be brief.", "conversations": [HUMAN, GPT]},
        TOLD,
    ),
    "Eurus-2-SFT-Data of code": (
        {
            "id": "c1",
            "task": "Coding",
            "dataset": "Code-Feedback",
            "system": "Be brief.",
            "conversations": [HUMAN, GPT],
        },
        TOLD,
    ),
}


def said(problem):
    prompt = [problem.prompt] if isinstance(problem.prompt, str) else problem.prompt
    return [(m.role, m.content) for m in (*prompt, *problem.meta[TURNS])]


@pytest.mark.parametrize("name", FORMS)
def test_a_row_is_read_as_its_form_means_it(name: str):
    row, expected = FORMS[name]
    problem = to_demonstration(row, {}, name="rows", number=1)
    expected = expected or [("system", ""), *PAIR]
    assert said(problem) == expected
    assert problem.prompt[-1].role == "user"
    assert problem.answer == ""


def test_ids_and_sources_are_the_row_s_own():
    problem = to_demonstration(FORMS["Eurus-2-SFT-Data"][0], {}, name="rows", number=1)
    assert (problem.id, problem.source) == ("1", "NuminaMath")
    problem = to_demonstration({"id": None, "messages": [ASK, SAY], "source": None}, {}, name="rows", number=3)
    assert (problem.id, problem.source) == ("rows:3", "rows")


def test_of_a_prompt_and_its_completion_only_the_completion_is_learned():
    shots = [ASK, SAY, ASK]
    problem = to_demonstration({"prompt": shots, "completion": [SAY]}, {}, name="rows", number=1)
    assert [m.role for m in problem.prompt] == ["user", "assistant", "user"]
    assert [m.role for m in problem.meta[TURNS]] == ["assistant"]


OURS = {
    "problem and solution (NuminaMath)": {
        "source": "cn_k12",
        "problem": "1+1?",
        "solution": "2",
        "messages": [ASK, SAY],
    },
    "question and response": {"question": "1+1?", "response": "2"},
    "with an answer": {"problem": "1+1?", "answer": "2", "response": "It is 2."},
    "GSM8K": {"question": "1+1?", "answer": "It is 2.\n#### 2"},
}


@pytest.mark.parametrize("name", OURS)
def test_a_question_with_a_response_is_ours_with_or_without_an_answer(name: str):
    problem = to_demonstration(OURS[name], {}, name="rows", number=1)
    assert problem.prompt == "1+1?"
    assert TURNS not in problem.meta
    assert problem.meta.get("response") or problem.meta["solution"]


def test_a_system_prompt_is_a_system_message(tmp_path):
    row = {"id": "niv", "system_prompt": "Be brief.", "question": "1+1?", "response": "2"}  # OpenOrca
    problem = to_demonstration(row, {}, name="rows", number=1)
    assert [(m.role, m.content) for m in problem.prompt] == [("system", "Be brief."), ("user", "1+1?")]


def test_columns_name_those_of_any_other_form():
    row = {"context": "1+1?", "target": "2"}
    problem = to_demonstration(row, {"prompt": "context", "response": "target"}, name="rows", number=1)
    assert (problem.prompt, problem.meta["response"]) == ("1+1?", "2")


BAD = [
    ({"text": "The sky is blue."}, "nothing to learn from: found values in text, needed messages; conversations;"),
    ({"prompt": "The sky is"}, "nothing to learn from: found values in prompt"),
    ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "found values in prompt, chosen, rejected"),
    ({"instruction": "Say it.", "context": "", "response": "Blue."}, "found values in instruction, context, response"),
    ({"messages": []}, r"messages is \[\], needed a list of messages"),
    ({"messages": "text"}, "messages is 'text', needed a list of messages"),
    ({"messages": [ASK]}, "messages ends with a message of role 'user', needed the assistant's last"),
    ({"messages": [ASK, SAY, ASK]}, "messages ends with a message of role 'user'"),
    ({"messages": [SYSTEM, SAY]}, "messages: the assistant speaks first, needed a user message before"),
    ({"messages": [SAY, ASK, SAY]}, "messages: the assistant speaks first"),
    ({"messages": [ASK, SAY | {"content": None}]}, r"messages\[1\].content is None, needed text"),
    ({"messages": [ASK, SAY | {"content": " "}]}, r"messages\[1\].content is empty"),
    ({"messages": [ASK | {"content": [{"type": "text"}]}, SAY]}, r"messages\[0\].content is .*, needed text"),
    ({"messages": [ASK, SAY | {"role": "critic"}]}, r"messages\[1\].role is 'critic', needed one of system, user"),
    ({"messages": [ASK, SAY | {"tool_calls": [{"id": "1"}]}]}, r"messages\[1\].tool_calls: calls are not rendered"),
    ({"messages": [ASK, SAY | {"weight": 0}, ASK, SAY]}, r"messages\[1\] is marked as not to be learned"),
    ({"messages": [ASK, SAY], "tools": [{"name": "f"}]}, "tools: descriptions of tools are not put into prompts"),
    ({"conversations": [HUMAN, {"from": "function_call", "value": "{}"}]}, r"\[1\].from is 'function_call', needed"),
    ({"conversations": [HUMAN, "It is blue."]}, r"conversations\[1\] is 'It is blue.', needed {role, content} or"),
    ({"prompt": [ASK], "completion": [ASK]}, "completion ends with a message of role 'user'"),
    ({"prompt": [ASK, SAY], "completion": [SAY]}, "prompt: the assistant speaks first"),
    ({"prompt": "?", "completion": ""}, "completion is empty"),
    ({"instruction": "Say it.", "output": ""}, "output is empty"),
    ({"instruction": "Say it.", "output": "x", "history": [["only"]]}, "history is .*, needed a list of pairs"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_row_of_no_form_is_one_error_with_its_number(tmp_path, row, message: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [ASK, SAY]}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"rows.jsonl:2: .*{message}"):
        read_problems(FileSource(path=path), convert=to_demonstration)
    loaded = read_problems(FileSource(path=path, on_bad_row="skip"), convert=to_demonstration)
    assert [bad.row for bad in loaded.skipped] == [2]
