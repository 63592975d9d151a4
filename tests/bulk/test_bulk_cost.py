"""What a run is foretold to take: that the parts are the plan's; benchmarks/bulk_cost.py says how right it is."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch

from ddcm_fast import Codec, load_model, preset
from ddcm_fast.bulk import cost
from ddcm_fast.bulk.cost import Cost, CostModel, at
from ddcm_fast.errors import ConfigError
from ddcm_fast.measure.timing import Timing
from ddcm_fast.models import DiffusionModel

torch.set_num_threads(1)


@cache
def photo() -> DiffusionModel:
    return load_model("photo", device="cpu", dtype="float32")


def codec(name: str, **settings: Any) -> Codec:
    return Codec(photo(), preset(name, **settings), exact=True)


def alone(height: int, width: int) -> int:
    return 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every measured call takes a second, after it was tried; their number."""
    calls = [0]

    def measured(work: Any, device: torch.device, seconds: float) -> Timing:
        work()
        calls[0] += 1
        return Timing(1.0, 1.0, 1)

    monkeypatch.setattr(cost, "measure", measured)
    return calls


def test_points_between_and_beyond() -> None:
    points = [(2.0, 10.0), (4.0, 20.0), (8.0, 60.0)]
    assert [at(points, x) for x in (1, 2, 3, 4, 6, 8, 16)] == [10, 10, 15, 20, 40, 60, 120]


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3, 4).plus(Cost(1, 1, 1, 1).times(2)) == Cost(3, 4, 5, 6) and Cost(1, 2, 3, 4).seconds == 6


def test_evaluations_and_searches_are_those_of_the_steps(clock: list[int]) -> None:
    model = CostModel(codec("ddcm", T=7, K=64), [(32, 32)], alone)
    found = model.image(32, 32)
    assert found.search == 6 and 0 < found.network <= 7 and found.rest > 0  # the last step is not coded
    shared = CostModel(codec("ddcm", T=7, K=64), [(32, 32)], lambda height, width: 4)
    assert shared.image(32, 32).search == pytest.approx(6 / 4)
    assert shared.image(64, 64).search == pytest.approx(6)  # with the area


def test_rates_met_by_a_schedule_of_ones_own_are_probed_first(clock: list[int]) -> None:
    by_hand = CostModel(codec("product", K=64, T=5, atoms=40), [(32, 32)], alone).image(32, 32)
    at_rate = CostModel(codec("product", K=64, T=5), [(32, 32)], alone, bpp=0.6).image(32, 32)
    assert by_hand.search == at_rate.search == 5
    assert by_hand.network < 7.1 < at_rate.network  # five coded steps, the last one, and what they aim at
    at_quality = CostModel(codec("product", K=64, T=5), [(32, 32)], alone, psnr=25.0).image(32, 32)
    assert at_quality.search == 15


def test_large_pictures_are_foretold_from_smaller_ones(clock: list[int]) -> None:
    model = CostModel(codec("ddcm", T=2, K=4), [(1024, 1024), (32, 48), (2048, 1024)], alone)
    assert set(model._evaluations) == {32 * 48, 512 * 512}
    assert set(model._searches) == {32 * 48}  # a second there is too long for more
    small, large = model.image(512, 512), model.image(1024, 1024)
    assert (small.network, large.network) == (2, 5)  # the first step is taken on an averaged picture
    assert model.image(64, 48).search == pytest.approx(2 * model.image(32, 48).search)


def test_bytes_are_those_of_the_files() -> None:
    images = torch.zeros(1, 3, 32, 32)
    for one, bpp in ((codec("ddcm", T=4, K=64), None), (codec("trellis", T=4, K=256, C=4), 0.6)):
        config, size = one.planned(32, 32, bpp)
        file = one.encode(images, bpp=bpp)[0].data
        assert abs(size - len(file)) <= 1 and config.T == 4
        assert bpp is None or len(file) <= bpp * 32 * 32 / 8
    with pytest.raises(ConfigError, match="header alone"):
        codec("trellis").planned(32, 32, 0.01)
    more = codec("trellis").planned(256, 256, psnr=30.0)[1] / codec("trellis").planned(256, 256, psnr=25.0)[1]
    assert 1 < more < 20 and math.isfinite(more)
