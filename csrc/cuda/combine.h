// Weighted sums of `sign` and `gaussian` atoms (section 6), bit for bit, and `sign`'s squared norms.

#pragma once

#include "block.h"

namespace ddcm {

// y (B, D) = ((0 + c_0 y_0) + c_1 y_1) + ...; a block has 1024 coordinates of one group and row, 4 a thread, and makes the
// Philox calls of as many atoms at once as its threads can (32 for `sign`, 2 for `gaussian`).
// Indices are clamped into range. Grid: (tiles, G, B).
template <int KindOf>
struct CombineKernel {
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static constexpr int kPerThread = 4, kCoordinates = kThreads * kPerThread;
  static constexpr int kPerCall = KindOf == kSign ? kSignsPerCall : kGaussiansPerCall;
  static constexpr int kCalls = kCoordinates / kPerCall;  // of one atom
  static constexpr int kAtoms = kThreads / kCalls;        // at once
  struct State {
    float sum[kPerThread];
  };

  Geometry geometry;
  const int64_t* step;
  const int64_t* index;      // (B, G, M)
  const float* coefficient;  // (B, G, M)
  const int16_t* table;      // q, `gaussian` only
  float* y;
  int64_t m, tiles;

  static constexpr int64_t shared_bytes() { return kThreads * sizeof(Vec4); }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int64_t tile = block.index() % tiles, row = block.index() / tiles;
    const int64_t g = row % geometry.groups, b = row / geometry.groups;
    const uint32_t step_word = static_cast<uint32_t>(*step);
    Vec4* words = reinterpret_cast<Vec4*>(block.shared());
    block.each([&](int, State& s) {
      DDCM_UNROLL
      for (int r = 0; r < kPerThread; ++r) s.sum[r] = 0.0f;
    });
    for (int64_t first = 0; first < m; first += kAtoms) {
      const int count = static_cast<int>(m - first < kAtoms ? m - first : kAtoms);
      block.each([&](int thread, State&) {
        const int j = thread / kCalls;
        if (j >= count) return;
        int64_t atom = index[row * m + first + j];
        atom = atom < 0 ? 0 : atom >= geometry.size ? geometry.size - 1 : atom;
        const Words w = philox10(geometry.key(), geometry.block(g, tile * kCalls + thread % kCalls),
                                 static_cast<uint32_t>(atom), step_word,
                                 KindOf == kSign ? kStreamSign : kStreamGaussian);
        words[thread] = vector_of(w);
      });
      block.sync();
      block.each([&](int thread, State& s) {
        for (int j = 0; j < count; ++j) {
          const float weight = coefficient[row * m + first + j];
          DDCM_UNROLL
          for (int r = 0; r < kPerThread; ++r) {
            const int i = thread + kThreads * r;
            const uint32_t* call = words[j * kCalls + i / kPerCall].x;
            float value;
            if (KindOf == kSign) {
              value = bits_float(0x3f800000u | (call[i % kPerCall / 32] << (31 - i % 32) & 0x80000000u));
            } else {
              value = gaussian(call[i % kPerCall / 2] >> (16 * (i % 2)) & 0xffffu, table);
            }
            s.sum[r] = add(s.sum[r], multiply(weight, value));
          }
        }
      });
      block.sync();
    }
    block.each([&](int thread, State& s) {
      DDCM_UNROLL
      for (int r = 0; r < kPerThread; ++r) {
        const int64_t i = tile * kCoordinates + thread + kThreads * r;
        if (i < geometry.group_dim(g)) y[b * geometry.dim + geometry.group_start(g) + i] = s.sum[r];
      }
    });
  }
};

// `sign`: every atom's squared norm is its group's size. out (G, K). Grid: (chunks of 1024 atoms, G).
struct SignNormKernel {
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static constexpr int64_t kAtoms = 1024;
  struct State {};

  Geometry geometry;
  float* out;
  int64_t tiles;

  static constexpr int64_t shared_bytes() { return 0; }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int64_t tile = block.index() % tiles, g = block.index() / tiles;
    block.each([&](int thread, State&) {
      for (int64_t k = tile * kAtoms + thread; k < (tile + 1) * kAtoms && k < geometry.size; k += kThreads) {
        out[g * geometry.size + k] = static_cast<float>(geometry.group_dim(g));
      }
    });
  }
};

}  // namespace ddcm
