// The block Hadamard rotation with flips and the interleaving permutation (section 5), bit for bit.

#pragma once

#include "block.h"

namespace ddcm {

// What brings rows into range on their way to codebook order, by the rule of ddcm_fast.codebook.reference.enter: a power of two
// by a row's largest magnitude peaks[row * stride]. Its inverse goes to unit[row]. Without peaks, rows stay as they are.
struct Entering {
  const float* peaks;
  int64_t stride;
  float* unit;

  static constexpr int kLowest = 67, kHighest = 187;  // exponent fields

  DDCM_FN float scale(int64_t row) const { return peaks == nullptr ? 1.0f : power(shift(row)); }

  template <class Block>
  DDCM_FN void write_unit(Block& block, int64_t row) const {
    if (peaks == nullptr) return;
    block.each([&](int thread, auto&) {
      if (thread == 0) unit[row] = power(-shift(row));
    });
  }

 private:
  DDCM_FN int shift(int64_t row) const {
    const int exponent = static_cast<int>(float_bits(peaks[row * stride]) >> 23 & 255u);
    return (exponent < kLowest ? kLowest : exponent > kHighest ? kHighest : exponent) - exponent;
  }

  static DDCM_FN float power(int exponent) { return bits_float(static_cast<uint32_t>(127 + exponent) << 23); }
};

// inverse = 0: z -> R^T z (to codebook order); inverse = 1: y -> R y (to image order). Both (B, D).
// Grid: (full blocks, B). The last full block also does the overlapping block of the last b entries, in the law's
// order: after the full blocks on the way to image order, before them on the way back.
struct RotateKernel {
  static constexpr int kThreads = 512, kMinBlocks = 2;
  struct State {};

  Geometry geometry;
  const float* in;
  float* out;
  int64_t blocks;  // D / b
  int32_t inverse, reserved;
  Entering entering;

  static constexpr int kFlipWords = kMaxRotationBlock / 32 + 8;
  int64_t shared_bytes() const { return 2 * (int64_t{geometry.rotation_block} * 4 + kFlipWords * 4); }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int b = geometry.rotation_block;
    const int64_t m = block.index() % blocks, row = block.index() / blocks;
    const float* from = in + row * geometry.dim;
    float* to = out + row * geometry.dim;
    const int64_t full = geometry.rotation_full(), tail = geometry.dim - b;
    const bool with_tail = m == blocks - 1 && full < geometry.dim;
    float* x = reinterpret_cast<float*>(block.shared());
    float* last = x + b;
    uint32_t* flips = reinterpret_cast<uint32_t*>(last + b);
    const int64_t start = m * b;

    if (!inverse) {
      const float scale = entering.scale(row);
      if (m == 0) entering.write_unit(block, row);
      if (with_tail) {
        make_flips(block, flips, tail);
        block.sync();
        gather(block, from, scale, last, flips, tail, b);
        block.sync();
        transform(block, last, b);
      }
      make_flips(block, flips, start);
      block.sync();
      gather(block, from, scale, x, flips, start, b);
      block.sync();
      if (with_tail) {
        block.each([&](int thread, State&) {
          for (int i = thread; i < b; i += kThreads) {
            const int64_t at = tail + i;
            if (at < full) {
              x[at - start] = last[i];
            } else {
              to[at] = last[i];
            }
          }
        });
        block.sync();
      }
      transform(block, x, b);
      block.each([&](int thread, State&) {
        for (int i = thread; i < b; i += kThreads) to[start + i] = x[i];
      });
      return;
    }
    block.each([&](int thread, State&) {
      for (int i = thread; i < b; i += kThreads) x[i] = from[start + i];
    });
    block.sync();
    transform(block, x, b);
    make_flips(block, flips, start);
    block.sync();
    scatter(block, to, x, flips, start, with_tail ? tail - start : b);
    if (!with_tail) return;
    block.sync();
    make_flips(block, flips, tail);
    block.each([&](int thread, State&) {
      for (int i = thread; i < b; i += kThreads) {
        last[i] = tail + i < full ? x[tail + i - start] : from[tail + i];
      }
    });
    block.sync();
    transform(block, last, b);
    scatter(block, to, last, flips, tail, b);
  }

  // Words of the flips of coordinates start .. start + b - 1; flips[0] is the word of the call that holds start.
  template <class Block>
  DDCM_FN void make_flips(Block& block, uint32_t* flips, int64_t start) const {
    const int64_t first = start / kSignsPerCall;
    const int64_t calls = (start + geometry.rotation_block - 1) / kSignsPerCall - first + 1;
    block.each([&](int thread, State&) {
      for (int64_t call = thread; call < calls; call += kThreads) {
        const Words w = rotation_words(geometry.key(), (first + call) * kSignsPerCall);
        for (int q = 0; q < 4; ++q) flips[call * 4 + q] = w.w[q];
      }
    });
  }

  static DDCM_FN float flipped(float x, const uint32_t* flips, int64_t start, int i) {
    const int bit = static_cast<int>(start % kSignsPerCall) + i;
    return bits_float(float_bits(x) ^ (flips[bit / 32] << (31 - bit % 32) & 0x80000000u));
  }

  // f(i) visits (i, pi(start + i)) of this thread's share of count coordinates: one division, then steps.
  template <class F>
  DDCM_FN void visit(int thread, int64_t start, int64_t count, F f) const {
    const int64_t stride = geometry.stride * kThreads % geometry.dim;
    int64_t position = geometry.image_position(start + thread);
    for (int64_t i = thread; i < count; i += kThreads) {
      f(static_cast<int>(i), position);
      position += stride;
      if (position >= geometry.dim) position -= geometry.dim;
    }
  }

  template <class Block>
  DDCM_FN void gather(Block& block, const float* from, float scale, float* x, const uint32_t* flips, int64_t start,
                      int64_t count) const {
    block.each([&](int thread, State&) {
      visit(thread, start, count, [&](int i, int64_t position) {
        x[i] = flipped(multiply(from[position], scale), flips, start, i);
      });
    });
  }

  template <class Block>
  DDCM_FN void scatter(Block& block, float* to, const float* x, const uint32_t* flips, int64_t start,
                       int64_t count) const {
    block.each([&](int thread, State&) {
      visit(thread, start, count, [&](int i, int64_t position) {
        to[position] = flipped(x[i], flips, start, i);
      });
    });
  }

  // Had_b in place, stages in the law's order, then the scale. Ends with a sync.
  template <class Block>
  static DDCM_FN void transform(Block& block, float* x, int b) {
    DDCM_NO_UNROLL
    for (int h = 1; h < b; h *= 2) {
      block.each([&](int thread, State&) {
        for (int p = thread; p < b / 2; p += kThreads) {
          const int i = (p & ~(h - 1)) * 2 | (p & (h - 1));
          const float u = x[i], v = x[i + h];
          x[i] = add(u, v);
          x[i + h] = add(u, -v);
        }
      });
      block.sync();
    }
    const float scale = hadamard_scale(b);
    block.each([&](int thread, State&) {
      for (int i = thread; i < b; i += kThreads) x[i] = multiply(x[i], scale);
    });
    block.sync();
  }
};

// The permutation alone (`gaussian`). Grid: (chunks of 1024 coordinates, B).
struct PermuteKernel {
  static constexpr int kThreads = 256, kMinBlocks = 4;
  struct State {};
  static constexpr int64_t kCoordinates = 1024;

  Geometry geometry;
  const float* in;
  float* out;
  int64_t chunks;
  int32_t inverse, reserved;
  Entering entering;

  static constexpr int64_t shared_bytes() { return 0; }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int64_t chunk = block.index() % chunks, row = block.index() / chunks;
    const float* from = in + row * geometry.dim;
    float* to = out + row * geometry.dim;
    const float scale = entering.scale(row);
    if (chunk == 0) entering.write_unit(block, row);
    block.each([&](int thread, State&) {
      const int64_t stride = geometry.stride * kThreads % geometry.dim;
      int64_t i = chunk * kCoordinates + thread;
      int64_t position = geometry.image_position(i);
      for (int r = 0; r < kCoordinates / kThreads && i < geometry.dim; ++r, i += kThreads) {
        if (inverse) {
          to[position] = from[i];
        } else {
          to[i] = multiply(from[position], scale);
        }
        position += stride;
        if (position >= geometry.dim) position -= geometry.dim;
      }
    });
  }
};

}  // namespace ddcm
