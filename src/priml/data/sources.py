"""From data files and Hub data sets to `Problem`s.

A row is read by its columns. Two shapes are recognised, and `columns` names the columns of any other:

| shape | told by | prompt | answer | source | kind |
|---|---|---|---|---|---|
| verl / Eurus-2-RL | `reward_model` is an object | `prompt` | `reward_model.ground_truth` | `data_source` | `ability` |
| plain | anything else | `problem`, `question` or `prompt` | `answer` | `source` | `ability` |

- Prompts are text, or a chat: a list of `{role, content}` that ends with a user message. Nothing is added. Only public
  sets of programs get the name that a program must have, where another column says it.
- Answers are text or numbers; a number becomes its shortest decimal text. Of a list of one text, also of one that is
  written as text (`["34"]`), it is that text. Of a GSM8K-style answer in a plain row (`... #### 1,234`) what follows
  the last `####` counts, without thousands commas; of a solution with a box in it, the last box. The whole goes to
  `meta["solution"]` unless the row has a solution of its own.
- Rows of kind `code` have tests instead of an answer (`priml.data.code_rows` says in which forms and columns). Such a
  column makes a row without an `ability` one of code. Its question may also be in `question_content`, `description`
  or `text`.
- The kinds `math` and `code` may be written in capitals; `coding` is `code`, `mathematics` is `math`.
- Objects, lists and chats may be JSON text: some tools write them so to parquet.
- `id` is the row's own where it has one, else `NAME:ROW`. An id that comes again gets `#2`, `#3`, ...
- `source` falls back on the name of the file or data set, `kind` on `math`.
- Every other column goes to `meta` under its own name, so that a demonstration for supervised training is
  `meta["response"]` or `meta["solution"]`, as text or as a list of turns and observations; an object in a column
  `meta` is merged into it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from priml.config.data import FileSource, HubSource, RowSettings
from priml.data.code_rows import TEST_COLUMNS, code_tests, is_code_row, with_interface
from priml.data.rows import (
    BadRow,
    BadRowError,
    Unreadable,
    check_columns,
    checked_text,
    convert_rows,
    missing_value,
    numbered_rows,
    read_cell,
    read_prompt,
    read_turns,
    readable_rows,
    shown,
    split_name,
)
from priml.errors import DataError
from priml.types import Problem

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
_VERL_COLUMNS = _PLAIN_COLUMNS | {
    "prompt": ("prompt",),
    "answer": ("reward_model.ground_truth",),
    "source": ("data_source",),
}
_CODE_PROMPTS = ("question_content", "description", "text")
"""Where public sets of programs have the question, if it is in none of the columns above."""
_LONGEST_ANSWER = 100_000
"""Characters of a gold answer. It is compared with every response, and stands in every row of a rollout file."""
_KINDS = {"math": "math", "mathematics": "math", "code": "code", "coding": "code"}
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_ONE_QUOTED = re.compile(r"\[\s*'([^']*)'\s*\]")
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


Accept = Callable[[Problem], None]


class ToProblem(Protocol):
    """Reads one row; raises `BadRowError`."""

    def __call__(self, row: Mapping[str, Any], columns: Mapping[str, str], *, name: str, number: int) -> Problem: ...


MAX_SOURCES = 50
"""With more than that, numbers by source would be numbers by problem."""


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """The problems of one source, at least one, and the rows that were left out."""

    problems: tuple[Problem, ...]
    skipped: tuple[BadRow, ...]


def read_problems(
    source: FileSource, *, accept: Accept | None = None, convert: ToProblem | None = None
) -> LoadedProblems:
    """Read a `.jsonl`, `.jsonl.gz`, `.json` (one list of objects) or `.parquet` file, in the order of its rows.

    `source.columns` maps `id`, `prompt`, `answer`, `source`, `kind` or `response` to a column of the file; `a.b` is key
    `b` of an object. Fields that it does not name are looked for as the module describes. `accept` refuses a problem by
    a `DataError`; that row is then a bad one. `convert` reads a row instead of `to_problem`.

    Raises `DataError` for a file that is missing, unreadable or without a usable row and, with `on_bad_row="stop"`,
    at the first row that cannot be used; `ConfigError` for a field in `columns` that does not exist.
    """
    name, _ = split_name(source.path)
    return _collect(
        numbered_rows(source.path), source, origin=str(source.path), name=name, accept=accept, convert=convert
    )


def problems_from_rows(
    rows: Iterable[Mapping[str, Any]], *, origin: str, convert: ToProblem | None = None
) -> tuple[Problem, ...]:
    """Problems from rows that are in memory, as those of a JSONL file. `origin` stands for them in messages.

    Raises `DataError` when there is no row, or at the first that cannot be used.
    """
    return _collect(enumerate(rows, start=1), RowSettings(), origin=origin, name=origin, convert=convert).problems


def read_hub(source: HubSource, *, accept: Accept | None = None, convert: ToProblem | None = None) -> LoadedProblems:
    """Read one split of a data set on the Hugging Face Hub, or of a local data set folder.

    Rows and errors as in `read_problems`. Needs the extra `priml[hub]`. Code that comes with a data set is never run.
    """
    dataset = source.dataset
    try:
        from datasets import ClassLabel, exceptions, load_dataset, load_from_disk
    except ImportError as error:
        raise DataError(
            f"reading {dataset} from the Hub needs the `datasets` library: pip install 'priml[hub]', "
            "or download the data and name the parquet or JSON Lines file"
        ) from error
    origin = ", ".join([dataset, *([source.name] if source.name else []), source.split])
    try:
        if (Path(dataset) / "state.json").is_file():  # one split, as `save_to_disk` wrote it
            table: Any = load_from_disk(dataset)
        else:
            table = load_dataset(dataset, name=source.name, split=source.split, revision=source.revision)
    except (OSError, ValueError, RuntimeError, exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot load the data set {origin}: {error}. Check its name, configuration and split; log in with "
            "`hf auth login` if it is private; without a network, name a downloaded parquet or JSON Lines file"
        ) from error
    labels = {name: kind.names for name, kind in table.features.items() if isinstance(kind, ClassLabel)}
    short_name = dataset.rstrip("/").rsplit("/", maxsplit=1)[-1]
    rows = enumerate(_table_rows(table, labels), start=1)
    return _collect(rows, source, origin=origin, name=short_name, accept=accept, convert=convert)


def _table_rows(table: Any, labels: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Any] | Unreadable]:
    """Rows of a data set, with class labels by their names. Files in it, such as pictures, stay as they are stored."""
    for part in table.with_format("arrow").iter(batch_size=1024):
        for row in (row for batch in part.to_batches() for row in readable_rows(batch)):
            if isinstance(row, Unreadable):
                yield row
            else:
                yield {**row, **{n: names[row[n]] for n, names in labels.items() if row[n] is not None}}


def read_graded(settings: RowSettings, path: Path) -> tuple[list[tuple[int, Problem, str]], tuple[BadRow, ...]]:
    """Rows with a response to be graded: the number of each, its problem, of which only the gold matters, and the text.

    The response is in `response` or `completion`, the gold in `gold` or where `read_problems` looks for it. Errors as
    there.
    """
    columns = check_columns(settings.columns, _PLAIN_COLUMNS)
    name, _ = split_name(path)

    def convert(row: Mapping[str, Any], number: int) -> tuple[int, Problem, str]:
        located = dict(columns)
        for field, usual in (("response", ("response", "completion")), ("answer", ("gold",))):
            present = [column for column in usual if read_cell(row, column) is not None]
            if field not in located and present:
                located[field] = present[0]
        if "response" not in located:
            raise BadRowError("no response: needed a value in response or completion")
        is_asked = any(read_cell(row, column) is not None for column in ("prompt", "problem", "question"))
        problem = to_problem(row if is_asked else {**row, "prompt": "-"}, located, name=name, number=number)
        return number, problem, problem.meta["response"]

    return convert_rows(
        numbered_rows(path),
        convert,
        origin=str(path),
        noun="response",
        on_bad_row=settings.on_bad_row,
        limit=settings.limit,
    )


def source_origin(problem: Problem) -> str:
    """Its source up to the first `/`: `numina` of `numina/olympiads/7`."""
    return problem.source.partition("/")[0]


def sources_in(problems: Iterable[Problem]) -> tuple[str, ...]:
    """The sources to tell apart, sorted; none when there is only one, or there are more than `MAX_SOURCES`."""
    names = sorted({source_origin(problem) for problem in problems})
    return tuple(names) if 1 < len(names) <= MAX_SOURCES else ()


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


def _collect(
    rows: Iterable[tuple[int, Any]],
    settings: RowSettings,
    *,
    origin: str,
    name: str,
    accept: Accept | None = None,
    convert: ToProblem | None = None,
) -> LoadedProblems:
    columns = check_columns(settings.columns, _PLAIN_COLUMNS)

    def read(row: Mapping[str, Any], number: int) -> Problem:
        problem = (convert or to_problem)(row, columns, name=name, number=number)
        if accept is not None:
            try:
                accept(problem)
            except DataError as error:
                raise BadRowError(str(error)) from error
        return problem

    problems, skipped = convert_rows(
        rows, read, origin=origin, noun="problem", on_bad_row=settings.on_bad_row, limit=settings.limit
    )
    return LoadedProblems(with_unique_ids(problems), skipped)


def to_problem(
    row: Mapping[str, Any], columns: Mapping[str, str], *, name: str, number: int, needs_answer: bool = True
) -> Problem:
    """The problem in a row, as the module describes. `columns` as in `read_problems`; `name` and `number` make an id.

    Raises:
        BadRowError: it cannot be used.
    """
    if isinstance(row.get("reward_model"), str):
        row = {**row, "reward_model": _object_in(row["reward_model"], "reward_model")}
    is_verl = isinstance(row.get("reward_model"), dict)
    recognised = _VERL_COLUMNS if is_verl else _PLAIN_COLUMNS
    kind = _kind(row, columns.get("kind") or recognised["kind"][0])
    if kind == "code" and all(read_cell(row, column) is None for column in recognised["prompt"]):
        recognised = {**recognised, "prompt": _CODE_PROMPTS}
    required = ("prompt", "answer") if needs_answer and kind != "code" else ("prompt",)
    located = _locate(row, recognised, columns, required)
    cells = {field: read_cell(row, column) for field, column in located.items()}
    prompt = read_prompt(cells["prompt"], located["prompt"])

    meta = {key: value for key, value in row.items() if key not in located.values() and value is not None}
    if isinstance(meta.get("meta"), dict):
        meta |= meta.pop("meta")
    if "response" in cells:
        read_turns(cells["response"], located["response"])  # a bad one is found here, with the number of its row
        meta["response"] = cells["response"]
    tests, answer = None, ""
    if kind == "code" and (needs_answer or is_code_row(row)):
        tests = code_tests(row)
        prompt = with_interface(prompt, row, tests)
        meta = {key: value for key, value in meta.items() if key not in TEST_COLUMNS}
    elif "answer" in cells:
        whole = _answer(cells["answer"], located["answer"]).strip()
        answer = _final_answer(whole, has_hashes=not is_verl)
        if answer != whole:
            meta.setdefault("solution", whole)
    return Problem(
        id=read_label(cells, "id") or f"{name}:{number}",
        prompt=prompt,
        answer=answer,
        source=read_label(cells, "source") or name,
        kind=kind,
        tests=tests,
        meta=meta,
    )


def _object_in(text: str, column: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"{column} is {shown(text)}, needed an object or its JSON text") from error


def _kind(row: Mapping[str, Any], column: str) -> str:
    given = read_cell(row, column)
    if given is None:
        return "code" if is_code_row(row) else "math"
    name = read_label({"kind": given}, "kind") or "math"
    return _KINDS.get(name.lower(), name)


def _locate(
    row: Mapping[str, Any],
    recognised: Mapping[str, tuple[str, ...]],
    given: Mapping[str, str],
    required: tuple[str, ...],
) -> dict[str, str]:
    """The column of this row for each field; optional fields may be missing."""
    located: dict[str, str] = {}
    for field, usual in recognised.items():
        names = (given[field],) if field in given else usual
        present = [name for name in names if read_cell(row, name) is not None]
        if len(present) > 1:
            raise BadRowError(
                f"the {field} could be any of {', '.join(present)}; say which with columns: {{{field}: NAME}}"
            )
        if present:
            located[field] = present[0]
        elif field in given or field in required:
            raise missing_value(row, field, names)
    return located


def _answer(value: object, column: str) -> str:
    match value:
        case bytes() if value.isascii():
            return _answer(value.decode(), column)
        case str() if len(value) > _LONGEST_ANSWER:
            raise BadRowError(
                f"{column} has {len(value):,} characters, needed an answer of at most {_LONGEST_ANSWER:,}"
            )
        case str():
            text = checked_text(value, column)
            items = _texts_in(text)
            if items is not None and len(items) != 1:
                raise BadRowError(f"{column} is a list of {len(items)} texts, needed one answer: {shown(text)}")
            return text if items is None else checked_text(items[0], column)
        case [str() as only]:
            return _answer(only, column)
        case int() if not isinstance(value, bool):
            return _decimal_text(Decimal(value))
        case float() | Decimal() if value == value and abs(value) != math.inf:
            # Decimal keeps 142.0 from becoming "142.0", and 1e22 from becoming "1e+22", which no grader of LaTeX reads.
            return _decimal_text(value if isinstance(value, Decimal) else Decimal(repr(value)))
    raise BadRowError(f"{column} is {shown(value)}, needed text or a finite number")


def _decimal_text(number: Decimal) -> str:
    text = f"{number:f}"
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def _texts_in(text: str) -> list[str] | None:
    """The items of a list of texts written as JSON or by Python; None if it is none: `[1, 2]` is an interval."""
    if text[:1] != "[" or text[-1:] != "]":
        return None
    if quoted := _ONE_QUOTED.fullmatch(text):
        return [quoted[1]]
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return items if isinstance(items, list) and items and all(isinstance(item, str) for item in items) else None


def _final_answer(answer: str, *, has_hashes: bool) -> str:
    """The answer of a whole solution, which ends with `#### ANSWER` or has it in its last box; else the text itself."""
    if has_hashes and "####" in answer:
        return _after_hashes(answer)
    if "\\boxed" not in answer and "\\fbox" not in answer:
        return answer
    boxed = _last_box(answer)
    if not boxed:
        raise BadRowError(f"no whole box is in the answer {shown(answer)}, needed the final answer, or \\boxed{{...}}")
    return boxed


def _last_box(text: str) -> str:
    """What is in the last whole box; of nested ones in the outermost. Data does not import the graders' extraction."""
    found = ""
    starts: list[int | None] = []
    for token in _BOX_OR_BRACE.finditer(text):
        if token[0] == "{":
            starts.append(None)
        elif token[0] == "}":
            start = starts.pop() if starts else None
            found = found if start is None else text[start : token.start()]
        elif token[0].endswith("{") and len(token[0]) > 2:
            starts.append(token.end())
    return found.strip()


def _after_hashes(answer: str) -> str:
    final = answer.rsplit("####", maxsplit=1)[1].strip()
    if not final:
        raise BadRowError("nothing follows the last #### of the answer, needed the final answer there")
    return final.replace(",", "") if _THOUSANDS.fullmatch(final) else final


def read_label(cells: Mapping[str, Any], field: str) -> str:
    """A short text such as an id or a source; numbers are taken too, empty when the row has none."""
    value = cells.get(field, "")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRowError(f"the {field} is {shown(value)}, needed text or a whole number")
    try:
        return checked_text(str(value), f"the {field}", may_be_empty=True).strip()
    except ValueError as error:
        raise BadRowError(f"the {field} is {shown(value)}, needed text or a number of fewer digits") from error
