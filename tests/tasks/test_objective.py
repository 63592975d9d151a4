"""The examples of docs/applications.md and README.md run as they stand there, and the brightness objective steers."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddcm_fast import Codec, load_model
from ddcm_fast.cli.command import build_parser
from ddcm_fast.codebook import backends
from ddcm_fast.tasks import Subset

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text() for name in ("docs/applications.md", "README.md")}
EXAMPLES = {name: re.findall(r"```python\n(.*?)```", text, re.S) for name, text in PAGES.items()}
BRIGHTNESS = EXAMPLES["docs/applications.md"][-1]


@pytest.mark.parametrize("number", range(len(EXAMPLES["docs/applications.md"])))
def test_example_runs(number):
    torch.set_num_threads(1)
    exec(compile(EXAMPLES["docs/applications.md"][number], "applications.md", "exec"), {})


@pytest.mark.skipif(backends.available() == ["reference"], reason="a million atoms need a fused kernel")
@pytest.mark.parametrize("number", range(len(EXAMPLES["README.md"])))
def test_readme_example_runs(number, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    Image.effect_mandelbrot((64, 64), (-3, -2.5, 2, 2.5), 50).convert("RGB").save("photo.jpg")
    names = {"residual": torch.randn(1, 16384, generator=torch.Generator().manual_seed(0))}
    exec(compile(EXAMPLES["README.md"][number], "README.md", "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_options_they_are_shown_with(page):
    commands = re.findall(r"^    ddcm ((?:compress|decompress|info|generate|restore|edit) [^#\n]*)", PAGES[page], re.M)
    assert len(commands) > 4
    for command in commands:
        build_parser().parse_args(shlex.split(command))


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
