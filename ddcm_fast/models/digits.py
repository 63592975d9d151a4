"""What belongs to the built-in `digits` model: its data, and the two classifiers that guide and score it.

The data are scikit-learn's digits (8x8, grey, 10 classes; Alpaydin and Kaynak 1998, UCI), 1797 images. scikit-learn is
needed only to train and to evaluate: the extra `digits`. The classifiers' weights ship with the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from ddcm_fast.errors import MissingExtraError, ModelError
from ddcm_fast.models.names import WEIGHTS

NAME = "digits"
SIDE = 8
CLASSES = 10
FEATURES = 32
TEST_PER_CLASS = 50
"""Images of each class that are held out of all training: 500 of the 1797."""

CLEAN_FILE, NOISY_FILE = "classifier.safetensors", "noisy_classifier.safetensors"


def load_data(test: bool) -> tuple[Tensor, Tensor]:
    """The held-out images, or all others: (N, 1, 8, 8) float32 in [-1, 1] and labels (N,) int64.

    The last 50 images of each class in the data set's order are held out: the set is ordered by writer, so the test
    images come from other hands than the training images. Raises MissingExtraError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the digits data need scikit-learn: pip install 'ddcm-fast[digits]'") from error
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 8 - 1
    labels = torch.from_numpy(data.target).long()
    held = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    for c in range(CLASSES):
        held[torch.nonzero(labels == c)[-TEST_PER_CLASS:]] = True
    chosen = held if test else ~held
    return images[chosen], labels[chosen]


class DigitsClassifier(nn.Module):
    """A small convolutional classifier of clean 8x8 digits, whose 32 features score samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.SiLU(),
            nn.Linear(64, FEATURES),
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def features(self, image: Tensor) -> Tensor:
        """(B, 1, 8, 8) in [-1, 1] -> (B, 32)."""
        return self.body(image)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, 8, 8) in [-1, 1] -> logits (B, 10)."""
        return self.head(torch.nn.functional.silu(self.features(image)))


class NoisyDigitsClassifier(nn.Module):
    """A classifier of noisy digits x_t = alpha x0 + sigma eps, told the noise level: p(class | x_t)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(SIDE * SIDE + 1, 256), nn.SiLU(), nn.Linear(256, 128), nn.SiLU(), nn.Linear(128, CLASSES)
        )

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """x (B, 64) pixels divided by sqrt(alpha^2 + sigma^2), log_snr (B,) = ln(alpha^2 / sigma^2) -> (B, 10)."""
        return self.body(torch.cat((x, log_snr[:, None] / 5), dim=1))


def log_snr(alpha: float, sigma: float) -> float:
    """ln(alpha^2 / sigma^2), bounded as the noisy classifier saw it in training."""
    return max(-12.0, min(12.0, 2 * math.log(max(alpha, 1e-9) / max(sigma, 1e-9))))


def _load(module: nn.Module, file: str) -> None:
    from safetensors.torch import load_file

    path = WEIGHTS / NAME / file
    if not path.is_file():
        raise ModelError(f"{path.name} is missing: train it with python -m ddcm_fast.models.train digits")
    module.load_state_dict(load_file(path))
    module.eval().requires_grad_(False)


@lru_cache(maxsize=1)
def load_classifier() -> DigitsClassifier:
    """The classifier of clean digits, on the CPU."""
    module = DigitsClassifier()
    _load(module, CLEAN_FILE)
    return module


@lru_cache(maxsize=1)
def load_noisy_classifier() -> Callable[[Tensor, float, float], Tensor]:
    """The noisy classifier of the `digits` model, as `tasks.guidance.classifier` takes it.

    Returns a function (state (B, 4, 4, 4), alpha, sigma) -> logits (B, 10), differentiable in the state.
    """
    module = NoisyDigitsClassifier()
    _load(module, NOISY_FILE)

    def classify(x: Tensor, alpha: float, sigma: float) -> Tensor:
        pixels = torch.nn.functional.pixel_shuffle(x, 2).flatten(1) / math.hypot(alpha, sigma)
        level = pixels.new_full((len(x),), log_snr(alpha, sigma))
        return module.to(x.device)(pixels, level)

    return classify
