"""What files call a model, and what is known of it by that name alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

#: A pipeline's id on the Hugging Face hub.
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

#: Folder of the built-in models' weights.
WEIGHTS = Path(__file__).parent / "weights"

#: What this package adds to a diffusers model folder.
EXTRA_FILE = "ddcm.json"

_TILES = re.compile(r"(?P<name>.+)#tile=(?P<size>\d+),(?P<overlap>\d+)")


def short_name(name: str) -> str:
    """What files call a model: its hub id or built-in name, of a local one its folder's or file's own name.

    Where it lies is nobody else's business, and means nothing elsewhere: files know their model by its fingerprint.
    """
    path = Path(name)
    if not path.exists() and (HUB_ID.fullmatch(name) or "/" not in name):
        return name
    own = path.resolve().name or "model"
    return own.encode(errors="replace").decode()  # names of files need not be text


def split_name(name: str) -> tuple[str, tuple[int, int] | None]:
    """A model's name without its tiles, and their size and overlap if it has any."""
    match = _TILES.fullmatch(name)
    return (name, None) if match is None else (match["name"], (int(match["size"]), int(match["overlap"])))


def with_weights() -> list[str]:
    """Names of the built-in models that have weights."""
    return [path.parent.name for path in WEIGHTS.glob("*/config.json")]


def channels(name: str) -> int:
    """Channels of the pictures that a model of this name makes, tiled or not: a built-in one's own, else 3."""
    name = split_name(name)[0]
    if name not in with_weights():  # the name may be a file's, which no path is made of
        return 3
    network, own = (json.loads((WEIGHTS / name / file).read_text("utf-8")) for file in ("config.json", EXTRA_FILE))
    return int(network["in_channels"]) // int(own["space_to_depth"]) ** 2
