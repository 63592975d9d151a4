"""The run: every codec at every rate on every image, a row each, kept as they come."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ddcm_fast.bulk.sources import Item
from ddcm_fast.codec.images import load_image
from ddcm_fast.errors import InputError, first_line
from ddcm_fast.evaluation.codec import ImageCodec
from ddcm_fast.evaluation.metrics import Pairs
from ddcm_fast.files import TEXT, Outputs, picture, sweep

Row = dict[str, Any]
ROWS = "rows.jsonl"


def crop(image: Image.Image, side: int | None) -> Image.Image:
    """The centre of an image, `side` pixels where it has as many; nothing is padded."""
    if side is None:
        return image
    width, height = min(side, image.width), min(side, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def decoded(folder: Path, row: Row) -> Path:
    """The file of a decoded picture."""
    return folder / row["codec"] / f"{row['rate']:g}" / f"{row['image']}.png"


def original(content: bytes, side: int | None = None) -> Image.Image:
    """What codecs are given of an image file: RGB, the centre of it. Raises InputError."""
    return crop(load_image(io.BytesIO(content)).convert("RGB"), side)


def evaluate(
    items: Sequence[Item],
    codecs: Sequence[ImageCodec],
    rates: Sequence[float],
    metrics: Pairs,
    folder: Path,
    side: int | None = None,
    progress: bool | None = None,
) -> list[Row]:
    """A row for each image, codec and rate: name, size, bpp, metrics, seconds; or the error.

    Rows are appended to folder/rows.jsonl as they come; those that are there, with the same image and settings, are
    not measured again unless they failed. Decoded pictures are folder/CODEC/RATE/NAME.png.

    Raises InputError: a file that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    path = folder / ROWS
    Outputs().add(path, TEXT)
    known = {row["key"]: row for row in _read(path)}
    jobs = [(item, codec, rate) for item in items for codec in codecs for rate in rates]
    rows: list[Row] = []
    image: Image.Image | None = None
    at: Item | None = None
    error = ""
    for item, codec, rate in tqdm(jobs, unit="row", disable=None if progress is None else not progress):
        if item is not at:
            at, image, error = item, None, ""
            try:
                content = item.read()
                image = original(content, side)
            except Exception as problem:  # one bad image is one image
                error = first_line(problem)
                content = b""
            source = hashlib.sha256(content).hexdigest()[:16]
        key = _key(item.name, source, codec, rate, side)
        row: Row = {"key": key, "image": item.name, "codec": codec.name, "rate": rate}
        if image is None:
            rows.append(row | {"error": error})
            continue
        place = decoded(folder, row)
        if key in known and "error" not in known[key] and metrics.names <= known[key].keys() and place.is_file():
            rows.append(known[key])
            continue
        rows.append(row | _measured(image, codec, rate, metrics, place))
        _append(path, rows[-1])
    return rows


def _measured(image: Image.Image, codec: ImageCodec, rate: float, metrics: Pairs, place: Path) -> Row:
    try:
        coded = codec.code(image, rate)
        found = metrics(image, coded.image)
    except Exception as problem:
        return {"error": first_line(problem)}
    buffer = io.BytesIO()
    coded.image.save(buffer, "PNG")
    outputs = Outputs(folder=place.parent)
    outputs.add(place, picture("PNG"))
    outputs.write(place, buffer.getvalue())
    return {
        "width": image.width,
        "height": image.height,
        "bpp": 8 * len(coded.data) / (image.width * image.height),
        "fits": coded.fits,
        **found,
        "encode_seconds": coded.encode_seconds,
        "encode_cpu_seconds": coded.encode_cpu_seconds,
        "decode_seconds": coded.decode_seconds,
    }


def _key(name: str, source: str, codec: ImageCodec, rate: float, side: int | None) -> str:
    text = json.dumps([name, source, codec.name, codec.settings, rate, side], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _append(path: Path, row: Row) -> None:
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"  # a killed run's last line is no part of this one
            else:
                torn = False
            file.write(b"\n" * torn + json.dumps(row).encode() + b"\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _read(path: Path) -> Iterator[Row]:
    """The whole rows of an earlier run."""
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("key"), str):
            yield row
