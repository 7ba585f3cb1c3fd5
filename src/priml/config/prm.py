"""Settings of `priml prm train`, `score`, `rank` and `evaluate`: the implicit PRM by itself.

Defaults are those of "Free Process Rewards without Process Labels" (arXiv 2412.01981).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from priml.config.backend import LocalBackend
from priml.config.base import Pattern, RunDir, Seed, Settings, Share, ShortForm
from priml.config.data import PromptFormat, RowSettings
from priml.config.graders import MathVerifier
from priml.config.models import CrossEntropyLoss, Optimizer
from priml.config.schedule import SftCheckpoint

# --- data --------------------------------------------------------------------------------------------------------


class ResponseFile(RowSettings):
    """Responses from a JSONL (.jsonl, .jsonl.gz) or parquet file, or from all such files of a folder."""

    path: Path
    """The file or folder. Rows of prompt and response (and label), of prompt, chosen and rejected, of problem and
    steps, and rollouts of `priml train` are recognised."""
    columns: dict[str, str] | None = None
    """For other schemas: which column is the `prompt`, `response`, `label` (`chosen`, `rejected`, `steps`, `gold`,
    `group`, `source`)."""


# --- training ----------------------------------------------------------------------------------------------------


class Dpo(Settings):
    """Right against wrong responses to the same prompt, which cancels the prompt's constant."""

    kind: Literal["dpo"]


class Kto(Settings):
    """Kahneman-Tversky optimisation (arXiv 2402.01306): unpaired data, gains and losses that saturate."""

    kind: Literal["kto"]
    desirable_weight: PositiveFloat = 1.0
    """Weight of right responses. Raise the weight of the rarer kind until the two kinds weigh about the same."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of wrong responses."""


class Nca(Settings):
    """Noise-contrastive alignment (arXiv 2402.05369): pairs or groups, but with absolute scores."""

    kind: Literal["nca"]


OfflineLoss = Annotated[CrossEntropyLoss | Dpo | Kto | Nca, Field(discriminator="kind"), ShortForm("ce")]


class OfflinePrmOptimizer(Optimizer):
    """AdamW for the offline PRM."""

    lr: PositiveFloat = 5.0e-7
    """Peak learning rate."""


class HeldOut(Settings):
    """Responses that are not used for training, to see whether the PRM tells right from wrong."""

    data: ResponseFile | None = None
    """Held-out responses; null takes a share of the training prompts."""
    share: Share = 0.05
    """Share of the training prompts that is held out, by a hash of the prompt. Without effect where `data` is given."""
    every: PositiveInt | None = 50
    """Optimizer steps between evaluations; null: only after the last."""


class PrmTrainConfig(Settings):
    """An implicit PRM from labels of whole responses: log-ratios to its own frozen initial weights, cosine schedule."""

    run_dir: RunDir
    """Output folder, refused when it already holds a run (resume with `priml prm train RUN_DIR`); the trained model is
    `run_dir/model`."""
    model: str
    """A Hugging Face folder or Hub id: what the PRM starts from, and the reference it is compared with."""
    data: ResponseFile
    """Labelled responses or pairs."""
    held_out: HeldOut | None = HeldOut()
    """What it is evaluated on; null: nothing."""
    prompt: PromptFormat = PromptFormat()
    """How prompts are rendered; rollouts keep theirs."""
    loss: OfflineLoss = CrossEntropyLoss()
    """The loss. All losses take labels; dpo and nca need right and wrong responses of a prompt. Only dpo and nca take
    pairs, which say which response is better, not which is right."""
    beta: PositiveFloat | Literal["auto"] = 0.05
    """Reward scale. `auto`: 50 / mean length of the training responses."""
    seed: Seed = 0
    """Seeds the order of the data."""
    epochs: PositiveInt = 1
    """Passes over the data."""
    batch: PositiveInt = 64
    """Per optimizer step: responses with ce and kto; pairs, or prompts with all their responses, with dpo and nca."""
    max_response_tokens: PositiveInt = 8192
    """Longer responses are dropped and counted."""
    optimizer: OfflinePrmOptimizer = OfflinePrmOptimizer()
    """Peak learning rate and the rest."""
    warmup: Share = 0.03
    """Share of the steps with rising learning rate, before the cosine decay to zero."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    checkpoint: SftCheckpoint = SftCheckpoint()
    """Checkpoints."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Only for models you have read."""
    backend: LocalBackend = LocalBackend()
    """Where it runs."""

    @model_validator(mode="after")
    def _can_compare(self) -> Self:
        if self.batch < 2 and isinstance(self.loss, Kto):
            raise ValueError(
                "batch: kto compares each response with responses to other prompts of its batch, got batch=1; "
                "set batch >= 2"
            )
        return self


# --- use ---------------------------------------------------------------------------------------------------------


class TrainedPrm(Settings):
    """A trained implicit PRM."""

    model: str
    """Its Hugging Face folder or Hub id."""
    reference: str | None = None
    """The model it is compared with; null takes the one that `priml prm train` has noted in the folder."""
    beta: PositiveFloat | None = None
    """Reward scale; null takes the one noted there."""
    trust_remote_code: bool = False
    """Run Python code that ships with the models. Only for models you have read."""


class LineSteps(Settings):
    """Each line is a step, together with the blank lines behind it."""

    kind: Literal["newline"] = "newline"


class NumberedSteps(Settings):
    """Steps begin at `Step 1:`, `Step 2:`, ...; text before the first is a step of its own."""

    kind: Literal["numbered"]


class PatternSteps(Settings):
    """A regular expression says where steps end."""

    kind: Literal["pattern"]
    pattern: Pattern
    """Its match ends a step; a match of no width, such as `(?=Hence)`, ends the step before it."""


class TurnSteps(Settings):
    """Each turn of a rollout is a step."""

    kind: Literal["turn"]


Steps = Annotated[LineSteps | NumberedSteps | PatternSteps | TurnSteps, Field(discriminator="kind"), ShortForm()]


class StepList(Settings):
    """How a list of steps becomes one response."""

    separator: str = "\n\n"
    """Between two steps."""
    prefix: str = ""
    """Before each; `{k}` becomes its number, from 1. The authors' evaluation writes `Step {k}: `."""


class ScoringConfig(Settings):
    """What all commands that score responses share."""

    run_dir: RunDir
    """Output folder."""
    prompt: PromptFormat = PromptFormat()
    """How prompts are rendered, as in training; rollouts keep theirs."""
    step_list: StepList = StepList()
    """How a list of steps becomes a response."""
    max_response_tokens: PositiveInt = 8192
    """Longer responses are dropped and counted."""
    backend: LocalBackend = LocalBackend()
    """Where it runs."""


class PrmScoreConfig(ScoringConfig):
    """Rewards of tokens and steps, for given responses."""

    run_dir: RunDir
    """Output folder: `scores.parquet` and `report.html`, a page with coloured tokens."""
    prm: TrainedPrm
    """What scores."""
    data: ResponseFile
    """The responses to score, with or without labels."""
    steps: Steps = LineSteps()
    """Where steps end in a response that does not come as a list of steps."""
    shown: PositiveInt = 40
    """Responses on the page."""


class PrmRankConfig(ScoringConfig):
    """Best-of-n: the response a PRM picks among several, against pass@1, majority vote and the oracle."""

    run_dir: RunDir
    """Output folder: `rank.json`, `scores.parquet` and `report.html`."""
    prm: TrainedPrm | None = None
    """What scores; null where the rows bring `step_rewards` (a `scores.parquet`)."""
    data: ResponseFile
    """Several responses per prompt, with labels or with the gold answers to find them by."""
    steps: Steps = LineSteps()
    """Where steps end."""
    verify: MathVerifier = MathVerifier()
    """Judges responses without a label, and which answers are the same in a vote."""
    seed: Seed = 0
    """Seeds the subsets that votes are estimated from, and the intervals."""


class ProcessBenchFile(Settings):
    """A subset of ProcessBench (arXiv 2412.06559): find the first wrong step of a solution, or that there is none."""

    kind: Literal["process_bench"]
    path: Path
    """Rows with `problem`, `steps` and `label` (the first wrong step from 0; -1: none)."""
    limit: PositiveInt | None = None
    """Take only so many, evenly spread over the file."""


class PrmBenchFile(Settings):
    """PRMBench (arXiv 2501.03124): tell right steps from wrong ones, in nine classes of error."""

    kind: Literal["prm_bench"]
    path: Path
    """Rows with `modified_question`, `modified_process`, `error_steps` (from 1), `classification` and `idx`."""
    limit: PositiveInt | None = None
    """Take only so many rows, evenly spread over the file."""


ProcessFile = Annotated[ProcessBenchFile | PrmBenchFile, Field(discriminator="kind")]


class BestThreshold(Settings):
    """The best threshold on one of the sets. It flatters the result of that set."""

    kind: Literal["best_on"] = "best_on"
    data: str | None = None
    """Name of the set; null: the first."""


class FixedThreshold(Settings):
    """A threshold chosen before."""

    kind: Literal["fixed"]
    value: float
    """Steps that score less are taken for wrong."""


Threshold = Annotated[BestThreshold | FixedThreshold, Field(discriminator="kind")]


class PrmEvaluateConfig(ScoringConfig):
    """Does the PRM find wrong steps? ProcessBench and PRMBench."""

    run_dir: RunDir
    """Output folder: `evaluation.json` and the step scores of each set as parquet."""
    prm: TrainedPrm
    """What scores."""
    data: Annotated[dict[str, ProcessFile], Field(min_length=1)]
    """Named sets."""
    step_score: Literal["reward", "prefix"] = "reward"
    """What is compared with the threshold: the step's own reward, or the sum of all rewards up to its end (its soft
    value; the authors' evaluation takes this one)."""
    threshold: Threshold = BestThreshold()
    """Where wrong begins."""
    training: dict[str, Path] | None = None
    """Named files that the PRM, or the model it came from, was trained on. Benchmark problems in them are counted by
    their exact text."""

    @model_validator(mode="after")
    def _threshold_has_a_set(self) -> Self:
        chosen = self.threshold
        if isinstance(chosen, BestThreshold) and chosen.data is not None and chosen.data not in self.data:
            raise ValueError(
                f"threshold.data: found {chosen.data!r}, need one of the sets in data: {', '.join(self.data)}"
            )
        return self
