import json
from pathlib import Path

import pytest

from priml.errors import ModelError
from priml.models.prm_card import PrmCard, read_card, write_card


def test_a_card_comes_back_as_it_was(tmp_path: Path):
    card = PrmCard(beta=0.05, reference="Qwen/Qwen2.5-7B", reference_sha256="abc", loss="ce")
    write_card(tmp_path, card)
    assert read_card(str(tmp_path)) == card


def test_a_model_from_elsewhere_has_none(tmp_path: Path):
    assert read_card(str(tmp_path)) is None
    assert read_card("some/model-on-the-hub") is None


@pytest.mark.parametrize("text", ["{", json.dumps({"beta": 1.0}), json.dumps([1])])
def test_a_damaged_card_is_refused_with_its_place(tmp_path: Path, text: str):
    (tmp_path / "implicit_prm.json").write_text(text)
    with pytest.raises(ModelError, match=r"implicit_prm\.json: not a note on an implicit PRM .* export the PRM again"):
        read_card(str(tmp_path))
