"""Makes the golden files: at least one .ddcm a preset, of the analytic model, and the picture that it decodes to.

    python tests/golden/files/make.py [FILE ...]

They say that a file of today decodes tomorrow. Made once; made anew only where the format or the noise law gets a new
version, and then beside the old ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddcm_fast import Codec, load_model

FOLDER = Path(__file__).resolve().parent
SIDE = 16

#: File -> settings that keep it small, and its preset where that has another name.
SETTINGS: dict[str, dict[str, Any]] = {
    "ddcm": {"T": 12, "K": 256, "schedule": "linspace-floor"},
    "pursuit": {"T": 8, "K": 128, "M": 3, "C": 2, "schedule": "linspace-floor"},
    "ddcm-linspace": {"preset": "ddcm", "T": 12, "K": 256},
    "pursuit-linspace": {"preset": "pursuit", "T": 8, "K": 128, "M": 3, "C": 2},
    "product": {"T": 6, "K": 1024, "atoms": 60},
    "trellis": {"T": 6, "K": 256, "C": 2, "atoms": 120},
    "turbo": {"T": 5, "K": 512, "atoms": 60},
    "turbo-hadamard": {"T": 5, "K": 512, "atoms": 60},
    "diffc": {"T": 6, "K": 4096, "atoms": 30},
    "turbo-paper": {"T": 5, "K": 512, "atoms": 60},
    "diffc-paper": {"T": 6, "K": 512, "atoms": 30, "tail": 2},
}


def picture() -> torch.Tensor:
    """A smooth scene: (3, 16, 16) float32 in [-1, 1]."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    planes = [np.sin(5 * x + 2 * y), np.cos(4 * y), x * y * 2 - 1]
    return torch.from_numpy(0.8 * np.stack(planes)).float()


def codec(name: str) -> Codec:
    """A file's codec, on the plain-torch backend's twin that this machine has."""
    settings = {"preset": name, **SETTINGS[name]}
    return Codec.from_preset(load_model("gaussian-field", device="cpu"), settings.pop("preset"), **settings)


def main() -> None:
    for name in sys.argv[1:] or SETTINGS:
        coded = codec(name).encode(picture())[0]
        (FOLDER / f"{name}.ddcm").write_bytes(coded.data)
        coded.image.save(FOLDER / f"{name}.png")
        print(name, len(coded.data), "bytes")


if __name__ == "__main__":
    main()
