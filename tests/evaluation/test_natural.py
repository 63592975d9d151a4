"""The distance of natural statistics: what it fits, and that it sees what distortions do."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from ddcm_fast.cli import main
from ddcm_fast.errors import InputError
from ddcm_fast.evaluation import natural
from ddcm_fast.evaluation.sets import Pictures, compare


def texture(seed: int, side: int = 96) -> Image.Image:
    """A picture whose amplitudes fall with the frequency, as photographs' do."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / side)
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) * amplitude).real
    grey = np.clip(128 + 40 * field / field.std(), 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey] * 3, 2))


def patches(*images: Image.Image, side: int = 32) -> Pictures:
    return Pictures([image.copy for image in images], side)


@pytest.mark.parametrize(("power", "shape"), [(1.0, 1.0), (2.0, 2.0)])
def test_the_shape_of_a_known_distribution_is_found(power: float, shape: float) -> None:
    rng = np.random.default_rng(1)
    draws = rng.laplace(size=100_000) if power == 1 else rng.standard_normal(100_000)
    x = torch.tensor(draws, dtype=torch.float64, device="cpu")[None]
    found, left, right, center = natural._asymmetric_gaussian(x)
    assert found.item() == pytest.approx(shape, rel=0.03)
    scale = 1.0 if power == 1 else math.sqrt(2)
    assert left.item() == pytest.approx(scale, rel=0.03) and right.item() == pytest.approx(scale, rel=0.03)
    assert abs(center.item()) < 0.03


def test_one_side_may_be_wider() -> None:
    rng = np.random.default_rng(2)
    x = torch.tensor(rng.standard_normal((1, 100_000)), dtype=torch.float64, device="cpu")
    _, left, right, center = natural._asymmetric_gaussian(torch.where(x > 0, 3 * x, x))
    assert right.item() / left.item() == pytest.approx(3, rel=0.02) and center.item() > 1


def test_a_set_is_nothing_from_itself_and_further_the_more_it_is_blurred() -> None:
    images = [texture(i) for i in range(6)]
    distances = []
    for radius in (0.0, 0.5, 1.0, 2.0):
        blurred = [image.filter(ImageFilter.GaussianBlur(radius)) for image in images]
        distances.append(natural.distance(patches(*images), patches(*blurred)))
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances == sorted(distances) and distances[3] > 10 * distances[1] > 0
    other = natural.distance(patches(*images), patches(*[texture(100 + i) for i in range(6)]))
    assert other < distances[2]


def test_flat_patches_have_finite_statistics() -> None:
    flat = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8, device="cpu")
    assert torch.isfinite(natural.statistics(flat)).all() and natural.statistics(flat).shape == (2, 36)


def test_sets_of_one_have_no_distance_and_small_pictures_no_patch() -> None:
    one = [texture(1, 32).copy]
    assert compare(["patch-nss"], one, one, 32) == {"patch-nss": None}
    with pytest.raises(InputError, match="as large as a patch"):
        compare(["patch-nss"], one, one, 64)


def test_score_needs_no_package_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    for folder, radius in (("a", 0.0), ("b", 1.0)):
        (tmp_path / folder).mkdir()
        for i in range(3):
            texture(i).filter(ImageFilter.GaussianBlur(radius)).save(tmp_path / folder / f"{i}.png")
    command = ["score", str(tmp_path / "a"), str(tmp_path / "b"), "--metrics", "patch-nss", "--patch", "32", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["patch-nss"] > 0
