"""Classifiers of noisy images from files, for classifier guidance (guidance.ClassifierGuided)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ddcm_fast.errors import InputError
from ddcm_fast.models import guided_diffusion
from ddcm_fast.tasks.restorers import load_program

Network = Callable[[Tensor, Tensor], Tensor]


class NoisyClassifier:
    """A network of noisy images as guidance wants it: (x_t (B, C, H, W) float32, t) -> logits (B, classes) float32.

    Attributes:
        digest: of the file that it came from; it tells this classifier from others in the files it guides.
    """

    def __init__(self, network: Network, digest: str) -> None:
        self._network = network
        self.digest = digest

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return self._network(x, torch.full((len(x),), t, dtype=torch.float32, device=x.device)).float()


def load_classifier(path: str | Path, device: torch.device | str = "cpu", trust: bool = False) -> NoisyClassifier:
    """A classifier (x_t, t (B,)) -> logits from one of guided-diffusion's checkpoints or from a program.

    A checkpoint's name begins with the name of one that is published, 256x256_classifier for example
    (guided_diffusion.PRESETS); it is in float32, as their sampler has it. Anything else is a torch.export (.pt2) or
    TorchScript file.

    Raises:
        InputError: no such file, or none of these.
        ModelError: no `trust`, which all of them need, or weights of another configuration.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file of a classifier: {path}")
    if any(preset.classifier and path.stem.startswith(name) for name, preset in guided_diffusion.PRESETS.items()):
        network: Network = guided_diffusion.load_classifier(path, device, trust=trust)
    else:
        network = load_program(path, device, trust, "classifier")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return NoisyClassifier(network, digest.hexdigest())
