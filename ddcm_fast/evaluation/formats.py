"""Pillow's formats as codecs: JPEG, WebP, AVIF, and JPEG XL by its plugin."""

from __future__ import annotations

import io
from importlib import import_module
from typing import Any

from PIL import Image, features

from ddcm_fast.errors import MissingExtraError
from ddcm_fast.evaluation.codec import LevelCodec

#: Name -> Pillow's format, the lowest and the highest quality, and how files are written.
_FORMATS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "jpeg": ("JPEG", 1, 95, {"optimize": True, "progressive": True}),
    "webp": ("WEBP", 0, 100, {"method": 6}),
    "avif": ("AVIF", 0, 100, {"speed": 4}),
    "jxl": ("JXL", 1, 99, {"effort": 7}),
}
NAMES = tuple(_FORMATS)


class PillowCodec(LevelCodec):
    """A format of Pillow. Raises MissingExtraError: this Pillow has it not."""

    def __init__(self, name: str) -> None:
        self._format, low, high, self._options = _FORMATS[name]
        super().__init__(name, range(low, high + 1), {"format": self._format, **self._options})
        if name == "jxl":
            try:
                import_module("pillow_jxl")
            except ImportError as error:
                raise MissingExtraError("jxl needs pillow-jxl-plugin: pip install 'ddcm-fast[eval]'") from error
        elif name != "jpeg" and not features.check(name):
            raise MissingExtraError(f"this build of Pillow has no {name}: install one that has, or leave {name} out")

    def _encode(self, image: Image.Image, level: int) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, self._format, quality=level, **self._options)
        return buffer.getvalue()

    def _decode(self, data: bytes) -> Image.Image:
        with Image.open(io.BytesIO(data)) as file:
            return file.convert("RGB")
