"""`priml prm score`: rewards of tokens and steps; also the scoring that ranking and evaluation begin with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from priml.batch import Row, batches_by_length
from priml.commands.session import output_folder
from priml.config.prm import PrmScoreConfig, ScoringConfig, Steps, TrainedPrm
from priml.data.labelled import Response
from priml.data.steps import sums_of_steps
from priml.evaluate.scored import ScoredResponse, write_scores
from priml.factories.device import DeviceSpec, resolve_device
from priml.factories.responses import LoadedPrm, Tokenized, load_responses, load_scorer, tokenize
from priml.files import write_json
from priml.maths.prm_loss import auc
from priml.models.load import load_tokenizer
from priml.report.scores import write_scores_report
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin, dated
from priml.trackers.console import counted
from priml.types import Tokenizer

logger = logging.getLogger(__name__)

_AT_ONCE = 256
"""Responses collated together; the token budget decides how many of them a model sees at once."""


def run_prm_score(cfg: PrmScoreConfig) -> str:
    """Write `scores.parquet`, `summary.json` and `report.html`; returns what there is to say."""
    folder = RunFolder(cfg.run_dir)
    folder.check_unused()
    loaded = load_responses(cfg.data, needs_label=False)
    scoring = prepare(cfg, cfg.prm, loaded.responses, steps=cfg.steps)
    begun_with = scoring.origin("prm score", seed=0, data={"data": loaded.digest})
    with output_folder(cfg, folder, scoring.tokenizer, begun_with):
        scored = scoring.run()
        write_scores(scored, folder.scores)
        summary = scoring.summary(scored)
        write_json(folder.summary, summary)
        write_scores_report(cfg.run_dir, shown=cfg.shown)
    separation = (
        "" if summary["auc"] is None else f"; their sums tell right from wrong with an AUC of {summary['auc']:.3f}"
    )
    return f"{summary['responses']} responses, {summary['steps_per_response']:.1f} steps on average{separation}"


@dataclass(frozen=True, slots=True)
class Scoring:
    """A PRM and the responses it is about to score."""

    device: DeviceSpec
    tokenizer: Tokenizer
    prm: LoadedPrm
    source: TrainedPrm
    tokenized: list[Tokenized]

    def origin(self, command: str, *, seed: int, data: Mapping[str, str]) -> Origin:
        """The origin of a run that scores these responses."""
        return Origin(command, seed, data, self.prm.digests, self.device.device_facts)

    def run(self) -> list[ScoredResponse]:
        """The scores, in the order of the responses."""
        rows = [one.row for one in self.tokenized]
        logger.info(
            f"scoring {len(rows)} responses, beta {self.prm.beta:.4g}, {self.device.device} {self.device.precision}"
        )
        with counted("responses", len(rows)) as scored:
            return self._score(rows, scored)

    def _score(self, rows: Sequence[Row], scored: Callable[[int], None]) -> list[ScoredResponse]:
        """The scores; `scored` is called with the number of each batch."""
        found: dict[int, ScoredResponse] = {}
        for chosen, batch in batches_by_length(rows, _AT_ONCE):
            rewards = self.prm.scorer.score(batch)
            per_token = zip(
                rewards.prm_logprobs_BT.tolist(),
                rewards.ref_logprobs_BT.tolist(),
                rewards.rewards_BT.tolist(),
                strict=True,
            )
            for i, numbers in zip(chosen, per_token, strict=True):
                found[i] = _scored(self.tokenized[i], *numbers)
            scored(len(chosen))
        return [found[i] for i in range(len(rows))]

    def summary(self, scored: Sequence[ScoredResponse]) -> dict[str, Any]:
        """Counts and settings, and the AUC of summed rewards over labelled responses."""
        known = [(sum(s.rewards), s.response.outcome) for s in scored if s.response.outcome is not None]
        sums, outcomes = torch.tensor([z for z, _ in known]), torch.tensor([o for _, o in known])
        area = auc(sums, outcomes > 0.5) if known else None
        return {
            "prm": self.source.model,
            "reference": self.prm.reference,
            "beta": self.prm.beta,
            "responses": len(scored),
            "labelled": len(known),
            "steps_per_response": sum(len(s.step_rewards) for s in scored) / len(scored),
            "auc": None if area is None else float(area),
        }


def prepare(cfg: ScoringConfig, source: TrainedPrm, responses: Sequence[Response], *, steps: Steps) -> Scoring:
    """Load the PRM, and make tokens of the responses."""
    device = resolve_device(cfg.backend)
    tokenizer = load_tokenizer(source.model, trust_remote_code=source.trust_remote_code)
    tokenized = tokenize(
        responses,
        tokenizer,
        dated(cfg.prompt, source.model),
        max_response_tokens=cfg.max_response_tokens,
        steps=steps,
        step_list=cfg.step_list,
    )
    prm = load_scorer(source, device, tokenizer, [one.row for one in tokenized])
    return Scoring(device, tokenizer, prm, source, tokenized)


def _scored(
    one: Tokenized, prm_logprobs: Sequence[float], ref_logprobs: Sequence[float], rewards: Sequence[float]
) -> ScoredResponse:
    length, ends = one.row.num_trained, tuple(map(int, one.row.step_ends))
    return ScoredResponse(
        response=one.response,
        prompt=one.prompt,
        token_ids=tuple(map(int, one.row.response_ids)),
        step_ends=ends,
        prm_logprobs=tuple(prm_logprobs[:length]),
        ref_logprobs=tuple(ref_logprobs[:length]),
        rewards=tuple(rewards[:length]),
        step_rewards=tuple(sums_of_steps(rewards[:length], ends)),
    )
