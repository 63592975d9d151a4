"""What the benchmarks on photographs share: the images, who ran what, and the machine's name."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ddcm_fast.bulk.sources import Item, find
from ddcm_fast.cli.pictures import is_image_ending
from ddcm_fast.codebook import backends
from ddcm_fast.evaluation.run import original
from ddcm_fast.files import MAX_IMAGE_FILE
from ddcm_fast.sampling.model import DiffusionModel


def add_options(parser: argparse.ArgumentParser) -> None:
    """What each comparison of codecs on photographs takes."""
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--crop", type=int, default=256, help="side of the centre crop (default: 256)")
    parser.add_argument("--model", default="photo", help="(default: photo)")
    parser.add_argument("--work", type=Path, help="folder of rows and pictures, to go on with (default: in runs/)")


def work(args: argparse.Namespace) -> Path:
    """The folder of rows and pictures: --work, else one in runs/ that is named as the output is."""
    return args.work or Path("runs", args.output.stem)


def items(folder: Path) -> list[Item]:
    """The images of a folder and of those in it, by name."""
    return find([folder], is_image_ending, "images", MAX_IMAGE_FILE)


def centre_crops(folder: Path, side: int) -> Iterator[tuple[str, Image.Image]]:
    """Name without the ending and centre crop (RGB) of each image, by name; what is smaller stays whole."""
    for item in items(folder):
        yield item.name, original(item.read(), side)


def save_crops(photographs: Path, sides: Sequence[int], images: int, folder: Path) -> None:
    """Make a folder of so many PNGs: centre crops, sides in turn, turned by 90 degrees where photographs come again."""
    folder.mkdir()
    crops = {side: list(centre_crops(photographs, side)) for side in sides}
    for i in range(images):
        own = crops[sides[i % len(sides)]]
        stem, crop = own[i % len(own)]
        crop.rotate(90 * (i // len(own))).save(folder / f"{stem}-{i}.png")


def ran(args: argparse.Namespace) -> dict[str, Any]:
    """The command, with its --images as DIR, and where it ran."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {
        "command": command.replace(str(args.images), "DIR"),
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }


def record(args: argparse.Namespace, model: DiffusionModel) -> dict[str, Any]:
    """Who ran what: the head of a file of results of codecs."""
    return {
        **ran(args),
        "backend": backends.resolve("auto", model.device),
        "model": f"{model.name} ({model.fingerprint().hex()}), {model.dtype}",
        "crop": args.crop,
    }


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
