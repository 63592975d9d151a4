"""The objective of docs/applications.md steers the brightness."""

import re
from pathlib import Path

import torch

from ddcm_fast import Codec, load_model
from ddcm_fast.tasks import Subset

PAGE = Path(__file__).parents[2] / "docs" / "applications.md"
BRIGHTNESS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[-1]


def test_brightness_is_steered():
    names: dict = {}
    exec(compile(BRIGHTNESS, "applications.md", "exec"), names)
    codec = Codec.from_preset(load_model("digits", device="cpu"), "ddcm", K=64, T=100, batch_size=40)
    means = []
    for wanted in (-0.7, 0.3):
        chooser = Subset(lambda context, wanted=wanted: names["brightness"](context, wanted), size=8)
        coded = codec.sample(chooser, 8, 8, 40)
        means.append(float(torch.stack([c.reconstruction for c in coded]).mean()))
    assert means[0] < -0.45 and means[1] > means[0] + 0.2
