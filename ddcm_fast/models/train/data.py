"""Photographs of a tar file or a folder, decoded once and kept in memory, and the crops that training draws of them."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Sequence
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
            cache = PhotoCache([], [])
            for index, member in enumerate(members):
                if index not in held and not train:
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                photo = _decode(stream.read(), member.name, short_side)
                (cache.held_out if index in held else cache.train).append(photo)
    except tarfile.TarError as error:
        raise TrainError(f"{path} is not a readable tar file: {first_line(error)}") from error
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


def to_model(crops: torch.Tensor) -> torch.Tensor:
    """uint8 N x 3 x H x W to the model's space: float32 N x 12 x H/2 x W/2 in [-1, 1]."""
    return F.pixel_unshuffle(crops.float() / 127.5 - 1.0, 2)


def sample_batch(
    photos: Sequence[torch.Tensor],
    batch: int,
    crop: int,
    scales: Sequence[float],
    generator: torch.Generator,
    pages: Sequence[torch.Tensor] = (),
    share: float = 0.0,
) -> torch.Tensor:
    """Random crops in the model's space: float32 ``batch`` x 12 x crop/2 x crop/2.

    ``scales[k]`` is the share of them (up to a common factor) averaged down k times by 2, as far as the
    photograph is large enough; half are flipped left to right. ``photos`` are uint8 H x W x 3, each at
    least ``crop`` pixels; in a ``share`` of the crops they are ``pages`` instead, of the same form.
    """
    rand = torch.rand((batch, 5), generator=generator, dtype=torch.float64, device="cpu").tolist()
    limits = np.cumsum(scales) / np.sum(scales)
    out = torch.empty((batch, 3, crop, crop), dtype=torch.float32, device="cpu")
    for row, (pick, y, x, shrink, flip) in enumerate(rand):
        drawn = pick < share
        source, pick = (pages, pick / share) if drawn else (photos, (pick - share) / (1.0 - share))
        photo = source[int(pick * len(source))]
        height, width = photo.shape[:2]
        factor = 2 ** int(np.searchsorted(limits, shrink, side="right"))
        while factor > 1 and min(height, width) < factor * crop:
            factor //= 2
        side = factor * crop
        top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
        patch = photo[top : top + side, left : left + side].permute(2, 0, 1).float()
        if factor > 1:
            patch = F.avg_pool2d(patch, factor)
        out[row] = patch.flip(2) if flip < 0.5 else patch
    return F.pixel_unshuffle(out / 127.5 - 1.0, 2)
