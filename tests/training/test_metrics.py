import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fakes import make_group
from priml.batch import Row, TokenScores, collate
from priml.training.collect import FilterBand, GroupPool
from priml.training.metrics import mismatch_metrics, peak_gib, repetition, rollout_metrics
from priml.training.records import rollout_rows


def measure(*groups, wanted=1):
    pool = GroupPool(wanted=wanted, band=FilterBand(low=0.2, high=0.8), max_rounds=1)
    pool.add(groups)
    return rollout_metrics(rollout_rows(1, pool.groups, lambda ids: [len(ids) - 1]), pool.groups)


def test_every_number_of_a_small_step_by_hand():
    metrics = measure(
        make_group([1.0, 0.0], finish_reasons=["stop", "length"]),
        make_group([1.0, 1.0]),
        make_group([0.0, 0.0]),
        make_group([1.0, None]),
        make_group([0.5, 0.0]),
    )
    assert metrics == {
        "verdict/correct": 4,
        "verdict/wrong": 5,
        "verdict/undecided": 1,
        "outcome/mean": pytest.approx(4.5 / 9),
        "outcome/kept_mean": 0.5,
        "filter/sampled": 5,
        "filter/kept": 1,
        "filter/too_easy": 1,
        "filter/too_hard": 1,
        "filter/truncated": 0,
        "filter/undecided": 1,
        "response/length_mean": 2.0,
        "response/truncated": 0.1,
        "response/repetition": 0.0,
        "tokens/sampled": 20,
        "tokens/trained": 4,
    }


def test_the_peak_of_memory_is_between_a_few_mebibytes_and_a_terabyte():
    assert 0.005 < peak_gib() < 1024


def of_source(source, scores):
    group = make_group(scores)
    return replace(group, prompt=replace(group.prompt, problem=replace(group.prompt.problem, source=source)))


def test_outcomes_and_verdicts_by_source_by_hand():
    groups = [
        of_source("taco/easy", [1.0, 0.5]),
        of_source("taco/hard", [0.0, None]),
        of_source("numina", [1.0, 0.0]),
        of_source("lost", [None, None]),
    ]
    pool = GroupPool(wanted=1, band=FilterBand(low=0.2, high=0.8), max_rounds=1)
    pool.add(groups)
    rows = rollout_rows(1, pool.groups, lambda ids: [len(ids) - 1])
    whole = rollout_metrics(rows, pool.groups)
    parts = rollout_metrics(rows, pool.groups, ["lost", "never drawn", "numina", "taco"])
    assert {key: value for key, value in parts.items() if key not in whole} == {
        "outcome/mean/taco": pytest.approx(1.5 / 3),
        "verdict/correct/taco": 1,
        "verdict/wrong/taco": 2,
        "verdict/undecided/taco": 1,
        "outcome/mean/numina": 0.5,
        "verdict/correct/numina": 1,
        "verdict/wrong/numina": 1,
        "verdict/undecided/numina": 0,
        "verdict/correct/lost": 0,
        "verdict/wrong/lost": 0,
        "verdict/undecided/lost": 2,
    }


@pytest.mark.parametrize("chunk", [2**22, 1])
def test_the_mismatch_of_sampler_and_trainer_by_hand(chunk, monkeypatch):
    monkeypatch.setattr("priml.training.metrics._CHUNK_TOKENS", chunk)
    said = [[-1.0, -2.0], [-0.5]]
    rows = [Row((1,), range(1, len(x) + 1), 1.0, 0, (0,), sampler_logprobs=x) for x in said]
    trainer_BT = torch.tensor([[-1.1, -1.8], [-0.5, float("nan")]])
    batch = collate(rows, step=1).with_old(TokenScores(trainer_BT, torch.zeros(2, 2)))
    k3 = (math.exp(-0.1) - 1 + 0.1 + math.exp(0.2) - 1 - 0.2) / 3
    assert mismatch_metrics(batch) == {
        "sampler/mismatch_mean": pytest.approx(0.1, rel=1e-5),
        "sampler/mismatch_max": pytest.approx(0.2, rel=1e-5),
        "sampler/mismatch_kl": pytest.approx(k3, rel=1e-4),
    }
    assert mismatch_metrics(replace(batch, sampler_logprobs_BT=None)) == {}


def test_repetition_counts_what_occurred_before():
    def of(ids: list[int]) -> float:
        return repetition(np.array(ids, np.int32), n=8)

    assert of([1, 2, 3, 4, 5, 6, 7]) == of([]) == 0.0
    assert of(list(range(50))) == 0.0
    assert of([7] * 20) == pytest.approx(12 / 13)  # 13 8-grams, all alike
    assert of([1, 2] * 8) == pytest.approx(7 / 9)  # 9 8-grams of 2 kinds
    assert of([1, 256] * 8) == pytest.approx(7 / 9)  # the same bytes, at other places within numbers
