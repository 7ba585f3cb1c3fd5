import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priml.config.prm import ResponseFile
from priml.data.labelled import LoadedResponses, group_by_problem, read_responses, split_held_out
from priml.data.rows import BadRow
from priml.errors import ConfigError, DataError
from priml.types import Message

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


def load(tmp_path: Path, *rows: object, needs_label: bool = True, **options) -> LoadedResponses:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_responses(ResponseFile(path=path, **options), needs_label=needs_label)


def test_a_labelled_row_is_a_prompt_a_response_and_an_outcome(tmp_path: Path):
    loaded = load(
        tmp_path,
        {"prompt": "1+1?", "response": "2", "label": True},
        {"problem": CHAT, "completion": [{"role": "assistant", "content": "3"}], "outcome": 0.25, "answer": 2},
    )
    first, second = loaded.responses
    assert (first.problem.prompt, first.text, first.outcome) == ("1+1?", "2", 1.0)
    assert second.problem.prompt == (Message("system", "Be brief."), Message("user", "1+1?"))
    assert (second.text, second.outcome, second.problem.answer) == ("3", 0.25, "2")
    assert not loaded.has_pairs


def test_a_pair_is_a_group_of_its_own(tmp_path: Path):
    rows = [{"prompt": "1+1?", "chosen": "2", "rejected": "3"}, {"prompt": "1+1?", "chosen": "two", "rejected": "4"}]
    loaded = load(tmp_path, *rows)
    assert loaded.has_pairs
    assert [[(r.text, r.outcome) for r in group] for group in group_by_problem(loaded.responses)] == [
        [("2", 1.0), ("3", 0.0)],
        [("two", 1.0), ("4", 0.0)],
    ]


def test_rollout_rows_keep_their_tokens_and_their_group(tmp_path: Path):
    rows = [
        {"problem_id": p, "prompt": "<q>", "response": "2", "response_ids": [5, 2], "outcome": o, "gold": "2"}
        for p, o in (("a", 1.0), ("b", 0.0), ("a", 0.0))
    ]
    folder = tmp_path / "rollouts"
    folder.mkdir()
    for step, row in enumerate(rows):
        pq.write_table(pa.Table.from_pylist([row]), folder / f"{step:06d}.parquet")
    loaded = read_responses(ResponseFile(path=folder), needs_label=True)
    assert [len(group) for group in group_by_problem(loaded.responses)] == [2, 1]
    assert loaded.responses[0].token_ids == (5, 2)
    assert loaded.responses[0].problem.answer == "2"
    again = read_responses(ResponseFile(path=folder), needs_label=True)
    assert (
        again.digest
        == loaded.digest
        != read_responses(ResponseFile(path=folder / "000000.parquet"), needs_label=True).digest
    )


def test_given_steps_are_kept(tmp_path: Path):
    loaded = load(tmp_path, {"problem": "?", "steps": ["one", "two"]}, needs_label=False)
    assert loaded.responses[0].steps == ("one", "two")
    assert loaded.responses[0].outcome is None


def test_columns_of_any_other_name_can_be_named(tmp_path: Path):
    columns = {"prompt": "x.q", "response": "y", "label": "ok"}
    loaded = load(tmp_path, {"x": {"q": "1+1?"}, "y": "2", "ok": 1}, columns=columns)
    assert (loaded.responses[0].problem.prompt, loaded.responses[0].outcome) == ("1+1?", 1.0)
    with pytest.raises(ConfigError, match="no field is called 'reward'; the fields are prompt, response"):
        load(tmp_path, {}, columns={"reward": "r"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"response": "2", "label": 1}, "no prompt: needed a value in prompt or problem or question"),
        ({"prompt": "?", "label": 1}, "no response: needed a value in response or completion, found values in prompt"),
        ({"prompt": "?", "response": "2"}, "no label: needed true, false or a number from 0 to 1 in label or outcome"),
        ({"prompt": "?", "response": "2", "label": "yes"}, "the label is 'yes', needed true, false"),
        ({"prompt": "?", "response": "2", "label": -1}, "the label is -1, needed true, false"),
        ({"prompt": "?", "response": " ", "label": 1}, "response is empty"),
        ({"prompt": "?", "chosen": "a"}, "no rejected: needed a value in rejected"),
        ({"prompt": "?", "chosen": "a", "rejected": "a"}, "the same text, so there is nothing to prefer"),
        ({"prompt": CHAT + CHAT[:1], "response": "2", "label": 1}, "prompt ends with a message of role 'system'"),
        ({"prompt": "?", "response": CHAT, "label": 1}, "needed text or a list of one assistant message"),
        ({"prompt": "?", "steps": [], "label": 1}, "steps is \\[\\], needed a list of texts"),
        ({"prompt": "?", "response_ids": ["a"], "label": 1}, "response_ids is \\['a'\\], needed a list of token ids"),
        (
            {
                "prompt": "?",
                "response_ids": [1],
                "segments": [{"num_tokens": 1, "weight_version": None}],
                "label": 1,
            },
            "needed those of all 1 response_ids, one of them with a weight_version",
        ),
        (
            {
                "prompt": "?",
                "response_ids": [1, 2],
                "segments": [{"num_tokens": 1, "weight_version": 0}],
                "label": 1,
            },
            "needed those of all 2 response_ids",
        ),
        ("{", "broken JSON"),
    ],
)
def test_bad_rows_are_named_by_number_and_reason(tmp_path: Path, row: object, reason: str):
    good = {"prompt": "1+1?", "response": "2", "label": 1}
    with pytest.raises(DataError, match=f"rows.jsonl:2: .*{reason}"):
        load(tmp_path, good, row)
    skipped = load(tmp_path, good, row, on_bad_row="skip").skipped
    assert [bad.row for bad in skipped] == [2]
    assert isinstance(skipped[0], BadRow)


def test_pairs_and_labels_do_not_mix(tmp_path: Path):
    with pytest.raises(DataError, match="pairs and single responses; put them into a file each"):
        load(tmp_path, {"prompt": "?", "chosen": "a", "rejected": "b"}, {"prompt": "?", "response": "a", "label": 1})


def test_a_prompt_is_never_on_both_sides_of_the_split(tmp_path: Path):
    rows = [{"prompt": f"{i % 200}+1?", "response": str(i), "label": i % 2} for i in range(600)]
    learn, held_out = split_held_out(load(tmp_path, *rows).responses, 0.2)
    assert {r.problem.prompt for r in learn}.isdisjoint({r.problem.prompt for r in held_out})
    assert len(learn) + len(held_out) == 600
    assert 60 < len(held_out) < 180
    assert split_held_out(learn, 0.0) == (learn, [])


def test_a_folder_without_data_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no data file in this folder"):
        read_responses(ResponseFile(path=tmp_path), needs_label=False)
