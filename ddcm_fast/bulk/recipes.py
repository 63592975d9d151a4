"""Data sets that papers compare on, by name: which images of a download they are, and how each becomes square."""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ddcm_fast.bulk.sources import Item, find
from ddcm_fast.codec.images import MAX_PIXELS_TO_CUT, is_reading_ending, load_image
from ddcm_fast.errors import ConfigError, DDCMWarning, InputError
from ddcm_fast.files import MAX_IMAGE_FILE, read


@dataclass(frozen=True)
class Recipe:
    """A data set as it is published, and what is made of it (docs/datasets.md has the sources).

    Attributes:
        name: by which it is asked for.
        about: the set and its split.
        images: as many the set has.
        side: of the square pictures that are made, in pixels.
        patch: side of the patches of its FID in pixels, see evaluation.sets; None: whole pictures.
        member: what the name of an image, with its way from the folder and without its ending, is like.
        layout: where that is in a download, for messages.
        listed: name of a file, beside or below which images lie, whose lines' first words are the images meant; where
            there is none, all are.
        listing: as many it names.
    """

    name: str
    about: str
    images: int
    side: int
    patch: int | None
    member: str
    layout: str
    listed: str | None = None
    listing: int = 0

    def items(self, inputs: Sequence[Path]) -> list[Item]:
        """The set's images in folders or tar archives as they are published, each read as a PNG of the square picture.

        Fewer than the set has are taken with a DDCMWarning.

        Raises InputError: there is none, or one cannot be read.
        """
        found = find(inputs, is_reading_ending, "images", MAX_IMAGE_FILE)
        of_set = [item for item in found if re.fullmatch(rf"(.*/)?({self.member})", item.name)]
        if not of_set:
            raise InputError(f"{inputs[0]} holds no image of {self.name}; name a folder with {self.layout}")
        wanted = self._listed(inputs)
        if wanted is not None:
            of_set = [item for item in of_set if item.name.rsplit("/", 1)[-1] in wanted]
        expected = self.images if wanted is None else self.listing
        if len(of_set) != expected:
            warnings.warn(
                f"{self.name} has {expected} images, and {len(of_set)} were found; means are of these only",
                DDCMWarning,
                stacklevel=2,
            )
        return [dataclasses.replace(item, read=_squared(item.read, self.side)) for item in of_set]

    def _listed(self, inputs: Sequence[Path]) -> set[str] | None:
        """The names, without endings, of the images that a list in one of the folders names."""
        if self.listed is None:
            return None
        for folder in inputs:
            if (folder / self.listed).is_file():
                lines = read(folder / self.listed).decode(errors="replace").splitlines()
                return {Path(line.split()[0]).stem for line in lines if line.strip()}
        return None


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("kodak24", "Kodak's PhotoCD", 24, 512, 64, r"kodim(0[1-9]|1\d|2[0-4])", "kodim01.png to kodim24.png"),
        Recipe(
            "div2k",
            "DIV2K, validation, high resolution",
            100,
            512,
            128,
            r"08(0[1-9]|[1-9]\d)|0900",
            "DIV2K_valid_HR/0801.png to 0900.png",
        ),
        Recipe(
            "clic2020",
            "CLIC 2020, test, professional and mobile",
            428,
            512,
            128,
            r"(professional|mobile)/[^/]+",
            "CLIC2020Professional_test/professional/*.png and CLIC2020Mobile_test/mobile/*.png",
        ),
        Recipe(
            "imagenet256",
            "ImageNet (ILSVRC 2012), validation, at 256x256",
            50000,
            256,
            None,
            r"ILSVRC2012_val_\d{8}",
            "ILSVRC2012_val_*.JPEG, or ILSVRC2012_img_val.tar",
            "imagenet_val_1k.txt",
            1000,
        ),
    )
}


def recipe(name: str) -> Recipe:
    """A recipe by its name. Raises ConfigError: there is none."""
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}: choose among {', '.join(RECIPES)}")
    return RECIPES[name]


def square(image: Image.Image, side: int) -> Image.Image:
    """The centre square of an RGB image, as large as it has one, at `side` x `side` pixels.

    Resized with Pillow's bicubic filter, which averages where it makes smaller; not at all where the size fits.
    """
    most = min(image.size)
    left, top = (image.width - most) // 2, (image.height - most) // 2
    cut = image.crop((left, top, left + most, top + most))
    return cut if most == side else cut.resize((side, side), Image.Resampling.BICUBIC)


def _squared(content: Callable[[], bytes], side: int) -> Callable[[], bytes]:
    def made() -> bytes:
        buffer = io.BytesIO()
        square(load_image(io.BytesIO(content()), MAX_PIXELS_TO_CUT).convert("RGB"), side).save(
            buffer, "PNG", compress_level=1
        )
        return buffer.getvalue()

    return made
