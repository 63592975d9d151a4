"""Codec: an image to the bytes of a .ddcm file and back, with any DiffusionModel."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, wraps
from itertools import accumulate
from typing import Any, Concatenate, ParamSpec, TypeVar, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddcm_fast.codebook.law import integer
from ddcm_fast.codec import container
from ddcm_fast.codec.aim import aim, aims
from ddcm_fast.codec.batches import Conditions, Prompts, batches, conditions_of, each_alone, stored, together
from ddcm_fast.codec.config import DEFAULT_PRESET, CodecConfig, preset
from ddcm_fast.codec.container import FileData, Header
from ddcm_fast.codec.identity import check_model, fingerprint, make_header
from ddcm_fast.codec.images import ImageLike, load_image, to_pil, to_tensor
from ddcm_fast.codec.job import Encoded, Job, make_job, make_target, make_weight, padded_size
from ddcm_fast.codec.limits import Limits
from ddcm_fast.codec.rate import Control, Paced, positive
from ddcm_fast.errors import ConfigError, FormatError, InputError
from ddcm_fast.models.loading import as_model
from ddcm_fast.models.one_by_one import OneByOneModel
from ddcm_fast.sampling.autocast import no_autocast
from ddcm_fast.sampling.choosers import Blind, Chooser, Draw, Replay, Seed, toward
from ddcm_fast.sampling.condition import Condition, ConditionHash, ConditionLike, Edit, as_condition, settle
from ddcm_fast.sampling.graphs import StepGraphs, require_gpu
from ddcm_fast.sampling.information import model_curve
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.sampler import Sample, sample
from ddcm_fast.sampling.schedule import Step, for_scale

__all__ = ["Codec", "Encoded", "Picture"]

#: What an image may be given as, or its file's path.
Picture = Union[ImageLike, "os.PathLike[str]"]
#: (codec, index of the step, its timestep, tensors by name) -> anything.
Callback = Callable[["Codec", int, float, dict[str, Tensor]], Any]
#: The same of a run, without the codec.
StepEnd = Callable[[int, float, dict[str, Tensor]], Any]
_SINGLE = (Image.Image, np.ndarray, Tensor, os.PathLike)

P = ParamSpec("P")
R = TypeVar("R")


def _using_model(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """All of an operation inside `model.using()`: header, fingerprint and pictures are of the same weights."""

    @wraps(method)
    def run(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with no_autocast(), self.model.using():
            return method(self, *args, **kwargs)

    return run


def _tell_all(listeners: Sequence[StepEnd], index: int, t: float, state: dict[str, Tensor]) -> None:
    for listener in listeners:
        listener(index, t, state)


class Codec:
    """Compress and decompress images with a diffusion model.

    Conditions may be given as a prompt (a text) wherever there is a Condition; seeds as a torch.Generator, from which
    the seed is then drawn; files as bytes of any kind, binary streams or pathlib.Path.

    Args:
        model: from load_model, or a diffusers pipeline (see models.wrap_pipeline).
        config: how `compress` and `generate` code; decoding takes everything from the file.
        backend: of the codebook, see Codebook.
        batch_size: images at a time when several of one size are given. A network's output can depend on that in its
            last bits, so files decode bit for bit like the encoder's reconstruction where both use the same; 1 (the
            default) always does, and `exact` at any.
        exact: the network sees one image at a time, whatever the batch; only what is the same in any batch is shared,
            the search of the codebook above all. A file is then that of the image alone, to the bit.
        progress: progress bars: True, False, or None for "if standard error is a terminal".
        cuda_graph: take whole steps as CUDA graphs (rules that are `capturable`): for a network whose kernels
            take less time than their launching. What was captured is kept for the last configuration and size.
        limits: of what files and settings may ask for; whatever asks for more raises LimitError before any work.
        callback_on_step_end: called after every step of every run, as a pipeline's of diffusers is: (codec, index,
            timestep, {"latents": x_s, "x0_hat": E[x0 | x_t]}), both (B, *latent_shape) float32 and not to be changed.
            What it returns is not looked at; what it raises ends the run. With `bpp` and `psnr` there are several runs.

    Raises:
        ConfigError: batch_size below 1; cuda_graph without a GPU, or with a callback.
    """

    def __init__(
        self,
        model: DiffusionModel | Any,
        config: CodecConfig | None = None,
        backend: str = "auto",
        batch_size: int = 1,
        progress: bool | None = False,
        cuda_graph: bool = False,
        limits: Limits | None = None,
        exact: bool = False,
        callback_on_step_end: Callback | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        if cuda_graph and callback_on_step_end is not None:
            raise ConfigError(f"cuda_graph is {cuda_graph}, and a captured step calls nobody; leave the callback out")
        self.model = as_model(model)
        self.config = preset(DEFAULT_PRESET) if config is None else config
        self.backend = backend
        self.batch_size = batch_size
        self.progress = progress
        self.cuda_graph = cuda_graph
        self.limits = limits or Limits()
        self.exact = exact
        self._one_by_one = OneByOneModel(self.model)
        self.callback_on_step_end = callback_on_step_end
        self._last: tuple[Any, Job] | None = None
        if cuda_graph:
            require_gpu(self.model)

    @classmethod
    def from_preset(
        cls,
        model: DiffusionModel | Any,
        name: str = DEFAULT_PRESET,
        *,
        backend: str = "auto",
        batch_size: int = 1,
        progress: bool | None = False,
        cuda_graph: bool = False,
        limits: Limits | None = None,
        exact: bool = False,
        callback_on_step_end: Callback | None = None,
        **settings: Any,
    ) -> Codec:
        """A codec with a preset's configuration, some of it replaced: from_preset(model, "pursuit", K=1024, M=8)."""
        config = preset(name, **settings)
        return cls(
            model, config, backend, batch_size, progress, cuda_graph, limits, exact, callback_on_step_end
        )

    # ---- encoding --------------------------------------------------------------------------------

    @_using_model
    def encode(
        self,
        images: Picture | Sequence[Picture],
        condition: Conditions = None,
        embed_condition: bool = True,
        bpp: float | None = None,
        psnr: float | None = None,
        mask: ImageLike | None = None,
        prompt: Prompts = None,
    ) -> list[Encoded]:
        """Code images; always a list, in the order given.

        Args:
            images: a PIL image, an array (H, W, 3) or (H, W) of uint8 or uint16, a tensor (C, H, W) or (B, C, H, W)
                in [-1, 1], an image file's path, or a sequence of these; see images.to_tensor.
            condition: prompt, label and guidance, for conditional models; or a sequence of one for each image.
            embed_condition: the condition travels in the file; if not, only 4 bytes of its hash do and the decoder
                must be given it.
            bpp: bits a pixel of the whole file, never exceeded and met within an atom. Where the rate is the number of
                steps (greedy, pursuit), images are coded in batches as ever; where rates are met by each image's own
                schedule (the `kl` schedules), each is coded alone.
            psnr: quality in dB to come within 0.2 dB of, by a few encodings of each image.
            mask: where the bits should go: a grey image or array of the images' size, or a tensor (H, W) of at least
                0 (Turbo-DDCM's priority-aware coding; the decoder needs no mask).
            prompt: in the place of `condition` where there is nothing else to say: a text, or one for each image.

        Raises:
            InputError: not an image, NaN, or a side outside 16 to 4096 pixels. LimitError: beyond the limits.
            ConfigError: a configuration or condition this model or size cannot take.
        """
        items = [images] if isinstance(images, _SINGLE) else list(images)
        most = self.limits.pixels
        loaded = [load_image(item, most) if isinstance(item, os.PathLike) else item for item in items]
        tensors = [row for item in loaded for row in to_tensor(item, self.model.channels, most).split(1)]
        conditions = conditions_of(self.model, condition, prompt, len(tensors))
        results: list[Encoded | None] = [None] * len(tensors)
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, tensor in enumerate(tensors):
            sizes.setdefault((tensor.shape[2], tensor.shape[3]), []).append(i)
        for members in sizes.values():
            if each_alone(self.config, bpp, psnr):
                for i in members:
                    own, said = conditions[i], stored(conditions[i], embed_condition)
                    results[i] = self._controlled(tensors[i], bpp, psnr, own, said, mask)
                continue
            for config, alike in self._configs(members, tensors, conditions, embed_condition, bpp).items():
                for batch in batches(alike, conditions, self.batch_size):
                    images = torch.cat([tensors[i] for i in batch])
                    each = [conditions[i] for i in batch]
                    kept = [stored(one, embed_condition) for one in each]
                    coded, _ = self._encode(images, self._target(images), config, each, kept, mask)
                    for i, one in zip(batch, coded, strict=True):
                        results[i] = one
        return [r for r in results if r is not None]

    def _configs(
        self,
        members: Sequence[int],
        tensors: Sequence[Tensor],
        conditions: Sequence[Condition | None],
        embed_condition: bool,
        bpp: float | None,
    ) -> dict[CodecConfig, list[int]]:
        """What images of one size are coded with: the codec's own, or with the steps that a rate leaves each."""
        if bpp is None:
            return {self.config: list(members)}
        configs: dict[CodecConfig, list[int]] = {}
        for i in members:
            height, width = tensors[i].shape[-2:]
            said = stored(conditions[i], embed_condition)
            configs.setdefault(self._sizes_control(height, width, said).fixed(bpp), []).append(i)
        return configs

    def _sizes_control(
        self, height: int, width: int, said: Condition | ConditionHash | None = None, average: bool = False
    ) -> Control:
        """Of the rate of any image of a size, which is all that is asked of it; `average`: as the curve says."""
        shape = self.model.latent_shape(*padded_size(self.model, height, width))
        image = torch.empty((1, self.model.channels, height, width), dtype=torch.float32, device="meta")
        state = torch.empty((1, *shape), dtype=torch.float32, device="meta")
        control = self._control(image, state, None, said, None)
        return dataclasses.replace(control, curve=model_curve(control.model)) if average else control

    def planned(
        self, height: int, width: int, bpp: float | None = None, psnr: float | None = None
    ) -> tuple[CodecConfig, int]:
        """What an average photograph of this size is first coded with, and about the bytes of its file.

        Nothing is evaluated. At a quality more encodings follow, and with schedules by information (`kl`) the curve of
        a single image moves its noise levels.

        Raises InputError or ConfigError: a size or a rate that cannot be.
        """
        control = self._sizes_control(height, width, average=True)
        if psnr is not None:
            bpp = control.bits_for(positive(psnr, "psnr")) / (height * width)
        config = self.config if bpp is None else control.fixed(bpp)
        dim = math.prod(self.model.latent_shape(*padded_size(self.model, height, width)))
        bits = config.rule_type.payload_bits(config, lambda: config.steps(control.model), dim)
        return config, control.header(config) + math.ceil(bits / 8)

    def _target(self, images: Tensor) -> Tensor:
        """x0 of images (B, C, H, W)."""
        return make_target(self._model_for(len(images)), images)

    def _model_for(self, batch: int) -> DiffusionModel:
        return self._one_by_one if self.exact and batch > 1 else self.model

    def _encode(
        self,
        images: Tensor,
        x0: Tensor,
        config: CodecConfig,
        conditions: Sequence[Condition | None],
        said: Sequence[Condition | ConditionHash | None],
        mask: ImageLike | None,
        bits: float = 0.0,
    ) -> tuple[list[Encoded], float]:
        """Images (B, C, H, W) of one size and guidance and their x0, in one batch; also the state's mean squared error.

        `bits` is what the payload of one image should take, where that is not known from the configuration.
        """
        height, width = images.shape[-2:]
        job = self._job(config, height, width)
        weight = None if mask is None else make_weight(self.model, mask, height, width)
        condition, goal = together(conditions), x0
        if aims(config, conditions[0]):  # of one guidance scale, all of them
            goal = aim(self._model_for(len(x0)), x0, job.steps, condition)
        chooser = toward(goal, weight)
        if bits > 0 and job.coded and job.rule.varies:
            chooser = Paced(goal, weight, job.rule, job.coded, bits)
        done = self._run(job, chooser, len(images), "compress", condition)
        return self._finish(job, done, config, said), float((done.x0 - x0).double().square().mean())

    def _controlled(
        self,
        image: Tensor,
        bpp: float | None,
        psnr: float | None,
        condition: Condition | None,
        said: Condition | ConditionHash | None,
        mask: ImageLike | None,
    ) -> Encoded:
        """One image (1, C, H, W) at a bitrate or a quality."""
        if bpp is not None and psnr is not None:
            raise ConfigError(f"bpp is {bpp} and psnr is {psnr}; give a bitrate or a quality, not both")
        x0 = make_target(self.model, image)
        self.limits.check_search(self.config, x0[0].numel(), 1, self.backend, self.model.device)
        control = self._control(image, x0, condition, said, mask)
        if bpp is not None:
            return control.at_rate(bpp)
        assert psnr is not None
        return control.at_quality(psnr)

    def _control(
        self,
        image: Tensor,
        x0: Tensor,
        condition: Condition | None,
        said: Condition | ConditionHash | None,
        mask: ImageLike | None,
    ) -> Control:
        """Of the rate of one image (1, C, H, W) with the state x0."""
        height, width = image.shape[-2:]

        def encode(config: CodecConfig, bits: float) -> tuple[Encoded, float]:
            (coded,), error = self._encode(image, x0, config, [condition], [said], mask, bits)
            return coded, error

        def header(config: CodecConfig) -> int:
            return len(container.write(make_header(self.model, config, height, width, said), b""))

        model = self.model.sized(x0.shape)
        return Control(model, self.config, image, x0, condition, mask is not None, header, encode)

    def compress(
        self,
        images: Picture | Sequence[Picture],
        condition: Conditions = None,
        embed_condition: bool = True,
        bpp: float | None = None,
        psnr: float | None = None,
        mask: ImageLike | None = None,
        prompt: Prompts = None,
    ) -> bytes | list[bytes]:
        """`encode`, only the files: bytes for one image, a list for a batch or a sequence."""
        files = [coded.data for coded in self.encode(images, condition, embed_condition, bpp, psnr, mask, prompt)]
        single = isinstance(images, _SINGLE) and not (isinstance(images, Tensor) and images.dim() != 3)
        return files[0] if single else files

    def generate(
        self,
        count: int,
        height: int,
        width: int,
        seed: Seed | Sequence[Seed] = 0,
        condition: Conditions = None,
        embed_condition: bool = True,
        prompt: Prompts = None,
    ) -> list[Encoded]:
        """Draw `count` images at random; each comes with its file.

        `seed` chooses the symbols. From a sequence of one for each image, an image has the same symbols whatever is
        generated beside it.

        Raises ConfigError: another number of seeds, conditions or prompts than images.
        """
        if not isinstance(seed, Sequence):
            chooser = Draw(seed)
            return self._sample(lambda _: chooser, height, width, count, condition, embed_condition, prompt)
        if len(seed) != count:
            raise ConfigError(f"{len(seed)} seeds for {count} images; give one for all or one an image")
        return self._sample(
            lambda batch: Draw([seed[i] for i in batch]), height, width, count, condition, embed_condition, prompt
        )

    def sample(
        self,
        chooser: Chooser,
        height: int,
        width: int,
        count: int = 1,
        condition: Conditions = None,
        embed_condition: bool = True,
    ) -> list[Encoded]:
        """Images whose noise any Chooser picks (see ddcm_fast.tasks); each comes with its file."""
        return self._sample(lambda _: chooser, height, width, count, condition, embed_condition, None)

    @_using_model
    def _sample(
        self,
        chooser_of: Callable[[list[int]], Chooser],
        height: int,
        width: int,
        count: int,
        condition: Conditions,
        embed_condition: bool,
        prompt: Prompts,
    ) -> list[Encoded]:
        """Images whose noise is picked by the Chooser of each batch."""
        padded_size(self.model, height, width)
        conditions = conditions_of(self.model, condition, prompt, count)
        job = self._job(self.config, height, width)
        out: list[Encoded] = []
        for batch in batches(range(count), conditions, self.batch_size):
            own = [conditions[i] for i in batch]
            done = self._run(job, chooser_of(batch), len(batch), "generate", together(own))
            out += self._finish(job, done, self.config, [stored(each, embed_condition) for each in own])
        return out

    # ---- decoding --------------------------------------------------------------------------------

    @_using_model
    def decode(
        self,
        data: FileData,
        ignore_checksum: bool = False,
        condition: ConditionLike = None,
        first: float = 1.0,
        early: Callable[[Tensor], Any] | None = None,
    ) -> Tensor:
        """The bytes of a file -> image (C, H, W) float32 in [-1, 1] on the model's device.

        `first` decodes only that part of the file's bytes, for a coarser picture from a prefix; the steps whose bits
        are missing are taken without noise. With `ignore_checksum` a truncated file decodes as the prefix it is.

        `condition` is needed where it does not travel in the file, and checked where it does.

        `early` is called once, after a third of the work (or the first step that ends beyond it), with the picture
        that is expected by then, as it is returned: to look at while the rest runs.

        Raises:
            FormatError: not a readable .ddcm file. LimitError: one that asks for more than the limits allow.
            ModelError: made with another model.
            ConfigError: the condition is missing or is not the one the file was made with; `early` with cuda_graph.
        """
        if early is not None and self.cuda_graph:
            raise ConfigError(f"cuda_graph is {self.cuda_graph}, and a captured step calls nobody; leave early out")
        if not 0 < first <= 1:
            raise ConfigError(f"first is {first}; it must be above 0 and at most 1")
        data = container.file_bytes(data)
        header, payload, told = self._opened(data, ignore_checksum, condition)
        job = self._job_of(header)
        if first < 1:
            payload = payload[: max(0, math.ceil(first * len(data)) - (len(data) - len(payload)))]
        rows = job.rule.read(payload, job.coded, prefix=first < 1 or ignore_checksum)
        return self._replay(job, [rows], [header], [told], early)[0]

    @_using_model
    def decode_many(self, files: Sequence[FileData], condition: ConditionLike = None) -> list[Tensor]:
        """The bytes of files -> images (C, H, W) as `decode` returns them, in the order given.

        Those of one size and configuration are decoded in batches of the codec's `batch_size`; see `exact`.

        Raises as `decode`, of the first file that cannot be decoded, before any is.
        """
        opened = [self._opened(container.file_bytes(data), False, condition) for data in files]
        alike: dict[tuple[Any, ...], list[int]] = {}
        for i, (header, _, told) in enumerate(opened):
            scale = getattr(told, "guidance_scale", None)
            alike.setdefault((header.config, header.width, header.height, header.edit, scale), []).append(i)
        images: list[Tensor | None] = [None] * len(opened)
        for members in alike.values():
            job = self._job_of(opened[members[0]][0])
            letters = {i: job.rule.read(opened[i][1], job.coded) for i in members}
            for at in range(0, len(members), self.batch_size):
                batch = members[at : at + self.batch_size]
                headers, each = [opened[i][0] for i in batch], [opened[i][2] for i in batch]
                decoded = self._replay(job, [letters[i] for i in batch], headers, each)
                for i, image in zip(batch, decoded, strict=True):
                    images[i] = image
        return [image for image in images if image is not None]

    def _opened(
        self, data: bytes, ignore_checksum: bool, condition: ConditionLike
    ) -> tuple[Header, bytes, Condition | None]:
        """A file's header, its payload and what the model is told."""
        header, payload = container.read(data, ignore_checksum)
        self.limits.check("payload", len(payload))
        check_model(self.model, header)
        given = as_condition(condition)
        return header, payload, settle(header.condition, given and self.model.complete_condition(given))

    def _job_of(self, header: Header) -> Job:
        try:
            return self._job(header.config, header.height, header.width)
        except (ConfigError, InputError) as error:
            raise FormatError(f"the file asks for something this model cannot do: {error}") from error

    def _replay(
        self,
        job: Job,
        letters: Sequence[Sequence[Sequence[int]]],
        headers: Sequence[Header],
        told: Sequence[Condition | None],
        early: Callable[[Tensor], Any] | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) of files of one configuration: the letters of each, step by step."""
        steps = zip(*letters, strict=True)
        replay = Replay([torch.tensor(rows, dtype=torch.int64, device="cpu") for rows in steps])
        edits = [header.edit or Edit(0, own) for header, own in zip(headers, told, strict=True)]

        def condition(step: Step) -> Condition | tuple[Condition | None, ...] | None:
            return together([edit.at(step.index, own) for edit, own in zip(edits, told, strict=True)])

        watch = None if early is None else self._at_a_third(job, len(letters), early)
        done = self._run(job, replay, len(letters), "decompress", condition, watch)
        return job.crop(self._model_for(len(letters)).decode(done.x0))

    def _at_a_third(self, job: Job, batch: int, early: Callable[[Tensor], Any]) -> StepEnd:
        """What a run calls after each step, to give `early` the first of its pictures when a third is done."""
        model = self._model_for(batch)
        work = [model.cost(step.t, torch.Size((batch, *job.shape))) for step in job.steps]
        due = next(i for i, done in enumerate(accumulate(work)) if 3 * done >= sum(work))

        def watch(index: int, t: float, state: dict[str, Tensor]) -> None:
            if index == due:
                early(job.crop(model.decode(state["x0_hat"]))[0])

        return watch

    def decompress(
        self,
        data: FileData,
        ignore_checksum: bool = False,
        condition: ConditionLike = None,
        first: float = 1.0,
        early: Callable[[Image.Image], Any] | None = None,
    ) -> Image.Image:
        """`decode`, as a PIL image, and `early` is called with one."""
        seen = None if early is None else lambda image: early(to_pil(image))
        return to_pil(self.decode(data, ignore_checksum, condition, first, seen))

    def preview(self, data: FileData, scale: int, condition: ConditionLike = None) -> Image.Image:
        """The picture of a file at 1 / scale of its sides, rounded up, sooner than `decompress` has it: a PIL image.

        The last steps, which add what nobody sees in a small picture, are left out (schedule.for_scale), and a model
        that can predicts on averaged pictures, of twice the preview's sides.

        Raises as `decode`; ConfigError: scale is no integer from 1 to 64.
        """
        scale = integer("scale", scale, 1, 64)
        model = self.model if scale < 4 else self.model.coarse(scale.bit_length() - 2)
        call = self.callback_on_step_end
        coarse = Codec(
            model, None, self.backend, progress=self.progress, limits=self.limits, callback_on_step_end=call
        )
        return coarse._preview(data, scale, condition)

    @_using_model
    def _preview(self, data: FileData, scale: int, condition: ConditionLike) -> Image.Image:
        header, payload, told = self._opened(container.file_bytes(data), False, condition)
        job = self._job_of(header)
        rows = job.rule.read(payload, job.coded)
        if scale > 1:
            job = replace(job, steps=for_scale(job.steps, scale))
        return to_pil(self._replay(job, [rows], [header], [told])[0]).reduce(scale)

    def work(self, config: CodecConfig, height: int, width: int) -> float:
        """Network evaluations at full resolution that take as long as decoding a picture of this size does."""
        shape = torch.Size((1, *self.model.latent_shape(*padded_size(self.model, height, width))))
        return sum(self.model.cost(step.t, shape) for step in config.steps(self.model.sized(shape)))

    # ---- parts -----------------------------------------------------------------------------------

    def _job(self, config: CodecConfig, height: int, width: int) -> Job:
        # With the curve's fingerprint: a model may be calibrated anew.
        here = (fingerprint(self.model, config), self.model.generation) if self.cuda_graph else None
        key = None if here is None else (config, height, width, *here)
        if self._last is None or key is None or self._last[0] != key:
            self._last = None  # its graphs hold memory that the next may need
            job = make_job(self.model, config, height, width, self.backend, self.limits)
            if key is None:
                return job
            self._last = (key, job)
        return self._last[1]

    def _run(
        self,
        job: Job,
        chooser: Chooser,
        batch: int,
        what: str,
        condition: Any = None,
        watch: StepEnd | None = None,
    ) -> Sample:
        if not isinstance(chooser, Blind):
            dim = math.prod(job.shape)
            self.limits.check_search(job.config, dim, batch, self.backend, self.model.device)
        noise = job.noise.expand(batch, *job.shape)
        graphs = None
        if self.cuda_graph:
            graphs = job.graphs.get(batch) or StepGraphs(self._model_for(batch), job.steps, job.rule)
            job.graphs[batch] = graphs
        call = self.callback_on_step_end
        listeners: list[StepEnd] = [] if call is None else [partial(call, self)]
        listeners += [] if watch is None else [watch]
        model = self._model_for(batch)
        tell = partial(_tell_all, listeners) if listeners else None
        return sample(model, job.steps, job.rule, chooser, noise, condition, self.progress, what, graphs, tell)

    def _finish(
        self, job: Job, done: Sample, config: CodecConfig, said: Sequence[Condition | ConditionHash | None]
    ) -> list[Encoded]:
        """Bring the letters to the host, once, and write the files."""
        images = job.crop(self._model_for(len(done.x0)).decode(done.x0))
        rows = [letters.tolist() for letters in done.letters]
        headers = [make_header(self.model, config, job.height, job.width, each) for each in said]
        for step, batch in zip(job.coded, rows, strict=True):
            if any(min(row, default=0) < 0 for row in batch):
                raise InputError(f"the model's prediction at t={step.t:g} is NaN or infinite; try --dtype float32")
        payloads = (job.rule.write([batch[b] for batch in rows], job.coded) for b in range(len(images)))
        return [
            Encoded(container.write(header, payload), image)
            for header, payload, image in zip(headers, payloads, images, strict=True)
        ]
