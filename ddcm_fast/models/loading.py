"""load_model: from a name, a folder, a checkpoint or a pipeline to a DiffusionModel."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch

from ddcm_fast.errors import DDCMError, MissingExtraError, ModelError, first_line, out_of_memory
from ddcm_fast.models import guided_diffusion
from ddcm_fast.models.gaussian_field import GaussianField
from ddcm_fast.models.multiscale import multiscale
from ddcm_fast.models.names import EXTRA_FILE, HUB_ID, WEIGHTS, short_name, split_name, with_weights
from ddcm_fast.models.network import NetworkModel
from ddcm_fast.models.pixel import PixelModel
from ddcm_fast.models.tiled import TiledModel
from ddcm_fast.models.trust import check_folder, check_index, read_config
from ddcm_fast.sampling.curve import InformationCurve
from ddcm_fast.sampling.model import DiffusionModel

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

#: What diffusers does by itself, with a warning that a user can do nothing about where accelerate is not installed.
_SPARING = {} if find_spec("accelerate") else {"low_cpu_mem_usage": False}

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
    return sorted([*with_weights(), *_ANALYTIC])


def require_builtin(name: str) -> None:
    """What a file may ask for: raise ModelError unless it is a built-in model, with or without tiles."""
    if split_name(name)[0] not in builtin_models():
        raise ModelError(
            f"the file was made with model {name!r}, which is not built in, and a file does not choose what is loaded: "
            "say where the model is with --model (a folder or hub id)"
        )


def wrap_pipeline(pipe: Any, name: str | None = None, compile: bool = False) -> DiffusionModel:
    """A DiffusionModel over a diffusers pipeline that is already loaded; it shares the pipeline's networks.

    The pipeline stays as it is (dtypes, modes, gradients, hooks), and what is done to it later is noticed.

    Args:
        pipe: of one of the classes in PIPELINES (or derived from one), on its device.
        name: travels in files; by default the hub id that the pipeline was loaded from, or its folder's own name.
        compile: call the denoising network through torch.compile.

    Raises:
        ModelError: a class that is not supported, or a network in another dtype than float32, bfloat16 or float16.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in PIPELINES:
            module, adapter = PIPELINES[cls.__name__]
            break
    else:
        raise ModelError(f"{type(pipe).__name__} is not supported; these pipelines are: {', '.join(sorted(PIPELINES))}")
    name = name or short_name(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
    wrapper = getattr(import_module(f".{module}", __package__), adapter)
    model: NetworkModel = wrapper.from_pipeline(pipe, name, compile)
    model.follow(pipe, lambda: wrapper.from_pipeline(pipe, name, compile))
    return model


def as_model(model: Any) -> DiffusionModel:
    """A DiffusionModel as it is, a pipeline wrapped."""
    return model if isinstance(model, DiffusionModel) else wrap_pipeline(model)


def load_model(
    name: str | PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    compile: bool = False,
    trust: bool = False,
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
        trust: also load pickled weights (.bin, .ckpt, .pt), a format that can run code. Python code in a model's
            folder is never run.
        options: for diffusers' from_pretrained (revision, variant, cache_dir, local_files_only, ...), or for
            guided_diffusion.load (preset).

    Raises:
        ModelError: no such model or device, a model that cannot be read or is not supported, that asks for code of
            its own or, without `trust`, is pickled.
        MissingExtraError: it has text encoders and transformers is not installed.
    """
    where = working_device(device)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}: choose {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    name, tiles = split_name(fspath(name))
    model = _load(name, where, dtype, compile, trust, options)
    if isinstance(model, NetworkModel):
        model.own()
    if tiles is not None:
        model = TiledModel(model, *tiles)
    # Around the tiles: an averaged picture fits into one of them sooner.
    return multiscale(model) if model.information is not None and model.information.averaged_from else model


def working_device(device: torch.device | str | None) -> torch.device:
    """A device that computes. Raises ModelError."""
    if device is None:
        return default_device()
    try:
        where = torch.device(device)
        torch.zeros(1, dtype=torch.float32, device=where).add(1).cpu()
    except Exception as error:  # each device has its own for "not here"; "meta" holds no numbers
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ModelError(f"device {str(device)!r} is not here; use --device {' or '.join(here)}") from error
    return where


def _load(
    name: str, where: torch.device, dtype: torch.dtype | None, compile: bool, trust: bool, options: dict[str, Any]
) -> DiffusionModel:
    if name in _ANALYTIC:
        return _ANALYTIC[name](where)
    path = WEIGHTS / name if name in builtin_models() else Path(name)
    try:
        if path.is_dir():
            if (path / "model_index.json").is_file():
                return _load_pipeline(name, where, dtype, compile, trust, options)
            return _load_unet(path, name, where, dtype, compile, trust, options)
        exists = path.exists()
    except OSError as error:
        raise ModelError(f"cannot load model {name!r}: {error.strerror}") from error
    if path.suffix in (".pt", ".pth"):
        default = dtype or default_dtype(where)
        return guided_diffusion.load(path, where, default, compile=compile, trust=trust, **options)
    if HUB_ID.fullmatch(name) and not exists:
        return _load_pipeline(name, where, dtype, compile, trust, options)
    raise ModelError(
        f"no model {name!r}: it is neither a built-in model ({', '.join(builtin_models())}) nor a folder, "
        "a hub id (owner/name) or a .pt checkpoint"
    )


def _load_pipeline(
    name: str, device: torch.device, dtype: torch.dtype | None, compiled: bool, trust: bool, options: dict[str, Any]
) -> DiffusionModel:
    if options.get("trust_remote_code") or options.get("custom_pipeline"):
        raise ModelError("load_model runs no code of a model; load such a pipeline with diffusers and pass it to Codec")
    safe = {**_SPARING, "use_safetensors": None if trust else True, "trust_remote_code": False, **options}
    folder = Path(name) if Path(name).is_dir() else _download(name, safe)
    _check_text_extra(folder / "model_index.json")
    check_folder(folder)
    diffusers: Any = import_module("diffusers")
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            folder, torch_dtype=dtype or default_dtype(device), **{**safe, "local_files_only": True}
        )
    except Exception as error:  # the libraries raise many types for a damaged folder
        raise _not_loaded(name, error, trust) from error
    return wrap_pipeline(pipe.to(device), short_name(name), compiled)


def _download(name: str, options: dict[str, Any]) -> Path:
    """A pipeline of the hub -> its folder in the cache; what its index asks for is looked at first."""
    hub: Any = import_module("huggingface_hub")
    diffusers: Any = import_module("diffusers")
    which = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
    own = {key: options[key] for key in which if options.get(key) is not None}
    try:
        if not own.get("local_files_only") and not _answers(name, own):
            own["local_files_only"] = True
        check_index(Path(hub.hf_hub_download(name, "model_index.json", **own)))
        return Path(diffusers.DiffusionPipeline.download(name, **{**options, **own}))
    except DDCMError:
        raise
    except Exception as error:  # of the network
        raise _not_loaded(name, error) from error


def _answers(name: str, options: dict[str, Any]) -> bool:
    """Whether the hub can be reached; without it the cache is used, and nothing is tried again and again."""
    hub: Any = import_module("huggingface_hub")
    try:
        hub.model_info(name, **{key: options[key] for key in ("revision", "token") if key in options})
    except hub.errors.HfHubHTTPError:
        raise
    except Exception:  # whatever its network library raises
        return False
    return True


def _not_loaded(name: str, error: Exception, trust: bool = True) -> Exception:
    """What to raise for an error that a library raised while loading."""
    if out_of_memory(error):
        return error
    if isinstance(error, ImportError):
        return MissingExtraError(f"model {name!r} needs more packages: {first_line(error)}")
    said = f"cannot load model {name!r}: {first_line(error)}"
    if not trust and "safetensors" in said and isinstance(error, OSError):
        said += "; pickled weights (.bin, .ckpt) can run code and are loaded only with --trust (trust=True in Python)"
    return ModelError(said)


def _check_text_extra(index: Path) -> None:
    """Raise MissingExtraError for a pipeline with text encoders if transformers is not installed."""
    if find_spec("transformers") is not None or not index.is_file():
        return
    parts = read_config(index)
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
    trust: bool,
    options: dict[str, Any],
) -> DiffusionModel:
    """A folder with a UNet2DModel and its scheduler, as the built-in models are."""
    diffusers: Any = import_module("diffusers")
    kind = read_config(folder / "config.json").get("_class_name")
    if kind != "UNet2DModel":
        raise ModelError(f"{name!r} holds a {kind}; of single networks only UNet2DModel is supported")
    extra = folder / EXTRA_FILE
    settings = read_config(extra) if extra.is_file() else {}
    scheduler_name = str(read_config(folder / "scheduler_config.json").get("_class_name"))
    scheduler_class: Any = getattr(diffusers, scheduler_name, None)
    if diffusers.SchedulerMixin not in getattr(scheduler_class, "__mro__", ()):
        raise ModelError(
            f"{name!r} asks for the scheduler {scheduler_name!r}, which diffusers does not have: update diffusers"
        )
    try:
        if dtype is None:
            dtype = DTYPES[settings["dtype"]] if "dtype" in settings else default_dtype(device)
        safe = {**_SPARING, "use_safetensors": None if trust else True, **options}
        unet = diffusers.UNet2DModel.from_pretrained(folder, torch_dtype=dtype, **safe)
        scheduler = scheduler_class.from_pretrained(folder)
    except Exception as error:  # the library raises many types for a damaged folder
        raise _not_loaded(name, error, trust) from error
    unet = unet.to(device)
    patch, classes = settings.get("space_to_depth", 1), settings.get("classes")
    model = PixelModel(unet, scheduler, short_name(name), patch, classes, compiled)
    model.min_side = settings.get("min_side", model.min_side)
    model.default_side = settings.get("default_side", model.default_side)
    if "information" in settings:
        model.information = InformationCurve.from_json(settings["information"])
    return model
