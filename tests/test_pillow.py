"""The plugin of Pillow: opened without a model, decoded when pixels are wanted, saved by keywords."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError

from ddcm_fast import Codec, Condition, DDCMError, load_model, preset
from ddcm_fast.codec import container
from ddcm_fast.errors import ConfigError, PillowError
from ddcm_fast.models.names import channels
from ddcm_fast.pillow import DDCMImageFile

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "files"
QUICK = {"preset": "ddcm", "T": 3, "K": 16}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def picture():
    return Image.linear_gradient("L").resize((32, 16)).convert("RGB")


def save(picture, name="a.ddcm", **keywords):
    picture.save(name, **{"model": "gaussian-field", **QUICK, **keywords})
    return Path(name)


def renamed(path, model):
    """The file with another model's name in its header."""
    header, payload = container.read(path.read_bytes())
    return container.write(container.Header(**{**vars(header), "model": model}), payload)


# ---- opening -------------------------------------------------------------------------------------

_LAZY = """
import sys
import ddcm_fast.pillow
from PIL import Image
with Image.open(sys.argv[1]) as image:
    print(image.format, image.get_format_mimetype(), image.mode, *image.size, image.header.config.rule)
print([name for name in ("torch", "numpy", "diffusers") if name in sys.modules])
"""


def test_size_and_mode_need_neither_model_nor_torch():
    command = [sys.executable, "-c", _LAZY, GOLDEN / "trellis.ddcm"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["DDCM image/x-ddcm RGB 16 16 trellis", "[]"]


def test_pixels_are_those_of_the_codec():
    for path in (GOLDEN / "ddcm.ddcm", GOLDEN / "product.ddcm"):
        with Image.open(path) as image:
            expected = Codec(load_model(image.header.model, dtype=image.header.dtype)).decompress(path)
            assert isinstance(image, DDCMImageFile) and image.tobytes() == expected.tobytes()
        stream = io.BytesIO(path.read_bytes())
        assert Image.open(stream).convert("L").tobytes() == expected.convert("L").tobytes()
        assert not stream.closed


def test_a_picture_is_decoded_once(picture, monkeypatch):
    calls = []
    decompress = Codec.decompress
    monkeypatch.setattr(Codec, "decompress", lambda *a, **k: calls.append(1) or decompress(*a, **k))
    image = Image.open(save(picture))
    assert calls == [] and image.fp is not None
    small = image.copy()
    small.thumbnail((8, 8))
    assert small.size == (8, 4) and image.getpixel((0, 0)) == image.copy().getpixel((0, 0))
    assert calls == [1] and image.fp is None
    assert pickle.loads(pickle.dumps(image)).tobytes() == image.tobytes()


# ---- smaller pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "scale"),
    [((64, 40), 1), ((33, 21), 1), ((32, 20), 2), ((31, 20), 2), ((16, 10), 4), ((16, 11), 2), ((1, 1), 16)],
)
def test_a_draft_is_the_preview_that_covers_what_is_asked_for(asked, scale):
    Image.linear_gradient("L").resize((67, 41)).convert("RGB").save("a.ddcm", model="gaussian-field", **QUICK)
    image = Image.open("a.ddcm")
    given = image.draft("L", asked)
    size = (-(-67 // scale), -(-41 // scale))
    assert given == (None if scale == 1 else ("RGB", (0, 0, 67 / scale, 41 / scale)))
    assert image.size == size and all(own >= wanted for own, wanted in zip(size, asked, strict=True))
    codec = Codec(load_model("gaussian-field"))
    expected = codec.decompress(Path("a.ddcm")) if scale == 1 else codec.preview(Path("a.ddcm"), scale)
    assert image.tobytes() == expected.tobytes() and image.size == size
    assert image.draft(None, (1, 1)) is None and image.size == size  # it is decoded


def test_a_draft_can_be_taken_back(picture):
    whole = Image.open(save(picture)).tobytes()
    image = Image.open("a.ddcm")
    assert image.draft(None, (1, 1)) and image.size == (2, 1)
    assert image.draft(None, None) is None and image.size == (2, 1)
    assert image.draft(None, picture.size) is None and image.tobytes() == whole


def test_a_thumbnail_is_decoded_no_further_than_it_needs(monkeypatch):
    large = Image.linear_gradient("L").resize((128, 64)).convert("RGB")
    large.save("a.ddcm", model="gaussian-field", preset="product", T=8, K=64, atoms=64)
    whole = Image.open("a.ddcm")
    whole.load()
    whole.thumbnail((16, 16))
    monkeypatch.setattr(Codec, "decompress", lambda *args, **how: pytest.fail("all of it is decoded"))
    image = Image.open("a.ddcm")
    image.thumbnail((16, 16))
    assert image.size == whole.size == (16, 8)
    difference = ImageChops.difference(image, whole)
    assert max(high for _, high in difference.getextrema()) < 64


def test_grey_pictures_are_grey_at_once():
    Image.linear_gradient("L").resize((8, 8)).save("digit.ddcm", model="digits", **QUICK)
    with Image.open("digit.ddcm") as image:
        assert image.mode == "L"
        image.load()
        assert image.mode == "L" and len(image.tobytes()) == 64


@pytest.mark.parametrize("name", ["photo", "digits", "gaussian-field", "photo#tile=64,16"])
def test_channels_are_known_by_the_name(name):
    assert channels(name) == load_model(name, dtype="float32").channels


@pytest.mark.parametrize("name", ["../digits", "owner/name", "", "digits/", "."])
def test_no_path_is_made_of_a_name_that_is_not_built_in(name):
    assert channels(name) == 3


def test_a_parser_takes_it_piece_by_piece(picture):
    parser = ImageFile.Parser()
    data = save(picture).read_bytes()
    for first in range(0, len(data), 7):
        parser.feed(data[first : first + 7])
    assert parser.close().size == picture.size


# ---- what a file may ask for ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["owner/name", "/srv/model", "../model", "own"])
def test_a_file_does_not_choose_what_is_loaded(picture, name, monkeypatch):
    Path("own").mkdir()  # a folder of that name is no reason
    data = renamed(save(picture), name)
    monkeypatch.setattr("ddcm_fast.models.loading.load_model", lambda *a, **k: pytest.fail(f"{a} is loaded"))
    image = Image.open(io.BytesIO(data))
    with pytest.raises(PillowError, match=r"not built in.*`model`"):
        image.load()


def test_a_model_is_named_by_the_caller_and_has_to_be_the_files(picture):
    data = renamed(save(picture), "owner/name")
    expected = Image.open("a.ddcm").tobytes()
    for model in ("gaussian-field", load_model("gaussian-field")):
        image = Image.open(io.BytesIO(data))
        image.model = model
        assert image.tobytes() == expected
    image = Image.open(io.BytesIO(data))
    image.model = load_model("photo", dtype="float32")
    with pytest.raises(PillowError, match="fingerprint"):
        image.load()


def test_a_condition_that_does_not_travel_is_given():
    digit = Image.linear_gradient("L").resize((8, 8))
    digit.save("a.ddcm", model="digits", condition=Condition(label=3), embed_condition=False, **QUICK)
    image = Image.open("a.ddcm")
    with pytest.raises(PillowError, match="condition"):
        image.load()
    image.condition = Condition(label=3)
    assert len(image.tobytes()) == 64


def test_damaged_files_are_oserrors_that_say_why(picture):
    data = save(picture).read_bytes()
    pipeline = renamed(Path("a.ddcm"), container.PIPELINE)
    for damaged, text in ((data[:-1], "checksum"), (data[:6], "truncated"), (pipeline, "pipeline")):
        with pytest.raises(OSError, match=text) as caught:
            Image.open(io.BytesIO(damaged))
        assert isinstance(caught.value, DDCMError)
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"\xdcd" + data))


# ---- saving --------------------------------------------------------------------------------------


def test_saved_files_are_those_of_the_codec(picture):
    model = load_model("gaussian-field")
    settings = {"T": 4, "K": 64, "stop": 100}
    for keywords, config in (
        ({"preset": "product", "bpp": 2.0, **settings}, preset("product", **settings)),
        ({"preset": "ddcm", "T": 4, "seed": 7}, preset("ddcm", T=4, seed=7)),
    ):
        picture.save("a.ddcm", model=model, **keywords)
        rate = {name: keywords[name] for name in ("bpp",) if name in keywords}
        assert Path("a.ddcm").read_bytes() == Codec(model, config).compress(picture, **rate)
    buffer = io.BytesIO()
    picture.save(buffer, "DDCM", model="gaussian-field", **QUICK)
    assert buffer.getvalue() == save(picture).read_bytes()


def test_a_quarter_of_a_bit_where_nothing_is_said():
    large = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    sizes = {}
    for name, rate in (("none", {}), ("medium", {"quality": "medium"}), ("low", {"quality": "low"})):
        large.save("a.ddcm", model="gaussian-field", preset="product", T=4, K=64, stop=100, **rate)
        sizes[name] = os.path.getsize("a.ddcm")
    assert sizes["low"] < sizes["none"] == sizes["medium"] <= 0.25 * 128 * 128 / 8


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"quality": 90}, "quality is 90; choose one of low"),
        ({"quality": "low", "bpp": 1.0}, "bitrate"),
        ({"optimize": True}, "takes no 'optimize', only quality, bpp"),
        ({"preset": "best"}, "unknown preset 'best': choose one of"),
        ({"model": "nope"}, "no model 'nope'"),
        ({"K": 0}, "K is 0; it must be an integer from 1"),
    ],
)
def test_keywords_that_are_none_leave_no_file(picture, keywords, text):
    with pytest.raises(DDCMError, match=text):
        save(picture, "new.ddcm", **keywords)
    assert not Path("new.ddcm").exists()
    assert issubclass(ConfigError, ValueError)


def test_imageio_reads_and_writes_through_pillow(picture):
    imageio = pytest.importorskip("imageio.v3")
    array = imageio.imread(save(picture))
    assert array.shape == (16, 32, 3) and array.tobytes() == Image.open("a.ddcm").tobytes()
    imageio.imwrite("b.ddcm", array, model="gaussian-field", **QUICK)
    assert container.read(Path("b.ddcm").read_bytes())[0].width == 32


def test_the_commands_do_not_take_it_for_an_image_format(picture, capsys):
    from ddcm_fast.cli import main

    picture.save("a.png")
    words = ["--model", "gaussian-field", "--preset", "ddcm", "-T", "3", "-K", "16", "-q"]
    assert main(["compress", "a.png", "a.ddcm", *words]) == 0
    assert main(["compress", "a.ddcm", "b.ddcm", *words]) == 2 and "must be one of PNG" in capsys.readouterr().err


# ---- types of files ------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("file") is None, reason="file(1)")
def test_magic_names_the_file():
    def said(*words):
        command = ["file", "-b", "-m", ROOT / "share" / "ddcm.magic", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    text = said(GOLDEN / "product.ddcm")
    assert text == "DDCM compressed image, format version 1, noise law 1, model gaussian-field\n"
    assert said("--mime-type", GOLDEN / "product.ddcm") == "image/x-ddcm\n"
    assert "DDCM" not in said(GOLDEN / "product.png")


@pytest.mark.skipif(shutil.which("update-mime-database") is None, reason="shared-mime-info")
def test_desktops_know_the_type(folder):
    (folder / "packages").mkdir()
    shutil.copy(ROOT / "share" / "ddcm.xml", folder / "packages")
    subprocess.run(["update-mime-database", folder], capture_output=True, check=True)
    assert "image/x-ddcm:*.ddcm\n" in (folder / "globs2").read_text()
    assert b"image/x-ddcm]\n>0=\x00\x03" + container.MAGIC in (folder / "magic").read_bytes()
