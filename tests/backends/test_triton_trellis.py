"""Triton's trellis kernels, interpreted or on a GPU: letters are to the bit those of the reference's algorithm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backend_checks import TRELLISES, check_trellis, step_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddcm_fast.codebook import backends, reference
from ddcm_fast.codebook.law import CodebookSpec

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
kernels = backends.load("triton")
_REASON = backends.missing("triton", DEVICE)
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

SEED = 0xFEDCBA9876543210
STEP = 3_000_000_000

#: The interpreter makes every bit of `sign` in a round of its own, which takes it long.
KINDS = ["gaussian", "hadamard", pytest.param("sign", marks=pytest.mark.slow)]


def codebook(kind: str, dim: int, groups: int, letter_bits: int, memory: int) -> CodebookSpec:
    return CodebookSpec(kind, dim, 1 << (memory + letter_bits - 1), groups, SEED)


def residual(spec: CodebookSpec, batch: int) -> torch.Tensor:
    """Images of very different scale."""
    return (torch.randn(batch, spec.dim) * torch.logspace(-6, 6, batch)[:, None]).to(DEVICE)


def best_letters(spec: CodebookSpec, w: torch.Tensor, letter_bits: int) -> torch.Tensor:
    """What the reference's algorithm finds by the backend's own scores."""
    return reference.best_path(kernels.scores(spec, w, step_tensor(STEP, DEVICE)).cpu(), letter_bits)


def letters_of(spec: CodebookSpec, w: torch.Tensor, letter_bits: int) -> torch.Tensor:
    return kernels.trellis_search(spec, w, step_tensor(STEP, DEVICE), letter_bits).cpu()


# ---- against the reference -----------------------------------------------------------------------

SHAPES: list[Any] = [
    *(("hadamard", shape) for shape in TRELLISES[:4]), ("gaussian", TRELLISES[0]), ("gaussian", TRELLISES[3]),
    ("sign", (20, 2, 1, 1, 1)), pytest.param("hadamard", (3000, 6, 1, 5, 11), marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize("kind, shape", SHAPES, ids=str)
def test_as_other_backends(kind, shape):
    check_trellis(kernels, kind, shape, DEVICE)


#: D, G, B, bits of a letter, of memory, of a tile: one pair of states a tile; several tiles of a group; parts for one
#: group, for two and for many, the last launch with fewer; letters of eight bits, whose parts are few.
PARTED = [
    (90, 7, 2, 1, 1, 1), (90, 5, 2, 2, 6, 2), (120, 7, 1, 3, 4, 4), (200, 11, 3, 2, 7, 5), (90, 12, 1, 1, 8, 5),
    (90, 5, 1, 4, 8, 11), (40, 3, 1, 8, 9, 14),
]  # fmt: skip


@pytest.mark.skipif(DEVICE == "cuda", reason="tiles for the interpreter")
@pytest.mark.parametrize("shape", PARTED, ids=str)
def test_parts_of_states_need_each_other_only_between_launches(shape, monkeypatch):
    *shape, batch, letter_bits, memory, tile_bits = shape
    monkeypatch.setattr("ddcm_fast.kernels.trellis._TILE_BITS", tile_bits)
    spec = codebook("hadamard", *shape, letter_bits, memory)
    w = residual(spec, batch)
    assert torch.equal(letters_of(spec, w, letter_bits), best_letters(spec, w, letter_bits))


@pytest.mark.parametrize("held", [1, 3 << 4, 1 << 7])
@pytest.mark.parametrize("kind", KINDS)
def test_stretches_of_groups_and_of_images(kind, held, monkeypatch):
    """Fewer scores held than a group of one image has; those of some images; several groups of all."""
    monkeypatch.setattr("ddcm_fast.kernels.trellis.SCORES", held)
    spec = codebook(kind, 40, 5, 2, 3)
    w = residual(spec, 4)
    assert torch.equal(letters_of(spec, w, 2), best_letters(spec, w, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("letter_bits, memory", [(1, 1), (2, 3)])
def test_ties(kind, letter_bits, memory):
    """All paths of a residual of zeros are equal; with one coordinate many are."""
    spec = codebook(kind, 50, 5, letter_bits, memory)
    w = torch.zeros(3, 50, device=DEVICE)
    w[1, 0], w[2, 25] = 1, -1
    letters = letters_of(spec, w, letter_bits)
    assert (letters[0] == 0).all() and torch.equal(letters, best_letters(spec, w, letter_bits))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_letters_of_a_residual_that_is_not_finite(kind, bad):
    spec = codebook(kind, 60, 3, 2, 3)
    w = torch.randn(3, 60, device=DEVICE)
    clean = letters_of(spec, w, 2)
    for place in (0, 30, 59):
        broken = w.clone()
        broken[1, place] = bad
        letters = letters_of(spec, broken, 2)
        assert (letters[1] == -1).all() and torch.equal(letters[::2], clean[::2])


# ---- scores of some groups -----------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_neighbouring_groups(kind, batch):
    """By each kernel, with several blocks of images: to the bit those of all groups."""
    from ddcm_fast.kernels import operations, select

    spec = CodebookSpec(kind, 203, 70, 7, SEED)
    w, at = residual(spec, batch), step_tensor(STEP, DEVICE)
    expected = kernels.scores(spec, w, at)
    prepared = operations._RESIDUALS[kind](spec, w, select.peaks(spec, w)[1])
    for first, count in ((0, 1), (2, 3), (6, 1)):
        out = w.new_empty(batch, count, spec.size)
        prepared.scores(at, 0, spec.size, out, first_group=first)
        assert torch.equal(out, expected[:, first : first + count])


# ---- memory --------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The largest tensor that an operation makes, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [t.untyped_storage().nbytes() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.bytes = max([self.bytes, *made])
        return out


def test_no_more_is_held_than_said(monkeypatch):
    """Neither scores nor, where a part has two of the three images, origins."""
    spec = codebook("hadamard", 200, 20, 2, 8)
    w = residual(spec, 3)
    letters = letters_of(spec, w, 2)
    monkeypatch.setattr("ddcm_fast.kernels.trellis.SCORES", 1 << 11)
    monkeypatch.setattr("ddcm_fast.kernels.trellis.ORIGINS", 2 * spec.groups << 8)
    with Largest() as largest:
        assert torch.equal(letters_of(spec, w, 2), letters)
    assert largest.bytes == 2 * spec.groups << 8
