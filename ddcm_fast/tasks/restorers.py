"""Restorers: what makes a faithful estimate of a degraded image, which blind restoration then follows.

The diffusion model's own denoiser, or a network from a file: a program (torch.export, TorchScript), or the weights of
an architecture that the package spandrel knows, such as the SwinIR of DifFace that the paper takes for faces.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddcm_fast.errors import ConfigError, InputError, MissingExtraError, ModelError, first_line, out_of_memory
from ddcm_fast.models.trust import check_pickle
from ddcm_fast.sampling.model import DiffusionModel

Restorer = Callable[[Tensor], Tensor]
"""Degraded image (B, C, h, w) in [-1, 1] -> estimate (B, C, H, W) in [-1, 1]."""

#: Endings of files that hold weights alone.
_WEIGHTS = (".pth", ".ckpt", ".safetensors")


def model_denoiser(model: DiffusionModel, sigma: float, condition: Any = None) -> Restorer:
    """The diffusion model's own one-step denoiser as the restorer: E[x0 | x0 + sigma n], the MMSE estimate.

    It restores images with white Gaussian noise of standard deviation `sigma` (in [-1, 1] units, on the model's x0):
    the state alpha_t y at the training timestep with sigma_t / alpha_t nearest to sigma.
    """
    if not 0 < sigma < 10:
        raise ConfigError(f"the noise level is {sigma}; it must be between 0 and 10")

    def ratio(t: float) -> float:
        alpha, noise = model.alpha_sigma(t)
        return noise / alpha

    t = min(model.training_timesteps(), key=lambda t: abs(ratio(t) - sigma))
    alpha, _ = model.alpha_sigma(t)

    def restorer(image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        m = model.multiple
        padded = pad(image, (0, -width % m, 0, -height % m), mode="replicate")
        x0_hat, _ = model.predict(alpha * model.encode(padded), t, condition)
        return model.decode(x0_hat)[..., :height, :width]

    return restorer


@contextlib.contextmanager
def _quiet_log(name: str) -> Iterator[None]:
    """Without a logger's words: what torch logs of a foreign file is a stack trace, and our error says it in a line."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


def load_restorer(path: str | Path, device: torch.device | str = "cpu", trust: bool = False) -> Restorer:
    """A restorer from a torch.export (.pt2) or TorchScript (.pt) file, or from weights (.pth, .ckpt, .safetensors).

    The first two are programs: what such a file holds is run (reading a .pt2 file can also unpickle), and no way of
    loading keeps it to tensors. Weights in a pickle are read as tensors only. All but safetensors need `trust`.

    Raises:
        InputError: no such file, or none of these.
        ModelError: no `trust`.
        MissingExtraError: weights, without spandrel.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such restorer: {path}")
    if path.suffix in _WEIGHTS:
        return _from_weights(path, torch.device(device), trust)
    return load_program(path, device, trust, "restorer")


def load_program(path: Path, device: torch.device | str, trust: bool, what: str) -> Callable[..., Tensor]:
    """A torch.export (.pt2) or TorchScript file, `what` being what it is for.

    Raises:
        InputError: neither of these.
        ModelError: no `trust`.
    """
    if not trust:
        raise ModelError(
            f"{path} is a program that would be run as it is; if you know where it is from, load it with --trust "
            "(trust=True in Python)"
        )
    try:
        if path.suffix == ".pt2":
            with _quiet_log("torch.export"):
                return torch.export.load(path).module().to(device)
        return torch.jit.load(path, map_location=device).eval()
    except Exception as error:  # torch raises many types for a foreign file
        if out_of_memory(error):
            raise
        raise InputError(
            f"{path} is neither a torch.export file (.pt2) nor TorchScript: {first_line(error)}; save the {what} "
            "with torch.export.save or torch.jit.save"
        ) from error


def _from_weights(path: Path, device: torch.device, trust: bool) -> Restorer:
    """An architecture of spandrel, which it finds by the names and shapes of the weights; those work on [0, 1]."""
    try:
        import spandrel
    except ImportError as error:
        raise MissingExtraError(
            f"the weights in {path.name} need spandrel: pip install 'ddcm-fast[restorers]', or save the restorer with "
            "torch.export.save (.pt2)"
        ) from error
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            check_pickle(path, trust)
            state = torch.load(path, map_location="cpu", weights_only=True)
        # What trainers put before every name: Lightning's, then DistributedDataParallel's, as in DifFace's files.
        for wrapper in ("params_ema", "params", "state_dict"):
            state = state.get(wrapper, state)
        state = {name.removeprefix("model.").removeprefix("module."): value for name, value in state.items()}
        network: Any = spandrel.ModelLoader(device).load_from_state_dict(state)
    except ModelError:
        raise
    except Exception as error:  # unpickling and spandrel raise many types
        if out_of_memory(error):
            raise
        raise InputError(
            f"{path} does not hold the weights of a restorer that spandrel knows: {first_line(error)}; save the "
            "restorer with torch.export.save (.pt2)"
        ) from error
    if not isinstance(network, spandrel.ImageModelDescriptor):
        raise InputError(f"{path} holds a {network.architecture.name}, which is no image restorer; give another file")
    network.eval()

    def restorer(image: Tensor) -> Tensor:
        restored: Tensor = network(image * 0.5 + 0.5)
        return restored.clamp(0, 1) * 2 - 1

    return restorer
