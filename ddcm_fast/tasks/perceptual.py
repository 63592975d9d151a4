"""Compressed blind restoration (Ohayon et al., ICML 2025, section on real-world face restoration).

A restorer that aims at the least squared error gives a reference, faithful but blurred. At each step there are two
candidates, the atom best correlated with reference - x0_hat and a random one. Both are followed to the next step, and
the one is kept whose x0_hat there has the smaller MSE to the reference + coefficient * quality, where quality is a
no-reference metric of which less is better. The file holds the kept indices only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from ddcm_fast.codec.codec import Codec, Encoded
from ddcm_fast.codec.config import CodecConfig
from ddcm_fast.codec.images import MAX_PIXELS_TO_CUT, ImageLike, to_srgb, to_tensor
from ddcm_fast.errors import ConfigError, InputError, MissingExtraError, first_line, out_of_memory
from ddcm_fast.sampling.autocast import without_autocast
from ddcm_fast.sampling.choosers import Chooser, StepContext, seeded
from ddcm_fast.sampling.model import DiffusionModel
from ddcm_fast.sampling.update import advance
from ddcm_fast.tasks.restorers import Restorer

Quality = Callable[[Tensor], Tensor]
"""Image (B, C, H, W) in [0, 1] -> (B,); less is better."""

#: The paper's settings for faces of 512x512 (with the FFHQ-512 model of DifFace and its SwinIR as the restorer).
FACE_CONFIG = CodecConfig(rule="greedy", kind="gaussian", K=4096, T=1000)
FACE_METRIC, FACE_COEFFICIENT = "niqe", 1.0
FACE_SIDE = 512


class Perceptual(Chooser):
    """Follows a reference and a quality metric; see the module.

    Args:
        reference: x0 of the restorer's estimate, (B, *latent_shape).
        quality: metric of the decoded image; None keeps only the MSE. coefficient: its weight.
        seed: of the random candidates.
    """

    def __init__(
        self, reference: Tensor, quality: Quality | None, coefficient: float = 1.0, seed: int | torch.Generator = 0
    ) -> None:
        if not math.isfinite(coefficient):
            raise ConfigError(f"the weight of the quality metric is {coefficient}; it must be a finite number")
        self._reference = reference
        self._quality = quality
        self._coefficient = coefficient
        self._generator = seeded(seed)

    def choose(self, context: StepContext) -> Tensor:
        """Looks one step ahead, and hands the kept prediction on to the sampler."""
        rule, step = context.rule, context.step
        best = rule.choose((self._reference - context.x0_hat).flatten(1), step)
        if context.following is None:
            return best
        other = rule.draw(len(best), step, self._generator).to(best.device)
        first, second = self._look(context, best), self._look(context, other)
        better = self._loss(context.model, second[0]) < self._loss(context.model, first[0])
        wide = better.view(-1, *[1] * (context.x.dim() - 1))
        self.ahead = (torch.where(wide, second[0], first[0]), torch.where(wide, second[1], first[1]))
        return torch.where(better[:, None], other, best)

    def _look(self, context: StepContext, letters: Tensor) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) where the letters lead."""
        assert context.following is not None
        x = advance(context.step, context.x0_hat, context.eps_hat, context.rule.noise(letters, context.step))
        return context.model.predict(x, context.following.t, context.condition)

    def _loss(self, model: DiffusionModel, x0_hat: Tensor) -> Tensor:
        """MSE + coefficient * quality: (B,) float64."""
        loss = (x0_hat - self._reference).flatten(1).double().square().mean(1)
        if self._quality is None:
            return loss
        score = self._quality((model.decode(x0_hat) * 0.5 + 0.5).clamp(0, 1))
        return loss + self._coefficient * score.reshape(-1).to(loss)


@without_autocast
def restore_blind(
    codec: Codec,
    degraded: ImageLike,
    restorer: Restorer,
    quality: Quality | None = None,
    coefficient: float = 1.0,
    seed: int | torch.Generator = 0,
) -> Encoded:
    """Restore an image of unknown degradation; the file decodes without the image, restorer and metric.

    Args:
        codec: the model and configuration; FACE_CONFIG for faces.
        degraded: an image as `images.to_tensor` takes it.
        restorer, quality, coefficient, seed: see Perceptual and the types above.

    Raises:
        InputError: a restorer that fails on this image, or returns something that is no image of the model.
    """
    model = codec.model
    y = to_tensor(degraded, model.channels).to(model.device)
    try:
        with torch.inference_mode():
            estimate = restorer(y)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if out_of_memory(error):
            raise
        size = f"{y.shape[3]}x{y.shape[2]}"
        raise InputError(f"the restorer cannot take an image of {size} pixels: {first_line(error)}") from error
    if not isinstance(estimate, Tensor):
        raise InputError(f"the restorer returned {type(estimate).__name__}; it must return an image tensor")
    estimate = to_tensor(estimate.float().clamp(-1, 1), model.channels)
    height, width = estimate.shape[2:]
    m = model.multiple
    with torch.inference_mode():
        reference = model.encode(pad(estimate, (0, -width % m, 0, -height % m), mode="replicate"))
    return codec.sample(Perceptual(reference, quality, coefficient, seed), height, width)[0]


def load_quality(name: str, device: torch.device | str = "cpu") -> Quality:
    """A no-reference metric of pyiqa (niqe, clipiqa+, topiq_nr-face, ...), turned so that less is better.

    Raises MissingExtraError without pyiqa, ConfigError for a metric it does not have.
    """
    try:
        import pyiqa
    except ImportError as error:
        raise MissingExtraError(
            f"the quality metric {name!r} needs pyiqa: pip install 'ddcm-fast[quality]', or pass any callable"
        ) from error
    try:
        metric = pyiqa.create_metric(name, device=torch.device(device))
    except (KeyError, AssertionError, NotImplementedError, ValueError) as error:
        raise ConfigError(f"pyiqa has no metric {name!r}; pyiqa.list_models('NR') names them") from error
    sign = 1.0 if metric.lower_better else -1.0

    def quality(image: Tensor) -> Tensor:
        scores = []
        for one in image.unbind():  # topiq_nr-face takes one image at a time
            try:
                scores.append(metric(one[None]).reshape(1))
            except AssertionError:  # and fails where it sees no face: neither good nor bad
                scores.append(torch.zeros(1, device=image.device, dtype=torch.float32))
        return sign * torch.cat(scores)

    return quality


def align_faces(image: Image.Image, device: torch.device | str = "cpu") -> list[Image.Image]:
    """The faces of a picture, cut out and aligned to 512x512 by facexlib, as the FFHQ model wants them.

    Raises MissingExtraError without facexlib, InputError if there is no face.
    """
    try:
        from facexlib.utils.face_restoration_helper import FaceRestoreHelper
    except ImportError as error:
        raise MissingExtraError("aligning faces needs facexlib: pip install 'ddcm-fast[faces]'") from error
    helper = FaceRestoreHelper(
        1, face_size=FACE_SIDE, crop_ratio=(1, 1), det_model="retinaface_resnet50", device=torch.device(device)
    )
    rgb = to_srgb(image, max_pixels=MAX_PIXELS_TO_CUT).convert("RGB")
    helper.read_image(np.ascontiguousarray(np.asarray(rgb)[:, :, ::-1]))  # OpenCV's order, BGR
    helper.get_face_landmarks_5(only_center_face=False, eye_dist_threshold=5)
    helper.align_warp_face()
    if not helper.cropped_faces:
        raise InputError("no face was found in the image; give one that is aligned already (without --align)")
    return [Image.fromarray(np.ascontiguousarray(face[:, :, ::-1]).astype(np.uint8)) for face in helper.cropped_faces]
