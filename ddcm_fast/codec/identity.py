"""Which model a file belongs to: its header, the fingerprint in it, and the check before decoding."""

from __future__ import annotations

import warnings

import torch

from ddcm_fast.codec.config import CodecConfig
from ddcm_fast.codec.container import DTYPE_NAMES, Header, refuse_pipelines
from ddcm_fast.errors import DDCMWarning, ModelError
from ddcm_fast.sampling.condition import Condition, ConditionHash
from ddcm_fast.sampling.information import model_curve
from ddcm_fast.sampling.model import DiffusionModel


def make_header(
    model: DiffusionModel, config: CodecConfig, height: int, width: int, stored: Condition | ConditionHash | None
) -> Header:
    """The header of a file that a model makes."""
    return Header(config, model.name, fingerprint(model, config), dtype_name(model.dtype), width, height, stored)


def fingerprint(model: DiffusionModel, config: CodecConfig, dtype: torch.dtype | None = None) -> bytes:
    """The model's (see there), and where steps or atoms follow the information curve also the curve's."""
    own = model.fingerprint(dtype)
    if config.schedule != "kl" and not config.shares_atoms:
        return own
    digest = model_curve(model).digest
    return bytes(a ^ b for a, b in zip(own, digest, strict=True))


def check_model(model: DiffusionModel, header: Header) -> None:
    """Raise ModelError for a file of another model; warn (DDCMWarning) where the network is in another dtype."""
    # Of a wider network than the file's the values are known as that one has them, of a narrower one only signs.
    refuse_pipelines(header.model)
    dtype = file_dtype(header)
    known = model.dtype in (dtype, torch.float32)
    own = fingerprint(model, header.config, dtype if known else None)
    if header.fingerprint != own and (known or header.fingerprint[:2] != own[:2]):
        alike = header.fingerprint[:2] == own[:2]
        raise ModelError(
            f"the file was made with model {header.model!r} (fingerprint {header.fingerprint.hex()}), "
            f"this is {model.name!r} ({own.hex()})"
            + (", the same network with weights of other values" if alike else "")
            + " or a calibration of it that is not the file's; load that model to decode it"
        )
    if header.dtype != dtype_name(model.dtype):
        warnings.warn(
            f"the file was made with the network in {header.dtype}, this one is in {dtype_name(model.dtype)}: "
            f"the picture will be worse than the encoder's; load the model with dtype={header.dtype!r}",
            DDCMWarning,
            stacklevel=5,
        )


def file_dtype(header: Header) -> torch.dtype:
    """The dtype of the network a file was made with."""
    assert header.dtype in DTYPE_NAMES
    return getattr(torch, header.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
