from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from priml.report import rollouts
from priml.report.curves import read_run
from priml.report.rollouts import PER_STEP, choose_responses, pick_rows, read_response, token_pieces

MakeRun = Callable[..., Path]


def test_first_middle_and_last_step_are_chosen_and_the_rest_is_counted(make_run: MakeRun):
    chosen = choose_responses(read_run(make_run(steps=9)))
    assert sorted({r.step for r in chosen.responses}) == [1, 5, 9]
    assert len(chosen.responses) == 3 * PER_STEP
    assert chosen.num_steps == 9
    assert chosen.num_responses == 9 * 7 * 4
    assert chosen.notes == ()


def test_right_and_wrong_are_shown_in_equal_number_from_mixed_prompts(make_run: MakeRun):
    chosen = choose_responses(read_run(make_run(steps=1)))
    verdicts = [r.texts["verdict"] for r in chosen.responses]
    problems = [r.texts["problem_id"] for r in chosen.responses]
    assert verdicts == ["correct", "wrong"] * (PER_STEP // 2)
    assert problems == [f"chain-{i:03d}" for i in range(4) for _ in range(2)]
    assert all(r.filter_status == "kept" for r in chosen.responses)


@pytest.mark.parametrize(("verdicts", "right"), [(["wrong"] * 20, 0), (["correct"] * 20, 8), (["correct"] * 3, 3)])
def test_a_one_sided_step_is_filled_with_what_there_is(verdicts: list[str], right: int):
    table = pa.table({"verdict": verdicts, "problem_id": [str(i) for i in range(len(verdicts))]})
    rows = pick_rows(table)
    assert len(rows) == min(PER_STEP, len(verdicts)) == len(set(rows))
    assert sum(verdicts[i] == "correct" for i in rows) == right


def test_pieces_join_to_the_response_and_keep_special_tokens(make_run: MakeRun):
    response = choose_responses(read_run(make_run(steps=1))).responses[0]
    assert response.pieces is not None
    assert "".join(response.pieces) == f"{response.texts['response']}<|end|>"
    assert len(response.pieces) == response.num_tokens == len(response.token_ids)


def test_a_character_spread_over_tokens_belongs_to_the_last_of_them():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ids = tokenizer.encode("a√b\n🙂").ids
    assert token_pieces(ids, tokenizer) == ("a", "", "", "√", "b", "\n", "", "", "", "🙂")
    assert "".join(token_pieces(ids[:-1], tokenizer)).startswith("a√b\n\N{REPLACEMENT CHARACTER}")  # cut inside one
    assert token_pieces([], tokenizer) == ()


def test_spaces_that_a_decoder_strips_at_the_start_are_kept_inside():
    vocabulary = {"▁one": 0, "▁two": 1, "s": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="s"))
    tokenizer.decoder = decoders.Metaspace()
    assert token_pieces([0, 1, 2, 0], tokenizer) == ("one", " two", "s", " one")


def test_without_a_tokenizer_tokens_go_by_number_and_it_is_said(make_run: MakeRun):
    chosen = choose_responses(read_run(make_run(steps=1, parts=("config.yaml", "rollouts"))))
    assert all(r.pieces is None for r in chosen.responses)
    assert any("tokenizer.json" in note for note in chosen.notes)


def test_a_damaged_tokenizer_is_passed_over(make_run: MakeRun):
    run = make_run(steps=1)
    (run / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0", "model"')
    assert choose_responses(read_run(run)).responses[0].pieces is None


def test_columns_that_are_null_stay_unknown(make_run: MakeRun):
    kept = choose_responses(read_run(make_run(steps=2, prm=False))).responses
    assert all(r.numbers["process_rewards"] is None and r.numbers["prm_logprobs"] is None for r in kept)
    assert all(r.numbers["advantages"] is not None for r in kept)


def test_the_colour_scale_is_shared_and_absent_where_all_is_zero(make_run: MakeRun):
    only_zero = choose_responses(read_run(make_run(steps=1)))
    assert "process_rewards" not in only_zero.limits
    assert only_zero.limits["advantages"] > 0


def test_one_extreme_token_does_not_bleach_the_others(make_run: MakeRun):
    chosen = choose_responses(read_run(make_run(steps=9)))
    sizes = [abs(x) for r in chosen.responses for x in r.numbers["process_rewards"] or () if x]
    assert 0.9 < sum(size <= chosen.limits["process_rewards"] for size in sizes) / len(sizes) < 1


def test_a_damaged_rollout_file_is_a_note(make_run: MakeRun):
    run = make_run(steps=3)
    (run / "rollouts" / "000003.parquet").write_bytes(b"PAR1 half")
    chosen = choose_responses(read_run(run))
    assert sorted({r.step for r in chosen.responses}) == [1, 2]
    assert any("000003.parquet cannot be read" in note for note in chosen.notes)


def test_long_responses_are_cut_for_the_page(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rollouts, "MAX_TOKENS", 10)
    response = choose_responses(read_run(make_run(steps=2))).responses[-1]
    assert len(response.token_ids) == len(response.pieces or ()) == len(response.numbers["advantages"] or ()) == 10
    assert response.num_tokens > 10
    assert all(end < 10 for end in response.step_ends)


def test_numbers_of_trained_tokens_find_their_place_between_observations():
    row = {
        "response_ids": [1, 2, 7, 7, 3],
        "segments": [
            {"num_tokens": 2, "weight_version": 4},
            {"num_tokens": 2, "weight_version": None},
            {"num_tokens": 1, "weight_version": 5},
        ],
        "step_ends": [1, 2],
        "advantages": [0.5, -0.5, 1.0],
        "process_rewards": [0.0] * 5,
    }
    response = read_response(row, 1, None)
    assert (response.observed, response.step_ends) == ((2, 3), (1, 4))
    assert response.numbers == {"advantages": (0.5, -0.5, None, None, 1.0), "process_rewards": None}
    assert read_response({**row, "segments": None}, 1, None).observed == (), "a file of one turn, or an old one"
