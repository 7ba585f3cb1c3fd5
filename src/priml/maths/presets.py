"""The arithmetic in which the paper, the two published programs and ours differ, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from priml.names import PresetName

LooForm = Literal["paper", "authors"]


@dataclass(frozen=True, slots=True)
class Preset:
    """The arithmetic in which the paper and the programs differ. Vary one with `dataclasses.replace`."""

    score_scale: Literal["raw", "beta"]
    """Process rewards as the bare log-ratio d, or as beta * d."""
    process_norm: Literal["none", "max_return"]
    """`max_return`: process rewards divided by the largest reward-to-go of the batch (`batch_norm`)."""
    loo_form: LooForm
    """Which leave-one-out expression RLOO uses for process rewards (`process_returns`)."""
    whiten: bool
    """Whether advantages are whitened over all valid tokens of the batch."""
    drop_last_token: bool
    """Whether the process reward of the last token, usually EOS, is set to 0; it still counts in the length."""
    coef_process: float = 1.0
    """Factor of the process part."""
    coef_outcome: float = 1.0
    """Factor of the outcome part."""
    gamma_process: float = 1.0
    """Discount of process rewards."""
    gamma_outcome: float = 1.0
    """Discount of the outcome, which stands on the last token; 1 gives every token the same (as in the paper)."""
    gae_lambda: float = 1.0
    """How far `ppo` trusts rewards over values: 1 sums all rewards to come, 0 looks one token ahead."""


_AUTHORS = Preset(score_scale="raw", process_norm="max_return", loo_form="authors", whiten=True, drop_last_token=False)
PRESETS: dict[PresetName, Preset] = {
    # What a token adds to the chance of success is its implicit reward already: what later ones add is theirs.
    "priml": replace(_AUTHORS, gamma_process=0.0, coef_process=2.0),
    "paper": Preset(score_scale="beta", process_norm="none", loo_form="paper", whiten=False, drop_last_token=False),
    "authors": _AUTHORS,
    "verl": Preset(
        score_scale="beta",
        process_norm="max_return",
        loo_form="authors",
        whiten=True,
        drop_last_token=True,
        coef_process=5.0,
        coef_outcome=5.0,
    ),
}
