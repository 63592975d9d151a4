"""What a model folder may make run: nothing. Its index and configurations are read before any library sees them.

A diffusers folder can name Python files of its own as its pipeline or as a component, and a transformers
configuration ("auto_map") can do the same, or name other models and attention kernels on the hub. What the libraries
make of that has changed between their versions (diffusers before 0.38 ran a local folder's Python without asking), so
such folders are refused here. Pickled weights are a matter of their own, see `check_pickle`.
"""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ddcm_fast.errors import ModelError

#: The longest configuration that is read.
_MAX_CONFIG = 1 << 22


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises ModelError."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_CONFIG + 1)
        if len(text) > _MAX_CONFIG:
            raise ModelError(f"{path} is too long for a configuration, which has at most {_MAX_CONFIG >> 20} MiB")
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        said = (str(error).splitlines() or ["it is nested too deep"])[0]
        raise ModelError(f"cannot read {path}: {said}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no settings; it must be a JSON object")
    return value


def check_pickle(path: Path | str, trust: bool) -> None:
    """Raise ModelError for a pickled file that the user does not trust."""
    if not trust:
        raise ModelError(
            f"{path} is a pickle, a format that can run code as it is loaded; if you know where it is from, load it "
            "with --trust (trust=True in Python), or convert it to safetensors"
        )


def _refuse(where: Path, what: str) -> ModelError:
    return ModelError(
        f"{where} {what}, and code of a model's folder is never run; load the pipeline yourself and pass it to Codec"
    )


def check_index(index: Path) -> None:
    """Raise ModelError for a model_index.json that names classes from outside diffusers and transformers."""
    diffusers: Any = import_module("diffusers")
    parts = read_config(index)
    name = parts.get("_class_name")
    if not isinstance(name, str) or not isinstance(getattr(diffusers, name, None), type):
        raise _refuse(index, f"asks for the pipeline {name!r}, which diffusers does not have")
    for part, value in parts.items():
        if not isinstance(value, list) or not value or value[0] is None:
            continue
        if len(value) != 2 or not all(isinstance(v, str) and v.isidentifier() for v in (*value, part)):
            raise _refuse(index, f"has an impossible component {part!r}")
        library, cls = value
        if "Pipeline" in cls:
            raise _refuse(index, f"has a pipeline inside, {part!r}")
        if library not in ("diffusers", "transformers") and not _is_network(library, cls):
            raise _refuse(index, f"asks for {library}.{cls}, which is neither of diffusers nor of transformers")


def _is_network(library: str, cls: str) -> bool:
    """Whether one of diffusers' pipelines brings a network of this name, as Stable Diffusion's safety checker."""
    module = f"diffusers.pipelines.{library}"
    found = getattr(import_module(module), cls, None) if find_spec(module) is not None else None
    return isinstance(found, type) and issubclass(found, torch.nn.Module)


def check_folder(folder: Path) -> None:
    """Raise ModelError for a pipeline's folder that asks for code or for other models."""
    check_index(folder / "model_index.json")
    for path in sorted(folder.rglob("*.py")):
        if path != folder / "pipeline.py":  # which nothing loads unless the index names it
            raise _refuse(path, "is code")
    for path in sorted(folder.rglob("*.json")):
        if path.name in ("adapter_config.json", "modular_model_index.json"):
            raise _refuse(path, "names another model")
        if not path.name.endswith("config.json"):
            continue
        for key, value in read_config(path).items():
            if key == "auto_map":
                raise _refuse(path, "asks for code of its own (auto_map)")
            if key.endswith("implementation") and "/" in str(value):
                raise _refuse(path, f"asks for code from elsewhere ({key})")
