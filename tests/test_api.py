"""The command in Python, and what a notebook shows of a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import priml
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.errors import UsageError
from priml.models.tiny import character_tokenizer
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin, create
from priml.runs.schemas import ROLLOUTS

HOSTILE = "</span><script>alert(1)</script>"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with two steps on record; one of the responses is hostile."""
    folder = RunFolder(tmp_path)
    tokenizer: Any = character_tokenizer()
    given = {"run_dir": str(tmp_path), "steps": 4, "policy": {"model": "m"}, "data": {"train": "chain"}}
    create(folder, parse_config(TrainConfig, given, where=""), tokenizer, Origin("train", 0, {}, {}, {}), threads=1)
    folder.metrics.write_text('{"step": 1, "outcome/mean": 0.5}\n{"step": 2, "prm/auc": 0.75}\n{"step": 3, "cut o')
    folder.rollouts(0).parent.mkdir()
    ids = tokenizer.encode("1+2")
    for step in (1, 2):
        row = dict.fromkeys(ROLLOUTS.names) | {"step": step, "sample": 0, "problem_id": "p", "response": "1+2"}
        row |= {"verdict": "wrong", "reason": HOSTILE, "gold": HOSTILE, "response_ids": ids}
        row |= {"process_rewards": [0.0, 0.5, -0.25], "segments": [{"num_tokens": 3, "weight_version": 0}]}
        pq.write_table(pa.Table.from_pylist([row], schema=ROLLOUTS), folder.rollouts(step))
    return folder


def test_a_run_is_read_as_tables(folder: RunFolder):
    run = priml.open(folder.path)
    assert run.metrics().to_pydict() == {"step": [1, 2], "outcome/mean": [0.5, None], "prm/auc": [None, 0.75]}
    assert run.rollouts(columns=["step", "verdict"]).to_pydict() == {"step": [1, 2], "verdict": ["wrong", "wrong"]}
    assert run.rollouts(step=2).num_rows == 1
    assert run.summary is None
    assert repr(run) == f"priml.open({str(folder)!r})  # priml train, stopped, step 2"
    with pytest.raises(UsageError, match="found no rollouts of step 7"):
        run.rollouts(step=7)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="not a run folder"):
        priml.open(tmp_path / "nothing")


def test_tokens_are_coloured_by_what_they_were_paid_and_the_sign_is_not_colour_alone(folder: RunFolder):
    view = priml.open(folder.path).response(1, 0)
    assert view.numbers["process_rewards"] == (0.0, 0.5, -0.25)
    page = view._repr_html_()
    assert '>1</span><span title="+0.5" style="background:rgba(68,114,196,0.85)">+</span>' in page
    assert '<span title="-0.25" style="background:rgba(237,125,49,0.42);text-decoration:underline dotted">2' in page
    assert "process_rewards: orange -0.5, blue +0.5" in page
    assert "all 0, or not computed" in view.coloured("advantages")._repr_html_()
    with pytest.raises(UsageError, match="need one of process_rewards"):
        view.coloured("outcome")
    with pytest.raises(UsageError, match="found no response 1 in step 1, need 0 to 0"):
        priml.open(folder.path).response(1, 1)


def test_what_a_model_wrote_stays_text(folder: RunFolder):
    page = priml.open(folder.path).response(1, 0)._repr_html_()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 2


def test_training_in_python_is_the_command(warm_model: Path, tmp_path: Path):
    settings = {
        "run_dir": tmp_path / "run",
        "steps": 1,
        "policy": {"model": str(warm_model)},
        "data": {"train": {"kind": "walk", "states": 4, "operations": 4, "length": 2, "count": 16}},
        "sampling": {"group_size": 2, "max_new_tokens": 6},
        "batch": {"prompts": 2},
        "filter": None,
    }
    run = priml.train(settings, "prm=null", "backend.device=cpu")
    assert run.overview().state == "finished"
    assert run.metrics().num_rows == 1
    with pytest.raises(UsageError, match="a resumed run keeps its settings"):
        priml.train(run.folder.path, "steps=3")


def test_the_package_is_still_cheap_to_import():
    script = (
        "import priml, sys, json; print(json.dumps([m for m in ('torch', 'pyarrow', 'pydantic') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_page_on_python_shows_what_works(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "runs/mine" in code
    names: dict[str, Any] = {"priml": priml}
    exec(code.replace("runs/mine", str(folder)), names)
    assert names["response"].numbers["process_rewards"] == (0.0, 0.5, -0.25)
