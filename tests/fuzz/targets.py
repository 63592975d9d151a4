"""What is fuzzed. A target makes a case, as bytes, from a random generator, and runs it; any DDCMError is an answer.

Cases are made of valid inputs by changes that get past the first check: headers with the checksum put right, payloads
of the length their header asks for, folder names with other numbers. So the code behind the checks is reached too.
"""

from __future__ import annotations

import functools
import io
import json
import random
import struct
import sys
import tempfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ddcm_fast import Codec, Limits, load_model
from ddcm_fast.codebook.law import KINDS
from ddcm_fast.codec import container, official
from ddcm_fast.codec.config import PRESETS, CodecConfig, preset
from ddcm_fast.codec.identity import fingerprint
from ddcm_fast.codec.images import load_image, to_tensor
from ddcm_fast.errors import DDCMError
from ddcm_fast.models import DiffusionModel, wrap_pipeline
from ddcm_fast.sampling.rules import RULES

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_pipelines

#: What an answer within seconds needs; strangers' files get these in a service that answers at once.
LIMITS = Limits(pixels=1 << 14, pixel_steps=1 << 20, evaluations=300, memory=1 << 28, payload=1 << 20)

_NUMBERS = (0, 1, 2, 3, 15, 16, 17, 63, 64, 127, 128, 255, 999, 1000, 4096, 65535, 1 << 16, 1 << 31, 1 << 32, 1 << 63)


class Target(ABC):
    """A part of the package that takes bytes from strangers."""

    name: str

    @abstractmethod
    def make(self, rng: random.Random) -> bytes:
        """A case."""

    @abstractmethod
    def run(self, case: bytes) -> bool:
        """Whether the case was accepted (not: refused by a DDCMError). Anything else raised is a failure."""


@functools.lru_cache(maxsize=1)
def model() -> DiffusionModel:
    """Analytic, so that a case takes milliseconds."""
    return load_model("gaussian-field", device="cpu")


@functools.lru_cache(maxsize=1)
def codec() -> Codec:
    return Codec(model(), limits=LIMITS)


def mutate(data: bytes, rng: random.Random, first: int = 0) -> bytes:
    """Some bytes from `first` on flipped, set, cut out, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        place = rng.randint(first, max(first, len(out) - 1))
        how = rng.randrange(6)
        if how == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif how == 1 and place < len(out):
            out[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif how == 2:
            del out[place : place + rng.choice((1, 2, 8, len(out)))]
        elif how == 3:
            out[place:place] = out[place : place + rng.randint(1, 16)]
        elif how == 4:
            out[place:place] = rng.randbytes(rng.randint(1, 12))
        else:
            value = rng.choice(_NUMBERS)
            while value > 0x7F:
                out[place : place + 1] = bytes([value & 0x7F | 0x80, 0])
                value, place = value >> 7, place + 1
            out[place : place + 1] = bytes([value])
    return bytes(out)


def seal(data: bytes) -> bytes:
    """The same file with the right checksum."""
    return data[:4] + zlib.crc32(data[3:4] + data[8:]).to_bytes(4, "big") + data[8:]


def settings(rng: random.Random) -> dict[str, Any]:
    """Fields of a CodecConfig, most of them possible."""
    name = rng.choice(list(PRESETS))
    config = PRESETS[name][0]
    out = {field: getattr(config, field) for field in config.__dataclass_fields__}
    out["T"] = rng.choice((1, 2, 3, 5, 11, 20))
    out["K"] = 1 << rng.choice((0, 1, 4, 8, 10, 14, 16, 24, 32))
    out["kind"] = rng.choice(KINDS)
    if config.atoms:
        out["atoms"] = rng.choice((1, 2, 6, 40, 300, 1500))
    if rng.random() < 0.5:
        out.update(schedule=rng.choice(("linspace", "trailing")), stop=0, tail=0, ancestral_tail=False)
    if rng.random() < 0.2:
        out["t_range"] = (rng.choice((999, 900, 500)), rng.choice((0, 300, 500)))
    if "C" in config.rule_type.parameters:
        out["C"] = rng.choice((1, 2, 4, 8))
    if rng.random() < 0.3:
        out[rng.choice(("T", "K", "M", "C", "atoms", "stop", "tail", "seed"))] = rng.choice(_NUMBERS)
    if rng.random() < 0.1:
        out["rule"] = rng.choice(list(RULES))
    return out


def header(rng: random.Random) -> container.Header | None:
    """A header of the model with such settings, None where CodecConfig refuses them."""
    try:
        config = CodecConfig(**settings(rng))
    except DDCMError:
        return None
    width, height = (rng.choice((16, 17, 32, 64, 4096)) if rng.random() < 0.2 else 16 for _ in range(2))
    return container.Header(
        config, model().name, fingerprint(model(), config), rng.choice(container.DTYPE_NAMES), width, height
    )


class Decode(Target):
    """Files that decode, then changed, or with settings and a payload of their own; prefixes too."""

    name = "decode"

    def __init__(self) -> None:
        image = model().draw(1, 16, 16, seed=1).clamp(-1, 1)
        self._files = []
        for name in PRESETS:
            for schedule in ("linspace", "kl"):
                kl = {"stop": 100, "tail": 1} if schedule == "kl" else {"stop": 0, "tail": 0}
                config = preset(name, T=6, K=256 if name != "trellis" else None, schedule=schedule, **kl)
                if config.atoms:
                    config = preset(name, T=6, K=config.K, atoms=40, schedule=schedule, **kl)
                self._files.append(Codec(model(), config).encode(image)[0].data)

    def make(self, rng: random.Random) -> bytes:
        """See Target.make: a byte of how to decode, then the file."""
        how = bytes([rng.choice((0, 0, 0, 1, 2, 64, 128, 255))])
        said = header(rng) if rng.random() < 0.5 else None
        if said is None:
            return how + seal(mutate(rng.choice(self._files), rng, 3))
        length = rng.choice((0, 1, 7, rng.randint(0, 200), 5000))
        try:  # the very length that the settings ask for
            job = codec()._job(said.config, said.height, said.width)
            bits = sum(job.rule.least_bits(step) for step in job.coded)
            if rng.random() < 0.8 and bits < 1 << 20:
                length = -(-int(bits) // 8) + rng.choice((0, 0, 1))
        except DDCMError:
            pass
        data = container.write(said, rng.choice((rng.randbytes(length), bytes(length))))
        return how + (data if rng.random() < 0.7 else seal(mutate(data, rng, 3)))

    def run(self, case: bytes) -> bool:
        """See Target.run."""
        how, data = case[0], case[1:]
        try:
            image = codec().decode(data, ignore_checksum=bool(how & 1), first=1 - (how >> 1) / 128)
        except DDCMError:
            return False
        assert image.dim() == 3 and image.dtype == torch.float32
        return True


class Container(Target):
    """Headers alone, with every form of condition and edit."""

    name = "container"

    def make(self, rng: random.Random) -> bytes:
        """See Target.make."""
        said = None
        while said is None:
            said = header(rng)
        data = bytearray(container.write(said, rng.randbytes(rng.randrange(40))))
        at = 8 + 1 + len(said.model) + 4
        if rng.random() < 0.5:  # flags that bring conditions and edits with them
            data[at + 5 if data[at] & 0x80 else at + 3] |= rng.choice((16, 64, 128, 192))
        return seal(mutate(bytes(data), rng, 3))

    def run(self, case: bytes) -> bool:
        """See Target.run; what is read is written as it was, but for numbers in longer forms than need be."""
        try:
            said, payload = container.read(case)
        except DDCMError:
            return False
        assert container.read(container.write(said, payload)) == (said, payload)
        return True


class Official(Target):
    """The DDCM authors' files: a folder's name, a line break, the file's bytes."""

    name = "official"

    def __init__(self) -> None:
        self._model = wrap_pipeline(tiny_pipelines.build("sd"))
        self._folder = Path(tempfile.mkdtemp())

    def make(self, rng: random.Random) -> bytes:
        """See Target.make."""
        usual = {"T": (1, 2, 3), "K": (2, 16, 100), "M": (1, 2, 3), "C": (1, 3)}
        said = {letter: rng.choice(numbers) for letter, numbers in usual.items()}
        high, low = rng.choice(((999, 0), (800, 200), (0, 0)))
        if rng.random() < 0.5:
            said[rng.choice("TKMC")] = rng.choice((*_NUMBERS, 10**7, 26, 10**30))
        name = "T={T}_in{high}-{low}_K={K}_M={M}_C={C}_model=tiny".format(**said, high=high, low=low)
        data = b""
        try:
            own = official.Settings.of_path(name + "/x.bin")
            steps = [step for step in official.steps_of(self._model, own) if step.coded]
            if own.bits * len(steps) < 1 << 16:
                sizes = [own.K, *[1 << own.C, own.K] * (own.M - 1)]
                data = official.pack([[rng.randrange(size) for size in sizes] for _ in steps], own)
        except DDCMError:
            pass
        text = name.encode() if rng.random() < 0.8 else mutate(name.encode(), rng)
        return text.replace(b"\n", b"") + b"\n" + (data if rng.random() < 0.7 else mutate(data, rng))

    def run(self, case: bytes) -> bool:
        """See Target.run."""
        name, _, data = case.partition(b"\n")
        path = self._folder / "x.bin"
        path.write_bytes(data)
        try:
            own = official.Settings.of_path(name.decode(errors="replace") + "/x.bin")
            official.decode(path, self._model, own, limits=replace(LIMITS, evaluations=16))
        except DDCMError:
            return False
        return True


class Images(Target):
    """Image files of every format that Pillow reads by itself, changed; the checksums of PNG put right."""

    name = "images"
    _FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO", "JPEG2000")

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp())
        picture = Image.linear_gradient("L").resize((24, 20))
        self._files = []
        for mode in ("L", "RGB", "RGBA", "P", "1", "I;16", "I", "F", "CMYK", "LA"):
            for form in self._FORMATS:
                buffer = io.BytesIO()
                try:
                    picture.convert(mode).save(buffer, format=form)
                except (OSError, KeyError, ValueError):  # a mode this format has not, or a build without it
                    continue
                self._files.append(buffer.getvalue())

    def make(self, rng: random.Random) -> bytes:
        """See Target.make."""
        data = mutate(rng.choice(self._files), rng, 8)
        if data[:4] != b"\x89PNG":
            return data
        out, place = data[:8], 8
        while place + 8 <= len(data):
            (length,) = struct.unpack(">I", data[place : place + 4])
            body = data[place + 4 : place + 8 + length]
            if len(body) != length + 4:
                break
            out += data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
            place += 12 + length
        return out + data[place:]

    def run(self, case: bytes) -> bool:
        """See Target.run."""
        path = self._folder / "case"
        path.write_bytes(case)
        try:
            tensor = to_tensor(load_image(path))
        except DDCMError:
            return False
        assert tensor.shape[:2] == (1, 3) and bool(torch.isfinite(tensor).all())
        return True


#: Name -> how to make it, and how many of a hundred cases are its own.
TARGETS: dict[str, tuple[type[Target], int]] = {
    "decode": (Decode, 60),
    "container": (Container, 15),
    "official": (Official, 10),
    "images": (Images, 15),
}


def describe(case: bytes) -> str:
    """A case in words, for a report."""
    return json.dumps(case[:80].decode("latin-1"))
