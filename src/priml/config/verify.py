"""Settings of `priml verify`."""

from __future__ import annotations

from pathlib import Path

from priml.config.base import Settings
from priml.config.data import RowSettings
from priml.config.graders import CodeVerifier, MathVerifier, MixedVerifier, Verify


class VerifyConfig(RowSettings):
    """Responses with golds in a file, to be graded one by one."""

    path: Path
    """The file, .jsonl, .jsonl.gz, .json or .parquet: a `response` (or `completion`) and a `gold` (or an `answer`, or
    tests) in each row. Rollouts of `priml train` are such files."""
    verify: Verify = MixedVerifier(kind="mixed", kinds={"math": MathVerifier(), "code": CodeVerifier()})
    """How they are graded."""


class PairConfig(Settings):
    """One response and one gold, given on the command line."""

    verify: Verify = MathVerifier()
    """How it is graded."""
