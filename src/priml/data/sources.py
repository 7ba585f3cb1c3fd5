"""From data files and Hub data sets to `Problem`s.

A row is read by its columns. Two shapes are recognised, and `columns` names the columns of any other:

| shape | told by | prompt | answer | source | kind |
|---|---|---|---|---|---|
| verl / Eurus-2-RL | `reward_model` is an object | `prompt` | `reward_model.ground_truth` | `data_source` | `ability` |
| plain | anything else | `problem`, `question` or `prompt` | `answer` | `source` | `ability` |

- Prompts are text, or a chat: a list of `{role, content}` that ends with a user message. Nothing is added here.
- Answers are text or numbers; a number becomes its shortest decimal text. Of a GSM8K-style answer in a plain row
  (`... #### 1,234`) what follows the last `####` counts, without thousands commas; the whole goes to `meta["solution"]`
  unless the row has a solution of its own. For code the answer is the JSON text of the tests, as it stands.
- `id` is the row's own where it has one, else `NAME:ROW`. An id that comes again gets `#2`, `#3`, ...
- `source` falls back on the name of the file or data set, `kind` on `math`.
- Every other column goes to `meta` under its own name, so that a demonstration for supervised training is
  `meta["response"]` or `meta["solution"]`; an object in a column `meta` is merged into it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from priml.errors import ConfigError, DataError
from priml.types import Message, Problem

OnBadRow = Literal["stop", "skip"]

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
# Each field of a problem with the columns it is looked for in. A response is optional: unless `columns` names it, a
# column of that name is one of the others and not checked.
_PLAIN_COLUMNS = {
    "id": ("id",),
    "prompt": ("problem", "question", "prompt"),
    "answer": ("answer",),
    "source": ("source",),
    "kind": ("ability",),
    "response": (),
}
_VERL_COLUMNS = {
    "id": ("id",),
    "prompt": ("prompt",),
    "answer": ("reward_model.ground_truth",),
    "source": ("data_source",),
    "kind": ("ability",),
    "response": (),
}
_REQUIRED = ("prompt", "answer")
_ROLES = ("system", "user", "assistant")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out."""

    row: int
    """Counted from 1: the line in a JSON Lines file, the row or list item elsewhere."""
    reason: str


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """What one source gave: at least one problem, and the rows that were left out."""

    problems: tuple[Problem, ...]
    skipped: tuple[BadRow, ...]


def read_problems(
    path: Path,
    *,
    on_bad_row: OnBadRow = "stop",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> LoadedProblems:
    """Read a `.jsonl`, `.jsonl.gz`, `.json` (one list of objects) or `.parquet` file, in the order of its rows.

    `columns` maps `id`, `prompt`, `answer`, `source`, `kind` or `response` to a column of the file, `a.b` reaching into
    an object; what it does not name is looked for as the module describes. `limit` stops after so many usable rows.

    Raises `DataError` for a file that is missing, unreadable or without a usable row and, with `on_bad_row="stop"`,
    at the first row that cannot be used; `ConfigError` for a field in `columns` that does not exist.
    """
    name, suffix = _split_name(path)
    if suffix == ".parquet":
        rows = _parquet_rows(path)
    elif suffix == ".json":
        rows = _json_items(path)
    else:
        rows = _json_lines(path, compressed=suffix == ".jsonl.gz")
    return _collect(rows, place=str(path), name=name, on_bad_row=on_bad_row, columns=columns or {}, limit=limit)


def read_hub(
    dataset: str,
    *,
    split: str,
    name: str | None = None,
    revision: str | None = None,
    on_bad_row: OnBadRow = "stop",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> LoadedProblems:
    """Read one split of a data set on the Hugging Face Hub, or of a local data set folder.

    `name` picks a configuration of the data set, `revision` a commit or tag of it; rows, `columns`, `limit` and errors
    as in `read_problems`. Needs the extra `priml[hub]`. Code that comes with a data set is never run.
    """
    try:
        from datasets import exceptions, load_dataset
    except ImportError as error:
        raise DataError(
            f"reading {dataset} from the Hub needs the `datasets` library: pip install 'priml[hub]', "
            "or download the data and name the parquet or JSON Lines file"
        ) from error
    place = ", ".join([dataset, *([name] if name else []), split])
    try:
        table = load_dataset(dataset, name=name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot load the data set {place}: {error}. Check its name, configuration and split; log in with "
            "`hf auth login` if it is private; without a network, name a downloaded parquet or JSON Lines file"
        ) from error
    short_name = dataset.rstrip("/").rsplit("/", maxsplit=1)[-1]
    return _collect(
        enumerate(table, start=1),
        place=place,
        name=short_name,
        on_bad_row=on_bad_row,
        columns=columns or {},
        limit=limit,
    )


def with_unique_ids(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The same problems, each id that came before replaced by `id#2`, `id#3`, ...: for joining several sources.

    The result depends on the order of the problems alone.
    """
    given = tuple(problems)
    taken = {problem.id for problem in given}
    next_number: dict[str, int] = {}
    unique: list[Problem] = []
    for problem in given:
        if problem.id not in next_number:
            next_number[problem.id] = 2
            unique.append(problem)
            continue
        while (new_id := f"{problem.id}#{next_number[problem.id]}") in taken:
            next_number[problem.id] += 1
        taken.add(new_id)
        unique.append(replace(problem, id=new_id))
    return tuple(unique)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal, as it stands in the manifest of a run."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _BadRowError(Exception):
    """Why a row cannot be used; becomes a `BadRow` or a `DataError`."""


def _split_name(path: Path) -> tuple[str, str]:
    """The name of a readable file without its suffix, and the suffix."""
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.name.endswith(_SUFFIXES))
        raise DataError(
            f"{path} is a folder; name one file in it"
            + (f": {', '.join(inside[:5])}" if inside else " (it has no data)")
        )
    if not path.exists():
        raise DataError(f"no such data file: {path} (looked for it from {Path.cwd()}); check the path")
    suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise DataError(f"{path}: cannot tell its format by its name; needed one that ends in {', '.join(_SUFFIXES)}")
    return path.name.removesuffix(suffix), suffix


def _json_lines(path: Path, *, compressed: bool) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of the file, blank ones left out."""
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; check that the file is whole and readable") from error


def _json_items(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        items = _parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}; check that the file is readable") from error
    except _BadRowError as error:
        raise DataError(f"{path}: {error}; a file with one object per line must be called .jsonl") from error
    if not isinstance(items, list):
        raise DataError(f"{path}: found one {_name_type(items)}, needed a list of objects, one per problem")
    return enumerate(items, start=1)


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path} as parquet: {error}; check that the file is whole") from error


def _collect(
    rows: Iterable[tuple[int, Any]],
    *,
    place: str,
    name: str,
    on_bad_row: OnBadRow,
    columns: Mapping[str, str],
    limit: int | None,
) -> LoadedProblems:
    unknown = sorted(set(columns) - set(_PLAIN_COLUMNS))
    if unknown:
        raise ConfigError(f"columns: no field is called {unknown[0]!r}; the fields are {', '.join(_PLAIN_COLUMNS)}")
    problems: list[Problem] = []
    skipped: list[BadRow] = []
    for number, row in rows:
        if limit is not None and len(problems) == limit:
            break
        try:
            problems.append(_to_problem(row, columns, name=name, number=number))
        except _BadRowError as error:
            if on_bad_row == "stop":
                raise DataError(
                    f"{place}:{number}: {error}. Mend the row, or leave such rows out: on_bad_row: skip"
                ) from error
            skipped.append(BadRow(number, str(error)))
    if not problems and not skipped:
        raise DataError(f"{place} is empty: found no rows, needed at least one problem; check how it was written")
    if not problems:
        first = skipped[0]
        raise DataError(
            f"{place}: none of its {len(skipped)} rows can be used; the first one ({place}:{first.row}): {first.reason}"
        )
    return LoadedProblems(with_unique_ids(problems), tuple(skipped))


def _to_problem(raw: Any, columns: Mapping[str, str], *, name: str, number: int) -> Problem:
    row = _parse_json(raw) if isinstance(raw, bytes) else raw
    if not isinstance(row, dict):
        raise _BadRowError(f"found a {_name_type(row)}, needed an object with columns")
    is_verl = isinstance(row.get("reward_model"), dict)
    located = _locate(row, _VERL_COLUMNS if is_verl else _PLAIN_COLUMNS, columns)
    cells = {field: _cell(row, column) for field, column in located.items()}

    kind = _label(cells, "kind") or "math"
    meta = {key: value for key, value in row.items() if key not in located.values() and value is not None}
    if isinstance(meta.get("meta"), dict):
        meta |= meta.pop("meta")
    if "response" in cells:
        meta["response"] = _demonstration(cells["response"], located["response"])
    answer = _answer(cells["answer"], located["answer"])
    if kind != "code":
        answer = answer.strip()
        if not is_verl and "####" in answer:
            meta.setdefault("solution", answer)
            answer = _after_hashes(answer)
    return Problem(
        id=_label(cells, "id") or f"{name}:{number}",
        prompt=_prompt(cells["prompt"], located["prompt"]),
        answer=answer,
        source=_label(cells, "source") or name,
        kind=kind,
        meta=meta,
    )


def _locate(
    row: Mapping[str, Any], recognised: Mapping[str, tuple[str, ...]], given: Mapping[str, str]
) -> dict[str, str]:
    """Which column of this row holds each field; optional fields may be missing."""
    located: dict[str, str] = {}
    for field, usual in recognised.items():
        names = (given[field],) if field in given else usual
        present = [name for name in names if _cell(row, name) is not None]
        if len(present) > 1:
            raise _BadRowError(
                f"the {field} could be any of {', '.join(present)}; say which with columns: {{{field}: NAME}}"
            )
        if present:
            located[field] = present[0]
        elif field in given or field in _REQUIRED:
            filled = ", ".join(name for name, value in row.items() if value is not None) or "no column"
            raise _BadRowError(f"no {field}: needed a value in {' or '.join(names)}, found values in {filled}")
    return located


def _cell(row: Mapping[str, Any], column: str) -> Any:
    """The value in a column, None when there is none; `a.b` is key `b` of the object in column `a`."""
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _parse_json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise _BadRowError(f"broken JSON ({error.msg}) at character {error.pos + 1}") from error
    except UnicodeDecodeError as error:
        raise _BadRowError(f"not UTF-8 ({error.reason}) at byte {error.start + 1}; convert it to UTF-8") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists thousands deep
        raise _BadRowError(f"unreadable JSON ({error})") from error


def _answer(value: Any, column: str) -> str:
    if isinstance(value, str):
        return _checked_text(value, column)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        # Decimal keeps 142.0 from becoming "142.0", and 1e22 from becoming "1e+22", which no grader of LaTeX reads.
        return str(value) if isinstance(value, int) else f"{Decimal(repr(value)).normalize():f}"
    raise _BadRowError(f"{column} is {_show(value)}, needed text or a finite number")


def _after_hashes(answer: str) -> str:
    final = answer.rsplit("####", maxsplit=1)[1].strip()
    if not final:
        raise _BadRowError("nothing follows the last #### of the answer, needed the final answer there")
    return final.replace(",", "") if _THOUSANDS.fullmatch(final) else final


def _prompt(value: Any, column: str) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        return _checked_text(value, column)
    if not isinstance(value, list) or not value:
        raise _BadRowError(f"{column} is {_show(value)}, needed text or a list of chat messages")
    messages = tuple(_message(turn, f"{column}[{i}]") for i, turn in enumerate(value))
    if messages[-1].role != "user":
        raise _BadRowError(f"{column} ends with a message of role {messages[-1].role!r}, needed a user message last")
    return messages


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict) or turn.get("role") not in _ROLES or not isinstance(turn.get("content"), str):
        raise _BadRowError(f"{place} is {_show(turn)}, needed {{role: {' | '.join(_ROLES)}, content: TEXT}}")
    # A system message may be empty: it says "no system prompt" to templates that would add their own.
    content = turn["content"] if turn["role"] == "system" else _checked_text(turn["content"], f"{place}.content")
    return Message(role=turn["role"], content=content)


def _demonstration(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise _BadRowError(f"{column} is {_show(value)}, needed the text of a response")
    return _checked_text(value, column)


def _label(cells: Mapping[str, Any], field: str) -> str:
    """A short text such as an id or a source; numbers are taken too, empty when the row has none."""
    value = cells.get(field, "")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _BadRowError(f"the {field} is {_show(value)}, needed text or a whole number")
    return str(value).strip()


def _checked_text(text: str, column: str) -> str:
    if not text.strip():
        raise _BadRowError(f"{column} is empty, needed text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may escape half a surrogate pair, which no tokenizer takes
        raise _BadRowError(f"{column} holds half a Unicode character at position {error.start + 1}") from error
    return text


def _show(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _name_type(value: Any) -> str:
    return {dict: "object", list: "list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)
