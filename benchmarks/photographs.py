"""What the benchmarks on photographs share: centre crops of a folder's images, and the machine's name."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ddcm_fast.codec.images import load_image


def centre_crops(folder: Path, side: int) -> Iterator[tuple[str, Image.Image]]:
    """Name without the ending and centre crop (RGB) of each image, by name."""
    for path in sorted(folder.iterdir()):
        image = load_image(path).convert("RGB")
        left, top = (image.width - side) // 2, (image.height - side) // 2
        yield path.stem, image.crop((left, top, left + side, top + side))


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
