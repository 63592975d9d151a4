"""How many images are coded together where nobody said."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from ddcm_fast import Codec, load_model, preset
from ddcm_fast.bulk import batches
from ddcm_fast.bulk.batches import ENOUGH, batch_size
from ddcm_fast.codec.limits import Limits
from ddcm_fast.models import DiffusionModel


@cache
def photo() -> DiffusionModel:
    return load_model("photo", device="cpu", dtype="float32")


def codec(name: str, limits: Limits | None = None, **settings: Any) -> Codec:
    return Codec(photo(), preset(name, **settings), limits=limits)


@pytest.fixture(autouse=True)
def much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "free", lambda device: 1 << 40)


def test_a_search_through_generated_noise_is_shared() -> None:
    assert batch_size(codec("ddcm", K=65536), 64, 64) == batch_size(codec("ddcm", K=65536), 64, 64, bpp=0.25) == ENOUGH
    assert batch_size(codec("turbo"), 64, 64) == ENOUGH


def test_one_by_one_where_nothing_is_shared() -> None:
    assert batch_size(codec("ddcm", K=65536), 64, 64, psnr=30.0) == 1
    assert batch_size(codec("ddcm", K=4096), 64, 64) == 1
    assert batch_size(codec("turbo"), 64, 64, bpp=0.25) == 1
    assert batch_size(codec("trellis"), 64, 64) == batch_size(codec("product"), 64, 64) == 1


def test_as_many_as_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [batch_size(codec("ddcm", Limits(memory=size << 20), K=65536), 256, 256) for size in (8, 40, 4096)]
    assert few[0] == 1 < few[1] < few[2] == ENOUGH
    for there, expected in ((1 << 20, 1), (1 << 40, ENOUGH), (None, ENOUGH)):
        monkeypatch.setattr(batches, "free", lambda device, there=there: there)
        assert batch_size(codec("ddcm", K=65536), 256, 256) == expected
