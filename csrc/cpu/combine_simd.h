// Synthesis, bit for bit the law: every product is rounded before its sum. Included by simd.h.

#pragma once

namespace {

void add_signs(float* y, const uint32_t* words, int64_t count, float c) {
  const F value = Simd::set1(c);
  int64_t i = 0;
  for (; i + L <= count; i += L)
    Simd::store(y + i, Simd::add(Simd::load(y + i), Simd::flip(value, lane_bits(words, i))));
  for (; i < count; ++i) y[i] = y[i] + c * scalar_sign(words, i);
}

// The integers q of 2 * L words in order: out[4 * L].
inline void ordered_gaussians(const uint32_t* words, float* out) {
  const U in[2] = {Simd::load_u(words), Simd::load_u(words + L)};
  F low[2], high[2];
  Simd::gaussians(in, low, high);
  alignas(64) float even[2 * L], odd[2 * L];
  for (int v = 0; v < 2; ++v) {
    Simd::store(even + v * L, low[v]);
    Simd::store(odd + v * L, high[v]);
  }
  for (int l = 0; l < 2 * L; ++l) {
    out[2 * l] = even[l];
    out[2 * l + 1] = odd[l];
  }
}

void gaussian_integers(const uint32_t* words, int64_t count, float* out) {
  alignas(64) uint32_t in[2 * L] = {};
  alignas(64) float q[4 * L];
  for (int64_t i = 0; i < count; i += 4 * L) {
    const int64_t halves = count - i < 4 * L ? count - i : 4 * L;
    for (int64_t l = 0; l < (halves + 1) / 2; ++l) in[l] = words[i / 2 + l];
    ordered_gaussians(in, q);
    for (int64_t l = 0; l < halves; ++l) out[i + l] = q[l];
  }
}

void add_gaussians(float* y, const uint32_t* words, int64_t count, float c) {
  const F value = Simd::set1(c), grid = Simd::set1(kGaussianScale);
  alignas(64) float q[4 * L];
  for (int64_t i = 0; i < count; i += 4 * L) {
    if (i + 4 * L <= count) {
      ordered_gaussians(words + i / 2, q);
      for (int part = 0; part < 4 * L; part += L) {
        const F entry = Simd::mul(Simd::load(q + part), grid);
        Simd::store(y + i + part, Simd::add(Simd::load(y + i + part), Simd::mul(value, entry)));
      }
    } else {
      gaussian_integers(words + i / 2, count - i, q);
      for (int64_t l = 0; i + l < count; ++l) {
        const float entry = q[l] * kGaussianScale;
        y[i + l] = y[i + l] + c * entry;
      }
    }
  }
}

void add_hadamard(float* y, const uint32_t* words, const float* s, int row, int64_t count,
                  float c) {
  const F value = Simd::set1(c);
  const int within = row & (L - 1), across = row & ~(L - 1);
  int64_t l = 0;
  for (; l + L <= count; l += L) {
    const F entry = Simd::flip(Simd::exchange(Simd::load(s + (l ^ across)), within),
                               lane_bits(words, l));
    Simd::store(y + l, Simd::add(Simd::load(y + l), Simd::mul(value, entry)));
  }
  for (; l < count; ++l) y[l] = y[l] + c * (scalar_sign(words, l) * s[l ^ row]);
}

}  // namespace
