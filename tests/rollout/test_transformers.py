"""Sampling: the model's own distribution, one prefill per prompt, and random numbers that depend on nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from priml.batch import Row, collate
from priml.models.forward import LanguageModel
from priml.models.tiny import character_tokenizer
from priml.rollout.base import SamplingSpec
from priml.rollout.transformers import TransformersSampler, _choose
from priml.types import Group, Problem, Prompt, Trajectory

CPU = torch.device("cpu")
TOKENIZER = character_tokenizer()
UNEQUAL = (5, 9, 2, 7)


def build_sampler(module: Any, *, max_rows: int = 1000, precision: str = "fp32") -> TransformersSampler:
    return TransformersSampler(module, TOKENIZER, device=CPU, precision=precision, max_rows=max_rows)


def spec(**changes: Any) -> SamplingSpec:
    given = {"group_size": 3, "temperature": 1.0, "max_new_tokens": 12, "seed": 0, "step": 1} | changes
    return SamplingSpec(**given)


def tokens(groups: Sequence[Group]) -> dict[str, list[tuple[int, ...]]]:
    return {g.prompt.problem.id: [tuple(c.token_ids) for c in g.trajectories] for g in groups}


def end_often(module: Any, share: float = 0.15) -> Any:
    """Make EOS about this likely, through the only bias a head can be given without changing the architecture."""
    head = module.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0], dtype=head.weight.dtype))
    with torch.no_grad():
        others = module(input_ids=torch.arange(3, 40).unsqueeze(0)).logits.logsumexp(-1).mean()
        head.bias[TOKENIZER.eos_token_id] = others + math.log(share / (1 - share))
    return module


class Watch:
    """What the module is called with."""

    def __init__(self, module: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        module.register_forward_pre_hook(
            lambda m, a, kw: self.shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True
        )


# --- the work done -----------------------------------------------------------------------------------------------


def test_each_prompt_is_prefilled_once_and_shared_by_its_samples(make_model: Any, make_prompts: Any) -> None:
    module = make_model()
    sampler, watch = build_sampler(module), Watch(module)
    sampler.sample(make_prompts(*UNEQUAL), spec(group_size=3, max_new_tokens=5))
    assert watch.shapes == [(4, 9)] + [(12, 1)] * 4, "4 prompts padded to 9, then one token for each of 12 rows"


def test_finished_rows_leave_the_batch(make_model: Any, make_prompts: Any) -> None:
    module = end_often(make_model())
    sampler, watch = build_sampler(module), Watch(module)
    groups = sampler.sample(make_prompts(*UNEQUAL), spec(group_size=8, max_new_tokens=12))

    lengths = [len(c.token_ids) for g in groups for c in g.trajectories]
    goes_on = [sum(n > t for n in lengths) for t in range(1, 12)]
    expected = [(rows, 1) for rows in goes_on if rows]
    assert watch.shapes[1:] == expected
    assert expected[-1] < expected[0], "some rows must have ended early for this to mean anything"


def test_a_wave_never_holds_more_rows_than_allowed(make_model: Any, make_prompts: Any) -> None:
    module = make_model()
    sampler, watch = build_sampler(module, max_rows=5), Watch(module)
    groups = sampler.sample(make_prompts(*UNEQUAL), spec(group_size=3, max_new_tokens=3))
    assert {rows for rows, _ in watch.shapes} <= {1, 3}
    assert len(groups) == 4
    sampler.sample(make_prompts(4), spec(group_size=13, max_new_tokens=3))
    assert max(rows for rows, _ in watch.shapes) == 5


def test_no_token_is_computed_after_the_last(make_model: Any, make_prompts: Any) -> None:
    module = make_model()
    sampler, watch = build_sampler(module), Watch(module)
    sampler.sample(make_prompts(3), spec(max_new_tokens=1))
    assert watch.shapes == [(1, 3)]


def test_each_response_is_told_of_once_as_it_ends_and_the_groups_are_the_same(
    make_model: Any, make_prompts: Any
) -> None:
    module, prompts = end_often(make_model()), make_prompts(*UNEQUAL)
    expected = build_sampler(module).sample(prompts, spec(group_size=8))
    for max_rows in (1000, 5):
        finished: list[tuple[Prompt, Trajectory]] = []
        sampler = build_sampler(module, max_rows=max_rows)
        groups = sampler.sample(
            prompts, spec(group_size=8), lambda *response, finished=finished: finished.append(response)
        )
        assert tokens(groups) == tokens(expected)
        assert [g.prompt for g in groups] == prompts
        assert [[c.sample for c in g.trajectories] for g in groups] == [list(range(8))] * 4
        made = {id(c): g.prompt for g in groups for c in g.trajectories}
        assert {id(trajectory): prompt for prompt, trajectory in finished} == made, "the very objects"
        assert len(finished) == 32
    assert {c.finish_reason for g in expected for c in g.trajectories} == {"stop", "length"}


def test_a_response_is_told_of_before_longer_ones_are_sampled_further(make_model: Any, make_prompts: Any) -> None:
    module = end_often(make_model())
    sampler, watch = build_sampler(module), Watch(module)
    steps_done: list[tuple[int, int]] = []

    def finished(prompt: Prompt, trajectory: Trajectory) -> None:
        steps_done.append((len(trajectory.token_ids), len(watch.shapes)))

    sampler.sample(make_prompts(*UNEQUAL), spec(group_size=8), finished)
    assert all(length == passes for length, passes in steps_done), "after as many forward passes as it has tokens"
    assert steps_done == sorted(steps_done)


def test_what_the_listener_raises_ends_the_sampling(make_model: Any, make_prompts: Any) -> None:
    def finished(prompt: Prompt, trajectory: Trajectory) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_sampler(make_model()).sample(make_prompts(3), spec(), finished)


# --- random numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "mistral"])
def test_draws_do_not_depend_on_order_wave_size_or_company(name: str, make_model: Any, make_prompts: Any) -> None:
    module, prompts = end_often(make_model(name), 0.05), make_prompts(*UNEQUAL)
    expected = tokens(build_sampler(module).sample(prompts, spec()))

    assert tokens(build_sampler(module).sample(prompts[::-1], spec())) == expected
    for max_rows in (1, 2, 4, 7):
        assert tokens(build_sampler(module, max_rows=max_rows).sample(prompts, spec())) == expected
    for prompt in prompts:
        alone = tokens(build_sampler(module).sample([prompt], spec()))
        assert alone == {prompt.problem.id: expected[prompt.problem.id]}


def test_a_larger_group_begins_with_the_smaller_one(make_model: Any, make_prompts: Any) -> None:
    module, prompts = make_model(), make_prompts(*UNEQUAL)
    small, large = (tokens(build_sampler(module).sample(prompts, spec(group_size=k))) for k in (2, 5))
    assert {name: made[:2] for name, made in large.items()} == small


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 2}, {"step": -2}])
def test_another_seed_or_step_draws_anew(change: dict[str, int], make_model: Any, make_prompts: Any) -> None:
    module, prompts = make_model(), make_prompts(*UNEQUAL)
    one, other = (tokens(build_sampler(module).sample(prompts, spec(**c))) for c in ({}, change))
    assert all(a != b for name in one for a, b in zip(one[name], other[name], strict=True))


def test_the_samples_of_a_group_differ(make_model: Any, make_prompts: Any) -> None:
    (group,) = build_sampler(make_model()).sample(make_prompts(5), spec(group_size=20))
    assert len({tuple(c.token_ids) for c in group.trajectories}) == 20
    assert [c.sample for c in group.trajectories] == list(range(20))


def test_a_problem_seen_twice_in_a_step_does_not_repeat_its_draws(make_model: Any, make_prompts: Any) -> None:
    sampler, prompts = build_sampler(make_model()), make_prompts(5)
    (first,), (second,) = (sampler.sample(prompts, spec(group_size=4)) for _ in range(2))
    third, fourth = sampler.sample([*prompts, *prompts], spec(group_size=4))
    groups = (first, second, third, fourth)
    assert [c.sample for g in groups for c in g.trajectories] == list(range(16))
    assert len({tuple(c.token_ids) for g in groups for c in g.trajectories}) == 16

    (next_step,) = sampler.sample(prompts, spec(group_size=4, step=2))
    assert [c.sample for c in next_step.trajectories] == [0, 1, 2, 3]


def test_the_global_random_state_is_neither_read_nor_moved(make_model: Any, make_prompts: Any) -> None:
    module, prompts = make_model(), make_prompts(5)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one = tokens(build_sampler(module).sample(prompts, spec()))
    assert torch.equal(torch.rand(1), expected)
    assert tokens(build_sampler(module).sample(prompts, spec())) == one


# --- the distribution --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2", "llama", "mistral", "gemma2", "gpt2", "bloom", "opt"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_scoring_at_the_same_temperature(
    name: str, temperature: float, make_model: Any, make_prompts: Any
) -> None:
    module = end_often(make_model(name), 0.5)
    groups = build_sampler(module).sample(make_prompts(*UNEQUAL), spec(temperature=temperature))

    rows = [
        Row(g.prompt.token_ids, c.token_ids, outcome=0.0, group=i, step_ends=())
        for i, g in enumerate(groups)
        for c in g.trajectories
    ]
    batch = collate(rows, step=1)
    model = LanguageModel(module, device=CPU, precision="fp32", micro_batch_tokens=10_000)
    scored_BT = model.scores(batch, temperature=temperature).logprobs_BT
    trajectories = [c for g in groups for c in g.trajectories]
    assert {len(c.token_ids) for c in trajectories} != {12}, "some rows must end early"
    for row, trajectory in enumerate(trajectories):
        given = torch.tensor(trajectory.logprobs)
        torch.testing.assert_close(scored_BT[row, : len(given)], given, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt2"])
def test_greedy_is_the_argmax_of_a_naive_loop(name: str, make_model: Any, make_prompts: Any) -> None:
    module, prompts = end_often(make_model(name), 0.05), make_prompts(*UNEQUAL)
    groups = build_sampler(module).sample(prompts, spec(group_size=1, temperature=0.0))
    for prompt, group in zip(prompts, groups, strict=True):
        ids = list(prompt.token_ids)
        while len(ids) < len(prompt.token_ids) + 12 and ids[-1] != TOKENIZER.eos_token_id:
            with torch.no_grad():
                ids.append(int(module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert group.trajectories[0].token_ids.tolist() == ids[len(prompt.token_ids) :]


def test_greedy_draws_nothing_so_it_does_not_count_as_a_draw(make_model: Any, make_prompts: Any) -> None:
    sampler, prompts = build_sampler(make_model()), make_prompts(5)
    sampler.sample(prompts, spec(temperature=0.0))
    (group,) = sampler.sample(prompts, spec())
    assert [c.sample for c in group.trajectories] == [0, 1, 2]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_come_as_often_as_their_probability_says(temperature: float, make_model: Any) -> None:
    module = make_model(vocabulary=7, spread=0.2)
    prompt = Prompt(problem=Problem(id="chi", prompt="", answer=""), text="", token_ids=(3, 4))
    draws = 4000
    (group,) = build_sampler(module).sample([prompt], spec(group_size=draws, max_new_tokens=1, temperature=temperature))
    counts = Counter(c.token_ids[0] for c in group.trajectories)
    with torch.no_grad():
        expected_V = draws * (module(input_ids=torch.tensor([[3, 4]])).logits[0, -1] / temperature).softmax(-1)
    assert bool((expected_V > 5).all()), "the chi-square approximation needs five of each"
    chi_square = sum((counts[v] - float(n)) ** 2 / float(n) for v, n in enumerate(expected_V))
    assert chi_square < 22.46, "the 0.999 quantile with 6 degrees of freedom"


def test_rare_tokens_keep_their_share() -> None:
    # A running sum in float32 ends before a last token of probability 1.5e-8 begins.
    logits = torch.tensor([[0.0, -18.0]]).expand(3, -1)
    chosen, logprobs = _choose(logits, torch.tensor([0.0, 0.5, 1 - 1e-9], dtype=torch.float64), 1.0)
    assert chosen.tolist() == [0, 0, 1]
    assert logprobs.tolist() == pytest.approx([0.0, 0.0, -18.0], abs=1e-6)


def test_draws_divide_a_vocabulary_evenly() -> None:
    vocabulary = 50_000
    uniforms = torch.tensor([0.0, 0.5, (vocabulary - 0.5) / vocabulary, 1 - 2**-53], dtype=torch.float64)
    chosen, logprobs = _choose(torch.zeros(4, vocabulary), uniforms, 1.0)
    assert chosen.tolist() == [0, 25_000, vocabulary - 1, vocabulary - 1]
    assert logprobs.tolist() == pytest.approx([-math.log(vocabulary)] * 4)


def test_a_token_without_probability_is_never_chosen() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).expand(3, -1)
    chosen, _ = _choose(logits, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64), 1.0)
    assert chosen.tolist() == [1, 3, 3]


# --- how responses end -------------------------------------------------------------------------------------------


def test_eos_is_part_of_the_tokens_and_decides_the_finish_reason(make_model: Any, make_prompts: Any) -> None:
    groups = build_sampler(end_often(make_model(), 0.02)).sample(make_prompts(*UNEQUAL), spec(group_size=16))
    trajectories = [c for g in groups for c in g.trajectories]
    assert {c.finish_reason for c in trajectories} == {"stop", "length"}
    for trajectory in trajectories:
        eos_at = [i for i, t in enumerate(trajectory.token_ids) if t == TOKENIZER.eos_token_id]
        assert eos_at == ([len(trajectory.token_ids) - 1] if trajectory.finish_reason == "stop" else [])
        assert len(trajectory.logprobs) == len(trajectory.token_ids) <= 12
        assert trajectory.finish_reason == "stop" or len(trajectory.token_ids) == 12
        assert trajectory.text == TOKENIZER.decode(trajectory.token_ids, skip_special_tokens=True)
        assert "<|end|>" not in trajectory.text


def test_an_eos_on_the_last_allowed_token_is_a_stop(make_model: Any, make_prompts: Any) -> None:
    module = end_often(make_model(), 0.999999)
    (group,) = build_sampler(module).sample(make_prompts(4), spec(group_size=1, max_new_tokens=1))
    assert group.trajectories[0].finish_reason == "stop"
    assert group.trajectories[0].text == ""


@pytest.mark.parametrize("configured", [[7, 8], 7, None])
def test_the_end_tokens_of_the_generation_config_are_honoured(
    configured: list[int] | int | None, make_model: Any, make_prompts: Any
) -> None:
    module = make_model()
    module.generation_config.eos_token_id = configured
    head = module.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0], dtype=head.weight.dtype))
    with torch.no_grad():
        head.bias[7] = 1000.0
    (group,) = build_sampler(module).sample(make_prompts(4), spec(group_size=1))
    (trajectory,) = group.trajectories
    assert trajectory.token_ids.tolist() == ([7] if configured else [7] * 12)
    assert trajectory.finish_reason == ("stop" if configured else "length")


def test_tokens_beyond_the_tokenizer_can_be_drawn_and_decode_to_nothing(make_model: Any, make_prompts: Any) -> None:
    # Vocabularies are often padded to a round number; the extra rows are part of the model's distribution.
    padded = len(TOKENIZER) + 5
    module = make_model(vocabulary=padded)
    head = module.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(padded, dtype=head.weight.dtype))
    with torch.no_grad():
        head.bias[-1] = 1000.0
    (group,) = build_sampler(module).sample(make_prompts(4), spec(group_size=1, max_new_tokens=2))
    assert group.trajectories[0].token_ids.tolist() == [padded - 1, padded - 1]
    assert group.trajectories[0].text == ""


# --- weights, precision, architectures ---------------------------------------------------------------------------


def test_loaded_weights_speak_from_then_on_with_their_version(make_model: Any, make_prompts: Any) -> None:
    old, new, prompts = make_model(), make_model(spread=0.4), make_prompts(5)
    sampler = build_sampler(old)
    assert {c.weight_version for c in sampler.sample(prompts, spec(temperature=0.0))[0].trajectories} == {0}
    sampler.load(new, version=3)
    (group,) = sampler.sample(prompts, spec(temperature=0.0))
    assert {c.weight_version for c in group.trajectories} == {3}
    assert tokens([group]) == tokens(build_sampler(new).sample(prompts, spec(temperature=0.0)))


def test_bf16_autocast_samples_with_nearly_the_same_logprobs(make_model: Any, make_prompts: Any) -> None:
    module = make_model().float()
    (group,) = build_sampler(module, precision="bf16").sample(make_prompts(5), spec(group_size=4))
    batch = collate([Row(group.prompt.token_ids, c.token_ids, 0.0, 0, ()) for c in group.trajectories], step=1)
    scored_BT = LanguageModel(module, device=CPU, precision="bf16", micro_batch_tokens=1000).scores(batch).logprobs_BT
    given_BT = torch.tensor(np.stack([c.logprobs for c in group.trajectories]))
    torch.testing.assert_close(scored_BT, given_BT, atol=0.3, rtol=0.1)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.85, 0.999, 1.0])
def test_top_p_draws_from_the_fewest_tokens_that_have_this_probability(top_p: float) -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.05, 0.35])  # in order: tokens 1, 3, 0, 2
    kept = next(n for n in range(1, 5) if sum([0.5, 0.35, 0.1, 0.05][:n]) >= top_p - 1e-6)
    uniforms = torch.linspace(0, 0.9999, 2000)
    drawn, logprobs = _choose(probabilities.log().expand(2000, 4), uniforms, 1.0, top_p)
    expected = torch.zeros(4)
    expected[[1, 3, 0, 2][:kept]] = probabilities[[1, 3, 0, 2][:kept]]
    expected /= expected.sum()
    assert (torch.bincount(drawn, minlength=4) / 2000).allclose(expected, atol=2e-3)
    assert logprobs.exp().allclose(expected[drawn]), "of the distribution that was drawn from"
    greedy, _ = _choose(probabilities.log()[None], None, 1.0, top_p)
    assert greedy.tolist() == [1]
