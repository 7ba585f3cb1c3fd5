"""From a data source in the settings to problems, prompts and supervised examples."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from priml.batch import Row
from priml.config.data import (
    ChainSource,
    CustomSource,
    FileSource,
    PromptFormat,
    Source,
    TinyCodeSource,
    WalkSource,
)
from priml.data.chat import build_prompts, response_end, response_tokens, special_tokens_in, uses_template
from priml.data.conversations import conversation_rows
from priml.data.demonstrations import TURNS, to_demonstration
from priml.data.procedural.code_task import CodeTask
from priml.data.procedural.tasks import Task, chain, walk
from priml.data.rows import BadRow, BadRowError, file_digest, read_turns
from priml.data.sources import problems_from_rows, read_hub, read_problems
from priml.errors import DataError
from priml.graders.code.verifier import check_tests_run
from priml.plugins import load, naming_failures
from priml.rollout.observations import ObservationFormat, observation_format
from priml.training.watchdog import beat
from priml.types import Message, Problem, Prompt, Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedSource:
    """Problems, and the sha256 of their file or of themselves."""

    problems: tuple[Problem, ...]
    digest: str
    skipped: tuple[BadRow, ...] = ()
    """Rows that were left out."""


def build_task(source: ChainSource | WalkSource | TinyCodeSource) -> Task:
    """The procedural task behind a source: its facts, teacher and step judge."""
    match source:
        case ChainSource():
            return chain(source)
        case WalkSource():
            return walk(source)
        case TinyCodeSource():
            return CodeTask(source)


def load_source(source: Source, *, demonstrations: bool = False) -> LoadedSource:
    """Read or generate the problems of a source. `demonstrations`: rows to learn responses from, which need no answer
    and may have any form of `priml.data.demonstrations`."""
    beat("reading data")
    if isinstance(source, ChainSource | WalkSource | TinyCodeSource):
        problems = build_task(source).problems(split=source.split, count=source.count, seed=source.seed)
        return LoadedSource(problems=tuple(problems), digest=_problems_digest(problems))
    convert = to_demonstration if demonstrations else None
    accept = None if demonstrations else check_tests_run
    if isinstance(source, CustomSource):
        function = load(source.function, setting="data.function", takes=())
        with naming_failures(f"data.function: {source.function}"):
            rows = list(function())
        # Without its folder: a resumed run names it by its absolute path, and ids decide the random numbers.
        problems = problems_from_rows(rows, origin=Path(source.function).name, convert=convert)
        return LoadedSource(problems=problems, digest=_problems_digest(problems))
    if isinstance(source, FileSource):
        loaded = read_problems(source, accept=accept, convert=convert)
        digest, origin = file_digest(source.path), str(source.path)
    else:
        loaded = read_hub(source, accept=accept, convert=convert)
        digest, origin = _problems_digest(loaded.problems), source.dataset
    if loaded.skipped:
        first = loaded.skipped[0]
        logger.info(f"{origin}: skipped {len(loaded.skipped)} bad rows, the first at {first.row}: {first.reason}")
    return LoadedSource(loaded.problems, digest, loaded.skipped)


def load_prompts(loaded: LoadedSource, tokenizer: Tokenizer, form: PromptFormat) -> tuple[Prompt, ...]:
    """Rendered prompts; what was dropped is said."""
    beat("rendering prompts")
    chosen = build_prompts(loaded.problems, tokenizer, form)
    if chosen.too_long:
        logger.info(
            f"dropped {len(chosen.too_long)} of {len(loaded.problems)} prompts longer than "
            f"{form.max_prompt_tokens} tokens (the first: {chosen.too_long[0]})"
        )
    if special := special_tokens_in(loaded.problems, tokenizer):
        problem, token = special[0]
        logger.warning(
            f"{len(special)} of {len(loaded.problems)} problems hold a special token in their text, which the model "
            f"reads as such; the first: {problem.id}, {token!r}"
        )
    return chosen.prompts


def build_examples(
    prompts: Sequence[Prompt], source: Source, tokenizer: Tokenizer, form: PromptFormat, *, max_response_tokens: int
) -> list[Row]:
    """Prompts with the responses to learn: a task's teacher writes them, other rows bring them. `form` is that of the
    prompts. Of a response with turns, what stands between the turns is read and not learned.

    They have no outcomes (all 0), and each is a group of its own.

    Raises:
        DataError: a row has no response, or no example is short enough.
        ModelError: the chat template has no place for what stands between turns.
    """
    if isinstance(source, ChainSource | WalkSource | TinyCodeSource):
        traces = build_task(source).traces([p.problem for p in prompts], seed=source.seed)
        responses = [trace.response for trace in traces]
    else:
        responses = [_response(prompt.problem) for prompt in prompts]
    # An observation that the limit cuts belongs to a response that is longer than the limit, and is dropped.
    encoder = _ResponseEncoder(tokenizer, form, limit=max_response_tokens)
    examples = [
        example
        for group, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        for example in encoder.rows(prompt, response, group=group)
    ]
    kept = [example for example in examples if len(example.response_ids) <= max_response_tokens]
    limit = f"longer than max_response_tokens={max_response_tokens}"
    if not kept:
        raise DataError(f"all {len(examples)} responses are {limit}; raise it")
    if len(kept) < len(examples):
        logger.info(f"dropped {len(examples) - len(kept)} of {len(examples)} responses {limit}")
    return kept


class _ResponseEncoder:
    """Responses as the tokens of a rollout."""

    def __init__(self, tokenizer: Tokenizer, form: PromptFormat, *, limit: int) -> None:
        self._tokenizer = tokenizer
        self._form = form
        self._end = response_end(tokenizer, form)
        self._limit = limit
        self._formats: dict[str, ObservationFormat] = {}

    def rows(self, prompt: Prompt, response: str | Sequence[Message], *, group: int) -> list[Row]:
        """One row; several for a conversation whose earlier turns the template changes."""
        turns = prompt.problem.meta.get(TURNS)
        if turns is None or not uses_template(self._tokenizer, self._form):
            return [self._row(prompt, response, group=group)]
        return conversation_rows(prompt.problem, turns, self._tokenizer, self._form, end=self._end, group=group)

    def _row(self, prompt: Prompt, response: str | Sequence[Message], *, group: int) -> Row:
        if isinstance(response, str):
            ids = response_tokens(response, self._tokenizer, self._end)
            return Row(prompt.token_ids, ids, outcome=0.0, group=group, step_ends=())
        parts = [self._tokens(message) for message in response]
        lengths = [len(part) for part in parts]
        is_trained = np.repeat([message.role == "assistant" for message in response], lengths)
        ids = np.concatenate(parts).astype(np.int32)
        return Row(prompt.token_ids, ids, outcome=0.0, group=group, step_ends=(), is_trained=is_trained)

    def _tokens(self, message: Message) -> Sequence[int] | NDArray[np.int32]:
        if message.role == "assistant":
            return response_tokens(message.content, self._tokenizer, self._end)
        if message.role not in self._formats:
            self._formats[message.role] = observation_format(
                self._tokenizer,
                [self._end],
                self._form,
                role="tool" if message.role == "tool" else "user",
                limit=self._limit,
            )
        return self._formats[message.role].segment(message.content, self._tokenizer).token_ids


def _response(problem: Problem) -> str | Sequence[Message]:
    if TURNS in problem.meta:
        return problem.meta[TURNS]
    for name in ("response", "solution"):
        if found := problem.meta.get(name):
            try:
                return read_turns(found, name)
            except BadRowError as error:
                raise DataError(f"problem {problem.id}: {error}") from error
    raise DataError(
        f"problem {problem.id}: no response to learn from; need a `response` or `solution` column, "
        "or name one with data.columns: {response: COLUMN}"
    )


def _problems_digest(problems: Sequence[Problem]) -> str:
    sha = hashlib.sha256()
    for problem in problems:
        parts = [problem.id, str(problem.prompt), problem.answer, problem.kind, dict(problem.meta)]
        if problem.tests is not None:
            parts.append(repr(problem.tests))
        sha.update(json.dumps(parts, sort_keys=True, default=str).encode())
    return sha.hexdigest()
