"""What the tests and benchmarks/gpu_check.py hold every backend to: shapes, the reference's answers, comparisons.

Comparisons raise AssertionError.

A backend plugs in by name: `backends_here` lists every (backend, device) that is here, apart from the reference
itself and from interpreted Triton, a thousand times slower, which test_triton_backend.py tests on a few
small cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ddcm_fast.codebook import backends, reference
from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.codebook.law import CodebookSpec

KINDS = ("gaussian", "sign", "hadamard")
STEP = 7
SEED = 2**63 + 0x0123456789  # more than 32 bits, and negative as a torch int


def backends_here() -> list[tuple[str, str]]:
    """(backend, device) pairs to compare with the reference, as pytest parameters. Builds what is not built."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    pairs = [(name, device) for device in devices for name in backends.available(device)]
    return [pair for pair in pairs if pair[0] != "reference" and pair != ("triton", "cpu")]


def step_tensor(step: int, device: str) -> Tensor:
    """A step as the backends take it."""
    return torch.tensor(step, dtype=torch.int64, device=device)


# ---- shapes ----------------------------------------------------------------------------------------------


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


def cases(shapes: list[tuple[int, int, int, int]], kinds: tuple[str, ...] = KINDS) -> list[Case]:
    """Every kind on every shape."""
    return [Case(kind, *shape) for kind in kinds for shape in shapes]


#: (D, K, G, B) that take next to no time.
QUICK_SHAPES = [(1, 1, 1, 1), (77, 1, 3, 2), (300, 70, 1, 3)]

#: The shapes of the grid, on every backend and device.
SHAPES = [
    *QUICK_SHAPES,
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
CASES = cases(SHAPES)

#: Those a GPU takes besides: every batch tile, several chunks of atoms, more work than a processor does in a test.
GPU_SHAPES = [
    *SHAPES,
    (777, 3000, 3, 2),
    (4097, 2500, 1, 4),
    (5000, 1025, 7, 9),
    (1500, 640, 2, 17),
    (1024, 512, 1, 256),
    (1100, 260, 1, 48),
    (900, 300, 2, 100),
    (45000, 200, 1, 256),
    (20001, 17000, 1, 1),
]

#: A choice of them for Triton on a GPU: every kernel, few of them to compile.
TRITON_SHAPES = [*QUICK_SHAPES, (777, 3000, 3, 2), (5000, 1025, 7, 9), (1500, 640, 2, 17), (17000, 17000, 1, 2)]

#: More than 2^32 entries, for check_planted; and those that only a GPU searches in a test's time.
LARGE_CASES = [Case(kind, 8209, 2**19 + 1001, 1, 3) for kind in ("sign", "hadamard")]
GPU_LARGE_CASES = [
    Case("sign", 36864, 2**20),
    Case("gaussian", 4099, 2**21),
    Case("hadamard", 36864, 2**20),
    Case("sign", 64, 2**32),
    Case("sign", 16384, 2**19, 3),
]


# ---- the reference's answers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """The reference's view of a case, on the device that it was computed on."""

    case: Case
    step: int
    residual: Tensor  # (B, D) float32, image order
    w: Tensor  # (B, D) float32, codebook order
    scores: Tensor  # (B, G, K) float64
    bias: Tensor  # (G, K) float32
    tolerance: Tensor  # (B, G, 1) float64: what a score may be off


def make_answers(case: Case, device: str = "cpu", seed: int = 0, step: int = STEP) -> Answers:
    """Residuals of a case and the reference's scores in double precision."""
    spec = case.spec
    generator = torch.Generator("cpu").manual_seed(case.dim * 31 + case.size + seed)
    residual = torch.randn(case.batch, case.dim, generator=generator).to(device)
    bias = torch.randn(case.groups, case.size, generator=generator).to(device)
    w = reference.to_codebook_order(spec, residual)
    scores = torch.cat([s for _, s in reference._score_chunks(spec, w, step)], dim=-1)
    # Law, section 8: errors of the order of 1e-6 |y| |w|, with |y|^2 about the group's entries.
    length = reference._split_groups(spec, w).norm(dim=-1, keepdim=True)
    tolerance = 2e-6 * (1 + spec.max_group_dim) ** 0.5 * length + 1e-6
    return Answers(case, step, residual, w, scores, bias, tolerance)


@cache
def answers(case: Case) -> Answers:
    """Those of a test, on the CPU, made once."""
    return make_answers(case)


# ---- comparisons of a backend with the answers -----------------------------------------------------------

# Each takes a backend (backends.load), the answers and the device to run on.


def _same(found: Tensor, expected: Tensor) -> bool:
    return torch.equal(found.to(expected.device), expected)


def check_selection(answer: Answers, signed: bool, bias: Tensor | None, found: tuple[Tensor, ...]) -> None:
    """Assert that (index, sign, score), each (B, G, m), are the m best atoms in order, up to rounding."""
    index, sign, score = (t.to(answer.scores.device) for t in found)
    m = index.shape[-1]
    assert index.dtype == torch.int64 and sign.dtype == torch.int8 and score.dtype == torch.float32
    value = answer.scores.abs() if signed else answer.scores
    value = value if bias is None else value + bias.double()
    tolerance = answer.tolerance + (0 if bias is None else 1e-6 * bias.abs().max())
    best = value.topk(m, dim=-1).values
    assert (value.gather(-1, index) - best).abs().le(tolerance).all(), "not the best atoms"
    assert (index.sort(dim=-1).values.diff(dim=-1) > 0).all(), "an atom was returned twice"
    raw = answer.scores.gather(-1, index)
    assert (score - raw * sign).abs().le(tolerance).all(), "wrong score"
    right = torch.where(raw < 0, -1, 1) if signed else torch.ones_like(index)
    assert ((sign == right) | (raw.abs() <= tolerance)).all(), "wrong sign"


def check_rotation(backend: Any, answer: Answers, device: str) -> None:
    """Both ways, to the bit."""
    spec, residual = answer.case.spec, answer.residual.to(device)
    assert _same(backend.to_codebook_order(spec, residual), answer.w), "wrong codebook order"
    z = backend.to_image_order(spec, residual)
    assert _same(z, reference.to_image_order(spec, answer.residual)), "wrong image order"


def check_scores(backend: Any, answer: Answers, device: str) -> None:
    """All scores, within the law's tolerance."""
    found = backend.scores(answer.case.spec, answer.w.to(device), step_tensor(answer.step, device))
    assert found.dtype == torch.float32
    worst = ((found.to(answer.w.device) - answer.scores).abs() / answer.tolerance).max().item()
    assert worst <= 1, f"wrong scores: off by {worst:.3g} times the tolerance"


def _rankings(answer: Answers, device: str) -> list[tuple[bool, Tensor | None, Tensor | None]]:
    """(signed, bias, bias on the device): every way to rank."""
    biases = (None, answer.bias, answer.bias[0].contiguous())
    return [(signed, b, None if b is None else b.to(device)) for signed in (False, True) for b in biases]


def check_search(backend: Any, answer: Answers, device: str) -> None:
    """The best atoms, and the same ones when asked again."""
    spec, w, step = answer.case.spec, answer.w.to(device), step_tensor(answer.step, device)
    for signed, bias, on_device in _rankings(answer, device):
        found = backend.search(spec, w, step, signed, on_device)
        check_selection(answer, signed, bias, tuple(t.unsqueeze(-1) for t in found))
        again = backend.search(spec, w, step, signed, on_device)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), "another result the second time"


def check_topk(backend: Any, answer: Answers, device: str) -> None:
    """One, a few and many of the best atoms."""
    spec, w, step = answer.case.spec, answer.w.to(device), step_tensor(answer.step, device)
    for signed, bias, on_device in _rankings(answer, device):
        for m in {min(m, spec.size) for m in (1, 3, 33, 1024)}:
            check_selection(answer, signed, bias, backend.topk(spec, w, step, m, signed, on_device))


def check_norms(backend: Any, answer: Answers, device: str) -> None:
    """Norms, the scores beside them, and that an atom's norm does not depend on the rows beside which it is made."""
    spec, w, step = answer.case.spec, answer.w.to(device), step_tensor(answer.step, device)
    scores, norms = backend.scores_and_norms(spec, w, step)
    assert torch.equal(scores, backend.scores(spec, w, step)), "other scores beside norms"
    assert norms.shape == (spec.groups, spec.size) and norms.dtype == torch.float32
    expected = reference.norms(spec, answer.step, answer.w.device)
    torch.testing.assert_close(norms.to(answer.w.device), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(backend.scores_and_norms(spec, w[:1], step)[1], norms), "norms depend on the batch"


def check_combine(backend: Any, answer: Answers, device: str) -> None:
    """Sums of one and of three atoms, to the bit, at the last step there is."""
    spec, batch, step = answer.case.spec, min(answer.case.batch, 4), 2**32 - 1
    for m in (1, 3):
        generator = torch.Generator("cpu").manual_seed(m)
        index = torch.randint(0, spec.size, (batch, spec.groups, m), generator=generator)
        coefficient = torch.randn(index.shape, generator=generator)
        index, coefficient = index.to(answer.w.device), coefficient.to(answer.w.device)
        y = backend.combine(spec, index.to(device), coefficient.to(device), step_tensor(step, device))
        assert _same(y, reference.combine(spec, index, coefficient, step)), "wrong sum"


#: The comparisons of the grid by what they compare.
COMPARISONS: dict[str, Callable[[Any, Answers, str], None]] = {
    "rotation": check_rotation,
    "scores": check_scores,
    "search": check_search,
    "topk": check_topk,
    "norms": check_norms,
    "combine": check_combine,
}


#: (D, G, B, bits of a letter, of memory): fewer states than a vector has lanes, as many, more; several rows; threads
#: that share a group's states; more scores than are held at once.
TRELLISES = [
    *[(70, 8, 2, 1, 1), (70, 9, 1, 1, 2), (500, 12, 3, 4, 4), (64, 1, 2, 3, 7), (900, 5, 2, 8, 8)],
    *[(3000, 20, 2, 4, 8), (3000, 6, 1, 5, 11), (600, 7, 1, 2, 16), (2000, 300, 1, 4, 9)],
]


#: Those a GPU takes besides: a launch for each group, and the default preset's letters in several stretches of groups.
GPU_TRELLISES = [*TRELLISES, (40, 3, 1, 5, 16), (3000, 100, 2, 5, 12)]


def check_trellis(backend: Any, kind: str, shape: tuple[int, int, int, int, int], device: str) -> None:
    """The letters of the best path: to the bit those that the reference's algorithm finds by the backend's own scores,
    and the reference's, but where another one's sum is the same within rounding."""
    dim, groups, batch, letter_bits, memory = shape
    case = Case(kind, dim, 1 << (memory + letter_bits - 1), groups, batch)
    answer = make_answers(case, device)
    found = backend.trellis_search(case.spec, answer.w, step_tensor(answer.step, device), letter_bits)
    assert found.shape == (batch, groups) and found.dtype == torch.int64 and found.device == answer.w.device
    own = backend.scores(case.spec, answer.w, step_tensor(answer.step, device)).to("cpu")
    assert _same(found, reference.best_path(own, letter_bits)), "not the best path by its own scores"
    best = reference.best_path(answer.scores, letter_bits)
    sums = [_path_sum(answer.scores, letters, letter_bits, memory) for letters in (found, best)]
    assert ((sums[0] - sums[1]).abs() <= answer.tolerance.sum(1)[:, 0]).all(), "not the best path"
    bad = answer.w.clone()
    bad[-1, dim // 2] = math.nan
    letters = backend.trellis_search(case.spec, bad, step_tensor(answer.step, device), letter_bits)
    assert (letters[-1] == -1).any() and torch.equal(letters[:-1], found[:-1]), "letters of a NaN"


def _path_sum(scores: Tensor, letters: Tensor, letter_bits: int, memory: int) -> Tensor:
    """The sum of a path's scores (B,), walked as the definition says."""
    state = torch.zeros_like(letters[:, 0])
    total = torch.zeros_like(scores[:, 0, 0])
    for g in range(letters.shape[1]):
        letter = letters[:, g]
        assert ((letter >= 0) & (letter < 1 << letter_bits)).all(), "no letter"
        atom = (state << (letter_bits - 1)) + (letter >> 1)
        total += scores[:, g].gather(-1, atom[:, None])[:, 0] * (1 - 2 * (letter & 1))
        state = ((state << letter_bits) | letter) & ((1 << memory) - 1)
    return total


# ---- comparisons that need no answers --------------------------------------------------------------------


def check_planted(backend: Any, case: Case, device: str) -> None:
    """Residuals that are atoms near the end of a large codebook, negated, in noise: a search finds them."""
    spec, step = case.spec, 5
    picks = torch.tensor([spec.size - 1, spec.size - 5, spec.size // 2 - 1], device=device)[: case.batch]
    index = picks[:, None].repeat(1, spec.groups)
    one = torch.ones(case.batch, spec.groups, 1, device=device)
    y = reference.combine(spec, index.unsqueeze(-1), one, step)
    w = -y if spec.dim <= 64 else -y + 0.5 * torch.randn_like(y)
    found, sign, score = backend.search(spec, w, step_tensor(step, device), True, None)
    assert torch.equal(found, index), f"{found.tolist()} instead of {index.tolist()}"
    assert (sign == -1).all(), "wrong sign"
    exact = -(y.double() * w.double()).sum(dim=-1)
    tolerance = 1e-6 * spec.dim**0.5 * w.double().norm(dim=-1)
    assert ((score.double().sum(dim=-1) - exact).abs() <= tolerance).all(), "wrong score"


def check_not_finite(backend: Any, kind: str, device: str) -> None:
    """A NaN or infinite row gets index -1 and a NaN score; the other rows do not notice."""
    spec, step = CodebookSpec(kind, 500, 90, 2, SEED), step_tensor(3, device)
    r = torch.randn(3, 500, device=device)
    clean = backend.search(spec, backend.to_codebook_order(spec, r), step, True, None)
    for bad in (float("nan"), float("inf")):
        r[1, 7] = bad
        w = backend.to_codebook_order(spec, r)
        index, _, _ = backend.search(spec, w, step, True, None)
        top, _, _ = backend.topk(spec, w, step, 3, True, None)
        assert (index[1] == -1).any() and (top[1] == -1).any(), f"{bad} has an index"
        assert torch.equal(index[::2], clean[0][::2]), f"another row's index beside {bad}"


def check_codebook(name: str, kind: str, device: str) -> None:
    """The public face: strided double input, integer and tensor steps, atoms identical to the reference's."""
    fast = Codebook(kind, 300, 99, groups=3, seed=1, backend=name)
    slow = Codebook(kind, 300, 99, groups=3, seed=1, backend="reference")
    r = torch.randn(2, 300, 2, device=device)[..., 0].double()
    index, sign, score = fast.search(r, 4)
    _, _, expected = slow.search(r, step_tensor(4, device))
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-8)
    assert torch.equal(fast.atoms(index, 4, sign), slow.atoms(index, 4, sign)), "other atoms"
