"""FID, KID and natural statistics of sets of pictures: of whole ones, and of patches as HiFiC's authors cut them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ddcm_fast.errors import InputError
from ddcm_fast.evaluation import natural
from ddcm_fast.evaluation.metrics import OF_SETS, check, need_sets, of_sets

#: What metrics of patches are called by: their metric's name behind it.
PATCH = "patch-"
#: The distance of natural.py, which needs no package and no network.
NATURAL = PATCH + "nss"
NAMES = (*OF_SETS, *(PATCH + name for name in OF_SETS), NATURAL)

#: The side of a patch in pixels, of HiFiC's authors (Mentzer et al. 2020, arXiv 2006.09965, A.7) on CLIC.
PATCH_SIDE = 256

#: How a picture of a set is read, RGB.
Read = Callable[[], Image.Image]


def need(names: Sequence[str]) -> None:
    """Raise MissingExtraError if a package that one of the metrics wants is not installed."""
    if any(name != NATURAL for name in names):
        need_sets()


def boxes(width: int, height: int, side: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of a picture's patches.

    A grid of patches that do not overlap from the upper left corner on, then one that begins half a patch further in
    both directions; what is left at the edges is in no patch of that grid.
    """
    return [
        (left, top, left + side, top + side)
        for start in (0, side // 2)
        for top in range(start, height - side + 1, side)
        for left in range(start, width - side + 1, side)
    ]


class Pictures(Dataset[Tensor]):
    """A set of pictures, or of their patches, each (3, H, W) uint8 on the CPU, as torch-fidelity takes them.

    Args:
        reads: of the pictures. side: of the patches, in pixels; None: whole pictures. A picture that is smaller than a
            patch has none.

    Raises InputError: no picture is as large as a patch; and what reading raises.
    """

    def __init__(self, reads: Sequence[Read], side: int | None = None) -> None:
        self._reads, self._side = reads, side
        self._last: tuple[int, Image.Image] | None = None
        self._parts: list[tuple[int, tuple[int, int, int, int] | None]]
        if side is None:
            self._parts = [(i, None) for i in range(len(reads))]
            return
        self._parts = [(i, box) for i in range(len(reads)) for box in boxes(*self._picture(i).size, side)]
        if not self._parts:
            raise InputError(
                f"none of {len(reads)} pictures is as large as a patch of {side}x{side}: give a smaller --patch"
            )

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Tensor:
        number, box = self._parts[index]
        image = self._picture(number)
        return torch.from_numpy(np.array(image if box is None else image.crop(box))).permute(2, 0, 1)

    def __str__(self) -> str:
        return f"{len(self)} {'pictures' if self._side is None else 'patches'}"

    def _picture(self, number: int) -> Image.Image:
        """A picture; the last one is kept, as its patches come one after the other."""
        if self._last is None or self._last[0] != number:
            self._last = number, self._reads[number]().convert("RGB")
        return self._last[1]


def compare(
    names: Sequence[str],
    first: Sequence[Read],
    second: Sequence[Read],
    side: int = PATCH_SIDE,
    weights: Path | None = None,
    kept: Path | None = None,
) -> dict[str, float | None]:
    """FID and KID of two sets of pictures and, of names that begin with "patch-", of their patches.

    "patch-nss" is the Frechet distance of natural.py.

    Args:
        side: of the patches, in pixels.
        weights: see `metrics.of_sets`.
        kept: a folder for what is computed of the first set, for further calls with the same one.

    A value is None where the metric says nothing, as of sets of one.

    Raises ConfigError: an unknown name. MissingExtraError: torch-fidelity is not installed. InputError: it failed, or
    no picture is as large as a patch.
    """
    check(list(names), NAMES)
    found: dict[str, float | None] = {}
    for prefix, patch in (("", None), (PATCH, side)):
        networks = [name for name in names if name != NATURAL]
        wanted = {name: name.removeprefix(PATCH) for name in networks if name.startswith(PATCH) == bool(prefix)}
        if wanted:
            sets = (Pictures(first, patch), Pictures(second, patch))
            folder = None if kept is None else kept / (prefix or "whole")
            values = of_sets(list(wanted.values()), *sets, weights, folder)
            found |= {name: values[of] if math.isfinite(values[of]) else None for name, of in wanted.items()}
    if NATURAL in names:
        value = natural.distance(Pictures(first, side), Pictures(second, side))
        found[NATURAL] = value if math.isfinite(value) else None
    return {name: found[name] for name in names}
