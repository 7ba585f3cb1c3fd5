"""What an implicit PRM needs besides its weights, kept in its model folder: a reference and a scale."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from priml.errors import ModelError
from priml.files import write_json

_FILE = "implicit_prm.json"
EXPORTED_POLICY = "../model"
"""The policy of a run folder, as the PRM beside it finds it."""


@dataclass(frozen=True, slots=True)
class PrmCard:
    """Reward of a token: `beta * (log-prob under the model of this folder - log-prob under the reference)`."""

    beta: float
    reference: str
    """A Hugging Face folder or Hub id: what the PRM was trained against. A PRM that was compared with a policy in
    training has that policy as the run left it, `EXPORTED_POLICY`."""
    reference_sha256: str | None
    """Digest of its weights (`weights_digest`), so that another model under the same name is noticed. None: not known
    when the card was written."""
    loss: str
    """What it was fitted with: `ce`, `dpo`, `kto` or `nca`; online `ce`, `pairwise`, `detached` or `likelihood`."""


def write_card(folder: Path, card: PrmCard) -> None:
    """Put it beside the weights."""
    write_json(folder / _FILE, asdict(card))


def read_card(source: str) -> PrmCard | None:
    """The card of a model folder, its reference found from here; None where there is none (a Hub id, or a model from
    elsewhere).

    Raises:
        ModelError: the file is damaged.
    """
    path = Path(source) / _FILE
    if not path.is_file():
        return None
    try:
        card = PrmCard(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: not a note on an implicit PRM ({error}); export the PRM again, or remove it"
        ) from None
    if card.reference == EXPORTED_POLICY:
        return replace(card, reference=str((Path(source) / EXPORTED_POLICY).resolve()))
    return card
