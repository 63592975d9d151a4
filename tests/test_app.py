"""The page of `ddcm app`: what it computes, and the page itself by Gradio's client."""

from __future__ import annotations

import math
import runpy
import shlex
import socket
import threading
import time
from pathlib import Path

import pictures
import pytest
import torch
from PIL import Image

from ddcm_fast import Codec, DDCMError, Limits, load_model, preset
from ddcm_fast.app import page, work
from ddcm_fast.app.work import Served
from ddcm_fast.cli import app as app_command
from ddcm_fast.cli import main
from ddcm_fast.cli.command import build_parser
from ddcm_fast.codec import container
from ddcm_fast.errors import InputError
from ddcm_fast.models.loading import wrap_pipeline
from ddcm_fast.sampling.condition import Condition

GOLDEN = Path(__file__).parent / "golden" / "files"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def field():
    return Served(load_model("gaussian-field"))


@pytest.fixture(scope="module")
def digits():
    return Served(load_model("digits"))


@pytest.fixture(scope="module")
def picture():
    return Image.effect_mandelbrot((64, 64), (-3, -2.5, 2, 2.5), 50).convert("RGB")


@pytest.fixture
def at_once(monkeypatch):
    """A picture of every prediction that someone has time for."""
    monkeypatch.setattr(work, "_PACE", 0.0)


def results(shown):
    """The results alone, of what the page shows while it computes: how many pictures come too depends on load."""
    return [one for one in shown if isinstance(one, work.Result)]


# ---- what is computed ----------------------------------------------------------------------------


def test_files_are_those_of_the_codec_and_pictures_come_before(field, picture, at_once):
    *early, result = work.compress(field, picture, "product", {"bpp": 0.5})
    assert result.data == Codec(field.model, preset("product")).compress(picture, bpp=0.5)
    assert early and all(one.size == picture.size for one in early)
    *early, again = work.decompress(field, result.data)
    assert early and again.image.tobytes() == result.image.tobytes()
    assert 8 * len(result.data) <= 0.5 * 64 * 64 and result.psnr is not None


@pytest.mark.slow
def test_averaged_pictures_do_not_change_the_file(at_once):
    """The built-in model predicts on smaller pictures where noise is high, and its curve depends on the size."""
    model = load_model("photo", dtype="float32")
    small = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    result = list(work.compress(Served(model), small, "product", {"bpp": 0.5}))[-1]
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
        list(work.compress(Served(field.model, limits=Limits(pixels=100)), picture, "product", {"bpp": 0.5}))
    with pytest.raises(DDCMError, match=r"not a \.ddcm file"):
        list(work.decompress(field, b"no file"))
    with pytest.raises(DDCMError, match="abacus"):
        list(work.compress(Served(field.model, backend="abacus"), picture, "product", {"bpp": 0.5}))


def test_pictures_on_the_way_have_the_size_of_the_result(field, at_once):
    odd = Image.linear_gradient("L").resize((45, 37)).convert("RGB")
    *early, result = work.compress(field, odd, "product", {"bpp": 1.0})
    *late, _ = work.decompress(field, result.data)
    assert early and late and {one.size for one in [*early, *late]} == {odd.size}


def test_generated_images_come_one_by_one(digits, at_once):
    found = list(work.generate(digits, 3, 8, 5, Condition(label=3), K=16, T=10))
    images = results(found)
    assert len(images) == 3 and len({one.data for one in images}) == 3
    first = next(i for i, one in enumerate(found) if isinstance(one, work.Result))
    assert 0 < first < len(found) - 3  # pictures on the way, then the image, then the others'
    for one in images:
        assert Codec(digits.model).decompress(one.data).tobytes() == one.image.tobytes()


def test_an_edit_needs_a_target_and_no_second_encoding(digits, monkeypatch):
    image = Image.linear_gradient("L").resize((8, 8))
    seven, one = Condition(label=7), Condition(label=1, guidance_scale=3.0)
    first, second = results(work.edited(digits, image, seven, one, 5, K=16, T=10))
    assert first.data == Codec(digits.model, preset("ddcm", K=16, T=10)).compress(image, seven)
    monkeypatch.setattr(Codec, "encode", lambda *args: pytest.fail("it is coded again"))
    again, other = results(work.edited(digits, first, seven, one, 0, K=16, T=10))
    assert again is first and other.data != second.data
    with pytest.raises(DDCMError, match="needs a target"):
        list(work.edited(digits, image, seven, Condition(), 5, K=16, T=10))
    with pytest.raises(DDCMError, match="t_edit is 11"):
        list(work.edited(digits, image, seven, one, 11, K=16, T=10))


def test_what_models_can_be_told(field, digits):
    for served, takes in ((field, (False, False)), (digits, (True, False))):
        assert (served.takes_label, served.takes_prompt) == takes and not served.needs_label
    assert (field.guidance, digits.guidance, digits.target_guidance) == (1.0, 1.0, 3.0)


@pytest.fixture(scope="module")
def fox():
    """A text-to-image model."""
    pytest.importorskip("transformers")
    import tiny_pipelines

    return wrap_pipeline(tiny_pipelines.build("sd"), "tiny/sd")


def test_a_text_model_takes_a_prompt(fox):
    served = Served(fox)
    assert (served.takes_label, served.takes_prompt, served.needs_label) == (False, True, False)
    assert served.guidance > 1 and served.target_guidance == served.guidance
    line = work.generate_command(served, 1, 64, 0, Condition("-a red fox's", guidance_scale=2.5), K=64, T=100)
    args = build_parser().parse_args(shlex.split(line)[1:])
    assert (args.model, args.prompt, args.guidance_scale) == ("tiny/sd", "-a red fox's", 2.5)


def test_the_command_hands_its_options_to_the_page(monkeypatch):
    seen = {}
    monkeypatch.setattr(page, "gradio", lambda: None)
    monkeypatch.setattr(page, "launch", lambda built, **how: (seen.update(how), "http://there/", None))
    monkeypatch.setattr(app_command, "stay", lambda page: None)
    names = "limits", "backend", "words"
    monkeypatch.setattr(page, "build", lambda *args: seen.update(zip(names, args[1:], strict=True)))
    options = ["--model", "gaussian-field", "--backend", "reference", "--max-evaluations", "9", "--force"]
    assert main(["app", *options, "--port", "8000", "-q"]) == 0
    assert seen["backend"] == "reference" and seen["limits"].evaluations == 9 and seen["limits"].seconds == math.inf
    assert seen["server_port"] == 8000 and seen["limits"].pixels == 512**2
    assert seen["words"] == []
    for words, pixels in ((["--max-side", "64"], 64**2), (["--max-pixels", "5000"], 5000)):
        assert main(["app", *options, *words, "-q"]) == 0 and seen["limits"].pixels == pixels
    assert main(["app", *options, "--device", "cpu", "--dtype", "float32", "--trust", "-q"]) == 0
    assert seen["words"] == ["--device", "cpu", "--dtype", "float32", "--trust"]


def test_rivals_are_the_largest_that_fit(picture):
    for rival in work.rivals(picture, 1500):
        assert rival.size <= 1500 and rival.psnr > 15 and rival.image.size == picture.size
    assert [rival.format for rival in work.rivals(picture, 0)][:2] == ["JPEG", "WEBP"]


def by_command_line(line):
    """Runs a command line that the page shows."""
    assert main([*shlex.split(line)[1:], "-q"]) == 0


def test_the_command_lines_do_what_the_page_does(field, digits, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture.save("-my picture.png")
    for rate in ({"bpp": 0.5}, {"psnr": 26.0}):
        *_, result = work.compress(field, picture, "product", rate)
        by_command_line(work.compress_command(field, "there/-my picture.png", "product", rate))
        assert Path("-my picture.ddcm").read_bytes() == result.data
    *_, part = work.decompress(field, result.data, 0.3)
    by_command_line(work.decompress_command(field, "-my picture.ddcm", 30))
    assert Image.open("-my picture-decoded.png").tobytes() == part.image.tobytes()

    for condition in (None, Condition(label=3, guidance_scale=2.5)):
        asked = digits, 2, 8, 5, condition
        by_command_line(work.generate_command(*asked, K=16, T=10))
        made = results(work.generate(*asked, K=16, T=10))
        assert [Path(f"out/{i:04d}.ddcm").read_bytes() for i in range(2)] == [one.data for one in made]
    asked = Condition(label=3, guidance_scale=1.0), Condition(label=1, guidance_scale=3.0), 5
    made[0].image.save("three.png")
    by_command_line(work.edit_command(digits, "there/three.png", *asked, K=16, T=10))
    first, second = results(work.edited(digits, made[0].image, *asked, K=16, T=10))
    assert Path("out/three.ddcm").read_bytes() == first.data
    assert Path("out/three_1_5.ddcm").read_bytes() == second.data


def test_a_command_line_says_how_the_model_was_loaded(tmp_path):
    bfloat, wide = (load_model("photo", dtype=dtype) for dtype in ("bfloat16", "float32"))
    served = Served(wide, ("--dtype", "float32"))
    assert "--model photo --dtype float32" in work.compress_command(served, None, "product", {"bpp": 0.25})
    file = tmp_path / "a.ddcm"
    file.write_bytes(Codec(bfloat, preset("ddcm", T=2)).compress(Image.new("RGB", (16, 16))))
    assert "--dtype" not in work.decompress_command(Served(bfloat), str(file), 100)
    assert "--dtype float32" in work.decompress_command(served, str(file), 100)


def test_without_gradio_one_line_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main(["app", "-q"]) == 2
    assert "pip install 'ddcm-fast[app]'" in capsys.readouterr().err


def test_what_cannot_be_served_is_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = {
            ("--port", str(taken.getsockname()[1])): "choose another --port",
            ("--port", "70000"): "it must be from 1 to 65535",
            ("--host", "192.0.2.1"): "an address of this machine",
            ("--host", "no such host"): "an address of this machine",
            ("--max-side", "5"): "it must be from 16 to 4096",
        }
        for given, says in words.items():
            assert main(["app", *given]) == 2
            said = capsys.readouterr().err
            assert says in said and given[1] in said and said.count("\n") == 1


# ---- the Space -----------------------------------------------------------------------------------

SPACE = Path(__file__).parents[1] / "examples" / "space"


def test_the_card_names_what_the_hub_asks_for():
    _, head, text = (SPACE / "README.md").read_text("utf-8").split("---\n", 2)
    card = dict(line.split(": ", 1) for line in head.splitlines())
    assert card["sdk"] == "gradio" and (SPACE / card["app_file"]).is_file() and text.strip().startswith("# ddcm-fast")
    assert card.keys() >= {"title", "emoji", "colorFrom", "colorTo", "sdk_version", "license"}
    assert len(card["short_description"]) <= 60  # the hub refuses more
    least = card["sdk_version"].rsplit(".", 1)[0]
    assert f'app = ["gradio>={least}"]' in (SPACE.parents[1] / "pyproject.toml").read_text()
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line[0] not in "#-"] == ["torch", "ddcm-fast[app]"]


def test_the_space_serves_the_page(monkeypatch):
    seen = {}
    monkeypatch.setattr(page, "build", lambda model, limits: seen.update(model=model, limits=limits))
    monkeypatch.setattr(page, "launch", lambda built: seen.update(launched=True))
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    assert seen["model"].name == "photo" and seen["limits"].pixels == 256**2 and seen["launched"]


# ---- the page ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(field):
    pytest.importorskip("gradio")
    from gradio_client import Client

    app = page.build(field.model, Limits(pixels=64**2))
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
    # What is shown is the very picture, not coded once more.
    expected = Codec(field.model).decompress(data)
    pictures = [*both, others[0]["image"], others[1]["image"]]
    for shown, own in zip(pictures, [picture, expected, picture, expected], strict=True):
        assert Image.open(shown).tobytes() == own.tobytes()
    shown, told = client.predict(handle_file(file), 100, api_name="/decompress")
    assert Image.open(shown).tobytes() == expected.tobytes()
    assert "100 %" in told


@pytest.mark.slow
def test_bad_and_large_files_are_one_line(client, picture, tmp_path):
    from gradio_client import handle_file

    (tmp_path / "bad.ddcm").write_bytes(b"no file")
    with pytest.raises(Exception, match=r"not a \.ddcm file"):
        client.predict(handle_file(tmp_path / "bad.ddcm"), 100, api_name="/decompress")
    (tmp_path / "large.png").write_bytes(pictures.png(8193, 8193, 8, 0, []))
    with pytest.raises(Exception, match="8193x8193 pixels are more than"):
        client.predict(*asked(tmp_path / "large.png"), api_name="/compress")
    with pytest.raises(Exception, match="no picture yet"):
        client.predict(*asked(None), api_name="/compress")


@pytest.mark.slow
def test_a_larger_picture_is_made_smaller(client, field, picture, tmp_path):
    wide = picture.resize((120, 90))
    wide.save(tmp_path / "wide.png")
    both, _, said, file = client.predict(*asked(tmp_path / "wide.png"), api_name="/compress")
    smaller = wide.resize((73, 55), Image.Resampling.LANCZOS)
    assert Path(file).read_bytes() == Codec(field.model, preset("product")).compress(smaller, bpp=0.5)
    assert Image.open(both[0]).tobytes() == smaller.tobytes()
    assert said.endswith("bits a pixel; of the picture made 73x55, from 120x90")


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


@pytest.mark.slow
def test_generate_and_edit(client, digits, tmp_path):
    from gradio_client import handle_file

    asked = "digits", "3", "", 1.0, 3, 5, 16, 10, 64  # pixels a side, of models of any size
    shown, said, files = client.predict(*asked, api_name="/generate")
    made = results(work.generate(digits, 3, 8, 5, Condition(label=3, guidance_scale=1.0), K=16, T=10))
    assert [Path(file).read_bytes() for file in files] == [one.data for one in made] and "3 images" in said
    assert [Path(file).name for file in files] == ["0000.ddcm", "0001.ddcm", "0002.ddcm"]
    assert [Image.open(one["image"]).convert("L").tobytes() for one in shown] == [one.image.tobytes() for one in made]
    picture, _ = client.predict(handle_file(files[0]), 100, api_name="/decompress")  # of digits, not the page's model
    assert Image.open(picture).convert("L").tobytes() == made[0].image.tobytes()

    made[0].image.save(tmp_path / "three.png")
    told = "3", "", 1.0, "1", "", 3.0, 16, 10
    for start in (5, 5, 0):  # the second and third without coding the picture again
        shown, _, files = client.predict(
            "digits", handle_file(tmp_path / "three.png"), *told, start, api_name="/edit"
        )
        source, target = Condition(label=3, guidance_scale=1.0), Condition(label=1, guidance_scale=3.0)
        expected = results(work.edited(digits, made[0].image, source, target, start, K=16, T=10))
        assert [Path(file).read_bytes() for file in files] == [one.data for one in expected]
        assert len(shown) == 2
    drawn, _ = client.predict("digits", "7", "", 1.0, 10, api_name="/draw")
    assert Image.open(drawn).size == (8, 8)


def test_a_page_for_digits_has_them_once(digits):
    pytest.importorskip("gradio")
    lists = [part for part in page.build(digits.model).blocks.values() if getattr(part, "label", None) == "Model"]
    assert [part.choices for part in lists] == [[("digits", "digits")]] * 2


@pytest.mark.slow
def test_a_page_for_a_text_model(fox):
    pytest.importorskip("gradio")
    from gradio_client import Client

    app = page.build(fox, Limits(pixels=64**2))
    _, url, _ = page.launch(app, prevent_thread_lock=True, quiet=True)
    try:
        side = fox.default_side
        asked = "tiny/sd", "none", "a red fox", 2.0, 1, 5, 16, 10, side
        _, _, (file,) = Client(url, verbose=False).predict(*asked, api_name="/generate")
        expected = work.generate(Served(fox), 1, side, 5, Condition("a red fox", guidance_scale=2.0), K=16, T=10)
        assert Path(file).read_bytes() == list(expected)[-1].data
    finally:
        app.close()
