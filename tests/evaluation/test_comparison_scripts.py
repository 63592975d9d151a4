"""benchmarks/rd.py, kodak_table.py and contact_sheet.py: what they ask of ddcm_fast.evaluation, and that they go on."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

for package in ("torchmetrics", "bjontegaard", "matplotlib"):
    pytest.importorskip(package)
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a script on two pictures, one of them in a folder below and smaller than the crop; gives its module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    Path("in/deep").mkdir(parents=True)
    for i, (name, size) in enumerate((("one", (48, 40)), ("deep/two", (24, 32)))):
        small = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(f"in/{name}.png")

    def call(script: str, *arguments: str, **replaced: Any) -> Any:
        module = importlib.import_module(script)
        for name, value in replaced.items():
            monkeypatch.setattr(module, name, value)
        common = ["--images", "in", "--model", "gaussian-field", "--crop", "32"]
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *common, *arguments])
        assert module.main() == 0
        return module

    return call


def test_rd(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    more = [
        "--output",
        "rd.json",
        "--classical",
        "jpeg",
        "--classical-bpp",
        "4",
        "--presets",
        "product",
        "turbo-paper",
        "--kind",
        "hadamard",
    ]
    more += ["-T", "3", "--bpp", "1", "2", "--uniform-steps", "6", "--uniform-K", "16"]
    run("rd", *more, "--plot", "rd.png")
    assert Image.open("rd.png").format == "PNG"
    found = json.loads(Path("rd.json").read_text())
    assert found["command"].startswith("python benchmarks/rd.py --images DIR --model gaussian-field")
    assert found["crop"] == 32 and found["model"].startswith("gaussian-field (")
    codecs = [point["codec"] for point in found["means"]]
    product, paper, own = "product:T=3:tail=1:kind=hadamard", "turbo-paper:kind=hadamard", "ddcm:K=16:T=6"
    assert codecs == ["jpeg"] + [product] * 2 + [paper] * 2 + [own] * 4
    assert {(row["width"], row["height"]) for row in found["rows"]} == {(32, 32), (24, 32)}  # nothing is padded
    ddcm = [point for point in found["means"] if point["codec"] == own]
    assert [point["rate"] for point in ddcm] == [1, 2, 4, 8] and all(point["images"] == 2 for point in ddcm)
    bits = [point["bpp"] for point in ddcm]
    assert bits == sorted(bits) and bits[0] < bits[-1]
    assert all(row["bpp"] <= row["rate"] for row in found["rows"] if row["codec"] == product)
    assert all(row["encode_cpu_seconds"] > 0 for row in found["rows"] if row["codec"] != "jpeg")

    rows = Path("runs/rd/rows.jsonl").read_text()
    run("rd", *more)
    assert Path("runs/rd/rows.jsonl").read_text() == rows  # nothing was measured again
    assert json.loads(Path("rd.json").read_text())["rows"] == found["rows"]
    assert "over 2 images" in capsys.readouterr().out


def test_kodak_table(run: Callable[..., Any]) -> None:
    codecs = ("ddcm:K=4", "ddcm:K=16", "pursuit:K=16:M=2:C=1")
    module = run("kodak_table", "--output", "table.json", "-T", "5", CODECS=codecs)
    found = json.loads(Path("table.json").read_text())
    assert [point["codec"] for point in found["means"]] == [*(f"{text}:T=5" for text in codecs), "jpeg"]
    assert {row["rate"] for row in found["rows"]} == {module.RATE}
    sizes = [row["bpp"] * row["width"] * row["height"] / 8 for row in found["rows"] if row["image"] == "one"]
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3]
    assert not any(row["fits"] for row in found["rows"])  # headers alone are longer here


def test_contact_sheet(run: Callable[..., Any]) -> None:
    replaced = {"RATES": {1.0: 1, 2.0: 2}, "PURSUIT": "pursuit:K=16:M={}:C=1:T=4"}
    run("contact_sheet", "--output", "sheet.png", "--pick", "deep/two", **replaced)
    sheet = Image.open("sheet.png")
    assert sheet.size == (5 * (24 + 6) + 6, 2 * (32 + 34 + 6) + 6)
    original = Image.open("in/deep/two.png")
    assert sheet.crop((6, 6, 30, 38)).tobytes() == original.tobytes()
    decoded = Image.open("runs/sheet/product:T=20:tail=1/2/deep/two.png")
    left, top = 6 + 4 * 30, 6 + 72
    assert sheet.crop((left, top, left + 24, top + 32)).tobytes() == decoded.tobytes()
