"""vLLM as a sampler: the policy's own distribution, weights that arrive, and proof that they did."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from fakes import read_metrics, read_rollouts, tiny_config
from priml.errors import ConfigError, ModelError, RunError
from priml.models.lora import add_adapters
from priml.models.tiny import character_tokenizer
from priml.rollout.base import SamplingSpec
from priml.rollout.transformers import TransformersSampler
from priml.rollout.vllm import VllmSampler, _adapter_settings, _scratch
from priml.types import Prompt, Trajectory

IS_HERE = importlib.util.find_spec("vllm") is not None
TOKENIZER = character_tokenizer()
RECEIVER = "priml.rollout.vllm_worker.CheckpointReceiver"


def with_vllm(test: Any) -> Any:
    """The test needs the engine itself."""
    missing = pytest.mark.skipif(not IS_HERE, reason="vLLM is not installed here: make test-vllm runs this")
    return pytest.mark.vllm(missing(test))


def random_module(*, tied: bool, heads: int = 2, spread: float = 0.1) -> Any:
    """A Qwen2 whose next token is far from uniform."""
    config = Qwen2Config(
        vocab_size=len(TOKENIZER),
        hidden_size=32 * heads,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    torch.manual_seed(0)
    module = Qwen2ForCausalLM(config).float().eval()
    move(module, spread)
    return module


@torch.no_grad()
def move(module: Any, spread: float = 0.1) -> None:
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=spread)


def engine(module: Any, **changes: Any) -> VllmSampler:
    given = {"precision": "fp32", "longest": 96, "max_rows": 32, "kv_cache_gib": 0.05} | changes
    sampler = VllmSampler(module, TOKENIZER, **given)
    sampler.verify_weight_sync_with(module)
    return sampler


def spec(**changes: Any) -> SamplingSpec:
    given = {"group_size": 3, "temperature": 0.7, "max_new_tokens": 24, "seed": 0, "step": 1} | changes
    return SamplingSpec(**given)


@torch.no_grad()
def trainers_logprobs(module: Any, prompt: Prompt, trajectory: Trajectory, temperature: float) -> torch.Tensor:
    tokens_1L = torch.tensor([[*prompt.token_ids, *trajectory.token_ids]])
    logits_tV = module(input_ids=tokens_1L).logits[0, len(prompt.token_ids) - 1 : -1] / temperature
    return logits_tV.log_softmax(-1).gather(1, torch.tensor(trajectory.token_ids)[:, None]).squeeze(1)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request: Any) -> tuple[Any, VllmSampler]:
    """A module and an engine that was pushed its weights."""
    module = random_module(tied=request.param)
    return module, engine(module)


# --- what is sampled ---------------------------------------------------------------------------------------------


@with_vllm
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_log_probs_are_the_trainers_own_at_the_sampling_temperature(pair: Any, make_prompts: Any, temperature: float):
    module, sampler = pair
    for group in sampler.sample(make_prompts(5, 9, 2), spec(temperature=temperature)):
        for trajectory in group.trajectories:
            expected_t = trainers_logprobs(module, group.prompt, trajectory, temperature or 1.0)
            torch.testing.assert_close(torch.tensor(trajectory.logprobs), expected_t, atol=1e-4, rtol=0)


@with_vllm
def test_greedy_responses_are_those_of_the_transformers_sampler(pair: Any, make_prompts: Any):
    module, sampler = pair
    ours = TransformersSampler(module, TOKENIZER, device=torch.device("cpu"), precision="fp32", max_rows=64)
    prompts, greedy = make_prompts(5, 9, 2, 7), spec(temperature=0, group_size=1)
    for found, expected in zip(sampler.sample(prompts, greedy), ours.sample(prompts, greedy), strict=True):
        assert found.prompt is expected.prompt
        assert found.trajectories[0].token_ids.tolist() == expected.trajectories[0].token_ids.tolist()
        assert found.trajectories[0].text == expected.trajectories[0].text


@with_vllm
def test_a_response_holds_its_eos_and_says_why_it_ended(pair: Any, make_prompts: Any):
    _, sampler = pair
    groups = sampler.sample(make_prompts(3, 4, 5, 6), spec(group_size=24, temperature=1.5))
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    assert {trajectory.finish_reason for trajectory in trajectories} == {"stop", "length"}
    for trajectory in trajectories:
        ended = trajectory.token_ids[-1] == TOKENIZER.eos_token_id
        assert trajectory.finish_reason == ("stop" if ended else "length")
        assert ended or len(trajectory.token_ids) == 24
        assert TOKENIZER.eos_token_id not in trajectory.token_ids[:-1]


@with_vllm
def test_a_draw_depends_on_seed_step_problem_and_sample(pair: Any, make_prompts: Any):
    _, sampler = pair
    prompts = make_prompts(5, 9, 2)

    def drawn(chosen: Sequence[Prompt], **changes: Any) -> list[tuple[int, ...]]:
        groups = sampler.sample(chosen, spec(**({"seed": 50} | changes)))
        return [tuple(trajectory.token_ids) for group in groups for trajectory in group.trajectories]

    first = drawn(prompts)
    assert drawn([prompts[1]], step=2) != first[3:6]
    assert drawn([prompts[1]]) == first[3:6]  # a step anew, other company
    assert len(set(first)) == len(first)
    assert drawn([prompts[1]], seed=1) != first[3:6]
    drawn([prompts[1]])
    (again,) = sampler.sample([prompts[1]], spec(seed=50))
    assert [trajectory.sample for trajectory in again.trajectories] == [3, 4, 5]
    assert not {tuple(trajectory.token_ids) for trajectory in again.trajectories} & set(first)


@with_vllm
def test_more_prompts_than_the_engine_reads_at_once(monkeypatch: pytest.MonkeyPatch, make_prompts: Any):
    monkeypatch.setattr("priml.rollout.vllm._PREFILL_TOKENS", 1)  # so that the longest response decides
    sampler = engine(random_module(tied=True), longest=70)
    groups = sampler.sample(make_prompts(40, 45, 44, 33), spec(group_size=4))
    assert [len(group.trajectories) for group in groups] == [4] * 4


@with_vllm
def test_each_response_is_handed_over_as_it_ends(pair: Any, make_prompts: Any):
    _, sampler = pair
    finished: list[tuple[Prompt, Trajectory]] = []
    groups = sampler.sample(make_prompts(5, 9), spec(group_size=8), lambda *pair: finished.append(pair))
    returned = [(group.prompt, trajectory) for group in groups for trajectory in group.trajectories]
    assert len(finished) == len(returned) == 16
    assert {(id(p), id(c)) for p, c in finished} == {(id(p), id(c)) for p, c in returned}
    lengths = [len(trajectory.token_ids) for _, trajectory in finished]
    assert lengths == sorted(lengths)  # all began together


@with_vllm
def test_what_the_listener_raises_ends_the_sampling_and_leaves_nothing_behind(pair: Any, make_prompts: Any):
    _, sampler = pair

    def refuse(prompt: Prompt, trajectory: Trajectory) -> None:
        raise KeyError(prompt.problem.id)

    with pytest.raises(KeyError, match="p"):
        sampler.sample(make_prompts(5, 9), spec(), refuse)
    assert len(sampler.sample(make_prompts(5, 9), spec(step=7))[0].trajectories) == 3


@with_vllm
def test_what_does_not_fit_is_refused_before_anything_is_sampled(pair: Any, make_prompts: Any):
    _, sampler = pair
    with pytest.raises(RunError, match="may be 105 tokens long, and vLLM was started for 96"):
        sampler.sample(make_prompts(5), spec(max_new_tokens=100))


# --- weights -----------------------------------------------------------------------------------------------------


@with_vllm
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_new_weights_speak_at_once_and_are_stamped_on_what_they_say(tied: bool, make_prompts: Any):
    module = random_module(tied=tied)
    before = [parameter.clone() for parameter in module.parameters()]
    sampler = engine(module)
    assert all(map(torch.equal, before, module.parameters())), "the verification leaves no trace"
    (old,) = sampler.sample(make_prompts(5), spec())
    move(module)
    sampler.load(module, version=4)
    (group,) = sampler.sample(make_prompts(5), spec(step=2))
    assert {trajectory.weight_version for trajectory in group.trajectories} == {4}
    for trajectory in group.trajectories:
        expected_t = trainers_logprobs(module, group.prompt, trajectory, 0.7)
        torch.testing.assert_close(torch.tensor(trajectory.logprobs), expected_t, atol=1e-4, rtol=0)
    changed_t = trainers_logprobs(module, old.prompt, old.trajectories[0], 0.7)
    assert (changed_t - torch.tensor(old.trajectories[0].logprobs)).abs().max() > 0.1


def with_adapters(module: Any) -> Any:
    pytest.importorskip("peft")
    add_adapters(module, key="policy.lora", base="", rank=4, alpha=8.0, targets="all-linear", seed=0)
    return module


@with_vllm
@pytest.mark.parametrize("adapter_rank", [None, 4], ids=["merged", "separate"])
def test_a_policy_with_adapters_is_pushed_and_proved(make_prompts: Any, adapter_rank: int | None):
    module = with_adapters(random_module(tied=True))
    before = [parameter.clone() for parameter in module.parameters()]
    sampler = engine(module, adapter_rank=adapter_rank)
    assert all(map(torch.equal, before, module.parameters())), "the verification leaves no trace"
    for version in (1, 2):
        learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
        with torch.no_grad():
            for parameter in learnt:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        sampler.load(module, version=version)
        (group,) = sampler.sample(make_prompts(5), spec(step=version))
        for trajectory in group.trajectories:
            expected_t = trainers_logprobs(module, group.prompt, trajectory, 0.7)
            torch.testing.assert_close(torch.tensor(trajectory.logprobs), expected_t, atol=1e-4, rtol=0)


@with_vllm
def test_adapters_that_are_lost_are_caught_and_weights_are_not_sent_again(monkeypatch: pytest.MonkeyPatch):
    module = with_adapters(random_module(tied=True))
    sampler = engine(module, adapter_rank=4)
    monkeypatch.setattr(sampler, "_replace_weights", lambda tensors: pytest.fail("the frozen weights are there"))
    move(module.get_submodule("model.layers.0.self_attn.q_proj.lora_B"))
    sampler.load(module, version=1)
    monkeypatch.setattr(sampler, "_replace_adapter", lambda adapter: None)
    move(module.get_submodule("model.layers.0.self_attn.q_proj.lora_B"))
    with pytest.raises(RunError, match="weights of version 2 did not arrive"):
        sampler.load(module, version=2)


def test_adapters_of_a_rank_that_vllm_has_no_room_for_are_refused():
    assert _adapter_settings(None) == {}
    assert _adapter_settings(9)["max_lora_rank"] == 16
    with pytest.raises(ConfigError, match=r"found policy.lora.rank 513, and vLLM takes adapters of rank 512 at most"):
        _adapter_settings(513)


@with_vllm
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_starts_from_adapters_that_have_learnt(make_prompts: Any, dtype: str):
    """As when a run is resumed: the verification halves all three matrices, and engine and trainer must agree."""
    module = with_adapters(random_module(tied=False))
    move(module)
    (group,) = engine(module, dtype=dtype).sample(make_prompts(5), spec())
    for trajectory in group.trajectories:
        expected_t = trainers_logprobs(module, group.prompt, trajectory, 0.7)
        difference = (torch.tensor(trajectory.logprobs) - expected_t).abs()
        assert difference.max() < 1e-4 if dtype == "float32" else difference.mean() < 0.1


@with_vllm
def test_in_bfloat16_engine_and_trainer_agree_within_the_bound(make_prompts: Any):
    module = random_module(tied=True)
    sampler = engine(module, dtype="bfloat16")
    move(module)
    sampler.load(module, version=1)
    (group,) = sampler.sample(make_prompts(5), spec())
    for trajectory in group.trajectories:
        expected_t = trainers_logprobs(module, group.prompt, trajectory, 0.7)
        difference = (torch.tensor(trajectory.logprobs) - expected_t).abs().mean()
        assert 1e-5 < difference < 0.1


@with_vllm
def test_a_head_that_was_not_refreshed_is_caught(monkeypatch: pytest.MonkeyPatch):
    module = random_module(tied=True)
    sampler = engine(module)
    monkeypatch.setattr(f"{RECEIVER}.refresh_tied_heads", lambda self: None)
    move(module)
    with pytest.raises(RunError, match=r"weights of version 9 did not arrive .* nats per token, the bound is 0.001"):
        sampler.load(module, version=9)
    with pytest.raises(
        ModelError, match=r"Qwen2ForCausalLM: vLLM \S+ does not follow when this model's weights change"
    ):
        engine(module)


def _kept_as_they_were(receiver: Any, handed: Any) -> None:
    """Load what is there already."""
    returned = [(name, parameter.detach().clone()) for name, parameter in receiver.old.items()]
    receiver.model.load_weights(iter(returned))


@with_vllm
def test_a_push_that_is_lost_is_caught(monkeypatch: pytest.MonkeyPatch):
    module = random_module(tied=False)
    sampler = engine(module)
    for phase in ("start_weight_update", "receive_weights", "finish_weight_update"):
        monkeypatch.setattr(f"{RECEIVER}.{phase}", lambda self, *given: None)
    sampler.load(module, version=1)  # nothing changed, so nothing is wrong
    move(module, 0.01)
    with pytest.raises(RunError, match="weights of version 2 did not arrive"):
        sampler.load(module, version=2)


@with_vllm
@pytest.mark.slow
def test_workers_in_processes_of_their_own_read_the_weights_from_a_file(make_prompts: Any):
    module = random_module(tied=True)
    sampler = engine(module, tensor_parallel=2)
    move(module)
    sampler.load(module, version=1)
    (group,) = sampler.sample(make_prompts(5), spec())
    for trajectory in group.trajectories:
        expected_t = trainers_logprobs(module, group.prompt, trajectory, 0.7)
        torch.testing.assert_close(torch.tensor(trajectory.logprobs), expected_t, atol=1e-4, rtol=0)


@with_vllm
def test_a_model_that_the_engine_cannot_run_is_refused_at_once():
    config = random_module(tied=True).config
    config.update({"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16})  # the CPU build needs 32
    with pytest.raises(ModelError, match=r"Qwen2ForCausalLM: vLLM \S+ cannot run this model here: .*head_dim=16"):
        engine(Qwen2ForCausalLM(config).float().eval())


@with_vllm
def test_an_engine_sleeps_between_calls_and_wakes_for_each(make_prompts: Any):
    """The CPU build gives no memory back, but it does stop and go on."""
    module = random_module(tied=True)
    sampler = engine(module)
    sampler._sleeps = True  # what `sleep: true` sets; the CPU build refuses the setting itself
    sampler._rest()
    assert sampler._engine.is_sleeping()
    move(module)
    sampler.load(module, version=2)
    assert sampler._engine.is_sleeping()
    (group,) = sampler.sample(make_prompts(5), spec())
    assert sampler._engine.is_sleeping()
    for trajectory in group.trajectories:
        expected_t = trainers_logprobs(module, group.prompt, trajectory, 0.7)
        torch.testing.assert_close(torch.tensor(trajectory.logprobs), expected_t, atol=1e-4, rtol=0)


@with_vllm
def test_without_a_gpu_there_is_no_memory_to_give_back():
    with pytest.raises(ConfigError, match=r"sampler: vLLM \S+ does not start: Sleep mode is not supported on current"):
        engine(random_module(tied=True), sleep=True)


@with_vllm
def test_settings_that_vllm_refuses_are_a_mistake_in_the_settings():
    with pytest.raises(ConfigError, match=r"sampler: vLLM \S+ does not start: .*kv_cache_gib"):
        engine(random_module(tied=True), kv_cache_gib=1e-6)


@pytest.mark.skipif(IS_HERE, reason="vLLM is installed here")
def test_without_vllm_the_message_says_what_to_type():
    with pytest.raises(ConfigError, match=r"not installed; type: pip install 'priml\[vllm\]'"):
        engine(random_module(tied=True))


@pytest.mark.skipif(IS_HERE, reason="vLLM is installed here")
def test_without_vllm_a_run_ends_before_it_begins(tmp_path: Path):
    from priml.commands.train import run_training

    cfg = tiny_config(tmp_path, tmp_path / "no model here", "sampler={kind: vllm}")
    with pytest.raises(ConfigError, match="not installed"):
        run_training(cfg)


# --- a run -------------------------------------------------------------------------------------------------------


@with_vllm
def test_a_run_measures_the_mismatch_and_resumes(tmp_path: Path, wide_model: Path):
    from priml.commands.train import run_training

    cfg = tiny_config(tmp_path, wide_model, "sampler={kind: vllm, kv_cache_gib: 0.05, max_rows: 64}", "steps=3")
    run_training(cfg)
    steps = [record for record in read_metrics(cfg.run_dir) if "policy/loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3]
    for record in steps:
        assert record["sampler/mismatch_mean"] <= record["sampler/mismatch_max"] < 1e-4
        assert 0.0 <= record["sampler/mismatch_kl"] < 1e-8
        assert record["policy/importance_capped"] == 0.0
    assert [{row["weight_version"] for row in read_rollouts(cfg.run_dir, step)} for step in (1, 2, 3)] == [
        {0},
        {1},
        {2},
    ]

    (cfg.run_dir / "summary.json").unlink()
    (cfg.run_dir / "config.yaml").write_text((cfg.run_dir / "config.yaml").read_text().replace("steps: 3", "steps: 4"))
    run_training(cfg.run_dir)
    assert {row["weight_version"] for row in read_rollouts(cfg.run_dir, 4)} == {3}


@with_vllm
def test_a_run_takes_turns_while_it_trains(tmp_path: Path, wide_model: Path):
    from priml.commands.train import run_training

    tool = tmp_path / "tool.py"
    tool.write_text(
        "class Tool:\n"
        "    def reset(self, problem): self.turns = 0\n"
        "    def step(self, text):\n"
        "        self.turns += 1\n"
        "        return '=', None, self.turns == 2\n"
        "    def close(self): pass\n"
    )
    cfg = tiny_config(
        tmp_path,
        wide_model,
        "sampler={kind: vllm, kv_cache_gib: 0.05, max_rows: 64}",
        f'environment={{kind: custom, function: "{tool}:Tool"}}',
        "sampling.max_staleness=1",
        "filter=null",
        "sampling.max_new_tokens=40",
        "policy.optimizer.lr=1e-9",  # then older weights give the same log-probs
        "steps=3",
    )
    run_training(cfg)
    steps = [record for record in read_metrics(cfg.run_dir) if "policy/loss" in record]
    assert [record["sampler/staleness_max"] for record in steps] == [0, 1, 1]
    assert all(record["sampler/mismatch_max"] < 1e-4 for record in steps), "observations are read in the same place"
    rows = [row for step in (1, 2, 3) for row in read_rollouts(cfg.run_dir, step)]
    assert {row["weight_version"] for row in rows} == {0, 1}
    assert any(len(row["segments"]) == 3 for row in rows)


# --- the parts that need no engine -------------------------------------------------------------------------------


def test_a_file_for_the_workers_is_gone_afterwards():
    with _scratch(100) as folder:
        (folder / "weights.safetensors").write_bytes(b"x")
    assert not folder.exists()
