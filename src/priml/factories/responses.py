"""From a file of given responses to rows of tokens, and from a model folder to the PRM that scores them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from priml.batch import Row
from priml.config.data import PromptFormat
from priml.config.prm import NumberedSteps, PatternSteps, ResponseFile, StepList, Steps, TrainedPrm, TurnSteps
from priml.data.chat import render_prompt, response_end, response_tokens
from priml.data.labelled import LoadedResponses, Response, read_responses
from priml.data.steps import NEWLINE, NUMBERED, join_steps, split_tokens
from priml.errors import DataError, ModelError
from priml.factories.device import DeviceSpec
from priml.learners.offline_prm import ImplicitScorer
from priml.learners.reference import FrozenReference
from priml.models.checkpoint import weights_digest
from priml.models.load import check_positions, check_tokens_fit, load_model, load_tokenizer
from priml.models.prm_card import read_card
from priml.training.collect import find_step_ends, trained_mask
from priml.types import Message, Problem, Segment, Tokenizer, Trajectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A response with its tokens. Groups are numbered in the order of their first response."""

    response: Response
    prompt: str
    """As the model reads it."""
    row: Row


def load_responses(source: ResponseFile, *, needs_label: bool) -> LoadedResponses:
    """Read them; what was left out is said."""
    loaded = read_responses(source, needs_label=needs_label)
    if loaded.skipped:
        first = loaded.skipped[0]
        logger.info(f"{source.path}: skipped {len(loaded.skipped)} bad rows, the first at {first.row}: {first.reason}")
    return loaded


def tokenize(
    responses: Sequence[Response],
    tokenizer: Tokenizer,
    form: PromptFormat,
    *,
    max_response_tokens: int,
    steps: Steps | None = None,
    step_list: StepList | None = None,
) -> list[Tokenized]:
    """The responses that fit, in their order, with the ends of their steps where `steps` says how to find them.

    Raises:
        DataError: none fits.
    """

    @cache  # once a prompt, however many responses it has
    def render(problem_prompt: str | tuple[Message, ...], is_rendered: bool) -> tuple[str, tuple[int, ...]]:
        if is_rendered:  # a rollout: the text is what its tokens stand for, special ones included
            assert isinstance(problem_prompt, str), "rollouts hold prompts as text"
            return problem_prompt, tuple(tokenizer.encode(problem_prompt, add_special_tokens=False))
        made = render_prompt(Problem(id="", prompt=problem_prompt, answer=""), tokenizer, form)
        return made.text, made.token_ids

    end = response_end(tokenizer, form)
    numbers: dict[str, int] = {}
    kept: list[Tokenized] = []
    for response in responses:
        prompt, prompt_ids = render(response.problem.prompt, response.token_ids is not None)
        text, trajectory, ends = _tokenize_response(response, tokenizer, end, steps, step_list or StepList())
        if len(prompt_ids) <= form.max_prompt_tokens and len(trajectory.token_ids) <= max_response_tokens:
            row = Row(
                prompt_ids,
                trajectory.token_ids,
                outcome=response.outcome or 0.0,
                group=numbers.setdefault(response.problem.id, len(numbers)),
                step_ends=ends,
                is_trained=trained_mask(trajectory.segments),
            )
            kept.append(Tokenized(replace(response, text=text), prompt, row))
    limits = f"max_prompt_tokens={form.max_prompt_tokens} or max_response_tokens={max_response_tokens}"
    if not kept:
        raise DataError(f"all {len(responses)} responses, or their prompts, are longer than {limits}; raise them")
    if len(kept) < len(responses):
        logger.info(f"dropped {len(responses) - len(kept)} of {len(responses)} responses longer than {limits}")
    return kept


@dataclass(frozen=True, slots=True)
class LoadedPrm:
    """A PRM ready to score."""

    scorer: ImplicitScorer
    digests: dict[str, str]
    """sha256 of its weights and of its reference's."""
    beta: float
    reference: str


def load_scorer(settings: TrainedPrm, device: DeviceSpec, tokenizer: Tokenizer, rows: Sequence[Row]) -> LoadedPrm:
    """The PRM and its reference, for these rows.

    Raises:
        ModelError: reference or beta are unknown, the reference is not the one it was trained against, or the two
            have different tokens.
    """
    card = read_card(settings.model)
    if card is None and (settings.reference is None or settings.beta is None):
        raise ModelError(
            f"prm.model: {settings.model} does not say what it was compared with (no implicit_prm.json in it, which "
            "`priml prm train` writes); give prm.reference and prm.beta"
        )
    source = settings.reference or (card.reference if card else "")
    beta = settings.beta or (card.beta if card else 0.0)
    trust = settings.trust_remote_code
    if load_tokenizer(source, trust_remote_code=trust).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"prm.reference: {source} has another vocabulary than {settings.model}; token rewards need the same one: "
            "give the model that the PRM was trained against"
        )
    module = load_model(settings.model, device=device.device, trust_remote_code=trust)
    check_tokens_fit(settings.model, module, tokenizer, (ids for r in rows for ids in (r.prompt_ids, r.response_ids)))
    longest = max(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    shorten = "prompt.max_prompt_tokens or max_response_tokens"
    check_positions(f"prm.model: {settings.model}", module, longest, shorten=shorten)
    reference = load_model(source, device=device.device, trust_remote_code=trust)
    digests = {"prm": weights_digest(module), "reference": weights_digest(reference)}
    noted = card.reference_sha256 if card else None
    if settings.reference is None and noted is not None and noted != digests["reference"]:
        raise ModelError(
            f"{source}: its weights are not those that {settings.model} was trained against (sha256 "
            f"{digests['reference'][:12]}, noted {noted[:12]}); restore them, or give prm.reference"
        )
    scorer = ImplicitScorer(device.model(module), FrozenReference(device.model(reference)), beta=beta)
    return LoadedPrm(scorer, digests, beta=beta, reference=source)


def _tokenize_response(
    response: Response, tokenizer: Tokenizer, end: int, steps: Steps | None, step_list: StepList
) -> tuple[str, Trajectory, Sequence[int] | NDArray[np.int32]]:
    """Text, tokens and step ends of a response."""
    if response.token_ids is None and response.steps is not None:
        numbered = [step_list.prefix.replace("{k}", str(k)) + s for k, s in enumerate(response.steps, start=1)]
        text, token_ids, ends = join_steps(numbered, tokenizer, step_list.separator, end=end)
        return text, _trajectory(token_ids, None), ends
    token_ids = response.token_ids or response_tokens(response.text, tokenizer, end)
    trajectory = _trajectory(token_ids, response.segments)
    return response.text, trajectory, () if steps is None else find_step_ends(trajectory, _finder(steps, tokenizer))


def _trajectory(token_ids: Sequence[int], segments: Sequence[tuple[int, int | None]] | None) -> Trajectory:
    """As if it had just been sampled. The sampler's log-probs are not known, and nobody looks at them."""
    sizes, versions = zip(*(segments or [(len(token_ids), 0)]), strict=True)
    parts = np.split(np.array(token_ids, np.int32), np.cumsum(sizes)[:-1])
    made = [
        Segment(part, np.zeros(0 if version is None else len(part), np.float32), version)
        for part, version in zip(parts, versions, strict=True)
    ]
    return Trajectory(tuple(made), "", "stop", 0)


def _finder(steps: Steps, tokenizer: Tokenizer) -> Callable[[Sequence[int]], list[int]]:
    """What finds the ends of the steps of a turn."""
    match steps:
        case TurnSteps():
            return lambda turn: [len(turn) - 1]
        case PatternSteps():
            pattern = steps.pattern
        case NumberedSteps():
            pattern = NUMBERED
        case _:
            pattern = NEWLINE
    return lambda turn: split_tokens(turn, tokenizer, pattern)
