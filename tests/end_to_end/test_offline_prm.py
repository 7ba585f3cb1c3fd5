"""The offline PRM within the whole: learning from the rollouts of a run, scoring them, and serving the next run."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fakes import read_metrics, read_rollouts, tiny_config
from labelled_rows import prm_settings
from priml.commands.prm_rank import run_prm_rank
from priml.commands.prm_score import run_prm_score
from priml.commands.prm_train import run_prm_training
from priml.commands.train import run_training
from priml.config.load import parse_config
from priml.config.prm import PrmRankConfig, PrmScoreConfig

CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def offline(warm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run without a PRM, and an offline PRM that has learnt from its rollouts."""
    folder = tmp_path_factory.mktemp("offline")
    run = tiny_config(folder, warm_model, "prm=null", "filter=null", "steps=6")
    run_training(run)
    prm = folder / "prm"
    run_prm_training(prm_settings(warm_model, run.run_dir / "rollouts", prm, epochs=4))
    return run.run_dir, prm


def test_the_rollouts_of_a_run_are_labelled_responses(offline: tuple[Path, Path]):
    run, prm = offline
    summary = json.loads((prm / "summary.json").read_text())
    sampled = sum(m["tokens/sampled"] for m in read_metrics(run))
    assert 0 < summary["tokens"]["trained"] <= 4 * sampled
    assert summary["held_out"]["auc"] > 0.6


def test_the_model_is_an_ordinary_hugging_face_folder(offline: tuple[Path, Path]):
    folder = offline[1] / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("0AB=", return_tensors="pt").input_ids
    assert bool(torch.isfinite(model(ids).logits).all())


def test_as_prm_init_it_pays_what_it_gives_by_itself(offline: tuple[Path, Path], warm_model: Path, tmp_path: Path):
    model = offline[1] / "model"
    online = tiny_config(
        tmp_path,
        warm_model,
        f"prm={{init: {model}, reference: {warm_model}, beta: 0.5, forward: frozen}}",
        "filter=null",
        "steps=1",
    )
    run_training(online)
    rows = read_rollouts(online.run_dir, 1)
    assert any(any(row["process_rewards"]) for row in rows if row["filter_status"] == "kept")

    tree = {
        "run_dir": str(tmp_path / "scores"),
        "prm": {"model": str(model)},
        "data": {"path": str(online.run_dir / "rollouts")},
        "backend": CPU,
    }
    run_prm_score(parse_config(PrmScoreConfig, tree, where="test"))
    scored = pq.read_table(tmp_path / "scores" / "scores.parquet").to_pylist()
    for row, alone in zip(rows, scored, strict=True):
        assert row["response_ids"] == alone["response_ids"]
        if row["filter_status"] == "kept":  # the others were never paid
            assert row["process_rewards"] == pytest.approx(alone["process_rewards"], abs=1e-5)


def test_it_ranks_the_responses_of_a_run(offline: tuple[Path, Path], tmp_path: Path):
    run, prm = offline
    tree = {
        "run_dir": str(tmp_path / "rank"),
        "prm": {"model": str(prm / "model")},
        "data": {"path": str(run / "rollouts" / "000006.parquet")},
        "backend": CPU,
    }
    run_prm_rank(parse_config(PrmRankConfig, tree, where="test"))
    last = json.loads((tmp_path / "rank" / "rank.json").read_text())["curve"][-1]
    assert last["n"] == 4
    assert last["pass@1"]["mean"] <= last["best_of/sum"]["mean"] <= last["oracle"]["mean"]
