"""Codec: an image to the bytes of a .ddcm file and back, with any DiffusionModel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from . import container
from .bitstream import pack, unpack
from .condition import Condition, ConditionHash, Edit, settle
from .config import SHARING_RULES, CodecConfig, preset
from .container import DTYPE_NAMES, MAX_SIDE, Header
from .errors import ConfigError, FormatError, InputError, ModelError
from .images import to_pil, to_tensor
from .information import model_curve
from .models.base import DiffusionModel
from .models.loading import as_model
from .reference import initial_noise
from .rules import Rule
from .sampler import Chooser, Draw, Replay, Sample, sample, toward
from .schedule import Step

DEFAULT_PRESET = "ddcm"


@dataclass(frozen=True)
class Encoded:
    """One coded image.

    Attributes:
        data: the bytes of the .ddcm file.
        reconstruction: (C, H, W) float32 in [-1, 1], what decoding `data` gives (bit for bit on the same device).
    """

    data: bytes
    reconstruction: Tensor

    @property
    def bpp(self) -> float:
        """Bits of the whole file, header included, a pixel."""
        return 8 * len(self.data) / (self.reconstruction.shape[-2] * self.reconstruction.shape[-1])

    @property
    def image(self) -> Image.Image:
        """The reconstruction as a PIL image."""
        return to_pil(self.reconstruction)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_side(model: DiffusionModel, height: int, width: int) -> None:
    low = model.min_side
    if not (low <= height <= MAX_SIDE and low <= width <= MAX_SIDE):
        raise InputError(f"the image has {width}x{height} pixels; each side must be {low} to {MAX_SIDE}")


def _stored(condition: Condition | None, embed: bool) -> Condition | ConditionHash | None:
    """What a header says of a condition."""
    return condition if condition is None or embed else ConditionHash(condition.digest())


@dataclass(frozen=True)
class _Job:
    """One configuration at one image size: the steps, the rule, x_T and the padding."""

    steps: list[Step]
    rule: Rule
    noise: Tensor  # (1, *latent_shape)
    height: int
    width: int
    padded: tuple[int, int]

    @property
    def coded(self) -> list[Step]:
        return [step for step in self.steps if step.coded]

    def radices(self) -> list[int]:
        return [radix for step in self.coded for radix in self.rule.radices(step)]


class Codec:
    """Compress and decompress images with a diffusion model.

    Args:
        model: from load_model, or a diffusers pipeline (see models.wrap_pipeline).
        config: how `compress` and `generate` code; decoding takes everything from the file.
        backend: of the codebook, see Codebook.
        batch_size: images a network call when several of one size are given. A network's output can depend on
            the batch size in its last bits, so files decode bit for bit like the encoder's reconstruction only where
            both use the same; 1 (the default) always does.
        progress: progress bars: True, False, or None for "if standard error is a terminal".
    """

    def __init__(
        self,
        model: DiffusionModel | Any,
        config: CodecConfig | None = None,
        backend: str = "auto",
        batch_size: int = 1,
        progress: bool | None = False,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        self.model = as_model(model)
        self.config = preset(DEFAULT_PRESET) if config is None else config
        self.backend = backend
        self.batch_size = batch_size
        self.progress = progress

    @classmethod
    def from_preset(
        cls,
        model: DiffusionModel | Any,
        name: str = DEFAULT_PRESET,
        *,
        backend: str = "auto",
        batch_size: int = 1,
        progress: bool | None = False,
        **settings: Any,
    ) -> Codec:
        """A codec with a preset's configuration, some of it replaced: from_preset(model, "pursuit", K=1024, M=8)."""
        return cls(model, preset(name, **settings), backend, batch_size, progress)

    # ---- encoding --------------------------------------------------------------------------------

    def encode(
        self,
        images: Image.Image | Tensor | Sequence[Image.Image | Tensor],
        condition: Condition | None = None,
        embed_condition: bool = True,
    ) -> list[Encoded]:
        """Code images; always a list, in the order given.

        Args:
            images: a PIL image, a tensor (C, H, W) or (B, C, H, W) in [-1, 1], or a sequence of these.
            condition: prompt, label and guidance, for conditional models.
            embed_condition: the condition travels in the file; if not, only 4 bytes of its hash do and the decoder
                must be given it.

        Raises:
            InputError: not an image, NaN, or a side outside 16 to 4096 pixels.
            ConfigError: a configuration or condition this model or size cannot take.
        """
        condition = self.model.complete_condition(condition)
        stored = _stored(condition, embed_condition)
        items = [images] if isinstance(images, (Image.Image, Tensor)) else list(images)
        tensors = [row for item in items for row in to_tensor(item, self.model.channels).split(1)]
        results: list[Encoded | None] = [None] * len(tensors)
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, tensor in enumerate(tensors):
            sizes.setdefault((tensor.shape[2], tensor.shape[3]), []).append(i)
        for (height, width), members in sizes.items():
            job = self._job(self.config, height, width)
            for first in range(0, len(members), self.batch_size):
                batch = members[first : first + self.batch_size]
                target = self._target(torch.cat([tensors[i] for i in batch]), job)
                done = self._run(job, toward(target), len(batch), "compress", condition)
                for i, coded in zip(batch, self._finish(job, done, self.config, stored), strict=True):
                    results[i] = coded
        return [r for r in results if r is not None]

    def compress(
        self,
        images: Image.Image | Tensor | Sequence[Image.Image | Tensor],
        condition: Condition | None = None,
        embed_condition: bool = True,
    ) -> bytes | list[bytes]:
        """`encode`, only the files: bytes for one image, a list for a batch or a sequence."""
        files = [coded.data for coded in self.encode(images, condition, embed_condition)]
        single = isinstance(images, Image.Image) or (isinstance(images, Tensor) and images.dim() == 3)
        return files[0] if single else files

    def generate(
        self,
        count: int,
        height: int,
        width: int,
        seed: int = 0,
        condition: Condition | None = None,
        embed_condition: bool = True,
    ) -> list[Encoded]:
        """Draw `count` images at random; each comes with its file. `seed` chooses the symbols."""
        return self.sample(Draw(seed), height, width, count, condition, embed_condition)

    def sample(
        self,
        chooser: Chooser,
        height: int,
        width: int,
        count: int = 1,
        condition: Condition | None = None,
        embed_condition: bool = True,
    ) -> list[Encoded]:
        """Images whose noise any Chooser picks (see ddcm_fast.tasks); each comes with its file."""
        _check_side(self.model, height, width)
        condition = self.model.complete_condition(condition)
        stored = _stored(condition, embed_condition)
        job = self._job(self.config, height, width)
        out: list[Encoded] = []
        while len(out) < count:
            done = self._run(job, chooser, min(self.batch_size, count - len(out)), "generate", condition)
            out += self._finish(job, done, self.config, stored)
        return out

    # ---- decoding --------------------------------------------------------------------------------

    def decode(self, data: bytes, ignore_checksum: bool = False, condition: Condition | None = None) -> Tensor:
        """The bytes of a file -> image (C, H, W) float32 in [-1, 1] on the model's device.

        `condition` is needed where it does not travel in the file, and checked where it does.

        Raises:
            FormatError: not a readable .ddcm file. ModelError: made with another model.
            ConfigError: the condition is missing or is not the one the file was made with.
        """
        header, payload = container.read(data, ignore_checksum)
        self._check_model(header)
        condition = settle(header.condition, condition and self.model.complete_condition(condition))
        try:
            job = self._job(header.config, header.height, header.width)
        except ConfigError as error:
            raise FormatError(f"the file asks for something this model cannot do: {error}") from error
        symbols = iter(unpack(payload, job.radices()))
        letters = []
        for step in job.coded:
            own = [next(symbols) for _ in job.rule.radices(step)]
            letters.append(torch.tensor([job.rule.to_letters(own, step)], dtype=torch.int64))
        edit = header.edit or Edit(0, condition)
        done = self._run(job, Replay(letters), 1, "decompress", lambda step: edit.at(step.index, condition))
        return self._crop(job, self.model.decode(done.x0))[0]

    def decompress(
        self, data: bytes, ignore_checksum: bool = False, condition: Condition | None = None
    ) -> Image.Image:
        """`decode`, as a PIL image."""
        return to_pil(self.decode(data, ignore_checksum, condition))

    # ---- parts -----------------------------------------------------------------------------------

    def _job(self, config: CodecConfig, height: int, width: int) -> _Job:
        _check_side(self.model, height, width)
        model = self.model
        m = model.multiple
        padded = (-(-height // m) * m, -(-width // m) * m)
        model.check_size(*padded)
        shape = model.latent_shape(*padded)
        dim = math.prod(shape)
        steps = config.steps(model)
        noise = initial_noise(dim, config.seed).view(1, *shape)
        rule = config.make_rule(model, steps, dim, self.backend)
        return _Job(steps, rule, noise, height, width, padded)

    def _target(self, images: Tensor, job: _Job) -> Tensor:
        images = images.to(self.model.device)
        extra = (0, job.padded[1] - job.width, 0, job.padded[0] - job.height)
        with torch.inference_mode():
            return self.model.encode(pad(images, extra, mode="replicate"))

    def _run(
        self, job: _Job, chooser: Chooser, batch: int, what: str, condition: Any = None
    ) -> Sample:
        noise = job.noise.expand(batch, *job.noise.shape[1:])
        return sample(self.model, job.steps, job.rule, chooser, noise, condition, self.progress, what)

    def _finish(
        self, job: _Job, done: Sample, config: CodecConfig, condition: Condition | ConditionHash | None = None
    ) -> list[Encoded]:
        """Bring the letters to the host, once, and write the files."""
        images = self._crop(job, self.model.decode(done.x0))
        rows = [letters.tolist() for letters in done.letters]
        model = self.model
        dtype = _dtype_name(model.dtype)
        header = Header(config, model.name, self._fingerprint(config), dtype, job.width, job.height, condition)
        out = []
        for b, image in enumerate(images):
            symbols: list[int] = []
            for step, row in zip(job.coded, rows, strict=True):
                if min(row[b], default=0) < 0:
                    raise InputError(f"the model's prediction at t={step.t:g} is NaN or infinite; try --dtype float32")
                symbols += job.rule.to_symbols(row[b], step)
            out.append(Encoded(container.write(header, pack(symbols, job.radices())), image))
        return out

    @staticmethod
    def _crop(job: _Job, images: Tensor) -> Tensor:
        return images[..., : job.height, : job.width]

    def _fingerprint(self, config: CodecConfig) -> bytes:
        """The model's, and where steps or atoms follow the information curve also the curve's."""
        own = self.model.fingerprint()
        if config.schedule != "kl" and config.rule not in SHARING_RULES:
            return own
        digest = model_curve(self.model).digest
        return bytes(a ^ b for a, b in zip(own, digest, strict=True))

    def _check_model(self, header: Header) -> None:
        model = self.model
        own = self._fingerprint(header.config)
        if header.fingerprint != own:
            raise ModelError(
                f"the file was made with model {header.model!r} (fingerprint {header.fingerprint.hex()}), "
                f"this is {model.name!r} ({own.hex()}) or a calibration of it that is not the file's; "
                "load that model to decode it"
            )
        if header.dtype != _dtype_name(model.dtype):
            warnings.warn(
                f"the file was made with the network in {header.dtype}, this one is in {_dtype_name(model.dtype)}: "
                "the picture will differ a little from the encoder's",
                stacklevel=3,
            )


def file_dtype(header: Header) -> torch.dtype:
    """The dtype of the network a file was made with."""
    assert header.dtype in DTYPE_NAMES
    return getattr(torch, header.dtype)  # type: ignore[no-any-return]
