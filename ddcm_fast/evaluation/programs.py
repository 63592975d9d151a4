"""BPG and VVC's reference encoder VTM as codecs: programs that the user has built, found on the path."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddcm_fast.errors import ConfigError, InputError, MissingExtraError
from ddcm_fast.evaluation.codec import LevelCodec
from ddcm_fast.files import MAX_IMAGE_FILE, read

NAMES = ("bpg", "vtm")

#: Rows of Y, Cb and Cr in terms of R, G and B: BT.709, full range, without the middle of the chroma.
_YCBCR = np.array([[0.2126, 0.7152, 0.0722], [-0.2126, -0.7152, 0.9278], [0.7874, -0.7152, -0.0722]])
_YCBCR /= np.array([[1.0], [1.8556], [1.5748]])
_MIDDLE = np.array([0.0, 128.0, 128.0])

#: How VTM's files begin here: width and height, which its decoder does not say.
_SIZE = struct.Struct("<HH")


class _ProgramCodec(LevelCodec):
    """A codec of two programs. `settings` have the digests of both, as another build may make other files.

    Raises MissingExtraError: one of them is not on the path.
    """

    def __init__(
        self, name: str, levels: range, encoder: tuple[str, ...], decoder: tuple[str, ...], settings: dict[str, Any]
    ) -> None:
        self._encoder, self._decoder = _find(name, encoder), _find(name, decoder)
        programs = {"encoder": _digest(self._encoder), "decoder": _digest(self._decoder)}
        super().__init__(name, levels, {**settings, **programs})

    def _encode(self, image: Image.Image, level: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return self._encode_in(Path(folder), image, level)

    def _decode(self, data: bytes) -> Image.Image:
        with tempfile.TemporaryDirectory() as folder:
            return self._decode_in(Path(folder), data)

    @abstractmethod
    def _encode_in(self, folder: Path, image: Image.Image, level: int) -> bytes:
        """As `_encode`, with a folder for files."""

    @abstractmethod
    def _decode_in(self, folder: Path, data: bytes) -> Image.Image:
        """As `_decode`, with a folder for files."""

    def _run(self, program: Path, *arguments: str | Path) -> None:
        """Run a program. Raises InputError: it failed, with the last line that it wrote."""
        try:
            done = subprocess.run([program, *arguments], capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise InputError(f"{self.name}: cannot run {program}: {error.strerror or error}") from error
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
            raise InputError(f"{self.name}: {program.name} failed: {said}")


class BpgCodec(_ProgramCodec):
    """BPG (Bellard): HEVC's intra frames, with 8 bits, 4:4:4 and the coder that `bpgenc` was built with."""

    def __init__(self) -> None:
        self._options = ["-f", "444", "-c", "ycbcr", "-b", "8"]
        super().__init__("bpg", range(51, -1, -1), ("bpgenc",), ("bpgdec",), {"options": self._options})

    def _encode_in(self, folder: Path, image: Image.Image, level: int) -> bytes:
        source, coded = folder / "in.png", folder / "out.bpg"
        image.save(source, "PNG", compress_level=1)
        self._run(self._encoder, *self._options, "-q", str(level), "-o", coded, source)
        return read(coded)

    def _decode_in(self, folder: Path, data: bytes) -> Image.Image:
        coded, decoded = folder / "in.bpg", folder / "out.png"
        coded.write_bytes(data)
        self._run(self._decoder, "-o", decoded, coded)
        with Image.open(decoded) as file:
            return file.convert("RGB")


class VtmCodec(_ProgramCodec):
    """VVC by its reference software: an intra frame of BT.709 YCbCr in 4:4:4, 8 bits in and out, as CompressAI has it.

    Args:
        cfg: the configuration, VTM's encoder_intra_vtm.cfg; None: that of the folder in which the program was built.

    Raises MissingExtraError: no program. ConfigError: no configuration. InputError: one that cannot be read.
    """

    def __init__(self, cfg: Path | None = None) -> None:
        encoder = ("EncoderApp", "EncoderAppStatic")
        # VTM builds into bin/, which has cfg/ beside it.
        built = _find("vtm", encoder).resolve().parent.parent / "cfg" / "encoder_intra_vtm.cfg"
        self._cfg = built if cfg is None else cfg
        if cfg is None and not built.is_file():
            raise ConfigError(
                f"vtm has no configuration {built}: give --vtm-cfg, cfg/encoder_intra_vtm.cfg of its sources"
            )
        self._options = ["-f", "1", "-fr", "1", "--InputChromaFormat=444", "--InputBitDepth=8"]
        self._options += ["--ConformanceWindowMode=1"]  # the encoder pads to its blocks by itself
        settings = {"options": self._options, "cfg": hashlib.sha256(read(self._cfg)).hexdigest()[:16]}
        super().__init__("vtm", range(63, -1, -1), encoder, ("DecoderApp", "DecoderAppStatic"), settings)

    def _encode_in(self, folder: Path, image: Image.Image, level: int) -> bytes:
        source, coded = folder / "in.yuv", folder / "out.vvc"
        planes = np.asarray(image, dtype=np.float64) @ _YCBCR.T + _MIDDLE
        source.write_bytes(_bytes(planes).transpose(2, 0, 1).tobytes())
        files: list[str | Path] = ["-c", self._cfg, "-i", source, "-b", coded, "-o", folder / "encoded.yuv"]
        size = ["-wdt", str(image.width), "-hgt", str(image.height)]
        self._run(self._encoder, *files, "-q", str(level), *size, *self._options)
        return _SIZE.pack(image.width, image.height) + read(coded)

    def _decode_in(self, folder: Path, data: bytes) -> Image.Image:
        coded, decoded = folder / "in.vvc", folder / "out.yuv"
        width, height = _SIZE.unpack_from(data)
        coded.write_bytes(data[_SIZE.size :])
        self._run(self._decoder, "-b", coded, "-o", decoded, "-d", "8")
        planes = np.frombuffer(read(decoded, MAX_IMAGE_FILE), dtype=np.uint8)
        if planes.size != 3 * width * height:
            raise InputError(
                f"vtm: the decoder wrote {planes.size} bytes, not {3 * width * height}; try another build of it"
            )
        planes = planes.reshape(3, height, width).transpose(1, 2, 0)
        return Image.fromarray(_bytes((planes - _MIDDLE) @ np.linalg.inv(_YCBCR).T))


def _bytes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values.round().clip(0, 255).astype(np.uint8)


def _find(name: str, programs: tuple[str, ...]) -> Path:
    """The first of some programs that is on the path, at this moment. Raises MissingExtraError."""
    for program in programs:
        found = shutil.which(program)
        if found is not None:
            return Path(found)
    raise MissingExtraError(
        f"{name} needs the program {' or '.join(programs)} on the path: build it, or leave {name} out"
    )


def _digest(program: Path) -> str:
    return hashlib.sha256(read(program, MAX_IMAGE_FILE)).hexdigest()[:16]
