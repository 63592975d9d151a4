"""Pictures that are larger than the page takes: how large they are made, and what is said of that."""

import io
import shlex

import numpy as np
import pictures
import pytest
from PIL import Image

from ddcm_fast import Codec, Limits, load_model, preset
from ddcm_fast.app import sizes, work
from ddcm_fast.cli import main
from ddcm_fast.codec.images import image_size, load_image
from ddcm_fast.errors import InputError


@pytest.fixture(scope="module")
def field():
    return load_model("gaussian-field")


class Padding:
    """As much of a model as sizes need."""

    def __init__(self, multiple):
        self.multiple = multiple


@pytest.mark.parametrize("multiple", [1, 8, 64])
@pytest.mark.parametrize("size", [(3000, 2000), (2000, 3000), (513, 512), (4096, 17), (9000, 30), (1, 1), (512, 512)])
def test_the_largest_of_that_shape_that_fits(size, multiple):
    most, model = 512**2, Padding(multiple)
    made = sizes.fitting(size, model, most)

    def padded(size):
        return -(-size[0] // multiple) * multiple * (-(-size[1] // multiple) * multiple)

    assert padded(made) <= most and max(made) <= 4096
    if padded(size) <= most and max(size) <= 4096:
        assert made == size
        return
    long, short = max(made), min(made)
    assert abs(short - long * min(size) / max(size)) <= 0.5 and (made[0] == long) == (size[0] == max(size))
    larger = (long + 1, max(1, round((long + 1) * min(size) / max(size))))
    assert padded(larger) > most or larger[0] > 4096


def test_what_fits_nowhere_is_left_to_the_codec():
    assert sizes.fitting((100, 50), Padding(8), 63) == (100, 50)


def test_a_picture_is_turned_and_converted_before_it_is_made_smaller(field):
    scene = Image.fromarray(pictures.scene(120, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    scene.save(buffer, "PNG", exif=exif)
    buffer.seek(0)
    assert image_size(buffer) == (120, 200)
    buffer.seek(0)
    image, size = sizes.read(buffer, field, 60 * 100)
    buffer.seek(0)
    upright = load_image(buffer)
    assert size == upright.size == (120, 200) and image.size == (60, 100)
    expected = upright.resize((60, 100), Image.Resampling.LANCZOS)
    assert image.tobytes() == expected.tobytes()
    assert np.abs(np.asarray(image.resize((120, 200)), np.float32) - np.asarray(upright)).mean() < 3
    # One that fits stays as it is.
    buffer.seek(0)
    same, _ = sizes.read(buffer, field, 120 * 200)
    assert same.tobytes() == upright.tobytes()


def test_too_many_pixels_are_refused_by_the_header(field):
    bomb = pictures.png(8193, 8193, 8, 0, [])
    with pytest.raises(InputError, match=r"8193x8193 pixels are more than 67108864; make the picture smaller"):
        sizes.read(io.BytesIO(bomb), field, 512**2)
    with pytest.raises(InputError, match="as an image"):
        sizes.read(io.BytesIO(b"no picture"), field, 512**2)


def test_the_size_is_known_without_pixels(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(pictures.png(3000, 2000, 8, 2, []))
    assert sizes.known(str(path)) == (3000, 2000)
    path.write_bytes(b"no picture")
    assert sizes.known(str(path)) is sizes.known(None) is sizes.known(str(tmp_path / "none.png")) is None


def test_what_is_said(field):
    assert sizes.notice((64, 64), field, 64**2) == sizes.comment((64, 64), field, 64**2) == ""
    said = sizes.notice((3000, 2000), field, 512**2)
    assert "3000x2000 pixels" in said and "made 627x418" in said and "command line" in said
    assert "4096 pixels a side" in sizes.notice((5000, 2000), field, 512**2)
    assert "at most 4096 a side first" in sizes.comment((5000, 2000), field, 512**2)


def test_the_command_takes_the_whole_picture(field, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = Image.fromarray(pictures.scene(90, 120))
    image.save("a.png")
    served = work.Served(field, limits=Limits(pixels=64**2))
    line = work.compress_command(served, str(tmp_path / "a.png"), "product", {"bpp": 0.5})
    comment, command = line.splitlines()
    assert comment == "# all 120x90 pixels, the page makes it 73x55"
    assert main([*shlex.split(command)[1:], "-q"]) == 0
    assert (tmp_path / "a.ddcm").read_bytes() == Codec(field, preset("product")).compress(image, bpp=0.5)
    assert work.edit_command(served, str(tmp_path / "a.png"), None, work.Condition(label=1), 3).startswith("# all")
    # Limits of the command line are raised where the picture needs that.
    assert sizes.options((120, 90), field, preset("product")) == []
    words = sizes.options((4096, 4096), field, preset("ddcm", T=1000))
    assert words[0] == "--max-pixel-steps" and int(words[1]) >= 4096**2 * 1000
