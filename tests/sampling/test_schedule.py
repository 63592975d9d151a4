"""The grids of timesteps, against those of the code that they are taken from."""

from __future__ import annotations

import numpy as np
import pytest

from ddcm_fast.codec.config import SCHEDULES
from ddcm_fast.errors import ConfigError
from ddcm_fast.models.gaussian_field import GaussianField
from ddcm_fast.sampling.schedule import diffc, for_scale, linspace, linspace_floor, plan, trailing

FIELD = GaussianField()
COUNTS = (1, 2, 3, 8, 12, 20, 30, 50, 100, 280, 999, 1000)


@pytest.mark.parametrize("count", COUNTS[1:])
def test_linspace_is_that_of_diffusers(count: int) -> None:
    """And so of the DDCM authors' code; of a single timestep numpy takes the cleanest, where nothing is left to do."""
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(count)
    assert linspace(FIELD, count) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("count", COUNTS)
def test_trailing_is_that_of_diffusers_but_for_rounding(count: int) -> None:
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(count)
    assert np.abs(np.subtract(trailing(FIELD, count), scheduler.timesteps.tolist())).max() <= (1000 % count > 0)


@pytest.mark.parametrize("count", COUNTS)
def test_the_grid_of_old_files_is_at_most_one_noisier(count: int) -> None:
    more = np.subtract(linspace_floor(FIELD, count), linspace(FIELD, count))
    assert set(more.tolist()) <= {0.0, 1.0}
    assert linspace_floor(FIELD, count)[0] == linspace(FIELD, count)[0] == 999


def test_numbers_in_files_stay_what_they_are() -> None:
    assert SCHEDULES == ("linspace-floor", "trailing", "kl", "diffc", "linspace")


def test_diffc_is_evenly_chosen() -> None:
    whole = diffc(FIELD, 162)
    assert (whole[0], whole[1], whole[-1]) == (999, 972, 1)
    assert diffc(FIELD, 20)[:3] == [whole[0], whole[8], whole[17]]  # 161 / 19 = 8.47, 16.95
    assert diffc(FIELD, 1) == [999]


@pytest.mark.parametrize("grid", [linspace, linspace_floor, trailing, diffc])
def test_more_steps_than_timesteps_are_refused(grid) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="it must be from 1 to"):
        grid(FIELD, 1001)


def test_smaller_pictures_need_fewer_steps() -> None:
    steps = plan(FIELD, linspace(FIELD, 50))
    noise = [step.sigma_t / step.alpha_t for step in steps]
    end = noise[max(i for i, step in enumerate(steps) if step.coded)]
    counts = []
    for scale in (1, 2, 4, 16, 64):
        first = for_scale(steps, scale)
        assert first[:-1] == steps[: len(first) - 1] and first[-1].index == len(first) - 1
        assert (first[-1].alpha_s, first[-1].sigma_s, first[-1].noise, first[-1].coded) == (1.0, 0.0, 0.0, False)
        assert noise[len(first) - 1] <= scale**0.5 * end < noise[len(first) - 2]
        counts.append(len(first))
    assert counts == sorted(counts, reverse=True) and counts[-1] < counts[1] < 50
    assert len(for_scale(plan(FIELD, [999.0]), 8)) == 1
