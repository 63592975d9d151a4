"""What files call a model."""

from __future__ import annotations

import re
from pathlib import Path

#: A pipeline's id on the Hugging Face hub.
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def short_name(name: str) -> str:
    """What files call a model: its hub id or built-in name, of a local one its folder's or file's own name.

    Where it lies is nobody else's business, and means nothing elsewhere: files know their model by its fingerprint.
    """
    path = Path(name)
    if not path.exists() and (HUB_ID.fullmatch(name) or "/" not in name):
        return name
    own = path.resolve().name or "model"
    return own.encode(errors="replace").decode()  # names of files need not be text
