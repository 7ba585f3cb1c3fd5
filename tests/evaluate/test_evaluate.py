from dataclasses import asdict, replace

import pytest

from fakes import ScriptedSampler, TableVerifier, make_prompt, make_trajectory
from priml.errors import RunError
from priml.evaluate.evaluate import EvalSettings, evaluate, score
from priml.graders.pool import VerifierPool
from priml.types import Group, Verdict

SCORES = {"yes": 1.0, "no": 0.0, "half": 0.5, "lost": None}


def run(script, *, greedy=True, samples=4):
    settings = EvalSettings(greedy=greedy, samples=samples, temperature=1.0, max_new_tokens=9, seed=0, stream=-1)
    prompts = [make_prompt(name) for name in script]
    return evaluate(ScriptedSampler(script), VerifierPool(TableVerifier(SCORES)), prompts, settings)


def test_greedy_sampled_and_pass_at_k_by_hand():
    found = run({"a": ["yes", "no", "no", "no"], "b": ["no", "half", "no", "half"]})
    assert found.greedy.mean == 0.5
    assert found.sampled.mean == pytest.approx((0.25 + 0.25) / 2)
    assert {k: score.mean for k, score in found.pass_at.items()} == {1: 0.125, 2: 0.25, 4: 0.5}
    assert asdict(found.lengths) == {"mean": pytest.approx((4 * 2.25 + 4 * 3 + 3 + 2) / 10), "median": 2, "longest": 4}
    assert found.responses == 10
    assert found.undecided == found.truncated == 0


def test_undecided_responses_are_left_out_and_counted():
    found = run({"a": ["yes", "lost", "lost", "no"], "b": ["lost"], "c": ["no"]})
    assert found.greedy.n == 2, "b has no greedy verdict"
    assert found.sampled.n == 2
    assert found.sampled.mean == pytest.approx(0.25)
    assert {k: (score.mean, score.n) for k, score in found.pass_at.items()} == {1: (0.25, 2), 2: (0.5, 2), 4: (0.0, 1)}
    assert found.undecided == 2 + 4 + 1


def test_only_what_was_asked_for_is_sampled_and_reported():
    greedy_only = run({"a": ["yes"]}, samples=0)
    assert greedy_only.asdict() == {
        "greedy": {"mean": 1.0, "low": pytest.approx(0.2065, abs=1e-4), "high": 1.0, "n": 1},
        "undecided": 0,
        "truncated": 0,
        "no_answer": 0,
        "responses": 1,
        "tokens": {"mean": 3.0, "median": 3, "longest": 3},
    }
    sampled_only = run({"a": ["yes", "no"]}, greedy=False, samples=2).asdict()
    assert "greedy" not in sampled_only
    assert set(sampled_only["pass_at"]) == {"1", "2"}


def test_a_verifier_that_decides_nothing_is_an_error_with_its_reason():
    with pytest.raises(RunError, match=r"no response could be judged.*scripted"):
        run({"a": ["lost"]})


def test_each_source_has_scores_of_its_own_where_there_are_several():
    script = {"a": ["yes", "no"], "b": ["no"], "c": ["lost"]}
    prompts = [make_prompt(name) for name in script]
    sources = ("taco/1", "numina", "lost")
    prompts = [replace(p, problem=replace(p.problem, source=s)) for p, s in zip(prompts, sources, strict=True)]
    settings = EvalSettings(greedy=True, samples=2, temperature=1.0, max_new_tokens=9, seed=0, stream=-1)
    found = evaluate(ScriptedSampler(script), VerifierPool(TableVerifier(SCORES)), prompts, settings)
    means = {
        source: {name: score.mean for name, score in parts.items()}
        for source, parts in found.breakdowns["by_source"].items()
    }
    assert means == {"lost": {}, "numina": {"greedy": 0.0, "sampled": 0.0}, "taco": {"greedy": 1.0, "sampled": 0.5}}
    assert found.asdict()["by_source"]["taco"]["greedy"]["n"] == 1


def group(*verdicts, meta=None):
    prompt = make_prompt()
    prompt = replace(prompt, problem=replace(prompt.problem, meta=meta or {}))
    return Group(prompt, tuple(make_trajectory(sample=i) for i in range(len(verdicts))), verdicts)


def test_the_majority_wins_by_the_outcome_of_its_answer():
    right, half, none = Verdict.right("equal", "1/2"), Verdict.right("equal", "0.5"), Verdict.wrong("no answer")
    wrong = Verdict.wrong("different value", "3")
    graded = {"sampled": [group(right, wrong, half, none), group(wrong, wrong, right, wrong)]}
    found = score(graded, lambda _, a, b: {a, b} == {"1/2", "0.5"})
    assert {k: value.mean for k, value in found.majority_at.items()} == {
        1: pytest.approx((2 / 4 + 1 / 4) / 2),
        # Of the pairs of the first: 1/2 with 3 ties, both of them win over nothing said and with each other, 3 alone.
        2: pytest.approx(((0.5 + 1 + 1 + 0.5 + 0 + 1) / 6 + (3 * 0.5) / 6) / 2),
        4: pytest.approx((1 + 0) / 2),
    }
    assert found.no_answer == 1
    assert score(graded).majority_at == {}


def test_levels_and_subjects_have_scores_of_their_own():
    right, wrong = Verdict.right("equal", "1"), Verdict.wrong("no answer")
    levels = [("1", right), ("5", wrong), ("5", right), (None, wrong)]
    graded = {"greedy": [group(verdict, meta={"level": level, "subject": "Algebra"}) for level, verdict in levels]}
    found = score(graded).asdict()
    assert {level: parts["greedy"]["mean"] for level, parts in found["by_level"].items()} == {"1": 1.0, "5": 0.5}
    assert "by_subject" not in found, "there is only one"
