"""CompressAI's learned codecs, by the names of its model zoo and with the weights that it fetches."""

from __future__ import annotations

import struct
from importlib import import_module
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import pad

from ddcm_fast.codec.images import to_pil, to_tensor
from ddcm_fast.errors import ConfigError, InputError, MissingExtraError, first_line
from ddcm_fast.evaluation.codec import LevelCodec

#: Name -> the highest of its qualities, the lowest being 1.
_QUALITIES = {
    "bmshj2018-factorized": 8,
    "bmshj2018-hyperprior": 8,
    "mbt2018-mean": 8,
    "mbt2018": 8,
    "cheng2020-anchor": 6,
    "cheng2020-attn": 6,
}
NAMES = tuple(_QUALITIES)

#: What the networks were trained for, the first by default.
METRICS = ("mse", "ms-ssim")

#: The networks halve a picture six times at most.
_MULTIPLE = 64

#: How files begin here: quality, strings, width, height, and rows and columns of the coarsest latent; then the length
#: of each string but the last, and the strings.
_HEAD, _LENGTH = struct.Struct("<BBHHHH"), struct.Struct("<I")


class LearnedCodec(LevelCodec):
    """A model of CompressAI's zoo, whose levels are networks, each loaded when it is first used.

    Args:
        name: one of NAMES, with settings behind it as they are written. settings: `metric`, one of METRICS.
        device: where the networks run.

    Raises ConfigError: an unknown setting. MissingExtraError: CompressAI is not installed.
    """

    def __init__(self, text: str, name: str, settings: dict[str, str], device: torch.device) -> None:
        check(name, settings)
        self._zoo_name, self._metric, self._device = name, settings.get("metric", METRICS[0]), device
        super().__init__(text, range(1, _QUALITIES[name] + 1), {"metric": self._metric, "device": device.type})
        try:
            self._models: Any = import_module("compressai.zoo").image_models
        except ImportError as error:
            raise MissingExtraError(f"{name} needs CompressAI: pip install 'ddcm-fast[compressai]'") from error
        self._networks: dict[int, Any] = {}

    def _network(self, level: int) -> Any:
        if level not in self._networks:
            try:
                network = self._models[self._zoo_name](level, metric=self._metric, pretrained=True)
            except Exception as error:  # the hub's, the network's and the unpickler's
                raise InputError(
                    f"cannot load the weights of {self.name} at quality {level}, "
                    f"let CompressAI fetch them into torch.hub's folder first: {first_line(error)}"
                ) from error
            self._networks[level] = network.to(self._device).eval()
        return self._networks[level]

    @torch.inference_mode()
    def _encode(self, image: Image.Image, level: int) -> bytes:
        x = (to_tensor(image).to(self._device) + 1) / 2
        left, top, right, bottom = _margins(image.width, image.height)
        found = self._network(level).compress(pad(x, (left, right, top, bottom)))  # black, as CompressAI itself does
        strings = [batch[0] for batch in found["strings"]]
        head = _HEAD.pack(level, len(strings), image.width, image.height, *found["shape"])
        return b"".join([head, *(_LENGTH.pack(len(string)) for string in strings[:-1]), *strings])

    @torch.inference_mode()
    def _decode(self, data: bytes) -> Image.Image:
        level, count, width, height, rows, columns = _HEAD.unpack_from(data)
        at = _HEAD.size + (count - 1) * _LENGTH.size
        strings = []
        for (length,) in _LENGTH.iter_unpack(data[_HEAD.size : at]):
            strings.append([data[at : at + length]])
            at += length
        strings.append([data[at:]])
        decoded = self._network(level).decompress(strings, torch.Size((rows, columns)))["x_hat"]
        left, top, _, _ = _margins(width, height)
        return to_pil(2 * decoded[0, :, top : top + height, left : left + width].float() - 1)


def check(name: str, settings: dict[str, str]) -> None:
    """Raise ConfigError for settings that a model does not take."""
    for key, value in settings.items():
        if key != "metric":
            raise ConfigError(
                f"the codec {name!r} has no setting {key!r}; it takes metric={' or metric='.join(METRICS)}"
            )
        if value not in METRICS:
            raise ConfigError(f"the metric of {name!r} is {value!r}; choose among {', '.join(METRICS)}")


def _margins(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, in pixels, to the next size that the networks take."""
    across, down = -width % _MULTIPLE, -height % _MULTIPLE
    return across // 2, down // 2, across - across // 2, down - down // 2
