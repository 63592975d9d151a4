"""Limits: what a file, or an encoder's settings, may ask for. They are looked at before any of it is done or held."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ddcm_fast.codec.config import CodecConfig
from ddcm_fast.errors import LimitError
from ddcm_fast.lazy import deferred

if TYPE_CHECKING:
    import torch

    from ddcm_fast.codebook import backends
    from ddcm_fast.codebook.codebook import Codebook
    from ddcm_fast.sampling.model import DiffusionModel
else:
    deferred(
        globals(),
        torch="torch",
        backends="ddcm_fast.codebook.backends",
        Codebook="ddcm_fast.codebook.codebook:Codebook",
    )

#: float32 numbers held for every entry of a state while an image is coded: state, predictions, noise, residual and
#: their successors. What a network holds itself is not counted.
_STATE_COPIES = 16

#: Searches of fewer noise entries are not estimated: the slowest backend makes 1e8 a second on a CPU, 1e10 on a GPU.
_FEW_ENTRIES = {"cpu": 1e11, "cuda": 1e13}

_TRIAL_DIM, _TRIAL_SIZE = 16384, 16384
_OPERATION = 2e-9  # seconds, of arithmetic on a table: measured on one CPU thread, where it is slowest


#: Limits with an option --max-NAME: what each counts, and its default in words.
OPTIONS = {
    "pixels": ("pixels of an image", "16M"),
    "pixel_steps": ("pixels times steps", "4G"),
    "evaluations": ("calls of the network, tiles counted singly", "200000"),
    "memory": ("bytes needed, as estimated without the network's own", "8G"),
    "payload": ("bytes of a file's symbols", "16M"),
}


@dataclass(frozen=True)
class Limits:
    """The most that a file may ask of a decoder, and settings of an encoder. The defaults suit files from strangers.

    Attributes:
        pixels: of an image.
        pixel_steps: pixels times steps (times M, where each atom follows from the one before), which time goes with:
            the default is a full-size picture evaluated 256 times.
        evaluations: calls of the network: T + tail, times the tiles of a tiled model.
        memory: bytes, as estimated, of the state and of the tables that an encoder's rule keeps. A network's own are
            not known; they grow with the pixels.
        payload: bytes of packed symbols.
        seconds: of searching codebooks, as estimated from a short trial; encoders only.
    """

    pixels: int = 1 << 24
    pixel_steps: int = 1 << 32
    evaluations: int = 200_000
    memory: int = 8 << 30
    payload: int = 1 << 24
    seconds: float = 3600

    def check(self, name: str, value: float) -> None:
        """Raise LimitError if a value is above the limit of that name."""
        most = getattr(self, name)
        if value > most:
            if name == "seconds":
                needs, how = f"about {value / 3600:.1f} hours of searching", "use a smaller K, or go on with --force"
                most = f"{most / 3600:.1f} hours"
            else:
                needs, how = f"{value:.0f} {OPTIONS[name][0]}", f"raise --max-{name.replace('_', '-')}"
            raise LimitError(f"this asks for {needs}, over the limit of {most}: {how} (in Python Limits({name}=...))")

    def check_size(self, config: CodecConfig, model: DiffusionModel, height: int, width: int) -> None:
        """Raise LimitError for a configuration at a (padded) image size, coded either way."""
        for name, value in asked(config, model, height, width).items():
            self.check(name, value)

    def check_search(self, config: CodecConfig, dim: int, batch: int, backend: str, device: torch.device) -> None:
        """Raise LimitError for an encoder's configuration that would search for too long or keep too much.

        Args:
            dim: entries of a state. batch: images coded together. backend, device: of the codebook.
        """
        cost = config.rule_type.search_cost(config, dim)
        self.check("memory", batch * held_by_image(config, dim, backend, device))
        entries, seconds = float(batch) * cost.entries, batch * cost.operations * _OPERATION
        if entries > _FEW_ENTRIES.get(device.type, _FEW_ENTRIES["cuda"]):
            seconds += entries / _entries_per_second(config.kind, min(dim, _TRIAL_DIM), backend, device)
        self.check("seconds", seconds)


def asked(config: CodecConfig, model: DiffusionModel, height: int, width: int) -> dict[str, int]:
    """What a configuration at a (padded) image size asks for, coded either way, of those limits that depend on it."""
    pixels, steps = height * width, config.T + config.tail
    return {
        "pixels": pixels,
        "pixel_steps": pixels * (config.T * config.M + config.tail),
        "evaluations": steps * model.calls(height, width),
        "memory": 4 * _STATE_COPIES * max(math.prod(model.latent_shape(height, width)), 3 * pixels),
    }


def held_by_image(config: CodecConfig, dim: int, backend: str, device: torch.device) -> int:
    """About the bytes that an encoder holds for each image of a batch: its states and what the rule keeps.

    Args: as Limits.check_search.
    """
    cost = config.rule_type.search_cost(config, dim)
    holds = backends.load(backends.resolve(backend, device)).holds_scores
    return 4 * _STATE_COPIES * dim + 8 * (cost.numbers + (cost.scores if holds else 0))


@lru_cache(maxsize=16)
def _entries_per_second(kind: str, dim: int, backend: str, device: torch.device) -> float:
    """How many entries of noise a search goes through in a second here: the better of two short trials."""
    book = Codebook(kind, dim, _TRIAL_SIZE, backend=backend)
    residual = torch.ones(1, dim, dtype=torch.float32, device=device)
    took = []
    for _ in range(2):
        start = time.perf_counter()
        book.search(residual, 0)[0].tolist()  # waits for the device
        took.append(time.perf_counter() - start)
    return dim * _TRIAL_SIZE / min(took)
