"""How like an image another one is, and one set of images another; by the packages that others use."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ddcm_fast.codec.images import psnr, to_tensor
from ddcm_fast.errors import ConfigError, InputError, MissingExtraError, first_line

#: The smaller side that torchmetrics wants for five scales of MS-SSIM with windows of 11 pixels.
MS_SSIM_SIDE = 176

OF_PAIRS = ("psnr", "ms-ssim", "lpips", "dists")
OF_SETS = ("fid", "kid")


def check(names: list[str], known: tuple[str, ...]) -> None:
    """Raise ConfigError for a name that is none of `known`."""
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown metric {name!r}: choose among {', '.join(known)}")


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"this metric needs {name}: pip install 'ddcm-fast[{extra}]'") from error


class Pairs:
    """Metrics of pairs of images, by name; LPIPS and DISTS fetch their networks when they are first asked for.

    Raises ConfigError: an unknown name. MissingExtraError: its package is not installed.
    """

    def __init__(self, names: list[str]) -> None:
        check(names, OF_PAIRS)
        self.names = set(names)
        self._measures = {name: self._measure(name) for name in names}

    @staticmethod
    def _measure(name: str) -> Callable[[Tensor, Tensor], float | None]:
        if name == "psnr":
            return psnr
        if name == "ms-ssim":
            functional = _package("torchmetrics.functional.image", "eval")
            return lambda a, b: _ms_ssim(functional, a, b)
        network = _package("pyiqa", "quality").create_metric(name)
        return lambda a, b: float(network((b[None] + 1) / 2, (a[None] + 1) / 2))

    def __call__(self, original: Image.Image, decoded: Image.Image) -> dict[str, float | None]:
        """Each metric of two RGB images of one size; None where it says nothing (equal images, too small ones)."""
        if original.size != decoded.size:
            raise InputError(
                f"the images have {original.width}x{original.height} and {decoded.width}x{decoded.height} pixels; "
                "they must have as many"
            )
        a, b = to_tensor(original)[0], to_tensor(decoded)[0]
        found = {name: measure(a, b) for name, measure in self._measures.items()}
        return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}


def _ms_ssim(functional: Any, a: Tensor, b: Tensor) -> float | None:
    if min(a.shape[-2:]) < MS_SSIM_SIDE:
        return None
    return float(functional.multiscale_structural_similarity_index_measure(a[None], b[None], data_range=2.0))


def of_sets(names: list[str], first: Path, second: Path) -> dict[str, float]:
    """FID and KID of two folders of images, by torch-fidelity, which fetches its network.

    Raises ConfigError: an unknown name. MissingExtraError: torch-fidelity is not installed. InputError: it failed.
    """
    check(names, OF_SETS)
    if not names:
        return {}
    fidelity = _package("torch_fidelity", "metrics")
    try:
        found = fidelity.calculate_metrics(
            input1=str(first),
            input2=str(second),
            fid="fid" in names,
            kid="kid" in names,
            samplefind_deep=True,
            verbose=False,
            cuda=import_module("torch").cuda.is_available(),
        )
    except Exception as error:  # its own, its network's and the readers'
        raise InputError(f"torch-fidelity could not compare {first} and {second}: {first_line(error)}") from error
    keys = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    return {name: float(found[keys[name]]) for name in names}
