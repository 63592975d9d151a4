"""The codecs that are compared: those of Pillow at the best quality that a bitrate allows, and our presets."""

from __future__ import annotations

import io
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from PIL import Image, features

from ddcm_fast.codec.codec import Codec
from ddcm_fast.codec.config import PRESETS, preset
from ddcm_fast.errors import ConfigError, MissingExtraError
from ddcm_fast.sampling.model import DiffusionModel


@dataclass(frozen=True)
class Coded:
    """An image's file, what it decodes to, and the seconds that each way took.

    `fits` is whether the file has no more than the bits that were asked for.
    """

    data: bytes
    image: Image.Image
    encode_seconds: float
    decode_seconds: float
    fits: bool = True


class ImageCodec(ABC):
    """A codec under its name, which meets a bitrate. `settings` says what its results depend on."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name, self.settings = name, settings

    @abstractmethod
    def code(self, image: Image.Image, bpp: float) -> Coded:
        """An RGB image at `bpp` bits a pixel at most, or as near to it as the codec can go."""


class PillowCodec(ImageCodec):
    """A format of Pillow, by bisection over its quality: the largest whose file is small enough, else the lowest."""

    def __init__(self, name: str, format: str, qualities: tuple[int, int], **options: Any) -> None:
        super().__init__(name, {"format": format, "qualities": qualities, **options})
        self._format, self._qualities, self._options = format, qualities, options

    def code(self, image: Image.Image, bpp: float) -> Coded:
        most = bpp * image.width * image.height / 8
        low, high = self._qualities
        best, start = self._file(image, low), time.perf_counter()
        if len(best) <= most:
            while low < high:  # the file of `low` fits
                middle = (low + high + 1) // 2
                data = self._file(image, middle)
                if len(data) <= most:
                    low, best = middle, data
                else:
                    high = middle - 1
            start = time.perf_counter()
            self._file(image, low)
        encoded = time.perf_counter()
        with Image.open(io.BytesIO(best)) as file:
            decoded = file.convert("RGB")
        return Coded(best, decoded, encoded - start, time.perf_counter() - encoded, len(best) <= most)

    def _file(self, image: Image.Image, quality: int) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, self._format, quality=quality, **self._options)
        return buffer.getvalue()


class PresetCodec(ImageCodec):
    """A preset of this package."""

    def __init__(self, name: str, model: DiffusionModel, **settings: Any) -> None:
        config = preset(name, **settings)
        who = {"model": model.name, "fingerprint": model.fingerprint().hex(), "dtype": str(model.dtype)}
        super().__init__(name, {**asdict(config), **who})
        self._codec = Codec(model, config)

    def code(self, image: Image.Image, bpp: float) -> Coded:
        start = time.perf_counter()
        coded = self._codec.encode(image, bpp=bpp)[0]
        encoded = time.perf_counter()
        decoded = self._codec.decompress(coded.data)
        return Coded(coded.data, decoded, encoded - start, time.perf_counter() - encoded)


def _jpeg_xl() -> ImageCodec:
    try:
        import_module("pillow_jxl")
    except ImportError as error:
        raise MissingExtraError("jxl needs pillow-jxl-plugin: pip install 'ddcm-fast[eval]'") from error
    return PillowCodec("jxl", "JXL", (1, 99), effort=7)


def _of_pillow(name: str, format: str, qualities: tuple[int, int], **options: Any) -> ImageCodec:
    if name != "jpeg" and not features.check(name):
        raise MissingExtraError(f"this build of Pillow has no {name}: install one that has, or leave {name} out")
    return PillowCodec(name, format, qualities, **options)


#: The classical codecs, by name.
CLASSICAL = {
    "jpeg": lambda: _of_pillow("jpeg", "JPEG", (1, 95), optimize=True, progressive=True),
    "webp": lambda: _of_pillow("webp", "WEBP", (0, 100), method=6),
    "avif": lambda: _of_pillow("avif", "AVIF", (0, 100), speed=4),
    "jxl": _jpeg_xl,
}

#: Presets whose bits are a free choice; `ddcm` and `pursuit` have them from their settings.
RATED = [name for name, (config, _) in PRESETS.items() if config.shares_atoms]


def names() -> list[str]:
    """All that can be compared."""
    return [*CLASSICAL, *RATED]


def make(name: str, model: DiffusionModel | None, **settings: Any) -> ImageCodec:
    """A codec by its name. `settings` replace a preset's.

    Raises ConfigError: an unknown name. MissingExtraError: its package is not installed.
    """
    if name in CLASSICAL:
        return CLASSICAL[name]()
    if name not in RATED:
        raise ConfigError(f"unknown codec {name!r}: choose among {', '.join(names())}")
    assert model is not None
    return PresetCodec(name, model, **settings)
