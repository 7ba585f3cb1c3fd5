from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from fakes import TableVerifier, make_prompt, make_trajectory
from priml.evaluate.responses import ResponseStore, complete, missing
from priml.graders.pool import VerifierPool
from priml.rollout.base import SamplingSpec
from priml.types import Group, Segment, Trajectory, Verdict

SPEC = SamplingSpec(group_size=4, temperature=1.0, max_new_tokens=9, seed=0, step=-1)
PROMPTS = [make_prompt("a"), make_prompt("b")]


class CountingSampler:
    """Answers `yes` for even samples, and notes what it was asked for."""

    def __init__(self):
        self.asked = []

    def sample(self, prompts, spec, finished, numbers):
        for prompt, samples in zip(prompts, numbers, strict=True):
            for sample in samples:
                self.asked.append((prompt.problem.id, sample))
                finished(prompt, make_trajectory("no" if sample % 2 else "yes", sample=sample))


def store_in(folder):
    return ResponseStore(folder / "set.parquet", folder / "set.partial.jsonl")


def verify():
    return VerifierPool(TableVerifier({"yes": 1.0, "lost": None}))


def no_steps(_):
    return []


def test_missing_samples_are_runs_of_numbers():
    known = dict.fromkeys([("sampled", "a", 1), ("sampled", "b", 0), ("greedy", "b", 1)])
    found = missing(known, "sampled", SPEC, PROMPTS)
    assert [(p.problem.id, r) for p, r in found] == [("a", range(1)), ("a", range(2, 4)), ("b", range(1, 4))]


def test_only_what_is_missing_is_sampled(tmp_path):
    store = store_in(tmp_path)
    for sample in (2, 0):
        store.add("sampled", PROMPTS[1], make_trajectory("yes", sample=sample))
    sampler = CountingSampler()
    graded = complete(sampler, verify(), PROMPTS, {"sampled": SPEC}, store_in(tmp_path))
    assert sampler.asked == [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 3)]
    assert [[v.score for v in group.verdicts] for group in graded["sampled"]] == [[1.0, 0.0, 1.0, 0.0]] * 2
    store.write(graded, no_steps)
    assert complete(sampler, verify(), PROMPTS, {"sampled": SPEC}, store)["sampled"][0].verdicts == (
        graded["sampled"][0].verdicts
    )
    assert len(sampler.asked) == 6


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_line_that_was_cut_off_is_asked_for_again(tmp_path, cut):
    store, path = store_in(tmp_path), tmp_path / "set.partial.jsonl"
    for sample in range(3):
        store.add("sampled", PROMPTS[0], make_trajectory("yes", sample=sample))
    path.write_text(path.read_text()[:-cut])
    again = store_in(tmp_path)
    assert sorted(sample for _, _, sample in again.read()) == [0, 1]
    again.add("sampled", PROMPTS[0], make_trajectory("yes", sample=2))
    assert sorted(sample for _, _, sample in store_in(tmp_path).read()) == [0, 1, 2]


def test_a_rollout_with_turns_and_a_verdict_of_its_environment_comes_back_whole(tmp_path):
    def part(ids, version):
        return Segment(
            np.array(ids, np.int32), np.array([-0.1] * len(ids) if version is not None else [], np.float32), version
        )

    verdict = Verdict.right("won", "7")
    rollout = Trajectory(
        (part([1, 2], 0), part([3], None), part([4], 0)), "ab", "length", 5, turn_rewards=(0.5, 1.0), verdict=verdict
    )
    store = store_in(tmp_path)
    store.add("greedy", PROMPTS[0], rollout)
    for _ in range(2):
        (found,) = store_in(tmp_path).read().values()
        assert found.token_ids.tolist() == [1, 2, 3, 4]
        assert found.logprobs.tolist() == rollout.logprobs.tolist()
        assert [segment.weight_version for segment in found.segments] == [0, None, 0]
        assert replace(found, segments=rollout.segments) != rollout, "a trajectory is equal to itself alone"
        assert (found.text, found.finish_reason, found.sample) == ("ab", "length", 5)
        assert (found.turn_rewards, found.verdict) == ((0.5, 1.0), verdict)
        store.write({"greedy": [Group(PROMPTS[0], (rollout,), (verdict,))]}, no_steps)


def test_undecided_verdicts_are_asked_for_again_and_others_only_on_request(tmp_path):
    store = store_in(tmp_path)
    group = Group(PROMPTS[0], (make_trajectory("lost"), make_trajectory("yes", sample=1)))
    store.write({"sampled": verify()([group])}, no_steps)
    kept, regraded = store.read(), store.read(verdicts=False)
    assert [t.verdict and t.verdict.score for t in kept.values()] == [None, 1.0]
    assert [t.verdict for t in regraded.values()] == [None, None]


def test_log_probs_that_nobody_knows_are_null_in_the_file(tmp_path):
    store, unknown = store_in(tmp_path), make_trajectory("yes")
    segment = Segment(unknown.segments[0].token_ids, np.full(3, np.nan, np.float32), 0)
    store.add("greedy", PROMPTS[0], replace(unknown, segments=(segment,)))
    (found,) = store.read().values()
    assert np.isnan(found.logprobs).all()
    store.write({"greedy": verify()([Group(PROMPTS[0], (found,))])}, no_steps)
    assert pq.read_table(tmp_path / "set.parquet").to_pylist()[0]["sampler_logprobs"] is None
    (found,) = store.read().values()
    assert np.isnan(found.logprobs).all()
