"""The CUDA kernels, emulated on the host, against the reference.

csrc/cuda/emulate.cpp compiles the kernels' own templates with a C++ compiler: lanes, registers, matrix fragments,
tiles, tails, splits and reductions are those of the device; only the arithmetic of a matrix instruction
and the barriers are a host's. So wrong maps are found here, without a GPU.
"""

from __future__ import annotations

import hashlib
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from building import COMPILER, built_once
from torch import Tensor

from ddcm_fast.codebook import reference
from ddcm_fast.codebook.backends import cuda
from ddcm_fast.codebook.build import source_dir, source_hash
from ddcm_fast.codebook.law import CodebookSpec

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

FLAGS = ("-O2", "-std=c++17", "-pthread", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fPIC", "-shared")
SEED = 2**63 + 12345
KINDS = ("gaussian", "sign", "hadamard")


@pytest.fixture(scope="module")
def library() -> Path:
    """The emulation, compiled once for these sources and this compiler."""

    def build(scratch: Path) -> Path:
        source, built = source_dir() / "cuda" / "emulate.cpp", scratch / "emulation.so"
        subprocess.run([str(COMPILER), *FLAGS, str(source), "-o", str(built)], check=True)
        return built

    digest = hashlib.sha256((source_hash("cuda", *FLAGS) + str(COMPILER)).encode()).hexdigest()
    return built_once(f"emulation-{digest[:16]}.so", build)


@pytest.fixture(scope="module")
def kernels(library: Path) -> cuda.Cuda:
    """As on a GPU of many multiprocessors, with clusters: small problems are split among a block's warps."""
    return cuda.Cuda(library, multiprocessors=132, max_cluster=8, bit_products=True)


@pytest.fixture(scope="module")
def narrow(library: Path) -> cuda.Cuda:
    """As on a tiny GPU without clusters or products of bits: a block takes many atoms and several tiles."""
    return cuda.Cuda(library, multiprocessors=1, max_cluster=1, bit_products=False)


def residual(spec: CodebookSpec, batch: int, seed: int = 0) -> Tensor:
    """A random residual in codebook order, its rows and coordinates of very different size."""
    g = torch.Generator().manual_seed(seed)
    r = torch.randn(batch, spec.dim, generator=g) * torch.logspace(-6, 5, batch).view(-1, 1)
    return reference.to_codebook_order(spec, r * torch.rand(spec.dim, generator=g) ** 4)


def check_choice(
    spec: CodebookSpec,
    w: Tensor,
    step: int,
    found: tuple[Tensor, Tensor, Tensor],
    signed: bool,
    bias: Tensor | None,
) -> None:
    """The chosen atoms are those of the reference, but for ties within float32 rounding."""
    index, sign, score = found
    m = index.shape[-1]
    exact = torch.cat([s for _, s in reference._score_chunks(spec, w, step)], dim=-1)
    value = exact.abs() if signed else exact
    if bias is not None:
        value = value + bias.double()
    scale = w.double().norm(dim=1).view(-1, 1, 1) * spec.max_group_dim**0.5
    tolerance = 1e-6 * scale + 1e-7 * value.abs().amax(-1, keepdim=True)
    best = value.topk(m, dim=-1).values
    assert ((value.gather(-1, index) - best).abs() <= tolerance).all()
    assert (index.sort(-1).values.diff(dim=-1) > 0).all()  # no atom twice
    chosen = exact.gather(-1, index)
    assert ((score - sign * chosen).abs() <= tolerance).all()
    assert ((sign == 1) | (sign == -1)).all() and (signed or (sign == 1).all())


# (D, K, G, B): odd dims, one entry, one atom, tiles with tails, groups of unequal size, batches of every column tile.
SHAPES = [
    (1, 1, 1, 1),
    (3, 2, 2, 1),
    (130, 100, 1, 1),
    (777, 300, 3, 2),
    (513, 65, 1, 3),
    (2000, 129, 2, 5),
    (300, 640, 7, 9),
    (64, 7, 64, 2),
    (1500, 40, 1, 17),
    (4099, 70, 1, 1),
    *((257, 33, 2, batch) for batch in (4, 6, 7, 8)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dim", "size", "groups", "batch"), SHAPES)
def test_operations(
    kernels: cuda.Cuda, kind: str, dim: int, size: int, groups: int, batch: int
) -> None:
    spec = CodebookSpec(kind, dim, size, groups, SEED)
    w, step = residual(spec, batch, dim), 2**32 - 7
    at = torch.tensor(step)
    scale = w.norm(dim=1).view(-1, 1, 1) * spec.max_group_dim**0.5
    difference = kernels.scores(spec, w, at) - reference.scores(spec, w, step)
    assert (difference.abs() <= 3e-7 * scale).all()
    m = min(size, 5)
    for signed in (False, True):
        one = kernels.search(spec, w, at, signed, None)
        check_choice(spec, w, step, tuple(x.unsqueeze(-1) for x in one), signed, None)
        check_choice(spec, w, step, kernels.topk(spec, w, at, m, signed, None), signed, None)
    scores, norms = kernels.scores_and_norms(spec, w, at)
    assert torch.equal(scores, kernels.scores(spec, w, at))
    torch.testing.assert_close(norms, reference.norms(spec, step), rtol=1e-7, atol=0)
    index = torch.randint(0, size, (batch, groups, 3))
    coefficient = torch.randn(batch, groups, 3)
    assert torch.equal(
        kernels.combine(spec, index, coefficient, at),
        reference.combine(spec, index, coefficient, step),
    )


@pytest.mark.parametrize("kind", ["gaussian", "sign"])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 100, 128, 129, 190, 200, 256, 300])
def test_rows_of_every_column_tile(kernels: cuda.Cuda, narrow: cuda.Cuda, kind: str, batch: int) -> None:
    """1 to 12 column tiles, 1 to 8 warps or blocks, whole and cut: a row scores the same alone and in any batch."""
    spec = CodebookSpec(kind, 141, 67, 2, SEED)
    w, at = residual(spec, batch, batch), torch.tensor(2**31)
    alone = torch.cat([kernels.scores(spec, row.unsqueeze(0), at) for row in w])
    scale = w.norm(dim=1).view(-1, 1, 1) * spec.max_group_dim**0.5
    assert ((alone - reference.scores(spec, w, 2**31)).abs() <= 3e-7 * scale).all()
    for engine in (kernels, narrow):
        assert torch.equal(engine.scores(spec, w, at), alone)
        index, sign, score = engine.search(spec, w, at, True, None)
        assert torch.equal(index, alone.abs().argmax(-1))
        assert torch.equal(sign * score, alone.gather(-1, index.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize(
    ("kind", "batch"),
    [*(("sign", b) for b in (16, 24, 32, 40)), *(("gaussian", b) for b in (16, 32, 64, 128, 256))],
)
def test_long_rows_of_large_batches(kernels: cuda.Cuda, narrow: cuda.Cuda, kind: str, batch: int) -> None:
    """Several k steps a warp, split and unsplit, several tiles of atoms, uneven groups; norms beside the scores."""
    spec = CodebookSpec(kind, 2201, 390 if batch <= 32 else 130, 2, SEED)
    w, at = residual(spec, batch), torch.tensor(6)
    scale = w.norm(dim=1).view(-1, 1, 1) * spec.max_group_dim**0.5
    expected, norms = reference.scores(spec, w, 6), reference.norms(spec, 6)
    for engine in (kernels, narrow):
        scores = engine.scores(spec, w, at)
        assert ((scores - expected).abs() <= 3e-7 * scale).all()
        index, _, _ = engine.search(spec, w, at, False, None)
        assert torch.equal(index, scores.argmax(-1))
        both = engine.scores_and_norms(spec, w, at)
        assert torch.equal(both[0], scores)
        torch.testing.assert_close(both[1], norms, rtol=1e-7, atol=0)


@pytest.mark.parametrize("batch", [1, 2, 20, pytest.param(300, marks=pytest.mark.slow)])
def test_signs_of_many_steps(library: Path, batch: int) -> None:
    """Several barriers of the warps that read together, several tiles of rows, bit planes of several tiles of atoms."""
    one = cuda.Cuda(library, multiprocessors=1, max_cluster=8, bit_products=True)
    spec = CodebookSpec("sign", 3 * 3200, 600, 3, SEED)  # 7 steps a group, 2 tiles; 3 groups leave few blocks
    w, at = residual(spec, batch), torch.tensor(6)
    scores, expected = one.scores(spec, w, at), reference.scores(spec, w, 6)
    scale = w.norm(dim=1).view(-1, 1, 1) * spec.max_group_dim**0.5
    assert ((scores - expected).abs() <= 3e-7 * scale).all()
    index, sign, score = one.search(spec, w, at, True, None)
    assert torch.equal(index, scores.abs().argmax(-1))
    assert torch.equal(sign * score, scores.gather(-1, index.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize(("kind", "dim"), [("sign", 2 * 16900), ("gaussian", 2 * 2201)])
@pytest.mark.parametrize("batch", [1, 3, 5])
def test_blocks_that_cut_the_coordinates(library: Path, narrow: cuda.Cuda, kind: str, dim: int, batch: int) -> None:
    """Clusters of 2 and 4 blocks add up the sums of the same atoms: bit for bit what one block finds."""
    spec = CodebookSpec(kind, dim, 70, 2, SEED)
    w, at = residual(spec, batch), torch.tensor(6)
    scores = narrow.scores(spec, w, at)
    for multiprocessors, max_cluster in ((132, 8), (132, 4), (16, 2)):
        engine = cuda.Cuda(library, multiprocessors, max_cluster, bit_products=True)
        index, sign, score = engine.search(spec, w, at, True, None)
        assert torch.equal(index, scores.abs().argmax(-1))
        assert torch.equal(sign * score, scores.gather(-1, index.unsqueeze(-1)).squeeze(-1))


def test_groups_too_long_to_share_among_all_rows(narrow: cuda.Cuda) -> None:
    """Float32 sums stay exact by splitting long groups, which leaves warps for fewer rows."""
    spec = CodebookSpec("gaussian", 41003, 50, 1, SEED)
    w, at = residual(spec, 130), torch.tensor(6)
    scores = narrow.scores(spec, w, at)
    scale = w.norm(dim=1).view(-1, 1, 1) * spec.dim**0.5
    assert ((scores - reference.scores(spec, w, 6)).abs() <= 3e-7 * scale).all()


@pytest.mark.parametrize("spread", [1.0, 1.9, 1.9921, 1.9922, 1.999999])
@pytest.mark.parametrize("size", [2.0**-140, 1.0, 2.0**110])
@pytest.mark.parametrize(("kind", "batch"), [("gaussian", 9), ("sign", 2), ("sign", 9)])
def test_largest_digits(kernels: cuda.Cuda, kind: str, batch: int, spread: float, size: float) -> None:
    """Residuals at the edges of what three digits hold, of every sign and size."""
    spec = CodebookSpec(kind, 70, 40, 1, SEED)
    w = residual(spec, batch)
    w = w / w.abs().amax(1, keepdim=True) * spread
    w[:, 3], w[:, 5], w[1] = spread, -spread, spread
    w = w * size
    difference = kernels.scores(spec, w, torch.tensor(1)) - reference.scores(spec, w, 1)
    # 2^-23 of the largest in each of 70 coordinates, then the rounding of scores of at most 5 sigma, or of denormals
    bound = 2.0**-23 * spread * size * spec.dim + 2.0**-24 * 5 * spread * size * spec.dim**0.5 + 2.0**-149
    assert (difference.abs() <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_group", [False, True])
def test_bias(kernels: cuda.Cuda, kind: str, per_group: bool) -> None:
    spec = CodebookSpec(kind, 200, 300, 3, SEED)
    w = residual(spec, 3)
    bias = torch.randn(*((3, 300) if per_group else (300,))) * w.norm()
    for signed in (False, True):
        one = kernels.search(spec, w, torch.tensor(4), signed, bias)
        check_choice(spec, w, 4, tuple(x.unsqueeze(-1) for x in one), signed, bias)
        found = kernels.topk(spec, w, torch.tensor(4), 7, signed, bias)
        check_choice(spec, w, 4, found, signed, bias)


@pytest.mark.parametrize("kind", KINDS)
def test_several_tiles_a_block(narrow: cuda.Cuda, kind: str) -> None:
    """K beyond one block's tile, split and unsplit warps: search, topk and scores agree exactly."""
    spec = CodebookSpec(kind, 70, 20000 if kind == "hadamard" else 9000, 2, SEED)
    w, at = residual(spec, 2), torch.tensor(3)
    scores = narrow.scores(spec, w, at)
    scale = w.norm(dim=1).view(-1, 1, 1) * spec.max_group_dim**0.5
    assert ((scores - reference.scores(spec, w, 3)).abs() <= 3e-7 * scale).all()
    index, _, score = narrow.search(spec, w, at, False, None)
    assert torch.equal(index, scores.argmax(-1)) and torch.equal(score, scores.amax(-1))
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :600]
    top = narrow.topk(spec, w, at, 600, False, None)
    assert torch.equal(top[0], order) and torch.equal(top[2], scores.gather(-1, order))
    signed = narrow.topk(spec, w, at, 1024, True, None)
    order = scores.abs().argsort(dim=-1, descending=True, stable=True)[..., :1024]
    assert torch.equal(signed[0], order)
    assert torch.equal(signed[2] * signed[1], scores.gather(-1, order))


#: K, rows, m: a slice; several; several that are merged twice; more scores than are held at once.
SELECTIONS = [(1, 3, 1), (4096, 2, 1024), (4097, 2, 1), (17000, 3, 1000), (20000, 300, 20)]


@pytest.mark.parametrize(("size", "rows", "m"), SELECTIONS)
def test_selection_of_slices(kernels: cuda.Cuda, size: int, rows: int, m: int) -> None:
    """The m best in order, from scores of few values: most are told apart by index. Biases may be infinite, or NaN."""
    spec, at = CodebookSpec("hadamard", 64, size, 1, SEED), torch.tensor(3)
    w = torch.zeros(rows, spec.dim)
    w[torch.arange(rows), torch.arange(rows) % spec.dim] = 1.0
    w[0] = 0.0  # all scores are zero
    bias = torch.randint(-1, 2, (size,)) * 0.5
    bias[torch.rand(size) < 0.3] = -torch.inf
    bias[torch.rand(size) < 0.3] = -0.0
    scores = kernels.scores(spec, w, at)
    for signed in (False, True):
        for own in (None, bias):
            value = (scores.abs() if signed else scores).double() + (0.0 if own is None else own.double())
            order = value.argsort(dim=-1, descending=True, stable=True)[..., :m]
            index, sign, score = kernels.topk(spec, w, at, m, signed, own)
            assert torch.equal(index, order)
            assert torch.equal(sign * score, scores.gather(-1, order))
    bias[: size - 1] = torch.nan
    index, _, score = kernels.topk(spec, w, at, m, True, bias)
    assert (index[..., 0] == size - 1).all() and (index[..., 1:] == -1).all() and score[..., 1:].isnan().all()


def test_norms_of_split_and_of_several_tiles(kernels: cuda.Cuda, narrow: cuda.Cuda, monkeypatch) -> None:
    """Squares are added up by one lane of every warp that shares an atom, tile after tile."""
    monkeypatch.setattr(cuda, "WORKSPACE_LIMIT", 0)  # in parts of 8 rows: only the first makes norms
    for dim, size, groups, batch in ((5000, 200, 3, 9), (90, 5000, 2, 3)):
        spec = CodebookSpec("gaussian", dim, size, groups, SEED)
        w, expected = residual(spec, batch), reference.norms(spec, 3)
        for engine in (kernels, narrow):
            assert torch.equal(engine.scores_and_norms(spec, w, torch.tensor(3))[1], expected)


@pytest.mark.parametrize("kind", ["gaussian", "sign"])
def test_last_atoms_of_the_largest_codebook(kernels: cuda.Cuda, kind: str) -> None:
    """Atoms near 2^32: K * D is far beyond 2^32 and every index product needs 64 bits."""
    spec = CodebookSpec(kind, 4097, 2**32, 1, SEED)
    w, count = residual(spec, 2), 70
    scores = kernels.scores_of_range(spec, w, torch.tensor(1), 2**32 - count, count)
    atoms = torch.arange(2**32 - count, 2**32).view(-1, 1)
    y = reference.entries(spec, atoms, 1)[:, 0, : spec.dim].double()
    exact = w.double() @ y.T
    scale = w.norm(dim=1).view(-1, 1) * spec.dim**0.5
    assert ((scores[:, 0] - exact).abs() <= 3e-7 * scale).all()
    index = torch.tensor([[[2**32 - 1]], [[2**32 - 3]]])
    one = torch.ones(2, 1, 1)
    assert torch.equal(
        kernels.combine(spec, index, one, torch.tensor(1)), reference.combine(spec, index, one, 1)
    )


def test_last_pairs_of_the_largest_hadamard_codebook(kernels: cuda.Cuda) -> None:
    spec = CodebookSpec("hadamard", 100, 2**32, 1, SEED)
    w, n = residual(spec, 1), spec.hadamard_n
    scores = kernels.scores_of_range(spec, w, torch.tensor(1), 2**32 - n, n)
    y = reference.entries(spec, torch.arange(2**32 - n, 2**32).view(-1, 1), 1)[:, 0].double()
    exact = w.double() @ y.T
    assert (scores[0] - exact).abs().max() <= 3e-7 * w.norm() * spec.dim**0.5


def test_hadamard_signs_of_one_range_after_another(kernels: cuda.Cuda) -> None:
    """More pairs than the workspace holds signs of: ranges of 2^23 atoms, whose best candidates are merged."""
    spec = CodebookSpec("hadamard", 60, 2**23 + 1000, 1, SEED)
    w, at = residual(spec, 2), torch.tensor(1)
    first = 2**23 - 64
    y = reference.entries(spec, torch.arange(first, spec.size).view(-1, 1), 1)[:, 0].double()
    w[0], w[1] = y[-5], y[10]  # the best atoms are in the last range and in the first
    scores = kernels.scores(spec, w, at)
    exact = w.double() @ y.T
    assert ((scores[:, 0, first:] - exact).abs() <= 3e-7 * w.norm(dim=1, keepdim=True) * spec.dim**0.5).all()
    index, _, score = kernels.search(spec, w, at, False, None)
    assert torch.equal(index, scores.argmax(-1)) and torch.equal(score, scores.amax(-1))
    assert index.flatten().tolist() == [spec.size - 5, first + 10]


@pytest.mark.parametrize("size", [64, 200, 1000, 4000, 16000])
def test_every_hadamard_length(kernels: cuda.Cuda, size: int) -> None:
    """n = 64 ... 16384, with a cut last sub-block, several sub-blocks and uneven groups."""
    for dim, groups in ((size + 3, 1), (5 * size + 1, 2)):
        spec = CodebookSpec("hadamard", dim, size, groups, SEED)
        w, at = residual(spec, 1), torch.tensor(9)
        exact = reference.scores(spec, w, 9)
        scale = w.norm() * spec.max_group_dim**0.5
        assert (kernels.scores(spec, w, at) - exact).abs().max() <= 1e-6 * scale
        if size <= 1000:  # the reference's norms take a minute for the largest
            _, norms = kernels.scores_and_norms(spec, w, at)
            torch.testing.assert_close(norms, reference.norms(spec, 9), rtol=1e-7, atol=0)
        index = torch.randint(0, size, (1, groups, 2))
        coefficient = torch.randn(1, groups, 2)
        assert torch.equal(
            kernels.combine(spec, index, coefficient, at),
            reference.combine(spec, index, coefficient, 9),
        )


@pytest.mark.parametrize("kind", ["gaussian", "sign"])
def test_long_groups(kernels: cuda.Cuda, kind: str) -> None:
    """More k steps than a sum surely holds (`sign` takes several segments), with the largest residual everywhere."""
    per_step = 4 * (128 if kind == "sign" else 8)
    steps = 8 * 256 if kind == "sign" else 16 * 1280  # of all warps of a block
    spec = CodebookSpec(kind, steps * per_step + 777, 3, 1, SEED)
    w = torch.full((1, spec.dim), 3.999)
    w[0, ::3] = -1.0
    y = reference.entries(spec, torch.arange(3).view(-1, 1), 5)[:, 0, : spec.dim].double()
    exact = w.double() @ y.T
    scores = kernels.scores(spec, w, torch.tensor(5))
    assert (scores[0] - exact).abs().max() <= 3e-7 * w.norm() * spec.dim**0.5
    best = kernels.search(spec, w, torch.tensor(5), True, None)
    assert best[0].item() == exact.abs().argmax().item()


def test_exact_ties_go_to_the_lower_index(kernels: cuda.Cuda, narrow: cuda.Cuda) -> None:
    """Few coordinates of integers: many atoms score exactly the same."""
    for engine in (kernels, narrow):
        for kind in ("gaussian", "sign"):
            spec = CodebookSpec(kind, 3, 3000, 1, SEED)
            w = torch.tensor([[4.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 1.0]])
            for signed in (False, True):
                expected = reference.topk(spec, w, 2, 900, signed)
                found = engine.topk(spec, w, torch.tensor(2), 900, signed, None)
                assert torch.equal(found[0], expected[0])
                assert torch.equal(found[1], expected[1])
                assert torch.equal(found[2], expected[2])
                one = engine.search(spec, w, torch.tensor(2), signed, None)
                assert torch.equal(one[0], expected[0][..., 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_residual_not_finite(kernels: cuda.Cuda, kind: str, bad: float) -> None:
    spec = CodebookSpec(kind, 300, 90, 2, SEED)
    w = residual(spec, 3)
    clean = kernels.search(spec, w, torch.tensor(2), True, None)
    w[1, 299] = bad
    index, sign, score = kernels.search(spec, w, torch.tensor(2), True, None)
    assert index[1, 1] == -1 and score[1, 1].isnan() and sign[1, 1] == 1
    keep = torch.tensor([[True, True], [True, False], [True, True]])
    assert torch.equal(index[keep], clean[0][keep]) and torch.equal(score[keep], clean[2][keep])
    top = kernels.topk(spec, w, torch.tensor(2), 4, True, None)
    assert (top[0][1, 1] == -1).all() and top[2][1, 1].isnan().all()
    assert torch.equal(top[0][..., 0][keep], clean[0][keep])
    assert kernels.scores(spec, w, torch.tensor(2))[1, 1].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_residuals_of_extreme_size(kernels: cuda.Cuda, kind: str) -> None:
    """Denormal and nearly overflowing residuals scale like any other."""
    spec = CodebookSpec(kind, 200, 50, 1, SEED)
    w = residual(spec, 1)
    w = w / w.abs().max()
    expected = kernels.search(spec, w, torch.tensor(2), True, None)
    for power in (-120, 110):
        found = kernels.search(spec, w * 2.0**power, torch.tensor(2), True, None)
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[2] / 2.0**power, expected[2], rtol=1e-6, atol=0)
    tiny = torch.zeros(1, 200)
    tiny[0, 7] = 1e-44
    assert kernels.search(spec, tiny, torch.tensor(2), True, None)[0].min() >= 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 17, 64, 127, 256, 1000, 4095, 4096, 4097, 9000])
def test_rotation(kernels: cuda.Cuda, kind: str, dim: int) -> None:
    spec = CodebookSpec(kind, dim, 1, 1, SEED)
    r = torch.randn(2, dim)
    w = reference.to_codebook_order(spec, r)
    assert torch.equal(kernels.to_codebook_order(spec, r), w)
    assert torch.equal(kernels.to_image_order(spec, w), reference.to_image_order(spec, w))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("kind", "dim"), [("gaussian", 1100), ("sign", 70), ("hadamard", 64)])
def test_residuals_enter_in_range(kernels: cuda.Cuda, kind: str, dim: int, together: bool) -> None:
    spec = CodebookSpec(kind, dim, 10, 1, SEED)
    for sizes in ([1, 1e-40, 3e37, 1e-20, 1e20], [1, 2, 3, 4, 5], [0, 1e-45, 1e-30, -0.0, 1e-38]):
        residual = torch.randn(5, dim) * torch.tensor(sizes)[:, None]
        w, unit = kernels.enter(spec, residual, together)
        expected, expected_unit = reference.enter(reference.to_codebook_order, spec, residual, together)
        assert torch.equal(w, expected)
        assert torch.equal(unit, torch.ones(5, 1) if expected_unit is None else expected_unit)


@pytest.mark.parametrize("kind", KINDS)
def test_search_of_a_range(kernels: cuda.Cuda, kind: str) -> None:
    spec, w = CodebookSpec(kind, 60, 150, 2, SEED), torch.randn(3, 60)
    first, step = spec.atoms_made_together, torch.tensor(5)
    index, _, _ = kernels.search_range(spec, w, step, True, None, first, 140)
    assert torch.equal(index, reference.scores(spec, w, 5, first, 140).abs().argmax(-1) + first)


#: (D, G, B, bits of a letter, of memory): one pair of states, a letter that fills the state, one group, several
#: blocks of pairs, origins staged in several parts or not at all, enough scores for launches of a group each.
TRELLISES = [(70, 8, 2, 1, 1), (500, 12, 3, 4, 4), (64, 1, 2, 3, 7), (300, 40, 2, 1, 10), (200, 9, 1, 1, 14)]
LARGEST_TRELLIS = (40, 4, 1, 8, 10)


@pytest.mark.parametrize(
    ("kind", "shape"), [*((kind, shape) for kind in KINDS for shape in TRELLISES), ("hadamard", LARGEST_TRELLIS)]
)
def test_paths_are_those_of_the_same_scores(
    kernels: cuda.Cuda, narrow: cuda.Cuda, library: Path, kind: str, shape: tuple[int, int, int, int, int]
) -> None:
    """To the bit the letters that the reference's algorithm finds; by one block a row, a cluster, a launch a group."""
    dim, groups, batch, bits, memory = shape
    spec = CodebookSpec(kind, dim, 1 << (memory + bits - 1), groups, SEED)
    w, at = residual(spec, batch), torch.tensor(2**32 - 3)
    letters = reference.best_path(kernels.scores(spec, w, at), bits)
    for engine in (kernels, narrow, cuda.Cuda(library, multiprocessors=200, max_cluster=1, bit_products=True)):
        assert torch.equal(engine.trellis_search(spec, w, at, bits), letters)


@pytest.mark.parametrize("kind", ["gaussian", "hadamard", pytest.param("sign", marks=pytest.mark.slow)])
def test_paths_through_several_stretches(kernels: cuda.Cuda, kind: str) -> None:
    """More scores than are held at once, and groups of unequal size."""
    spec = CodebookSpec(kind, 203, 1 << 15, 50, SEED)  # 2^22 scores are 42 groups of 3 rows
    w, at = residual(spec, 3), torch.tensor(5)
    letters = reference.best_path(kernels.scores(spec, w, at), 4)
    assert torch.equal(kernels.trellis_search(spec, w, at, 4), letters)


def test_paths_of_batches_in_parts(kernels: cuda.Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = CodebookSpec("gaussian", 203, 256, 9, SEED)
    w, at = residual(spec, 11), torch.tensor(5)
    whole = kernels.trellis_search(spec, w, at, 4)
    monkeypatch.setattr(cuda, "WORKSPACE_LIMIT", 0)
    assert torch.equal(kernels.trellis_search(spec, w, at, 4), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "memory"), [(1, 1), (3, 5)])
def test_ties_of_paths(kernels: cuda.Cuda, narrow: cuda.Cuda, kind: str, bits: int, memory: int) -> None:
    """All paths of a residual of zeros are equal; with one coordinate many are: letters are the reference's."""
    spec = CodebookSpec(kind, 90, 1 << (memory + bits - 1), 9, SEED)
    w, at = torch.zeros(3, 90), torch.tensor(1)
    w[1, 0], w[2, 45] = 1, -1
    letters = reference.best_path(kernels.scores(spec, w, at), bits)
    assert (letters[0] == 0).all()
    for engine in (kernels, narrow):
        assert torch.equal(engine.trellis_search(spec, w, at, bits), letters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_paths_of_a_residual_not_finite(kernels: cuda.Cuda, kind: str, bad: float) -> None:
    spec = CodebookSpec(kind, 300, 256, 5, SEED)
    w, at = residual(spec, 3), torch.tensor(2)
    clean = kernels.trellis_search(spec, w, at, 3)
    for place in (0, 150, 299):
        broken = w.clone()
        broken[1, place] = bad
        letters = kernels.trellis_search(spec, broken, at, 3)
        assert (letters[1] == -1).all() and torch.equal(letters[::2], clean[::2])


@pytest.mark.parametrize("kind", KINDS)
def test_workspace_of_a_trellis(kernels: cuda.Cuda, kind: str) -> None:
    """16 MB of scores, or those of a group, and a byte a group and state, but for what little a residual takes."""
    library = kernels._library
    for dim, groups, bits, memory in ((12288, 200, 5, 12), (196608, 3200, 5, 12), (12288, 400, 4, 16)):
        book = CodebookSpec(kind, dim, 1 << (memory + bits - 1), groups)
        spec = kernels._spec(book, torch.device("cpu"))
        for batch in (1, 8):
            size = library.ddcm_trellis_workspace(spec, batch, bits)
            scores = max(16 << 20, 4 * batch * book.size)
            assert size <= scores + batch * (groups + 8) * (1 << memory) + (5 << 20) + 40 * batch * dim
    spec = kernels._spec(CodebookSpec(kind, 12288, 1 << 23, 400), torch.device("cpu"))
    parts = list(cuda.batches(library, 5, spec, "ddcm_trellis_workspace", 8, least=1))
    assert [part.stop - part.start for part in parts] == [1] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_combine_clamps_and_sums_in_order(kernels: cuda.Cuda, kind: str) -> None:
    spec = CodebookSpec(kind, 1100, 90, 2, SEED)
    index = torch.randint(0, 90, (2, 2, 40))
    coefficient = torch.randn(2, 2, 40)
    expected = reference.combine(spec, index, coefficient, 6)
    assert torch.equal(kernels.combine(spec, index, coefficient, torch.tensor(6)), expected)
    wild = index.clone()
    wild[0, 0, 0], wild[1, 1, 3] = -1, 90 + 2**40
    tame = wild.clamp(0, 89)
    assert torch.equal(
        kernels.combine(spec, wild, coefficient, torch.tensor(6)),
        reference.combine(spec, tame, coefficient, 6),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_workspace_stays_small(kernels: cuda.Cuda, kind: str) -> None:
    """Under 64 MB for the shapes people use, and the batch is cut where it would not be."""
    library = kernels._library
    for batch, dim, size, groups in ((1, 36864, 2**20, 1), (1, 2**18, 2**32, 64), (8, 16384, 2**20, 8)):
        spec = kernels._spec(CodebookSpec(kind, dim, size, groups), torch.device("cpu"))
        assert library.ddcm_search_workspace(spec, batch) < 64 << 20
        assert library.ddcm_topk_workspace(spec, batch, 1024) < 64 << 20
    spec = kernels._spec(CodebookSpec(kind, 16384, 4096, 1), torch.device("cpu"))
    parts = list(cuda.batches(library, 256, spec, "ddcm_search_workspace"))
    assert parts[0].start == 0 and parts[-1].stop == 256
    assert all(a.stop == b.start for a, b in pairwise(parts))
    rows = parts[0].stop
    assert library.ddcm_search_workspace(spec, rows) <= cuda.WORKSPACE_LIMIT or rows <= 8


def test_batches_in_parts(kernels: cuda.Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = CodebookSpec("sign", 300, 70, 2, SEED)
    w = residual(spec, 37)
    whole = kernels.search(spec, w, torch.tensor(1), True, None)
    monkeypatch.setattr(cuda, "WORKSPACE_LIMIT", 0)
    parts = kernels.search(spec, w, torch.tensor(1), True, None)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_unavailable_says_why() -> None:
    assert "CUDA devices only" in str(cuda.Cuda().unavailable(torch.device("cpu")))
    if not torch.cuda.is_available():
        assert "no CUDA GPU" in str(cuda.Cuda().unavailable(torch.device("cuda")))
