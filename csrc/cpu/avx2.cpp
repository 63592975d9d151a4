// AVX2 with FMA: 8 lanes.

#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>

namespace ddcm {
namespace cpu {
namespace {

struct Simd {
  static constexpr int lanes = 8;
  using F = __m256;
  using U = __m256i;
  // Words of the even and of the odd lanes, each in the low halves of 64 bit lanes.
  struct Wide {
    __m256i a, b;
  };

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max_(F a, F b) { return _mm256_max_ps(a, b); }
  static F abs_(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }

  static U load_u(const uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void store_u(uint32_t* p, U v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
  static U set1_u(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static U iota_u() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static U add_u(U a, U b) { return _mm256_add_epi32(a, b); }
  static U xor_u(U a, U b) { return _mm256_xor_si256(a, b); }
  static U shift4(U a) { return _mm256_srli_epi32(a, 4); }

  static Wide widen(U x) { return Wide{x, _mm256_srli_epi64(x, 32)}; }
  static U narrow(const Wide& x) {
    return _mm256_blend_epi32(x.a, _mm256_slli_epi64(x.b, 32), 0xaa);
  }
  static Wide product(const Wide& x, uint32_t m) {
    const __m256i c = _mm256_set1_epi32(static_cast<int>(m));
    return Wide{_mm256_mul_epu32(x.a, c), _mm256_mul_epu32(x.b, c)};
  }
  static Wide high(const Wide& p) {
    return Wide{_mm256_srli_epi64(p.a, 32), _mm256_srli_epi64(p.b, 32)};
  }
  static Wide xor2(const Wide& x, uint32_t k) {
    const __m256i c = _mm256_set1_epi32(static_cast<int>(k));
    return Wide{_mm256_xor_si256(x.a, c), _mm256_xor_si256(x.b, c)};
  }
  static Wide xor3(const Wide& x, const Wide& y, uint32_t k) {
    const Wide t{_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)};
    return xor2(t, k);
  }

  // vpermd reads the low three bits of an index; bit 3, moved to the sign, picks the half of the table.
  static U lookup16(const int32_t* table, U index) {
    const U low = _mm256_permutevar8x32_epi32(load_u(reinterpret_cast<const uint32_t*>(table)), index);
    const U high =
        _mm256_permutevar8x32_epi32(load_u(reinterpret_cast<const uint32_t*>(table + 8)), index);
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high),
                                                _mm256_castsi256_ps(_mm256_slli_epi32(index, 28))));
  }
  static F to_float(U x) { return _mm256_cvtepi32_ps(x); }
  static U to_int(F x) { return _mm256_cvtps_epi32(x); }

  static F gaussian_of(U half, U sign) {
    const U magnitude = _mm256_and_si256(half, _mm256_set1_epi32(0x7fff));
    const F q = _mm256_i32gather_ps(gaussian_table.value, magnitude, 4);
    return _mm256_or_ps(q, _mm256_and_ps(_mm256_castsi256_ps(sign), _mm256_set1_ps(-0.0f)));
  }
  static void gaussians(const U (&words)[2], F (&low)[2], F (&high)[2]) {
    for (int i = 0; i < 2; ++i) {
      low[i] = gaussian_of(words[i], _mm256_slli_epi32(words[i], 16));
      high[i] = gaussian_of(_mm256_srli_epi32(words[i], 16), words[i]);
    }
  }

  // All ones in the lanes whose bit is set.
  static U expand(uint32_t bits) {
    const U lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(set1_u(bits), lane), lane);
  }
  static F flip(F x, uint32_t bits) {
    return _mm256_xor_ps(x, _mm256_and_ps(_mm256_castsi256_ps(expand(bits)),
                                          _mm256_set1_ps(-0.0f)));
  }
  template <int h>
  static F butterfly(F v) {
    F other;
    if constexpr (h == 1) other = _mm256_permute_ps(v, 0xb1);
    if constexpr (h == 2) other = _mm256_permute_ps(v, 0x4e);
    if constexpr (h == 4) other = _mm256_permute2f128_ps(v, v, 0x01);
    constexpr int upper = h == 1 ? 0xaa : h == 2 ? 0xcc : 0xf0;
    return _mm256_blend_ps(_mm256_add_ps(v, other), _mm256_sub_ps(other, v), upper);
  }
  static F exchange(F x, int row) {
    return _mm256_permutevar8x32_ps(x, _mm256_xor_si256(iota_u(), _mm256_set1_epi32(row)));
  }
  static uint32_t above(F a, F b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
  }
  static uint32_t at_least(F a, F b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
  }
  static F select(uint32_t bits, F a, F b) {
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(expand(bits)));
  }
  static U select_u(uint32_t bits, U a, U b) { return _mm256_blendv_epi8(b, a, expand(bits)); }
  static F gather(const float* x, U position) { return _mm256_i32gather_ps(x, position, 4); }
  static F permute(F x, U position) { return _mm256_permutevar8x32_ps(x, position); }
  static void keep_larger(F x, U at, F& best, U& best_at) {
    const F larger = _mm256_cmp_ps(x, best, _CMP_GT_OQ);
    best = _mm256_blendv_ps(best, x, larger);
    best_at = _mm256_blendv_epi8(best_at, at, _mm256_castps_si256(larger));
  }
  static U advance(U position, U stride, U dim) {
    const U sum = _mm256_add_epi32(position, stride);
    return _mm256_min_epu32(sum, _mm256_sub_epi32(sum, dim));
  }
};

}  // namespace

#include "simd.h"
#include "coarse_avx2.h"
#include "coarse_simd.h"

const Kernels* avx2_kernels() {
  static constexpr Kernels kernels = make_kernels("avx2", coarse_sign_scores, listed_sign_scores);
  return &kernels;
}

}  // namespace cpu
}  // namespace ddcm

#else

namespace ddcm {
namespace cpu {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace cpu
}  // namespace ddcm

#endif
