"""Whole runs in which the policy takes turns with an environment."""

import pytest

from fakes import read_metrics, read_rollouts, timeless, tiny_config
from priml.commands.train import run_training
from priml.errors import RunError, UsageError

GUESS = '''
class Guess:
    """Answers each turn with its length, and pays for a short one."""

    def reset(self, problem):
        self.turns = 0

    def step(self, text):
        self.turns += 1
        return f"={len(text)};", 0.5 if len(text) < 2 else 0.0, self.turns == 3

    def close(self):
        pass


class Dumb:
    def reset(self, problem): ...


class Failing(Guess):
    def step(self, text):
        raise ValueError("no")
'''


def config(folder, model, name, *overrides):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "guess.py").write_text(GUESS)
    environment = f'environment={{kind: custom, function: "{folder / "guess.py"}:{name}", turn_tokens: 8}}'
    return tiny_config(folder, model, "sampling.max_new_tokens=12", "filter=null", environment, *overrides)


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("prm=null",),
        ("prm.granularity=step",),
        ("advantage.estimator=ppo", "critic={optimizer: {lr: 1.0e-3}, mini_batch: 12}"),
        ("sampling.max_staleness=1", "sampler={kind: transformers, copy_weights: true}"),
    ],
    ids=["prime", "outcome", "step", "ppo", "stale"],
)
def test_a_run_trains_on_what_the_policy_said_in_its_turns(tmp_path, warm_model, more):
    runs = [config(tmp_path / name, warm_model, "Guess", *more) for name in ("one", "other")]
    for cfg in runs:
        run_training(cfg)
    first, other = (timeless(read_metrics(cfg.run_dir)) for cfg in runs)
    assert first == other, "reproducible"
    rows = [row for step in (1, 2) for row in read_rollouts(runs[0].run_dir, step)]
    kept = [row for row in rows if row["filter_status"] == "kept"]
    assert any(len(row["segments"]) > 1 for row in kept), "there are turns"
    for row in kept:
        sampled = [segment for segment in row["segments"] if segment["weight_version"] is not None]
        trained = sum(segment["num_tokens"] for segment in sampled)
        assert trained <= 12
        assert sum(segment["num_tokens"] for segment in row["segments"]) == len(row["response_ids"])
        names = ["sampler_logprobs", "old_logprobs", "advantages"]
        names += [] if "prm=null" in more else ["process_rewards", "prm_logprobs", "ref_logprobs"]
        assert {name: len(row[name]) for name in names} == dict.fromkeys(names, trained)
        assert row["step_ends"][-1] == trained - 1
    if "sampling.max_staleness=1" not in more:
        assert max(record["sampler/mismatch_max"] for record in first) < 1e-4, "observations are read in the same place"
    assert any(row["turn_rewards"] for row in rows)


def test_rewards_of_turns_count_without_a_prm(tmp_path, warm_model):
    """Paid turns are better than others, although the verifier says the same of all."""
    cfg = config(tmp_path, warm_model, "Guess", "prm=null", "steps=1")
    (tmp_path / "judge.py").write_text("def grade(problem, response):\n    return 0.5\n")
    run_training(cfg)
    kept = read_rollouts(cfg.run_dir, 1)
    paid = {bool(row["turn_rewards"]) for row in kept}
    assert paid == {True, False}
    assert any(any(row["advantages"]) for row in kept)


def test_an_environment_without_a_method_is_refused_before_the_run(tmp_path, warm_model):
    with pytest.raises(UsageError, match=r"Dumb has no step, close; an environment needs reset\(problem\)"):
        run_training(config(tmp_path, warm_model, "Dumb"))


def test_an_environment_that_always_fails_starves_the_run_and_is_named(tmp_path, warm_model):
    with pytest.raises(RunError, match=r"the verifier could not decide \(ValueError in .*guess.py:Failing\)"):
        run_training(config(tmp_path, warm_model, "Failing"))
