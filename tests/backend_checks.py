"""What every backend is checked against: cases, the reference's answers to them, and tolerances.

A backend plugs in by name: `BACKENDS` lists every (backend, device) that is here, apart from the reference
itself and from interpreted Triton, a thousand times slower, which test_triton_backend.py tests on a few
small cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ddcm_fast.codebook import backends, reference
from ddcm_fast.codebook.law import CodebookSpec

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

#: (backend, device) pairs to compare with the reference, as pytest parameters.
BACKENDS = [
    (name, device)
    for device in DEVICES
    for name in backends.available(device)
    if name != "reference" and (name, device) != ("triton", "cpu")
]

STEP = 7
SEED = 2**63 + 0x0123456789  # more than 32 bits, and negative as a torch int


@dataclass(frozen=True)
class Case:
    """One codebook and a batch of residuals."""

    kind: str
    dim: int
    size: int
    groups: int = 1
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.kind}-D{self.dim}-K{self.size}-G{self.groups}-B{self.batch}"

    @property
    def spec(self) -> CodebookSpec:
        return CodebookSpec(self.kind, self.dim, self.size, self.groups, SEED)


_SHAPES = [  # D, K, G, B
    (1, 1, 1, 1),
    (1, 5, 1, 3),
    (2, 3, 2, 1),
    (3, 17, 1, 2),
    (5, 1000, 1, 1),
    (16, 100, 4, 5),
    (63, 100, 1, 2),
    (64, 64, 1, 1),
    (65, 129, 2, 7),
    (127, 130, 127, 1),
    (128, 70, 1, 256),
    (200, 333, 7, 9),
    (1000, 1000, 3, 4),
    (1024, 257, 1, 33),
    (2047, 300, 2, 3),
    (4097, 100, 1, 2),
    (5000, 130, 5, 3),
    (12289, 40, 2, 8),
    (16384, 65, 1, 1),
    (300, 5000, 1, 2),
]
CASES = [Case(kind, *shape) for kind in ("gaussian", "sign", "hadamard") for shape in _SHAPES]


@dataclass(frozen=True)
class Answers:
    """The reference's view of a case; tensors on the CPU."""

    residual: Tensor  # (B, D) float32, image order
    w: Tensor  # (B, D) float32, codebook order
    scores: Tensor  # (B, G, K) float64
    bias: Tensor  # (G, K) float32
    tolerance: Tensor  # (B, G, 1) float64: what a score may be off


@cache
def answers(case: Case) -> Answers:
    """Residuals of a case and the reference's scores in double precision."""
    spec = case.spec
    generator = torch.Generator().manual_seed(case.dim * 31 + case.size)
    residual = torch.randn(case.batch, case.dim, generator=generator)
    w = reference.to_codebook_order(spec, residual)
    scores = torch.cat([s for _, s in reference._score_chunks(spec, w, STEP)], dim=-1)
    bias = torch.randn(case.groups, case.size, generator=generator)
    # Law, section 8: errors of the order of 1e-6 |y| |w|, with |y|^2 about the group's entries.
    length = reference._split_groups(spec, w).norm(dim=-1, keepdim=True)
    return Answers(residual, w, scores, bias, 2e-6 * (1 + spec.max_group_dim) ** 0.5 * length + 1e-6)


def values(scores: Tensor, signed: bool, bias: Tensor | None) -> Tensor:
    """What a search maximises: (B, G, K) float64."""
    value = scores.abs() if signed else scores
    return value if bias is None else value + bias.double()


def check_selection(answer: Answers, signed: bool, bias: Tensor | None, found: tuple[Tensor, Tensor, Tensor]) -> None:
    """Assert that (index, sign, score), each (B, G, m), are the m best atoms in order, up to rounding."""
    index, sign, score = (t.cpu() for t in found)
    m = index.shape[-1]
    assert index.dtype == torch.int64 and sign.dtype == torch.int8 and score.dtype == torch.float32
    value = values(answer.scores, signed, bias)
    tolerance = answer.tolerance + (0 if bias is None else 1e-6 * bias.abs().max())
    best = value.topk(m, dim=-1).values
    assert (value.gather(-1, index) - best).abs().le(tolerance).all(), "not the best atoms"
    assert (index.sort(dim=-1).values.diff(dim=-1) > 0).all(), "an atom was returned twice"
    raw = answer.scores.gather(-1, index)
    assert (score - raw * sign).abs().le(tolerance).all(), "wrong score"
    right = torch.where(raw < 0, -1, 1) if signed else torch.ones_like(index)
    assert ((sign == right) | (raw.abs() <= tolerance)).all(), "wrong sign"


def step_tensor(step: int, device: str) -> Tensor:
    """A step as the backends take it."""
    return torch.tensor(step, dtype=torch.int64, device=device)
