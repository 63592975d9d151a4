"""Statistics that photographs share and distortions change, and how far those of two sets of patches are apart.

What NIQE looks at (Mittal, Soundararajan and Bovik 2013, "Making a completely blind image quality analyzer"): luma less
its local mean, over its local deviation, is nearly Gaussian in a photograph, and blur, ringing and blocks show in how
it is not. A Frechet distance of these 36 numbers needs no network and nothing that must be downloaded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad
from torch.utils.data import DataLoader, Dataset

#: Of the window of local means: 7 pixels wide, with a standard deviation of 7/6.
_WINDOW, _SIGMA = 7, 7 / 6
#: Neighbours whose products are looked at: right, below, and both diagonals.
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
#: Shapes among which a distribution's is chosen.
_SHAPES = torch.arange(200, 10001, dtype=torch.float64, device="cpu") / 1000
_TINY = 1e-12


def statistics(patches: Tensor) -> Tensor:
    """The 36 numbers of each patch, (N, 3, H, W) uint8 RGB, H and W even and 16 at least -> (N, 36) float64.

    18 at full and 18 at half resolution: shape and scale of the normalised luma; shape, mean and both scales of the
    products with each of four neighbours (equations 1 to 9 of the paper).
    """
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64, device=patches.device)
    luma = (patches.double() * weights[:, None, None]).sum(1, keepdim=True)
    return torch.cat([_at_one_scale(luma), _at_one_scale(avg_pool2d(luma, 2))], 1)


def distance(first: Dataset[Tensor], second: Dataset[Tensor]) -> float:
    """The Frechet distance between the statistics of two sets of (3, H, W) uint8 patches of one size.

    They are in units of the first set's standard deviations, so 36 is one deviation in each. NaN for sets of one.
    """
    a, b = (torch.cat([statistics(batch) for batch in DataLoader(each, 64)]) for each in (first, second))
    if len(a) < 2 or len(b) < 2:
        return math.nan
    scale = a.std(0).clamp_min(1e-6)
    a, b = a / scale, b / scale
    between = (a.mean(0) - b.mean(0)).square().sum()
    root = _root(a.T.cov())
    cross = torch.linalg.eigvalsh(root @ b.T.cov() @ root).clamp_min(0).sqrt().sum()
    return float((between + a.T.cov().trace() + b.T.cov().trace() - 2 * cross).clamp_min(0))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _at_one_scale(luma: Tensor) -> Tensor:
    place = torch.arange(_WINDOW, dtype=torch.float64, device=luma.device) - _WINDOW // 2
    line = torch.exp(-place.square() / (2 * _SIGMA**2))
    line = line / line.sum()
    padded = pad(luma, (_WINDOW // 2,) * 4, mode="replicate")
    mean, square = (conv2d(conv2d(x, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1)) for x in (padded, padded**2))
    normal = ((luma - mean) / ((square - mean**2).abs().sqrt() + 1))[:, 0]
    shape, left, right, _ = _asymmetric_gaussian(normal.flatten(1))
    found = [shape, (left + right) / 2]
    for rows, columns in _SHIFTS:
        moved = torch.roll(normal, (rows, columns), (1, 2))
        shape, left, right, center = _asymmetric_gaussian((normal * moved).flatten(1))
        found += [shape, center, left, right]
    return torch.stack(found, 1)


def _asymmetric_gaussian(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shape, scale to the left and right, and mean of the generalised Gaussian with the moments of each row."""

    def deviation(side: Tensor) -> Tensor:
        return (x.square() * side).sum(1).div(side.sum(1).clamp_min(1)).sqrt().clamp_min(_TINY)

    left, right = deviation(x < 0), deviation(x > 0)
    ratio = left / right
    moments = x.abs().mean(1).square() / x.square().mean(1).clamp_min(_TINY**2)
    wanted = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1).square()
    shapes = _SHAPES.to(x.device)
    # Increases with the shape, so that the nearest is found by bisection.
    table = torch.exp(2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes))
    after = torch.searchsorted(table, wanted).clamp(1, len(shapes) - 1)
    nearer = (wanted - table[after - 1]).abs() <= (table[after] - wanted).abs()
    shape = shapes[after - nearer.long()]
    per_deviation = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
    left, right = left * per_deviation, right * per_deviation
    center = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
    return shape, left, right, center
