"""Whole runs of a model with a few thousand weights, on the CPU, through the code that the commands call."""

import json
import os
import shutil
import signal
from itertools import product

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fakes import read_metrics, read_rollouts, timeless, tiny_config
from priml.cli.main import main
from priml.commands.prm_score import run_prm_score
from priml.commands.train import run_training
from priml.config.load import load_config, parse_config
from priml.config.prm import PrmScoreConfig
from priml.config.train import TrainConfig
from priml.errors import Interrupted, RunError, UsageError
from priml.graders.custom import CustomVerifier
from priml.learners.prm import ImplicitPrm
from priml.maths.advantages import estimate_advantages
from priml.maths.implicit import implicit_rewards
from priml.models.prm_card import read_card
from priml.report.rollouts import load_tokenizer, read_group
from priml.runs.folder import RunFolder
from priml.training.online_run import OnlineRun

HELD_OUT = "{kind: walk, split: held_out, length: 2, states: 4, operations: 5, count: 6}"
EVALUATED = f"evaluate={{data: {HELD_OUT}, every: 2, samples: 2}}"
METRICS = {
    "step",
    "outcome/mean",
    "outcome/kept_mean",
    *(f"verdict/{name}" for name in ("correct", "wrong", "undecided")),
    *(f"filter/{name}" for name in ("sampled", "kept", "too_easy", "too_hard", "truncated", "undecided")),
    *(f"policy/{name}" for name in ("loss", "grad_norm", "entropy", "clip_fraction", "kl_old", "ratio_max")),
    *(f"sampler/mismatch_{name}" for name in ("mean", "max", "kl")),
    "sampler/staleness_mean",
    "sampler/staleness_max",
    "response/length_mean",
    "response/truncated",
    "response/repetition",
    *(f"time/{name}" for name in ("sample", "verify", "verify_overlapped", "policy", "sync", "step")),
    "tokens/sampled",
    "tokens/trained",
    "memory/peak_gib",
}
PRM_METRICS = {
    *(f"prm/{n}" for n in ("beta", "loss", "grad_norm", "accuracy", "auc", "pair_accuracy", "reward_mean")),
    "prm/length_correlation",
    "prm/mixed_groups",
    "prm/trust",
    "time/prm",
    "time/reference",
}
CRITIC_METRICS = {
    *(f"critic/{name}" for name in ("value_mean", "loss", "grad_norm", "explained_variance")),
    "time/critic",
}


def rollout_tables(run_dir):
    return {path.name: pq.read_table(path) for path in sorted((run_dir / "rollouts").iterdir())}


def assert_same_run(one, other, *, in_turns=True):
    """Weights, records, rollouts and evaluations agree to the last bit; where sampling and training take turns, the
    order of the spans, too."""
    assert timeless(read_metrics(one)) == timeless(read_metrics(other))
    assert rollout_tables(one) == rollout_tables(other)
    for name in ("model/model.safetensors", "prm/model.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (one, other))
    assert (ours["accuracy"], ours["tokens"], ours["steps"]) == (theirs["accuracy"], theirs["tokens"], theirs["steps"])
    steps = [[json.loads(line)["step"] for line in (run / "spans.jsonl").open()] for run in (one, other)]
    assert steps[0] == steps[1] or not in_turns


ESTIMATORS, PRESETS = ("rloo", "reinforce", "grpo"), ("paper", "authors", "verl")
# Each of both once; all their pairs take longer. What an estimator answers is tested in tests/maths.
ESTIMATED = [
    pytest.param((f"advantage={{estimator: {e}, preset: {p}}}",), marks=[] if i % 4 == 0 else [pytest.mark.slow])
    for i, (e, p) in enumerate(product(ESTIMATORS, PRESETS))
]
LORA = ("policy.lora={rank: 4}", "prm.lora={rank: 4}")
PPO = ("advantage.estimator=ppo", "critic={optimizer: {lr: 1.0e-3}, mini_batch: 12, epochs: 2}")


@pytest.mark.parametrize(
    "overrides",
    [
        *ESTIMATED,
        ("prm=null",),
        ("prm=null", "filter=null", "policy.mini_batch=null"),
        ("advantage.preset=paper",),
        ("prm={loss: ce, reference: initial, replay: null, forward: double}",),
        ("prm.reference=initial",),
        ("prm.forward=double",),
        ("prm.forward=frozen",),
        ("prm.granularity=step", "prm.step_pattern='[0-3]'"),
        ("prm.granularity=whole",),
        ("prm.loss=pairwise",),
        ("prm.loss=pairwise", "backend.micro_batch_tokens=40"),
        ("prm.beta=0.05", "policy.epochs=2", "loss.aggregate=token_mean"),
        ("policy.gradient_checkpointing=true",),
        ("sampling.temperature=0.7",),
        *[(f"advantage.estimator={e}",) for e in ("dr_grpo", "reinforce_pp", "prime_value")],
        PPO,
        (*PPO, "prm=null", "critic.gae_lambda=0.9", "policy.gradient_checkpointing=true"),
        ("loss={surrogate: gspo, clip_low: 3.0e-4, clip_high: 4.0e-4}",),
        ("loss={surrogate: cispo, clip_low: 1.0, aggregate: constant_length}", "overlong.kind=mask"),
        ("loss={dual_clip: 3.0, kl: {weight: 0.1, estimator: k3}, entropy_bonus: 0.01}", "sampling.temperature=0.7"),
        ("loss.kl={weight: 0.1}", "prm=null", "overlong={kind: penalty, window: 3}"),
        ("overlong.kind=drop", "filter=null"),
        ("prm.loss=detached", "backend.micro_batch_tokens=40"),
        ("advantage.gate=null", "prm.replay={passes: 2, keep: 8}"),
        ("advantage={process_weight: 0.5, process_ramp: {start: 0.0, steps: 2}}",),
        (*LORA, "loss.kl={weight: 0.1}", "policy.gradient_checkpointing=true"),
        ("policy.lora={targets: [q_proj, v_proj]}", "prm.reference=policy"),
        ("prm.lora={rank: 1}", "prm.forward=double"),
    ],
    ids=" ".join,
)
def test_every_arm_runs_through_the_same_loop(tmp_path, warm_model, overrides):
    cfg = tiny_config(tmp_path, warm_model, *overrides)
    summary = run_training(cfg)
    records = read_metrics(cfg.run_dir)
    assert [r["step"] for r in records] == [1, 2]
    has_prm = cfg.prm is not None
    expected = METRICS | (PRM_METRICS if has_prm else set()) | (CRITIC_METRICS if cfg.critic else set())
    expected |= {"policy/kl_initial", "time/reference"} if cfg.loss.kl else set()
    optional = {"critic/explained_variance"} if cfg.critic else set()
    if has_prm:
        optional |= {
            "prm/length_correlation",
            "prm/auc",
            "prm/mixed_accuracy",
            "time/reference",
            "prm/loss",
            "prm/grad_norm",
        }
        optional |= {"prm/trust"} if cfg.advantage.gate is None else set()
    assert set(records[0]) ^ expected <= optional
    models = {"policy"} | ({"prm"} if has_prm else set()) | ({"critic"} if cfg.critic else set())
    assert set(records[1]) - set(records[0]) - optional == {f"digest/{name}" for name in models}
    assert all(np.isfinite(v) for r in records for v in r.values() if not isinstance(v, str))
    for record in records:
        beside = ("time/step", "time/verify_overlapped")
        phases = sum(v for k, v in record.items() if k.startswith("time/") and k not in beside)
        assert 0.5 * record["time/step"] < phases <= record["time/step"]
        assert 0 <= record["time/verify_overlapped"] <= record["time/sample"] + 0.1, "it lies within the sampling"
    assert (cfg.run_dir / "prm").exists() == has_prm
    assert (cfg.run_dir / "critic").exists() == (cfg.critic is not None)
    assert summary["tokens"]["trained"] == sum(r["tokens/trained"] for r in records)


def test_a_base_model_reads_the_text_around_the_question(tmp_path, warm_model):
    cfg = tiny_config(tmp_path, warm_model, "steps=1", 'data.prompt={text: "Q: {problem} A:", template: plain}')
    run_training(cfg)
    prompts = {row["prompt"] for row in read_rollouts(cfg.run_dir, 1)}
    assert all(prompt.startswith("Q: ") and prompt.endswith("= A:") for prompt in prompts)


@pytest.mark.parametrize("adapters", [(), LORA], ids=["weights", "adapters"])
def test_at_initialisation_process_rewards_are_exactly_zero(tmp_path, warm_model, adapters):
    cfg = tiny_config(tmp_path, warm_model, "steps=1", "prm.mini_batch=null", "prm.epochs=1",
                      "advantage.preset=authors", *adapters)  # fmt: skip
    run_training(cfg)
    kept = [row for row in read_rollouts(cfg.run_dir, 1) if row["filter_status"] == "kept"]
    assert {value for row in kept for value in row["process_rewards"]} == {0.0}
    assert read_metrics(cfg.run_dir)[0]["prm/beta"] == pytest.approx(
        50 / np.mean([len(r["response_ids"]) for r in kept])
    )


def test_the_rollout_file_says_which_prm_paid_each_response(tmp_path, warm_model):
    run_training(tiny_config(tmp_path, warm_model, "advantage.preset=authors"))
    for step, versions in ((1, (0, 1)), (2, (4, 5))):  # two mini-batches of three groups, twice over
        rows = read_rollouts(tmp_path / "run", step)
        kept = [row["prm_version"] for row in rows if row["filter_status"] == "kept"]
        assert kept == [versions[0]] * 12 + [versions[1]] * 12
        assert {row["prm_version"] for row in rows if row["filter_status"] != "kept"} == {None}


@pytest.mark.parametrize(
    ("preset", "estimator", "gate"),
    [
        ("authors", "rloo", "null"),
        ("paper", "rloo", "null"),
        ("authors", "grpo", "null"),
        ("authors", "rloo", "{full: 0.51}"),
    ],
)
def test_rewards_and_advantages_can_be_replayed_from_the_rollout_file(tmp_path, warm_model, preset, estimator, gate):
    cfg = tiny_config(tmp_path, warm_model, f"advantage={{preset: {preset}, estimator: {estimator}, gate: {gate}}}")
    run_training(cfg)
    trust = read_metrics(cfg.run_dir)[1].get("prm/trust", 1.0)
    rows = [row for row in read_rollouts(cfg.run_dir, 2) if row["filter_status"] == "kept"]
    longest = max(len(row["response_ids"]) for row in rows)
    groups = {name: i for i, name in enumerate(dict.fromkeys(row["problem_id"] for row in rows))}

    def column(name):
        return torch.tensor([row[name] + [0.0] * (longest - len(row[name])) for row in rows])

    mask_BT = torch.tensor([[i < len(row["response_ids"]) for i in range(longest)] for row in rows])
    beta = read_metrics(cfg.run_dir)[1]["prm/beta"]
    rewards_BT = implicit_rewards(column("prm_logprobs"), column("ref_logprobs"), mask_BT, beta=beta)
    torch.testing.assert_close(rewards_BT, column("process_rewards"), atol=1e-6, rtol=1e-5)
    assert rewards_BT.abs().max() > 0
    outcomes_B = torch.tensor([row["outcome"] for row in rows])
    groups_B = torch.tensor([groups[row["problem_id"]] for row in rows])
    advantages_BT = estimate_advantages(
        outcomes_B, rewards_BT, mask_BT, groups_B, estimator=estimator, preset=preset, beta=beta, process_weight=trust
    )
    torch.testing.assert_close(advantages_BT, column("advantages"), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, warm_model):
    """Seven steps with everything on: several mini-batches and epochs, surplus prompts, evaluation in the middle."""
    cfg = tiny_config(
        tmp_path_factory.mktemp("whole"), warm_model, "steps=7", "batch.draw=14", "policy.epochs=2", EVALUATED
    )
    run_training(cfg)
    return cfg


def test_the_shared_run_leaves_surplus_prompts_behind_so_resuming_them_is_tested(uninterrupted):
    for step in (1, 2, 3, 4):
        assert any(row["filter_status"] == "surplus" for row in read_rollouts(uninterrupted.run_dir, step))


class KilledError(BaseException):
    """Ends a run the way the kernel would: nothing that handles errors sees it coming."""


def cut_off(whole, to, *, step, last=None):
    """The run folder as it would be had the process died at the end of step `last`, one after its first checkpoint."""
    last = last or step + 1
    every = whole.checkpoint.model_copy(update={"every": step})
    cfg = whole.model_copy(update={"run_dir": to, "checkpoint": every})
    record = OnlineRun.record

    def record_then_die(self, done, *reports):
        record(self, done, *reports)
        if done.step == last:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnlineRun, "record", record_then_die)
        with pytest.raises(KilledError):
            run_training(cfg)
    return cfg


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(uninterrupted, tmp_path, step):
    cfg = cut_off(uninterrupted, tmp_path / "run", step=step)
    assert [r["step"] for r in read_metrics(cfg.run_dir)][-1] == step + 1, "there is a later record to be forgotten"
    with (cfg.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "cut o')
    run_training(cfg.run_dir)
    ours = [{k: v for k, v in r.items() if not k.startswith("digest/")} for r in timeless(read_metrics(cfg.run_dir))]
    whole = timeless(read_metrics(uninterrupted.run_dir))
    assert ours == [{k: v for k, v in r.items() if not k.startswith("digest/")} for r in whole]
    assert read_metrics(cfg.run_dir)[-1]["digest/prm"] == whole[-1]["digest/prm"]
    shutil.copy(uninterrupted.run_dir / "metrics.jsonl", cfg.run_dir)  # its digests stand at other steps
    assert_same_run(cfg.run_dir, uninterrupted.run_dir)


def test_a_finished_run_that_gets_more_steps_ends_as_if_it_had_had_them_from_the_start(uninterrupted, tmp_path):
    whole = uninterrupted.model_copy(update={"evaluate": None})
    cfg = whole.model_copy(update={"run_dir": tmp_path / "run", "steps": 5})
    run_training(cfg)
    assert main(["train", str(cfg.run_dir), "steps=+2"]) == 0
    ours, theirs = read_metrics(cfg.run_dir)[-1], read_metrics(uninterrupted.run_dir)[-1]
    for name in ("digest/policy", "digest/prm", "outcome/mean", "policy/loss"):
        assert ours[name] == theirs[name], name
    assert (cfg.run_dir / "summary.json").is_file()


def test_a_signal_while_the_prm_learns_does_not_end_the_step_before_the_policy_has(
    uninterrupted, tmp_path, monkeypatch
):
    update = ImplicitPrm.update
    calls = []

    def signalled(self, batch):
        report = update(self, batch)
        calls.append(batch.step)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return report

    monkeypatch.setattr(ImplicitPrm, "update", signalled)
    cfg = uninterrupted.model_copy(update={"run_dir": tmp_path / "run"})
    with pytest.raises(Interrupted, match="interrupted after step 3 of 7"):
        run_training(cfg)
    run_training(cfg.run_dir)
    assert calls == [1, 2, 3, 4, 5, 6, 7]
    for name in ("digest/policy", "digest/prm"):
        assert read_metrics(cfg.run_dir)[-1][name] == read_metrics(uninterrupted.run_dir)[-1][name]


def test_a_run_with_a_damaged_checkpoint_goes_on_from_an_older_one_to_the_same_end(uninterrupted, tmp_path):
    cfg = cut_off(uninterrupted, tmp_path / "run", step=2, last=5)
    folder = RunFolder(cfg.run_dir)
    weights = next((folder.checkpoint(4) / "policy").glob("*.safetensors"))
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(UsageError, match=rf"{weights}: found sha256 .* priml train {cfg.run_dir} from=000002"):
        run_training(cfg.run_dir)
    assert [r["step"] for r in read_metrics(cfg.run_dir)][-1] == 5, "refusing it has cost nothing"
    run_training(folder.checkpoint(2))
    assert folder.checkpoints() == [folder.checkpoint(6), folder.checkpoint(7)]
    shutil.copy(uninterrupted.run_dir / "metrics.jsonl", cfg.run_dir)  # its digests stand at other steps
    assert_same_run(cfg.run_dir, uninterrupted.run_dir)


def test_an_unfinished_run_shows_its_responses_as_text_though_its_model_has_gone(uninterrupted, tmp_path):
    whole = uninterrupted.model_copy(update={"evaluate": None})
    cfg = cut_off(whole, tmp_path / "run", step=1)
    settings = (cfg.run_dir / "config.yaml").read_text()
    (cfg.run_dir / "config.yaml").write_text(settings.replace(str(cfg.policy.model), "org/gone"))
    folder = RunFolder(cfg.run_dir)
    shown = read_group(folder.rollouts(1), [0, 1], load_tokenizer(folder.tokenizer / "tokenizer.json"))
    assert len(shown) == 2
    assert all("".join(r.pieces).startswith(r.texts["response"]) for r in shown)


def test_a_resumed_run_with_critic_kl_term_ramp_and_replay_is_bit_identical_too(tmp_path, warm_model):
    overrides = (
        *PPO,
        "loss.kl={weight: 0.1}",
        "advantage.process_ramp={start: 0.0, after: 1, steps: 3}",
        "prm.loss=likelihood",
        "prm.replay={passes: 1, keep: 6}",
    )
    whole = tiny_config(tmp_path / "whole", warm_model, "steps=5", *overrides)
    run_training(whole)
    cfg = cut_off(whole, tmp_path / "run", step=2)
    run_training(cfg.run_dir)
    last, expected = (read_metrics(c.run_dir)[-1] for c in (cfg, whole))
    assert {k: v for k, v in last.items() if k.startswith("digest/")} == {
        k: v for k, v in expected.items() if k.startswith("digest/")
    }
    shutil.copy(whole.run_dir / "metrics.jsonl", cfg.run_dir)  # its digests stand at other steps
    assert_same_run(cfg.run_dir, whole.run_dir)
    critic = "critic/model.safetensors"
    assert (cfg.run_dir / critic).read_bytes() == (whole.run_dir / critic).read_bytes()


def test_a_resumed_run_with_adapters_is_bit_identical_too(tmp_path, warm_model):
    whole = tiny_config(tmp_path / "whole", warm_model, "steps=5", *LORA, "loss.kl={weight: 0.1}")
    run_training(whole)
    cfg = cut_off(whole, tmp_path / "run", step=2)
    run_training(cfg.run_dir)
    last, expected = (read_metrics(c.run_dir)[-1] for c in (cfg, whole))
    assert [last[f"digest/{role}"] for role in ("policy", "prm")] == [
        expected[f"digest/{role}"] for role in ("policy", "prm")
    ]
    shutil.copy(whole.run_dir / "metrics.jsonl", cfg.run_dir)  # its digests stand at other steps
    assert_same_run(cfg.run_dir, whole.run_dir)


ASYNC = ("sampling.max_staleness=1", "sampler={kind: transformers, copy_weights: true}")


@pytest.mark.parametrize(
    "more",
    [(), LORA, ("loss.surrogate=gspo", "loss.importance.level=sequence"), ("loss.surrogate=cispo",)],
    ids=["whole", "lora", "gspo", "cispo"],
)
def test_a_run_that_samples_while_it_trains_is_reproducible_and_says_how_stale_it_was(tmp_path, warm_model, more):
    runs = [tiny_config(tmp_path / name, warm_model, "steps=4", *ASYNC, EVALUATED, *more) for name in ("one", "other")]
    for cfg in runs:
        run_training(cfg)
    assert_same_run(*(cfg.run_dir for cfg in runs), in_turns=False)
    one = runs[0].run_dir
    assert [{row["weight_version"] for row in read_rollouts(one, step)} for step in (1, 2, 3, 4)] == [
        {0},
        {0},
        {1},
        {2},
    ]
    # However old the responses are, the PRM that pays them is that of the step before it learns.
    paid = [{row["prm_version"] for row in read_rollouts(one, step)} - {None} for step in (1, 2, 3, 4)]
    assert [len(versions) for versions in paid] == [1, 1, 1, 1]
    assert sorted(paid, key=max) == paid
    assert paid[0] == {0} != paid[1]
    records = [record for record in read_metrics(one) if record["step"]]
    assert [record["sampler/staleness_max"] for record in records] == [0, 1, 1, 1]
    assert all("policy/importance_capped" in record for record in records)
    assert all({"time/collect", "time/snapshot", "time/sampler_waited"} <= record.keys() for record in records[:-1])

    in_turns = tiny_config(tmp_path / "turns", warm_model, "steps=1", *more)
    run_training(in_turns)
    (alone,) = read_metrics(in_turns.run_dir)
    assert alone["outcome/mean"] == records[0]["outcome/mean"]
    assert [row["response"] for row in read_rollouts(in_turns.run_dir, 1)] == [
        row["response"] for row in read_rollouts(one, 1)
    ]


def test_a_resumed_run_samples_what_was_in_flight_again_with_newer_weights(tmp_path, warm_model):
    whole = tiny_config(tmp_path / "whole", warm_model, "steps=5", *ASYNC, "filter=null")
    run_training(whole)
    cfg = cut_off(whole, tmp_path / "run", step=2)
    run_training(cfg.run_dir)
    for step in range(1, 6):
        ours, theirs = (read_rollouts(c.run_dir, step) for c in (cfg, whole))
        assert [row["problem_id"] for row in ours] == [row["problem_id"] for row in theirs], step
    assert {row["weight_version"] for row in read_rollouts(cfg.run_dir, 3)} == {2}
    assert {row["weight_version"] for row in read_rollouts(cfg.run_dir, 4)} == {2}


def test_a_run_without_a_checkpoint_starts_again_cleanly(uninterrupted, tmp_path):
    cfg = cut_off(uninterrupted, tmp_path / "run", step=2)
    shutil.rmtree(cfg.run_dir / "checkpoints")
    (cfg.run_dir / "config.yaml").write_text((uninterrupted.run_dir / "config.yaml").read_text())
    run_training(cfg.run_dir)
    assert_same_run(cfg.run_dir, uninterrupted.run_dir)


def test_the_resolved_settings_repeat_the_run_from_any_folder(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = load_config(TrainConfig, uninterrupted.run_dir / "config.yaml", [f"run_dir={tmp_path / 'again'}"])
    run_training(again)
    assert_same_run(again.run_dir, uninterrupted.run_dir)


def test_another_seed_is_another_run(uninterrupted, tmp_path):
    cfg = uninterrupted.model_copy(update={"run_dir": tmp_path / "other", "seed": 1, "steps": 1, "evaluate": None})
    run_training(cfg)
    assert read_rollouts(cfg.run_dir, 1)[0]["prompt"] != read_rollouts(uninterrupted.run_dir, 1)[0]["prompt"]


def test_the_run_folder_is_what_the_documentation_says(uninterrupted):
    run = uninterrupted.run_dir
    expected = ".lock checkpoints config.yaml evaluations manifest.json metrics.jsonl model prm rollouts spans.jsonl"
    assert sorted(path.name for path in run.iterdir()) == [*expected.split(), "summary.json", "tokenizer"]
    assert [path.name for path in RunFolder(run).checkpoints()] == ["000006", "000007"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert set(manifest["sha256"]["initial_weights"]) == {"policy", "prm"}
    assert set(manifest["sha256"]["data"]) == {"train", "evaluate"}
    assert {"torch", "transformers", "priml", "python"} <= set(manifest["versions"])
    spans = [json.loads(line) for line in (run / "spans.jsonl").open()]
    expected = "sample verify_overlapped verify prm reference policy sync"
    assert {s["phase"] for s in spans} == set(expected.split())
    assert all(s["start"] <= s["end"] for s in spans)


@pytest.mark.parametrize("name", ["model", "prm"])
def test_the_exported_folders_load_with_transformers(uninterrupted, name):
    folder = uninterrupted.run_dir / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("0AB=").input_ids) == "0AB="
    assert model(torch.tensor([[5, 6]])).logits.shape[-1] == len(tokenizer)


def test_the_exported_prm_scores_without_being_told_its_reference_and_beta(uninterrupted, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "0AB=", "response": "12\\boxed{2}"}))
    tree = {
        "run_dir": str(tmp_path / "score"),
        "prm": {"model": str(uninterrupted.run_dir / "prm")},
        "data": {"path": str(tmp_path / "rows.jsonl")},
        "backend": {"device": "cpu"},
    }
    run_prm_score(parse_config(PrmScoreConfig, tree, where="test"))
    assert json.loads((tmp_path / "score" / "summary.json").read_text())["responses"] == 1
    card = read_card(str(uninterrupted.run_dir / "prm"))
    assert card is not None
    assert card.reference == str(uninterrupted.run_dir / "model"), "the policy that it was compared with last"
    assert (card.loss, card.beta) == ("likelihood", read_metrics(uninterrupted.run_dir)[-1]["prm/beta"])


def test_a_finished_run_refuses_to_go_on(uninterrupted):
    with pytest.raises(UsageError, match="finished; look at it with: priml report"):
        run_training(uninterrupted.run_dir)


def test_a_folder_that_holds_a_run_is_refused(uninterrupted):
    with pytest.raises(UsageError, match="already holds a run; go on with: priml train"):
        run_training(uninterrupted)


def test_a_folder_that_is_no_run_cannot_be_resumed(tmp_path):
    with pytest.raises(UsageError, match=r"not a run folder \(no config.yaml"):
        run_training(tmp_path)


@pytest.mark.parametrize("change", [("rank: 4", "rank: 2"), ("targets: all-linear", "targets: [q_proj]")], ids=str)
def test_resuming_refuses_other_adapters(tmp_path, warm_model, change):
    whole = tiny_config(tmp_path / "whole", warm_model, *LORA, "steps=3")
    cfg = cut_off(whole, tmp_path / "run", step=1)
    config = cfg.run_dir / "config.yaml"
    config.write_text(config.read_text().replace(*change))
    with pytest.raises(UsageError, match=r"the initial weights \(policy\) are not those the run began with"):
        run_training(cfg.run_dir)


def test_resuming_refuses_other_data(uninterrupted, tmp_path):
    cfg = cut_off(uninterrupted, tmp_path / "run", step=2)
    config = cfg.run_dir / "config.yaml"
    config.write_text(config.read_text().replace("count: 60", "count: 59"))
    with pytest.raises(UsageError, match=r"the data \(train\) are not those the run began with .*restore them"):
        run_training(cfg.run_dir)


def test_resuming_refuses_other_initial_weights(tmp_path, warm_model):
    model = shutil.copytree(warm_model, tmp_path / "model")
    cfg = cut_off(tiny_config(tmp_path, model, "steps=3"), tmp_path / "run", step=1)
    weights = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        weights.model.norm.weight.mul_(1.001)
    weights.save_pretrained(model)
    with pytest.raises(UsageError, match=r"the initial weights \(policy\) are not those"):
        run_training(cfg.run_dir)


def test_a_mistake_in_the_settings_does_not_claim_the_folder(tmp_path, warm_model):
    missing = tmp_path / "missing.jsonl"
    wrong = tiny_config(tmp_path, warm_model, f"data.train={{kind: file, path: {missing}}}")
    with pytest.raises(UsageError, match=str(missing)):
        run_training(wrong)
    run_training(tiny_config(tmp_path, warm_model, "steps=1"))


# --- failing well ------------------------------------------------------------------------------------------------


def test_a_non_finite_gradient_stops_the_run_before_the_optimizer_moves(tmp_path, warm_model):
    # A decay of 1e30 a step leaves weights whose next gradient is NaN.
    cfg = tiny_config(tmp_path, warm_model, "prm.optimizer={lr: 1.0e-3, weight_decay: 1.0e+33}", "prm.mini_batch=null",
                      "prm.epochs=1", "steps=9", "checkpoint.every=1", "prm.replay=null")  # fmt: skip
    message = "step 2: PRM .* nan; .*stopped before the optimizer moved; the batch is in"
    with pytest.raises(RunError, match=message) as raised:
        run_training(cfg)
    assert raised.value.exit_code == 1
    evidence = load_file(cfg.run_dir / "failed" / "000002.safetensors")
    assert {"tokens", "outcomes", "groups", "ref_logprobs"} <= set(evidence)
    assert [path.name for path in RunFolder(cfg.run_dir).checkpoints()] == ["000001"]
    assert [record["step"] for record in read_metrics(cfg.run_dir)] == [1]
    with pytest.raises(RunError, match=message):  # the checkpoint is sound: it leads to the same place
        run_training(cfg.run_dir)


def test_a_policy_that_always_succeeds_ends_the_run_with_its_work_saved(tmp_path, warm_model):
    cfg = tiny_config(tmp_path, warm_model, "policy.optimizer.lr=5e-3", "policy.mini_batch=null", "prm=null",
                      "steps=90", "filter.max_rounds=4", "batch.prompts=8", "checkpoint.every=null")  # fmt: skip
    with pytest.raises(
        RunError, match=r"step \d+: starved: .*solves nearly everything.*The policy after step"
    ) as raised:
        run_training(cfg)
    completed = read_metrics(cfg.run_dir)[-1]["step"]
    assert f"step {completed + 1}:" in str(raised.value)
    rows = pq.read_table(cfg.run_dir / "failed" / f"{completed + 1:06d}.parquet").to_pylist()
    assert {row["filter_status"] for row in rows} >= {"too_easy"}
    (note,) = raised.value.__notes__
    assert f"3 of the {len(rows)} responses" in note
    assert rows[0]["problem_id"] in note
    assert [int(path.name) for path in RunFolder(cfg.run_dir).checkpoints()] == [completed]
    assert (cfg.run_dir / "model" / "config.json").is_file()
    assert not (cfg.run_dir / "summary.json").exists()


def test_ctrl_c_twice_says_how_to_go_on(tmp_path, warm_model, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("priml.factories.graders.check_golds", lambda *_: None)  # it grades before the run
    monkeypatch.setattr(CustomVerifier, "grade", interrupt)
    cfg = tiny_config(tmp_path, warm_model)
    with pytest.raises(Interrupted, match="stopped at once, unsaved; go on with: priml train") as raised:
        run_training(cfg)
    assert raised.value.exit_code == 130


# --- learning ----------------------------------------------------------------------------------------------------


LEARNING_ARMS = [("prm.loss=ce",)]
MORE_LEARNING_ARMS = [
    ("prm=null",),
    ("prm.loss=pairwise",),
    ("prm.loss=detached",),
    ("advantage.estimator=dr_grpo",),
    ("advantage.estimator=reinforce_pp",),
    PPO,
    ("loss={surrogate: gspo}",),
    ("loss={surrogate: cispo}",),
]


@pytest.mark.parametrize(
    "arm",
    [*LEARNING_ARMS, *[pytest.param(arm, marks=pytest.mark.slow) for arm in MORE_LEARNING_ARMS]],
    ids=" ".join,
)
def test_a_few_steps_raise_the_outcome(tmp_path, warm_model, arm):
    cfg = tiny_config(
        tmp_path, warm_model, "steps=20", "policy.optimizer.lr=5e-3", "filter=null", "batch={prompts: 16}",
        "policy.mini_batch=null", *arm,
    )  # fmt: skip
    run_training(cfg)
    outcomes = [record["outcome/mean"] for record in read_metrics(cfg.run_dir)]
    assert np.mean(outcomes[:2]) < 0.75
    assert np.mean(outcomes[-2:]) > np.mean(outcomes[:2]) + 0.2


def test_the_warm_start_learns(warm_model):
    losses = [record["sft/loss"] for record in read_metrics(warm_model.parent)]
    assert np.mean(losses[-5:]) < 0.4 * np.mean(losses[:5])
