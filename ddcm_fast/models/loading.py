"""load_model: from a name or a folder to a DiffusionModel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import ModelError
from .base import DiffusionModel
from .gaussian_field import GaussianField

#: Folder of the built-in models' weights.
WEIGHTS = Path(__file__).parent / "weights"

#: What this package adds to a diffusers model folder.
EXTRA_FILE = "ddcm.json"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: Built-in models without weights; they compute in float32 whatever dtype is asked for.
_ANALYTIC: dict[str, Callable[[torch.device], DiffusionModel]] = {
    "gaussian-field": lambda device: GaussianField(device=device),
}


def default_device() -> torch.device:
    """CUDA if torch sees a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes it natively, else float32.

    The dtype is written into files: a decoder loads the model in the dtype of the encoder.
    """
    if device.type == "cpu":
        native = torch.backends.cpu.get_cpu_capability() == "AVX512" and _cpu_has_bf16()
        return torch.bfloat16 if native else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def _cpu_has_bf16() -> bool:
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def builtin_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted([*(p.parent.name for p in WEIGHTS.glob("*/config.json")), *_ANALYTIC])


def load_model(
    name: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> DiffusionModel:
    """Load a model for the sampler and the codec.

    Args:
        name: a built-in model ("photo", "gaussian-field") or the path of a saved model folder.
        device: where the network runs; a GPU if there is one.
        dtype: of the network; bfloat16 where the device is native in it, else float32.

    Raises:
        ModelError: no such model, or one that cannot be read or is not supported.
    """
    where = torch.device(device) if device is not None else default_device()
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda' was asked for but torch sees no GPU; use --device cpu")
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}: choose {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    kind = dtype if dtype is not None else default_dtype(where)
    if name in _ANALYTIC:
        return _ANALYTIC[name](where)
    folder = WEIGHTS / name if name in builtin_models() else Path(name)
    if not folder.is_dir():
        raise ModelError(
            f"no model {name!r}: it is neither a built-in model "
            f"({', '.join(builtin_models())}) nor a folder"
        )
    return _load_pixel(folder, name, where, kind)


def _load_pixel(
    folder: Path, name: str, device: torch.device, dtype: torch.dtype
) -> DiffusionModel:
    from diffusers import DDPMScheduler, UNet2DModel

    from .pixel import PixelModel

    try:
        extra = folder / EXTRA_FILE
        settings = json.loads(extra.read_text()) if extra.is_file() else {}
        unet = UNet2DModel.from_pretrained(folder, torch_dtype=dtype)
        scheduler = DDPMScheduler.from_pretrained(folder)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load model {name!r}: {first}") from error
    unet = unet.to(device, memory_format=torch.channels_last)
    return PixelModel(unet, scheduler, name, patch=settings.get("space_to_depth", 1))
