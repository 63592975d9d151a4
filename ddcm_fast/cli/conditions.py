"""Conditions of many images: labels and captions from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddcm_fast.errors import InputError
from ddcm_fast.files import read

#: The longest file of captions; those of MS-COCO have up to 91 MiB.
_MAX_CAPTIONS = 1 << 29


def read_labels(path: Path) -> list[int]:
    """Class labels from a text file, one a line. Raises InputError."""
    lines = _lines(path, read(path, 1 << 24), "labels")
    try:
        return [int(line) for line in lines]
    except ValueError as error:
        wrong = next(line for line in lines if not line.lstrip("-").isdecimal())
        raise InputError(f"{path} has the label {wrong[:40]!r}; it must have a number a line") from error


def read_captions(path: Path) -> list[str]:
    """Captions from a text file, one a line, or from MS-COCO's annotations (.json): the first one of each image.

    Raises InputError.
    """
    data = read(path, _MAX_CAPTIONS)
    if path.suffix.lower() != ".json":
        return _lines(path, data, "captions")
    try:
        annotations: Any = json.loads(data)["annotations"]
        first: dict[Any, str] = {}
        for one in annotations:
            first.setdefault(one["image_id"], " ".join(str(one["caption"]).split()))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} must hold annotations of image_id and caption, as MS-COCO's: {error}") from error
    if not first:
        raise InputError(f"{path} has no captions; it must have one at least")
    return list(first.values())


def _lines(path: Path, data: bytes, what: str) -> list[str]:
    try:
        lines = [line.strip() for line in data.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8, one of its {what} a line: {error}") from error
    if not lines:
        raise InputError(f"{path} has no {what}; it must have one a line")
    return lines
