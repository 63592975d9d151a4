// The residual as matrix fragments: largest magnitude of each group, then integer digits in the order in
// which the search's fragments meet the random words.
//
// A group's residual w is scaled by the power of two that brings its largest magnitude into [0.996 * 2^22, 1.992 * 2^22],
// rounded to an integer q, an error of at most 2^-23 of the largest magnitude, and cut into signed digits, each in
// -128 .. 127: q = d0 + 2^8 d1 + 2^16 d2, the most that three of them hold. Digits are columns of the matrix product, whose
// sums are exact. For few rows of `sign` it is cut into its 24 bits instead: all kernels find the same scores.

#pragma once

#include "group_range.h"
#include "philox_split.h"

namespace ddcm {

constexpr int kCallsPerStep = 4;           // Philox calls of an atom a k step: one for each t of a lane
constexpr int64_t kMaxCoordinates = 2048;  // of a block of MaxKernel: few loads in a row, few atomics a group

// How batch rows and digits fill the columns of the products, 8 a column tile.
enum Panel {
  kPairPanel,   // one column tile of 2 rows, 4 columns each for the digits of a row; the fourth stays zero
  kEightPanel,  // three column tiles of 8 rows, one tile for each digit
  kPlanePanel,  // three column tiles of one row, a column for each bit of q, the last of them the sign
};
constexpr int kPairColumns = 4, kPlanes = 24;
constexpr int kScaleBits = 22;
constexpr double kLargestMantissa = 1.992;  // 127.49 * 2^16 / 2^22: the third digit's rounding fits

DDCM_FN constexpr int panel_tiles(Panel panel) { return panel == kPairPanel ? 1 : 3; }
DDCM_FN constexpr int panel_rows(Panel panel) { return panel == kPairPanel ? 2 : panel == kEightPanel ? 8 : 1; }

// Lanes that hold sums of a row and an atom.
DDCM_FN constexpr int panel_parts(Panel panel) { return panel == kPairPanel ? 2 : panel == kEightPanel ? 1 : 4; }

// Batch rows of so many column tiles.
template <class Traits>
DDCM_FN constexpr int rows_of(int column_tiles) {
  return column_tiles / panel_tiles(Traits::panel(column_tiles)) * panel_rows(Traits::panel(column_tiles));
}

DDCM_FN bool finite_maximum(uint32_t max_bits) { return max_bits < 0x7f800000u; }

// floor(log2(x)) of the float with these bits; 0 for zero and for what is not finite.
DDCM_FN int floor_log2(uint32_t bits) {
  if (bits == 0 || !finite_maximum(bits)) return 0;
  return bits >= 0x00800000u ? static_cast<int>(bits >> 23) - 127 : highest_bit(bits) - 149;
}

// Exponent of the value of one unit of q.
DDCM_FN int unit_exponent(uint32_t max_bits) {
  const int e = floor_log2(max_bits);
  const bool next = static_cast<double>(bits_float(max_bits)) * power_of_two(-e) > kLargestMantissa;
  return e + (next ? 1 : 0) - kScaleBits;
}

// Value of one unit of q; NaN if the group's residual is not finite, which makes its scores NaN.
DDCM_FN double unit_of(uint32_t max_bits) {
  if (!finite_maximum(max_bits)) return static_cast<double>(quiet_nan());
  return power_of_two(unit_exponent(max_bits));
}

// Digit `plane` of q.
DDCM_FN int digit(int q, int plane) {
  for (int p = 0; p < plane; ++p) q = (q - static_cast<int8_t>(q & 255)) >> 8;
  return static_cast<int8_t>(q & 255);
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

  GroupRange geometry;
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

// Fragments of the residual: out[(((tile * G + g) * steps + step) * V + v) * NT + nt][lane], a Traits::Fragment each
// (digits of two products in bytes), for the search's Traits (search.h) with NT column tiles and V fragments a step.
// Rows past B and coordinates past a group's end are zero. Also adds correction[b * G + g] = sum of the q, which `sign`
// needs. Flat grid over the items.
template <class Traits>
struct PrepareKernel {
  static constexpr int kThreads = 256, kMinBlocks = 4;
  struct State {};

  GroupRange geometry;
  const float* w;            // (B, D)
  const uint32_t* max_bits;  // (B, G)
  typename Traits::Fragment* out;
  int64_t* correction;       // (B, G), zeroed before; unused by `gaussian`
  int64_t batch;
  int32_t column_tiles;
  int64_t steps, items;

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
    // Each digit 0 column has the sum of its batch row in its four lanes.
    block.sync();
    if (Traits::panel(column_tiles) == kPlanePanel) {
      block.each([&](int thread, State&) {
        const int64_t vector = static_cast<int64_t>(block.index()) * (kThreads / 32) + thread / 32;
        if (thread % 32 != 0 || vector % panel_tiles(kPlanePanel) != 0 || vector * 32 >= items) return;
        const int64_t group_tile = vector / column_tiles / steps;
        const int64_t row = row_of(group_tile, vector % column_tiles / panel_tiles(kPlanePanel));
        if (row >= batch) return;
        const int64_t sum = sums[thread] + sums[thread + 1] + sums[thread + 2] + sums[thread + 3];
        atomic_add(correction + row * geometry.groups + group_tile % geometry.groups, sum);
      });
      return;
    }
    // A block's 8 items a lane belong to one step of one group (V * NT is a multiple of 8).
    block.each([&](int thread, State&) {
      if (thread >= rows_of<Traits>(column_tiles)) return;
      const int64_t step = static_cast<int64_t>(block.index()) * (kThreads / 32) / column_tiles / Traits::kVectors;
      const int64_t group_tile = step / steps;
      const int64_t row = row_of(group_tile, thread);
      if (row >= batch) return;
      int64_t sum = 0;
      for (int v = 0; v < kThreads / 32; ++v) {
        const int64_t vector = static_cast<int64_t>(block.index()) * (kThreads / 32) + v;
        // The lanes of the row's column of digit 0.
        if (vector % column_tiles != thread / 8 * panel_tiles(kEightPanel)) continue;
        for (int t = 0; t < 4; ++t) sum += sums[v * 32 + 4 * (thread % 8) + t];
      }
      atomic_add(correction + row * geometry.groups + group_tile % geometry.groups, sum);
    });
  }

  // Batch row of a slot of a (batch tile, group) pair.
  DDCM_FN int64_t row_of(int64_t group_tile, int64_t slot) const {
    return group_tile / geometry.groups * rows_of<Traits>(column_tiles) + slot;
  }

  DDCM_FN typename Traits::Fragment make(int64_t item, int64_t& sum) const {
    const int lane = static_cast<int>(item % 32);
    const int nt = static_cast<int>(item / 32 % column_tiles);
    const int v = static_cast<int>(item / 32 / column_tiles % Traits::kVectors);
    const int64_t step = item / 32 / column_tiles / Traits::kVectors % steps;
    const int64_t group_tile = item / 32 / column_tiles / Traits::kVectors / steps;
    const int column = lane / 4, t = lane % 4;
    const Panel panel = Traits::panel(column_tiles);
    const int in_panel = nt % panel_tiles(panel);
    const int plane = panel == kPairPanel ? column % kPairColumns : panel == kEightPanel ? in_panel : 8 * in_panel + column;
    const int in_rows = panel == kPairPanel ? column / kPairColumns : panel == kEightPanel ? column : 0;
    const int64_t row = row_of(group_tile, nt / panel_tiles(panel) * panel_rows(panel) + in_rows);
    const int64_t g = group_tile % geometry.groups;
    typename Traits::Fragment result = Traits::no_digits();
    if (row >= batch) return result;
    const uint32_t maximum = max_bits[row * geometry.groups + g];
    if (!finite_maximum(maximum)) return result;
    const float* part = w + row * geometry.dim + geometry.group_start(g);
    const int64_t size = geometry.group_dim(g);
    const int64_t call = step * kCallsPerStep + t;
    const double scale = power_of_two(-unit_exponent(maximum));
    for (int r = 0; r < 4; ++r) {
      const int product = 2 * v + r / 2;
      const int word = Traits::word(product) + r % 2;
      DDCM_UNROLL_BY(Traits::kEntriesPerRegister < 8 ? Traits::kEntriesPerRegister : 8)
      for (int e = 0; e < Traits::kEntriesPerRegister; ++e) {
        const int64_t i = call * Traits::kEntriesPerCall + Traits::entry(word, Traits::bit(product), e);
        const int q = i < size ? round_to_int(static_cast<double>(part[i]) * scale) : 0;
        Traits::put(result, r, e, panel == kPlanePanel ? static_cast<int>(static_cast<uint32_t>(q) >> plane & 1u) : digit(q, plane));
        sum += q;
      }
    }
    return result;
  }
};

}  // namespace ddcm
