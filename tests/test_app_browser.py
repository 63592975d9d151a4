"""The page as a visitor meets it: driven in Chromium without a window."""

from __future__ import annotations

import shlex
import threading
import time
from pathlib import Path

import pictures
import pytest
import torch
from browser import Browser, missing
from PIL import Image

from ddcm_fast import Codec, Limits, load_model
from ddcm_fast.app import page, work
from ddcm_fast.cli import main
from ddcm_fast.codec import container

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

SIDE = 64
MOST = 128**2


@pytest.fixture(scope="module")
def photo():
    return load_model("photo", dtype="float32")


@pytest.fixture(scope="module")
def address(photo):
    pytest.importorskip("gradio", reason="the page needs gradio")
    torch.set_num_threads(1)
    app = page.build(photo, Limits(pixels=MOST), options=("--dtype", "float32"))
    _, url, _ = page.launch(app, prevent_thread_lock=True, quiet=True)
    yield url
    app.close()


@pytest.fixture(scope="module")
def window(address, tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.close()


@pytest.fixture
def browser(window, address, tmp_path, monkeypatch):
    """The page, opened anew; the current folder is empty but for a picture."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    Image.effect_mandelbrot((SIDE, SIDE), (-3, -2.5, 2, 2.5), 50).convert("RGB").save("my picture.png")
    window.open(address)
    return window


def by_command_line(browser, name):
    """Runs the command line that the page shows."""
    words = shlex.split(browser.text(name), comments=True)
    assert words[0] == "ddcm" and main([*words[1:], "-q"]) == 0


def running():
    return [thread for thread in threading.enumerate() if thread.name == work.THREAD]


def test_compress_compare_download_and_upload_again(browser, photo):
    browser.upload("compress-picture", Path("my picture.png").resolve())
    browser.press("compress-start")
    said = browser.wait(lambda: "bytes" in (text := browser.text("compress-said")) and text)
    file = browser.download("compress-file")
    data = file.read_bytes()
    assert file.name == "my picture.ddcm" and f"{len(data)} bytes" in said and 8 * len(data) <= 0.25 * SIDE**2
    by_command_line(browser, "compress-command")
    assert Path("my picture.ddcm").read_bytes() == data
    # Original and result under the slider, and both beside the other formats, in their own pixels.
    assert browser.sizes("#compress-both img") == [(SIDE, SIDE)] * 2
    rivals = work.rivals(Image.open("my picture.png"), len(data))
    assert len(browser.sizes("#compress-others .grid-wrap img")) == 2 + len(rivals)
    captions = [one.text for one in browser.all("#compress-others .caption-label")]
    assert captions[0] == "original" and [one.split(":")[0] for one in captions[1:4]] == ["trellis", "JPEG", "WEBP"]

    browser.tab("Decompress")
    browser.upload("decompress-file", file)
    browser.press("decompress-start")
    said = browser.wait(lambda: "pixels" in (text := browser.text("decompress-said")) and text)
    assert said == f"{SIDE}x{SIDE} pixels from 100 % of {len(data)} bytes"
    assert browser.sizes("#decompress-picture img") == [(SIDE, SIDE)]
    by_command_line(browser, "decompress-command")
    decoded = Codec(photo).decompress(data)
    assert Image.open("my picture-decoded.png").tobytes() == decoded.tobytes()
    assert browser.boxes("#decompress-picture img")[0][2] > 2 * SIDE  # enlarged, to be seen


def test_a_larger_picture_is_made_smaller_and_the_page_says_so(browser, photo):
    wide = Image.linear_gradient("L").resize((200, 150)).convert("RGB")
    wide.save("wide.png")
    browser.upload("compress-picture", Path("wide.png").resolve())
    notice = browser.wait(lambda: browser.find("#compress-size").text)
    assert "200x150 pixels" in notice and "made 144x108" in notice
    assert browser.text("compress-command").splitlines()[0] == "# all 200x150 pixels, the page makes it 144x108"
    browser.press("compress-start")
    browser.wait(lambda: "made 144x108, from 200x150" in browser.text("compress-said"))
    assert browser.sizes("#compress-both img") == [(144, 108)] * 2
    by_command_line(browser, "compress-command")  # takes it whole
    header, _ = container.read(Path("wide.ddcm").read_bytes())
    assert (header.width, header.height) == wide.size
    browser.upload("compress-picture", Path("my picture.png").resolve())
    browser.wait(lambda: not browser.all("#compress-size"))


@pytest.mark.parametrize("size", [(160, 40), (40, 160), (128, 128)])
def test_original_and_result_lie_on_each_other(browser, size):
    Image.linear_gradient("L").resize(size).convert("RGB").save("a.png")
    browser.upload("compress-picture", Path("a.png").resolve())
    browser.press("compress-start")
    browser.wait(lambda: "bytes" in browser.text("compress-said"))
    assert browser.sizes("#compress-both img") == [size] * 2
    first, second = browser.boxes("#compress-both img")
    assert first == second and first[2] > size[0]


def test_generate_and_edit_digits(browser):
    browser.tab("Generate")
    browser.choose("generate-model", "digits")
    browser.choose("generate-label", "3")
    browser.fill("generate-count", "2")
    browser.fill("generate-seed", "7")
    options = "--label 3 --guidance-scale 1 -K 64 -T 100 -n 2 --draw-seed 7"
    browser.wait(lambda: options in browser.text("generate-command"))
    browser.press("generate-start")
    browser.wait(lambda: "2 images" in browser.text("generate-said"))
    assert browser.sizes("#generate-shown .grid-wrap img") == [(8, 8)] * 2
    by_command_line(browser, "generate-command")
    assert browser.download("generate-files").read_bytes() == Path("out/0000.ddcm").read_bytes()

    browser.tab("Edit")
    browser.press("edit-start")
    assert "there is no picture yet" in browser.errors()
    browser.upload("edit-picture", Path("out/0001.png").resolve())
    browser.choose("edit-label", "3")
    browser.choose("edit-target-label", "8")
    browser.wait(lambda: "--target-label 8 --target-guidance 3 --t-edit 70" in browser.text("edit-command"))
    browser.press("edit-start")
    browser.wait(lambda: "edited" in browser.text("edit-said"))
    assert browser.sizes("#edit-shown .grid-wrap img") == [(8, 8)] * 2
    browser.press("edit-draw")
    browser.wait(lambda: "drawn.png" in browser.text("edit-command"))
    Path("bad.png").write_bytes(b"no picture" * 10)
    browser.upload("edit-picture", Path("bad.png").resolve())
    browser.press("edit-start")
    assert browser.errors().endswith("it must be one of PNG, JPEG, WEBP, TIFF, BMP, DIB, GIF, PPM, AVIF, JPEG2000, QOI")


def test_a_quality_in_the_place_of_a_rate(browser):
    browser.upload("compress-picture", Path("my picture.png").resolve())
    browser.find("#compress-by input[value='a quality']").click()
    browser.wait(lambda: "--psnr 30" in browser.text("compress-command"))
    assert "my picture.png" in browser.text("compress-command")


def test_bad_files_are_one_line_on_the_page(browser):
    Path("bad.png").write_bytes(b"no picture" * 10)
    Path("bad.ddcm").write_bytes(b"no file")
    Path("large.png").write_bytes(pictures.png(8193, 8193, 8, 0, []))
    browser.press("compress-start")
    assert "there is no picture yet" in browser.errors()
    says = {"bad.png": "cannot read the file as an image", "large.png": "8193x8193 pixels are more than"}
    for name, text in says.items():
        browser.upload("compress-picture", Path(name).resolve())
        browser.press("compress-start")
        said = browser.errors()
        assert text in said and "/" not in said.replace("size/", "") and browser.text("compress-said") == ""
    browser.tab("Decompress")
    browser.upload("decompress-file", Path("bad.ddcm").resolve())
    browser.press("decompress-start")
    assert "not a .ddcm file" in browser.errors() and browser.text("decompress-said") == ""


def test_stop_and_leaving_end_the_run(browser, address, monkeypatch):
    """Each prediction takes long, so that a run which nobody ends would go on for minutes."""
    predict = work.Watched.predict
    monkeypatch.setattr(work.Watched, "predict", lambda *args: (time.sleep(2), predict(*args))[1])
    for leave in (lambda: browser.press("compress-stop"), lambda: browser.driver.get("about:blank")):
        browser.open(address)
        browser.upload("compress-picture", Path("my picture.png").resolve())
        browser.press("compress-start")
        browser.wait(lambda: running() and browser.text("compress-said") == "running ...")
        leave()
        browser.wait(lambda: not running())
        if browser.driver.current_url != "about:blank":
            assert browser.text("compress-said") == "stopped"
    browser.open(address)
    monkeypatch.setattr(work.Watched, "predict", predict)
    browser.upload("compress-picture", Path("my picture.png").resolve())
    browser.press("compress-start")
    data = browser.download("compress-file").read_bytes()
    assert container.read(data)[0].width == SIDE


def test_nothing_is_recorded_or_asked_of_other_machines(browser, address):
    browser.tab("Decompress")
    assert "Runs" not in browser.find("footer").text and "Gradio" in browser.find("footer").text
    asked = browser.asked()
    assert asked and [url for url in asked if not url.startswith(address)] == []
