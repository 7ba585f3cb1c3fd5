"""What a page that is one file holds of the rollouts: every row without its tokens, and as many responses as fit."""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from priml.report.index import SCHEMA, Query, RolloutIndex
from priml.report.rollouts import Response, read_group
from priml.runs.folder import RunFolder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_RESPONSES = 2000
"""Responses whose tokens go inside."""
MAX_TOKENS = 400_000
"""And their tokens together: about 8 MB of page."""
NUM_STRANGE = 5
_KEPT_PER_DROPPED = 3
"""Kept prompts go inside before dropped ones, but dropped ones of every filter status do."""

Group = tuple[int, str]
"""The responses to a problem in a step."""
Shorten = Callable[[object], object]


@dataclass(frozen=True, slots=True)
class Inside:
    """Compressed blocks, each gzip in base64 of JSON."""

    columns: str
    """Of the whole table: texts as places in a list of their different values."""
    blocks: Mapping[str, str]
    """By step: its responses that are inside."""
    num_responses: int


def put_inside(index: RolloutIndex, folder: RunFolder, tokenizer: Tokenizer | None, shorten: Shorten) -> Inside:
    """The table and the chosen responses; `shorten` rounds what goes to JSON."""
    chosen = choose_groups(index)
    rows: dict[int, list[int]] = defaultdict(list)
    for step, problem in chosen:
        rows[step] += index.members(step, problem)
    blocks: dict[str, str] = {}
    for step in sorted(rows):
        responses = read_group(folder.rollouts(step), sorted(rows[step]), tokenizer)
        blocks[str(step)] = _packed(shorten([asdict(response) for response in responses]))
    columns = _columns(index.table)
    columns["inside"] = [int(row in chosen_rows) for row, chosen_rows in _with_sets(index.table, rows)]
    return Inside(_packed(columns), blocks, sum(map(len, rows.values())))


def choose_groups(index: RolloutIndex) -> list[Group]:
    """Groups of all steps and filter statuses in turn, those with the strangest responses first."""
    sizes: Counter[Group] = Counter()
    tokens: Counter[Group] = Counter()
    status: dict[Group, str | None] = {}
    table = index.table.select(["step", "problem_id", "tokens", "filter_status"]).to_pydict()
    for step, problem, length, filter_status in zip(*table.values(), strict=True):
        group = (step, problem)
        sizes[group] += 1
        tokens[group] += length or 0
        status.setdefault(group, filter_status)
    strange = [(row["step"], row["problem_id"]) for pay in ("wrong", "right") for row in _strange_rows(index, pay, 40)]
    chosen: list[Group] = []
    num_responses = num_tokens = 0
    for group in dict.fromkeys([*strange, *_in_turn(status)]):
        num_responses += sizes[group]
        num_tokens += tokens[group]
        if chosen and (num_responses > MAX_RESPONSES or num_tokens > MAX_TOKENS):
            break
        chosen.append(group)
    return chosen


def _in_turn(status: Mapping[Group, str | None]) -> list[Group]:
    seen: Counter[tuple[int, str | None]] = Counter()
    order: list[tuple[int, bool, Group]] = []
    for group, filter_status in status.items():
        place = seen[group[0], filter_status]
        seen[group[0], filter_status] += 1
        order.append((place // _KEPT_PER_DROPPED if filter_status == "kept" else place, filter_status != "kept", group))
    return [group for *_, group in sorted(order)]


def strangest(index: RolloutIndex, folder: RunFolder, tokenizer: Tokenizer | None) -> list[Response]:
    """The wrong responses that were paid most above others of their prompt, one of each problem."""
    found: list[Response] = []
    for row in _strange_rows(index, "wrong", NUM_STRANGE):
        found += read_group(folder.rollouts(row["step"]), [row["row"]], tokenizer)
    return found


def _strange_rows(index: RolloutIndex, verdict: str, count: int) -> list[dict[str, Any]]:
    """Of different problems: the wrong ones paid most above the mean of their prompt, or the right ones paid least."""
    wrong = verdict == "wrong"
    query = Query(pay="wrong_paid" if wrong else "right_unpaid", sort="above", descending=wrong, size=500)
    by_problem: dict[str, dict[str, Any]] = {}
    for row in index.find(query).rows:
        by_problem.setdefault(row["problem_id"], row)
    return list(by_problem.values())[:count]


def _with_sets(table: pa.Table, rows: Mapping[int, Sequence[int]]) -> list[tuple[int, set[int]]]:
    sets = {step: set(of_step) for step, of_step in rows.items()}
    pairs = zip(table["step"].to_pylist(), table["row"].to_pylist(), strict=True)
    return [(row, sets.get(step, set())) for step, row in pairs]


def _columns(table: pa.Table) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for field in SCHEMA:
        column = table[field.name].combine_chunks()
        if field.type == pa.string():
            coded = column.dictionary_encode()
            coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
            columns[field.name] = {"values": coded.dictionary.to_pylist(), "codes": coded.indices.to_pylist()}
        elif field.type == pa.float32():
            columns[field.name] = [None if x is None or x != x else float(f"{x:.4g}") for x in column.to_pylist()]
        else:
            columns[field.name] = column.to_pylist()
    return columns


def _packed(data: object) -> str:
    # A model can emit half of a surrogate pair, which has no UTF-8 form.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")
    return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()
