"""What a case does: its inputs made, and the operation as a function without arguments.

All searches are of the same residual and signed. A stored codebook has this package's atoms, so that its search must
find what ours finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddcm_fast.codebook import backends, reference
from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.measure.cases import Case

Work = Callable[[], Tensor]

#: Entries that torch.randn draws at once, 64 MiB of float32; and that a stored codebook is made from.
_PART, _STORED_PART = 1 << 24, 1 << 20

_STEP = 0


def prepare(case: Case) -> Work:
    """The case as a function; what it returns is the indices of a search, (B, G) or (B, G, M), or vectors (B, D)."""
    return _baseline(case) if case.baseline else _ours(case)


def stored_bytes(case: Case) -> int:
    """Bytes of what the baseline `stored` keeps, 0 of any other."""
    if case.by != "stored":
        return 0
    numbers = case.spec.rotation_block**2 if case.op == "rotate" else case.size * case.dim
    return numbers * case.dtype.itemsize


def _normal(case: Case, *shape: int) -> Tensor:
    """The same normal numbers at every call, float32."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(case.device)


def _index(case: Case) -> Tensor:
    """Atoms to be combined: (B, G, M) int64."""
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (case.batch, case.groups, case.atoms)
    return torch.randint(case.size, shape, generator=generator, dtype=torch.int64, device="cpu").to(case.device)


def _ours(case: Case) -> Work:
    spec, device = case.spec, case.device
    book = Codebook(spec.kind, spec.dim, spec.size, spec.groups, spec.seed, backend=case.by)
    if case.op == "rotate":
        backend, residual = backends.load(backends.resolve(case.by, device)), _normal(case, case.batch, case.dim)
        return lambda: backend.to_codebook_order(spec, residual)
    if case.searches:
        residual = _normal(case, case.batch, case.dim)
        if case.op == "search":
            return lambda: book.search(residual, _STEP)[0]
        return lambda: book.topk(residual, _STEP, case.atoms)[0]
    index = _index(case)
    if case.op == "noise":
        one = index.squeeze(-1)
        return lambda: book.atoms(one, _STEP)
    weight = _normal(case, *index.shape)
    return lambda: book.combine(index, weight, _STEP)


# ---- baselines -----------------------------------------------------------------------------------


def _baseline(case: Case) -> Work:
    if case.by == "fresh":
        return lambda: torch.randn(case.batch, case.dim, dtype=case.dtype, device=case.device)
    if case.op == "rotate":
        return _dense_rotation(case)
    parts = _drawn(case) if case.by == "randn" else _kept(case)
    return _search(case, parts) if case.searches else _combine(case, parts)


def _ranges(case: Case, entries: int = _PART) -> Iterator[tuple[int, int]]:
    """First atom and one past the last, of parts of so many entries."""
    width = max(1, entries // case.dim)
    for first in range(0, case.size, width):
        yield first, min(first + width, case.size)


_Parts = Callable[[], Iterator[tuple[int, Tensor]]]  # (first atom, its and the following entries (atoms, D))


def _drawn(case: Case) -> _Parts:
    def parts() -> Iterator[tuple[int, Tensor]]:
        for first, last in _ranges(case):
            yield first, torch.randn(last - first, case.dim, dtype=case.dtype, device=case.device)

    return parts


def _kept(case: Case) -> _Parts:
    spec = case.spec
    book = Codebook(spec.kind, spec.dim, spec.size, seed=spec.seed)
    stored = torch.empty(case.size, case.dim, dtype=case.dtype, device=case.device)
    for first, last in _ranges(case, _STORED_PART):
        index = torch.arange(first, last, dtype=torch.int64, device=case.device)
        stored[first:last] = book.atoms(index.unsqueeze(1), _STEP)
    return lambda: iter([(0, stored)])


def _search(case: Case, parts: _Parts) -> Work:
    residual = _normal(case, case.batch, case.dim).T.to(case.dtype)

    def search() -> Tensor:
        scores = torch.cat([part @ residual for _, part in parts()]).abs_()
        best = scores.argmax(0) if case.op == "search" else scores.topk(case.atoms, dim=0).indices.T
        return best.unsqueeze(1)

    return search


def _combine(case: Case, parts: _Parts) -> Work:
    index, weight = _index(case), _normal(case, case.batch, case.atoms).to(case.dtype)
    # Which rows of the result come from which part: known before, as a decoder knows its indices.
    flat = index.flatten()
    rows = {}
    for first, last in _ranges(case) if case.by == "randn" else ((0, case.size),):
        inside = ((flat >= first) & (flat < last)).nonzero().flatten()
        rows[first] = inside, flat[inside] - first

    def combine() -> Tensor:
        chosen = torch.empty(len(flat), case.dim, dtype=case.dtype, device=case.device)
        for first, part in parts():
            to, within = rows[first]
            chosen[to] = part[within]
        if case.op == "noise":
            return chosen
        return (weight.unsqueeze(1) @ chosen.view(case.batch, case.atoms, case.dim)).squeeze(1)

    return combine


def _dense_rotation(case: Case) -> Work:
    """Permutation, signs, and a product with the Hadamard matrix (D a multiple of its size)."""
    spec, device, b = case.spec, case.device, case.spec.rotation_block
    matrix = reference.hadamard_transform(torch.eye(b, dtype=torch.float32, device=device))
    order = torch.arange(case.dim, dtype=torch.int64, device=device) * spec.stride % spec.dim
    ones = torch.ones(1, case.dim, dtype=torch.float32, device=device)
    # The matrix is its own inverse: what is left of a vector of ones is the signs.
    signs = (reference.to_codebook_order(spec, ones).view(-1, b) @ matrix).sign().flatten().to(case.dtype)
    residual, matrix = _normal(case, case.batch, case.dim).to(case.dtype), matrix.to(case.dtype)
    return lambda: ((residual[:, order] * signs).view(-1, b) @ matrix).view(case.batch, case.dim)
