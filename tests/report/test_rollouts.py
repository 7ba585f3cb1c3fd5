from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from priml.report import rollouts
from priml.report.rollouts import (
    Response,
    colour_limits,
    load_tokenizer,
    read_group,
    read_response,
    token_pieces,
)

MakeRun = Callable[..., Path]


def read(run: Path, step: int = 1, rows: tuple[int, ...] = (0, 1)) -> list[Response]:
    tokenizer = load_tokenizer(run / "tokenizer" / "tokenizer.json")
    return read_group(run / "rollouts" / f"{step:06d}.parquet", rows, tokenizer)


def test_rows_are_found_across_row_groups(make_run: MakeRun):
    run = make_run(steps=1)
    path = run / "rollouts" / "000001.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=5)
    found = read(run, rows=(1, 4, 5, 26))
    assert [(one.row, one.texts["problem_id"], one.sample) for one in found] == [
        (1, "chain-000", 1),
        (4, "chain-001", 0),
        (5, "chain-001", 1),
        (26, "chain-006", 2),
    ]


def test_pieces_join_to_the_response_and_keep_special_tokens(make_run: MakeRun):
    response = read(make_run(steps=1))[0]
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


def test_without_a_tokenizer_tokens_go_by_number(make_run: MakeRun):
    assert all(one.pieces is None for one in read(make_run(steps=1, parts=("config.yaml", "rollouts"))))


def test_a_damaged_tokenizer_is_passed_over(make_run: MakeRun):
    run = make_run(steps=1)
    (run / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0", "model"')
    assert read(run)[0].pieces is None


def test_columns_that_are_null_stay_unknown(make_run: MakeRun):
    kept = read(make_run(steps=2, prm=False))
    assert all(r.numbers["process_rewards"] is None and r.numbers["prm_logprobs"] is None for r in kept)
    assert all(r.numbers["advantages"] is not None for r in kept)


def test_the_colour_scale_is_shared_and_absent_where_all_is_zero(make_run: MakeRun):
    limits = colour_limits(read(make_run(steps=1)))
    assert "process_rewards" not in limits
    assert limits["advantages"] > 0


def test_one_extreme_token_does_not_bleach_the_others(make_run: MakeRun):
    chosen = read(make_run(steps=2), step=2, rows=tuple(range(20)))
    sizes = [abs(x) for r in chosen for x in r.numbers["process_rewards"] or () if x]
    limit = colour_limits(chosen)["process_rewards"]
    assert 0.9 < sum(size <= limit for size in sizes) / len(sizes) < 1


def test_long_responses_are_cut_for_the_page(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rollouts, "MAX_TOKENS", 10)
    response = read(make_run(steps=2))[0]
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
