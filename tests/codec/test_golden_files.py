"""Files of every preset, made before: they decode to what they did, and the encoder still makes them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcm_fast.codec.images import to_pil

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "files"
sys.path.insert(0, str(FOLDER))
import make as golden  # noqa: E402


@pytest.mark.parametrize("name", golden.SETTINGS)
def test_decodes_to_the_picture_it_did(name: str) -> None:
    if name.startswith("diffc"):
        pytest.importorskip("constriction")
    decoded = np.asarray(to_pil(golden.codec(name).decode((FOLDER / f"{name}.ddcm").read_bytes())), dtype=int)
    expected = np.asarray(Image.open(FOLDER / f"{name}.png"), dtype=int)
    assert np.abs(decoded - expected).max() <= 1  # another processor may round a grey level the other way


@pytest.mark.parametrize("name", golden.SETTINGS)
def test_is_still_what_the_encoder_makes(name: str) -> None:
    if name.startswith("diffc"):
        pytest.importorskip("constriction")
    assert golden.codec(name).encode(golden.picture())[0].data == (FOLDER / f"{name}.ddcm").read_bytes()
