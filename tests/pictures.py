"""Small pictures written byte by byte, where Pillow cannot write them or should not be trusted with both sides."""

import struct
import zlib

import numpy as np

#: Colorants of Adobe RGB (1998) adapted to D50, from its published primaries: columns of RGB -> XYZ.
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
ADOBE_GAMMA = 563 / 256

#: sRGB -> XYZ (D50), from IEC 61966-2-1's primaries adapted by Bradford's method.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
D50 = np.array([0.9642, 1.0, 0.8249])


def scene(height=20, width=24):
    """(height, width, 3) uint8: smooth, of many colours, and no two of its eight orientations alike."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    rgb = np.stack([0.2 + 0.6 * x, 0.3 + 0.5 * y * x, 0.7 - 0.4 * y], -1)
    rgb[: height // 4, : width // 3] = (0.9, 0.5, 0.1)
    return (rgb * 255).round().astype(np.uint8)


def encode_srgb(light):
    """Light 0 to 1 -> sRGB's values 0 to 255, by the formula of IEC 61966-2-1."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def xyz_to_srgb(xyz):
    """(..., 3) XYZ relative to D50 -> sRGB's values 0 to 255."""
    return encode_srgb(xyz @ np.linalg.inv(SRGB).T)


def lab_to_srgb(lab):
    """(..., 3) CIE L*a*b* relative to D50 -> sRGB's values 0 to 255."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], -1)
    return xyz_to_srgb(np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50)


# ---- files ---------------------------------------------------------------------------------------


def png(width, height, depth, colour, rows, *chunks):
    """A PNG of any depth. rows: bytes each; chunks: (name, data), put before the pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def png_of(array, *chunks):
    """(H, W) or (H, W, C) uint8 or uint16 as a PNG: grey, grey and alpha, RGB, RGBA."""
    samples = 1 if array.ndim == 2 else array.shape[2]
    rows = [row.astype(array.dtype.newbyteorder(">")).tobytes() for row in array]
    return png(array.shape[1], array.shape[0], 8 * array.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[samples], rows, *chunks)


def packed_png(array, depth, *chunks):
    """(H, W) of numbers below 2^depth as a grey PNG of 1, 2 or 4 bits."""
    bits = np.unpackbits(array.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :].reshape(len(array), -1)
    return png(array.shape[1], len(array), depth, 0, [row.tobytes() for row in np.packbits(bits, axis=1)], *chunks)


def tiff(width, height, bits, photometric, pixels, order="<", samples=1, sample_format=1, **tags):
    """An uncompressed TIFF of one strip. tags: t340=(12, 0.5) is tag 340, a double; types 3, 4, 7 and 12."""
    entries = {256: (4, width), 257: (4, height), 258: (3, [bits] * samples), 259: (3, 1), 262: (3, photometric)}
    entries |= {277: (3, samples), 278: (4, height), 279: (4, len(pixels)), 339: (3, [sample_format] * samples)}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    packed, extra = {}, b""
    for tag, (kind, value) in entries.items():
        values = value if isinstance(value, list) else [value]
        form = {3: "H", 4: "I", 12: "d"}.get(kind)
        data = value if kind == 7 else struct.pack(f"{order}{len(values)}{form}", *values)
        count = len(data) if kind == 7 else len(values)
        if len(data) > 4:
            data, extra = struct.pack(order + "I", start + len(extra)), extra + data + b"\0" * (len(data) % 2)
        packed[tag] = struct.pack(order + "HHI", tag, kind, count) + data.ljust(4, b"\0")
    packed[273] = struct.pack(order + "HHII", 273, 4, 1, start + len(extra))
    table = struct.pack(order + "H", len(packed)) + b"".join(packed[tag] for tag in sorted(packed)) + b"\0" * 4
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + table + extra + pixels


# ---- ICC profiles --------------------------------------------------------------------------------


def _icc(kind, space, connection, tags):
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(*D50),
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, kind, space, connection)
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + _fixed(*D50)
    return head.ljust(128, b"\0") + table + body


def _fixed(*values):
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def _curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def icc_adobe():
    """Adobe RGB (1998)."""
    columns = {name: b"XYZ \0\0\0\0" + _fixed(*ADOBE[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return _icc(b"mntr", b"RGB ", b"XYZ ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(ADOBE_GAMMA)))


def icc_grey(gamma):
    """Grey whose light is the number to the power gamma."""
    return _icc(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def icc_cmyk(lightness):
    """Inks of which any mixture is grey. lightness: (16,) L* of 0 or all of C, M, Y, K, K changing fastest."""
    ramp, same = bytes(range(256)), _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    corners = b"".join(bytes([round(2.55 * v), 128, 128]) for v in lightness)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + same + ramp * 4 + corners + ramp * 3
    return _icc(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})
