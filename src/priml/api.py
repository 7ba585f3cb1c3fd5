"""Runs in Python: `priml.train(...)` and `priml.open("runs/mine")`, with tables and token colours for notebooks."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from priml.errors import UsageError
from priml.report.rollouts import COLOURED, Response, colour_limits, load_tokenizer, read_group
from priml.runs.folder import RunFolder
from priml.runs.overview import Overview, read_overview

_LEVELS = 0.85
"""Opacity of a token at the end of the scale."""


class RunView:
    """A run on disk, finished or not. What is read is what is there at that moment.

    Tables are those of pyarrow: `.to_pandas()` and `polars.from_arrow` make data frames of them.
    """

    def __init__(self, folder: str | Path) -> None:
        """`folder`: a run folder.

        Raises:
            UsageError: it is none.
        """
        self.folder = RunFolder(Path(folder))
        self.overview()

    def overview(self) -> Overview:
        """State, steps, accuracy on held-out problems, settings."""
        return read_overview(self.folder)

    @property
    def summary(self) -> dict[str, Any] | None:
        """`summary.json`; None while the run is not finished."""
        path = self.folder.summary
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def metrics(self) -> pa.Table:
        """A row per step; null where a metric was not measured."""
        path = self.folder.metrics
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: [row.get(name) for row in rows] for name in names})

    def rollouts(self, step: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """A row per sampled response, dropped ones too, with the columns of the rollout files.

        `step`: of this step only. `columns`: only these; numbers per token are most of the bytes.

        Raises:
            UsageError: no such step is on record.
        """
        paths = [path for path in self.folder.rollout_files() if step is None or int(path.stem) == step]
        if not paths:
            raise UsageError(f"{self.folder}: found no rollouts" + (f" of step {step}" if step is not None else ""))
        return pa.concat_tables([pq.read_table(path, columns=columns) for path in paths], promote_options="default")

    def response(self, step: int, row: int) -> ResponseView:
        """One response with the numbers of its tokens; in a notebook its tokens are coloured by what they were paid.

        `row`: its place among the rollouts of the step.

        Raises:
            UsageError: there is none.
        """
        count = len(self.rollouts(step, columns=["sample"]))
        if not 0 <= row < count:
            raise UsageError(f"{self.folder}: found no response {row} in step {step}, need 0 to {count - 1}")
        tokenizer = load_tokenizer(self.folder.tokenizer / "tokenizer.json")
        [found] = read_group(self.folder.rollouts(step), [row], tokenizer)
        return ResponseView(found)

    def __repr__(self) -> str:
        run = self.overview()
        return f"priml.open({str(self.folder)!r})  # priml {run.command}, {run.state}, step {max(run.step, 0)}"


@dataclass(frozen=True)
class ResponseView:
    """A response; `numbers` has its values per token, `_repr_html_` shows one of them in colour."""

    response: Response
    by: str = "process_rewards"
    """Which numbers colour the tokens: `process_rewards`, `step_rewards` or `advantages`."""

    def coloured(self, by: str) -> ResponseView:
        """The same, coloured by other numbers.

        Raises:
            UsageError: there are none of this name.
        """
        if by not in COLOURED:
            raise UsageError(f"found {by!r}, need one of {', '.join(COLOURED)}")
        return ResponseView(self.response, by)

    @property
    def numbers(self) -> Mapping[str, tuple[float | None, ...] | None]:
        """Values per token, by the names of the rollout file's columns; None where the run never computed them."""
        return self.response.numbers

    def _repr_html_(self) -> str:
        """Text of a model, escaped; no script and no request, so it stays in an exported notebook."""
        values = self.numbers.get(self.by)
        limit = colour_limits([self.response]).get(self.by, 0.0)
        pieces = self.response.pieces or tuple(f"[{token}]" for token in self.response.token_ids)
        tokens = "".join(_token(piece, values[i] if values else None, limit) for i, piece in enumerate(pieces))
        texts = self.response.texts
        head = f"step {self.response.step}, {texts.get('verdict')}" + (
            f" ({reason})" if (reason := texts.get("reason")) else ""
        )
        scale = f"{self.by}: orange {-limit:.3g}, blue {limit:+.3g}" if limit else f"{self.by}: all 0, or not computed"
        return (
            f'<div style="font-family:monospace"><div style="color:gray">{html.escape(head)}; gold '
            f"{html.escape(str(texts.get('gold')))}; {scale}</div>"
            f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{tokens}</div></div>'
        )


def _token(piece: str, value: float | None, limit: float) -> str:
    """A token with its number, in the colours of the page: blue was paid, orange and underlined cost."""
    text = html.escape(piece)
    if value is None or not limit:
        return text
    strength = _LEVELS * min(1.0, abs(value) / limit)
    colour = "68,114,196" if value > 0 else "237,125,49"
    line = ";text-decoration:underline dotted" if value < 0 else ""
    return f'<span title="{value:+.4g}" style="background:rgba({colour},{strength:.2f}){line}">{text}</span>'


def open_run(folder: str | Path) -> RunView:
    """The run in a folder, for reading.

    Raises:
        UsageError: it is none.
    """
    return RunView(folder)


def train(settings: str | Path | Mapping[str, Any], *overrides: str) -> RunView:
    """`priml train`: a settings file, a run folder to resume, or the settings themselves; then `key=value` overrides.

    Raises:
        PrimlError: as the command would end, with the same message.
    """
    from priml.commands.train import run_training
    from priml.config.load import load_config, parse_overrides
    from priml.config.train import TrainConfig

    if isinstance(settings, Mapping):
        cfg = parse_overrides(TrainConfig, json.loads(json.dumps(settings, default=str)), overrides, where="settings")
    elif Path(settings).is_dir():
        if overrides:
            raise UsageError(f"{settings}: found {' '.join(overrides)}, but a resumed run keeps its settings")
        run_training(Path(settings))
        return RunView(settings)
    else:
        cfg = load_config(TrainConfig, Path(settings), overrides)
    run_training(cfg)
    return RunView(cfg.run_dir)
