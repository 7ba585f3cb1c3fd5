"""Do implicit process rewards reach the same accuracy with fewer rollouts than outcome rewards alone?

The variants have the same problems, batch sizes and seeds. The policy learning rate of each is chosen from one grid:

    rloo      outcome-only RLOO
    grpo      outcome-only GRPO (by request)
    reuse     RLOO whose policy also learns the right responses of all steps by heart (by request)
    prime     PRIME as published (cross-entropy PRM, authors' arithmetic)
    pairwise  PRIME with the pairwise loss inside the group (by request)
    likelihood   PRIME with our defaults: a PRM that learns the right responses of all steps, compared with the policy,
              and the gate
    prime_paper, prime_verl   PRIME with the arithmetic of the paper's formulas, of verl's recipe (by request)
    rloo_filtered, prime_filtered, pairwise_filtered   with the paper's filter of prompts, equal rollouts (by request)
    ideal     as process reward of each step the probability that it is right, inferred from the outcomes seen so far by
              a learner that knows how the task is built: no PRM could know more of them (by request)
    oracle    the true correctness of each step as process reward: no process reward could give more

Regimes: `chain` (short chains of shared facts), `walk` (20 look-ups, one token each), `pretrained` (the walk is first
learned without errors, then a short noisy fine-tuning hides some facts) and `wordy` (the same with 10 look-ups, and ten
tokens that do not matter). All states are in the box, so no answer is right by luck; `chain_lucky` boxes one. Accuracy
is the mean outcome of fresh samples on unseen training problems, over a window of five steps.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import BACKEND, arguments, assemble, write_results

LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WINDOW = 5
UNCERTAIN = 0.05
"""Entropy of the policy, in nats, from which on a step is a decision."""
START_RESPONSES = 2048
"""How many the start is measured by."""
PRM: dict[str, Any] = {"beta": "auto", "optimizer": {"lr": 1e-4, "max_grad_norm": 1.0}, "mini_batch": None}
_FILTERED: dict[str, Any] = {"filter": {"low": 0.2, "high": 0.8, "max_rounds": 64}, "batch": {"prompts": 16}}
ARMS: dict[str, dict[str, Any]] = {
    "rloo": {"prm": None},
    "grpo": {"prm": None, "advantage": {"estimator": "grpo"}},
    "reuse": {"prm": None},
    "prime": {"prm": PRM},
    "pairwise": {"prm": PRM | {"loss": "pairwise"}},
    "prime_paper": {"prm": PRM, "advantage": {"preset": "paper"}},
    "prime_verl": {"prm": PRM, "advantage": {"preset": "verl"}},
    # With the paper's filter of prompts, which the arms above do without: half as many prompts learnt from, out of as
    # many rollouts as it takes.
    "rloo_filtered": {"prm": None, **_FILTERED},
    "prime_filtered": {"prm": PRM, **_FILTERED},
    "pairwise_filtered": {"prm": PRM | {"loss": "pairwise"}, **_FILTERED},
    # The defaults: a PRM that learns what right responses have in common, from earlier steps too, against the policy as
    # it is now, and the gate.
    "likelihood": {
        "prm": PRM | {"mini_batch": 32, "optimizer": {"lr": 3e-4, "max_grad_norm": 1.0}},
        "advantage": {"preset": "priml"},
    },
    # Paid in their best form: each step's own correctness, nothing of what follows.
    "ideal": {"prm": None, "advantage": {"preset": "paper", "gamma_process": 0.0}},
    "oracle": {"prm": None, "advantage": {"preset": "paper", "gamma_process": 0.0}},
}


@dataclass(frozen=True)
class Regime:
    """A task, a warm start and the size of a step."""

    name: str
    task: dict[str, Any]
    sft: list[dict[str, Any]]
    """Phases of supervised training: {count, lr} and whatever of the task differs (length, boxed, doubtful, wrong)."""
    prompts: int
    group: int
    steps: int
    lrs: tuple[float, ...]
    problems: int = 40000
    """How many a run can draw from."""


_CHAIN: dict[str, Any] = {"kind": "chain", "length": 15, "doubtful": 0.15, "wrong": [0.3, 0.7]}
# All states in the box: where one answer in forty is right, two in a hundred of these are lucky with half of them.
_WALK: dict[str, Any] = {"kind": "walk", "length": 20, "operations": 13, "boxed": 20}
# Facts first, on short walks: where half of the tokens are copied into the box, facts are learnt late.
_FACTS: dict[str, Any] = {"count": 16000, "lr": 2e-3, "length": 10, "boxed": 1}
_RIGHT: dict[str, Any] = {"doubtful": 0.0}
_HIDDEN: dict[str, Any] = _WALK | {"doubtful": 0.26, "wrong": 0.7}

_chains = partial(Regime, prompts=16, group=8, steps=60, lrs=(1.5e-4, 3e-4, 6e-4))
_walks = partial(Regime, prompts=32, group=4, steps=60, lrs=(1e-4, 2e-4, 4e-4))

REGIMES = {
    regime.name: regime
    for regime in (
        _chains(
            name="chain",
            task=_CHAIN | {"boxed": 15},
            sft=[{"count": 32000, "lr": 2e-3, "boxed": 1}, {"count": 9600, "lr": 1e-3}],
        ),
        _walks(
            name="walk",
            task=_WALK | {"doubtful": 0.08, "wrong": 0.5},
            sft=[_FACTS, {"count": 12800, "lr": 2e-3}],
        ),
        _walks(
            name="pretrained",
            task=_HIDDEN,
            sft=[_FACTS | _RIGHT, {"count": 12800, "lr": 2e-3, **_RIGHT}, {"count": 6400, "lr": 1e-3}],
        ),
        # Ten tokens of each response stay uncertain and do not matter; two or three of its states are uncertain and do.
        _walks(
            name="wordy",
            task=_HIDDEN | {"length": 10, "boxed": 10, "fillers": 10},
            sft=[_FACTS | _RIGHT | {"fillers": 0}, {"count": 9600, "lr": 2e-3, **_RIGHT}, {"count": 6400, "lr": 1e-3}],
        ),
        # As it was before `boxed`: one answer in nineteen is right by luck.
        _chains(
            name="chain_lucky",
            task=_CHAIN,
            sft=[{"count": 32000, "lr": 2e-3}],
        ),
    )
}


def main() -> None:
    """Run the arms, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--regimes", nargs="+", default=[name for name in REGIMES if name != "chain_lucky"], choices=list(REGIMES)
    )
    parser.add_argument("--arms", nargs="+", default=["rloo", "prime", "likelihood", "oracle"], choices=list(ARMS))
    parser.add_argument("--lrs", nargs="+", type=float, help="policy learning rates, instead of each regime's own")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of each regime's own")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="runs at once, one thread each")
    args = parser.parse_args()
    regimes = [replace(REGIMES[name], lrs=tuple(args.lrs or REGIMES[name].lrs)) for name in args.regimes]
    seeds = args.seeds
    if args.quick:
        regimes, seeds = [_toy(REGIMES["chain"])], [0]

    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        starts = list(pool.map(partial(checked_start, args.models), regimes))
        # The learning rate is chosen per arm on the first seed, from the same grid; the other seeds use the choice.
        sweep = [(r, arm, lr, seeds[0], args.steps) for r in regimes for arm in args.arms for lr in r.lrs]
        rows += _reported(pool.map(partial(run_arm, args.models), sweep))
        best = {(r.name, arm): _best_lr(rows, r.name, arm) for r in regimes for arm in args.arms}
        more = [(r, arm, best[r.name, arm], s, args.steps) for r in regimes for arm in args.arms for s in seeds[1:]]
        rows += _reported(pool.map(partial(run_arm, args.models), more))
    headline = {r.name: _compare(rows, r.name, args.arms, best) for r in regimes}
    headline |= {"regimes": {r.name: asdict(r) | {"start": start} for r, start in zip(regimes, starts, strict=True)}}
    write_results(args.out, "sample_efficiency", rows=rows, headline=headline)


def _reported(runs: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A line for each finished run: the whole takes an hour."""
    for run in runs:
        done = " ".join(f"{run[name]}" for name in ("regime", "arm", "lr", "seed"))
        print(f"{done}: final accuracy {final(run['curve']):.3f}, {run['seconds']} s", flush=True)
        yield run


# --- one run -----------------------------------------------------------------------------------------------------


def warm_start(models: Path, regime: Regime) -> Path:
    """The supervised model of a regime, made once."""
    phases = _phases(models, regime)
    final = phases[-1] / "model"
    if final.exists():
        return final
    from priml.commands.sft import run_sft
    from priml.config.load import parse_config
    from priml.config.sft import SftConfig

    _one_thread()
    model: dict[str, Any] = {"kind": "tiny"}
    for folder, phase in zip(phases, regime.sft, strict=True):
        task = regime.task | {k: v for k, v in phase.items() if k != "lr"}
        tree = {
            "run_dir": str(folder),
            "model": model,
            "data": task | {"split": "train"},
            "epochs": 1,
            "batch": 64,
            "optimizer": {"lr": phase["lr"], "betas": [0.9, 0.99]},
            "backend": BACKEND,
        }
        run_sft(parse_config(SftConfig, tree, where="benchmark"))
        model = {"kind": "pretrained", "model": str(folder / "model")}
    return final


def _phases(models: Path, regime: Regime) -> list[Path]:
    """A folder for each phase. Another task or other phases have other folders, whatever the regime is called."""
    made_from = json.dumps([regime.task, regime.sft], sort_keys=True)
    folder = models / f"{regime.name}-{hashlib.sha256(made_from.encode()).hexdigest()[:8]}"
    return [folder / str(i) for i in range(len(regime.sft))]


def checked_start(models: Path, regime: Regime) -> dict[str, Any]:
    """Make the warm start, measure it, and refuse a useless one; a toy's may be as bad as it likes.

    Raises:
        SystemExit: less than nine boxes in ten hold the states that were written. Such a start has no outcome to learn
            from: no arm could move.
    """
    warm_start(models, regime)
    start = measure_start(models, regime, responses=START_RESPONSES if regime.name != "toy" else 64)
    if start["boxed"] < 0.9 and regime.name != "toy":
        raise SystemExit(
            f"{regime.name}: only {start['boxed']:.0%} of the boxes hold the states that were written; train the warm "
            "start longer"
        )
    return start


def measure_start(models: Path, regime: Regime, *, responses: int) -> dict[str, Any]:
    """What the warm start does on held-out problems, one response each.

    `success`: right answers; `luck`: the share of them that have a wrong step; `boxed`: boxes that hold the states
    written before them; `tokens`: of a complete response.
    """
    import torch

    from priml.config.data import Data, PromptFormat
    from priml.config.graders import ExactVerifier
    from priml.factories.data import build_task, load_prompts, load_source
    from priml.factories.graders import build_verifier
    from priml.models.load import load_model, load_tokenizer
    from priml.rollout.base import SamplingSpec
    from priml.rollout.transformers import TransformersSampler

    _one_thread()
    device, folders = torch.device("cpu"), _phases(models, regime)
    model = str(folders[-1] / "model")
    tokenizer = load_tokenizer(model)
    source = Data.model_validate({"train": regime.task | {"split": "held_out", "count": responses}}).train
    task, problems = build_task(source), load_source(source)
    sampler = TransformersSampler(
        load_model(model, device=device), tokenizer, device=device, precision="fp32", max_rows=256
    )
    spec = SamplingSpec(group_size=1, temperature=1.0, max_new_tokens=max_new_tokens(regime), seed=0, step=0)
    verify = build_verifier(ExactVerifier(kind="exact"), problems.problems).verifier
    answers = [
        (group.prompt.problem, group.trajectories[0].text)
        for group in sampler.sample(load_prompts(problems, tokenizer, PromptFormat()), spec)
    ]
    seconds = sum(json.loads((folder / "summary.json").read_text())["seconds"] for folder in folders)
    return {
        **share_of_luck(task, answers, [bool(verify.grade(*answer).correct) for answer in answers]),
        "facts": task.num_facts,
        "doubtful": task.num_doubtful,
        "tokens": source.response_tokens,
        "sft_seconds": round(seconds),
    }


def share_of_luck(task: Any, answers: Sequence[tuple[Any, str]], is_right: Sequence[bool]) -> dict[str, Any]:
    """How many answers (problem, response) are right, and how many of these do not have all steps, and all right."""
    boxed = lucky = 0
    for (problem, text), right in zip(answers, is_right, strict=True):
        judged = task.judge_steps(problem, text)
        if judged.complete:
            boxed += _is_boxed(task, "".join(text[end] for end in judged.ends), text)
        lucky += right and not (judged.complete and all(judged.right))
    rights = sum(is_right)
    return {
        "responses": len(answers),
        "success": round(rights / len(answers), 4),
        "luck": round(lucky / rights, 4) if rights else None,
        "boxed": round(boxed / len(answers), 4),
    }


def _is_boxed(task: Any, states: str, response: str) -> bool:
    return response.endswith(f"\\boxed{{{task.answer(states)}}}")


def max_new_tokens(regime: Regime) -> int:
    """Room for a complete response and four tokens more."""
    from priml.config.data import Data

    return Data.model_validate({"train": regime.task}).train.response_tokens + 4


def run_arm(models: Path, job: tuple[Regime, str, float, int, int | None]) -> dict[str, Any]:
    """Train one arm and return its curve."""
    regime, arm, lr, seed, steps = job
    length = steps or regime.steps
    # The filter makes steps of other sizes: there the rollouts end the run.
    budget = regime.prompts * regime.group * length if "filter" in ARMS[arm] else None
    changes = {"steps": 4 * length if budget else length, **ARMS[arm]}
    ran = run(
        models,
        regime,
        changes,
        lr=lr,
        seed=seed,
        truth=arm if arm in _TRUTHS else None,
        reuse=arm == "reuse",
        budget=budget,
    )
    return {"regime": regime.name, "arm": arm, "lr": lr, "seed": seed, **ran}


def run(
    models: Path,
    regime: Regime,
    changes: dict[str, Any],
    *,
    lr: float,
    seed: int,
    truth: str | None = None,
    reuse: bool = False,
    budget: int | None = None,
    export_prm: Path | None = None,
) -> dict[str, Any]:
    """Train on a regime with some settings changed: the curve, how it ended, seconds.

    `truth`: `ideal` or `oracle` pays instead of a PRM. `budget` bounds the rollouts.
    """
    _one_thread()
    import torch

    from priml.config.load import parse_config
    from priml.config.train import TrainConfig
    from priml.errors import RunError
    from priml.training.loop import train

    tree = {
        "run_dir": "unused",
        "seed": seed,
        "steps": regime.steps,
        "policy": {
            "model": str(warm_start(models, regime)),
            "optimizer": {"lr": lr, "weight_decay": 0.0},
            "mini_batch": None,
        },
        "sampling": {"group_size": regime.group, "max_new_tokens": max_new_tokens(regime)},
        "batch": {"prompts": regime.prompts},
        "filter": None,
        "advantage": {"preset": "authors"},  # as published, unless an arm has another
        "verify": {"kind": "exact"},
        "data": {"train": regime.task | {"split": "train", "count": regime.problems}},
        "backend": BACKEND,
    }
    for name, value in changes.items():  # parts of a section replace those parts alone
        both = isinstance(value, dict) and isinstance(tree.get(name), dict)
        tree[name] = tree[name] | value if both else value
    cfg = parse_config(TrainConfig, tree, where="benchmark")
    torch.manual_seed(seed)
    began = time.perf_counter()
    roles, recorder = _assemble(cfg, payer=truth, reuse=reuse, budget=budget)
    note = None
    try:
        train(roles, recorder)  # type: ignore[arg-type]
    except RunError as error:  # a policy that solves (or no longer solves) nearly everything starves the filter
        note = str(error)[:160]
    if export_prm is not None:
        roles.prm.export(export_prm)
    return {"curve": recorder.curve, "ended": note, "seconds": round(time.perf_counter() - began, 1)}


class _Recorder:
    """Stands in for `Run`: keeps the curve in memory, and ends when the rollouts are spent."""

    def __init__(self, steps: int, budget: int | None, gate: Any, truth: _Truth) -> None:
        self._steps = steps
        self._truth = truth
        self._began = time.process_time()
        self._gate = gate
        self._budget = budget
        self.curve: list[dict[str, float]] = []
        self._trust = 1.0
        self._rollouts = 0

    def steps(self) -> Iterator[int]:
        for step in range(1, self._steps + 1):
            if self._budget is not None and self._rollouts >= self._budget:
                return
            yield step

    def process_factor(self, report: Any) -> float:
        self._trust = self._gate.trust(report)
        return self._trust

    def record(self, done: Any, prm_report: Any, policy_report: Any, *rest: Any) -> None:
        outcomes = [v.score for group, _ in done.groups for v in group.verdicts]
        self._rollouts += len(outcomes)
        point = {
            "step": done.step,
            "rollouts": self._rollouts,
            "outcome": sum(outcomes) / len(outcomes),
            "entropy": policy_report.entropy,
            "cpu_s": time.process_time() - self._began,
        }
        if prm_report is not None:
            point |= {"pair_accuracy": prm_report.pair_accuracy, "prm_loss": prm_report.loss, "trust": self._trust}
        if done.process is not None:
            before = time.process_time()
            point["decision_auc"] = self._truth.decision_auc(done.batch, done.process.rewards_BT)
            self._began += time.process_time() - before  # to measure is not the arm's work
        self.curve.append({k: round(v, 5) for k, v in point.items() if v is not None})  # a frozen PRM has no loss


def _assemble(cfg: Any, *, payer: str | None, reuse: bool, budget: int | None) -> tuple[Any, _Recorder]:
    from priml.factories.algorithm import build_advantages, build_collect_spec
    from priml.factories.data import build_task
    from priml.factories.learners import build_critic, build_policy, build_prm
    from priml.training.collectors import SyncCollector
    from priml.training.gate import TrustGate
    from priml.training.loop import Roles

    parts = assemble(cfg)
    made = parts.module, parts.tokenizer, parts.device
    prm: Any = build_prm(cfg, cfg.prm, *made) if cfg.prm else None
    truth = _Truth(build_task(cfg.data.train), parts.tokenizer)
    if payer:
        prm = _TRUTHS[payer](truth)
    policy = build_policy(cfg, *made)
    roles = Roles(
        collector=SyncCollector(parts.sampler, parts.verify, parts.stream, build_collect_spec(cfg)),
        collate=parts.collate,
        policy=_ReusingPolicy(policy, cfg.seed) if reuse else policy,
        prm=prm,
        advantages=build_advantages(cfg),
        critic=build_critic(cfg, *made),
    )
    return roles, _Recorder(cfg.steps, budget, TrustGate(cfg.advantage.gate), truth)


@dataclass(frozen=True)
class _Claims:
    """What the steps of a response claim."""

    facts: list[str]
    """Operation, state before, state after: one for each step that is written."""
    ends: list[int]
    """Where the steps end."""
    boxed: bool
    """All steps are there, and the box holds what they arrived at."""


class _Truth:
    """Which steps of a batch's responses are right."""

    def __init__(self, task: Any, tokenizer: Any) -> None:
        self._task = task
        self._tokenizer = tokenizer

    def __call__(self, batch: Any) -> Iterator[Any]:
        """A `StepJudgement` for each row."""
        from priml.types import Problem

        for prompt, response in self.texts(batch):
            yield self._task.judge_steps(Problem(id="", prompt=prompt, answer=""), response)

    def claims(self, batch: Any) -> Iterator[_Claims]:
        """What the steps of each row claim."""
        for (prompt, response), judged in zip(self.texts(batch), self(batch), strict=True):
            written = "".join(response[end] for end in judged.ends)
            steps = zip(prompt[1:], prompt[0] + written, written, strict=False)
            yield _Claims(
                facts=["".join(step) for step in steps],
                ends=list(judged.ends),
                boxed=judged.complete and _is_boxed(self._task, written, response),
            )

    def texts(self, batch: Any) -> Iterator[tuple[str, str]]:
        """Prompt and response of each row."""
        for row in range(len(batch)):
            start, end = int(batch.prompt_lengths_B[row]), int(batch.lengths_B[row])
            ids = batch.tokens_BL[row].tolist()
            yield self._tokenizer.decode(ids[:start]), self._tokenizer.decode(ids[start:end], skip_special_tokens=True)

    def decision_auc(self, batch: Any, rewards_BT: Any) -> float | None:
        """Do rewards tell right from wrong steps where the policy was uncertain? None where all are alike."""
        import torch

        from priml.maths.prm_loss import auc

        rewards: list[float] = []
        right: list[bool] = []
        for row, judged in enumerate(self(batch)):
            for end, is_right in zip(judged.ends, judged.right, strict=True):
                if batch.old.entropies_BT[row, end] > UNCERTAIN:
                    rewards.append(float(rewards_BT[row, end]))
                    right.append(is_right)
        found = auc(torch.tensor(rewards), torch.tensor(right, dtype=torch.bool))
        return None if found is None else float(found)


class _Oracle:
    """Pays each step its true correctness: 1 right, 0 wrong."""

    def __init__(self, truth: _Truth) -> None:
        self._truth = truth

    def update(self, batch: Any) -> None:
        """An oracle knows already."""

    def rewards(self, batch: Any) -> Any:
        import torch

        from priml.learners.base import ProcessRewards

        rewards_BT = torch.zeros(batch.mask_BT.shape)
        for row, judged in enumerate(self._truth(batch)):
            rewards_BT[row, list(judged.ends)] = torch.tensor(judged.right, dtype=torch.float32)
        return ProcessRewards(rewards_BT=rewards_BT, beta=1.0)


class _Ideal:
    """Pays each step the probability that it is right, as far as outcomes show it.

    It knows what a PRM would have to find out: a step claims a fact about the operation and the state before it, and an
    answer is right where all its facts are. So every fact of a right answer is proved, and what contradicts it is
    wrong. Of the other facts of wrong answers at least one is wrong: expectation maximisation, from `PRIOR`.
    """

    PRIOR = 0.8
    WEIGHT = 2.0
    """How many answers the prior counts."""
    ROUNDS = 20

    def __init__(self, truth: _Truth) -> None:
        self._truth = truth
        self._proved: dict[str, str] = {}
        """Operation and state before -> state after."""
        self._wrong: list[list[str]] = []
        """Facts of each wrong answer seen."""
        self._probability: dict[str, float] = {}
        """Of the facts that nothing proves or contradicts."""

    def update(self, batch: Any) -> None:
        """Learn from a batch's outcomes. No report: there is no loss."""
        for claims, outcome in zip(self._truth.claims(batch), batch.outcomes_B.tolist(), strict=True):
            if outcome > 0:
                self._proved |= {fact[:2]: fact[2] for fact in claims.facts}
            elif claims.boxed:  # else it may be wrong for its form alone
                self._wrong.append(claims.facts)
        self._infer()

    def rewards(self, batch: Any) -> Any:
        import torch

        from priml.learners.base import ProcessRewards

        rewards_BT = torch.zeros(batch.mask_BT.shape)
        for row, claims in enumerate(self._truth.claims(batch)):
            rewards_BT[row, claims.ends] = torch.tensor([self.probability(fact) for fact in claims.facts])
        return ProcessRewards(rewards_BT=rewards_BT, beta=1.0)

    def probability(self, fact: str) -> float:
        """That a fact is right."""
        if (proved := self._proved.get(fact[:2])) is not None:
            return float(proved == fact[2])
        return self._probability.get(fact, self.PRIOR)

    def _infer(self) -> None:
        # An answer with a fact that is known to be wrong says nothing about its others.
        unexplained = [facts for facts in self._wrong if all(self.probability(fact) > 0 for fact in facts)]
        answers = [[fact for fact in set(facts) if fact[:2] not in self._proved] for facts in unexplained]
        self._probability = {fact: self.PRIOR for facts in answers for fact in facts}
        for _ in range(self.ROUNDS):
            right = dict.fromkeys(self._probability, self.PRIOR * self.WEIGHT)
            seen = dict.fromkeys(self._probability, self.WEIGHT)
            for facts in answers:
                some_wrong = 1 - math.prod(self._probability[fact] for fact in facts)
                for fact in facts:
                    right[fact] += 1 - (1 - self._probability[fact]) / max(some_wrong, 1e-9)
                    seen[fact] += 1
            self._probability = {fact: right[fact] / seen[fact] for fact in right}


_TRUTHS: dict[str, Any] = {"ideal": _Ideal, "oracle": _Oracle}


def _negative_likelihood(num_tokens: float, micro: Any, scores: Any) -> Any:
    logprobs_bt, _ = scores
    return -logprobs_bt.masked_fill(~micro.mask_bt, 0.0).sum() / num_tokens


class _ReusingPolicy:
    """A policy that also learns the right responses of all steps by heart, as many in each step as the batch has: what
    reuse gives without a process reward."""

    def __init__(self, policy: Any, seed: int) -> None:
        from priml.learners.replay import Replay

        self._policy = policy
        self._replay = Replay(passes=1, keep=4096, seed=seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def update(self, batch: Any, advantages_BT: Any) -> Any:
        batch, report = self._policy.update(batch, advantages_BT)
        right = [row for row in range(len(batch)) if batch.outcomes_B[row] > 0]
        self._replay.add(batch, right, batch.old_logprobs_BT)
        engine = self._policy.engine
        for kept, _ in self._replay.draw(batch.step, len(batch), None):
            size = float(kept.mask_BT.sum())
            engine.step(engine.accumulate(kept, range(len(kept)), partial(_negative_likelihood, size)))
        return batch, report


def _one_thread() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()


# --- the comparison ----------------------------------------------------------------------------------------------


def smoothed(curve: Sequence[dict[str, float]]) -> list[tuple[float, float]]:
    """(rollouts, mean outcome of the last WINDOW steps)."""
    return [
        (curve[i]["rollouts"], statistics.mean(p["outcome"] for p in curve[i - WINDOW + 1 : i + 1]))
        for i in range(WINDOW - 1, len(curve))
    ]


def rollouts_to(curve: Sequence[dict[str, float]], level: float) -> float | None:
    """Rollouts spent until the smoothed accuracy first reached the level; None if it never did."""
    return next((rollouts for rollouts, accuracy in smoothed(curve) if accuracy >= level), None)


def cpu_s_to(curve: Sequence[dict[str, float]], level: float) -> float | None:
    """Processor seconds until then."""
    rollouts = rollouts_to(curve, level)
    return next((point["cpu_s"] for point in curve if point["rollouts"] == rollouts), None)


def longest_below_chance(curve: Sequence[dict[str, float]]) -> int:
    """Most steps in a row whose `decision_auc` is below 1/2."""
    longest = here = 0
    for point in curve:
        here = here + 1 if point.get("decision_auc", 1.0) < 0.5 else 0
        longest = max(longest, here)
    return longest


def final(curve: Sequence[dict[str, float]]) -> float:
    """Smoothed accuracy at the end."""
    return smoothed(curve)[-1][1] if len(curve) >= WINDOW else 0.0


def area(curve: Sequence[dict[str, float]]) -> float:
    """Mean accuracy over the run: what a learning rate is chosen by (fast and stable both count)."""
    return statistics.mean(accuracy for _, accuracy in smoothed(curve)) if len(curve) >= WINDOW else 0.0


def _best_lr(rows: Sequence[dict[str, Any]], regime: str, arm: str) -> float:
    mine = [r for r in rows if r["regime"] == regime and r["arm"] == arm]
    return max(mine, key=lambda r: area(r["curve"]))["lr"]


def _compare(
    rows: Sequence[dict[str, Any]], regime: str, arms: Sequence[str], best: dict[tuple[str, str], float]
) -> dict[str, Any]:
    chosen = {
        arm: [r for r in rows if r["regime"] == regime and r["arm"] == arm and r["lr"] == best[regime, arm]]
        for arm in arms
    }
    table: dict[str, Any] = {}
    for arm, runs in chosen.items():
        finals = [final(r["curve"]) for r in runs]
        table[arm] = {
            "lr": best[regime, arm],
            "seeds": [r["seed"] for r in runs],
            "final": [round(f, 3) for f in finals],
            "final_mean": round(statistics.mean(finals), 3),
            "cpu_s_to": {str(level): [cpu_s_to(r["curve"], level) for r in runs] for level in LEVELS},
            "longest_below_chance": [longest_below_chance(r["curve"]) for r in runs],
            "rollouts_to": {str(level): [rollouts_to(r["curve"], level) for r in runs] for level in LEVELS},
        }
    speedups: dict[str, Any] = {}
    for arm in arms:
        if arm == "rloo" or "rloo" not in arms:
            continue
        ratios = {
            level: a / b
            for level in LEVELS
            if (a := _median(table["rloo"]["rollouts_to"][str(level)]))
            and (b := _median(table[arm]["rollouts_to"][str(level)]))
        }
        speedups[arm] = {str(level): round(ratio, 2) for level, ratio in ratios.items()}
    return {"arms": table, "rloo_rollouts_over_arm": speedups}


def _median(values: Sequence[float | None]) -> float | None:
    """Median over seeds, counting a level never reached as infinitely late; None when that is the median."""
    middle = statistics.median_high([float("inf") if v is None else v for v in values])
    return None if middle == float("inf") else middle


def _toy(regime: Regime) -> Regime:
    return Regime(
        name="toy",
        task=regime.task | {"length": 4, "boxed": 1},
        sft=[{"count": 4800, "lr": 4e-3}],
        prompts=8,
        group=4,
        steps=8,
        lrs=(3e-4,),
        problems=512,
    )


if __name__ == "__main__":
    main()
