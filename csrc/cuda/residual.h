// The residual as matrix fragments: largest magnitude of each group, then integer digits in the order in
// which the search's fragments meet the random words.
//
// A group's residual w is scaled by the power of two that brings its largest magnitude into [2^29, 2^30), rounded to
// an integer q and cut into four signed digits, q = d0 + 2^8 d1 + 2^16 d2 + 2^24 d3, each in -128 .. 127 (d3
// within 65). The digits are four columns of the matrix product, so two batch rows fill its eight columns and
// the sums are exact. `sign` entries enter with the weight 2^j of the bit they occupy in a byte (0 <= j < 8),
// so their q is rounded at 2^-j of the scale: an error of at most 2^(j-30-e) <= 2^-23 of the largest magnitude
// in one coordinate, 2^-25 on average over j.

#pragma once

#include "philox_split.h"

namespace ddcm {

constexpr int kDigits = 4;                // columns of the product a batch row takes
constexpr int kRowsPerColumnTile = 2;     // batch rows in the product's 8 columns
constexpr int kScaleBits = 29;            // the largest magnitude lies in [2^29, 2^30)
constexpr int kCallsPerStep = 4;          // Philox calls of an atom a k step: one for each t of a lane
constexpr int64_t kMaxCoordinates = 8192; // of a block of MaxKernel

DDCM_FN bool finite_maximum(uint32_t max_bits) { return max_bits < 0x7f800000u; }

// floor(log2(x)) of the float with these bits; 0 for zero and for what is not finite.
DDCM_FN int floor_log2(uint32_t bits) {
  if (bits == 0 || !finite_maximum(bits)) return 0;
  if (bits >= 0x00800000u) return static_cast<int>(bits >> 23) - 127;
  int e = -149;
  for (bits >>= 1; bits != 0; bits >>= 1) ++e;
  return e;
}

// Value of one unit of q; NaN if the group's residual is not finite, which makes its scores NaN.
DDCM_FN double unit_of(uint32_t max_bits) {
  if (!finite_maximum(max_bits)) return static_cast<double>(quiet_nan());
  return power_of_two(floor_log2(max_bits) - kScaleBits);
}

// Digit `plane` of q, digits signed.
DDCM_FN int digit(int q, int plane) {
  for (int p = 0; p < plane; ++p) q = (q - static_cast<int8_t>(q & 255)) >> 8;
  return plane == kDigits - 1 ? q : static_cast<int8_t>(q & 255);
}

// float16 bits of an integer, |v| <= 2048: exact.
DDCM_FN uint32_t half_of_integer(int v) {
  if (v == 0) return 0;
  const uint32_t sign = v < 0 ? 0x8000u : 0u;
  const uint32_t magnitude = static_cast<uint32_t>(v < 0 ? -v : v);
  int top = 0;
  while (magnitude >> (top + 1)) ++top;
  const uint32_t mantissa = top <= 10 ? magnitude << (10 - top) : magnitude >> (top - 10);
  return sign | static_cast<uint32_t>(top + 15) << 10 | (mantissa & 0x3ffu);
}

// max_bits[b * G + g] = largest |w| bit pattern of group g of row b (zeroed before). As unsigned integers
// NaN > infinity > finite values, so anything not finite wins. Grid: (chunks of a group, G, B).
struct MaxKernel {
  static constexpr int kThreads = 256, kMinBlocks = 4;
  struct State {
    uint32_t best;
  };

  Geometry geometry;
  const float* w;      // (B, D)
  uint32_t* max_bits;  // (B, G)
  int64_t chunks;

  static constexpr int64_t shared_bytes() { return kThreads * sizeof(uint32_t); }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int64_t chunk = block.index() % chunks, row = block.index() / chunks;
    const int64_t g = row % geometry.groups, b = row / geometry.groups;
    const float* part = w + b * geometry.dim + geometry.group_start(g);
    const int64_t begin = chunk * kMaxCoordinates, size = geometry.group_dim(g);
    const int64_t end = begin + kMaxCoordinates < size ? begin + kMaxCoordinates : size;
    uint32_t* shared = reinterpret_cast<uint32_t*>(block.shared());
    block.each([&](int thread, State& s) {
      s.best = 0;
      for (int64_t i = begin + thread; i < end; i += kThreads) {
        const uint32_t bits = float_bits(part[i]) & 0x7fffffffu;
        s.best = bits > s.best ? bits : s.best;
      }
      shared[thread] = s.best;
    });
    block.sync();
    for (int stride = kThreads / 2; stride >= 1; stride /= 2) {
      block.each([&](int thread, State&) {
        if (thread < stride && shared[thread + stride] > shared[thread]) {
          shared[thread] = shared[thread + stride];
        }
      });
      block.sync();
    }
    block.each([&](int thread, State&) {
      if (thread == 0) atomic_max(max_bits + row, shared[0]);
    });
  }
};

// Fragments of the residual: out[(((tile * G + g) * steps + step) * V + v) * NT + nt][lane], 16 bytes each, for the
// search's Traits (search.h) with NT column tiles and V vectors a step. Rows past B and coordinates past a group's end are zero. Also adds
// correction[b * G + g] = sum of the scaled integers (2^j q), which `sign` needs. Flat grid over the 16 byte items.
template <class Traits>
struct PrepareKernel {
  static constexpr int kThreads = 256, kMinBlocks = 4;
  struct State {};

  Geometry geometry;
  const float* w;            // (B, D)
  const uint32_t* max_bits;  // (B, G)
  Vec4* out;
  int64_t* correction;       // (B, G), zeroed before; unused by `gaussian`
  int64_t batch, column_tiles, steps, items;

  static constexpr int64_t shared_bytes() { return kThreads * sizeof(int64_t); }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    int64_t* sums = reinterpret_cast<int64_t*>(block.shared());
    block.each([&](int thread, State&) {
      sums[thread] = 0;
      const int64_t item = static_cast<int64_t>(block.index()) * kThreads + thread;
      if (item < items) out[item] = make(item, sums[thread]);
    });
    if (!Traits::kSigns) return;
    // A block's 8 vectors belong to one step of one group (V * NT is a multiple of 8). Each digit 0 column has
    // the sum of its batch row in its four lanes.
    block.sync();
    block.each([&](int thread, State&) {
      if (thread >= column_tiles * kRowsPerColumnTile) return;
      const int64_t group_tile = static_cast<int64_t>(block.index()) * (kThreads / 32) / column_tiles / Traits::kVectors / steps;
      const int64_t row = row_of(group_tile, thread);
      if (row >= batch) return;
      int64_t sum = 0;
      for (int v = 0; v < kThreads / 32; ++v) {
        const int64_t vector = static_cast<int64_t>(block.index()) * (kThreads / 32) + v;
        if (vector % column_tiles != thread / kRowsPerColumnTile) continue;
        for (int t = 0; t < 4; ++t) sum += sums[v * 32 + 4 * kDigits * (thread % kRowsPerColumnTile) + t];
      }
      atomic_add(correction + row * geometry.groups + group_tile % geometry.groups, sum);
    });
  }

  // Batch row of a slot (of NT * 2) of a (batch tile, group) pair.
  DDCM_FN int64_t row_of(int64_t group_tile, int64_t slot) const {
    return group_tile / geometry.groups * column_tiles * kRowsPerColumnTile + slot;
  }

  DDCM_FN Vec4 make(int64_t item, int64_t& sum) const {
    const int lane = static_cast<int>(item % 32);
    const int64_t nt = item / 32 % column_tiles;
    const int v = static_cast<int>(item / 32 / column_tiles % Traits::kVectors);
    const int64_t step = item / 32 / column_tiles / Traits::kVectors % steps;
    const int64_t group_tile = item / 32 / column_tiles / Traits::kVectors / steps;
    const int column = lane / 4, t = lane % 4;
    const int plane = column % kDigits;
    const int64_t row = row_of(group_tile, nt * kRowsPerColumnTile + column / kDigits);
    const int64_t g = group_tile % geometry.groups;
    Vec4 result{};
    if (row >= batch) return result;
    const uint32_t maximum = max_bits[row * geometry.groups + g];
    if (!finite_maximum(maximum)) return result;
    const float* part = w + row * geometry.dim + geometry.group_start(g);
    const int64_t size = geometry.group_dim(g);
    const int64_t call = step * kCallsPerStep + t;
    for (int r = 0; r < 4; ++r) {
      const int product = 2 * v + r / 2;
      const int word = Traits::word(product) + r % 2, shift = Traits::shift(product);
      const double scale = power_of_two(kScaleBits - shift - floor_log2(maximum));
      for (int e = 0; e < Traits::kEntriesPerRegister; ++e) {
        const int64_t i = call * Traits::kEntriesPerCall + Traits::entry(word, shift, e);
        const int q = i < size ? round_to_int(static_cast<double>(part[i]) * scale) : 0;
        result.x[r] |= Traits::encode(digit(q, plane)) << (32 / Traits::kEntriesPerRegister * e);
        sum += static_cast<int64_t>(q) << shift;
      }
    }
    return result;
  }
};

}  // namespace ddcm
