"""load_model: from a name, a folder, a checkpoint or a pipeline to a DiffusionModel."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..errors import MissingExtraError, ModelError
from ..information import InformationCurve
from .base import DiffusionModel
from .gaussian_field import GaussianField
from .tiled import TiledModel, split_name

#: Folder of the built-in models' weights.
WEIGHTS = Path(__file__).parent / "weights"

#: What this package adds to a diffusers model folder.
EXTRA_FILE = "ddcm.json"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: Pipelines' class names and the adapters (module, class) that wrap them.
PIPELINES = {
    "DDPMPipeline": ("pixel", "PixelModel"),
    "DDIMPipeline": ("pixel", "PixelModel"),
    "ConsistencyModelPipeline": ("pixel", "PixelModel"),
    "LDMPipeline": ("latent", "LDMModel"),
    "DiTPipeline": ("latent", "DiTModel"),
    "StableDiffusionPipeline": ("text", "StableDiffusionModel"),
    "LatentConsistencyModelPipeline": ("text", "StableDiffusionModel"),
    "StableDiffusionXLPipeline": ("text", "StableDiffusionXLModel"),
    "PixArtAlphaPipeline": ("text", "PixArtModel"),
    "PixArtSigmaPipeline": ("text", "PixArtModel"),
    "StableDiffusion3Pipeline": ("flow", "StableDiffusion3Model"),
    "FluxPipeline": ("flow", "FluxModel"),
    "SanaPipeline": ("flow", "SanaModel"),
}

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

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


def wrap_pipeline(pipe: Any, name: str | None = None, compile: bool = False) -> DiffusionModel:
    """A DiffusionModel over a diffusers pipeline that is already loaded; it shares the pipeline's networks.

    Args:
        pipe: of one of the classes in PIPELINES (or derived from one), on its device.
        name: travels in files; where the pipeline was loaded from by default.
        compile: call the denoising network through torch.compile.

    Raises:
        ModelError: a class that is not supported.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in PIPELINES:
            module, adapter = PIPELINES[cls.__name__]
            break
    else:
        raise ModelError(f"{type(pipe).__name__} is not supported; these pipelines are: {', '.join(sorted(PIPELINES))}")
    name = name or getattr(pipe, "name_or_path", None) or type(pipe).__name__
    wrapper = getattr(import_module(f".{module}", __package__), adapter)
    return wrapper.from_pipeline(pipe, name, compile)


def as_model(model: Any) -> DiffusionModel:
    """A DiffusionModel as it is, a pipeline wrapped."""
    return model if isinstance(model, DiffusionModel) else wrap_pipeline(model)


def load_model(
    name: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    compile: bool = False,
    **options: Any,
) -> DiffusionModel:
    """Load a model for the sampler and the codec.

    Args:
        name: a built-in model ("photo", "digits", "gaussian-field"); the folder of a saved diffusers pipeline or
            UNet2DModel; a pipeline's id on the Hugging Face hub ("owner/name"); or an OpenAI guided-diffusion
            checkpoint (a .pt file, see guided_diffusion.PRESETS). Any of them with "#tile=64,16" behind it denoises
            in tiles of 64 entries of the state that overlap by 16, see TiledModel.
        device: where the network runs; a GPU if there is one.
        dtype: of the network; what the model's folder asks for, else bfloat16 where the device is native in it,
            else float32.
        compile: call the denoising network through torch.compile.
        options: for diffusers' from_pretrained (revision, variant, cache_dir, local_files_only, ...), or for
            guided_diffusion.load (preset).

    Raises:
        ModelError: no such model, or one that cannot be read or is not supported.
        MissingExtraError: it has text encoders and transformers is not installed.
    """
    try:
        where = torch.device(device) if device is not None else default_device()
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}: use cpu, cuda or cuda:N") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda' was asked for but torch sees no GPU; use --device cpu")
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}: choose {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    name, tiles = split_name(name)
    model = _load(name, where, dtype, compile, options)
    return model if tiles is None else TiledModel(model, *tiles)


def _load(
    name: str, where: torch.device, dtype: torch.dtype | None, compile: bool, options: dict[str, Any]
) -> DiffusionModel:
    if name in _ANALYTIC:
        return _ANALYTIC[name](where)
    path = WEIGHTS / name if name in builtin_models() else Path(name)
    if path.is_dir():
        if (path / "model_index.json").is_file():
            return _load_pipeline(name, where, dtype, compile, options)
        return _load_unet(path, name, where, dtype, compile, options)
    if path.suffix in (".pt", ".pth"):
        from . import guided_diffusion

        return guided_diffusion.load(path, where, dtype or default_dtype(where), compile=compile, **options)
    if _HUB_ID.fullmatch(name) and not path.exists():
        return _load_pipeline(name, where, dtype, compile, options)
    raise ModelError(
        f"no model {name!r}: it is neither a built-in model ({', '.join(builtin_models())}) nor a folder, "
        "a hub id (owner/name) or a .pt checkpoint"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _load_pipeline(
    name: str, device: torch.device, dtype: torch.dtype | None, compiled: bool, options: dict[str, Any]
) -> DiffusionModel:
    _check_text_extra(Path(name) / "model_index.json")
    diffusers: Any = import_module("diffusers")
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(name, torch_dtype=dtype or default_dtype(device), **options)
    except ImportError as error:
        raise MissingExtraError(f"model {name!r} needs more packages: {_first_line(error)}") from error
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"cannot load model {name!r}: {_first_line(error)}") from error
    return wrap_pipeline(pipe.to(device), name, compiled)


def _check_text_extra(index: Path) -> None:
    """Raise MissingExtraError for a pipeline with text encoders if transformers is not installed."""
    if find_spec("transformers") is not None or not index.is_file():
        return
    parts = json.loads(index.read_text())
    if any(isinstance(part, list) and part[:1] == ["transformers"] for part in parts.values()):
        raise MissingExtraError(
            f"{index.parent} has text encoders, which need transformers: pip install 'ddcm-fast[text]'"
        )


def _load_unet(
    folder: Path,
    name: str,
    device: torch.device,
    dtype: torch.dtype | None,
    compiled: bool,
    options: dict[str, Any],
) -> DiffusionModel:
    """A folder with a UNet2DModel and its scheduler, as the built-in models are."""
    from .pixel import PixelModel

    diffusers: Any = import_module("diffusers")
    try:
        kind = json.loads((folder / "config.json").read_text()).get("_class_name")
        if kind != "UNet2DModel":
            raise ModelError(f"{name!r} holds a {kind}; of single networks only UNet2DModel is supported")
        extra = folder / EXTRA_FILE
        settings = json.loads(extra.read_text()) if extra.is_file() else {}
        if dtype is None:
            dtype = DTYPES[settings["dtype"]] if "dtype" in settings else default_dtype(device)
        unet = diffusers.UNet2DModel.from_pretrained(folder, torch_dtype=dtype, **options)
        scheduler_name = json.loads((folder / "scheduler_config.json").read_text())["_class_name"]
        scheduler = getattr(diffusers, scheduler_name).from_pretrained(folder)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"cannot load model {name!r}: {_first_line(error)}") from error
    unet = unet.to(device, memory_format=torch.channels_last)
    patch, classes = settings.get("space_to_depth", 1), settings.get("classes")
    model = PixelModel(unet, scheduler, name, patch, classes, compiled)
    model.min_side = settings.get("min_side", model.min_side)
    model.default_side = settings.get("default_side", model.default_side)
    if "information" in settings:
        model.information = InformationCurve.from_json(settings["information"])
    return model
