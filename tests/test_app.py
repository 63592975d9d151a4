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
from ddcm_fast.codec import container
from ddcm_fast.errors import InputError
from ddcm_fast.models.loading import default_dtype

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
    *early, result = work.compress(field, picture, "product", {"bpp": 0.5})
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
    result = list(work.compress(model, small, "product", {"bpp": 0.5}))[-1]
    assert result.data == Codec.from_preset(model, "product").compress(small, bpp=0.5)


def test_a_prefix_is_a_coarser_picture(field):
    data = (GOLDEN / "product.ddcm").read_bytes()
    whole, part = (list(work.decompress(field, data, first))[-1].image for first in (1.0, 0.5))
    assert whole.size == part.size and whole.tobytes() != part.tobytes()


def test_a_run_that_nobody_waits_for_ends(field, picture, at_once):
    before = threading.active_count()
    run = work.compress(field, picture, "product", {"bpp": 0.5})
    next(run)
    run.close()
    assert threading.active_count() == before


def test_errors_and_limits_come_through(field, picture):
    with pytest.raises(InputError, match="pixels are more than 100"):
        list(work.compress(field, picture, "product", {"bpp": 0.5}, Limits(pixels=100)))
    with pytest.raises(DDCMError, match=r"not a \.ddcm file"):
        list(work.decompress(field, b"no file"))
    with pytest.raises(DDCMError, match="abacus"):
        list(work.compress(field, picture, "product", {"bpp": 0.5}, backend="abacus"))


def test_the_command_hands_its_options_to_the_page(monkeypatch):
    seen = {}
    monkeypatch.setattr(page, "gradio", lambda: None)
    monkeypatch.setattr(page, "launch", lambda built, **how: seen.update(how))
    monkeypatch.setattr(page, "build", lambda model, limits, backend: seen.update(limits=limits, backend=backend))
    options = ["--model", "gaussian-field", "--backend", "reference", "--max-evaluations", "9", "--force"]
    assert main(["app", *options, "--port", "8000", "-q"]) == 0
    assert seen["backend"] == "reference" and seen["limits"].evaluations == 9 and seen["limits"].seconds == math.inf
    assert seen["server_port"] == 8000 and seen["limits"].pixels == 512**2
    for words, pixels in ((["--max-side", "64"], 64**2), (["--max-pixels", "5000"], 5000)):
        assert main(["app", *options, *words, "-q"]) == 0 and seen["limits"].pixels == pixels


def test_rivals_are_the_largest_that_fit(picture):
    for rival in work.rivals(picture, 1500):
        assert rival.size <= 1500 and rival.psnr > 15 and rival.image.size == picture.size
    assert [rival.format for rival in work.rivals(picture, 0)][:2] == ["JPEG", "WEBP"]


def by_command_line(line):
    """Runs a command line that the page shows."""
    assert main([*shlex.split(line)[1:], "-q"]) == 0


def test_the_command_lines_do_what_the_page_does(field, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture.save("my picture.png")
    for by_psnr, rate in ((False, {"bpp": 0.5}), (True, {"psnr": 26.0})):
        *_, result = work.compress(field, picture, "product", rate)
        by_command_line(work.compress_command(field, "there/my picture.png", "product", by_psnr, 0.5, 26.0))
        assert Path("my picture.ddcm").read_bytes() == result.data
    *_, part = work.decompress(field, result.data, 0.3)
    by_command_line(work.decompress_command(field, "my picture.ddcm", 30))
    assert Image.open("my picture-decoded.png").tobytes() == part.image.tobytes()


def test_a_command_line_says_how_the_model_was_loaded(tmp_path):
    bfloat, wide = (load_model("photo", dtype=dtype) for dtype in ("bfloat16", "float32"))
    own = default_dtype(wide.device)
    lines = {model.dtype: work.compress_command(model, None, "product", False, 0.25, 30.0) for model in (bfloat, wide)}
    assert "--dtype" not in lines[own] and all("--dtype" in line for dtype, line in lines.items() if dtype != own)
    file = tmp_path / "a.ddcm"
    file.write_bytes(Codec(bfloat, preset("ddcm", T=2)).compress(Image.new("RGB", (16, 16))))
    assert "--dtype" not in work.decompress_command(bfloat, str(file), 100)
    assert "--dtype float32" in work.decompress_command(wide, str(file), 100)


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

    app = page.build(field, Limits(pixels=64**2))
    _, url, _ = page.launch(app, prevent_thread_lock=True, quiet=True)
    yield Client(url, verbose=False)
    app.close()


def asked(path, name="product", bpp=0.5):
    """What the compress tab is given."""
    from gradio_client import handle_file

    return (handle_file(path) if path else None), name, "a size", bpp, 30.0


@pytest.mark.slow
def test_compress_download_upload_again(client, field, picture, tmp_path):
    from gradio_client import handle_file

    picture.save(tmp_path / "a.png")
    both, others, said, file = client.predict(*asked(tmp_path / "a.png"), api_name="/compress")
    data = Path(file).read_bytes()
    assert container.read(data)[0].width == 64 and f"{len(data)} bytes" in said and Path(file).name == "a.ddcm"
    # What is shown is the very picture, enlarged, not coded once more.
    expected = Codec(field).decompress(data)
    pictures = [*both, others[0]["image"], others[1]["image"]]
    for shown, own in zip(pictures, [picture, expected, picture, expected], strict=True):
        assert Image.open(shown).resize(own.size, Image.Resampling.NEAREST).tobytes() == own.tobytes()
    shown, told = client.predict(handle_file(file), 100, api_name="/decompress")
    assert Image.open(shown).resize((64, 64), Image.Resampling.NEAREST).tobytes() == expected.tobytes()
    assert "100 %" in told


@pytest.mark.slow
def test_bad_and_large_files_are_one_line(client, picture, tmp_path):
    from gradio_client import handle_file

    (tmp_path / "bad.ddcm").write_bytes(b"no file")
    with pytest.raises(Exception, match=r"not a \.ddcm file"):
        client.predict(handle_file(tmp_path / "bad.ddcm"), 100, api_name="/decompress")
    picture.resize((65, 65)).save(tmp_path / "large.png")
    with pytest.raises(Exception, match="pixels"):
        client.predict(*asked(tmp_path / "large.png"), api_name="/compress")
    with pytest.raises(Exception, match="no picture yet"):
        client.predict(*asked(None), api_name="/compress")


@pytest.mark.slow
def test_cancel(client, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    job = client.submit(*asked(tmp_path / "a.png", "trellis", 1.0), api_name="/compress")
    while not job.status().code.name.startswith(("PROCESSING", "ITERATING", "FINISHED")):
        time.sleep(0.05)
    job.cancel()
    assert client.predict(*asked(tmp_path / "a.png"), api_name="/compress")[3]


@pytest.mark.slow
def test_no_file_is_left_behind(client, picture, tmp_path, monkeypatch):
    made = []
    kept = page._kept
    monkeypatch.setattr(page, "_kept", lambda folder, *args: made.append(folder) or kept(folder, *args))
    picture.save(tmp_path / "a.png")
    assert Path(client.predict(*asked(tmp_path / "a.png"), api_name="/compress")[3]).exists()
    assert len(made) == 1 and not made[0].exists()
