import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from labelled_rows import PROMPTS, make_rows, write_rows
from priml.commands.prm_score import run_prm_score
from priml.config.load import parse_config
from priml.config.prm import PrmScoreConfig
from priml.errors import ModelError
from priml.models.tiny import character_tokenizer

TOKENIZER = character_tokenizer()


def settings(trained: Path, data: Path, run_dir: Path, **changes: Any) -> PrmScoreConfig:
    tree = {
        "run_dir": str(run_dir),
        "prm": {"model": str(trained / "model")},
        "data": {"path": str(data)},
        "backend": {"device": "cpu"},
        **changes,
    }
    return parse_config(PrmScoreConfig, tree, where="test")


@pytest.fixture(scope="module")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    rows = [*make_rows(PROMPTS[:5]), {"prompt": "0AB=", "response": "1\n2\\boxed{2}"}]  # the last has no label
    run_prm_score(settings(trained, write_rows(folder / "rows.jsonl", rows), folder / "run"))
    return folder / "run"


def test_every_token_and_every_step_has_its_reward(scored: Path):
    rows = pq.read_table(scored / "scores.parquet").to_pylist()
    assert len(rows) == 21
    for row in rows:
        length = len(row["response_ids"])
        assert len(row["process_rewards"]) == len(row["prm_logprobs"]) == len(row["ref_logprobs"]) == length
        assert row["step_ends"] == [1, length - 1]
        difference = [0.5 * (a - b) for a, b in zip(row["prm_logprobs"], row["ref_logprobs"], strict=True)]
        assert row["process_rewards"] == pytest.approx(difference, abs=1e-5)
        first = sum(row["process_rewards"][:2])
        rest = sum(row["process_rewards"][2:])
        assert row["step_rewards"] == pytest.approx([first, rest], abs=1e-5)
        assert row["score_min"] == pytest.approx(min(row["step_rewards"]))
        assert row["score_sum"] == pytest.approx(first + rest, abs=1e-5)
        assert row["score_last"] == row["step_rewards"][-1]
    assert rows[-1]["outcome"] is None


def test_the_step_that_is_wrong_costs(scored: Path):
    """Labels of whole responses only: yet the wrong first line is paid less than the right one."""
    rows = pq.read_table(scored / "scores.parquet").to_pylist()[:20]
    right = [row["step_rewards"][0] for row in rows if row["response"].startswith("1")]
    wrong = [row["step_rewards"][0] for row in rows if row["response"].startswith("3")]
    assert min(right) > max(wrong)


def test_the_summary_and_the_page_are_there(scored: Path):
    summary = json.loads((scored / "summary.json").read_text())
    assert (summary["responses"], summary["labelled"], summary["steps_per_response"]) == (21, 20, 2.0)
    assert summary["auc"] > 0.9
    page = (scored / "report.html").read_text()
    assert "21 responses of 2.0 steps on average" in page
    assert '"step_rewards":[' in page


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        ({"kind": "newline"}, [7, 15]),
        ({"kind": "numbered"}, [7, 15]),
        ({"kind": "pattern", "pattern": ":"}, [6, 15]),
    ],
)
def test_steps_are_split_as_asked(trained: Path, tmp_path: Path, steps: dict[str, str], ends: list[int]):
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "0AB=", "response": "Step 1:\nStep 2:"}])
    run_prm_score(settings(trained, data, tmp_path / "run", steps=steps))
    (row,) = pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    assert row["step_ends"] == ends


def test_a_list_of_steps_is_written_down_as_asked(trained: Path, tmp_path: Path):
    data = write_rows(tmp_path / "rows.jsonl", [{"problem": "0AB=", "steps": ["1", "2"]}])
    run_prm_score(settings(trained, data, tmp_path / "run", step_list={"separator": "\n", "prefix": "{k}) "}))
    (row,) = pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    assert row["response"] == "1) 1\n2) 2"
    assert len(row["step_rewards"]) == 2


def test_its_output_can_be_scored_again_token_for_token(trained: Path, scored: Path, tmp_path: Path):
    run_prm_score(settings(trained, scored / "scores.parquet", tmp_path / "run"))
    before, after = (pq.read_table(folder / "scores.parquet").to_pylist() for folder in (scored, tmp_path / "run"))
    for one, other in zip(before, after, strict=True):
        assert one["response_ids"] == other["response_ids"]
        assert one["process_rewards"] == pytest.approx(other["process_rewards"], abs=1e-6)


def test_observations_of_rollouts_are_read_and_never_paid(trained: Path, scored: Path, tmp_path: Path):
    plain = pq.read_table(scored / "scores.parquet").to_pylist()[:8]
    seen = TOKENIZER.encode("::\n", add_special_tokens=False)
    rows = [
        one
        | {
            "response_ids": [*one["response_ids"], *seen, *one["response_ids"]],
            "segments": [
                {"num_tokens": len(one["response_ids"]), "weight_version": 0},
                {"num_tokens": len(seen), "weight_version": None},
                {"num_tokens": len(one["response_ids"]), "weight_version": 0},
            ],
        }
        for one in plain
    ]
    made = tmp_path / "turns.jsonl"
    made.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_prm_score(settings(trained, made, tmp_path / "run", steps={"kind": "turn"}))
    for before, row, after in zip(
        plain, rows, pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist(), strict=True
    ):
        length = len(before["response_ids"])
        assert after["response_ids"] == row["response_ids"]
        assert after["segments"] == row["segments"]
        assert len(after["process_rewards"]) == 2 * length
        assert after["process_rewards"][:length] == pytest.approx(before["process_rewards"], abs=1e-5)
        assert after["step_ends"] == [length - 1, 2 * length - 1]
        assert after["step_rewards"][0] == pytest.approx(sum(before["process_rewards"]), abs=1e-4)
    assert '"observed"' in (tmp_path / "run" / "report.html").read_text()


def test_a_model_that_does_not_say_what_it_was_compared_with_is_refused(
    trained: Path, warm_model: Path, labelled: Path, tmp_path: Path
):
    cfg = settings(trained, labelled, tmp_path / "run", prm={"model": str(warm_model)})
    with pytest.raises(ModelError, match=r"no implicit_prm\.json .* give prm\.reference and prm\.beta"):
        run_prm_score(cfg)
    prm = {"model": str(trained / "model"), "reference": str(warm_model), "beta": 1.0}
    run_prm_score(settings(trained, labelled, tmp_path / "run", prm=prm))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["beta"] == 1.0


def test_a_reference_with_other_weights_is_noticed(trained: Path, labelled: Path, tmp_path: Path):
    card = json.loads((trained / "model" / "implicit_prm.json").read_text())
    changed = tmp_path / "model"
    changed.symlink_to(trained / "model", target_is_directory=True)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (trained / "model").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "implicit_prm.json").write_text(json.dumps(card | {"reference_sha256": "0" * 64}))
    with pytest.raises(ModelError, match=r"its weights are not those that .* was trained against"):
        run_prm_score(settings(trained, labelled, tmp_path / "run", prm={"model": str(copy)}))
