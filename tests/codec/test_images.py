"""What a picture means is kept, whatever it is stored as: a table of cases against numbers known without our code."""

import io
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pictures
import pytest
import torch
from PIL import Image, features

from ddcm_fast import Limits, load_model
from ddcm_fast.cli import main
from ddcm_fast.codec.codec import Codec
from ddcm_fast.codec.images import load_image, save_image, to_mask, to_srgb, to_tensor, writing_format
from ddcm_fast.errors import DDCMWarning, InputError

RGB = pictures.scene()
HEIGHT, WIDTH = RGB.shape[:2]
GREY = RGB[..., 0]
INK = 255 - RGB.astype(float)
ALPHA = np.broadcast_to(np.linspace(0, 255, WIDTH).round().astype(np.uint8), GREY.shape)
#: 16 bits that no 8 bits stand for.
DEEP = (GREY.astype(np.uint16) * 257) ^ np.arange(GREY.size, dtype=np.uint16).reshape(GREY.shape) % 200
FOUR = GREY // 16


def luma(rgb):
    return rgb @ [0.299, 0.587, 0.114] if rgb.ndim == 3 else rgb


def over(colours, alpha, background):
    alpha = np.asarray(alpha, float)[..., None] / 255 if colours.ndim == 3 else np.asarray(alpha, float) / 255
    return colours * alpha + background * (1 - alpha)


def other(picture, key):
    """Opacity of a picture in which one number or colour is transparent."""
    same = np.equal(picture, key)
    return (~(same.all(-1) if same.ndim == 3 else same)) * 255


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def tiff(bits, pixels, photometric=1, **more):
    return pictures.tiff(WIDTH, HEIGHT, bits, photometric, pixels, **more)


def packed_12(numbers):
    """(H, W) of numbers below 4096 -> TIFF's rows of 12 bits each."""
    bits = np.unpackbits(numbers.astype(">u2").view(np.uint8).reshape(HEIGHT, WIDTH, 2), axis=2)
    return np.packbits(bits[..., 4:].reshape(HEIGHT, -1), axis=1).tobytes()


def palette():
    """(P image, its colours in RGB): 30 colours, chosen by hand."""
    table = np.arange(90).reshape(30, 3) * 2 + [60, 10, 0]
    indices = (np.arange(GREY.size).reshape(GREY.shape) // 7 % 30).astype(np.uint8)
    image = Image.fromarray(indices)
    image = image.convert("P") if image.mode == "P" else Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(table.astype(np.uint8).tobytes())
    return image, table[indices], indices


P, P_COLOURS, P_INDICES = palette()
P_ALPHAS = bytes(range(0, 240, 8))


def from_adobe(values):
    """Numbers 0 to 255 in Adobe RGB -> sRGB's, by the two standards' formulas."""
    return pictures.xyz_to_srgb((values / 255) ** pictures.ADOBE_GAMMA @ pictures.ADOBE.T)


# The corners' lightness is chosen so that the naive conversion, which takes cyan for cyan, is far off.
CORNERS = [0 if k else 100 - 40 * c - 20 * m - 10 * y for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
INKS = np.kron(np.array([[(0, 0, 0, 0), (255, 0, 0, 0)], [(0, 255, 0, 0), (255, 0, 255, 0)], [(0, 0, 0, 255),
    (255, 255, 255, 0)]], np.uint8), np.ones((8, 8, 1), np.uint8))  # fmt: skip
INK_GREYS = pictures.lab_to_srgb(
    np.kron(np.array([[100.0, 60], [80, 50], [0, 30]]), np.ones((8, 8)))[..., None] * [1, 0, 0]
)
LAB = np.stack([40 + GREY / 5.0, RGB[..., 1] / 10.0 - 15, RGB[..., 2] / 10.0 - 10], -1).round()
LAB_BYTES = (LAB * [2.55, 1, 1]).round().astype(int) % 256

#: name: (a file's bytes, or a PIL image; the values 0 to 255 it shows; how far off a value may be)
OPAQUE = {
    "grey, 8 bits": (pictures.png_of(GREY), GREY, 0),
    "grey, 4 bits": (pictures.packed_png(FOUR, 4), FOUR * 17, 0),
    "grey, 2 bits": (pictures.packed_png(GREY // 64, 2), GREY // 64 * 85, 0),
    "grey, 1 bit": (pictures.packed_png(GREY // 128, 1), GREY // 128 * 255, 0),
    "grey, 16 bits": (pictures.png_of(DEEP), DEEP / 257, 0.51),
    "grey, 16 bits, TIFF": (tiff(16, DEEP.astype("<u2").tobytes()), DEEP / 257, 0.51),
    "grey, 16 bits, big-endian": (tiff(16, DEEP.astype(">u2").tobytes(), order=">"), DEEP / 257, 0.51),
    "grey, 16 bits, white is zero": (tiff(16, DEEP.astype("<u2").tobytes(), 0), 255 - DEEP / 257, 0.51),
    "grey, 16 bits, signed": (tiff(16, (DEEP // 2).astype("<i2").tobytes(), sample_format=2), DEEP / 257, 0.51),
    "grey, 16 bits, range in tags": (
        tiff(16, (DEEP // 32 + 7).astype("<u2").tobytes(), t340=(3, 7), t341=(3, 2054)),
        DEEP // 32 / 2047 * 255,
        0.51,
    ),
    "grey, 12 bits": (
        tiff(12, packed_12(DEEP >> 4)),
        (DEEP >> 4) / 4095 * 255,
        0.51,
    ),
    "grey, 32 bits": (tiff(32, DEEP.astype("<i4").tobytes(), sample_format=2), DEEP / 257, 0.51),
    "grey, 32 bits, of 8": (tiff(32, GREY.astype("<i4").tobytes(), sample_format=2), GREY, 0),
    "float, 0 to 1": (tiff(32, (DEEP / 65535).astype("<f4").tobytes(), sample_format=3), DEEP / 257, 0.51),
    "float, 0 to 1, dark": (tiff(32, (DEEP / 262140).astype("<f4").tobytes(), sample_format=3), DEEP / 1028, 0.51),
    "float, whole to 255": (tiff(32, GREY.astype("<f4").tobytes(), sample_format=3), GREY, 0),
    "float, whole to 65535": (tiff(32, DEEP.astype("<f4").tobytes(), sample_format=3), DEEP / 257, 0.51),
    "float, range in tags": (
        tiff(32, (GREY * 3.7 - 100).astype("<f4").tobytes(), sample_format=3, t340=(12, -100), t341=(12, 843.5)),
        GREY,
        0.01,
    ),
    "PGM, 1000 levels": (
        b"P5 %d %d 1000\n" % (WIDTH, HEIGHT) + (GREY.astype(">u2") * 3).astype(">u2").tobytes(),
        GREY * 0.765,
        0.51,
    ),
    "I;16 in memory": (Image.fromarray(DEEP), DEEP / 257, 0.51),
    "I in memory": (Image.fromarray(DEEP.astype(np.int32)), DEEP / 257, 0.51),
    "F in memory": (Image.fromarray((DEEP / 65535).astype(np.float32)), DEEP / 257, 0.51),
    "1 in memory": (Image.fromarray(GREY > 128), (GREY > 128) * 255, 0),
    "RGB": (pictures.png_of(RGB), RGB, 0),
    "RGB, 16 bits": (pictures.png_of(RGB.astype(np.uint16) * 257), RGB, 0),
    "RGB, 16 bits, any": (pictures.png_of(RGB.astype(np.uint16) * 256 + 131), RGB + 131 / 256, 1),
    "RGB, 16 bits, TIFF": (tiff(16, (RGB.astype("<u2") * 257).tobytes(), 2, samples=3), RGB, 0),
    "RGBX": (Image.fromarray(np.dstack([RGB, ALPHA]), "RGBA").convert("RGB").convert("RGBX"), RGB, 0),
    "palette": (saved(P, "PNG"), P_COLOURS, 0),
    "palette, GIF": (saved(P, "GIF"), P_COLOURS, 0),
    "JPEG": (saved(Image.fromarray(RGB), "JPEG", quality=100, subsampling=0), RGB, 4),
    "YCbCr": (
        Image.merge("YCbCr", [Image.new("L", (9, 8), v) for v in (100, 90, 180)]),
        np.ones((8, 9, 3)) * [100 + 1.402 * 52, 100 + 0.344136 * 38 - 0.714136 * 52, 100 - 1.772 * 38],
        1,
    ),
    "HSV": (
        Image.merge("HSV", [Image.new("L", (9, 8), v) for v in (85, 102, 200)]),
        np.ones((8, 9, 3)) * [120, 200, 120],
        1,
    ),
    "CMYK, TIFF": (saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB, 1),
    "CMYK with black": (
        Image.fromarray(np.dstack([INK, np.full_like(GREY, 60)]).astype(np.uint8), "CMYK"),
        RGB * (195 / 255),
        1,
    ),
    "CMYK, inverted by Adobe's rule": (
        saved(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=100, subsampling=0),
        RGB,
        5,
    ),
    "LAB": (tiff(8, LAB_BYTES.astype(np.uint8).tobytes(), 8, samples=3), pictures.lab_to_srgb(LAB), 2),
    "linear gAMA": (pictures.png_of(RGB, (b"gAMA", struct.pack(">I", 100000))), pictures.encode_srgb(RGB / 255), 0.51),
    "linear gAMA, 16 bits": (
        pictures.png_of(DEEP, (b"gAMA", struct.pack(">I", 100000))),
        pictures.encode_srgb(DEEP / 65535),
        0.51,
    ),
    "gAMA beside sRGB": (pictures.png_of(RGB, (b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))), RGB, 0),
    "gAMA of sRGB": (pictures.png_of(RGB, (b"gAMA", struct.pack(">I", 45455))), RGB, 0),
    "Adobe RGB": (saved(Image.fromarray(RGB), "PNG", icc_profile=pictures.icc_adobe()), from_adobe(RGB), 2),
    "Adobe RGB, JPEG": (
        saved(Image.fromarray(RGB), "JPEG", quality=100, subsampling=0, icc_profile=pictures.icc_adobe()),
        from_adobe(RGB),
        9,  # three levels, where the curves are steep
    ),
    "Adobe RGB, TIFF": (tiff(8, RGB.tobytes(), 2, samples=3, t34675=(7, pictures.icc_adobe())), from_adobe(RGB), 2),
    "Adobe RGB, palette": (saved(P, "PNG", icc_profile=pictures.icc_adobe()), from_adobe(P_COLOURS), 2),
    "Adobe RGB of grey": (
        saved(Image.fromarray(GREY), "PNG", icc_profile=pictures.icc_adobe()),
        from_adobe(np.dstack([GREY] * 3)),
        2,
    ),
    "Adobe RGB of grey, 16 bits": (
        saved(Image.fromarray(DEEP), "PNG", icc_profile=pictures.icc_adobe()),
        from_adobe(np.dstack([DEEP / 257] * 3)),
        2,
    ),
    "linear grey": (
        saved(Image.fromarray(GREY), "PNG", icc_profile=pictures.icc_grey(1)),
        pictures.encode_srgb(GREY / 255),
        2,
    ),
    "linear grey, 16 bits": (
        saved(Image.fromarray(DEEP // 64), "PNG", icc_profile=pictures.icc_grey(1)),
        pictures.encode_srgb(DEEP // 64 / 65535),  # 0 to 15 % of white in a thousand steps
        2,
    ),
    "CMYK with a profile": (
        saved(Image.fromarray(INKS, "CMYK"), "TIFF", icc_profile=pictures.icc_cmyk(CORNERS)),
        INK_GREYS,
        2,
    ),
}

#: name: (file or PIL image, colours, opacity 0 to 255 or how far a value may be off)
TRANSPARENT = {
    "RGBA": (pictures.png_of(np.dstack([RGB, ALPHA])), RGB, ALPHA),
    "RGBA, 16 bits": (pictures.png_of(np.dstack([RGB, ALPHA]).astype(np.uint16) * 257), RGB, ALPHA),
    "RGBA, WebP": (saved(Image.fromarray(np.dstack([RGB, ALPHA])), "WEBP", lossless=True, exact=True), RGB, ALPHA),
    "RGBa": (Image.fromarray(np.dstack([RGB, ALPHA | 128])).convert("RGBa"), RGB, ALPHA | 128),
    "LA": (pictures.png_of(np.dstack([GREY, ALPHA])), GREY, ALPHA),
    "LA, 16 bits": (pictures.png_of(np.dstack([GREY, ALPHA]).astype(np.uint16) * 257), GREY, ALPHA),
    "La": (Image.fromarray(np.dstack([GREY, ALPHA | 128])).convert("La"), GREY, ALPHA | 128),
    "PA": (Image.merge("LA", [Image.fromarray(P_INDICES), Image.fromarray(ALPHA)]), P_INDICES, ALPHA),
    "palette, one index": (saved(P, "PNG", transparency=3), P_COLOURS, other(P_INDICES, 3)),
    "palette, one index, GIF": (saved(P, "GIF", transparency=3), P_COLOURS, other(P_INDICES, 3)),
    "palette, opacities": (saved(P, "PNG", transparency=P_ALPHAS), P_COLOURS, P_INDICES * 8),
    "key, RGB": (
        pictures.png_of(RGB, (b"tRNS", struct.pack(">3H", *RGB[0, 0]))),
        RGB,
        other(RGB, RGB[0, 0]),
    ),
    "key, RGB, 16 bits": (
        pictures.png_of(RGB.astype(np.uint16) * 257, (b"tRNS", struct.pack(">3H", *(RGB[0, 0].astype(int) * 257)))),
        RGB,
        other(RGB, RGB[0, 0]),
    ),
    "key, grey": (pictures.png_of(GREY, (b"tRNS", struct.pack(">H", GREY[-1, -1]))), GREY, other(GREY, GREY[-1, -1])),
    "key, grey, 16 bits": (
        pictures.png_of(DEEP, (b"tRNS", struct.pack(">H", DEEP[3, 4]))),
        DEEP / 257,
        other(DEEP, DEEP[3, 4]),
    ),
    "key, grey, 4 bits": (
        pictures.packed_png(FOUR, 4, (b"tRNS", struct.pack(">H", FOUR[2, 2]))),
        FOUR * 17,
        other(FOUR, FOUR[2, 2]),
    ),
    "key, grey, 1 bit": (
        pictures.packed_png(GREY // 128, 1, (b"tRNS", b"\0\1")),
        GREY // 128 * 255,
        (GREY < 128) * 255,
    ),
    "Adobe RGB": (
        saved(Image.fromarray(np.dstack([RGB, ALPHA])), "PNG", icc_profile=pictures.icc_adobe()),
        from_adobe(RGB),
        ALPHA,
    ),
}


def routes(source):
    """What a file shows if read as one, or given as a PIL image, or given after someone has read it."""
    if isinstance(source, Image.Image):
        return {"PIL": source}
    read = Image.open(io.BytesIO(source))
    read.load()
    return {"file": load_image(io.BytesIO(source)), "PIL": Image.open(io.BytesIO(source)), "PIL, read": read}


def values(image, channels=3):
    tensor = to_tensor(image, channels)[0]
    assert tensor.dtype == torch.float32
    return ((tensor + 1) * 127.5).permute(1, 2, 0).numpy().squeeze()


def check(image, want, tolerance):
    want = np.asarray(want, float)
    colour = want if want.ndim == 3 else np.dstack([want] * 3)
    assert values(image).shape == colour.shape
    assert np.abs(values(image) - colour).max() <= tolerance + 1e-3
    assert np.abs(values(image, 1) - luma(want)).max() <= tolerance + 1  # Pillow's luma is rounded


@pytest.mark.parametrize("name", OPAQUE)
def test_opaque(name):
    source, want, tolerance = OPAQUE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DDCMWarning)
        for image in routes(source).values():
            check(image, want, tolerance)
            mask = to_mask(image).numpy() * 255
            assert np.abs(mask - luma(np.asarray(want, float))).max() <= tolerance + 1


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent(name):
    source, colours, alpha = TRANSPARENT[name]
    colours = np.asarray(colours, float)
    tolerance = 2.5 if name == "Adobe RGB" else 2 if name in ("RGBa", "La") else 1
    images = routes(source)
    if name == "key, grey, 4 bits":
        del images["PIL, read"]
    for image in images.values():
        plain = to_srgb(image)  # once: Pillow forgets what a key means when the pixels are read
        check(plain, over(colours, alpha, 255), tolerance)
    mask = source if isinstance(source, Image.Image) else load_image(io.BytesIO(source), background="black")
    assert np.abs(to_mask(mask).numpy() * 255 - luma(over(colours, alpha, 0))).max() <= tolerance + 1


#: orientation: the stored rows of a picture that shows RGB
TURNS = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB),
    7: np.rot90(RGB, 2).transpose(1, 0, 2),
    8: np.rot90(RGB, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_orientation(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    image = Image.fromarray(np.ascontiguousarray(TURNS[orientation]))
    for read in routes(saved(image, form, exif=exif, **options)).values():
        check(read, RGB, 4 if form == "JPEG" else 0)


def test_damaged_exif_is_no_reason_to_refuse():
    data = saved(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(load_image(io.BytesIO(data)), RGB, 0)


@pytest.mark.parametrize(
    ("image", "profile"),
    [
        (Image.fromarray(RGB), b"no profile"),
        (Image.fromarray(RGB), pictures.icc_adobe()[:300]),
        (Image.fromarray(RGB), pictures.icc_cmyk(CORNERS)),
        (Image.fromarray(RGB), pictures.icc_grey(2)),
        (Image.fromarray(GREY), pictures.icc_cmyk(CORNERS)),
        (Image.fromarray(DEEP), b"no profile"),
    ],
)
def test_a_profile_that_cannot_be_used_is_told_and_left_out(image, profile):
    want = np.asarray(image) / (257 if image.mode == "I;16" else 1)
    with pytest.warns(DDCMWarning, match="ICC profile of the file cannot be used"):
        check(load_image(io.BytesIO(saved(image, "PNG", icc_profile=profile))), want, 0.51)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_only_the_first_of_several_pictures_is_read_and_this_is_told(form):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
    first, second = (first.quantize(64), second.quantize(64)) if form == "GIF" else (first, second)
    options = {"GIF": {}, "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(form, {"quality": 100})
    options |= {"subsampling": "4:4:4"} if form in ("MPO", "AVIF") else {}
    data = saved(first, form, save_all=True, append_images=[second], **options)
    with pytest.warns(DDCMWarning, match="several pictures; only the first"):
        image = load_image(io.BytesIO(data))
    shown = np.asarray(first.convert("RGB"))
    assert np.abs(values(image) - shown).max() <= (6 if form in ("MPO", "AVIF") else 1e-3)
    with pytest.warns(DDCMWarning):
        to_tensor(Image.open(io.BytesIO(data)))
    later = Image.open(io.BytesIO(data))
    later.seek(1)
    with warnings.catch_warnings():  # the caller has chosen
        warnings.simplefilter("error", DDCMWarning)
        to_tensor(later)


def test_a_preview_behind_a_photograph_is_not_a_second_picture():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(photo, "MPO", save_all=True, append_images=[photo.resize((16, 16))])
    with warnings.catch_warnings():
        warnings.simplefilter("error", DDCMWarning)
        assert load_image(io.BytesIO(data)).size == (64, 64)


def floats(*numbers):
    return tiff(32, np.resize(np.array(numbers, "<f4"), GREY.shape).tobytes(), sample_format=3)


#: name: (a file's bytes, what the message says)
REFUSED = {
    "empty": (b"", "must be one of PNG"),
    "text": (b"no picture\n", "must be one of PNG"),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        "must be one of PNG",
    ),
    "truncated PNG": (pictures.png_of(RGB)[:-300], "truncated"),
    "truncated JPEG": (saved(Image.fromarray(RGB), "JPEG")[:-300], "truncated"),
    "truncated TIFF": (tiff(8, GREY.tobytes()[:-99]), "cannot read"),
    "13000x13000": (pictures.png(13000, 13000, 8, 2, []), "13000x13000 pixels are more than 16777216"),
    "beyond Pillow's own limit": (pictures.png(30000, 30000, 8, 2, []), "more than 16777216 pixels"),
    "a text of 100 MB": (
        pictures.png_of(RGB, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**8)))),
        "cannot read",
    ),
    "NaN": (floats(0, float("nan")), "NaN"),
    "infinite": (floats(0, float("inf")), "infinite"),
    "negative": (floats(-0.5, 1), "run from -0.5 to 1"),
    "high dynamic range": (floats(0, 0.5, 7.25), "run from 0 to 7.25"),
    "float, unknown depth": (floats(0, 1000), "which is white is not known"),
    "float, whole, too large": (floats(0, 70000), "which is white is not known"),
    "beyond the range in the tags": (
        tiff(32, (GREY / 100).astype("<f4").tobytes(), sample_format=3, t340=(12, 0), t341=(12, 1)),
        "which is white",
    ),
    "range of nothing": (
        tiff(32, (GREY / 255).astype("<f4").tobytes(), sample_format=3, t340=(12, 1), t341=(12, 1)),
        "which is white",
    ),
    "32 bits, negative": (tiff(32, (GREY.astype("<i4") - 100).tobytes(), sample_format=2), "which is white"),
    "32 bits, unknown depth": (tiff(32, (GREY.astype("<i4") * 9).tobytes(), sample_format=2), "which is white"),
    "32 bits, full": (tiff(32, (DEEP.astype("<u4") * 65537).tobytes()), "which is white"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    data, says = REFUSED[name]
    path = tmp_path / "picture.xyz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=says) as error:
        load_image(path)
    assert "picture.xyz" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["truncated PNG", "negative", "13000x13000"])
def test_a_pil_image_is_refused_as_its_file_is(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(REFUSED[name][0]))
    with pytest.raises(InputError):
        to_tensor(image)


def test_more_pixels_on_request():
    wide = pictures.png(5000, 4000, 8, 0, [bytes(5000)] * 4000)
    with pytest.raises(InputError, match="5000x4000"):
        load_image(io.BytesIO(wide))
    assert load_image(io.BytesIO(wide), max_pixels=20_000_000).size == (5000, 4000)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_image(tmp_path / "none.png")


@pytest.mark.parametrize("name", ["RGB", "grey, 16 bits", "Adobe RGB", "palette, GIF"])
def test_reading_changes_nothing_of_a_pil_image(name):
    image = Image.open(io.BytesIO(OPAQUE[name][0]))
    image.load()
    image.putpixel((0, 0), 1)
    before = image.mode, image.size, image.tobytes(), dict(image.info)
    plain = to_srgb(image)
    assert before == (image.mode, image.size, image.tobytes(), dict(image.info))
    assert to_srgb(plain) == plain and plain.info == {}


ARRAYS = {
    "uint8, RGB": (RGB, RGB),
    "uint8, grey": (GREY, GREY),
    "uint8, grey, three axes": (GREY[..., None], GREY),
    "uint8, RGBA": (np.dstack([RGB, ALPHA]), over(RGB, ALPHA, 255)),
    "uint8, view": (RGB[::2, ::-1], RGB[::2, ::-1]),
    "uint16, RGB": (RGB.astype(np.uint16) * 257, RGB),
    "uint16, grey": (DEEP, DEEP / 257),
    "uint16, big-endian": (DEEP.astype(">u2"), DEEP / 257),
    "bool": (GREY > 128, (GREY > 128) * 255),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name):
    array, want = ARRAYS[name]
    check(array, want, 1 if "RGBA" in name else 0.51)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (RGB / 255, "float64, which does not say"),
        (RGB.astype(np.int64), "uint8 or uint16, not int64"),
        (RGB.transpose(2, 0, 1), r"\(H, W\) or \(H, W, 3\)"),
        (RGB[None], r"\(H, W\) or \(H, W, 3\)"),
        (RGB[:0], r"\(H, W\)"),
        ([1, 2], "an array, a PIL image or a tensor, not list"),
    ],
)
def test_arrays_refused(array, says):
    with pytest.raises(InputError, match=says):
        to_tensor(array)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.webp", "a.tif", "a.tiff", "a.bmp", "a.ppm"])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["RGB", "grey"])
def test_written_exactly(name, pixels, tmp_path):
    with open(tmp_path / name, "wb") as file:
        save_image(Image.fromarray(pixels), file, tmp_path / name)
    read = Image.open(tmp_path / name)
    assert np.array_equal(np.asarray(read.convert("RGB")), np.asarray(Image.fromarray(pixels).convert("RGB")))


def test_written_in_srgb():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    data = saved(Image.fromarray(np.rot90(RGB).copy()), "PNG", exif=exif, icc_profile=pictures.icc_adobe())
    save_image(Image.open(io.BytesIO(data)), file, "a.png")
    read = Image.open(file)
    assert not read.info and np.abs(np.asarray(read) - from_adobe(RGB)).max() <= 2


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.avif"])
def test_written_without_losing_what_the_codec_kept(name):
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pixels = pictures.scene(120, 96).astype(float)
    pixels += np.random.default_rng(0).normal(0, 12, pixels.shape)  # edges and grain of every colour
    pixels = pixels.clip(0, 255).round().astype(np.uint8)
    file = io.BytesIO()
    save_image(Image.fromarray(pixels), file, name)
    error = np.asarray(Image.open(file).convert("RGB")) - pixels.astype(float)
    assert 10 * np.log10(255**2 / (error**2).mean()) > 42  # 0.1 dB of 26 dB, 0.3 of 30


@pytest.mark.parametrize("name", ["a.gif", "a.pdf", "a.eps", "a.ico", "a.xbm", "a.jp2", "a.txt", "a", "a.png.old"])
def test_endings_refused(name, tmp_path, capsys, monkeypatch):
    with pytest.raises(InputError, match="says no image format"):
        writing_format(name)
    monkeypatch.setattr(Codec, "decode", None)  # before anything is decoded
    (tmp_path / "a.ddcm").write_bytes(b"not read")
    assert main(["decompress", str(tmp_path / "a.ddcm"), str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert ".png" in said and ".jpg" in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.ddcm"]


def test_a_mask_of_any_depth_is_one_mask(tmp_path, capsys):
    """Of the command line too: of 8 and 16 bits, float, and white painted on a transparent ground."""
    digit, mask = pictures.scene(8, 8)[..., 0], np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    (tmp_path / "digit.png").write_bytes(pictures.png_of(digit))
    forms = {
        "8.png": pictures.png_of(mask),
        "16.png": pictures.png_of(mask.astype(np.uint16) * 257),
        "float.tif": pictures.tiff(8, 8, 32, 1, (mask / 255).astype("<f4").tobytes(), sample_format=3),
        "painted.png": pictures.png_of(np.dstack([np.full_like(mask, 255), mask])),
    }
    files = {}
    for name, data in {"": b"", **forms}.items():
        more = []
        if name:
            (tmp_path / name).write_bytes(data)
            more = ["--mask", str(tmp_path / name)]
        command = ["compress", str(tmp_path / "digit.png"), str(tmp_path / "a.ddcm"), "--model", "digits", "-q"]
        assert main([*command, "--preset", "ddcm", "-T", "6", "-K", "64", "--device", "cpu", *more]) == 0
        files[name] = (tmp_path / "a.ddcm").read_bytes()
    assert len({files[name] for name in forms}) == 1 and files[""] != files["8.png"]
    assert capsys.readouterr().err == ""


def test_the_codec_takes_an_array():
    from ddcm_fast import load_model

    codec = Codec.from_preset(load_model("digits", device="cpu"), "ddcm", T=4, K=16)
    array = pictures.scene(8, 8)[..., 0]
    assert codec.compress(array) == codec.compress(Image.fromarray(array))
    assert codec.compress(array, mask=array) == codec.compress(array, mask=Image.fromarray(array))


def test_no_room_is_made_for_what_a_damaged_length_says(tmp_path):
    """A box of nearly 4 GiB, of which the file has 16 bytes."""
    data = (Path(__file__).parents[1] / "fuzz" / "corpus" / "images-jp2_box.bin").read_bytes()
    path = tmp_path / "box.jp2"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        for file in (path, str(path), path.open("rb"), io.BytesIO(data)):
            with pytest.raises(InputError, match="as an image"):
                load_image(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 29  # 256 MiB at once are read of a stream, at most
    finally:
        tracemalloc.stop()


def test_files_and_pictures_have_the_codecs_limit(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (32, 16)).save(path)
    codec = Codec(load_model("gaussian-field", device="cpu"), limits=Limits(pixels=511))
    for picture in (path, Image.open(path)):
        with pytest.raises(InputError, match="32x16 pixels are more than 511"):
            codec.encode(picture)
