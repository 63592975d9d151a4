"""Pictures that commands read and write, and a picture with the .ddcm file that decodes to it beside it."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from ddcm_fast.codec.container import FILE
from ddcm_fast.codec.images import MAX_PIXELS, describe_endings
from ddcm_fast.errors import InputError
from ddcm_fast.files import STDOUT, Kind, Outputs, is_regular, picture

if TYPE_CHECKING:
    from PIL import Image

    from ddcm_fast.codec.codec import Encoded

OUTPUT_HELP = f"the image to write; its ending says the format: {describe_endings()}"


def read_image(
    path: Path, args: argparse.Namespace, max_pixels: int = MAX_PIXELS, background: str = "white"
) -> Image.Image:
    """An image from a file, a pipe or standard input, see images.load_image; --max-pixels replaces `max_pixels`.

    Raises InputError.
    """
    from ddcm_fast.codec.images import load_image

    most = max_pixels if args.max_pixels is None else args.max_pixels
    return load_image(path, most, background)


def is_image_ending(ending: str) -> bool:
    """Whether files with this ending are images, .ddcm files aside, which ddcm_fast.pillow makes Pillow know."""
    from PIL import Image

    Image.init()
    return ending.lower() in Image.registered_extensions().keys() - {".ddcm"}


def image_name(path: Path, asked: str | None = None) -> str:
    """A name whose ending says the format to write: the one asked for, else the path's; PNG for a pipe without one."""
    if asked is not None:
        return f"image.{asked}"
    return "image.png" if not path.suffix and not is_regular(path) else path.name


def image_kind(name: str) -> Kind:
    """What an image of this name replaces. Raises InputError: an ending of no format that holds it."""
    from ddcm_fast.codec.images import writing_format

    return picture(writing_format(name)[0])


def image_bytes(image: Image.Image, name: str) -> bytes:
    """An image as the bytes of a file of this name."""
    from ddcm_fast.codec.images import save_image

    buffer = io.BytesIO()
    save_image(image, buffer, name)
    return buffer.getvalue()


def add_pair(outputs: Outputs, image: Path) -> None:
    """Plan an image file and, beside it with the ending .ddcm, the file that decodes to it."""
    if image == STDOUT or not is_regular(image):
        raise InputError(f"a .ddcm file goes beside the image, so that {image} cannot be the image; name a file")
    outputs.add(image, image_kind(image.name))
    outputs.add(image.with_suffix(".ddcm"), FILE)


def write_pair(outputs: Outputs, image: Path, coded: Encoded) -> None:
    """Write the two files of `add_pair`."""
    outputs.write(image, image_bytes(coded.image, image.name))
    outputs.write(image.with_suffix(".ddcm"), coded.data)
