// Residuals on their way in: largest magnitudes, powers of two that bring them into range, and the rotation.

#include <algorithm>
#include <cstring>
#include <vector>

#include "driver.h"

namespace ddcm {
namespace cpu {

namespace {

// Bits of the largest magnitude: as integers they are ordered like magnitudes, infinity and then NaN on top.
uint32_t peak_bits(const float* x, int64_t count) {
  int32_t peak = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, 4);
    peak = std::max(peak, bits & 0x7fffffff);
  }
  return static_cast<uint32_t>(peak);
}

// Power of two that brings a magnitude into range, and its inverse: ddcm_fast.codebook.reference.enter.
struct Power {
  float scale, unit;
  explicit Power(uint32_t peak) {
    const int exponent = static_cast<int>(peak >> 23);
    const int shift = peak == 0 ? 0 : std::min(std::max(exponent, 67), 187) - exponent;
    scale = __builtin_ldexpf(1.0f, shift);
    unit = __builtin_ldexpf(1.0f, -shift);
  }
};

}  // namespace

Entered enter(const Geometry& g, const float* r, int64_t batch, bool together, float* w, float* unit, int threads) {
  std::vector<uint32_t> peaks(static_cast<size_t>(batch));
  const int useful = useful_threads(static_cast<double>(batch) * static_cast<double>(g.dim) / 8, threads);
  parallel(batch, useful, [&](int64_t row, int) {
    peaks[static_cast<size_t>(row)] = peak_bits(r + row * g.dim, g.dim);
  });
  const uint32_t top = *std::max_element(peaks.begin(), peaks.end());
  if (top >= 0x7f800000u) return Entered::kNotFinite;
  if (together) std::fill(peaks.begin(), peaks.end(), top);
  bool scaled = false;
  for (int64_t row = 0; row < batch; ++row) {
    unit[row] = Power(peaks[static_cast<size_t>(row)]).unit;
    scaled = scaled || unit[row] != 1.0f;
  }
  if (!scaled) {
    to_codebook_order(g, r, batch, w, threads);
    return Entered::kPlain;
  }
  std::vector<float> x(static_cast<size_t>(g.dim));
  for (int64_t row = 0; row < batch; ++row) {
    const float scale = Power(peaks[static_cast<size_t>(row)]).scale;
    for (int64_t i = 0; i < g.dim; ++i) x[static_cast<size_t>(i)] = r[row * g.dim + i] * scale;
    to_codebook_order(g, x.data(), 1, w + row * g.dim, threads);
  }
  return Entered::kScaled;
}

}  // namespace cpu
}  // namespace ddcm
