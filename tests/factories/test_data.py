import json
import re
from pathlib import Path

import pytest

from priml.batch import collate
from priml.config.data import ChainSource, CustomSource, FileSource, PromptFormat, TinyCodeSource, WalkSource
from priml.errors import DataError
from priml.factories.data import build_examples, build_task, load_prompts, load_source
from priml.models.tiny import character_tokenizer
from small_tokenizers import CHATML, byte_tokenizer

ROWS = [
    {"id": "a", "problem": "1+1?", "answer": "2", "solution": "two \\boxed{2}"},
    {"id": "b", "problem": "a much longer question: 2+2?", "answer": "4", "solution": "\\boxed{4}"},
    {"id": "c", "problem": "no answer"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_procedural_source_is_made_with_its_settings():
    source = ChainSource(kind="chain", length=3, modulus=5, count=7, seed=2)
    problems = load_source(source).problems
    assert len(problems) == 7
    assert all(len(problem.prompt) == 1 + 3 + 1 and int(problem.answer) < 5 for problem in problems)


@pytest.mark.parametrize(
    ("source", "question"),
    [
        (ChainSource(kind="chain", length=4), r"[0-9a-i][A-X]{4}="),
        (WalkSource(kind="walk", length=4, states=3, operations=2), r"[012][AB]{4}="),
        (TinyCodeSource(kind="tiny_code", length=4), r"[A-Za-z]{4}="),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_every_procedural_source_has_its_task(source: ChainSource | WalkSource | TinyCodeSource, question: str):
    task = build_task(source)
    (problem,) = task.problems(split="train", count=1, seed=0)
    assert task.name == problem.source == source.kind
    assert re.fullmatch(question, problem.prompt)


def test_problems_of_code_come_with_their_tests_and_the_digest_covers_them():
    sources = [TinyCodeSource(kind="tiny_code", length=3, count=7, seed=seed) for seed in (0, 0, 1)]
    loaded = [load_source(source) for source in sources]
    assert all(problem.kind == "code" and problem.tests for problem in loaded[0].problems)
    assert loaded[0].digest == loaded[1].digest != loaded[2].digest


def test_the_digest_follows_the_problems():
    sources = [ChainSource(kind="chain", length=3, count=7, seed=seed) for seed in (0, 0, 1)]
    digests = [load_source(source).digest for source in sources]
    assert digests[0] == digests[1] != digests[2]


def test_bad_rows_are_kept_out_and_said(tmp_path, said):
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match=r"rows.jsonl.*3"):
        load_source(FileSource(path=path))
    loaded = load_source(FileSource(path=path, on_bad_row="skip"))
    prompts = load_prompts(loaded, character_tokenizer(), PromptFormat(max_prompt_tokens=8))
    assert [prompt.problem.id for prompt in prompts] == ["a"]
    assert "skipped 1 bad rows, the first at 3" in said[0]
    assert said[1] == "dropped 1 of 2 prompts longer than 8 tokens (the first: b)"


def examples(source, *, longest=99):
    tokenizer = character_tokenizer()
    prompts = load_prompts(load_source(source), tokenizer, PromptFormat())
    made = build_examples(prompts, source, tokenizer, PromptFormat(), max_response_tokens=longest)
    return [tokenizer.decode(example.response_ids) for example in made]


def test_the_teacher_of_a_task_writes_the_responses_and_they_end(said):
    texts = examples(ChainSource(kind="chain", length=3, count=5, doubtful=0.0))
    assert all(len(text.split("\\boxed{")[0]) == 3 and text.endswith("}<|end|>") for text in texts)
    assert said == []


def test_the_teacher_of_the_code_task_writes_fenced_programs():
    texts = examples(TinyCodeSource(kind="tiny_code", length=3, count=5))
    assert all(text.startswith("```python\ndef f(x):\n") and text.endswith("\n```<|end|>") for text in texts)


def test_rows_bring_their_own_responses_and_long_ones_are_dropped_and_counted(tmp_path, said):
    source = FileSource(path=write(tmp_path / "rows.jsonl", ROWS[:2]))
    assert examples(source) == ["two \\boxed{2}<|end|>", "\\boxed{4}<|end|>"]
    texts = examples(source, longest=5)
    assert texts == ["\\boxed{4}<|end|>"]
    assert said == ["dropped 1 of 2 responses longer than max_response_tokens=5"]
    with pytest.raises(DataError, match="all 2 responses are longer than max_response_tokens=1; raise it"):
        examples(source, longest=1)


def test_a_row_without_a_response_cannot_be_learnt(tmp_path):
    source = FileSource(path=write(tmp_path / "rows.jsonl", [{"id": "x", "problem": "?", "answer": "1"}]))
    with pytest.raises(DataError, match="problem x: no response to learn from; need a `response` or `solution`"):
        examples(source)


TURNS = [
    {"role": "assistant", "content": "print(4)"},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "\\boxed{4}"},
]


def rows_with(response, path):
    return write(path / "rows.jsonl", [{"id": "x", "problem": "2+2?", "answer": "4", "response": response}])


def learned(path, tokenizer, columns=None):
    """What is learned of the only row, and all that follows its prompt."""
    source = FileSource(path=path, columns=columns)
    prompts = load_prompts(load_source(source), tokenizer, PromptFormat())
    (row,) = build_examples(prompts, source, tokenizer, PromptFormat(), max_response_tokens=99)
    assert row.is_trained is not None
    batch = collate([row], step=0)
    trained = batch.tokens_BL[batch.loss_mask_BL]
    assert len(trained) == row.num_trained == int(batch.response_lengths_B)
    return tuple(tokenizer.decode(ids, skip_special_tokens=False) for ids in (trained, row.response_ids))


def test_of_a_response_with_turns_observations_are_read_and_not_learnt(tmp_path):
    as_json_text = json.dumps(TURNS)
    for response in (TURNS, as_json_text):
        for columns in (None, {"response": "response"}):
            trained, whole = learned(rows_with(response, tmp_path), character_tokenizer(), columns)
            assert trained == "print(4)<|end|>\\boxed{4}<|end|>"
            assert whole == "print(4)<|end|>4\\boxed{4}<|end|>"


def test_the_tokens_of_a_demonstration_are_those_of_a_rollout(tmp_path):
    tokenizer = byte_tokenizer(template=CHATML.replace("<|im_end|>", "</s>"))
    trained, whole = learned(rows_with(TURNS, tmp_path), tokenizer)
    assert trained == "print(4)</s>\\boxed{4}</s>"
    assert whole == ("print(4)</s>\n<|im_start|>tool\n4</s>\n<|im_start|>assistant\n\\boxed{4}</s>")


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ([], "no response"),
        (TURNS[:2], r"problem x: response ends with a message of role 'tool', needed the assistant's last"),
        (TURNS[1:], r"problem x: response\[0\] is .*, needed {role: assistant, content: TEXT}"),
        ([TURNS[0], TURNS[0]], r"problem x: response\[1\] is .*, needed {role: user \| tool, content: TEXT}"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], r"response\[0\] is .*, needed"),
        ([{"role": "assistant", "content": ""}, *TURNS[1:]], r"response\[0\].content is empty"),
        (7, "problem x: response is 7, needed text, or a list of turns and observations"),
    ],
)
def test_a_response_with_other_turns_is_refused(response, message: str, tmp_path):
    with pytest.raises(DataError, match=message):
        learned(rows_with(response, tmp_path), character_tokenizer())


def test_an_observation_may_be_empty(tmp_path):
    turns = [TURNS[0], {"role": "tool", "content": ""}, TURNS[2]]
    assert learned(rows_with(turns, tmp_path), character_tokenizer())[1] == "print(4)<|end|>\\boxed{4}<|end|>"


def test_a_named_column_with_bad_turns_is_a_bad_row(tmp_path):
    with pytest.raises(DataError, match=r"rows.jsonl.*1: response ends with"):
        learned(rows_with(TURNS[:2], tmp_path), character_tokenizer(), {"response": "response"})


def test_rows_of_a_function_are_the_same_problems_by_whatever_path_its_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine.py").write_text("def rows():\n    return [{'problem': '1+1=', 'answer': '2'}]\n")
    monkeypatch.chdir(tmp_path)
    # As it is given, and as a resumed run reads it from its own settings.
    given, resumed = (
        load_source(CustomSource(kind="custom", function=f"{path}:rows")) for path in ("mine.py", tmp_path / "mine.py")
    )
    assert resumed == given
