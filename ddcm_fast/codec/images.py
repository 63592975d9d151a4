"""Images in and out: files, PIL images, numpy arrays and float tensors in [-1, 1]; docs/images.md describes them.

Everything but a tensor goes through `to_srgb`, so that a file, a PIL image and an array of one picture are one picture.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Any, Union

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ddcm_fast.codec.container import MAX_SIDE
from ddcm_fast.errors import DDCMError, DDCMWarning, InputError
from ddcm_fast.files import MAX_IMAGE_FILE, read

#: What the codec takes as an image; see to_tensor.
ImageLike = Union[Image.Image, np.ndarray, Tensor]

#: No picture with more can be coded.
MAX_PIXELS = MAX_SIDE * MAX_SIDE
#: For callers that cut a piece out of the picture; the largest cameras make about this many.
MAX_PIXELS_TO_CUT = 8 * MAX_PIXELS

#: Pillow's names of the formats read. All are pictures of pixels; none starts another program, as EPS does.
_READ = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "AVIF", "JPEG2000", "QOI")

#: Ending -> Pillow's name of the format, and how it is written. None may take away what the codec kept: docs/images.md
#: has what JPEG and AVIF so written lose; the others lose nothing.
_WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    ".bmp": ("BMP", {}),
    ".ppm": ("PPM", {}),
    ".jpg": ("JPEG", {"quality": 98, "subsampling": "4:4:4"}),
    ".jpeg": ("JPEG", {"quality": 98, "subsampling": "4:4:4"}),
    ".avif": ("AVIF", {"quality": 97, "subsampling": "4:4:4"}),
}

# Tags of TIFF.
_BITS, _PHOTOMETRIC, _SMALLEST, _LARGEST = 258, 262, 340, 341

#: Of what a number may lie outside its range, as a share of the range: rounding.
_SLACK = 1e-3


# ---- reading -------------------------------------------------------------------------------------


def load_image(
    file: str | PathLike[str] | IO[bytes], max_pixels: int = MAX_PIXELS, background: str = "white"
) -> Image.Image:
    """Read an image file as `to_srgb` would have it.

    Raises InputError: no such file, one of more than 256 MiB, not an image of a known format, a damaged one, or one
    with more than `max_pixels` (known from its header: no pixel is unpacked).
    """
    with _opened(file, max_pixels) as (image, name):
        return _to_srgb(image, name, background, max_pixels)


def image_size(file: str | PathLike[str] | IO[bytes]) -> tuple[int, int]:
    """Width and height in pixels of the picture that `load_image` reads, from the file's header: no pixel is unpacked.

    Raises InputError: as `load_image`, but for what only the pixels show.
    """
    with _opened(file, MAX_PIXELS_TO_CUT) as (image, _):
        width, height = image.size
        # Of a PNG Pillow would unpack the pixels to look for the orientation behind them.
        with contextlib.suppress(Exception):  # damaged metadata, see _upright
            if image.format != "PNG" or "exif" in image.info:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return (height, width) if turned else (width, height)
        return width, height


@contextlib.contextmanager
def _opened(file: str | PathLike[str] | IO[bytes], max_pixels: int) -> Iterator[tuple[Image.Image, str]]:
    """An image file of a format that is read, not yet unpacked, and its name for messages. Raises InputError."""
    name = str(file) if isinstance(file, (str, PathLike)) else "the file"
    # As a whole: of a file on disk Pillow would ask for as many bytes as a damaged length says, and Python make room
    # for them first.
    data = read(Path(file), MAX_IMAGE_FILE) if isinstance(file, (str, PathLike)) else _read_stream(file)
    Image.init()
    try:
        with Image.open(io.BytesIO(data), formats=[known for known in _READ if known in Image.OPEN]) as image:
            yield image, name
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than {max_pixels} pixels; make the image smaller") from error
    except UnidentifiedImageError as error:
        raise InputError(f"cannot read {name} as an image: it must be one of {', '.join(_READ)}") from error
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        raise InputError(f"cannot read {name} as an image: {error}") from error


def is_reading_ending(ending: str) -> bool:
    """Whether files with this ending, dot included, are in a format that is read."""
    Image.init()
    return Image.registered_extensions().get(ending.lower()) in _READ


def _read_stream(file: IO[bytes]) -> bytes:
    try:
        data = file.read(MAX_IMAGE_FILE + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the file: {error}") from error
    if len(data) > MAX_IMAGE_FILE:
        raise InputError(f"the file has more than {MAX_IMAGE_FILE >> 20} MiB; make the image smaller")
    return data


def to_srgb(image: Image.Image, background: str = "white", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """What a PIL image of any mode shows: 8 bits, RGB or grey (L), in sRGB, opaque and the right way up.

    Its EXIF orientation is applied, its ICC profile converted, its transparency laid over `background`, and grey of
    more than 8 bits scaled by what its numbers mean (docs/images.md). An image that is so already comes back.

    Warns (DDCMWarning) of an animation, of which only the first frame is read, and of a profile that cannot be used.
    Raises InputError: an image that is damaged, has more than `max_pixels`, or numbers whose range cannot be known.
    """
    try:
        return _to_srgb(image, "the image", background, max_pixels)
    except (DDCMError, MemoryError):
        raise
    except Exception as error:  # of an image that Pillow has opened and not yet read
        raise InputError(f"cannot read the image: {error}") from error


def _to_srgb(image: Image.Image, name: str, background: str, max_pixels: int) -> Image.Image:
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise InputError(f"{size} pixels are more than {max_pixels}; make the image smaller, or raise --max-pixels")
    if _has_more(image):
        warnings.warn(f"{name} holds several pictures; only the first is read", DDCMWarning, stacklevel=4)
    key = _colour_key(image)
    image.load()
    turned = _upright(image, name)
    profile, gamma = image.info.get("icc_profile"), _gamma(image)
    opaque: Image.Image | None = None
    if turned.mode in ("I", "F") or turned.mode.startswith("I;16"):
        values = np.asarray(turned)
        if key is not None:
            opaque = Image.fromarray(values != key)
        light = _scaled(values.astype(np.float32), image)
        light = light if gamma is None else _from_gamma(light, gamma)
        colours = Image.fromarray((light * 65535).round().astype(np.uint16))
        if profile:
            colours = _from_profile(colours, profile, name)
        colours = colours if colours.mode == "RGB" else _eight_bits(colours)
    else:
        if key is not None:
            turned.info["transparency"] = key
        colours, opaque = _split(turned)
        if gamma is not None:
            table = (_from_gamma(np.arange(256) / 255, gamma) * 255).round().astype(int).tolist()
            colours = colours.point(table * len(colours.getbands()))
        if profile:
            colours = _from_profile(colours, profile, name)
        colours = colours if colours.mode in ("L", "RGB") else colours.convert("RGB")
    if opaque is not None:
        colours = Image.composite(colours, Image.new(colours.mode, colours.size, background), opaque)
    colours.info = {}
    return colours


def _has_more(image: Image.Image) -> bool:
    """Whether other pictures follow this, the first one."""
    # Asking a GIF rereads it, which must not happen to pixels that someone may have changed.
    unread = bool(getattr(image, "tile", None))
    several = getattr(image, "is_animated", False) if unread else vars(image).get("is_animated", False)
    if not several or image.tell() > 0:
        return False
    # Telephones and cameras put previews and gain maps behind a JPEG; those are much smaller than a second picture.
    sizes = [entry["Size"] for entry in getattr(image, "mpinfo", {}).get(0xB002, ())]
    return not sizes or any(2 * size > sizes[0] for size in sizes[1:])


def _upright(image: Image.Image, name: str) -> Image.Image:
    """A copy, turned as the EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # metadata are no reason to refuse the picture
        warnings.warn(f"the EXIF data of {name} are damaged: it is not turned", DDCMWarning, stacklevel=5)
        return image.copy()


def _eight_bits(image: Image.Image) -> Image.Image:
    """Mode I;16 -> L."""
    return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))


def _colour_key(image: Image.Image) -> Any:
    """The number or colour that is transparent, in the image's own numbers; bytes for a palette's alphas.

    Pillow gives a PNG's as it is stored, but widens pixels of 2 and 4 bits and keeps the high byte of 16-bit colours.
    """
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    stored = tiles[0][3] if image.format == "PNG" and tiles else None
    if isinstance(key, int) and image.mode == "1":
        return 255 if key else 0
    if isinstance(key, int) and stored in ("L;2", "L;4"):
        return key * (85 if stored == "L;2" else 17)
    if isinstance(key, tuple) and (stored == "RGB;16B" or max(key) > 255):
        return tuple(part >> 8 for part in key)
    return key


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours (L, RGB, CMYK or LAB) and, if there is one, opacity (L) of an image of 8 bits or less."""
    mode = image.mode
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        grey = mode in ("1", "L", "LA", "La")
        whole = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, "LA" if grey else "RGBA"))
        return whole.convert("L" if grey else "RGB"), whole.getchannel("A")
    if mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if mode == "1" else "RGB"), None


def _scaled(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits, (H, W) float32, to 0 (black) to 1 (white). Raises InputError where white is unknown."""
    if not np.isfinite(values).all():
        raise InputError("it has NaN or infinite entries")
    tags: Any = getattr(image, "tag_v2", {})
    smallest, largest = float(values.min()), float(values.max())
    whole = image.mode != "F" or bool((values == np.floor(values)).all())
    bits = int(np.ravel(tags.get(_BITS, 16))[0])
    low, high = 0.0, math.nan
    if _SMALLEST in tags and _LARGEST in tags:
        low, high = (float(np.ravel(tags[tag])[0]) for tag in (_SMALLEST, _LARGEST))
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        high = 2.0 ** min(bits, 16) - 1
    elif image.mode == "I" and tags and bits == 16:  # signed
        high = 2.0**15 - 1
    elif largest <= 1 + _SLACK:
        high = 1.0
    elif whole and (largest <= 255 or 4095 < largest <= 65535):
        high = 255.0 if largest <= 255 else 65535.0
    scaled = (values - low) / (high - low) if high > low else np.full_like(values, math.nan)
    if not (scaled.min() >= -_SLACK and scaled.max() <= 1 + _SLACK):
        raise InputError(
            f"its grey levels run from {smallest:g} to {largest:g}, and which is white is not known; "
            "scale them to 0..1 (float) or 0..65535 (16 bit)"
        )
    scaled = scaled.clip(0, 1)
    return 1 - scaled if tags.get(_PHOTOMETRIC) == 0 else scaled  # 0: white is zero, which Pillow leaves as it is


def _gamma(image: Image.Image) -> float | None:
    """A PNG's gAMA where it decides what the numbers mean: no profile, not declared sRGB, not sRGB's own 1/2.2."""
    gamma = image.info.get("gamma")
    if "icc_profile" in image.info or "srgb" in image.info or not isinstance(gamma, float):
        return None
    return gamma if 0.1 < gamma < 10 and abs(gamma * 2.2 - 1) > 0.05 else None


def _from_gamma(values: np.ndarray, gamma: float) -> np.ndarray:
    """Values 0 to 1 that are light to the power `gamma` -> the same light in sRGB's values."""
    light = values ** (1 / gamma)
    encoded: np.ndarray = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return encoded


def _from_profile(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """An image (L, I;16, RGB, CMYK or LAB) in its profile's colours -> sRGB; unchanged, with a warning, if that fails.

    Relative colorimetric with black point compensation: colours that sRGB has stay what they are. The perceptual intent
    may move those too, to make room for others.
    """
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space == "RGB " and image.mode in ("L", "I;16"):
            image = (image if image.mode == "L" else _eight_bits(image)).convert("RGB")
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        if image.mode == "I;16":  # LittleCMS's tables are too coarse for linear light, 10 levels off in the shadows
            flags |= ImageCms.Flags.NOOPTIMIZE
        target = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(source, target, image.mode, "RGB", intent, flags).apply(image)
    except (OSError, ValueError, TypeError, ImportError, ImageCms.PyCMSError) as error:
        warnings.warn(
            f"the ICC profile of {name} cannot be used ({error}); its numbers are taken for sRGB",
            DDCMWarning,
            stacklevel=5,
        )
        return image


def _from_array(array: np.ndarray) -> Image.Image:
    """(H, W) or (H, W, C) uint8, uint16 or bool -> a PIL image; C is 1, 2 (grey, alpha), 3 or 4 (RGB, alpha)."""
    if array.dtype.kind == "f":
        raise InputError(
            f"the array is {array.dtype}, which does not say what is white; give uint8 or uint16, "
            "or a tensor in [-1, 1]"
        )
    if not (array.dtype == np.bool_ or (array.dtype.kind == "u" and array.dtype.itemsize <= 2)):
        raise InputError(f"an image array must be uint8 or uint16, not {array.dtype}")
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise InputError(f"an image array must be (H, W) or (H, W, 3), not {array.shape}")
    white = 1 if array.dtype == np.bool_ else np.iinfo(array.dtype).max
    if white != 255:
        array = (array.astype(np.uint32) * 255 + white // 2) // white
    array = np.ascontiguousarray(array, dtype=np.uint8)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def to_tensor(image: ImageLike, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Tensor:
    """One image or a batch -> (B, channels, H, W) float32 in [-1, 1] on the tensor's device.

    A PIL image is taken as `to_srgb` has it, then as RGB (or grey for one channel). An array is (H, W) or (H, W, C),
    uint8, uint16 or bool, white at the type's largest number. A tensor is (C, H, W) or (B, C, H, W), floating point,
    in [-1, 1].

    Raises InputError: another type, shape or dtype, values outside [-1, 1], NaN or infinite entries, and what
    `to_srgb` refuses.
    """
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if isinstance(image, Image.Image):
        array = np.asarray(
            to_srgb(image, max_pixels=max_pixels).convert("RGB" if channels == 3 else "L"), dtype=np.float32
        )
        tensor = torch.from_numpy(array / 127.5 - 1.0)
        tensor = tensor.permute(2, 0, 1) if channels == 3 else tensor.unsqueeze(0)
        return tensor.unsqueeze(0).contiguous()
    if not isinstance(image, Tensor):
        raise InputError(f"an image must be an array, a PIL image or a tensor, not {type(image).__name__}")
    if not image.dtype.is_floating_point:
        raise InputError(f"an image tensor must be floating point in [-1, 1], not {image.dtype}")
    tensor = image if image.dim() == 4 else image.unsqueeze(0)
    if tensor.dim() != 4 or tensor.shape[1] != channels or len(tensor) == 0:
        raise InputError(f"an image tensor must be (B, {channels}, H, W) or without the B, not {tuple(image.shape)}")
    tensor = tensor.to(torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        raise InputError("the image has NaN or infinite entries")
    if float(tensor.abs().max()) > 1.001:
        raise InputError(f"the image tensor has values to {float(tensor.abs().max()):g}; scale it to [-1, 1] first")
    return tensor.contiguous()


def to_mask(image: Image.Image | np.ndarray) -> Tensor:
    """A picture of a mask -> (H, W) float32, 0 (black) to 1 (white). What is transparent is not marked: black."""
    picture = _from_array(image) if isinstance(image, np.ndarray) else image
    if not isinstance(picture, Image.Image):
        raise InputError(f"a mask must be a PIL image, an array or a tensor (H, W), not {type(image).__name__}")
    return torch.from_numpy(np.asarray(to_srgb(picture, "black").convert("L"), dtype=np.float32) / 255)


# ---- writing -------------------------------------------------------------------------------------


def to_pil(image: Tensor) -> Image.Image:
    """(C, H, W) float32 in [-1, 1] -> a PIL image, RGB or grey."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    if len(pixels) == 1:
        return Image.fromarray(pixels[0].numpy())
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def describe_endings() -> str:
    """What the endings of image files to write keep, for help texts."""
    exact = [ending for ending, (_, how) in _WRITTEN.items() if "quality" not in how]
    near = [f"{ending} (quality {how['quality']})" for ending, (_, how) in _WRITTEN.items() if "quality" in how]
    return f"{', '.join(exact)} keep every pixel, {', '.join(near)} nearly"


def writing_format(path: str | PathLike[str]) -> tuple[str, dict[str, Any]]:
    """Pillow's name of the format that a file's ending says, and how to write it. Raises InputError for others."""
    Image.init()
    known = {ending: how for ending, how in _WRITTEN.items() if how[0] in Image.SAVE}
    found = known.get(Path(path).suffix.lower())
    if found is None:
        name = Path(path).name
        raise InputError(f"{name!r} says no image format that keeps the picture; end it in {', '.join(known)}")
    return found


def save_image(image: Image.Image, file: IO[bytes], path: str | PathLike[str]) -> None:
    """Write what an image shows to an open file, in the format that the ending of `path` says; sRGB, without a profile.

    Raises InputError: an ending that is not of a format that holds the picture.
    """
    name, options = writing_format(path)
    to_srgb(image).save(file, format=name, **options)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise ratio in dB of two images in [-1, 1] (peak 2), over all entries."""
    mse = float((a.double() - b.double()).square().mean())
    return float("inf") if mse == 0 else 10 * float(np.log10(4 / mse))
