"""Linear operators: adjoints, sizes, known answers, errors."""

import pytest
import torch

from ddcm_fast.errors import ConfigError, InputError
from ddcm_fast.tasks.operators import Blur, Downscale, Mask, bicubic_kernel, gaussian_kernel, motion_kernel, operator

TASKS = ["sr2", "sr4", "sr8", "srbox2", "srbox4", "srbox8"]
TASKS += ["color", "blur", "blur1.5", "motion", "motion8@30", "denoise"]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("task", TASKS)
def test_adjoint(task):
    h = operator(task)
    x = random(2, 3, 24, 40)
    y = h.forward(x)
    u = random(*y.shape, seed=1)
    assert torch.allclose((y * u).sum(), (x * h.adjoint(u, 24, 40)).sum(), rtol=1e-9)
    assert h.image_size(y.shape[2], y.shape[3]) == (24, 40)
    assert h.estimate(y.float(), 24, 40).shape == x.shape


@pytest.mark.parametrize(("height", "width"), [(24, 40), (5, 1), (8, 9)])
def test_blur_mirrors_the_image_at_its_edges(height, width):
    """Also where the kernel is larger than the image, which torch's own padding refuses."""
    h = operator("blur2")  # 13 taps
    x, u = random(2, 3, height, width), random(2, 3, height, width, seed=1)
    assert torch.allclose((h.forward(x) * u).sum(), (x * h.adjoint(u, height, width)).sum())
    assert torch.allclose(h.forward(torch.ones_like(x)), torch.ones_like(x))
    if min(height, width) > 6:
        mirrored = torch.nn.functional.pad(x, (6, 6, 6, 6), mode="reflect")
        kernel = gaussian_kernel(2.0).to(x).expand(3, 1, 13, 13)
        assert torch.allclose(h.forward(x), torch.nn.functional.conv2d(mirrored, kernel, groups=3))


def test_mask_adjoint_and_hole_filling():
    mask = random(24, 40) > 0
    h = operator("inpaint", mask)
    x, u = random(1, 3, 24, 40, seed=1), random(1, 3, 24, 40, seed=2)
    assert torch.allclose((h.forward(x) * u).sum(), (x * h.adjoint(u, 24, 40)).sum())
    flat = torch.full((1, 3, 24, 40), 0.3)
    assert torch.allclose(h.estimate(h.forward(flat), 24, 40), flat, atol=1e-5)


def test_gap_is_the_noise_of_what_was_measured():
    mask = torch.ones(64, 64)
    mask[:16] = 0
    h = operator("inpaint", mask)
    x = random(2, 3, 64, 64)
    y = h.forward(x) + 0.1 * random(2, 3, 64, 64, seed=1)
    assert torch.allclose(h.gap(y, x), torch.full((2,), 0.1, dtype=torch.float64), rtol=0.05)
    y[:, :, :16] = 7.0  # what a picture shows in its holes
    assert torch.allclose(h.gap(y, x), torch.full((2,), 0.1, dtype=torch.float64), rtol=0.05)


@pytest.mark.parametrize("task", ["blur2", "blur5", "motion9@45"])
def test_the_true_image_meets_its_own_blur(task):
    """Measured as the reference does, reflecting at the edges: with zeros beyond them H x misses it by 0.07 to 0.12."""
    h = operator(task)
    kernel = h._kernel.double()
    (rows, columns), x = kernel.shape, random(1, 3, 64, 64) * 0.05 + 0.6
    sides = (columns // 2, columns // 2, rows // 2, rows // 2)
    mirrored = torch.nn.functional.pad(x, sides, mode="reflect")
    clean = torch.nn.functional.conv2d(mirrored, kernel.expand(3, 1, rows, columns), groups=3)
    y = clean + 0.05 * random(*clean.shape, seed=1)
    assert h.gap(y, x).item() == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("task", ["sr4", "srbox4", "motion8@30"])
def test_constant_images_stay_constant_inside(task):
    y = operator(task).forward(torch.ones(1, 3, 64, 64))
    assert torch.allclose(y[..., 5:-5, 5:-5], torch.ones(()), atol=1e-5)


def test_downscaling_is_what_it_says():
    x = random(1, 1, 8, 8)
    box = Downscale(2, "box").forward(x)
    assert torch.allclose(box, torch.nn.functional.avg_pool2d(x, 2))
    assert sum(bicubic_kernel(4)) == pytest.approx(1)
    smooth = torch.linspace(-1, 1, 64).view(1, 1, 1, 64).expand(1, 1, 64, 64)
    ours = Downscale(4).forward(smooth)
    theirs = torch.nn.functional.interpolate(smooth, scale_factor=0.25, mode="bicubic", antialias=True)
    assert torch.allclose(ours[..., 2:-2], theirs[..., 2:-2], atol=1e-3)


def test_motion_kernels_have_their_length():
    kernel = motion_kernel(9)
    assert kernel.shape == (9, 9) and kernel[4].sum() == pytest.approx(1)
    assert motion_kernel(9, 90)[:, 4].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: operator("zoom"), ConfigError, "unknown task 'zoom'"),
        (lambda: operator("inpaint"), ConfigError, "needs a mask"),
        (lambda: operator("sr4", torch.ones(4, 4)), ConfigError, "no other task"),
        (lambda: operator("sr1"), ConfigError, "choose 2 to 16"),
        (lambda: operator("sr4").forward(torch.zeros(1, 3, 30, 32)), InputError, "no multiple"),
        (lambda: operator("color").forward(torch.zeros(1, 1, 8, 8)), InputError, "three channels"),
        (lambda: Mask(torch.ones(8, 8)).forward(torch.zeros(1, 3, 8, 9)), InputError, "resize the mask"),
        (lambda: Mask(torch.ones(1, 8, 8)), InputError, "mask must be"),
        (lambda: Mask(torch.zeros(8, 8)), InputError, "black everywhere"),
        (lambda: Blur(torch.ones(2, 3)), InputError, "odd sides"),
        (lambda: gaussian_kernel(0), ConfigError, "out of range"),
        (lambda: motion_kernel(1), ConfigError, "out of range"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
