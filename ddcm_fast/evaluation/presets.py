"""The presets of this package as codecs that meet a bitrate."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

from PIL import Image

from ddcm_fast.codec.codec import Codec
from ddcm_fast.codec.config import CodecConfig, preset
from ddcm_fast.codec.job import Encoded, padded_size
from ddcm_fast.evaluation.codec import Coded, ImageCodec
from ddcm_fast.sampling.model import DiffusionModel


class PresetCodec(ImageCodec):
    """A preset of this package.

    Args:
        fixed: of a configuration whose rate is the number of steps: it takes T of them at every rate.
    """

    def __init__(self, name: str, config: CodecConfig, model: DiffusionModel, fixed: bool = False) -> None:
        who = {"model": model.name, "fingerprint": model.fingerprint().hex(), "dtype": str(model.dtype)}
        self._fixed = fixed and not config.shares_atoms
        super().__init__(name, {**dataclasses.asdict(config), **who} | ({"fixed": True} if self._fixed else {}))
        self._codec = Codec(model, config)

    def code(self, image: Image.Image, bpp: float) -> Coded:
        start, cpu = time.perf_counter(), time.process_time()
        coded = self._codec.encode(image)[0] if self._fixed else self._encode(image, bpp)
        encoded, cpu_seconds = time.perf_counter(), time.process_time() - cpu
        decoded = self._codec.decompress(coded.data)
        seconds = time.perf_counter() - encoded
        return Coded(coded.data, decoded, encoded - start, seconds, coded.bpp <= bpp, cpu_seconds)

    def _encode(self, image: Image.Image, bpp: float) -> Encoded:
        """At a rate; where it is a number of steps and there are fewer than it asks for, in all that there are."""
        model, config = self._codec.model, self._codec.config
        if not config.shares_atoms:
            most = dataclasses.replace(config, T=len(model.training_timesteps()))
            dim = math.prod(model.latent_shape(*padded_size(model, image.height, image.width)))
            bits = config.rule_type.payload_bits(most, lambda: most.steps(model), dim)
            if bits <= bpp * image.width * image.height:
                coded = Codec(model, most).encode(image)[0]
                if coded.bpp <= bpp:
                    return coded
        return self._codec.encode(image, bpp=bpp)[0]


def configure(name: str, settings: dict[str, str]) -> CodecConfig:
    """A preset with settings as they are written on a command line.

    Raises ConfigError: a preset or setting that there is not, or an impossible value.
    """
    return preset(name, **{key: _value(text) for key, text in settings.items()})


def _value(text: str) -> Any:
    """An integer, yes or no, or a word."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text)
    except ValueError:
        return text
