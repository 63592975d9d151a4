"""benchmarks/rd.py: BD-rates against closed forms, resuming; and what rate control takes a rule's bits to be worth."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddcm_fast import Codec, CodecConfig, load_model, preset
from ddcm_fast.codec.images import psnr
from ddcm_fast.codec.rate import image_curve, search_psnr, stop_for_bits
from ddcm_fast.errors import ConfigError, DDCMWarning

pytest.importorskip("torchmetrics")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def rd(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("rd")


def test_bd_rate_of_scaled_curves(rd) -> None:
    curve = [(0.1, 22.0), (0.2, 24.5), (0.35, 26.5), (0.5, 28.0)]
    assert rd.bd_rate(curve, curve) == pytest.approx(0, abs=1e-9)
    assert rd.bd_rate(curve, [(0.8 * bpp, quality) for bpp, quality in curve]) == pytest.approx(-20)
    assert rd.bd_rate(curve, [(bpp, quality + 20) for bpp, quality in curve]) is None  # no quality in common
    assert rd.bd_rate(curve, curve[:3]) is None


def test_means_are_over_the_images_that_have_every_setting(rd) -> None:
    rows = [
        {"system": "a", "setting": setting, "image": image, "bpp": bpp, "psnr": bpp + number}
        for number, image in enumerate(("x", "y", "z"))
        for setting, bpp in (("1", 1.0), ("2", 2.0))
    ][:-1]
    summary = rd.summarise(rows)
    assert summary["images"] == {"a": 2}
    assert [point["psnr"] for point in summary["means"]["a"]] == [1.5, 2.5]


def test_a_run_measures_everything_and_goes_on_where_it_stopped(rd, tmp_path: Path, monkeypatch, capsys) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.radial_gradient("L").convert("RGB").save(images / "one.png")
    output = tmp_path / "rd.json"
    command = ["rd.py", "--images", str(images), "--output", str(output), "--model", "gaussian-field", "--crop", "176"]
    command += ["--presets", "product", "--bpp", "0.2", "-T", "4", "--uniform-steps", "0"]
    monkeypatch.setattr(sys, "argv", command)
    assert rd.main() == 0
    first = json.loads(output.read_text())
    (row,) = [row for row in first["rows"] if row["system"] == "product"]
    assert 0.19 < row["bpp"] <= 0.2 and row["evaluations"] == 4 + 1 + 3 and 0 < row["efficiency"] < 5
    assert 0 < row["ms_ssim"] <= 1 and row["psnr"] > 15
    assert str(tmp_path) not in first["command"].replace(str(output), "")
    assert any(row["system"] == "JPEG" for row in first["rows"])
    monkeypatch.setattr(sys, "argv", [*command[:-8], "--presets", "turbo", *command[-6:]])
    assert rd.main() == 0
    second = json.loads(output.read_text())
    assert second["rows"][: len(first["rows"])] == first["rows"]
    assert [row["system"] for row in second["rows"][len(first["rows"]) :]] == ["turbo"]
    monkeypatch.setattr(sys, "argv", [*command, "--tail", "2"])
    with pytest.raises(SystemExit):
        rd.main()
    assert "remove it first" in capsys.readouterr().err


def worth(config: CodecConfig, step_bits: float) -> float:
    return config.rule_type.worth(config, step_bits)


def test_worth_of_bits_by_rule_and_rate() -> None:
    """More atoms a step are worth less with `threshold`; a group's argmax is worth more the larger K."""
    turbo, product = preset("turbo"), preset("product")
    rates = [worth(turbo, bits) for bits in (50.0, 400.0, 3000.0)]
    assert rates == sorted(rates, reverse=True) and 0.5 < rates[-1] < rates[0] < 0.85
    small = worth(preset("product", K=16), 400.0)
    assert small < worth(product, 400.0) < 0.92
    # One atom of K is the same choice for both rules.
    assert worth(preset("turbo", K=product.K), 18.0) == worth(product, 18.0)
    assert math.isfinite(worth(preset("turbo", K=1), 5.0))


def test_few_steps_stop_earlier_than_many() -> None:
    model = load_model("gaussian-field")
    x0 = model.draw(1, 32, 32)  # type: ignore[attr-defined]
    curve = image_curve(model, x0)
    stops = [stop_for_bits(model, curve, 1.0, steps) for steps in (4, 12, 48)]
    assert stops == sorted(stops, reverse=True) and stops[0] > stops[-1]
    assert stop_for_bits(model, curve, 2.0, 12) < stops[1]


def test_a_quality_that_more_bits_do_not_bring_is_an_error_and_not_a_wrong_file() -> None:
    tried = []

    def encode(bits: float) -> tuple[str, float]:
        tried.append(bits)
        return "file", 24.0 - bits / 5000

    with pytest.raises(ConfigError, match="nearest"):
        search_psnr(encode, 700.0, 30.0, 32768.0)
    assert len(tried) == len({round(bits) for bits in tried}) <= 5
    found = search_psnr(lambda bits: (bits, 10 * math.log10(bits)), 700.0, 30.0, 32768.0)
    assert found == pytest.approx(1000, rel=0.05)


def test_a_picture_unlike_photographs_stops_where_its_first_steps_can_follow() -> None:
    """A plain colour has all its information in the first steps, which get an average photograph's part of the bits."""
    model = load_model("photo")
    plain = torch.tensor([0.57, -0.53, -0.76]).view(3, 1, 1).expand(3, 64, 64)
    codec = Codec.from_preset(model, "product")
    coded = codec.encode(plain, bpp=0.35)[0]
    assert coded.bpp <= 0.35
    assert psnr(plain, coded.reconstruction) > 33  # 20 dB where the whole worth of the bits is counted on
    assert torch.equal(codec.decode(coded.data), coded.reconstruction)


def test_a_quality_nearly_met_is_said() -> None:
    steps = {700.0: 29.5}
    with pytest.warns(DDCMWarning, match="nearest to 30 dB"):
        found = search_psnr(lambda bits: (bits, steps.get(bits, 29.0 if bits < 800 else 30.6)), 700.0, 30.0, 32768.0)
    assert found == 700.0
