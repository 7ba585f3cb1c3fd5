"""What the benchmark says of the starts of its regimes."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from priml.config.data import Data, WalkSource
from priml.data.procedural.tasks import walk

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("sample_efficiency")


def test_luck_is_the_share_of_right_answers_with_a_wrong_or_missing_step(benchmark: Any):
    task = walk(WalkSource(kind="walk", length=3, boxed=1, doubtful=0.0))
    (trace,) = task.traces(task.problems(split="train", count=1, seed=0), seed=0)
    first, second, last = trace.response[:3]
    other = "0" if second != "0" else "1"
    texts = [
        trace.response,
        f"{first}{other}{last}\\boxed{{{last}}}",  # two wrong steps, the second back to the right state
        f"{first}\\boxed{{{last}}}",
        f"{first}{second}{last}\\boxed{{{other}}}",  # a box that does not hold what was written
        "",
    ]
    answers = [(trace.problem, text) for text in texts]
    is_right = [True, True, True, False, False]
    assert benchmark.share_of_luck(task, answers, is_right) == {
        "responses": 5,
        "success": 0.6,
        "luck": round(2 / 3, 4),
        "boxed": 0.4,
    }
    nothing_right = benchmark.share_of_luck(task, answers[-1:], [False])
    assert (nothing_right["success"], nothing_right["luck"]) == (0.0, None), "no share of nothing"


def test_a_regime_of_another_task_has_another_warm_start(benchmark: Any, tmp_path: Path):
    """Else the model of an old form would be found under the name and measured for the new one."""
    regimes = list(benchmark.REGIMES.values())
    changed = benchmark.replace(regimes[0], task=regimes[0].task | {"seed": 1})
    folders = [benchmark._phases(tmp_path, regime)[0] for regime in (*regimes, changed)]
    assert len(set(folders)) == len(folders)
    assert benchmark._phases(tmp_path, regimes[0]) == benchmark._phases(tmp_path, regimes[0])


def test_every_regime_but_the_lucky_one_boxes_all_its_states(benchmark: Any):
    for name, regime in benchmark.REGIMES.items():
        source = Data.model_validate({"train": regime.task}).train
        assert (source.boxed == source.length) is (not name.endswith("_lucky"))
        assert all(Data.model_validate({"train": regime.task | _of_task(phase)}) for phase in regime.sft)


def test_the_oracle_pays_each_state_where_it_stands(benchmark: Any):
    import torch

    from priml.batch import Row, TokenScores, collate
    from priml.models.tiny import character_tokenizer

    task, tokenizer = (
        walk(WalkSource(kind="walk", length=4, fillers=2, boxed=4, doubtful=0.5, wrong=0.9)),
        character_tokenizer(),
    )
    (trace,) = task.traces(task.problems(split="train", count=1, seed=1), seed=1)
    assert isinstance(trace.problem.prompt, str)
    prompt, response = (
        tokenizer.encode(text, add_special_tokens=False) for text in (trace.problem.prompt, trace.response)
    )
    response = [*response[4:6], *response[:4], *response[6:]]  # wherever the fillers stand
    batch = collate([Row(prompt, response, outcome=1.0, group=0, step_ends=())], step=1)
    truth = benchmark._Truth(task, tokenizer)
    rewards_T = benchmark._Oracle(truth).rewards(batch).rewards_BT[0]
    right = task.judge_steps(trace.problem, trace.response).right
    assert rewards_T[2:6].tolist() == [float(ok) for ok in right]
    assert torch.count_nonzero(rewards_T) == sum(right)
    assert 0 < sum(right) < 4
    unsure = batch.with_old(TokenScores(torch.zeros(1, len(response)), torch.ones(1, len(response))))
    assert truth.decision_auc(unsure, rewards_T.unsqueeze(0)) == 1.0
    assert truth.decision_auc(unsure, -rewards_T.unsqueeze(0)) == 0.0
    sure = batch.with_old(TokenScores(torch.zeros(1, len(response)), torch.zeros(1, len(response))))
    assert truth.decision_auc(sure, rewards_T.unsqueeze(0)) is None


def test_an_ideal_learner_knows_what_outcomes_prove_and_suspects_what_they_leave_open(benchmark: Any):
    class Truth:
        def claims(self, batch: Any) -> Any:
            return [benchmark._Claims(facts, list(range(len(facts))), boxed) for facts, boxed, _ in batch]

    class Batch(list[Any]):
        @property
        def outcomes_B(self) -> Any:
            return torch.tensor([outcome for _, _, outcome in self])

    import torch

    ideal = benchmark._Ideal(Truth())
    prior = ideal.PRIOR
    ideal.update(Batch([(["A12", "B23"], True, 0.0)]))
    assert ideal.probability("A12") == ideal.probability("B23") < prior, "one of them is wrong"
    assert ideal.probability("C12") == prior
    ideal.update(Batch([(["A12", "C34"], True, 1.0)]))
    assert [ideal.probability(fact) for fact in ("A12", "A13", "C34")] == [1.0, 0.0, 1.0], "proved, and contradicted"
    assert ideal.probability("B23") < 0.6, "the other one must be it"
    before = ideal.probability("B23")
    ideal.update(Batch([(["A13", "D11"], True, 0.0), (["E22"], False, 0.0)]))
    assert ideal.probability("B23") == before
    assert (ideal.probability("D11"), ideal.probability("E22")) == (prior, prior), "both answers are explained"


def test_claims_are_facts_of_the_table_and_ask_for_the_box(benchmark: Any):
    from priml.batch import Row, collate
    from priml.models.tiny import character_tokenizer

    task, tokenizer = walk(WalkSource(kind="walk", length=3, boxed=3, doubtful=0.0)), character_tokenizer()
    (trace,) = task.traces(task.problems(split="train", count=1, seed=1), seed=1)
    question = str(trace.problem.prompt)
    states = question[0] + trace.response[:3]
    rows = [
        Row(
            tokenizer.encode(question, add_special_tokens=False),
            tokenizer.encode(text, add_special_tokens=False),
            outcome=1.0,
            group=0,
            step_ends=(),
        )
        for text in (trace.response, trace.response[:3], trace.response[:2])
    ]
    claims = list(benchmark._Truth(task, tokenizer).claims(collate(rows, step=1)))
    facts = [question[1 + i] + states[i] + states[i + 1] for i in range(3)]
    assert [c.facts for c in claims] == [facts, facts, facts[:2]]
    assert [c.boxed for c in claims] == [True, False, False]


def test_the_longest_time_below_chance_is_counted_in_steps(benchmark: Any):
    curve = [{"decision_auc": value} for value in (0.4, 0.6, 0.4, 0.3, 0.5, 0.2)] + [{}]
    assert benchmark.longest_below_chance(curve) == 2
    assert benchmark.longest_below_chance([{}]) == 0


def _of_task(phase: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in phase.items() if name != "lr"}
