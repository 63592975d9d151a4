"""The examples of docs/applications.md run as they stand there, and the brightness objective steers."""

import re
from pathlib import Path

import pytest
import torch

from ddcm_fast import Codec, load_model
from ddcm_fast.tasks import Subset

PAGE = Path(__file__).parents[1] / "docs" / "applications.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number):
    torch.set_num_threads(1)
    exec(compile(EXAMPLES[number], "applications.md", "exec"), {})


def test_brightness_is_steered():
    names: dict = {}
    exec(compile(EXAMPLES[-1], "applications.md", "exec"), names)
    codec = Codec.from_preset(load_model("digits", device="cpu"), "ddcm", K=64, T=100, batch_size=40)
    means = []
    for wanted in (-0.7, 0.3):
        chooser = Subset(lambda context, wanted=wanted: names["brightness"](context, wanted), size=8)
        coded = codec.sample(chooser, 8, 8, 40)
        means.append(float(torch.stack([c.reconstruction for c in coded]).mean()))
    assert means[0] < -0.45 and means[1] > means[0] + 0.2
