// The interleaving permutation's gather. Included by simd.h.

#pragma once

namespace {

void gather(const float* x, int64_t dim, int64_t start, int64_t stride, int64_t count, float* out) {
  int64_t i = 0;
  if (count >= L) {
    alignas(64) uint32_t first[L];
    for (int l = 0; l < L; ++l) first[l] = static_cast<uint32_t>((start + l * stride) % dim);
    U position = Simd::load_u(first);
    const U jump = Simd::set1_u(static_cast<uint32_t>(L * stride % dim));
    const U d = Simd::set1_u(static_cast<uint32_t>(dim));
    for (; i + L <= count; i += L) {
      Simd::store(out + i, Simd::gather(x, position));
      position = Simd::advance(position, jump, d);
    }
  }
  for (; i < count; ++i) out[i] = x[(start + i * stride) % dim];
}

}  // namespace
