"""Models around models: all that they do not change is the inner model's. And what size each adapter makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from PIL import Image
from test_pipelines import CONDITIONS, CONFIG, image
from torch import Tensor

from ddcm_fast import Codec
from ddcm_fast.cli import main
from ddcm_fast.errors import ModelError
from ddcm_fast.models import DiffusionModel, TiledModel, wrap_pipeline
from ddcm_fast.models.wrapped import WrappedModel
from ddcm_fast.tasks.guidance import ClassifierGuided

#: What a wrapper is there to change.
CHANGED = {"predict", "predictor", "fingerprint", "at", "resolutions", "coarse", "sized"}


def public(cls: type) -> set[str]:
    return {name for name in (*vars(cls), *inspect.get_annotations(cls)) if not name.startswith("_")}


def test_everything_is_handed_on() -> None:
    assert public(DiffusionModel) - CHANGED == public(WrappedModel) - CHANGED - {"changes"}


class Same(WrappedModel):
    """Changes nothing."""

    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        return self.inner.predict(x, t, condition)

    def changes(self) -> str:
        return ""


def classify(x: Tensor, t: float) -> Tensor:
    return x.flatten(1)[:, :5] * (1 + t)


def tiled(model: DiffusionModel) -> DiffusionModel:
    return TiledModel(model, 8, 4)


def guided(model: DiffusionModel) -> DiffusionModel:
    return ClassifierGuided(model, classify, 2)


@pytest.mark.parametrize("wrap", [Same, tiled, guided])
@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_wrapped(name: str, wrap: Callable[[DiffusionModel], DiffusionModel]) -> None:
    """Attributes are the inner model's, whatever becomes of it, and files are the wrapper's own."""
    pipe = tiny_pipelines.build(name)
    model = wrap_pipeline(pipe)
    wrapper = wrap(model)
    pipe.to(torch.bfloat16)
    model.min_side, model.default_side = 8, 24
    with wrapper.using():
        assert wrapper.dtype == torch.bfloat16
    for attribute in inspect.get_annotations(DiffusionModel):
        if attribute != "name" or wrap is not tiled:
            assert getattr(wrapper, attribute) == getattr(model, attribute)
    pipe.to(torch.float32)
    condition = CONDITIONS.get(name)
    coded = Codec(wrapper, CONFIG).encode(image(16, 16), condition)[0]
    assert torch.equal(Codec(wrap(model)).decode(coded.data), coded.reconstruction)
    if wrap is Same:
        assert torch.equal(Codec(model).decode(coded.data), coded.reconstruction)
    else:
        with pytest.raises(ModelError, match="fingerprint"):
            Codec(model).decode(coded.data)


# ---- the size of what is generated ---------------------------------------------------------------

#: Pixels that the pipelines make where nobody says. Sana's always makes 1024, whatever its network was trained on.
PROMPT: dict[str, Any] = {"prompt": "a red fox", "output_type": "np", "num_inference_steps": 2}
CALLS: dict[str, dict[str, Any]] = {
    **{name: {"output_type": "np", "num_inference_steps": 2} for name in ("ddpm", "ldm", "consistency")},
    "dit": {"class_labels": [2], "output_type": "np", "num_inference_steps": 2},
    **{name: PROMPT for name in ("sd", "lcm", "sdxl", "sd3", "flux-dev")},
    **{name: {**PROMPT, "use_resolution_binning": False} for name in ("pixart-sigma", "pixart-alpha")},
}


@pytest.mark.parametrize("name", CALLS)
def test_default_side_is_the_pipelines_own(name: str) -> None:
    pipe = tiny_pipelines.build(name)
    model = wrap_pipeline(pipe)
    made = pipe(**CALLS[name]).images
    assert made.shape[1:3] == (model.default_side, model.default_side)
    assert tiled(model).default_side == model.default_side


def test_generate_makes_the_models_own_size(tmp_path: Path) -> None:
    tiny_pipelines.build("ddpm").save_pretrained(tmp_path / "model")
    args = ["--model", str(tmp_path / "model"), "--preset", "ddcm", "-K", "16", "-T", "2", "--device", "cpu"]
    assert main(["generate", *args, "--dtype", "float32", "--output-dir", str(tmp_path / "out"), "-q"]) == 0
    with Image.open(tmp_path / "out" / "0000.png") as made:
        assert made.size == (16, 16)
