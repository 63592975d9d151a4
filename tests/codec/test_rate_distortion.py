"""What rate control takes a rule's bits to be worth, and where it stops."""

from __future__ import annotations

import math

import pytest
import torch

from ddcm_fast import Codec, CodecConfig, load_model, preset
from ddcm_fast.codec.images import psnr
from ddcm_fast.codec.rate import image_curve, search_psnr, stop_for_bits
from ddcm_fast.errors import ConfigError, DDCMWarning


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
