"""The frozen values that travel between the parts of priml. No torch here, and nothing else of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # `priml --help` waits for no array
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]

Write = Callable[[], None]
"""Writes one file of what was copied to host memory before. Any thread may call it, whatever trains meanwhile."""


class AddedToken(Protocol):
    """A token that a tokenizer finds in a text by its name."""

    content: str
    special: bool
    """One for control, such as the end of a turn."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that priml uses."""

    chat_template: str | Mapping[str, str] | None
    bos_token_id: int | None
    pad_token_id: int | None
    eos_token_id: int
    """`load_tokenizer` refuses a tokenizer without."""
    added_tokens_decoder: Mapping[int, AddedToken]

    def __len__(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int] | NDArray[np.int32], *, skip_special_tokens: bool) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...

    def convert_ids_to_tokens(self, ids: int) -> str: ...

    def get_added_vocab(self) -> dict[str, int]: ...

    def get_chat_template(self) -> str: ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str | list[dict[str, str]]]],
        *,
        chat_template: str,
        tokenize: bool,
        add_generation_prompt: bool,
        **kwargs: Any,
    ) -> str: ...

    def save_pretrained(self, save_directory: Path) -> object: ...


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat prompt."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, slots=True)
class CodeTests:
    """How a program is tested. Which fields count depends on `kind`; the others stay empty."""

    kind: Literal["stdin", "call", "assert_list", "check", "script"]
    """`stdin`: feed each input, compare the standard output. `call`: call `entry_point` with each list of positional
    arguments, compare the value. `assert_list`: each statement is a test. `check`: `test` defines `check(candidate)`.
    `script`: `test` runs as it stands."""
    inputs: tuple[Any, ...] = ()
    """`stdin`: texts; `call`: lists of positional arguments."""
    outputs: tuple[Any, ...] = ()
    """What is expected for each input."""
    entry_point: str | None = None
    """`call`, `check`: a function's name, or `Solution().method`."""
    setup: str = ""
    """Code that comes before the program (imports, helper classes) and that the tests may use, too."""
    stub: str = ""
    """`check`: signature and docstring that a response may continue instead of writing the whole function."""
    asserts: tuple[str, ...] = ()
    """`assert_list`: one statement each."""
    test: str = ""
    """`check`, `script`: the test program."""
    in_place: bool = False
    """`call`: what is compared is the first argument after the call."""
    is_wrapped: bool = False
    """`call`: each output is a list of one item, which is right without the list, too (as APPS has it)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A task with a verifiable answer, as it was read from its source."""

    id: str
    """Unique within its source; goes into the rollout files."""
    prompt: str | tuple[Message, ...]
    """The question: plain text, or a chat ready for the tokenizer's template."""
    answer: str
    """The gold answer the verifier compares with (LaTeX for mathematics, without `$`)."""
    source: str = ""
    """Where it came from, for breakdowns: a data set name, a task name."""
    kind: str = "math"
    """What sort of verifier it needs (the `ability` column of the Eurus schema)."""
    tests: CodeTests | None = None
    """What a program must pass, for problems of kind `code`."""
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Source-specific extras, passed to custom verifiers untouched."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem as the model sees it."""

    problem: Problem
    text: str
    """The rendered prompt (after the chat template)."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Neighbouring tokens of one origin: what one version of the policy sampled in one turn, or an observation.

    Its arrays are read-only, and 8 bytes a token together.
    """

    token_ids: NDArray[np.int32]
    """What the policy sampled ends with the EOS, if one was sampled."""
    logprobs: NDArray[np.float32]
    """Log-probability (nats) of each token under the sampling distribution (temperature applied). Empty for an
    observation."""
    weight_version: int | None
    """Version of the policy that sampled it. None: an observation, that is text from outside, put between turns."""

    def __post_init__(self) -> None:
        assert len(self.logprobs) == (len(self.token_ids) if self.is_trained else 0), "a log-prob per sampled token"
        for array in (self.token_ids, self.logprobs):
            array.setflags(write=False)

    @property
    def is_trained(self) -> bool:
        """Whether its tokens are trained on and paid: exactly those that the policy sampled."""
        return self.weight_version is not None


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """All that follows a prompt, in one or more turns. Equal to itself alone.

    Numbers per token (log-probs, step ends, rewards) count the trained tokens alone, as if observations were not there.
    """

    segments: tuple[Segment, ...]
    """In their order. At least one of them is trained on."""
    text: str
    """What the verifier reads: the text of the last turn, without special tokens."""
    finish_reason: FinishReason
    """`stop`: an EOS was sampled, and the environment was done if there is one; `length`: cut at the limit of tokens or
    turns."""
    sample: int
    """Number of the response among all that were drawn for its problem in this step, from 0: a problem that comes up
    again goes on counting, so that no two of its responses share their random numbers."""
    step_ends: NDArray[np.int32] | None = None
    """Indices of the trained tokens that end a step, if the sampler has found them already."""
    repetition: float | None = None
    """Share of its n-grams that occurred earlier in it (`train.alarms`), if it has been counted already."""
    turn_rewards: tuple[float, ...] | None = None
    """What the environment paid for each turn; None: nothing for any."""
    verdict: Verdict | None = None
    """Its environment's: on the whole, or undecided because it failed. None: the verifier's is asked for."""

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """All tokens, observations included."""
        return _concatenated([segment.token_ids for segment in self.segments])

    @property
    def turns(self) -> list[NDArray[np.int32]]:
        """The trained tokens of each turn. Observations stand between turns."""
        runs = groupby(self.segments, key=lambda segment: segment.is_trained)
        return [_concatenated([segment.token_ids for segment in run]) for is_trained, run in runs if is_trained]

    @property
    def trained_ids(self) -> NDArray[np.int32]:
        """The trained tokens of all turns."""
        return _concatenated(self.turns)

    @property
    def num_trained(self) -> int:
        """How many these are."""
        return sum(len(segment.token_ids) for segment in self.segments if segment.is_trained)

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """The sampler's log-probability of each trained token."""
        return _concatenated([segment.logprobs for segment in self.segments if segment.is_trained])

    @property
    def weight_version(self) -> int:
        """The oldest version of the policy that sampled any of it."""
        return min(segment.weight_version for segment in self.segments if segment.weight_version is not None)


def _concatenated(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if len(arrays) == 1:
        return arrays[0]
    import numpy as np

    return np.concatenate(arrays)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one response: correct, wrong with a reason, or undecided with a reason.

    `undecided` is only ever a failure on our side (a lost worker, a broken sandbox). What the response brought on
    itself - no answer, too long, over the time or memory limit - is wrong, so being ungradable never pays.
    """

    correct: bool | None
    """None: undecided."""
    score: float | None
    """The outcome in [0, 1] (a share of tests for code); None exactly when undecided."""
    reason: str
    """Short and stable, fit for counting: `equal`, `no answer`, `different value`, `time limit`, `worker lost`, ..."""
    answer: str | None = None
    """The answer extracted from the response, if there was one."""
    layer: str = ""
    """What decided: `extraction`, `limits`, `values`, `engine`, `tests`, `gold`, `nobody`; empty if it is not said."""

    def __post_init__(self) -> None:
        assert (self.correct is None) == (self.score is None), "a verdict has a score exactly when it is decided"

    @property
    def label(self) -> Literal["correct", "wrong", "undecided"]:
        """The verdict in one word, as it stands in rollout files and metrics."""
        if self.correct is None:
            return "undecided"
        return "correct" if self.correct else "wrong"

    @classmethod
    def right(cls, reason: str, answer: str | None = None, *, layer: str = "") -> Verdict:
        """Correct, with full score."""
        return cls(correct=True, score=1.0, reason=reason, answer=answer, layer=layer)

    @classmethod
    def wrong(cls, reason: str, answer: str | None = None, *, layer: str = "") -> Verdict:
        """Wrong through the response's own doing, with score 0."""
        return cls(correct=False, score=0.0, reason=reason, answer=answer, layer=layer)

    @classmethod
    def undecided(cls, reason: str, answer: str | None = None, *, layer: str = "") -> Verdict:
        """A failure of ours: no score at all."""
        return cls(correct=None, score=None, reason=reason, answer=answer, layer=layer)


@dataclass(frozen=True, slots=True)
class Group:
    """All responses to one prompt in one step, with their verdicts once they are judged."""

    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
    verdicts: tuple[Verdict, ...] = ()
    """One per trajectory; empty before verification."""

    @property
    def is_decided(self) -> bool:
        """Every response has a verdict and none is undecided."""
        return len(self.verdicts) == len(self.trajectories) and all(v.correct is not None for v in self.verdicts)

    @property
    def mean_outcome(self) -> float:
        """Mean score of a decided group, in [0, 1]."""
        scores = [v.score for v in self.verdicts if v.score is not None]
        return sum(scores) / len(scores)
