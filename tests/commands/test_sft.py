import json
import os
import shutil
import signal
import time
from errno import ENOSPC

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fakes import read_metrics, timeless
from priml.commands.sft import run_sft
from priml.config.load import parse_config
from priml.config.sft import SftConfig
from priml.errors import Interrupted, RunError, UsageError
from priml.models.tiny import tiny_model
from priml.runs.folder import RunFolder
from priml.trackers.base import JsonlTracker
from small_tokenizers import bpe_tokenizer


def config(run_dir, **settings):
    tree = {
        "run_dir": str(run_dir),
        "model": {"kind": "tiny", "width": 16, "layers": 1, "heads": 2},
        "data": {"kind": "walk", "length": 2, "states": 4, "operations": 5, "count": 12},
        "epochs": 1,
        "batch": 6,
        "optimizer": {"lr": 1e-3},
        "backend": {"device": "cpu"},
        **settings,
    }
    return parse_config(SftConfig, tree, where="test")


def test_the_same_command_twice_gives_the_same_model_and_another_seed_another(tmp_path):
    models = [run_sft(config(tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    weights = [(model / "model.safetensors").read_bytes() for model in models]
    assert weights[0] == weights[1] != weights[2]


def test_it_goes_on_from_a_model_folder(tmp_path, warm_model, said):
    cfg = config(tmp_path / "run", model={"kind": "pretrained", "model": str(warm_model)})
    model = run_sft(cfg)
    assert said == ["sft: 12 examples, 2 steps, 0.01 M parameters, cpu fp32"]
    assert [record["step"] for record in read_metrics(cfg.run_dir)] == [1, 2]
    assert read_metrics(cfg.run_dir)[0]["sft/loss"] < 2.0
    assert AutoModelForCausalLM.from_pretrained(model).config.hidden_size == 16
    assert (model / "tokenizer.json").is_file()
    assert len(json.loads((cfg.run_dir / "manifest.json").read_text())["sha256"]["data"]["train"]) == 64


@pytest.mark.parametrize(("chosen", "found"), [("auto", "bfloat16"), ("float32", "float32")])
def test_a_model_leaves_in_the_type_it_came_in_unless_asked(tmp_path, warm_model, chosen, found):
    base = AutoModelForCausalLM.from_pretrained(warm_model, dtype="bfloat16")
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(warm_model).save_pretrained(tmp_path / "base")
    start = {"kind": "pretrained", "model": str(tmp_path / "base")}
    model = run_sft(config(tmp_path / "run", model=start, export_dtype=chosen))
    weights = load_file(model / "model.safetensors")
    assert {str(w.dtype) for w in weights.values()} == {f"torch.{found}"}
    assert json.loads((model / "config.json").read_text())["dtype"] == found


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    cfg = config(tmp_path / "run")
    run_sft(cfg)
    with pytest.raises(UsageError, match=r"already holds a run; go on with: priml sft .*; or choose another run_dir"):
        run_sft(cfg)
    shutil.rmtree(cfg.run_dir)
    run_sft(cfg)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four epochs of two steps, uninterrupted."""
    cfg = config(tmp_path_factory.mktemp("whole") / "run", epochs=4)
    run_sft(cfg)
    return cfg


def during(monkeypatch, step, act):
    """Have `act` called in the middle of a run: when the metrics of a step have been written."""
    log = JsonlTracker.log

    def log_and_act(self, metrics):
        log(self, metrics)
        if metrics["step"] == step:
            act()

    monkeypatch.setattr(JsonlTracker, "log", log_and_act)


def assert_same(run, whole):
    assert timeless(read_metrics(run)) == timeless(read_metrics(whole))
    for name in ("model/model.safetensors", f"checkpoints/{8:06d}/model/optimizer.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run, whole))
    assert ours | {"seconds": 0} == theirs | {"seconds": 0}


@pytest.mark.parametrize("step", [1, 4, 5])
def test_ctrl_c_saves_a_checkpoint_and_the_resumed_run_is_bit_identical(whole, tmp_path, monkeypatch, step, said):
    cfg = whole.model_copy(update={"run_dir": tmp_path / "run"})
    with monkeypatch.context() as patch:
        during(patch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted, match=f"interrupted after step {step} of 8; go on with: priml sft {tmp_path}"):
            run_sft(cfg)
    assert [path.name for path in RunFolder(cfg.run_dir).checkpoints()] == [f"{step:06d}"]
    assert not (cfg.run_dir / "model").exists()
    run_sft(cfg.run_dir)
    assert said[-1] == f"resuming after step {step} of 8"
    assert_same(cfg.run_dir, whole.run_dir)


class KilledError(BaseException):
    """Ends a run the way the kernel would: nothing that handles errors sees it coming."""


@pytest.mark.parametrize(("every", "from_step"), [(2, 4), (None, 0)])
def test_a_killed_run_goes_on_from_its_newest_checkpoint(whole, tmp_path, monkeypatch, every, from_step, said):
    schedule = whole.checkpoint.model_copy(update={"every": every})
    cfg = whole.model_copy(update={"run_dir": tmp_path / "run", "checkpoint": schedule})

    def die():
        newest = RunFolder(cfg.run_dir).checkpoint(from_step)
        while from_step and not newest.is_dir():  # it may still be on its way to the disk
            time.sleep(0.01)
        raise KilledError

    with monkeypatch.context() as patch:
        during(patch, 5, die)
        with pytest.raises(KilledError):
            run_sft(cfg)
    assert read_metrics(cfg.run_dir)[-1]["step"] == 5, "there is a record to be forgotten"
    run_sft(cfg.run_dir)
    assert said[-1] == f"resuming after step {from_step} of 8"
    assert_same(cfg.run_dir, whole.run_dir)


def test_a_finished_run_is_not_resumed(whole):
    with pytest.raises(UsageError, match="this run is finished; look at it with: priml report"):
        run_sft(whole.run_dir)


def test_changed_data_is_refused(tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "1+1=", "answer": "2", "response": "2"}\n' * 4)
    cfg = config(tmp_path / "run", data={"kind": "file", "path": str(rows)}, batch=2)
    with monkeypatch.context() as patch:
        during(patch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            run_sft(cfg)
    with rows.open("a") as file:
        file.write('{"problem": "1+2=", "answer": "3", "response": "3"}\n')
    with pytest.raises(UsageError, match=r"the data \(train\) are not those the run began with"):
        run_sft(cfg.run_dir)


def test_a_full_disk_stops_it_resumable(whole, tmp_path, monkeypatch):
    cfg = whole.model_copy(
        update={"run_dir": tmp_path / "run", "checkpoint": whole.checkpoint.model_copy(update={"every": 2})}
    )

    def fill():
        raise OSError(ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        during(patch, 3, fill)
        with pytest.raises(
            RunError, match=r"no space left .* make room, then go on with: priml sft .*checkpoint 000002"
        ):
            run_sft(cfg)
    run_sft(cfg.run_dir)
    assert_same(cfg.run_dir, whole.run_dir)


def test_a_second_ctrl_c_stops_at_once(whole, tmp_path, monkeypatch):
    cfg = whole.model_copy(update={"run_dir": tmp_path / "run"})

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    during(monkeypatch, 2, twice)
    with pytest.raises(Interrupted, match="stopped at once, unsaved; go on with: priml sft"):
        run_sft(cfg)
    assert RunFolder(cfg.run_dir).checkpoints() == []


def test_a_non_finite_loss_names_the_step_and_keeps_the_batch(tmp_path):
    cfg = config(tmp_path / "run", optimizer={"lr": 1e-3, "weight_decay": 1e33}, warmup=0.0, epochs=3)
    said = r"step (\d): SFT .*stopped before the optimizer moved; the batch is in (.*); lower the learning rate"
    with pytest.raises(RunError, match=said) as caught:
        run_sft(cfg)
    step = read_metrics(cfg.run_dir)[-1]["step"] + 1
    path = cfg.run_dir / "failed" / f"{step:06d}.safetensors"
    assert f"step {step}: " in str(caught.value)
    assert str(path) in str(caught.value)
    assert load_file(path)["tokens"].shape[0] == 6
    assert not (cfg.run_dir / "model").exists()


def test_the_tokenizer_lies_in_the_run_folder_from_the_start(whole):
    tokenizer = AutoTokenizer.from_pretrained(whole.run_dir / "tokenizer")
    assert tokenizer.decode(tokenizer("1 + 2").input_ids) == "1 + 2"


def test_what_ends_a_turn_is_learnt_and_ends_the_responses_of_the_exported_model(tmp_path):
    """modelscope/ms-swift#3113: after SFT of a base model, sampling ran on behind the template's <|im_end|>."""
    tokenizer = bpe_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"problem": "2 + 3?", "answer": "5", "response": "It is 5."}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = run_sft(
        config(
            tmp_path / "run",
            model={"kind": "pretrained", "model": str(tmp_path / "base")},
            data={"kind": "file", "path": str(tmp_path / "rows.jsonl")},
        )
    )
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert sorted(GenerationConfig.from_pretrained(model).eos_token_id) == sorted(ends)


@pytest.fixture
def chat_model(tmp_path):
    tokenizer = bpe_tokenizer()
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return {"kind": "pretrained", "model": str(tmp_path / "base")}


CONVERSATION = [
    {"role": "user", "content": "2 + 3?"},
    {"role": "assistant", "content": "It is 5."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "So $x = 4$."},
]


def test_conversations_are_learnt_packed_as_unpacked_and_judged_while_they_are(tmp_path, chat_model):
    rows = [{"messages": CONVERSATION[: 2 + 2 * (i % 2)]} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "aside.jsonl").write_text(json.dumps({"instruction": "2 + 3?", "output": "It is 5."}) + "\n")
    found = {}
    for packing in ("never", "always"):
        cfg = config(
            tmp_path / packing,
            model=chat_model,
            data={"kind": "file", "path": str(tmp_path / "rows.jsonl")},
            held_out={"data": {"kind": "file", "path": str(tmp_path / "aside.jsonl")}, "every": 2},
            batch=2,
            backend={"device": "cpu", "packing": packing},
        )
        run_sft(cfg)
        found[packing] = read_metrics(cfg.run_dir)
    for one, other in zip(found["never"], found["always"], strict=True):
        assert one["sft/loss"] == pytest.approx(other["sft/loss"], rel=1e-5)
        assert one["tokens/trained"] == other["tokens/trained"]
    judged = [record["held_out/loss"] for record in found["always"] if "held_out/loss" in record]
    assert len(judged) == 2
    assert judged[1] < judged[0]


def test_a_share_of_the_prompts_can_be_held_out(tmp_path, said):
    cfg = config(tmp_path / "run", held_out={"share": 0.4, "every": None})
    run_sft(cfg)
    learnt = int(said[0].split()[1])
    assert 0 < learnt < 12
    assert "held_out/loss" in read_metrics(cfg.run_dir)[-1]
    with pytest.raises(UsageError, match=r"every prompt is held out; lower held_out.share, or give held_out.data"):
        run_sft(config(tmp_path / "none", held_out={"share": 1.0}))
