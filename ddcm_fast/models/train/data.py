"""Photographs of a tar file or a folder, decoded once and kept in memory, and the crops that training draws of them.

Training keeps them on its device (`Pictures`), so that a GPU waits for no copy and no loop over crops.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from ddcm_fast.errors import first_line
from ddcm_fast.models.train.errors import TrainError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})


@dataclasses.dataclass
class PhotoCache:
    """Decoded photographs, each uint8 H x W x 3, split into training and held-out ones."""

    train: list[torch.Tensor]
    held_out: list[torch.Tensor]


def _decode(data: bytes, name: str, short_side: int | None) -> torch.Tensor:
    """One photograph as uint8 H x W x 3, at most ``short_side`` pixels on the short side."""
    try:
        with Image.open(io.BytesIO(data)) as handle:
            image = handle.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise TrainError(f"cannot decode {name}: {first_line(error)}") from error
    if short_side is not None and min(image.size) > short_side:
        scale = short_side / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image))


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not Path(name).name.startswith(".")


def load_photos(
    archive: str | os.PathLike[str],
    *,
    short_side: int = 288,
    holdout: int = 40,
    train: bool = True,
) -> PhotoCache:
    """Decode every photograph of a tar file once.

    The held-out photographs are spread evenly over the archive's names in sorted order, so they
    depend on the archive alone. With ``train=False`` only those are decoded.
    """
    path = Path(archive)
    if not path.is_file():
        raise TrainError(f"no such tar file: {path}")
    try:
        with tarfile.open(path) as tar:
            members = sorted(
                (m for m in tar.getmembers() if m.isfile() and _is_image(m.name)),
                key=lambda m: m.name,
            )
            if len(members) <= holdout:
                raise TrainError(f"{path} holds {len(members)} images: too few to hold out {holdout}")
            held = {(2 * i + 1) * len(members) // (2 * holdout) for i in range(holdout)}
            kept = [index for index in range(len(members)) if train or index in held]
            encoded = []
            for index in kept:
                stream = tar.extractfile(members[index])
                assert stream is not None
                encoded.append((stream.read(), members[index].name))
    except tarfile.TarError as error:
        raise TrainError(f"{path} is not a readable tar file: {first_line(error)}") from error
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        decoded = list(pool.map(lambda each: _decode(each[0], each[1], short_side), encoded))
    cache = PhotoCache([], [])
    for index, photo in zip(kept, decoded, strict=True):
        (cache.held_out if index in held else cache.train).append(photo)
    return cache


def centre_crops(photos: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """Centre crops of the photographs that are large enough: uint8 N x 3 x size x size."""
    crops = []
    for photo in photos:
        top, left = (photo.shape[0] - size) // 2, (photo.shape[1] - size) // 2
        if top >= 0 and left >= 0:
            crops.append(photo[top : top + size, left : left + size].permute(2, 0, 1))
    if not crops:
        raise TrainError(f"no image is at least {size} x {size} pixels")
    return torch.stack(crops)


def load_eval_folder(folder: str | os.PathLike[str], size: int = 256) -> torch.Tensor:
    """Centre crops of the images in a folder, in name order: uint8 N x 3 x size x size."""
    path = Path(folder)
    if not path.is_dir():
        raise TrainError(f"no such folder: {path}")
    names = sorted(p for p in path.iterdir() if p.is_file() and _is_image(p.name))
    if not names:
        raise TrainError(f"no images in {path}")
    return centre_crops([_decode(p.read_bytes(), p.name, None) for p in names], size)


def to_model(crops: torch.Tensor, patch: int) -> torch.Tensor:
    """uint8 N x 3 x H x W to the model's space: float32 N x 3 patch^2 x H/patch x W/patch in [-1, 1]."""
    return F.pixel_unshuffle(crops.float() / 127.5 - 1.0, patch)


class Pictures:
    """Photographs and drawn pages, side by side in one run of pixels on a device, and random crops of them.

    Args:
        photos, pages: uint8 H x W x 3 each, on any device.
        device: where they are kept and crops are made.
    """

    def __init__(
        self, photos: Sequence[torch.Tensor], pages: Sequence[torch.Tensor], device: torch.device | str
    ) -> None:
        both = [*photos, *pages]
        self.photos, self.pages = len(photos), len(pages)
        self.heights = np.array([picture.shape[0] for picture in both])
        self.widths = np.array([picture.shape[1] for picture in both])
        self.starts = np.cumsum(self.heights * self.widths) - self.heights * self.widths
        self.device = torch.device(device)
        self.pixels = torch.cat([picture.reshape(-1, 3) for picture in both]).to(self.device)

    def sample(
        self, batch: int, crop: int, scales: Sequence[float], generator: torch.Generator, share: float = 0.0
    ) -> torch.Tensor:
        """Random crops: float32 ``batch`` x 3 x crop x crop in [-1, 1], on the device.

        ``scales[k]`` is the share of them (up to a common factor) averaged down k times by 2, as far as the
        picture is large enough; half are flipped left to right. Every picture has at least ``crop`` pixels a side;
        a ``share`` of the crops are of pages. ``generator`` is the CPU's, so that all devices draw the same crops.
        """
        drawn = torch.rand((batch, 5), generator=generator, dtype=torch.float64, device="cpu").numpy()
        pick, down, across, shrink, flip = drawn.T
        paged = pick < share
        among = np.where(paged, pick / max(share, 1e-9), (pick - share) / (1.0 - share))
        which = np.where(paged, self.photos + (among * self.pages).astype(int), (among * self.photos).astype(int))
        heights, widths = self.heights[which], self.widths[which]
        halvings = np.searchsorted(np.cumsum(scales) / np.sum(scales), shrink, side="right")
        halvings = np.minimum(halvings, np.log2(np.minimum(heights, widths) // crop).astype(int))
        sides = crop << halvings
        top, left = (down * (heights - sides + 1)).astype(int), (across * (widths - sides + 1)).astype(int)
        corners = self.starts[which] + top * widths + left
        out = torch.empty((batch, 3, crop, crop), dtype=torch.float32, device=self.device)
        for times in np.unique(halvings):
            rows = np.flatnonzero(halvings == times)
            side = crop << int(times)
            corner, width, flipped = (
                torch.from_numpy(values[rows]).to(self.device)[:, None, None]
                for values in (corners, widths, flip < 0.5)
            )
            along = torch.arange(side, dtype=torch.int64, device=self.device)
            columns = torch.where(flipped, side - 1 - along, along)
            patches = self.pixels[corner + along[:, None] * width + columns].permute(0, 3, 1, 2).float()
            out[torch.from_numpy(rows).to(self.device)] = F.avg_pool2d(patches, 1 << int(times))
        return out / 127.5 - 1.0
