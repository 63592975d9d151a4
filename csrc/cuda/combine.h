// Weighted sums of atoms (section 6), bit for bit, and `sign`'s squared norms.

#pragma once

#include "transform.h"

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

// The same of `hadamard` atoms, a transform for each pair of sign vectors: atoms in a row that have the same share it. y (B,
// D). Grid: (tiles of sub-blocks, G, B).
template <int LogN>
struct HadamardCombineKernel {
  using T = Transform<LogN>;
  static constexpr int kLast = T::kPasses - 1;
  static constexpr int kThreads = T::kThreads, kMinBlocks = T::kMinBlocks;
  struct State {
    float x[16], sum[16];
  };

  Geometry geometry;
  const int64_t* step;
  const int64_t* index;      // (B, G, M)
  const float* coefficient;  // (B, G, M)
  float* y;
  int64_t m, tiles;

  static constexpr int64_t shared_bytes() { return T::kBufferBytes + 2 * T::kSignBytes; }

  template <class Block>
  DDCM_FN void operator()(Block& block) const {
    const int64_t tile = block.index() % tiles, row = block.index() / tiles;
    const int64_t g = row % geometry.groups, b = row / geometry.groups;
    const uint32_t step_word = static_cast<uint32_t>(*step);
    float* buffer = reinterpret_cast<float*>(block.shared());
    char* inner = block.shared() + T::kBufferBytes;
    const char* outer = inner + T::kSignBytes;
    block.each([&](int, State& s) {
      DDCM_UNROLL
      for (int i = 0; i < 16; ++i) s.sum[i] = 0.0f;
    });
    int64_t known = -1;  // the pair whose spectrum the buffer holds
    DDCM_NO_UNROLL
    for (int64_t j = 0; j < m; ++j) {
      int64_t atom = index[row * m + j];
      atom = atom < 0 ? 0 : atom >= geometry.size ? geometry.size - 1 : atom;
      const float weight = coefficient[row * m + j];
      const int rotation = static_cast<int>(atom % T::kN);
      const int64_t pair = atom / T::kN;
      if (pair != known) {
        known = pair;
        block.sync();  // others may still read the pair's before
        T::put_signs(block, inner, 2, [&](int unit, int stream, int call, Vec4& words) {
          const int64_t c = tile * T::kUnits + unit;
          if (c >= geometry.sub_blocks) return false;
          words = sign_words(geometry, g, c, call, pair, step_word, stream);
          return true;
        });
        block.sync();
        T::descend_signs(block, buffer, inner);
        block.each([&](int thread, State& s) {
          DDCM_UNROLL
          for (int i = 0; i < 16; ++i) T::at(buffer, thread, 0)[T::padded_offset(i, 0)] = s.x[i];
        });
        block.sync();
      }
      block.each([&](int thread, State& s) {
        DDCM_UNROLL
        for (int i = 0; i < 16; ++i) {
          const int l = T::entry(thread, i, kLast);
          const float spectrum = multiply(buffer[T::padded(thread, l ^ rotation)], hadamard_scale(T::kN));
          s.sum[i] = add(s.sum[i], multiply(weight, T::with_sign(spectrum, outer, thread, i, kLast)));
        }
      });
    }
    block.each([&](int thread, State& s) {
      const int64_t c = tile * T::kUnits + thread / T::kUnitThreads;
      DDCM_UNROLL
      for (int i = 0; i < 16; ++i) {
        const int64_t at = c * T::kN + T::entry(thread, i, kLast);
        if (at < geometry.group_dim(g)) y[b * geometry.dim + geometry.group_start(g) + at] = s.sum[i];
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
