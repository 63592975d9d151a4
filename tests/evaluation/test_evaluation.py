"""Codecs side by side: rates are met, rows are kept, bad images are rows; what reports make of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddcm_fast.bulk.sources import Item
from ddcm_fast.codec import container
from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.evaluation import codecs, metrics, report
from ddcm_fast.evaluation.codec import Coded, ImageCodec
from ddcm_fast.evaluation.run import crop, evaluate
from ddcm_fast.models.gaussian_field import GaussianField


def picture(seed: int = 0, width: int = 96, height: int = 64) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def item(name: str, image: Image.Image | None) -> Item:
    buffer = io.BytesIO(b"" if image is not None else b"no picture")
    if image is not None:
        image.save(buffer, "PNG")
    return Item(name, name, buffer.getvalue)


class Halves(ImageCodec):
    """A codec whose files are as long as the rate asks, and whose pictures are nearer for more bits."""

    def __init__(self, name: str, step: int) -> None:
        super().__init__(name, {"step": step})
        self.calls, self._step = 0, step

    def code(self, image: Image.Image, bpp: float) -> Coded:
        self.calls += 1
        grid = self._step / bpp
        near = np.round(np.asarray(image, dtype=np.float32) / grid) * grid
        data = bytes(int(bpp * image.width * image.height / 8))
        return Coded(data, Image.fromarray(near.clip(0, 255).astype(np.uint8)), 0.1, 0.2)


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif", "jxl"])
def test_classical_codecs_meet_a_rate(name: str) -> None:
    try:
        codec = codecs.make(name)
    except ImportError:
        pytest.skip(f"{name} is not here")
    image = picture()
    before = None
    for bpp in (1.0, 2.0, 4.0):
        coded = codec.code(image, bpp)
        assert coded.fits and 8 * len(coded.data) <= bpp * 96 * 64 and coded.image.size == image.size
        assert before is None or len(coded.data) >= len(before.data)
        before = coded
    low = codec.code(image, 0.001)
    assert not low.fits and low.data == codec._encode(image, codec._levels[0])


def test_presets_decode_what_they_coded() -> None:
    codec = codecs.make("trellis:T=3:stop=300", GaussianField())
    coded = codec.code(picture(), 0.5)
    assert 0.45 < 8 * len(coded.data) / (96 * 64) <= 0.5 and coded.image.size == (96, 64)


def test_a_rate_of_steps_ends_where_there_are_no_more() -> None:
    model = GaussianField()
    codec = codecs.make("ddcm:K=256", model)
    image = picture(width=32, height=32)
    assert codec.name == "ddcm:K=256" and codec.settings["K"] == 256
    met, most = codec.code(image, 0.5), codec.code(image, 24.0)
    assert 0.4 < 8 * len(met.data) / 1024 <= 0.5
    assert len(most.data) > 2 * len(met.data) and most.fits
    steps = container.read(most.data)[0].config.T
    assert steps == len(model.training_timesteps())


def test_steps_that_are_given_are_kept() -> None:
    model, image = GaussianField(), picture(width=32, height=32)
    codec = codecs.make("ddcm:K=256:T=7", model)
    low, high = codec.code(image, 0.01), codec.code(image, 8.0)
    assert low.data == high.data and container.read(low.data)[0].config.T == 7
    assert (low.fits, high.fits) == (False, True) and high.encode_cpu_seconds is not None
    # Of the others the rate is met with these steps.
    assert 0.4 < 8 * len(codecs.make("product:T=7", model).code(image, 0.5).data) / 1024 <= 0.5


def test_sheets_begin_with_the_originals(tmp_path: Path) -> None:
    rows = evaluate([item("a", picture())], [Halves("b", 8)], [1.0], metrics.Pairs(["psnr"]), tmp_path, progress=False)
    sheet = Image.open(io.BytesIO(report.sheet(rows, tmp_path, lambda name: picture())))
    assert sheet.size == (2 * (96 + 6) + 6, 64 + 34 + 6 + 6)
    assert sheet.crop((6, 6, 102, 70)).tobytes() == picture().tobytes()
    assert (
        report.caption("x", 0.25, 30.0) == "x\n0.250 bpp, 30.00 dB" and report.caption("x", 1, None) == "x\n1.000 bpp"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gif", "unknown codec 'gif'"),
        ("ddcm:K", "'K' of the codec"),
        ("ddcm:K=many", "K"),
        ("ddcm:beauty=3", "unknown setting 'beauty'"),
        ("jpeg:quality=3", "'jpeg' takes no settings"),
    ],
)
def test_codecs_that_are_none(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        codecs.split(text)


def test_rows_are_kept_and_bad_images_are_rows(tmp_path: Path) -> None:
    items = [item("a", picture(1)), item("bad", None), item("deep/b", picture(2))]
    pairs = metrics.Pairs(["psnr", "ms-ssim"])

    def run(step: int = 8) -> tuple[list[dict[str, Any]], int]:
        codec = Halves("halves", step)
        return evaluate(items, [codec], [0.5, 1.0], pairs, tmp_path, 64, progress=False), codec.calls

    rows, calls = run()
    assert calls == 4 and [row["image"] for row in rows if "error" in row] == ["bad", "bad"]
    good = [row for row in rows if "error" not in row]
    assert {row["bpp"] for row in good} == {0.5, 1.0} and all(row["width"] == row["height"] == 64 for row in good)
    assert all(row["psnr"] > 20 and row["ms-ssim"] is None for row in good)  # too small for five scales
    assert Image.open(tmp_path / "halves/0.5/deep/b.png").size == (64, 64)
    again, calls = run()
    assert calls == 0 and again == rows
    _, calls = run(step=4)  # another codec under the same name
    assert calls == 4
    (tmp_path / "halves/1/a.png").unlink()
    torn = (tmp_path / "rows.jsonl").read_text()[:-30]
    (tmp_path / "rows.jsonl").write_text(torn)
    rows, calls = run(step=4)
    assert calls == 2
    again, calls = run(step=4)  # the torn line spoiled none that came after it
    assert calls == 0 and again == rows


def test_crops_pad_nothing() -> None:
    image = picture(width=96, height=64)
    assert crop(image, None) is image and crop(image, 32).size == (32, 32) and crop(image, 80).size == (80, 64)
    assert crop(image, 32).tobytes() == image.crop((32, 16, 64, 48)).tobytes()


def points(name: str, factor: float, metric: str = "psnr") -> list[dict[str, Any]]:
    return [
        {"codec": name, "rate": r, "bpp": factor * r, metric: 20 + 6 * np.log2(r * 8), "encode_seconds": 1.0,
         "decode_seconds": 1.0, "images": 1, "over": 0}
        for r in (0.125, 0.25, 0.5, 1.0, 2.0)
    ]  # fmt: skip


def test_bd_rates_of_known_curves() -> None:
    pytest.importorskip("bjontegaard")
    found = report.bd_rates([*points("a", 1), *points("b", 0.8), *points("short", 1)[:3]])
    assert found["b"]["a"] == pytest.approx(-20, abs=0.1) and found["a"]["b"] == pytest.approx(25, abs=0.1)
    assert "short" not in found
    apart = [{**p, "psnr": p["psnr"] + 40} for p in points("c", 1)]
    assert report.bd_rates([*points("a", 1), *apart]) == {}


def test_reports_read_by_others() -> None:
    rows = [
        {"key": "k", "image": image, "codec": "a", "rate": 0.5, "bpp": bpp, "fits": True, "psnr": psnr, "ms-ssim": None,
         "encode_seconds": 1.0, "decode_seconds": 3.0}
        for image, bpp, psnr in (("x", 0.4, 30.0), ("y", 0.5, 20.0))
    ]  # fmt: skip
    rows.append({"key": "l", "image": "z", "codec": "a", "rate": 0.5, "error": "it is none"})
    (mean,) = report.means(rows, ["psnr", "ms-ssim"])
    assert mean["bpp"] == pytest.approx(0.45) and mean["psnr"] == 25 and mean["images"] == 2 and mean["ms-ssim"] is None
    written = report.compressai([mean], "a", ["psnr", "ms-ssim"], "how")
    assert written["results"]["psnr-rgb"] == [25] and written["results"]["bpp"] == [mean["bpp"]]
    read = list(csv.DictReader(io.StringIO(report.table(rows).decode())))
    assert len(read) == 3 and read[2]["error"] == "it is none" and read[0]["psnr"] == "30.0" and "key" not in read[0]
    shown = Image.open(io.BytesIO(report.curves([*points("a", 1), *points("b", 0.8)], ["psnr"])))
    assert shown.format == "PNG" and shown.width > 300


def test_metrics_of_pairs() -> None:
    pairs = metrics.Pairs(["psnr", "ms-ssim"])
    image = picture(width=200, height=180)
    same = pairs(image, image)
    assert same["psnr"] is None and same["ms-ssim"] == pytest.approx(1)
    other = pairs(image, image.point(lambda v: v ^ 1))
    assert other["psnr"] == pytest.approx(48.13, abs=0.01) and 0.9 < other["ms-ssim"] < 1
    with pytest.raises(InputError, match="200x180 and 96x64"):
        pairs(image, picture())
    with pytest.raises(ConfigError, match="unknown metric 'beauty'"):
        metrics.Pairs(["beauty"])


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ddcm_fast.cli import main

    monkeypatch.chdir(tmp_path)
    Path("in/deep").mkdir(parents=True)
    picture(1).save("in/a.png")
    picture(2).save("in/deep/b.png")
    Path("in/bad.png").write_text("years of notes")
    command = ["eval", "in", "--output", "out", "--codecs", "jpeg,trellis:T=3", "--bpp", "2,1", "--crop", "64"]
    command += ["--model", "gaussian-field"]
    assert main(command) == 3
    out, err = capsys.readouterr()
    assert out.count(" bpp ") == 4 and "1 of 3 images failed" in err
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["failed"] == ["bad"] and len(summary["means"]) == 4
    assert Image.open("out/sheet.png").format == "PNG"
    assert json.loads(Path("out/trellis:T=3.json").read_text())["results"]
    rows = Path("out/rows.jsonl").read_text()
    assert main([*command, "-q"]) == 3 and Path("out/rows.jsonl").read_text() == rows
    capsys.readouterr()
    assert main(["score", "out/jpeg/2", "out/trellis:T=3/2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pairs"] == 2 and facts["unpaired"] == 0 and 10 < facts["psnr"] < 60
    for wrong, says in (
        (["score", "in", "none"], "no folder"),
        (["score", "in", "out"], "no image of in"),
        (["score", "in", "in", "--metrics", "beauty"], "unknown metric"),
        (["eval", "in", "--output", "new", "--codecs", "gif"], "unknown codec"),
        (["eval", "in", "--output", "new", "--bpp", "0"], "--bpp is '0'"),
        (["eval", "in", "--output", "new", "--crop", "0"], "--crop is 0"),
        (["eval", "none", "--output", "new"], "No such file"),
        (["eval", "in", "--output", "in/a.png"], "name a folder"),
    ):
        assert main(wrong) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1 and not Path("new").exists()
