"""How like an image another one is, and one set of images another; by the packages that others use."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ddcm_fast.codec.images import psnr, to_tensor
from ddcm_fast.errors import ConfigError, InputError, MissingExtraError, first_line

#: The smaller side that torchmetrics wants for five scales of MS-SSIM with windows of 11 pixels.
MS_SSIM_SIDE = 176

#: Endings of the images that torch-fidelity finds.
FIDELITY_ENDINGS = (".png", ".jpg", ".jpeg")

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


def need_sets() -> Any:
    """The package torch-fidelity. Raises MissingExtraError."""
    return _package("torch_fidelity", "metrics")


def of_sets(
    names: list[str],
    first: Path | Dataset[Tensor],
    second: Path | Dataset[Tensor],
    weights: Path | None = None,
    kept: Path | None = None,
) -> dict[str, float]:
    """FID and KID of two sets of pictures, by torch-fidelity.

    Args:
        first, second: folders of images and all that is below them, or data sets of (3, H, W) uint8 and of one size,
            with a length.
        weights: of its Inception network, a pickle that it unpickles as it is; None: it fetches them.
        kept: a folder for the features of the first set, for further calls with the same one; None: they are not kept.

    Raises ConfigError: an unknown name. MissingExtraError: torch-fidelity is not installed. InputError: it failed.
    """
    check(names, OF_SETS)
    if not names:
        return {}
    fidelity = need_sets()
    sets = [str(one) if isinstance(one, Path) else one for one in (first, second)]
    try:
        found = fidelity.calculate_metrics(
            input1=sets[0],
            input2=sets[1],
            fid="fid" in names,
            kid="kid" in names,
            # Of KID, which draws subsets: not more than the smaller set has.
            kid_subset_size=min(1000, _images(first), _images(second)),
            samples_find_deep=True,
            feature_extractor_weights_path=None if weights is None else str(weights),
            cache=kept is not None,
            cache_root=None if kept is None else str(kept),
            input1_cache_name=None if kept is None else "first",
            # What reads a data set cannot be sent to other processes everywhere.
            save_cpu_ram=not isinstance(first, Path),
            verbose=False,
            cuda=torch.cuda.is_available(),
        )
    except Exception as error:  # its own, its network's and the readers'
        raise InputError(f"torch-fidelity could not compare {first} and {second}: {first_line(error)}") from error
    keys = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    return {name: float(found[keys[name]]) for name in names}


def _images(pictures: Path | Dataset[Tensor]) -> int:
    if isinstance(pictures, Path):
        return sum(path.suffix.lower() in FIDELITY_ENDINGS for path in pictures.rglob("*"))
    return len(pictures)  # type: ignore[arg-type]


#: CLIP's models by their authors' names (Radford et al. 2021), and the hub's.
CLIP_MODELS = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


class ClipScore:
    """100 max(cos(image, caption), 0) by a CLIP model (Hessel et al. 2021, without their factor of 2.5).

    Args:
        model: one of CLIP_MODELS, a hub id or a folder. device: where it runs.

    Raises MissingExtraError: transformers is not installed. InputError: the model cannot be loaded.
    """

    def __init__(self, model: str = "ViT-L/14", device: str = "cpu") -> None:
        transformers = _package("transformers", "metrics")
        name = CLIP_MODELS.get(model, model)
        try:
            self._network = transformers.CLIPModel.from_pretrained(name).to(device).eval()
            self._processor = transformers.CLIPProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot load the CLIP model {name!r}, download it first: {first_line(error)}") from error
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image], captions: list[str]) -> list[float]:
        """The score of each image with its caption, which ends where the model's texts do."""
        given = self._processor(text=captions, images=images, return_tensors="pt", padding=True, truncation=True)
        out = self._network(**given.to(self._device))
        alike = torch.cosine_similarity(out.image_embeds.float(), out.text_embeds.float())
        return [100 * max(0.0, float(one)) for one in alike]
