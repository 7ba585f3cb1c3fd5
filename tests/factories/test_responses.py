from pathlib import Path

import pytest
from transformers import AutoTokenizer

from labelled_rows import PROMPTS, RESPONSES, make_rows, write_rows
from priml.config.backend import LocalBackend
from priml.config.data import PromptFormat
from priml.config.prm import LineSteps, ResponseFile, TrainedPrm, TurnSteps
from priml.data.labelled import Response
from priml.errors import DataError, ModelError
from priml.factories.device import resolve_device
from priml.factories.responses import load_responses, load_scorer, tokenize
from priml.models.tiny import character_tokenizer, tiny_model
from priml.types import Problem

TOKENIZER = character_tokenizer()
FORM = PromptFormat(max_prompt_tokens=10)


def response(prompt: str, text: str, **more) -> Response:
    return Response(Problem(id=prompt, prompt=prompt, answer=""), text, 1.0, **more)


def test_rows_have_the_tokens_of_prompt_and_response_with_eos_and_the_number_of_their_group():
    made = tokenize(
        [response("a?", "1\n2"), response("b?", "3"), response("a?", "4")],
        TOKENIZER,
        FORM,
        max_response_tokens=10,
        steps=LineSteps(),
    )
    assert [one.row.group for one in made] == [0, 1, 0]
    assert list(made[0].row.prompt_ids) == TOKENIZER.encode("a?")
    assert list(made[0].row.response_ids) == [*TOKENIZER.encode("1\n2"), TOKENIZER.eos_token_id]
    assert list(made[0].row.step_ends) == [1, 3]


def test_rollouts_keep_their_tokens_even_without_eos():
    rollout = response("<s>a?", "1", token_ids=tuple(TOKENIZER.encode("12")))
    (made,) = tokenize([rollout], TOKENIZER, PromptFormat(suffix=" no"), max_response_tokens=10)
    assert list(made.row.response_ids) == TOKENIZER.encode("12")
    assert made.prompt == "<s>a?"  # rendered already: the suffix is not added again


def test_observations_of_rollouts_are_read_and_not_trained_and_steps_end_with_turns():
    ids = tuple(TOKENIZER.encode("1\n2[9\n]3"))
    rollout = response("a?", "3", token_ids=ids, segments=((3, 0), (4, None), (1, 1)))
    for steps, ends in ((LineSteps(), [1, 2, 3]), (TurnSteps(kind="turn"), [2, 3])):
        ((row,),) = ([one.row] for one in tokenize([rollout], TOKENIZER, FORM, max_response_tokens=10, steps=steps))
        assert list(row.response_ids) == list(ids)
        assert list(row.step_ends) == ends
        assert row.is_trained is not None
        assert row.is_trained.tolist() == [True] * 3 + [False] * 4 + [True]


def test_what_is_too_long_is_dropped_and_said_and_nothing_left_is_an_error(said):
    rows = [response("a?", "1" * 20), response("b" * 20, "1"), response("c?", "1")]
    made = tokenize(rows, TOKENIZER, FORM, max_response_tokens=10)
    assert [one.response.problem.id for one in made] == ["c?"]
    assert said == ["dropped 2 of 3 responses longer than max_prompt_tokens=10 or max_response_tokens=10"]
    with pytest.raises(DataError, match=r"all 2 responses, or their prompts, are longer than .* raise them"):
        tokenize(rows[:2], TOKENIZER, FORM, max_response_tokens=10)


def test_skipped_rows_are_said(tmp_path: Path, said):
    path = write_rows(tmp_path / "rows.jsonl", [*make_rows(PROMPTS[:1]), {"prompt": "?"}])
    loaded = load_responses(ResponseFile(path=path, on_bad_row="skip"), needs_label=True)
    assert len(loaded.responses) == len(RESPONSES)
    assert said[0].startswith(f"{path}: skipped 1 bad rows, the first at 5: no label")


def test_a_reference_of_another_vocabulary_is_refused(tmp_path: Path, trained: Path):
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    source = TrainedPrm(model=str(trained / "model"), reference=str(tmp_path))
    made = AutoTokenizer.from_pretrained(trained / "model")
    with pytest.raises(ModelError, match=r"prm\.reference: .* has another vocabulary"):
        load_scorer(source, resolve_device(LocalBackend(device="cpu")), made, [])
