"""Settings of problems: where they come from, and the text that a model reads of them."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, field_validator, model_validator

from priml.config.base import CustomFunction, Seed, Settings, Share, ShortForm, as_kind


class RowSettings(Settings):
    """How the rows of a file are read."""

    columns: dict[str, str] | None = None
    """For other schemas: which column is the `prompt`, the `answer` (and `id`, `source`, `response`)."""
    limit: PositiveInt | None = None
    """Read only the first rows."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """`skip` keeps the good rows and reports the bad ones."""


class FileSource(RowSettings):
    """Problems from a JSONL (.jsonl, .jsonl.gz) or parquet file."""

    kind: Literal["file"] = "file"
    path: Path
    """The file. Eurus / verl rows, and rows with a problem and an answer, are recognised."""


class HubSource(RowSettings):
    """Problems from the Hugging Face Hub (needs the `hub` extra)."""

    kind: Literal["hub"]
    dataset: str
    """Data set id or a local data set folder."""
    split: str = "train"
    """Which split."""
    name: str | None = None
    """Configuration of the data set."""
    revision: str | None = None
    """Commit or tag; pin it to be able to repeat the run."""


class CustomSource(Settings):
    """Problems from your own function."""

    kind: Literal["custom"]
    function: CustomFunction
    """`file.py:name` or `package.module:name`: called without arguments, it returns rows as those of a JSONL file."""


class _Task(Settings):
    """Procedural problems whose every step can be checked."""

    split: Literal["train", "held_out"] = "train"
    """Disjoint by construction: a hash of the problem decides."""
    count: PositiveInt = 4096
    """How many problems."""
    seed: Seed = 0
    """Which problems, and which facts the teacher gets wrong."""
    doubtful: Share = 0.2
    """Share of facts for which the SFT teacher has a fixed wrong value."""
    wrong: Share | Annotated[tuple[Share, ...], Field(min_length=1)] = 0.4
    """How often the teacher writes the wrong value of a doubtful fact; of several values each fact draws one. All
    steps of the teacher's answers are right about (1 - doubtful * wrong) ^ length of the time."""


class _StateTask(_Task):
    """What chain and walk share: states one after another, and some of them in a box."""

    length: PositiveInt
    boxed: PositiveInt = 1
    """How many states the box holds: after evenly spread steps, the last one always among them. With one, an answer
    with wrong steps is right by luck about once in as many states as there are. Raise it to take luck out; with
    boxed = length there is none. More than one needs `verify: {kind: exact}`."""
    fillers: NonNegativeInt = 0
    """Signs without a meaning between the states and the box. The teacher draws each from nine, and any of them is
    right. Raise it for tokens that stay uncertain and do not matter, as the wording of real answers."""

    @model_validator(mode="after")
    def _has_states_to_box(self) -> Self:
        if self.boxed > self.length:
            raise ValueError(f"boxed: found {self.boxed}, need at most length={self.length}, as a step has one state")
        return self

    @property
    def response_tokens(self) -> int:
        """Length of a complete response: states, fillers, the box in three parts, the end."""
        return self.length + self.fillers + self.boxed + 3


class ChainSource(_StateTask):
    """Chained arithmetic modulo `modulus`, `4KDA=`: each letter adds or multiplies, each result is written down."""

    kind: Literal["chain"]
    length: PositiveInt = 30
    """Operations per problem; a response has length + fillers + boxed + 3 tokens."""
    modulus: Annotated[int, Field(ge=3, le=36)] = 19
    """Number of states, one character each (0-9a-z); a prime above 13 makes every operation reversible."""


class WalkSource(_StateTask):
    """A walk through random permutations: one token per look-up, only the states in the box are checked."""

    kind: Literal["walk"]
    length: PositiveInt = 60
    """Look-ups per problem; a response has length + fillers + boxed + 3 tokens."""
    states: Annotated[int, Field(ge=2, le=36)] = 20
    """Number of states, one character each."""
    operations: Annotated[int, Field(ge=1, le=26)] = 26
    """Number of permutations, one letter each."""


class TinyCodeSource(_Task):
    """Short Python functions, `KDA=`: each letter stands for one line (`K=x+3`), tests judge the whole."""

    kind: Literal["tiny_code"]
    length: Annotated[int, Field(ge=1, le=50)] = 6
    """Lines per function, each with a letter of its own; a response has 34 tokens and 7 or 8 more for each line."""


def _from_text(text: str) -> dict[str, object]:
    """A source in short: a kind of procedural problems, a function of the user's own, or the path of a file."""
    is_file = not text.isidentifier() and not re.fullmatch(r"[^\n]+:[A-Za-z_]\w*", text)
    return {"kind": "file", "path": text} if is_file else as_kind(text)


Source = Annotated[
    FileSource | HubSource | CustomSource | ChainSource | WalkSource | TinyCodeSource,
    Field(discriminator="kind"),
    ShortForm("file", text=_from_text),
]


class PromptFormat(Settings):
    """How a problem becomes the text the model reads."""

    system: str | None = None
    """System message; rows that bring their own keep theirs."""
    suffix: str | None = None
    """Appended to the question, e.g. a request to box the answer."""
    text: str | None = None
    """A text with `{problem}` where the question goes. With `template: plain`, a prompt for a base model (Zero-RL),
    e.g. "Question: {problem}\\nAnswer:"."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """The tokenizer's chat template when it has one (`auto`), required (`chat`), or never (`plain`)."""
    template_kwargs: dict[str, JsonValue] | None = None
    """Arguments of the chat template, e.g. {enable_thinking: false} for Qwen3; use the same in evaluation."""
    date: datetime.date | None = None
    """The day in prompts whose chat template writes one. null: that of the run which made the model, or else the day
    on which this run begins; it is kept with the run."""
    max_prompt_tokens: PositiveInt = 1024
    """Longer prompts are dropped and counted."""

    @field_validator("text")
    @classmethod
    def _has_a_place_for_the_question(cls, text: str | None) -> str | None:
        if text is not None and text.count("{problem}") != 1:
            raise ValueError(f"found {text!r}, need {{problem}} in it once, where the question goes")
        return text


class Data(Settings):
    """Training problems."""

    train: Source
    """Where they come from."""
    prompt: PromptFormat = PromptFormat()
    """How they are rendered."""
