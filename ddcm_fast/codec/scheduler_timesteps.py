"""The timesteps of DDCMScheduler: which of diffusers' schedulers places them, and the plan of the steps."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor

from ddcm_fast.codec.container import PIPELINE
from ddcm_fast.errors import ConfigError, ModelError
from ddcm_fast.models.levels import CosineLevels, levels_of
from ddcm_fast.sampling.model import DiffusionModel, Level
from ddcm_fast.sampling.schedule import Step, plan

#: diffusers' schedulers that timesteps are taken from; every other supported one is read as one of these.
SOURCES = (
    "DDPMScheduler",
    "LCMScheduler",
    "CogVideoXDDIMScheduler",
    "EDMEulerScheduler",
    "CosineDPMSolverMultistepScheduler",
    "CMStochasticIterativeScheduler",
    "DDPMWuerstchenScheduler",
    "FlowMatchEulerDiscreteScheduler",
)


def source_name(config: Mapping[str, Any]) -> str:
    """Which of SOURCES stands for a configuration, by what is in it: a scheduler's `config` does not say its class.

    Raises ModelError: none.
    """
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return "FlowMatchEulerDiscreteScheduler"
    if "sigma_data" in config and "sigma_min" in config:
        if "clip_denoised" in config:
            return "CMStochasticIterativeScheduler"
        known = "solver_order" in config and "algorithm_type" not in config
        return "CosineDPMSolverMultistepScheduler" if known else "EDMEulerScheduler"
    if "snr_shift_scale" in config:
        return "CogVideoXDDIMScheduler"
    if "original_inference_steps" in config:
        return "LCMScheduler"
    if "beta_schedule" in config and config.get("timestep_type", "discrete") == "discrete":
        return "DDPMScheduler"
    if "scaler" in config:
        return "DDPMWuerstchenScheduler"
    if "shift" in config:
        return "FlowMatchEulerDiscreteScheduler"
    raise ModelError(
        "this scheduler's configuration is not supported: it must have discrete timesteps and a beta schedule (DDPM, "
        "DDIM, PNDM, DPM-Solver, UniPC, Euler, LCM, ...), or be of an EDM, consistency, flow matching or Wuerstchen's "
        "scheduler"
    )


class PipelineModel(DiffusionModel):
    """What choosers and schedules see of a pipeline's model: its noise levels. The networks are the pipeline's own."""

    name = PIPELINE

    def __init__(self, source: Any) -> None:
        self.levels = levels_of(source)
        self.max_timestep = self.levels.max_timestep
        self.fresh_noise = self.levels.fresh_noise

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        return self.levels.alpha_sigma(t)

    def training_timesteps(self) -> list[float]:
        return self.levels.timesteps()

    def level(self, t: float) -> Level:
        return self.levels.level(t)

    def _none(self, *_: Any, **__: Any) -> Any:
        raise ConfigError("a scheduler does not have the pipeline's networks: use what the step's context holds")

    latent_shape = encode = decode = predict = fingerprint = _none


class Timesteps:
    """The timesteps of a source, which is made of a DDCMScheduler's configuration.

    Attributes:
        source: the diffusers scheduler. model: its noise levels. plan: the steps, one a timestep; empty until `set`.

    Raises ModelError: a configuration without known noise levels.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        kind = getattr(diffusers, config["source"])
        # Of those that name no clipping none do any.
        given = {"clip_sample": False, **config, "shift": config.get("flow_shift") or config.get("shift") or 1.0}
        self.source: Any = kind(
            **{key: given[key] for key in inspect.signature(kind.__init__).parameters if key in given}
        )
        self.model = PipelineModel(self.source)
        self.plan: list[Step] = []
        self._steps: dict[float, Step] = {}

    @property
    def sigmas(self) -> Tensor:
        """The source's, or sigma / alpha of each timestep and a zero."""
        if hasattr(self.source, "sigmas"):
            return self.source.sigmas
        levels = [self.model.alpha_sigma(float(t)) for t in self.source.timesteps]
        return torch.tensor([sigma / alpha for alpha, sigma in levels] + [0.0], dtype=torch.float32, device="cpu")

    def set(self, device: str | torch.device | None, **given: Any) -> None:
        """Place them by the arguments of the source's set_timesteps, of which None are left out.

        Raises ConfigError: arguments that the source does not take, or timesteps that do not decrease.
        """
        given = {key: value for key, value in given.items() if value is not None}
        unknown = sorted(given.keys() - inspect.signature(self.source.set_timesteps).parameters.keys())
        if unknown:
            source = type(self.source).__name__
            raise ConfigError(f"set_timesteps takes no {unknown[0]} with the timesteps of {source}")
        self.source.set_timesteps(device=device, **given)
        names = self.source.timesteps.tolist()
        if names[-1] == 0 and isinstance(self.model.levels, CosineLevels):
            del names[-1]  # where Wuerstchen's last step ends
        sigmas = self.source.sigmas.tolist() if hasattr(self.source, "sigmas") else names
        position = self.model.levels.position
        pairs = zip(names, sigmas[: len(names)], strict=True)
        self.plan = plan(self.model, [position(t, sigma) for t, sigma in pairs])
        self._steps = dict(zip(names, self.plan, strict=True))

    def step(self, timestep: Any) -> Step:
        """The step that begins at a timestep; raises ConfigError where it is not one that is set."""
        if isinstance(timestep, Tensor) and timestep.dim():
            timestep = timestep[0]  # Wuerstchen's pipelines give one an image
        found = self._steps.get(float(timestep))
        if found is None and isinstance(timestep, Tensor) and timestep.is_floating_point():  # and round it
            rounded = torch.tensor(list(self._steps), dtype=torch.float64, device="cpu").to(timestep.dtype).tolist()
            found = dict(zip(rounded, self._steps.values(), strict=True)).get(float(timestep))
        if found is None:
            raise ConfigError(f"timestep {timestep} is not one of the {len(self._steps)} that are set")
        return found

    def fingerprint(self, shape: torch.Size) -> bytes:
        """4 bytes of the noise levels, the timesteps and the shape of an image's latents; `shape` is a batch's."""
        timesteps = [f"{step.t:.6g}" for step in self.plan]
        said = json.dumps([self.model.levels.describe(), timesteps, list(shape[1:])])
        return hashlib.sha256(said.encode()).digest()[:4]
