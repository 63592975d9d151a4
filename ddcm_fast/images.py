"""Images in and out: PIL images, files and float tensors in [-1, 1]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .errors import InputError


def load_image(path: str | Path) -> Image.Image:
    """Read an image file, turned as its EXIF orientation says.

    Raises InputError: no such file, or not an image.
    """
    from PIL import ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise InputError(f"cannot read {path} as an image: {error}") from error


def to_tensor(image: Image.Image | Tensor, channels: int = 3) -> Tensor:
    """One image or a batch -> (B, channels, H, W) float32 in [-1, 1] on the tensor's device.

    A PIL image is converted to RGB (or grey for one channel; transparency is laid over white). A tensor is
    (C, H, W) or (B, C, H, W), floating point, in [-1, 1].

    Raises InputError: another type, shape or dtype, values outside [-1, 1], NaN or infinite entries.
    """
    if isinstance(image, Image.Image):
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        array = np.asarray(image.convert("RGB" if channels == 3 else "L"), dtype=np.float32)
        tensor = torch.from_numpy(array / 127.5 - 1.0)
        tensor = tensor.permute(2, 0, 1) if channels == 3 else tensor.unsqueeze(0)
        return tensor.unsqueeze(0).contiguous()
    if not isinstance(image, Tensor):
        raise InputError(f"an image must be a PIL image or a tensor, not {type(image).__name__}")
    if not image.dtype.is_floating_point:
        raise InputError(f"an image tensor must be floating point in [-1, 1], not {image.dtype}")
    tensor = image if image.dim() == 4 else image.unsqueeze(0)
    if tensor.dim() != 4 or tensor.shape[1] != channels or len(tensor) == 0:
        raise InputError(f"an image tensor must be (B, {channels}, H, W) or without the B, not {tuple(image.shape)}")
    tensor = tensor.to(torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        raise InputError("the image has NaN or infinite entries")
    if float(tensor.abs().max()) > 1.001:
        raise InputError("the image tensor has values outside [-1, 1]; scale it first")
    return tensor.contiguous()


def to_pil(image: Tensor) -> Image.Image:
    """(C, H, W) float32 in [-1, 1] -> a PIL image, RGB or grey."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    if len(pixels) == 1:
        return Image.fromarray(pixels[0].numpy())
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise ratio in dB of two images in [-1, 1] (peak 2), over all entries."""
    mse = float((a.double() - b.double()).square().mean())
    return float("inf") if mse == 0 else 10 * float(np.log10(4 / mse))
