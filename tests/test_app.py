"""The page of `ddcm app`: what it computes, and the page itself by Gradio's client."""

from __future__ import annotations

import math
import shlex
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddcm_fast import Codec, DDCMError, Limits, load_model, preset
from ddcm_fast.app import page, work
from ddcm_fast.cli import main
from ddcm_fast.cli.command import build_parser
from ddcm_fast.codec import container
from ddcm_fast.errors import InputError

GOLDEN = Path(__file__).parent / "golden" / "files"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def field():
    return load_model("gaussian-field")


@pytest.fixture(scope="module")
def picture():
    return Image.effect_mandelbrot((64, 64), (-3, -2.5, 2, 2.5), 50).convert("RGB")


@pytest.fixture
def at_once(monkeypatch):
    """A picture of every prediction that someone has time for."""
    monkeypatch.setattr(work, "_PACE", 0.0)


# ---- what is computed ----------------------------------------------------------------------------


def test_files_are_those_of_the_codec_and_pictures_come_before(field, picture, at_once):
    *early, result = work.compress(field, picture, "product", 0.5)
    assert result.data == Codec(field, preset("product")).compress(picture, bpp=0.5)
    assert early and all(one.size == picture.size for one in early)
    *early, again = work.decompress(field, result.data)
    assert early and again.image.tobytes() == result.image.tobytes()
    assert 8 * len(result.data) <= 0.5 * 64 * 64 and result.psnr is not None


@pytest.mark.slow
def test_averaged_pictures_do_not_change_the_file(at_once):
    """The built-in model predicts on smaller pictures where noise is high, and its curve depends on the size."""
    model = load_model("photo", dtype="float32")
    small = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    result = list(work.compress(model, small, "product", 0.5))[-1]
    assert result.data == Codec.from_preset(model, "product").compress(small, bpp=0.5)


def test_a_prefix_is_a_coarser_picture(field):
    data = (GOLDEN / "product.ddcm").read_bytes()
    whole, part = (list(work.decompress(field, data, first))[-1].image for first in (1.0, 0.5))
    assert whole.size == part.size and whole.tobytes() != part.tobytes()


def test_a_run_that_nobody_waits_for_ends(field, picture, at_once):
    before = threading.active_count()
    run = work.compress(field, picture, "product", 0.5)
    next(run)
    run.close()
    assert threading.active_count() == before


def test_errors_and_limits_come_through(field, picture):
    with pytest.raises(InputError, match="pixels are more than 100"):
        list(work.compress(field, picture, "product", 0.5, Limits(pixels=100)))
    with pytest.raises(DDCMError, match=r"not a \.ddcm file"):
        list(work.decompress(field, b"no file"))
    with pytest.raises(DDCMError, match="abacus"):
        list(work.compress(field, picture, "product", 0.5, backend="abacus"))


def test_the_command_hands_its_options_to_the_page(monkeypatch):
    seen = {}
    monkeypatch.setattr(page, "gradio", lambda: None)
    monkeypatch.setattr(page, "launch", lambda built, **how: seen.update(how))
    monkeypatch.setattr(page, "build", lambda model, side, limits, backend: seen.update(limits=limits, backend=backend))
    options = ["--model", "gaussian-field", "--backend", "reference", "--max-evaluations", "9", "--force"]
    assert main(["app", *options, "--port", "8000", "-q"]) == 0
    assert seen["backend"] == "reference" and seen["limits"].evaluations == 9 and seen["limits"].seconds == math.inf
    assert seen["server_port"] == 8000


def test_rivals_are_the_largest_that_fit(picture):
    for rival in work.rivals(picture, 1500):
        assert rival.size <= 1500 and rival.psnr > 15 and rival.image.size == picture.size
    assert [rival.format for rival in work.rivals(picture, 0)][:2] == ["JPEG", "WEBP"]


def test_the_command_line_parses():
    args = build_parser().parse_args(shlex.split(work.command("my model", "trellis", 0.3))[1:])
    assert (args.model, args.preset, args.bpp) == ("my model", "trellis", 0.3)


def test_without_gradio_one_line_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main(["app", "-q"]) == 2
    assert "pip install 'ddcm-fast[app]'" in capsys.readouterr().err
    assert main(["app", "--max-side", "5"]) == 2


# ---- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(field):
    pytest.importorskip("gradio")
    from gradio_client import Client

    app = page.build(field, max_side=64)
    _, url, _ = page.launch(app, prevent_thread_lock=True, quiet=True)
    yield Client(url, verbose=False)
    app.close()


@pytest.mark.slow
def test_compress_download_upload_again(client, field, picture, tmp_path):
    from gradio_client import handle_file

    picture.save(tmp_path / "a.png")
    both, others, said, file, command = client.predict(
        handle_file(tmp_path / "a.png"), "product", 0.5, api_name="/compress"
    )
    data = Path(file).read_bytes()
    assert container.read(data)[0].width == 64 and len(both) == 2 and f"{len(data)} bytes" in said
    assert len(others) >= 2 and "--bpp 0.5" in command
    shown, told = client.predict(handle_file(file), 100, api_name="/decompress")
    assert Image.open(shown).convert("RGB").tobytes() == Codec(field).decompress(data).tobytes()
    assert "100 %" in told


@pytest.mark.slow
def test_bad_and_large_files_are_one_line(client, picture, tmp_path):
    from gradio_client import handle_file

    (tmp_path / "bad.ddcm").write_bytes(b"no file")
    with pytest.raises(Exception, match=r"not a \.ddcm file"):
        client.predict(handle_file(tmp_path / "bad.ddcm"), 100, api_name="/decompress")
    picture.resize((65, 65)).save(tmp_path / "large.png")
    with pytest.raises(Exception, match="pixels"):
        client.predict(handle_file(tmp_path / "large.png"), "product", 0.5, api_name="/compress")
    with pytest.raises(Exception, match="no picture yet"):
        client.predict(None, "product", 0.5, api_name="/compress")


@pytest.mark.slow
def test_cancel(client, picture, tmp_path):
    from gradio_client import handle_file

    picture.save(tmp_path / "a.png")
    job = client.submit(handle_file(tmp_path / "a.png"), "trellis", 1.0, api_name="/compress")
    while not job.status().code.name.startswith(("PROCESSING", "ITERATING", "FINISHED")):
        time.sleep(0.05)
    job.cancel()
    assert client.predict(handle_file(tmp_path / "a.png"), "product", 0.5, api_name="/compress")[3]
