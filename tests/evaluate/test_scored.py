from pathlib import Path

import pyarrow.parquet as pq
import pytest

from priml.config.prm import ResponseFile
from priml.data.labelled import Response, read_responses
from priml.evaluate.scored import ScoredResponse, write_scores
from priml.runs.schemas import SCORES
from priml.types import Problem


def test_what_is_written_is_read_back_as_responses_with_their_rewards(tmp_path: Path):
    problem = Problem(id="p", prompt="1+1?", answer="2", source="test")
    scored = ScoredResponse(
        response=Response(problem, "ab", 1.0),
        prompt="<user>1+1?",
        token_ids=(5, 6, 2),
        step_ends=(0, 2),
        prm_logprobs=(-1.0, -1.0, -1.0),
        ref_logprobs=(-2.0, -2.0, -3.0),
        rewards=(1.0, 1.0, 2.0),
        step_rewards=(1.0, 3.0),
    )
    unlabelled = ScoredResponse(
        Response(Problem(id="q", prompt="?", answer=""), "a", None), "?", (5,), (0,), (0.0,), (0.0,), (0.0,), (0.0,)
    )
    path = tmp_path / "scores.parquet"
    write_scores([scored, unlabelled], path)
    row, other = pq.read_table(path).to_pylist()
    assert list(row) == SCORES.names
    assert [row[f"score_{how}"] for how in ("min", "mean", "sum", "last")] == [1.0, 2.0, 4.0, 3.0]
    assert (other["outcome"], other["gold"]) == (None, None)

    again = read_responses(ResponseFile(path=path), needs_label=False).responses
    assert again[0].step_rewards == pytest.approx((1.0, 3.0))
    assert (again[0].problem.id, again[0].problem.prompt, again[0].problem.answer) == ("p", "<user>1+1?", "2")
    assert (again[0].outcome, again[0].token_ids) == (1.0, (5, 6, 2))
