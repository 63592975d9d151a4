"""The best path through a trellis: the Viterbi algorithm on scores that are there, and the way back.

A state is (high, low): `high` the letter of LETTER_BITS bits that the next state forgets. States come in pairs, 2 j and
2 j + 1, whose last letters differ in the sign of the same atom: pair j follows from the states (high, j's upper bits)
of every `high`, by the scores of the atoms high * pairs + j.

A step moves a state's bits up by a letter, and bits that are not moved out stay what they are. So 2^r programs, each
with all states that have its number as some r of their bits, need nothing from each other for as many steps as letters
fit into the MEMORY - r bits beside them: a launch takes that many groups, and no barrier of all programs is needed.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from ddcm_fast.kernels.launch import launch
from ddcm_fast.kernels.residual import Residual
from torch import Tensor

from ddcm_fast.codebook.law import CodebookSpec

#: Scores that are held at once, 16 MB, unless a group of one image has more.
SCORES = 1 << 22

#: Bytes that are held for the way back, unless one image has more.
ORIGINS = 1 << 26

#: log2 of the scores of a group that a program takes at once, 32 for each of its 512 threads.
_TILE_BITS = 14


@triton.jit
def insert(i, place, part, PART_BITS: tl.constexpr):
    """i with the PART_BITS bits of part put in at a place (below 32 unless none are): what is above moves up."""
    return i if PART_BITS == 0 else (i >> place << (place + PART_BITS)) | (part << place) | (i & ((1 << place) - 1))


@triton.jit(do_not_specialize=[
    "num_images", "num_groups", "first_group", "num_held", "begin", "num_steps", "source",
])  # fmt: skip
def path_kernel(
    score_ptr, sum_ptr, origin_ptr,
    num_images, num_groups, first_group, num_held, begin, num_steps, source,
    LETTER_BITS: tl.constexpr, MEMORY: tl.constexpr, PART_BITS: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Extend the best paths by num_steps groups, from group first_group + begin on.

    score (B, num_held, K) float32, of the groups from first_group on; sum (3, B, states) float32, -inf for states that
    no path leads to. sum[source] has the best paths before the first group; after the last, sum[source + 1] has them,
    or sum[source + 2] if num_steps is even, both modulo 3. origin (B, G, states / 2) int16: the `high` of state 2 j in
    the low byte, of 2 j + 1 in the high one. Of equal paths the one whose `high` is lower stays. Sums are single
    float32 additions.

    One program an image and part, the states that have its number at some PART_BITS bits. num_steps letters fit into
    the others, or PART_BITS is 0. The number's bits begin `place` bits from a state's end before the first group. Where
    they come last in order, on top, a part's sums lie together and are read by nobody else: only those of sum[source]
    are read from among the others'.

    Traffic: 4 bytes read a score, out of the second level cache, and a byte written a state and group. Bound: latency,
    of the loads of a group after those of the one before. Source: Viterbi 1967; docs/codec.md for the trellis.
    """
    STATES: tl.constexpr = 1 << MEMORY
    OWN_BITS: tl.constexpr = MEMORY - PART_BITS
    pid = tl.program_id(0)
    part, row = pid & ((1 << PART_BITS) - 1), (pid >> PART_BITS).to(tl.int64)
    place = tl.maximum(OWN_BITS - num_steps * LETTER_BITS, 0)
    high = tl.arange(0, 1 << LETTER_BITS)[:, None]
    origin_ptr += (row * num_groups + first_group + begin) * (STATES // 2)
    score_ptr += (row * num_held + begin) * (STATES << (LETTER_BITS - 1))
    before = sum_ptr + (source * num_images.to(tl.int64) + row) * STATES
    for step in range(num_steps):
        into = (source + 1 + step % 2) % 3
        after = sum_ptr + (into * num_images.to(tl.int64) + row) * STATES + (part << OWN_BITS)
        before_place = tl.where(step == 0, place, OWN_BITS)
        after_place = place + (step + 1) * LETTER_BITS
        for start in range(0, 1 << (OWN_BITS - 1), BLOCK_J):
            j = start + tl.arange(0, BLOCK_J)
            pair = insert(j, after_place - 1, part, PART_BITS)
            state = high * (1 << (OWN_BITS - LETTER_BITS)) + (j >> (LETTER_BITS - 1))[None, :]
            path = tl.load(before + insert(state, before_place, part, PART_BITS))
            score = tl.load(score_ptr + high * (STATES // 2) + pair[None, :])
            plus, plus_origin = tl.max(path + score, axis=0, return_indices=True)
            minus, minus_origin = tl.max(path - score, axis=0, return_indices=True)
            tl.store(after + 2 * j[:, None] + tl.arange(0, 2)[None, :], tl.join(plus, minus))
            tl.store(origin_ptr + pair, (plus_origin | (minus_origin << 8)).to(tl.int16))
        tl.debug_barrier()  # the next group's paths begin with the sums of other threads
        before = sum_ptr + (into * num_images.to(tl.int64) + row) * STATES
        origin_ptr += STATES // 2
        score_ptr += STATES << (LETTER_BITS - 1)


@triton.jit(do_not_specialize=["num_groups"])
def trace_kernel(
    sum_ptr, origin_ptr, peak_ptr, letter_ptr,
    num_groups,
    LETTER_BITS: tl.constexpr, MEMORY: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """letter (B, G) int64 of the best path, backwards from the state with the largest sum, the lower of equals.

    sum (B, states) float32, origin (B, G, states) uint8: of path_kernel. Letters of an image whose largest sum or peak
    (B,) is not finite are -1. One program an image.

    Traffic: 4 bytes read a state, a byte read and 8 written a group. Bound: latency, of a load after another. Source:
    Viterbi 1967.
    """
    row = tl.program_id(0).to(tl.int64)
    best = tl.full((), float("-inf"), tl.float32)
    state = tl.zeros((), tl.int32)
    for start in range(0, 1 << MEMORY, BLOCK_S):
        sums = tl.load(sum_ptr + (row << MEMORY) + start + tl.arange(0, BLOCK_S))
        top, at = tl.max(sums, axis=0, return_indices=True)
        state = tl.where(top > best, start + at, state)
        best = tl.where(top > best, top, best)
    finite = (tl.load(peak_ptr + row) < float("inf")) & (tl.abs(best) < float("inf"))  # False for NaN too
    for i in range(num_groups):
        group = row * num_groups + (num_groups - 1 - i)
        letter = tl.where(finite, state & ((1 << LETTER_BITS) - 1), -1)
        tl.store(letter_ptr + group, letter.to(tl.int64))
        high = tl.load(origin_ptr + (group << MEMORY) + state).to(tl.int32)
        state = (high << (MEMORY - LETTER_BITS)) | (state >> LETTER_BITS)


def images_at_once(spec: CodebookSpec, letter_bits: int) -> int:
    """Images that what is held has a group's scores and all origins of."""
    states = spec.size >> (letter_bits - 1)
    return max(1, min(SCORES // spec.size, ORIGINS // (spec.groups * states)))


def best_paths(residual: Residual, peak: Tensor, step: Tensor, letter_bits: int) -> Tensor:
    """Letters (B, G) int64 of residuals' best paths; see ddcm_fast.codebook.reference.best_path.

    peak (B,) float32: their largest magnitudes, by which letters are -1. Scores are made and used up a stretch of
    neighbouring groups after another.
    """
    spec, batch = residual.spec, residual.batch
    memory = spec.size.bit_length() - letter_bits
    sums = peak.new_full((3, batch, 1 << memory), -math.inf)
    sums[0, :, 0].zero_()
    origins = torch.empty(batch, spec.groups, 1 << memory, dtype=torch.uint8, device=peak.device)
    held = max(1, SCORES // (batch * spec.size))
    source = 0
    for first in range(0, spec.groups, held):
        scores = peak.new_empty(batch, min(held, spec.groups - first), spec.size)
        residual.scores(step, 0, spec.size, scores, first_group=first)
        source = _extend(scores, sums, origins, first, source, letter_bits)
        del scores  # before the next are made
    letters = torch.empty(batch, spec.groups, dtype=torch.int64, device=peak.device)
    launch(trace_kernel, batch, sums[source], origins, peak, letters, spec.groups, LETTER_BITS=letter_bits,
           MEMORY=memory, BLOCK_S=min(1 << memory, 2048))  # fmt: skip
    return letters


def _extend(scores: Tensor, sums: Tensor, origins: Tensor, first: int, source: int, letter_bits: int) -> int:
    """Extend the paths by the groups whose scores (B, groups, K) are there; which of the three sums has them then."""
    batch, count, size = scores.shape
    memory = size.bit_length() - letter_bits
    part_bits = min(max(0, size.bit_length() - 1 - _TILE_BITS), memory - letter_bits)
    own_scores = size >> part_bits
    at_once = (memory - part_bits) // letter_bits if part_bits else count
    # With letters of eight bits a whole tile would spill.
    block = min(own_scores, 1 << (_TILE_BITS - letter_bits // 8)) >> letter_bits
    for begin in range(0, count, at_once):
        steps = min(at_once, count - begin)
        # No stage of a pipeline may load sums before the barrier.
        launch(path_kernel, batch << part_bits, scores, sums, origins.view(torch.int16), batch, origins.shape[1], first,
               count, begin, steps, source, LETTER_BITS=letter_bits, MEMORY=memory, PART_BITS=part_bits,
               BLOCK_J=block, num_warps=max(1, min(16, (block << letter_bits) // 256)), num_stages=1)  # fmt: skip
        source = (source + (1 if steps % 2 else 2)) % 3
    return source
