"""The reference backend: the noise law in plain torch, exact and readable (docs/noise-law.md).

It runs on any device and is the twin that every fast backend is tested against. Random bits are int64
tensors holding 32 bit words; scores are accumulated in float64. Memory is bounded by chunking over
atoms, never K x D. Residuals `w` and sums `y` are in codebook order, (B, D) float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ddcm_fast.codebook.law import (
    GAUSSIAN_SCALE,
    GAUSSIANS_PER_CALL,
    SIGNS_PER_CALL,
    STREAM_GAUSSIAN,
    STREAM_INITIAL,
    STREAM_INNER,
    STREAM_OUTER,
    STREAM_ROTATION,
    STREAM_SIGN,
    CodebookSpec,
    gaussian_table,
)
from ddcm_fast.errors import InputError

_MASK = 0xFFFFFFFF
_CHUNK_ENTRIES = 1 << 20  # entries generated at once: about 64 MB of int64 temporaries at the peak


# ---- base randomness -----------------------------------------------------------------------------


def _mul32(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of the 64 bit product of a 32 bit constant and int64-held words."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF


def philox(seed: int, block: Tensor, atom: Tensor, step: int, stream: int) -> Tensor:
    """Philox4x32-10 (Salmon et al., SC 2011): int64 counters (...) -> words (..., 4) int64."""
    block, atom = torch.broadcast_tensors(block, atom)
    c0, c1 = block, atom
    c2, c3 = torch.full_like(c0, step), torch.full_like(c0, stream)
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(10):
        high0, low0 = _mul32(0xD2511F53, c0)
        high1, low1 = _mul32(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _signs(words: Tensor) -> Tensor:
    """Words (..., calls, 4) -> signs (..., calls * 128) float32: +1 for bit 0, -1 for bit 1."""
    shift = torch.arange(32, device=words.device, dtype=torch.int64)
    bits = (words.unsqueeze(-1) >> shift) & 1
    return (1 - 2 * bits).flatten(-3).float()


def _gaussians(words: Tensor) -> Tensor:
    """Words (..., calls, 4) -> grid Gaussians (..., calls * 8) float32."""
    half = torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten(-3)
    table = gaussian_table().to(words.device, torch.float32)
    magnitude = table[half & 0x7FFF] * GAUSSIAN_SCALE
    return torch.where((half & 0x8000).bool() & (magnitude != 0), -magnitude, magnitude)


def initial_noise(dim: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """x_T: (dim,) float32 standard normal on the grid of the gaussian kind (section 7)."""
    out = torch.empty(-(-dim // GAUSSIANS_PER_CALL), GAUSSIANS_PER_CALL, device=device, dtype=torch.float32)
    chunk = _CHUNK_ENTRIES // GAUSSIANS_PER_CALL
    for first in range(0, len(out), chunk):
        calls = torch.arange(first, min(first + chunk, len(out)), device=device, dtype=torch.int64)
        noise = _gaussians(philox(seed, calls, torch.zeros_like(calls), 0, STREAM_INITIAL))
        out[first : first + chunk] = noise.view(-1, GAUSSIANS_PER_CALL)
    return out.flatten()[:dim]


# ---- transforms ----------------------------------------------------------------------------------


def hadamard_transform(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of the last axis (length a power of 4), out of place.

    The stages run in the law's order h = 1, 2, 4, ...: float sums are then the same everywhere.
    """
    n = x.shape[-1]
    shape = x.shape
    h = 1
    while h < n:
        pair = x.reshape(*shape[:-1], n // (2 * h), 2, h)
        a, b = pair[..., 0, :], pair[..., 1, :]
        x = torch.stack((a + b, a - b), dim=-2)
        h *= 2
    return x.reshape(shape) * n**-0.5


def _image_position(spec: CodebookSpec, device: torch.device) -> Tensor:
    return torch.arange(spec.dim, device=device, dtype=torch.int64) * spec.stride % spec.dim


def _flips(spec: CodebookSpec, device: torch.device) -> Tensor:
    calls = torch.arange(-(-spec.dim // SIGNS_PER_CALL), device=device, dtype=torch.int64)
    words = philox(spec.seed, calls, torch.zeros_like(calls), 0, STREAM_ROTATION)
    return _signs(words)[: spec.dim]


def to_codebook_order(spec: CodebookSpec, residual: Tensor) -> Tensor:
    """R^T r: residual (B, D) float32 in image order -> w (B, D) float32 in codebook order."""
    w = residual[:, _image_position(spec, residual.device)]
    if not spec.rotated:
        return w
    w = w * _flips(spec, w.device)
    b, full = spec.rotation_block, spec.dim // spec.rotation_block * spec.rotation_block
    if full < spec.dim:
        w[:, -b:] = hadamard_transform(w[:, -b:])
    w[:, :full] = hadamard_transform(w[:, :full].reshape(len(w), -1, b)).flatten(1)
    return w


def to_image_order(spec: CodebookSpec, y: Tensor) -> Tensor:
    """z = R y: (B, D) float32 in codebook order -> (B, D) float32 in image order."""
    if spec.rotated:
        b, full = spec.rotation_block, spec.dim // spec.rotation_block * spec.rotation_block
        u = y.clone()
        u[:, :full] = hadamard_transform(y[:, :full].reshape(len(y), -1, b)).flatten(1)
        if full < spec.dim:
            u[:, -b:] = hadamard_transform(u[:, -b:])
        y = u * _flips(spec, y.device)
    z = torch.empty_like(y)
    z[:, _image_position(spec, y.device)] = y
    return z


#: Exponent fields of float32 between which a row's largest magnitude lies for sums of any codebook's products to stay
#: well inside the type: 2^-60 to 2^61.
LOWEST, HIGHEST = 67, 187


@lru_cache(maxsize=16)
def _powers(device: torch.device) -> Tensor:
    """(256, 2) float32: for each exponent field the power of two that brings it into range, and its inverse."""
    exponent = torch.arange(256, dtype=torch.int32, device=device)
    shift = exponent.clamp(LOWEST, HIGHEST) - exponent
    return (torch.stack((127 + shift, 127 - shift), dim=1) << 23).view(torch.float32)


def enter(
    rotate: Callable[[CodebookSpec, Tensor], Tensor], spec: CodebookSpec, residual: Tensor, together: bool
) -> tuple[Tensor, Tensor | None]:
    """R^T of a residual (B, D) whose rows were brought into range: (w, unit), unit (B, 1) float32 or None for ones.

    A row whose largest magnitude is outside 2^-60 to 2^61 is multiplied by a power of two that puts it at the
    nearer end (a denormal one: at 2^-82 or more), so that no sum overflows and no product is lost; `unit` is the
    inverse. Together, all rows get the power that suits the largest entry of all.

    Raises InputError for NaN or infinite entries on a CPU. Elsewhere the numbers are not waited for: unit is never
    None, and NaN and infinities stay what they are.
    """
    peak = torch.linalg.vector_norm(residual, math.inf, dim=(0, 1) if together else 1, keepdim=True)
    bits = peak.view(torch.int32) & 0x7FFFFFFF
    if residual.device.type == "cpu":
        if int(bits.max()) >= 255 << 23:
            raise InputError("the residual has NaN or infinite entries")
        if not bool(((bits > 0) & ((bits < LOWEST << 23) | (bits >= HIGHEST + 1 << 23))).any()):
            return rotate(spec, residual), None
    scale, unit = _powers(residual.device)[bits.long() >> 23].unbind(-1)
    return rotate(spec, residual * scale), unit.expand(len(residual), 1)


# ---- entries -------------------------------------------------------------------------------------


def _group_calls(spec: CodebookSpec, device: torch.device) -> Tensor:
    """Philox block numbers (G, calls_per_group) int64."""
    calls = torch.arange(spec.groups * spec.calls_per_group, device=device, dtype=torch.int64)
    return calls.view(spec.groups, spec.calls_per_group)


def _sub_block_signs(spec: CodebookSpec, pair: Tensor, step: int, stream: int) -> Tensor:
    """Signs e or d of `hadamard` pairs (..., G) int64 -> (..., G, sub_blocks, n) float32."""
    calls = _group_calls(spec, pair.device)
    signs = _signs(philox(spec.seed, calls, pair.unsqueeze(-1), step, stream))
    # A sub-block of 64 uses the first half of its Philox call.
    return signs.unflatten(-1, (spec.sub_blocks, -1))[..., : spec.hadamard_n]


def entries(spec: CodebookSpec, atom: Tensor, step: int) -> Tensor:
    """Entries in codebook order of atoms (..., G) int64 -> (..., G, dmax) float32.

    Entry i of a group smaller than dmax = ceil(D / G) is past the group's end for i >= its size.
    """
    if spec.kind == "hadamard":
        n = spec.hadamard_n
        pair, row = atom // n, atom % n
        spectrum = hadamard_transform(_sub_block_signs(spec, pair, step, STREAM_INNER))
        outer = _sub_block_signs(spec, pair, step, STREAM_OUTER)
        shifted = torch.arange(n, device=atom.device, dtype=torch.int64) ^ row[..., None, None]
        y = outer * spectrum.gather(-1, shifted.expand_as(spectrum))
        return y.flatten(-2)[..., : spec.max_group_dim]
    calls = _group_calls(spec, atom.device)
    stream = STREAM_SIGN if spec.kind == "sign" else STREAM_GAUSSIAN
    words = philox(spec.seed, calls, atom.unsqueeze(-1), step, stream)
    make = _signs if spec.kind == "sign" else _gaussians
    return make(words)[..., : spec.max_group_dim]


def _split_groups(spec: CodebookSpec, w: Tensor) -> Tensor:
    """(B, D) -> (B, G, dmax) float64, groups shorter than dmax filled up with zeros."""
    out = w.new_zeros(len(w), spec.groups, spec.max_group_dim, dtype=torch.float64)
    for g in range(spec.groups):
        part = w[:, spec.group_start(g) : spec.group_start(g + 1)]
        out[:, g, : part.shape[1]] = part
    return out


def _join_groups(spec: CodebookSpec, y: Tensor) -> Tensor:
    """(B, G, dmax) -> (B, D), the inverse of _split_groups."""
    starts = [spec.group_start(g) for g in range(spec.groups + 1)]
    parts = [y[:, g, : starts[g + 1] - starts[g]] for g in range(spec.groups)]
    return torch.cat(parts, dim=1)


# ---- operations ----------------------------------------------------------------------------------


def _entry_chunks(
    spec: CodebookSpec, step: int, device: torch.device | str, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first atom, entries (chunk, G, dmax) float64) of the atoms start .. stop - 1, in atom order."""
    chunk, stop = max(1, _CHUNK_ENTRIES // (spec.groups * spec.max_group_dim)), spec.size if stop is None else stop
    for first in range(start, stop, chunk):
        atom = torch.arange(first, min(first + chunk, stop), device=device, dtype=torch.int64)
        yield first, entries(spec, atom.view(-1, 1).expand(-1, spec.groups), step).double()


def _score_chunks(
    spec: CodebookSpec, w: Tensor, step: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first atom, scores (B, G, chunk) float64) of the atoms start .. stop - 1, in atom order.

    start is a multiple of spec.atoms_made_together.
    """
    groups, stop = _split_groups(spec, w), spec.size if stop is None else stop
    if spec.kind == "hadamard":
        n = spec.hadamard_n
        padded = torch.nn.functional.pad(groups, (0, spec.sub_blocks * n - groups.shape[-1]))
        blocks = padded.unflatten(-1, (spec.sub_blocks, n))
        pairs = -(-stop // n)
        chunk = max(1, _CHUNK_ENTRIES // (spec.groups * spec.sub_blocks * n * len(w)))
        for first in range(start // n, pairs, chunk):
            pair = torch.arange(first, min(first + chunk, pairs), device=w.device, dtype=torch.int64)
            pair = pair.view(-1, 1).expand(-1, spec.groups)
            inner = _sub_block_signs(spec, pair, step, STREAM_INNER)
            outer = _sub_block_signs(spec, pair, step, STREAM_OUTER)
            mixed = inner * hadamard_transform(outer * blocks.unsqueeze(1))  # (B, pair, G, ns, n)
            scores = hadamard_transform(mixed.sum(-2)) * n**0.5
            scores = scores.transpose(1, 2).flatten(2)
            yield first * n, scores[..., : stop - first * n]
        return
    for first, y in _entry_chunks(spec, step, w.device, start, stop):
        yield first, torch.einsum("kgi,bgi->bgk", y, groups)


def scores(spec: CodebookSpec, w: Tensor, step: int, first: int = 0, last: int | None = None) -> Tensor:
    """Scores <y_k, w> of each group, of the atoms first .. last - 1 (all): (B, D) -> (B, G, last - first) float32.

    first is a multiple of spec.atoms_made_together.
    """
    return torch.cat([s.float() for _, s in _score_chunks(spec, w, step, first, last)], dim=-1)


def topk(
    spec: CodebookSpec, w: Tensor, step: int, m: int, signed: bool, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The m best atoms of each group, best first; equal values in the order of their index.

    w (B, D) float32, bias (K,) or (G, K) float32 or None. Returns index (B, G, m) int64,
    sign (B, G, m) int8 and score (B, G, m) float32 = sign * <y_k, w> (without the bias).
    """
    shape = (len(w), spec.groups, 0)
    value = w.new_empty(shape, dtype=torch.float64)
    raw = w.new_empty(shape, dtype=torch.float64)
    index = w.new_empty(shape, dtype=torch.int64)
    for first, s in _score_chunks(spec, w, step):
        v = s.abs() if signed else s
        if bias is not None:
            v = v + bias[..., first : first + s.shape[-1]].double()
        k = torch.arange(first, first + s.shape[-1], device=w.device, dtype=torch.int64).expand_as(s)
        value = torch.cat((value, v), dim=-1)
        # Stable: candidates stand in the order of their index, so ties keep the lower one first.
        order = value.argsort(dim=-1, descending=True, stable=True)[..., :m]
        value = value.gather(-1, order)
        raw = torch.cat((raw, s), dim=-1).gather(-1, order)
        index = torch.cat((index, k), dim=-1).gather(-1, order)
    sign = torch.where(raw < 0, -1, 1) if signed else torch.ones_like(index)
    return index, sign.to(torch.int8), (raw * sign).float()


def search(
    spec: CodebookSpec, w: Tensor, step: int, signed: bool, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The best atom of each group: index (B, G) int64, sign (B, G) int8, score (B, G) float32."""
    index, sign, score = topk(spec, w, step, 1, signed, bias)
    return index[..., 0], sign[..., 0], score[..., 0]


def best_path(scores: Tensor, letter_bits: int) -> Tensor:
    """The path through a trellis with the largest sum of scores, by the Viterbi algorithm.

    A path has a letter of `letter_bits` bits a group. The state before a group is the last `memory` bits of the letters
    before it, 0 at the start; the letter adds the score of atom state * 2^(letter_bits - 1) + letter // 2, with the
    sign - if it is odd.

    scores (B, G, K) floating point, K = 2^(memory + letter_bits - 1). Returns letters (B, G) int64, -1 where the sum is
    not finite. Of equal paths into a state the one whose forgotten letter is lower.
    """
    batch, groups, size = scores.shape
    # A state is (high, low), high the letter that the next state forgets; the last axis is a letter without sign.
    high = 1 << letter_bits
    scores = scores.view(batch, groups, high, size >> (2 * letter_bits - 1), high // 2)
    metric = scores.new_full((batch, high, scores.shape[3], 1), -math.inf)
    metric[:, 0, 0] = 0
    metrics = [metric]  # of the best path to each state, before each group
    for g in range(groups):
        plus = (metric + scores[:, g]).amax(1)
        minus = (metric - scores[:, g]).amax(1)
        metric = torch.stack((plus, minus), -1).view_as(metric)  # (low, letter) is the new state
        metrics.append(metric)
    # Backwards. Finding the predecessors on one path again is cheaper than storing everyone's.
    rows = torch.arange(batch, device=scores.device, dtype=torch.int64)
    best, state = metrics[-1].flatten(1).max(1)
    letters = []
    for g in range(groups - 1, -1, -1):
        letter, low = state & (high - 1), state >> letter_bits
        sign = (1 - 2 * (letter & 1))[:, None]
        paths = metrics[g][rows, :, low, 0] + sign * scores[rows, g, :, low, letter >> 1]
        state = paths.argmax(1) * scores.shape[3] + low
        letters.append(letter)
    return torch.where(best.isfinite()[:, None], torch.stack(letters[::-1], dim=1), -1)


def trellis_search(spec: CodebookSpec, w: Tensor, step: int, letter_bits: int) -> Tensor:
    """`best_path` of the scores of w (B, D): letters (B, G) int64."""
    return best_path(torch.cat([s for _, s in _score_chunks(spec, w, step)], dim=-1), letter_bits)


def norms(spec: CodebookSpec, step: int, device: torch.device | str = "cpu") -> Tensor:
    """Squared norm of every atom of each group: (G, K) float32."""
    lengths = [spec.group_start(g + 1) - spec.group_start(g) for g in range(spec.groups)]
    dims = torch.tensor(lengths, dtype=torch.int64, device="cpu")
    exact = spec.kind == "sign" or (
        spec.kind == "hadamard" and bool((dims % spec.hadamard_n == 0).all())
    )
    if exact:  # signs, or whole rows of orthogonal matrices: every norm is the group's size
        return dims.to(device, torch.float32).view(-1, 1).repeat(1, spec.size)
    inside = _split_groups(spec, torch.ones(1, spec.dim, device=device, dtype=torch.float32))[0]
    parts = [(y * y * inside).sum(-1).T.float() for _, y in _entry_chunks(spec, step, device)]
    return torch.cat(parts, dim=-1)


def scores_and_norms(spec: CodebookSpec, w: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """`scores` (B, G, K) and `norms` (G, K), float32; `gaussian` entries are made once for both."""
    if spec.kind != "gaussian":
        return scores(spec, w, step), norms(spec, step, w.device)
    groups = _split_groups(spec, w)
    inside = _split_groups(spec, torch.ones_like(w[:1]))[0]
    products, squares = [], []
    for _, y in _entry_chunks(spec, step, w.device):
        products.append(torch.einsum("kgi,bgi->bgk", y, groups).float())
        squares.append((y * y * inside).sum(-1).T.float())
    return torch.cat(products, dim=-1), torch.cat(squares, dim=-1)


def combine(spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: int) -> Tensor:
    """Weighted sums of atoms (section 6), in codebook order.

    index (B, G, M) int64, coefficient (B, G, M) float32 -> y (B, D) float32.
    """
    batch, groups, m = index.shape
    y = torch.zeros(batch, groups, spec.max_group_dim, device=index.device, dtype=torch.float32)
    for b in range(batch):
        for j in range(m):
            y[b] = y[b] + coefficient[b, :, j, None] * entries(spec, index[b, :, j], step)
    return _join_groups(spec, y)
