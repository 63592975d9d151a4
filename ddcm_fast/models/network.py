"""NetworkModel: what all adapters of diffusers' networks share (levels, guidance, learned variance, fingerprint)."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.errors import ConfigError, ModelError
from ddcm_fast.models.fingerprint import weights_fingerprint
from ddcm_fast.models.lent import Lent, Part, execution_device, uncompiled
from ddcm_fast.models.levels import Levels
from ddcm_fast.sampling.autocast import without_autocast
from ddcm_fast.sampling.condition import Condition
from ddcm_fast.sampling.model import DiffusionModel, Level, Predictor, eps_from_x0

_KEPT = 16  # prepared conditions kept
#: What of a pipeline an adapter is made of, beside the text encoders, which it asks the pipeline for at every use.
_COMPONENTS = ("unet", "transformer", "vae", "vqvae", "scheduler", "tokenizer", "tokenizer_2", "tokenizer_3")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # those that files have names for

Inputs = dict[str, Any]


class NetworkModel(DiffusionModel):
    """A network behind some noise levels.

    Subclasses say what a condition is to the network (`prepare`) and how it is called (`call`). What does not change
    from step to step is prepared once for a condition, batch and size, and kept on the device.

    The network stays its owner's: it is evaluated as it has to be (see Lent) and found again as it was.

    Args:
        network: a torch module with `config` and `dtype`, compiled or not.
        levels: what its inputs and outputs mean.
        name: travels in files.
        compiled: call it through torch.compile.

    Raises ModelError: a network in another dtype than float32, bfloat16 or float16, or without weights.
    """

    #: Guidance where there is a prompt or a label and the user does not say.
    default_guidance: float = 1.0

    def __init__(self, network: Any, levels: Levels, name: str, compiled: bool = False) -> None:
        self.network = uncompiled(network)
        self.levels = levels
        self.name = name
        self.max_timestep = levels.max_timestep
        self.fresh_noise = levels.fresh_noise
        self._run = torch.compile(network) if compiled else network
        self._lent = Lent(self.parts)
        self._fingerprints: dict[torch.dtype, bytes] = {}
        self._prepared: OrderedDict[tuple[Any, ...], tuple[Inputs, float | None]] = OrderedDict()
        self._on_device: dict[float, Level] = {}
        self._source: tuple[Any, Callable[[], NetworkModel], list[Any]] | None = None
        self._look_anew()

    def _look_anew(self) -> None:
        """Whatever was derived from the networks is made again when it is next asked for."""
        self.generation += 1
        self.device, self.dtype = execution_device(self.network), self.network.dtype
        if self.dtype not in _DTYPES:
            raise ModelError(
                f"model {self.name!r} is in {self.dtype}, not float32, bfloat16 or float16; convert it first, as with "
                "pipe.to(torch.float32)"
            )
        if self.device.type == "meta":
            raise ModelError(f"model {self.name!r} has no weights (they are on the device 'meta'); load them first")
        self._fingerprints.clear()
        self._prepared.clear()
        self._on_device.clear()

    # ---- what an adapter says ------------------------------------------------------------------

    @abstractmethod
    def call(self, sample: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
        """The network's output, of any dtype.

        Args:
            sample: (B, *latent_shape) in the network's dtype; 2B of them under classifier-free guidance.
            time: (B,) float32. inputs: from `prepare`, tensors with B rows.
        """

    def prepare(self, condition: Condition | None, guided: bool, shape: torch.Size) -> Inputs:
        """What the network is told: tensors with one row, or two (without and with the condition) if guided.

        shape: of the state, (B, *latent_shape). Values that are no tensors are handed on as they are.
        """
        return {}

    def guidance(self, condition: Condition | None) -> float | None:
        """The scale of classifier-free guidance, None for a single evaluation."""
        if condition is None or condition.guidance_scale in (None, 1.0):
            return None
        return condition.guidance_scale

    def description(self) -> dict[str, Any]:
        """What besides weights tells this model from another, for the fingerprint."""
        return self.levels.describe()

    def parts(self) -> list[Part]:
        """Every network that the picture depends on."""
        return [Part("", self.network, channels_last=True)]

    # ---- DiffusionModel --------------------------------------------------------------------------

    @contextmanager
    def using(self) -> Iterator[None]:
        """Raises ModelError: the networks were moved where they cannot be used."""
        if not self._lent.in_use:
            self._follow()
            if self._lent.changed():
                self._look_anew()
        with self._lent.lend():
            yield

    def follow(self, pipe: Any, renew: Callable[[], NetworkModel]) -> None:
        """From now on, where a part of the pipeline was replaced, become what `renew` makes of it."""
        self._source = pipe, renew, [vars(pipe).get(name) for name in _COMPONENTS]

    def _follow(self) -> None:
        if self._source is None:
            return
        pipe, renew, before = self._source
        if all(vars(pipe).get(name) is part for name, part in zip(_COMPONENTS, before, strict=True)):
            return
        self.__dict__.update({**vars(renew()), "generation": self.generation})
        self._lent = Lent(self.parts)
        self.follow(pipe, renew)

    def own(self) -> None:
        """Take the networks over for good, of a model that was loaded and belongs to no one else."""
        self._lent.own()

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        return self.levels.alpha_sigma(t)

    def training_timesteps(self) -> list[float]:
        return self.levels.timesteps()

    def level(self, t: float) -> Level:
        return self.levels.level(t)

    def predict(self, x: Tensor, t: float, condition: Any = None) -> tuple[Tensor, Tensor]:
        """Guidance evaluates both halves in one call.

        The condition may be a tuple of one a row, of one guidance scale.
        """
        with self.using(), gradients_of(x):
            return self.predictor(condition, x.shape)(x, self._placed(t))

    def predictor(self, condition: Any, shape: torch.Size) -> Predictor:
        """The condition as in `predict`."""
        inputs, scale = self._inputs(condition, shape)

        @without_autocast
        def predict(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            sample = self.levels.scale_input(x, level)
            if scale is not None:
                sample = torch.cat((sample, sample))
            sample = sample.to(self.dtype)
            if sample.dim() == 4:
                sample = sample.contiguous(memory_format=torch.channels_last)
            time = torch.as_tensor(level.time, dtype=torch.float32, device=x.device).expand(len(sample)).contiguous()
            output = self.call(sample, time, inputs)
            if output.shape[1] == 2 * x.shape[1]:
                output = output[:, : x.shape[1]]  # a learned variance follows; the codebooks replace it
            output = output.to(x.device, torch.float32).contiguous()
            if scale is not None:
                without, with_ = output.chunk(2)
                output = without + scale * (with_ - without)
            x0_hat = self.levels.x0(x, output, level)
            return x0_hat, eps_from_x0(x, x0_hat, level.alpha, level.sigma)

        return predict

    def _placed(self, t: float) -> Level:
        """The numbers of a timestep as 0-d tensors on the device, made once a timestep.

        A GPU divides by a number of the host's in another way than by one of its own, so predictions always take the
        latter: a captured step then computes the same bits as any other. torch.full does not wait for the device.
        """
        if t not in self._on_device:
            with torch.inference_mode(False):
                numbers = (torch.full((), float(n), dtype=torch.float32, device=self.device) for n in self.level(t))
                self._on_device[t] = Level(*numbers)
        return self._on_device[t]

    @without_autocast
    def _inputs(
        self, condition: Condition | tuple[Condition | None, ...] | None, shape: torch.Size
    ) -> tuple[Inputs, float | None]:
        key = (condition, *shape)
        if key not in self._prepared:
            own = condition if isinstance(condition, tuple) else (condition,)
            scale, *others = {self.guidance(c) for c in own}
            if others or len(own) not in (1, shape[0]):
                raise ConfigError(
                    f"{len(own)} conditions of {1 + len(others)} guidances for {shape[0]} images; give one an image, "
                    "of one guidance"
                )
            # No inference tensors are kept: someone may want gradients through the network later.
            with torch.inference_mode(False), torch.no_grad():
                rows = [self.prepare(c, scale is not None, shape) for c in own]
                many = {k: _stacked([row[k] for row in rows], shape[0]) for k in rows[0]}
            self._prepared[key] = (many, scale)
            while len(self._prepared) > _KEPT:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def fingerprint(self, dtype: torch.dtype | None = None) -> bytes:
        with self.using():
            dtype = dtype or self.dtype
            if dtype not in self._fingerprints:
                self._fingerprints[dtype] = weights_fingerprint(json.dumps(self.description()), self.parts(), dtype)
            return self._fingerprints[dtype]

    # ---- for adapters ----------------------------------------------------------------------------

    def _native_side(self, factor: int) -> None:
        """default_side from the network's configuration, for `factor` pixels an entry of the state."""
        size = self.network.config.get("sample_size")
        if size:
            side = size if isinstance(size, int) else min(size)
            self.default_side = max(self.min_side, side * factor)

    def _complete_label(self, condition: Condition | None, no_class: int | None) -> Condition | None:
        """complete_condition of class-conditional models; no_class is the unconditional label, if there is one."""
        if condition is not None and (condition.prompt or condition.negative_prompt):
            raise ConfigError(f"model {self.name!r} takes a class label, no prompt")
        if condition is not None and condition.guidance_scale is None:
            condition = replace(condition, guidance_scale=self.default_guidance)
        self._label_rows(condition, no_class, self.guidance(condition) is not None)
        return None if condition is None or condition.label is None else condition

    def _label_rows(self, condition: Condition | None, no_class: int | None, guided: bool) -> list[int]:
        """The labels of one evaluation, or of both halves of a guided one. Raises ConfigError if one is missing."""
        asked = None if condition is None else condition.label
        if asked is not None and asked >= self.classes:
            raise ConfigError(f"model {self.name!r} has labels 0 to {self.classes - 1}, not {asked}")
        label = no_class if asked is None else asked
        if label is None:
            raise ConfigError(f"model {self.name!r} is class-conditional: give a label, 0 to {self.classes - 1}")
        if not guided:
            return [label]
        if no_class is None:
            raise ConfigError(
                f"model {self.name!r} has no unconditional class, so no classifier-free guidance: leave guidance_scale "
                "out"
            )
        return [no_class, label]

    def _complete_prompt(self, condition: Condition | None) -> Condition | None:
        """complete_condition of text-to-image models."""
        if not condition:
            return None
        if condition.label is not None:
            raise ConfigError(f"model {self.name!r} takes a prompt, no label")
        if condition.guidance_scale is None:
            condition = replace(condition, guidance_scale=self.default_guidance)
        return condition


@contextmanager
def gradients_of(x: Tensor) -> Iterator[None]:
    """Gradients are recorded where x wants them, not because a network's weights would take some too."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
        yield


def _stacked(rows: list[Any], batch: int) -> Any:
    """One prepared value for a batch, from one or `batch` of them: (1 or 2, ...) each -> (batch or 2 batch, ...)."""
    if not isinstance(rows[0], Tensor):
        return rows[0]
    many = torch.stack(rows, dim=1)  # the halves of a guided evaluation stay apart
    return many.expand(-1, batch, *many.shape[2:]).flatten(0, 1).contiguous()
