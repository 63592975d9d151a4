"""What an encoder aims at: the image less the detail below the noise at which coding ends, and when it is the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ddcm_fast import Codec, load_model, preset
from ddcm_fast.codec.aim import aim, aim_level, aims
from ddcm_fast.models.gaussian_field import GaussianField
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.schedule import Step

torch.set_num_threads(1)


@pytest.fixture
def field() -> GaussianField:
    model = load_model("gaussian-field")
    assert isinstance(model, GaussianField)
    return model


def steps_of(model: GaussianField, **settings: Any) -> list[Step]:
    return preset("product", K=64, T=6, atoms=80, **settings).steps(model)


def test_the_level_is_the_noisiest_that_is_ten_times_cleaner_than_the_end(field: GaussianField) -> None:
    steps = steps_of(field, stop=300, tail=3)
    level = aim_level(field, steps)
    assert level is not None and level < 300
    assert field.snr(level) >= 10 * field.snr(300.0) > field.snr(level + 1)


def test_fine_detail_is_left_out_as_by_a_wiener_filter(field: GaussianField) -> None:
    x0, steps = field.draw(2, 32, 32), steps_of(field, stop=300)
    level = aim_level(field, steps)
    assert level is not None
    goal = aim(field, x0, steps)
    q = field.snr(level) * field.power(32, 32)
    assert torch.allclose(goal, x0 - 0.7 * field._filter(x0.double(), 1 / (1 + q)).float(), atol=1e-5)
    # Each of a batch alone is the same.
    assert torch.equal(aim(field, x0[1:], steps), goal[1:])


def test_where_no_level_is_cleaner_the_image_itself_is_followed(field: GaussianField) -> None:
    x0 = field.draw(1, 16, 16)
    for steps in (preset("ddcm", T=5, K=16).steps(field), steps_of(field, stop=0)):
        assert aim_level(field, steps) is None and aim(field, x0, steps) is x0
    uncoded = [step.deterministic for step in steps_of(field, stop=300)]
    assert aim(field, x0, uncoded) is x0
    consistency = GaussianField()
    consistency.fresh_noise = True
    assert aim(consistency, x0, steps_of(field, stop=300)) is x0


def test_a_network_that_is_no_denoiser_of_one_image_is_not_followed_there(
    field: GaussianField, monkeypatch: pytest.MonkeyPatch
) -> None:
    x0, steps = field.draw(2, 16, 16), steps_of(field, stop=300)
    honest = field.predict

    right = aim(field, x0, steps)
    for wrong in (1.0, torch.nan):

        def predict(x: Tensor, t: float, condition: Any = None, wrong: float = wrong) -> tuple[Tensor, Tensor]:
            x0_hat, eps_hat = honest(x, t, condition)
            x0_hat[1] += wrong
            return x0_hat, eps_hat

        monkeypatch.setattr(field, "predict", predict)
        goal = aim(field, x0, steps)
        assert torch.equal(goal[0], right[0]) and torch.equal(goal[1], x0[1])


@pytest.mark.parametrize("name", ["product", "trellis", "turbo"])
def test_the_same_bits_bring_the_picture_nearer(
    field: GaussianField, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = 60 if name == "turbo" else 100
    settings: dict[str, Any] = {"K": 1024, "T": 10, "stop": 400, "tail": 1, "atoms": atoms}
    codec = Codec.from_preset(field, name, **settings, batch_size=8)
    images = field.draw(8, 32, 32, seed=3).clamp(-1, 1)
    aimed = codec.encode(images)
    monkeypatch.setattr("ddcm_fast.codec.codec.aim", lambda model, x0, *rest: x0)
    plain = codec.encode(images)
    assert [len(one.data) for one in aimed] == [len(one.data) for one in plain]

    def error(coded: list[Any]) -> float:
        pairs = zip(coded, images, strict=True)
        return sum(float((one.reconstruction - image).square().mean()) for one, image in pairs)

    assert error(aimed) < 0.98 * error(plain)
    assert torch.equal(codec.decode(aimed[0].data), aimed[0].reconstruction)


def test_guided_predictions_and_other_schedules_do_not_aim() -> None:
    assert aims(preset("product"), None) and aims(preset("trellis"), Condition("a fox", guidance_scale=1.0))
    assert not aims(preset("product"), Condition("a fox", guidance_scale=7.5))
    assert not any(aims(preset(name), None) for name in ("ddcm", "turbo", "turbo-paper", "diffc", "diffc-paper"))
    assert not aims(preset("trellis", tail=2), None)  # asked for texture


def test_it_takes_the_encoder_one_evaluation(field: GaussianField, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    honest = field.predict

    def predict(x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        seen.append(t)
        return honest(x, t, condition)

    monkeypatch.setattr(field, "predict", predict)
    codec = Codec.from_preset(field, "product", K=64, T=6, atoms=80, stop=300)
    coded = codec.encode(field.draw(1, 16, 16).clamp(-1, 1))[0]
    encoding, seen[:] = len(seen), []
    codec.decode(coded.data)
    assert encoding == len(seen) + 1
