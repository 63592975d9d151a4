"""What a codec is to a comparison: it codes an image at a bitrate and decodes it again."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Coded:
    """An image's file, what it decodes to, and the seconds that each way took.

    `fits` is whether the file has no more than the bits that were asked for; `encode_cpu_seconds` are those of the
    processor, all threads together, where this process does the work and they are known.
    """

    data: bytes
    image: Image.Image
    encode_seconds: float
    decode_seconds: float
    fits: bool = True
    encode_cpu_seconds: float | None = None


class ImageCodec(ABC):
    """A codec under its name, which meets a bitrate. `settings` says what its results depend on."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name, self.settings = name, settings

    @abstractmethod
    def code(self, image: Image.Image, bpp: float) -> Coded:
        """An RGB image at `bpp` bits a pixel at most, or as near to it as the codec can go."""


class LevelCodec(ImageCodec):
    """A codec that is told a level of quality: the highest whose file is small enough, by bisection, else the lowest.

    Args:
        levels: from the smallest files to the largest.
    """

    def __init__(self, name: str, levels: Sequence[int], settings: dict[str, Any]) -> None:
        super().__init__(name, {"levels": [levels[0], levels[-1]], **settings})
        self._levels = levels

    def code(self, image: Image.Image, bpp: float) -> Coded:
        most = bpp * image.width * image.height / 8
        best, seconds = self._timed(image, self._levels[0])
        low, high = 0, len(self._levels) - 1
        while low < high and len(best) <= most:  # the file of `low` fits
            middle = (low + high + 1) // 2
            data, took = self._timed(image, self._levels[middle])
            if len(data) <= most:
                low, best, seconds = middle, data, took
            else:
                high = middle - 1
        start = time.perf_counter()
        decoded = self._decode(best)
        return Coded(best, decoded, seconds, time.perf_counter() - start, len(best) <= most)

    def _timed(self, image: Image.Image, level: int) -> tuple[bytes, float]:
        start = time.perf_counter()
        return self._encode(image, level), time.perf_counter() - start

    @abstractmethod
    def _encode(self, image: Image.Image, level: int) -> bytes:
        """The file of an RGB image."""

    @abstractmethod
    def _decode(self, data: bytes) -> Image.Image:
        """The RGB image of a file."""
