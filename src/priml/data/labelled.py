"""Responses that somebody has written and, mostly, judged: what the offline implicit PRM learns from and scores.

A row is read by its columns. Four shapes are recognised; `columns` names the columns of any other.

| shape | told by | prompt | response | outcome | gold answer |
|---|---|---|---|---|---|
| rollout | `response_ids` | `prompt`, rendered already | `response`, with its own tokens | `outcome` | `gold` |
| pair | `chosen` and `rejected` | `prompt`, `problem` or `question` | both | chosen 1, rejected 0 | |
| steps | `steps`, a list of texts | the same | the steps | `label`, `outcome` or `correct` | `gold` or `answer` |
| labelled | anything else | the same | `response` or `completion` | the same | the same |

- Prompts are text or a chat ending with a user message; responses are text, or a list of one assistant message.
- Outcomes are true or false, or numbers from 0 to 1; a row may lack one where the caller can do without.
- Responses to the same prompt form a group: those with the same `problem_id`, or else with the same prompt.
- A folder stands for all the data files in it, in the order of their names: the rollouts of a run, for instance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from priml.config.prm import ResponseFile
from priml.data.rows import (
    BadRow,
    BadRowError,
    check_columns,
    checked_text,
    convert_rows,
    file_digest,
    missing_value,
    numbered_rows,
    read_cell,
    read_list,
    read_prompt,
    read_text,
    read_texts,
    shown,
)
from priml.errors import DataError
from priml.types import Problem

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "problem", "question"),
    "response": ("response", "completion"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "steps": ("steps",),
    "label": ("label", "outcome", "correct"),
    "gold": ("gold", "answer"),
    "group": ("problem_id",),
    "source": ("source",),
}
"""Each field of a row with the columns it is looked for in."""


@dataclass(frozen=True, slots=True)
class Response:
    """One response to a problem."""

    problem: Problem
    """`id` is the group's; `answer` is empty where no gold answer was given."""
    text: str
    outcome: float | None
    """In [0, 1]; None where nobody has judged it."""
    token_ids: tuple[int, ...] | None = None
    """As they were sampled, of a rollout; such a prompt has been through the chat template. None: still to be made."""
    segments: tuple[tuple[int, int | None], ...] | None = None
    """Of a rollout: the number of its tokens and the weight version of each segment, None for an observation. None for
    all: one turn."""
    steps: tuple[str, ...] | None = None
    """The steps, where the row brings them as a list."""
    step_rewards: tuple[float, ...] | None = None
    """Rewards of the steps, from a file that `priml prm score` has written."""


@dataclass(frozen=True, slots=True)
class LoadedResponses:
    """The responses of a file, at least one."""

    responses: tuple[Response, ...]
    """In the order of the rows; of a pair, the chosen one comes first."""
    has_pairs: bool
    """They were given as pairs, each a group of its own."""
    skipped: tuple[BadRow, ...]
    digest: str
    """sha256 of the file, or of all the digests of a folder's files."""


def read_responses(source: ResponseFile, *, needs_label: bool) -> LoadedResponses:
    """Read a `.jsonl`, `.jsonl.gz`, `.json` or `.parquet` file, or all such files of a folder.

    `needs_label` refuses rows without an outcome. Raises `DataError` for files and rows that cannot be used,
    `ConfigError` for a field in `columns` that does not exist.
    """
    path, given = source.path, check_columns(source.columns, COLUMNS)
    files = _list_files(path)
    rows, skipped = convert_rows(
        _load_rows(files),
        lambda row, number: _to_responses(row, number, given, name=path.name, needs_label=needs_label),
        origin=str(path),
        noun="response",
        on_bad_row=source.on_bad_row,
        limit=source.limit,
    )
    pairs = [len(responses) == 2 for responses in rows]
    if any(pairs) and not all(pairs):
        raise DataError(f"{path}: holds pairs and single responses; put them into a file each and name one of them")
    digests = [file_digest(file) for file in files]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return LoadedResponses(tuple(r for responses in rows for r in responses), any(pairs), skipped, digest)


def group_by_problem(responses: Sequence[Response]) -> list[list[Response]]:
    """Responses to the same problem together, in the order in which the problems first appear."""
    groups: dict[str, list[Response]] = {}
    for response in responses:
        groups.setdefault(response.problem.id, []).append(response)
    return list(groups.values())


class _Asked(Protocol):
    @property
    def problem(self) -> Problem: ...


AskedT = TypeVar("AskedT", bound=_Asked)


def split_held_out(responses: Sequence[AskedT], share: float) -> tuple[list[AskedT], list[AskedT]]:
    """The responses (or prompts) to learn from, and those to about `share` of the prompts, kept aside.

    A hash of the prompt decides, so a prompt is never on both sides, and stays on its side when the file grows.
    """
    sides: tuple[list[AskedT], list[AskedT]] = ([], [])
    for response in responses:
        digest = hashlib.blake2b(repr(response.problem.prompt).encode(), digest_size=8).digest()
        sides[int.from_bytes(digest, "big") < share * 2**64].append(response)
    return sides


def read_prompts(path: Path) -> list[str]:
    """The prompts of a data file or folder as text, whatever else its rows hold; of a chat, its last message.

    Raises `DataError` for a file that cannot be read or has no prompts.
    """

    def prompt(row: Mapping[str, Any], number: int) -> str:
        found = read_prompt(_required({"prompt": _cell(row, "prompt", {})}, "prompt", row), "prompt")
        return found if isinstance(found, str) else found[-1].content

    rows = _load_rows(_list_files(path))
    return convert_rows(rows, prompt, origin=str(path), noun="prompt", on_bad_row="skip")[0]


# --- files -------------------------------------------------------------------------------------------------------


def _list_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [file for file in sorted(path.iterdir()) if file.name.endswith((".jsonl", ".jsonl.gz", ".parquet"))]
    if not files:
        raise DataError(f"{path}: there is no data file in this folder; name one, or the folder of a run's rollouts")
    return files


def _load_rows(files: Sequence[Path]) -> Iterator[tuple[int, Any]]:
    """Numbered as in their file; with several files, counted through."""
    if len(files) == 1:
        yield from numbered_rows(files[0])
        return
    rows = (raw for file in files for _, raw in numbered_rows(file))
    yield from enumerate(rows, start=1)


# --- one row -----------------------------------------------------------------------------------------------------


def _to_responses(
    row: Mapping[str, Any], number: int, given: Mapping[str, str], *, name: str, needs_label: bool
) -> tuple[Response, ...]:
    cells = {field: _cell(row, field, given) for field in COLUMNS}
    problem = _problem(row, cells, name=name)
    if cells["chosen"] is not None or cells["rejected"] is not None:
        pair = [_response_text(_required(cells, field, row), field) for field in ("chosen", "rejected")]
        if pair[0] == pair[1]:
            raise BadRowError("chosen and rejected are the same text, so there is nothing to prefer")
        problem = replace(problem, id=f"{name}:{number}")  # the same prompt may come in many pairs
        return tuple(Response(problem, text, outcome) for text, outcome in zip(pair, (1.0, 0.0), strict=True))

    outcome = _outcome(cells["label"])
    if outcome is None and needs_label:
        names = given.get("label") or " or ".join(COLUMNS["label"])
        raise BadRowError(f"no label: needed true, false or a number from 0 to 1 in {names}")
    steps = cells["steps"]
    if steps is not None:
        steps = tuple(checked_text(step, f"steps[{i}]") for i, step in enumerate(read_texts(steps, "steps")))
    token_ids, rewards = row.get("response_ids"), row.get("step_rewards")
    if steps is not None and cells["response"] is None:
        return (Response(problem, "\n\n".join(steps), outcome, steps=steps),)
    if token_ids is None:
        text = _response_text(_required(cells, "response", row), "response")
    else:
        text = row.get("response") or ""
        needed = "a list of token ids"
        token_ids = read_list(token_ids, "response_ids", needed, lambda i: isinstance(i, int) and i >= 0)
    if rewards is not None:
        needed = "a list of numbers"
        found = read_list(rewards, "step_rewards", needed, lambda x: isinstance(x, int | float), may_be_empty=True)
        rewards = tuple(map(float, found))
    segments = None if token_ids is None else _segments(row, len(token_ids))
    return (
        Response(problem, text, outcome, token_ids=token_ids, segments=segments, steps=steps, step_rewards=rewards),
    )


def _segments(row: Mapping[str, Any], num_tokens: int) -> tuple[tuple[int, int | None], ...] | None:
    if (given := row.get("segments")) is None:
        return None
    segments = tuple((segment["num_tokens"], segment["weight_version"]) for segment in given)
    if sum(number for number, _ in segments) != num_tokens or all(version is None for _, version in segments):
        raise BadRowError(
            f"segments are {shown(given)}, needed those of all {num_tokens} response_ids, one of them with a "
            "weight_version"
        )
    return segments


def _cell(row: Mapping[str, Any], field: str, given: Mapping[str, str]) -> Any:
    names = (given[field],) if field in given else COLUMNS[field]
    return next((value for name in names if (value := read_cell(row, name)) is not None), None)


def _required(cells: Mapping[str, Any], field: str, row: Mapping[str, Any]) -> Any:
    if cells[field] is None:
        raise missing_value(row, field, COLUMNS[field])
    return cells[field]


def _problem(row: Mapping[str, Any], cells: Mapping[str, Any], *, name: str) -> Problem:
    prompt = read_prompt(_required(cells, "prompt", row), "prompt")
    group, gold = cells["group"], cells["gold"]
    digest = hashlib.blake2b(repr(prompt).encode(), digest_size=8).hexdigest()
    return Problem(
        id=digest if group is None else str(group),
        prompt=prompt,
        answer="" if gold is None else str(gold).strip(),
        source=str(cells["source"] or name),
    )


def _response_text(value: object, column: str) -> str:
    """A response as text, or as a list of one assistant message."""
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], dict) or value[0].get("role") != "assistant":
            raise BadRowError(f"{column} is {shown(value)}, needed text or a list of one assistant message")
        value = value[0].get("content")
    return read_text(value, column)


def _outcome(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
        raise BadRowError(f"the label is {shown(value)}, needed true, false or a number from 0 to 1")
    return float(value)
