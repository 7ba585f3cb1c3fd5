import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import read_metrics, timeless
from labelled_rows import PROMPTS, make_pairs, make_rows, prm_settings, write_rows
from priml.commands.prm_train import run_prm_training
from priml.errors import DataError, RunError, UsageError
from priml.models.checkpoint import weights_digest
from priml.models.load import load_model
from priml.models.prm_card import read_card

CPU = torch.device("cpu")


def model_digest(folder: Path) -> str:
    return weights_digest(load_model(str(folder), device=CPU))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", make_pairs(PROMPTS))


def test_a_run_leaves_what_every_run_leaves_and_a_model_that_can_be_scored_with(trained: Path, warm_model: Path):
    names = {path.name for path in trained.iterdir()}
    assert {
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "summary.json",
        "model",
        "checkpoints",
        "tokenizer",
    } <= names
    card = read_card(str(trained / "model"))
    assert card is not None
    assert (card.beta, card.loss, Path(card.reference)) == (0.5, "ce", warm_model.resolve())
    assert card.reference_sha256 == model_digest(warm_model) != model_digest(trained / "model")


def test_it_learns_and_says_so_on_responses_it_has_not_seen(trained: Path):
    metrics = read_metrics(trained)
    steps = [m["step"] for m in metrics]
    assert steps == list(range(1, len(steps) + 1))
    assert metrics[0]["prm/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert {"prm/accuracy", "prm/auc", "prm/grad_norm", "prm/lr_scale", "prm/reward_mean"} <= set(metrics[1])
    evaluated = [m["step"] for m in metrics if "eval/auc" in m]
    assert evaluated == [step for step in steps if step % 4 == 0 or step == steps[-1]]
    held_out = json.loads((trained / "summary.json").read_text())["held_out"]
    assert held_out["auc"] > 0.9
    assert held_out["pair_accuracy"] > 0.9
    assert held_out["auc"] == metrics[-1]["eval/auc"]


@pytest.mark.parametrize("loss", ["dpo", "nca"])
@pytest.mark.parametrize("kind", ["labels", "pairs"])
def test_losses_that_compare_learn_from_labels_and_from_pairs(
    said, tmp_path: Path, warm_model: Path, labelled: Path, pairs: Path, loss: str, kind: str
):
    data = labelled if kind == "labels" else pairs
    cfg = prm_settings(warm_model, data, tmp_path / "run", loss={"kind": loss}, batch=8)
    summary = run_prm_training(cfg)
    assert summary["held_out"]["pair_accuracy"] > 0.8
    units = re.search(r"(\d+) responses in (\d+) units", "\n".join(said))
    assert units is not None
    assert int(units[1]) // int(units[2]) == (4 if kind == "labels" else 2)


def test_kto_learns_from_labels(tmp_path: Path, warm_model: Path, labelled: Path):
    loss = {"kind": "kto", "desirable_weight": 3.0}
    cfg = prm_settings(warm_model, labelled, tmp_path / "run", loss=loss, epochs=4)
    assert run_prm_training(cfg)["held_out"]["auc"] > 0.8


@pytest.mark.parametrize("loss", ["ce", "kto"])
def test_pairs_do_not_say_which_response_is_right(tmp_path: Path, warm_model: Path, pairs: Path, loss: str):
    cfg = prm_settings(warm_model, pairs, tmp_path / "run", loss={"kind": loss})
    with pytest.raises(DataError, match=rf"loss.kind: {loss} needs to know which .* set loss.kind: dpo or nca"):
        run_prm_training(cfg)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_labels_without_anything_to_compare_are_refused(tmp_path: Path, warm_model: Path):
    alone = [row for row in make_rows(PROMPTS) if row["label"]]
    cfg = prm_settings(warm_model, write_rows(tmp_path / "a.jsonl", alone), tmp_path / "run", loss={"kind": "dpo"})
    with pytest.raises(DataError, match=r"none of the \d+ prompts has both"):
        run_prm_training(cfg)


def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path: Path, warm_model: Path, labelled: Path):
    changes: dict[str, Any] = {"loss": {"kind": "kto"}, "checkpoint": {"every": 3}}
    run_prm_training(prm_settings(warm_model, labelled, tmp_path / "whole", **changes))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("summary.json", "model"):
        path = tmp_path / "cut" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    newest = max((tmp_path / "cut" / "checkpoints").iterdir())
    shutil.rmtree(newest)
    run_prm_training(tmp_path / "cut")
    assert timeless(read_metrics(tmp_path / "cut")) == timeless(read_metrics(tmp_path / "whole"))
    assert model_digest(tmp_path / "cut" / "model") == model_digest(tmp_path / "whole" / "model")


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path, warm_model: Path):
    data = write_rows(tmp_path / "rows.jsonl", make_rows(PROMPTS[:8]))
    run_prm_training(prm_settings(warm_model, data, tmp_path / "run"))
    (tmp_path / "run" / "summary.json").unlink()
    write_rows(data, make_rows(PROMPTS[:9]))
    with pytest.raises(UsageError, match=r"the data \(train\) are not those the run began with"):
        run_prm_training(tmp_path / "run")


def test_beta_auto_follows_the_length_of_the_responses(tmp_path: Path, warm_model: Path, labelled: Path):
    cfg = prm_settings(warm_model, labelled, tmp_path / "run", beta="auto", held_out=None, epochs=1)
    # "1", line break, "2", the box opener, "2", "}", EOS: seven tokens each.
    assert run_prm_training(cfg)["beta"] == pytest.approx(50 / 7)


def test_held_out_responses_may_have_a_file_of_their_own(tmp_path: Path, warm_model: Path, said):
    train, other = (write_rows(tmp_path / f"{i}.jsonl", make_rows(PROMPTS[i::2])) for i in range(2))
    held_out = {"data": {"path": str(other)}, "every": None}
    cfg = prm_settings(warm_model, train, tmp_path / "run", held_out=held_out, epochs=1)
    summary = run_prm_training(cfg)
    assert "72 responses in 72 units, 72 held out" in "\n".join(said)
    assert 0 <= summary["held_out"]["auc"] <= 1


def test_responses_that_are_too_long_are_dropped_and_counted(tmp_path: Path, warm_model: Path, said):
    long = {"prompt": "0AB=", "response": "1" * 50, "label": True}
    data = write_rows(tmp_path / "rows.jsonl", [*make_rows(PROMPTS[:6]), long])
    cfg = prm_settings(warm_model, data, tmp_path / "run", held_out=None, max_response_tokens=20)
    run_prm_training(cfg)
    assert any(re.search(r"dropped 1 of 25 responses longer than .*max_response_tokens=20", line) for line in said)


def test_numbers_that_are_not_finite_stop_the_run_with_the_batch_saved(
    tmp_path: Path, warm_model: Path, labelled: Path
):
    cfg = prm_settings(warm_model, labelled, tmp_path / "run", optimizer={"lr": 1e30})
    with pytest.raises(RunError, match=r"stopped before the optimizer moved; the batch is in"):
        run_prm_training(cfg)
    assert list((tmp_path / "run" / "failed").glob("*.safetensors"))
