"""Pictures of more pixels than the page takes: they are made smaller, and the command line takes them as they are."""

from __future__ import annotations

import io

from PIL import Image

from ddcm_fast.codec.config import CodecConfig
from ddcm_fast.codec.container import MAX_SIDE
from ddcm_fast.codec.images import MAX_PIXELS, image_size, load_image
from ddcm_fast.codec.job import padded_side
from ddcm_fast.codec.limits import Limits, asked
from ddcm_fast.errors import InputError
from ddcm_fast.sampling.model import DiffusionModel

#: Of a picture to be made smaller: those of most telephones and cameras have fewer. Unpacked, so many take 1.6 GB at
#: most, as 16-bit grey or with transparency.
MOST_PIXELS = 4 * MAX_PIXELS

#: Width and height in pixels.
Size = tuple[int, int]


def words(size: Size) -> str:
    """A size as it is said."""
    return f"{size[0]}x{size[1]}"


def fitting(size: Size, model: DiffusionModel, most: int) -> Size:
    """The largest size of the same shape, up to rounding, that has at most `most` pixels once the model pads it.

    The size itself where that fits, or where nothing does.
    """
    long, short = max(size), min(size)
    for side in range(min(long, MAX_SIDE), 0, -1):
        other = max(1, round(side * short / long))
        if padded_side(model, side) * padded_side(model, other) <= most:
            return (side, other) if size[0] == long else (other, side)
    return size


def read(file: io.BytesIO, model: DiffusionModel, most: int) -> tuple[Image.Image, Size]:
    """The picture in a file as load_image reads it, made smaller where `fitting` says so, and the size that it had.

    Raises InputError: as load_image, and of a picture with more than MOST_PIXELS, by its header.
    """
    width, height = image_size(file)
    if width * height > MOST_PIXELS:
        raise InputError(f"{width}x{height} pixels are more than {MOST_PIXELS}; make the picture smaller before")
    file.seek(0)
    image = load_image(file, MOST_PIXELS)
    size = fitting(image.size, model, most)
    return (image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)), image.size


def known(path: str | None) -> Size | None:
    """The size of the picture in a file, None of what is no picture or not there."""
    try:
        return None if path is None else image_size(path)
    except InputError:
        return None


def notice(size: Size, model: DiffusionModel, most: int) -> str:
    """What visitors are told of a picture of this size, as Markdown; nothing where it stays as it is."""
    smaller = fitting(size, model, most)
    if smaller == size:
        return ""
    whole = "The command line at the foot of the page takes it as it is."
    if max(size) > MAX_SIDE:
        whole = f"No .ddcm file holds more than {MAX_SIDE} pixels a side."
    return f"{words(size)} pixels are more than this page takes: **it is made {words(smaller)}**. {whole}"


def comment(size: Size, model: DiffusionModel, most: int) -> str:
    """A line before the command that codes a picture of this size, as a shell's comment; as `notice`."""
    smaller = fitting(size, model, most)
    if smaller == size:
        return ""
    first = f"make it at most {MAX_SIDE} a side first; " if max(size) > MAX_SIDE else ""
    return f"# all {words(size)} pixels, {first}the page makes it {words(smaller)}\n"


def options(size: Size, model: DiffusionModel, config: CodecConfig) -> list[str]:
    """Options of a command line that codes a picture of this size, beyond what its default limits allow."""
    width, height = (padded_side(model, side) for side in size)
    found: list[str] = []
    for name, value in asked(config, model, height, width).items():
        if value > getattr(Limits(), name):
            found += [f"--max-{name.replace('_', '-')}", str(value)]
    return found
