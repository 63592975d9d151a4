// Signs, the Hadamard transform, and scores of `hadamard` by two transforms. Included by simd.h.

#pragma once

namespace {

// ---- Hadamard transforms ------------------------------------------------------------------------

inline void small_transform(float* x, int n) {
  for (int h = 1; h < n; h *= 2)
    for (int i = 0; i < n; ++i)
      if (!(i & h)) {
        const float a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
}

inline F vector_stages(F v) {
  v = Simd::butterfly<1>(v);
  v = Simd::butterfly<2>(v);
  v = Simd::butterfly<4>(v);
  if constexpr (L == 16) v = Simd::butterfly<8>(v);
  return v;
}

// log2(R) stages h, 2h, .., h * R / 2 (h counted in vectors), h >= 1.
template <int R>
inline void vector_pass(float* x, int vectors, int h) {
  for (int base = 0; base < vectors; base += h * R)
    for (int i = base; i < base + h; ++i) {
      F v[R];
      for (int r = 0; r < R; ++r) v[r] = Simd::load(x + (i + r * h) * L);
#pragma GCC unroll 4
      for (int step = 1; step < R; step *= 2)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
          if (!(r & step)) {
            const F a = v[r], b = v[r + step];
            v[r] = Simd::add(a, b);
            v[r + step] = Simd::sub(a, b);
          }
      for (int r = 0; r < R; ++r) Simd::store(x + (i + r * h) * L, v[r]);
    }
}

void transform(float* x, int n) {
  if (n < L) {
    small_transform(x, n);
    return;
  }
  const int vectors = n / L;
  for (int v = 0; v < vectors; ++v)
    Simd::store(x + v * L, vector_stages(Simd::load(x + v * L)));
  int h = 1;
  for (; h * 8 <= vectors; h *= 8) vector_pass<8>(x, vectors, h);
  if (h * 4 <= vectors) {
    vector_pass<4>(x, vectors, h);
    h *= 4;
  }
  if (h * 2 <= vectors) vector_pass<2>(x, vectors, h);
}

void scale(float* x, int64_t count, float factor) {
  int64_t i = 0;
  const F f = Simd::set1(factor);
  for (; i + L <= count; i += L) Simd::store(x + i, Simd::mul(Simd::load(x + i), f));
  for (; i < count; ++i) x[i] *= factor;
}

// Bits i .. i + L - 1 of a run of words, i a multiple of L.
inline uint32_t lane_bits(const uint32_t* words, int64_t i) {
  return words[i >> 5] >> (i & 31) & (L == 32 ? ~0u : (1u << L) - 1);
}

inline float scalar_sign(const uint32_t* words, int64_t i) {
  return words[i >> 5] >> (i & 31) & 1 ? -1.0f : 1.0f;
}

void flip(const float* x, const uint32_t* words, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + L <= count; i += L)
    Simd::store(out + i, Simd::flip(Simd::load(x + i), lane_bits(words, i)));
  for (; i < count; ++i) out[i] = x[i] * scalar_sign(words, i);
}

// ---- hadamard: scores by two transforms ---------------------------------------------------------

// Scratch: d and e words (n / 32 each), then one buffer of n floats.
void hadamard_scores(const ScoreTask& task) {
  const Geometry& geometry = *task.geometry;
  const int n = geometry.hadamard_n;
  const int64_t calls = geometry.calls_per_sub_block();
  uint32_t* outer = static_cast<uint32_t*>(task.scratch);
  uint32_t* inner = outer + calls * 4;
  float* x = reinterpret_cast<float*>(inner + calls * 4);
  const uint32_t pair = static_cast<uint32_t>(task.first / static_cast<uint64_t>(n));
  for (int64_t c = 0; c < geometry.sub_blocks; ++c) {
    const uint32_t block = geometry.block(task.group, c * calls);
    block_words(geometry.key(), block, calls, pair, task.step, kStreamInner, inner);
    block_words(geometry.key(), block, calls, pair, task.step, kStreamOuter, outer);
    const int64_t left = task.group_dim - c * n;
    const int64_t entries = left < 0 ? 0 : left < n ? left : n;
    for (int r = 0; r < task.rows; ++r) {
      float* sum = task.scores + r * task.stride;
      float* buffer = c == 0 ? sum : x;
      flip(task.w + r * task.row_stride + c * n, outer, entries, buffer);
      for (int64_t i = entries; i < n; ++i) buffer[i] = 0.0f;
      transform(buffer, n);
      for (int i = 0; i < n; i += L) {
        const F y = Simd::flip(Simd::load(buffer + i), lane_bits(inner, i));
        Simd::store(sum + i, c == 0 ? y : Simd::add(Simd::load(sum + i), y));
      }
    }
  }
  for (int r = 0; r < task.rows; ++r) {
    transform(task.scores + r * task.stride, n);
    scale(task.scores + r * task.stride, n, hadamard_scale(n));
  }
}

}  // namespace
