from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fakes import ScriptedSampler, TableVerifier, make_prompt
from priml.batch import TokenScores
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.data.stream import ProblemStream
from priml.factories.algorithm import build_advantages, build_collect_spec
from priml.graders.pool import VerifierPool
from priml.learners.base import ProcessRewards
from priml.training.collect import StarvedError, collate_groups
from priml.training.collectors import SyncCollector
from priml.training.loop import Roles, train


class Policy:
    """Remembers what it was asked."""

    def __init__(self, events):
        self.events = events
        self.batches = []
        self.advantages = []

    def score(self, batch):
        self.events.append("score")
        zeros_BT = torch.zeros(batch.mask_BT.shape)
        return batch.with_old(TokenScores(zeros_BT, zeros_BT))

    def update(self, batch, advantages_BT):
        self.events.append("update policy")
        self.batches.append(batch)
        self.advantages.append(advantages_BT)
        return batch, None

    def weights(self):
        return SimpleNamespace(module=lambda: None)


class Prm:
    def __init__(self, events):
        self.events = events

    def update(self, batch):
        self.events.append("update PRM")

    def rewards(self, batch):
        self.events.append("rewards")
        return ProcessRewards(rewards_BT=torch.zeros(batch.mask_BT.shape))


class Records:
    """A `Run` that keeps what it is told, for a given number of steps."""

    factor = 1.0

    def process_factor(self, report):
        return self.factor

    def __init__(self, steps):
        self._steps = steps
        self.groups = []

    def steps(self):
        return iter(range(1, self._steps + 1))

    def record(self, done, *reports):
        self.groups.append(done.groups)

    def kept(self, step):
        return [group for group, status in self.groups[step] if status == "kept"]


def run(script, scores, *, steps=1, events=None, critic_role=None, **settings):
    tree = {
        "run_dir": "unused",
        "policy": {"model": "unused"},
        "data": {"train": {"kind": "chain"}},
        "sampling": {"group_size": 2},
        "batch": {"prompts": 2},
        "filter": {"max_rounds": 3},
        **settings,
    }
    cfg = parse_config(TrainConfig, tree, where="test")
    events = [] if events is None else events
    sampler = ScriptedSampler(script)
    policy = Policy(events)
    collate = partial(collate_groups, step_ends=lambda ids: [len(ids) - 1])
    stream = ProblemStream([make_prompt(name) for name in script], seed=0)
    roles = Roles(
        SyncCollector(sampler, VerifierPool(TableVerifier(scores)), stream, build_collect_spec(cfg)),
        collate,
        policy,
        Prm(events),
        build_advantages(cfg),
        critic_role,
    )
    records = Records(steps)
    train(roles, records)
    return SimpleNamespace(sampler=sampler, policy=policy, records=records, events=events)


MIXED = {"good": 1.0, "bad": 0.0}


def test_a_step_goes_in_the_order_of_the_paper_and_the_sampler_gets_the_new_weights():
    done = run({name: ["good", "bad"] for name in "abcd"}, MIXED, steps=2)
    assert done.events == ["score", "update PRM", "rewards", "update policy"] * 2
    assert done.sampler.version == 2


def test_it_samples_again_until_the_batch_is_full():
    script = {name: ["good", "bad"] if name in "ab" else ["bad"] for name in "abcdef"}
    done = run(script, MIXED, filter={"max_rounds": 9})
    assert len(done.sampler.asked) > 1
    assert len(done.policy.batches[0]) == 4
    assert {group.prompt.problem.id for group in done.records.kept(0)} <= {"a", "b"}


def test_surplus_prompts_are_served_first_in_the_next_step():
    done = run({name: ["good", "bad"] for name in "abcdef"}, MIXED, steps=2, batch={"prompts": 2, "draw": 4})
    assert done.sampler.asked[1][:2] == done.sampler.asked[0][2:]


def test_undecided_groups_never_reach_the_batch_and_are_replaced():
    script = {name: ["good", "lost"] if name == "a" else ["good", "bad"] for name in "abcd"}
    done = run(script, {**MIXED, "lost": None}, steps=2, batch={"prompts": 2, "draw": 3}, filter=None)
    ids = [group.prompt.problem.id for step in (0, 1) for group in done.records.kept(step)]
    assert len(ids) == 4
    assert "a" not in ids
    assert all(torch.isfinite(batch.outcomes_B).all() for batch in done.policy.batches)
    assert any(status == "undecided" for groups in done.records.groups for _, status in groups)


def test_without_a_filter_groups_without_contrast_are_trained_on_too():
    done = run({"a": ["good"], "b": ["bad"]}, MIXED, filter=None)
    assert done.policy.batches[0].outcomes_B.sum() == 2.0


def test_advantages_are_leave_one_out_within_the_group():
    done = run({"a": ["good", "bad"], "b": ["good", "bad"]}, MIXED)
    good, bad = done.policy.advantages[0][0], done.policy.advantages[0][1]
    assert good.max() > 0 > bad.min()


def test_starving_stops_the_run_before_any_model_moves():
    events = []
    with pytest.raises(StarvedError, match="after 3 rounds"):
        run({"a": ["bad"], "b": ["bad"]}, MIXED, events=events)
    assert events == []


def test_the_weight_of_the_process_reward_follows_its_ramp_and_the_factor_of_the_run(monkeypatch):
    seen = []

    def estimate(outcomes_B, rewards_BT, *rest, process_weight, **settings):
        seen.append(process_weight)
        return rewards_BT

    monkeypatch.setattr("priml.training.advantages.estimate_advantages", estimate)
    advantage = {"process_weight": 0.8, "process_ramp": {"start": 0.0, "after": 1, "steps": 2}}
    run({name: ["good", "bad"] for name in "abcd"}, MIXED, steps=5, advantage=advantage)
    assert seen == [0.0, 0.0, 0.4, 0.8, 0.8]
    seen.clear()
    monkeypatch.setattr(Records, "factor", 0.5)
    run({name: ["good", "bad"] for name in "abcd"}, MIXED, advantage={"process_weight": 0.8})
    assert seen == [0.4]


def test_a_response_at_the_limit_can_take_its_prompt_with_it():
    script = {"a": ["good", "bad"], "b": ["good", "cut"], "c": ["good", "bad"], "d": ["good", "cut"]}
    keeping = run(script, MIXED, overlong={"kind": "keep"}, filter=None, batch={"prompts": 4})
    assert {group.prompt.problem.id for group in keeping.records.kept(0)} == set("abcd")
    dropping = run(script, MIXED, overlong={"kind": "drop"}, filter=None, batch={"prompts": 2, "draw": 4})
    assert {group.prompt.problem.id for group in dropping.records.kept(0)} == set("ac")
    assert [status for _, status in dropping.records.groups[0]].count("truncated") == 2


def test_the_batch_knows_which_responses_were_cut():
    done = run({"a": ["good", "cut"], "b": ["cut", "good"]}, MIXED, filter=None)
    batch = done.policy.batches[0]
    assert sorted(batch.truncated_B.tolist()) == [False, False, True, True]
    assert batch.outcomes_B[batch.truncated_B].tolist() == [0.0, 0.0]


def test_the_overlong_penalty_reaches_the_advantages_and_not_the_batch():
    settings = {
        "filter": None,
        "sampling": {"group_size": 2, "max_new_tokens": 4},
        "advantage": {"estimator": "reinforce", "preset": "paper"},
        "overlong": {"kind": "penalty", "window": 2},
    }
    done = run({"a": ["good", "bad"], "b": ["good", "bad"]}, MIXED, **settings)
    # `good` has all of the four tokens it may have and loses all it won; `bad` has three and loses half.
    assert done.policy.batches[0].outcomes_B.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert done.policy.advantages[0][:, 0].tolist() == [0.0, -0.5, 0.0, -0.5]


class Critic:
    """Says 1/4 of every token."""

    def __init__(self, events):
        self.events = events
        self.returns = []

    def estimate_values(self, batch):
        self.events.append("estimate values")
        return replace(batch, values_BT=0.25 * batch.mask_BT)

    def update(self, batch, returns_BT):
        self.events.append("update critic")
        self.returns.append(returns_BT)


def test_ppo_gives_the_critic_its_returns_before_the_policy_learns():
    events = []
    critic = Critic(events)
    settings = {"critic": {}, "advantage": {"estimator": "ppo"}, "filter": None}
    done = run({"a": ["good", "bad"], "b": ["good", "bad"]}, MIXED, events=events, critic_role=critic, **settings)
    expected = ["score", "estimate values", "update PRM", "rewards", "update critic", "update policy"]
    assert events == expected
    batch = done.policy.batches[0]
    # Nothing but the outcome is paid, and lambda is 1: the outcome is the return of every token, whatever the values.
    assert torch.equal(critic.returns[0], batch.outcomes_B[:, None] * batch.mask_BT)
    advantages_N = done.policy.advantages[0][batch.mask_BT]
    assert float(advantages_N.mean()) == pytest.approx(0.0, abs=1e-6), "whitened, as the preset says"
