"""The codecs that are compared, by their names."""

from __future__ import annotations

from pathlib import Path

import torch

from ddcm_fast.codec.config import PRESETS
from ddcm_fast.errors import ConfigError
from ddcm_fast.evaluation import formats, learned, presets, programs
from ddcm_fast.evaluation.codec import ImageCodec
from ddcm_fast.sampling.model import DiffusionModel


def names() -> list[str]:
    """All that can be compared."""
    return [*formats.NAMES, *programs.NAMES, *learned.NAMES, *PRESETS]


def split(text: str) -> tuple[str, dict[str, str]]:
    """A codec as it is written, NAME or NAME:KEY=VALUE:..., to its name and settings.

    Raises ConfigError: an unknown name, or a setting that is none or that this codec does not take.
    """
    name, *parts = text.split(":")
    if name not in names():
        raise ConfigError(f"unknown codec {name!r}: choose among {', '.join(names())}")
    settings = {}
    for part in parts:
        key, found, value = part.partition("=")
        if not (key and found and value):
            raise ConfigError(f"{part!r} of the codec {text!r} is no setting; give KEY=VALUE, as in ddcm:K=65536")
        settings[key] = value
    if name in PRESETS:
        presets.configure(name, settings)
    elif name in learned.NAMES:
        learned.check(name, settings)
    elif settings:
        raise ConfigError(f"the codec {name!r} takes no settings such as {next(iter(settings))!r}; give its name only")
    return name, settings


def needs_model(text: str) -> bool:
    """Whether a codec is a preset."""
    return split(text)[0] in PRESETS


def make(
    text: str, model: DiffusionModel | None = None, vtm_cfg: Path | None = None, device: torch.device | None = None
) -> ImageCodec:
    """A codec as it is written, see `split`.

    Args:
        model: of the presets.
        vtm_cfg: VTM's configuration; None: the one beside the program.
        device: of CompressAI's networks; None: the CPU.

    Raises ConfigError: what is written names no codec, or VTM has no configuration. MissingExtraError: a package or
    program that it needs is not there.
    """
    name, settings = split(text)
    if name == "bpg":
        return programs.BpgCodec()
    if name == "vtm":
        return programs.VtmCodec(vtm_cfg)
    if name in learned.NAMES:
        return learned.LearnedCodec(text, name, settings, device or torch.device("cpu"))
    if name not in PRESETS:
        return formats.PillowCodec(name)
    assert model is not None
    return presets.PresetCodec(text, presets.configure(name, settings), model, fixed="T" in settings)
