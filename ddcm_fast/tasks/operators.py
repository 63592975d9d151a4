"""Linear operators H of inverse problems y = H x + n: super-resolution, colour, blur, inpainting, denoising.

Images are (B, C, H, W) float32 in [-1, 1]. Every operator knows its adjoint, <H x, u> = <x, H^T u> for all x and u;
the tests check that by random vectors.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, one_hot

from ddcm_fast.errors import ConfigError, InputError


class LinearOperator(ABC):
    """H and its adjoint. `adjoint` gets the size of the image, since H may be many to one."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """H x: image (B, C, H, W) -> measurement (B, c, h, w). Raises InputError for a size H cannot take."""

    @abstractmethod
    def adjoint(self, u: Tensor, height: int, width: int) -> Tensor:
        """H^T u: measurement (B, c, h, w) -> image (B, C, height, width)."""

    @abstractmethod
    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the image that goes with a measurement of height x width."""

    def project(self, y: Tensor) -> Tensor:
        """y (B, c, h, w) without entries that say nothing of x, which are set to 0."""
        return y

    def gap(self, y: Tensor, x: Tensor) -> Tensor:
        """Root mean square (B,) of y - H x over the entries of y that say something; about sigma for the true x."""
        difference = self.project(y) - self.forward(x)
        share = self.project(torch.ones_like(difference)).mean((1, 2, 3))
        return (difference.square().mean((1, 2, 3)) / share).sqrt()

    def estimate(self, y: Tensor, height: int, width: int) -> Tensor:
        """A simple image (B, C, height, width) from a measurement: the baseline that a restoration has to beat."""
        return self.adjoint(y, height, width)


class Identity(LinearOperator):
    """y = x + n: denoising."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, u: Tensor, height: int, width: int) -> Tensor:
        return u

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


def box_kernel(factor: int) -> list[float]:
    """The mean of `factor` pixels."""
    return [1 / factor] * factor


def bicubic_kernel(factor: int) -> list[float]:
    """Keys' bicubic (a = -0.5) widened by `factor`, 4 * factor taps that sum to 1: antialiased downscaling by an
    integer factor, as MATLAB's imresize and PIL do it."""

    def keys(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    taps = [keys((i - 2 * factor + 0.5) / factor) for i in range(4 * factor)]
    return [t / sum(taps) for t in taps]


class Downscale(LinearOperator):
    """Super-resolution's H: filter rows and columns by a kernel and keep each factor-th sample.

    Samples past the border count as 0 and the weights of the rest are renormalised to 1 (both rows and columns are
    small dense matrices, so the adjoint is exact at the borders too).
    """

    def __init__(self, factor: int, method: str = "bicubic") -> None:
        kernels: dict[str, Callable[[int], list[float]]] = {"bicubic": bicubic_kernel, "box": box_kernel}
        if method not in kernels or not 2 <= factor <= 16:
            raise ConfigError(f"no downscaling by {factor} with {method!r}: choose 2 to 16, and box or bicubic")
        self.factor = factor
        self._kernel = kernels[method](factor)

    def _matrix(self, size: int, like: Tensor) -> Tensor:
        """(size / factor, size): the filter along one axis."""
        f, taps = self.factor, len(self._kernel)
        if size % f:
            raise InputError(f"the image's side {size} is no multiple of the downscaling factor {f}: crop it first")
        out = torch.zeros(size // f, size, dtype=torch.float64, device="cpu")
        for row in range(size // f):
            first = row * f - (taps - f) // 2
            for i, weight in enumerate(self._kernel):
                if 0 <= first + i < size:
                    out[row, first + i] += weight
        return (out / out.sum(1, keepdim=True)).to(like)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self._matrix(x.shape[2], x), self._matrix(x.shape[3], x)
        return rows @ x @ columns.T

    def adjoint(self, u: Tensor, height: int, width: int) -> Tensor:
        return self._matrix(height, u).T @ u @ self._matrix(width, u)

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return height * self.factor, width * self.factor

    def estimate(self, y: Tensor, height: int, width: int) -> Tensor:
        """Bicubic interpolation."""
        big = torch.nn.functional.interpolate(y, (height, width), mode="bicubic", align_corners=False)
        return big.clamp(-1, 1)


class Grey(LinearOperator):
    """Colorization's H: the mean of the three channels."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise InputError(f"colorization needs three channels, not {x.shape[1]}")
        return x.mean(1, keepdim=True)

    def adjoint(self, u: Tensor, height: int, width: int) -> Tensor:
        return u.expand(-1, 3, -1, -1) / 3

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def estimate(self, y: Tensor, height: int, width: int) -> Tensor:
        """The grey image."""
        return y.expand(-1, 3, -1, -1)


def _convolved(x: Tensor, kernel: Tensor, convolve: Callable[..., Tensor] = conv2d, padding: str | int = 0) -> Tensor:
    """Each channel of x (B, C, H, W) with one kernel."""
    weight = kernel.to(x).expand(x.shape[1], 1, *kernel.shape)
    return convolve(x, weight, padding=padding, groups=x.shape[1])


class Blur(LinearOperator):
    """Each channel convolved with one kernel; the measurement has the image's size.

    Beyond its edges the image is mirrored, as DPS has it (Chung et al. 2023): what lies there in a photograph is more
    like that than like grey.

    Args:
        kernel: (k, k), k odd.
    """

    def __init__(self, kernel: Tensor) -> None:
        if kernel.dim() != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
            raise InputError(f"a blur kernel must have two odd sides, not {tuple(kernel.shape)}")
        self._kernel = kernel

    def _mirrored(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows and columns of the image that make up the one to convolve; an edge is not repeated."""

        def places(size: int, taps: int) -> Tensor:
            period = max(1, 2 * (size - 1))
            place = torch.arange(-(taps // 2), size + taps // 2, dtype=torch.int64, device=device) % period
            return torch.minimum(place, period - place)

        return places(height, self._kernel.shape[0]), places(width, self._kernel.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self._mirrored(x.shape[2], x.shape[3], x.device)
        return _convolved(x[:, :, rows][..., columns], self._kernel)

    def adjoint(self, u: Tensor, height: int, width: int) -> Tensor:
        rows, columns = self._mirrored(height, width, u.device)
        large = _convolved(u, self._kernel, conv_transpose2d)
        # Products and not index_add, whose sums have no fixed order on a GPU.
        return one_hot(rows, height).to(u).T @ large @ one_hot(columns, width).to(u)

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def estimate(self, y: Tensor, height: int, width: int) -> Tensor:
        """The blurred image as it is."""
        return y


def gaussian_kernel(sigma: float) -> Tensor:
    """(k, k) Gaussian of standard deviation sigma pixels, cut at 3 sigma."""
    if not 0.1 <= sigma <= 30:
        raise ConfigError(f"a Gaussian blur of sigma {sigma} is out of range: choose 0.1 to 30 pixels")
    radius = math.ceil(3 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=torch.float32, device="cpu")
    line = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = torch.outer(line, line)
    return kernel / kernel.sum()


def motion_kernel(length: int, degrees: float = 0.0) -> Tensor:
    """(k, k) straight motion of `length` pixels, linearly interpolated; 0 degrees is horizontal."""
    if not 2 <= length <= 99:
        raise ConfigError(f"a motion of {length} pixels is out of range: choose 2 to 99")
    size = length | 1
    kernel = torch.zeros(size, size, dtype=torch.float32, device="cpu")
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for i in range(8 * length + 1):
        along = (i / (8 * length) - 0.5) * (length - 1)
        x, y = size // 2 + along * c, size // 2 - along * s
        left, top = math.floor(x), math.floor(y)
        for column, wx in ((left, left + 1 - x), (left + 1, x - left)):
            for row, wy in ((top, top + 1 - y), (top + 1, y - top)):
                if 0 <= row < size and 0 <= column < size:
                    kernel[row, column] += wx * wy
    return kernel / kernel.sum()


class Mask(LinearOperator):
    """Inpainting's H: keep the pixels where the mask is 1, blank the others.

    Args:
        mask: (H, W), 1 (or True) where the pixel is known.
    """

    def __init__(self, mask: Tensor) -> None:
        if mask.dim() != 2:
            raise InputError(f"a mask must be (H, W), not {tuple(mask.shape)}")
        self._mask = (mask > 0.5 if mask.dtype.is_floating_point else mask != 0).float()
        if not bool(self._mask.any()):
            raise InputError("the mask is black everywhere: make the known pixels white")

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self._mask.shape:
            have, need = self._mask.shape, x.shape[2:]
            raise InputError(
                f"the mask has {have[1]}x{have[0]} pixels and the image {need[1]}x{need[0]}: resize the mask to it"
            )
        return x * self._mask.to(x)

    def adjoint(self, u: Tensor, height: int, width: int) -> Tensor:
        return self.forward(u)

    def project(self, y: Tensor) -> Tensor:
        """Whatever a picture shows in its holes is no measurement."""
        return self.forward(y)

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def estimate(self, y: Tensor, height: int, width: int) -> Tensor:
        """Holes filled by normalised Gaussian blurs, from the finest that reaches a known pixel."""
        out, missing = y.clone(), 1 - self._mask.to(y).expand_as(y)
        known = 1 - missing
        for sigma in (1.0, 2.0, 4.0, 8.0, 16.0):
            kernel = gaussian_kernel(sigma)
            weight = _convolved(known, kernel, padding="same")
            fill = _convolved(y * known, kernel, padding="same") / weight.clamp_min(1e-6)
            reached = (missing > 0) & (weight > 0.05)
            out = torch.where(reached, fill, out)
            missing = torch.where(reached, 0.0, missing)
        return out


#: Name pattern of a task -> what it is; `operator` makes it.
TASKS = {
    "sr2 .. sr16": "super-resolution, bicubic",
    "srbox2 .. srbox16": "super-resolution, box average",
    "color": "colorization of a grey image",
    "blur, blur3.0": "Gaussian blur (sigma in pixels, 2 if not given)",
    "motion, motion15, motion15@45": "motion blur (pixels, 9 if not given; degrees)",
    "inpaint": "fill the holes of a mask",
    "denoise": "remove noise",
}

_NUMBER = r"(\d+(?:\.\d+)?)?"


def operator(task: str, mask: Tensor | None = None) -> LinearOperator:
    """The operator of a task's name (see TASKS); "inpaint" needs the mask.

    Raises ConfigError for an unknown task or a missing or needless mask.
    """
    if (task == "inpaint") != (mask is not None):
        raise ConfigError(f"the task is {task!r}; inpaint needs a mask (--mask), and no other task takes one")
    if mask is not None:
        return Mask(mask)
    if task == "denoise":
        return Identity()
    if task == "color":
        return Grey()
    if found := re.fullmatch(r"sr(box)?(\d+)", task):
        return Downscale(int(found[2]), "box" if found[1] else "bicubic")
    if found := re.fullmatch(rf"blur{_NUMBER}", task):
        return Blur(gaussian_kernel(float(found[1] or 2)))
    if found := re.fullmatch(rf"motion(\d+)?(?:@{_NUMBER})?", task):
        return Blur(motion_kernel(int(found[1] or 9), float(found[2] or 0)))
    raise ConfigError(f"unknown task {task!r}: choose {'; '.join(TASKS)}")
