"""DDCMScheduler: codebook noise in any diffusers pipeline, whose scheduler it takes the place of.

The noise levels and what a network's output says of x0 are models/levels.py's, the step is sampling/update.py's.
Timesteps come from one of diffusers' own schedulers, the *source*, so that they are those the pipeline expects
(scheduler_timesteps.py); what is recorded of a run, and its files, are scheduler_run.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from ddcm_fast.codebook.reference import initial_noise
from ddcm_fast.codec.config import CodecConfig
from ddcm_fast.codec.container import DTYPE_NAMES, FileData
from ddcm_fast.codec.identity import dtype_name
from ddcm_fast.codec.images import ImageLike, to_tensor
from ddcm_fast.codec.limits import Limits
from ddcm_fast.codec.scheduler_run import CODEBOOK_START, OWN_START, Recorded, Run, read, replayed
from ddcm_fast.codec.scheduler_timesteps import SOURCES, Timesteps, source_name
from ddcm_fast.errors import ConfigError, FormatError, InputError
from ddcm_fast.models.latent import Autoencoder
from ddcm_fast.models.levels import EDMLevels
from ddcm_fast.sampling.autocast import without_autocast
from ddcm_fast.sampling.choosers import Blind, Chooser, Draw, StepContext, toward
from ddcm_fast.sampling.model import eps_from_x0
from ddcm_fast.sampling.update import complete


@dataclass
class StepOutput(BaseOutput):
    """What a step returns: x_s and x0_hat, both of the shape and dtype of the sample."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class DDCMScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A diffusers scheduler whose noise comes from codebooks; the chosen letters are the picture's file.

        pipe.scheduler = DDCMScheduler.from_config(pipe.scheduler.config, K=4096, kind="hadamard", seed=0)
        start = pipe.scheduler.initial_latents(shape)
        image = pipe("a cat", latents=start).images[0]
        data = pipe.scheduler.to_bytes()
        with pipe.scheduler.replay(data):
            again = pipe("a cat", latents=start).images[0]  # the same, bit for bit

    Steps are ancestral (eta = 1; of consistency models with fresh noise) from each of the timesteps to the next and at
    the end to the clean image. A second-order or multistep scheduler's configuration is taken for its noise levels,
    spacing and prediction type only; so is one that asks for Karras' spacing of a VP model's sigmas. The state is
    computed in float32 and returned in the sample's dtype. `eta` and other samplers' arguments of `step` are ignored.

    Letters are drawn from the pipeline's `generator` (one, or one an image), or where `step` gets none from torch's own
    (torch.manual_seed). Others choose them inside `using`, `toward` and `replay`.

    Args:
        K, kind, seed: of the codebook, see Codebook.
        rule, M, C, atoms: what is coded in a step, see CodecConfig; `atoms` are of the whole run.
        source: the diffusers scheduler that timesteps are taken from; from_config chooses it.

    Attributes:
        backend: of the codebook, see Codebook. limits: of what files and settings may ask for.
        timesteps, sigmas, init_noise_sigma, order: as of any scheduler; sigmas are sigma / alpha, of flows sigma.

    Raises:
        ConfigError: impossible settings. ModelError: a configuration of an unsupported scheduler.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers] + [
        n for n in SOURCES if n not in KarrasDiffusionSchedulers.__members__
    ]
    order = 1

    def __init__(
        self,
        K: int = 4096,
        kind: str = "hadamard",
        seed: int = 0,
        rule: str = "greedy",
        M: int = 1,
        C: int = 1,
        atoms: int = 0,
        source: str = "DDPMScheduler",
    ) -> None:
        self._settings = CodecConfig(rule=rule, kind=kind, K=K, M=M, C=C, atoms=atoms, T=1, seed=seed)
        if source not in SOURCES:
            raise ConfigError(f"unknown source {source!r}: choose one of {', '.join(SOURCES)}")
        own = ("K", "kind", "seed", "rule", "M", "C", "atoms")
        self.register_to_config(source=source, **{name: getattr(self._settings, name) for name in own})
        self.backend = "auto"
        self.limits = Limits()
        self.num_inference_steps: int | None = None
        self._chooser: Chooser | None = None
        self._recorded: list[Recorded] = []
        self._run: Run | None = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler with another one's configuration and settings of this one; arguments as of ConfigMixin's."""
        if isinstance(config, Mapping):
            # Values that were defaults of the other class need not be those of the source.
            config = {key: value for key, value in config.items() if key != "_use_default_values"}
            if "source" not in config:
                kwargs.setdefault("source", source_name(config))
        made: Any = super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        (made[0] if return_unused_kwargs else made).set_source()
        return made

    def set_source(self) -> None:
        """Take up the configuration as it is now; from_config does it."""
        self.__dict__.pop("_timesteps", None)
        self._timesteps  # noqa: B018  (raises what is wrong with the configuration)

    @cached_property
    def _timesteps(self) -> Timesteps:
        return Timesteps(self.config)

    @property
    def _source(self) -> Any:
        return self._timesteps.source

    # ---- what pipelines ask of a scheduler -------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """What some pipelines read besides: alphas_cumprod, betas, config's entries, ... are the source's."""
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self._source, name)

    @property
    def timesteps(self) -> Tensor:
        return self._source.timesteps

    @property
    def sigmas(self) -> Tensor:
        return self._timesteps.sigmas

    @property
    def init_noise_sigma(self) -> float | Tensor:
        return getattr(self._source, "init_noise_sigma", 1.0)

    def __len__(self) -> int:
        return int(self._source.config.num_train_timesteps)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Steps are found by their timestep; nothing is to be done."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        **more: Any,
    ) -> None:
        """The timesteps of the run that follows, as the source places them; what was recorded is forgotten.

        Raises ConfigError: arguments that the source does not take, or timesteps that do not decrease.
        """
        given = dict(more, num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas, mu=mu)
        self._timesteps.set(device, **given)
        self.num_inference_steps = len(self.timesteps)
        self._run = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is given for a state; the sample itself but with EDM and consistency models."""
        if timestep is None or not self._timesteps.plan:
            return sample
        levels = self._timesteps.model.levels
        return levels.scale_input(sample, levels.level(self._timesteps.step(timestep).t))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha_t x0 + sigma_t noise, (B, ...) of one timestep for all or one each, in the samples' dtype."""
        names = torch.as_tensor(timesteps, dtype=torch.float64, device="cpu").flatten().tolist()
        if isinstance(self._timesteps.model.levels, EDMLevels):
            names = [self._timesteps.step(t).t for t in names]
        numbers = torch.tensor([self._timesteps.model.alpha_sigma(t) for t in names], dtype=torch.float32, device="cpu")
        numbers = numbers.to(original_samples.device).view(-1, 2, *[1] * (original_samples.dim() - 1))
        noisy = numbers[:, 0] * original_samples.float() + numbers[:, 1] * noise.float()
        return noisy.to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, as pipelines of flow models call it."""
        return self.add_noise(sample, noise, timestep)

    @without_autocast
    @torch.no_grad()
    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
        **ignored: Any,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """One step, its noise from the codebook.

        Args:
            model_output: of the network, guided or not, of the sample's shape; a learned variance behind its channels
                is dropped. timestep: one of `timesteps`. sample: x_t (B, ...), any floating point dtype.
            generator: chooses the letters of the run that begins with this step.

        Raises:
            ConfigError: a timestep that does not follow the last one. InputError: NaN in what is followed (on a GPU
            `to_bytes` says so). LimitError: a search beyond the limits. FormatError: a file of another run.
        """
        place = self._timesteps.step(timestep).index
        x = sample.float()
        run = self._run
        if run is None or place == run.steps[0].index:
            run = self._run = self._begin(place, sample, model_output.dtype, generator)
        if run.taken == len(run.steps) or place != run.steps[run.taken].index or sample.shape != run.shape:
            raise ConfigError("the steps of a run must follow one another, for one batch; call set_timesteps anew")
        step, levels = run.steps[run.taken], self._timesteps.model.levels
        output = model_output.float()
        if output.shape[1] == 2 * x.shape[1]:
            output = output[:, : x.shape[1]]
        level = levels.level(step.t)
        x0_hat = levels.x0(x, output, level)
        following = run.steps[run.taken + 1] if run.taken + 1 < len(run.steps) else None
        eps_hat = eps_from_x0(x, x0_hat, level.alpha, level.sigma)
        context = StepContext(self._timesteps.model, run.rule, step, x, x0_hat, eps_hat, None, following)
        x, choice = complete(context, run.chooser, step)
        run.taken += 1
        if choice is not None:
            run.letters.append(choice)
        out, x0_hat = x.to(sample.dtype), x0_hat.to(sample.dtype)
        return StepOutput(prev_sample=out, pred_original_sample=x0_hat) if return_dict else (out, x0_hat)

    # ---- who chooses -----------------------------------------------------------------------------

    def using(self, chooser: Chooser) -> AbstractContextManager[DDCMScheduler]:
        """Inside, a Chooser says the letters: Draw(seed), Match(objective), or one of your own.

        What it is told of a step (StepContext) has the prediction and no networks.
        """
        return self._choosing(chooser, [])

    @contextmanager
    def _choosing(self, chooser: Chooser | None, recorded: list[Recorded]) -> Iterator[DDCMScheduler]:
        before = self._chooser, self._recorded
        self._chooser, self._recorded = chooser, recorded
        try:
            yield self
        finally:
            self._chooser, self._recorded = before

    def toward(
        self, target: Tensor | ImageLike, vae: Any = None, weight: Tensor | None = None
    ) -> AbstractContextManager[DDCMScheduler]:
        """Inside, the letters follow the residual of a target: the run compresses it.

        Args:
            target: x0, of the shape of the pipeline's latents or of one of them; or a picture (images.to_tensor), which
                is the state of a pixel model and which `vae` encodes for a latent one. vae: the pipeline's autoencoder.
            weight: of the residual, see sampling.toward.
        """
        if vae is not None or not isinstance(target, Tensor):
            target = to_tensor(target)
        if vae is not None:
            with torch.no_grad():
                target = Autoencoder(vae).encode(target)
        return self.using(toward(target.float(), weight))

    def replay(self, files: FileData | Sequence[FileData]) -> AbstractContextManager[DDCMScheduler]:
        """Inside, the letters are those of a file, or of a file an image; everything about the codebook is the files'.

        Where the pipeline steps more images, the files take turns (DiTPipeline with guidance has each image twice).

        The pipeline's call must be the one that made them. Where x_T was not the codebook's it must begin with the same
        latents, by the same generator for example.

        Raises:
            FormatError: not a readable .ddcm file, or not of one run of a scheduler. LimitError: beyond the limits.
            ConfigError, at the first step: other timesteps, shapes or latents than the file's.
        """
        recorded = [read(one, self.limits) for one in (files if isinstance(files, (list, tuple)) else [files])]
        if len({(r.header, r.start, r.first) for r in recorded}) != 1:
            raise FormatError(
                f"these {len(recorded)} are not the files of one run: replay those that one call's `files` returned"
            )
        return self._choosing(None, recorded)

    def initial_latents(
        self, shape: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """x_T from the codebook's seed, the same for each of the B images of `shape`, for a pipeline's `latents=`."""
        seed = self._recorded[0].header.config.seed if self._recorded else self._settings.seed
        one = initial_noise(math.prod(shape[1:]), seed, device).view(1, *shape[1:])
        return one.repeat(shape[0], *[1] * (len(shape) - 1)).to(dtype)

    def _begin(self, place: int, sample: Tensor, dtype: torch.dtype, generator: Any) -> Run:
        """A run whose first step has a place among the timesteps."""
        if dtype_name(dtype) not in DTYPE_NAMES:
            raise InputError(f"the network's output is {dtype}; it must be one of {', '.join(DTYPE_NAMES)}")
        steps, dim, batch = self._timesteps.plan[place:], sample[0].numel(), len(sample)
        expected = self.initial_latents(sample.shape, sample.device, sample.dtype)
        drawn = torch.equal(sample, expected) or torch.equal(sample, expected * self.init_noise_sigma)
        start = CODEBOOK_START if place == 0 and drawn else OWN_START
        fingerprint = self._timesteps.fingerprint(sample.shape)
        config = self._recorded[0].header.config if self._recorded else replace(self._settings, T=len(steps))
        try:
            steps = config.shared(self._timesteps.model, steps)
            rule = config.make_rule(steps, dim, self.backend)
            chooser = self._chooser
            if self._recorded:
                chooser = replayed(self._recorded, fingerprint, rule, steps, sample, start, dtype)
        except ConfigError as error:
            if not self._recorded:
                raise
            raise FormatError(f"the file asks for something this call cannot do: {error}") from error
        if chooser is None:
            chooser = Draw(generator if generator is not None else torch.default_generator)
        if not isinstance(chooser, Blind):
            self.limits.check_search(config, dim, batch, self.backend, sample.device)
        return Run(config, steps, rule, chooser, fingerprint, sample.shape, dtype, start)

    # ---- the file --------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The file of the last run's one image; raises ConfigError where there were several, see `files`."""
        files = self.files()
        if len(files) != 1:
            raise ConfigError(f"the last run made {len(files)} images; call `files`, which returns one file each")
        return files[0]

    def files(self) -> list[bytes]:
        """The bytes of a .ddcm file for each image of the last run.

        They hold the letters, the codebook and a fingerprint of timesteps and shape, but no prompt, no network and no
        first latents: a warning says so where these were not `initial_latents`.

        Raises:
            ConfigError: no step was taken. InputError: a prediction was NaN or infinite.
        """
        if self._run is None or self._run.taken == 0:
            raise ConfigError("no step was taken yet: call the pipeline, then ask for its file")
        return self._run.files()
