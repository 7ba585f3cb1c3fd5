"""What was set in a run, and which alarms fired."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from priml.config.document import COMMANDS
from priml.config.load import parse_config
from priml.config.schema import dotted
from priml.errors import ConfigError
from priml.report.logs import RunLog

ALARMS = {
    "process_return": "the process return rose while verified accuracy did not: the policy may be gaming the PRM",
    "pair_accuracy": "the PRM ranked fresh right responses below wrong ones: its rewards are noise",
    "length": "length and PRM reward were strongly correlated: responses are paid for their length",
    "entropy": "the policy's entropy fell to a small part of its first value: it hardly explores any more",
    "repetition": "responses repeated themselves",
    "unsolved": "no response was right: there is nothing to learn from",
    "accuracy": "accuracy fell by more than chance: training makes the policy worse. The learning rate may be too high",
}
"""What each alarm means, by its name in the settings."""


def fired_alarms(log: RunLog) -> list[dict[str, Any]]:
    """Name, meaning and steps of each alarm that fired."""
    fired: list[dict[str, Any]] = []
    for name, meaning in ALARMS.items():
        steps = [step for step, _ in log.column(f"alarm/{name}")]
        if steps:
            fired.append({"name": name, "meaning": meaning, "steps": steps})
    return fired


def changed_settings(command: str, settings: Mapping[str, Any]) -> list[str]:
    """`key: value` for each setting that is not the default; all, if an older priml wrote settings unknown to this."""
    given: Mapping[str, Any] = settings
    if schema := COMMANDS.get(command):
        with contextlib.suppress(ConfigError):
            cfg = parse_config(schema, dict(settings), where="config.yaml")
            given = cfg.model_dump(mode="json", exclude_defaults=True)
    return [f"{key}: {json.dumps(value, ensure_ascii=False, default=str)}" for key, value in dotted(given).items()]
