"""Rows of data files, numbered as people count them, and what is wrong with a row that cannot be used."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from priml.errors import ConfigError, DataError
from priml.types import Message

OnBadRow = Literal["stop", "skip"]
T = TypeVar("T")

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_NO_VALUE = (ValueError, OverflowError, LookupError, pa.ArrowException)
"""What pyarrow raises for text that is not UTF-8, for dates before the year 1 or after 9999, for unknown time zones."""
_ROLES = ("system", "user", "assistant")
_TURN_ROLES, _OBSERVATION_ROLES = ("assistant",), ("user", "tool")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out."""

    row: int
    """Counted from 1: the line in a JSON Lines file, the row or list item elsewhere."""
    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that a file or table could not give."""

    reason: str


class BadRowError(DataError):
    """Why a row cannot be used; becomes a `BadRow`, or a `DataError` that names the row."""


def numbered_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a `.jsonl`, `.jsonl.gz`, `.json` (one list) or `.parquet` file; lines of JSON come as bytes, unread.

    Raises `DataError` for a file that is missing, unreadable or of another format.
    """
    _, suffix = split_name(path)
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix == ".json":
        return _json_items(path)
    return _json_lines(path, compressed=suffix == ".jsonl.gz")


def convert_rows(
    rows: Iterable[tuple[int, Any]],
    convert: Callable[[Mapping[str, Any], int], T],
    *,
    origin: str,
    noun: str,
    on_bad_row: OnBadRow | None,
    limit: int | None = None,
) -> tuple[list[T], tuple[BadRow, ...]]:
    """`convert(row, number)` of every row, at least one, and the rows it refused with `BadRowError`.

    `origin` and `noun` (what a row should be) are for messages. `limit` stops after so many usable rows. Raises
    `DataError` at the first bad row unless `on_bad_row` is "skip" (None: no setting decides it), and when no row can be
    used.
    """
    items: list[T] = []
    skipped: list[BadRow] = []
    for number, raw in rows:
        if limit is not None and len(items) == limit:
            break
        try:
            items.append(convert(_as_object(raw), number))
        except BadRowError as error:
            if on_bad_row != "skip":
                choice = ", or leave such rows out: on_bad_row: skip" if on_bad_row else ""
                raise DataError(f"{origin}:{number}: {error}. Mend the row{choice}") from error
            skipped.append(BadRow(number, str(error)))
    if not items and not skipped:
        raise DataError(f"{origin} is empty: found no rows, needed at least one {noun}; check how it was written")
    if not items:
        first = skipped[0]
        raise DataError(
            f"{origin}: none of its {len(skipped)} rows can be used; the first one ({origin}:{first.row}): "
            f"{first.reason}"
        )
    return items, tuple(skipped)


def split_name(path: Path) -> tuple[str, str]:
    """The name of a readable file without its suffix, and the suffix."""
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.name.endswith(_SUFFIXES))
        raise DataError(
            f"{path} is a folder; name one file in it"
            + (f": {', '.join(inside[:5])}" if inside else " (it has no data)")
        )
    if not path.exists():
        raise DataError(f"no such data file: {path} (looked for it from {Path.cwd()}); check the path")
    if not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path} is not a regular file; write the data into one")
    suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise DataError(f"{path}: cannot tell its format by its name; needed one that ends in {', '.join(_SUFFIXES)}")
    return path.name.removesuffix(suffix), suffix


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal, as it stands in the manifest of a run."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- cells -------------------------------------------------------------------------------------------------------


def read_cell(row: Mapping[str, Any], column: str) -> Any:
    """The value in a column, None when there is none; `a.b` is key `b` of the object in column `a`."""
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def read_prompt(value: object, column: str) -> str | tuple[Message, ...]:
    """A question: text, or a chat that ends with a user message. Raises `BadRowError`."""
    if isinstance(value, str):
        text = checked_text(value, column)
        value = _chat_in(text)
        if value is None:
            return text
    if not isinstance(value, list) or not value:
        raise BadRowError(f"{column} is {shown(value)}, needed text or a list of chat messages")
    messages = tuple(_message(turn, f"{column}[{i}]") for i, turn in enumerate(value))
    if messages[-1].role != "user":
        raise BadRowError(f"{column} ends with a message of role {messages[-1].role!r}, needed a user message last")
    return messages


def _chat_in(text: str) -> list[Any] | None:
    """The messages of a chat in JSON text."""
    if not (text.startswith("[") and '"role"' in text and '"content"' in text):
        return None
    try:
        turns = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return (
        turns if isinstance(turns, list) and all(isinstance(turn, dict) and "role" in turn for turn in turns) else None
    )


def read_text(value: object, column: str) -> str:
    """The text of a response. Raises `BadRowError`."""
    if not isinstance(value, str):
        raise BadRowError(f"{column} is {shown(value)}, needed the text of a response")
    return checked_text(value, column)


def read_turns(value: object, column: str) -> str | tuple[Message, ...]:
    """A response to learn: text, or the assistant's turns with one message of another role between each two.

    Raises `BadRowError`.
    """
    turns = _chat_in(value) if isinstance(value, str) else value
    if isinstance(value, str) and turns is None:
        return checked_text(value, column)
    if not isinstance(turns, list) or not turns:
        raise BadRowError(f"{column} is {shown(value)}, needed text, or a list of turns and observations")
    expected = cycle([_TURN_ROLES, _OBSERVATION_ROLES])
    messages = tuple(
        _message(turn, f"{column}[{i}]", roles) for i, (turn, roles) in enumerate(zip(turns, expected, strict=False))
    )
    if messages[-1].role != "assistant":
        raise BadRowError(f"{column} ends with a message of role {messages[-1].role!r}, needed the assistant's last")
    return messages


def read_list(
    value: object, column: str, needed: str, is_item: Callable[[Any], bool], *, may_be_empty: bool = False
) -> tuple[Any, ...]:
    """A list whose items pass; `needed` says what they are. Raises `BadRowError`."""
    if not isinstance(value, list) or not (value or may_be_empty) or not all(map(is_item, value)):
        raise BadRowError(f"{column} is {shown(value)}, needed {needed}")
    return tuple(value)


def read_texts(value: object, column: str) -> tuple[str, ...]:
    """A list of texts, of which some may be empty. Raises `BadRowError`."""
    return read_list(value, column, "a list of texts", lambda item: isinstance(item, str))


def checked_text(text: str, column: str, *, may_be_empty: bool = False) -> str:
    """Text with something in it that any tokenizer takes. Raises `BadRowError`."""
    if not (text.strip() or may_be_empty):
        raise BadRowError(f"{column} is empty, needed text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may escape half a surrogate pair, which no tokenizer takes
        raise BadRowError(f"{column} holds half a Unicode character at position {error.start + 1}") from error
    return text


def check_columns(given: Mapping[str, str] | None, fields: Iterable[str]) -> Mapping[str, str]:
    """The setting `columns`. Raises `ConfigError` for a field that does not exist."""
    unknown = sorted(set(given or {}) - set(fields))
    if unknown:
        raise ConfigError(f"columns: no field is called {unknown[0]!r}; the fields are {', '.join(fields)}")
    return given or {}


def missing_value(row: Mapping[str, Any], field: str, columns: Iterable[str]) -> BadRowError:
    """No value of a field in any of its columns."""
    filled = ", ".join(name for name, value in row.items() if value is not None) or "no column"
    return BadRowError(f"no {field}: needed a value in {' or '.join(columns)}, found values in {filled}")


def shown(value: object) -> str:
    """A value as it stands in a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists thousands deep
        text = f"a {type(value).__name__} too long to show"
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_json(raw: bytes) -> Any:
    """The value of a JSON text. Raises `BadRowError`."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise BadRowError(f"broken JSON ({error.msg}) at character {error.pos + 1}") from error
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8 ({error.reason}) at byte {error.start + 1}; convert it to UTF-8") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists thousands deep
        raise BadRowError(f"unreadable JSON ({error})") from error


def _message(turn: object, column: str, roles: Sequence[str] = _ROLES) -> Message:
    if not isinstance(turn, dict) or turn.get("role") not in roles or not isinstance(turn.get("content"), str):
        raise BadRowError(f"{column} is {shown(turn)}, needed {{role: {' | '.join(roles)}, content: TEXT}}")
    # A system message may be empty: it says "no system prompt" to templates that would add their own. So may an
    # observation: the program printed nothing.
    may_be_empty = turn["role"] == "system" or roles == _OBSERVATION_ROLES
    content = checked_text(turn["content"], f"{column}.content", may_be_empty=may_be_empty)
    return Message(role=turn["role"], content=content)


# --- files -------------------------------------------------------------------------------------------------------


def readable_rows(batch: pa.RecordBatch) -> Iterator[Mapping[str, Any] | Unreadable]:
    """The rows of a batch as Python values. One with a value that Python cannot hold is told alone."""
    try:
        yield from batch.to_pylist()
    except _NO_VALUE:
        for i in range(batch.num_rows):
            yield _readable_row(batch.slice(i, 1))


def _readable_row(row: pa.RecordBatch) -> Mapping[str, Any] | Unreadable:
    values: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except _NO_VALUE as error:
            return Unreadable(f"{name} holds a value that cannot be read ({error}), needed UTF-8 text or a common date")
    return values


def _as_object(raw: object) -> Mapping[str, Any]:
    if isinstance(raw, Unreadable):
        raise BadRowError(raw.reason)
    row = parse_json(raw) if isinstance(raw, bytes) else raw
    if not isinstance(row, dict):
        raise BadRowError(f"found a {_name_type(row)}, needed an object with columns")
    return row


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
        items = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}; check that the file is readable") from error
    except BadRowError as error:
        raise DataError(f"{path}: {error}; a file with one object per line must be called .jsonl") from error
    if not isinstance(items, list):
        raise DataError(f"{path}: found one {_name_type(items)}, needed a list of objects, one per row")
    return enumerate(items, start=1)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | Unreadable]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in readable_rows(batch):
                    number += 1
                    yield number, row
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path} as parquet: {error}; check that the file is whole") from error


def _name_type(value: object) -> str:
    return {dict: "object", list: "list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)
