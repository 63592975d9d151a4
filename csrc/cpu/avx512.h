// Vectors of 16 lanes by AVX-512 (F, BW, DQ, VL). Included by avx512.cpp and avx512vnni.cpp inside ddcm::cpu.

#pragma once

namespace {

#include "gaussian_coefficients.h"

struct Simd {
  static constexpr int lanes = 16;
  using F = __m512;
  using U = __m512i;
  // 16 words in the low halves of two vectors of 64 bit lanes: atoms 0-7 and 8-15.
  struct Wide {
    __m512i a, b;
  };

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max_(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs_(F a) { return _mm512_abs_ps(a); }

  static U load_u(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static void store_u(uint32_t* p, U v) { _mm512_storeu_si512(p, v); }
  static U set1_u(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static U iota_u() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  static U add_u(U a, U b) { return _mm512_add_epi32(a, b); }
  static U xor_u(U a, U b) { return _mm512_xor_si512(a, b); }
  static U shift4(U a) { return _mm512_srli_epi32(a, 4); }

  static Wide widen(U x) {
    return Wide{_mm512_cvtepu32_epi64(_mm512_castsi512_si256(x)),
                _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(x, 1))};
  }
  static U narrow(const Wide& x) {
    const U even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_epi32(x.a, even, x.b);
  }
  static Wide product(const Wide& x, uint32_t m) {
    const __m512i c = _mm512_set1_epi32(static_cast<int>(m));
    return Wide{_mm512_mul_epu32(x.a, c), _mm512_mul_epu32(x.b, c)};
  }
  // A shuffle, because more units do it than shifts; it leaves the high halves as they are.
  static Wide high(const Wide& p) {
    return Wide{_mm512_shuffle_epi32(p.a, static_cast<_MM_PERM_ENUM>(0xf5)),
                _mm512_shuffle_epi32(p.b, static_cast<_MM_PERM_ENUM>(0xf5))};
  }
  static Wide xor2(const Wide& x, uint32_t k) {
    const __m512i c = _mm512_set1_epi32(static_cast<int>(k));
    return Wide{_mm512_xor_si512(x.a, c), _mm512_xor_si512(x.b, c)};
  }
  static Wide xor3(const Wide& x, const Wide& y, uint32_t k) {
    const __m512i c = _mm512_set1_epi32(static_cast<int>(k));
    return Wide{_mm512_ternarylogic_epi32(x.a, y.a, c, 0x96),
                _mm512_ternarylogic_epi32(x.b, y.b, c, 0x96)};
  }

  // vpermd reads the low four bits of each index only.
  static U lookup16(const int32_t* table, U index) {
    return _mm512_permutexvar_epi32(index, _mm512_loadu_si512(table));
  }
  static F to_float(U x) { return _mm512_cvtepi32_ps(x); }
  static U to_int(F x) { return _mm512_cvtps_epi32(x); }

  // T of section 4 by polynomials instead of a gather: see gaussian_coefficients.py. Four vectors at
  // once, step by step, because each step waits for the one before: a core looks only some 60
  // instructions ahead.
  static void gaussians(const U (&words)[2], F (&low)[2], F (&high)[2]) {
    const U mask = _mm512_set1_epi32(0x7fff0000), ones = _mm512_set1_epi32(0x7fffffff);
    const U sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
    const U half[4] = {_mm512_slli_epi32(words[0], 16), _mm512_slli_epi32(words[1], 16), words[0],
                       words[1]};  // the halfword in the upper 16 bits
    F x[4], value[4];
    U segment[4];
    for (int i = 0; i < 4; ++i)
      x[i] = _mm512_cvtepi32_ps(_mm512_ternarylogic_epi32(half[i], mask, ones, 0x6a));
    for (int i = 0; i < 4; ++i) segment[i] = _mm512_srli_epi32(_mm512_castps_si512(x[i]), 22);
    for (int i = 0; i < 4; ++i) value[i] = coefficient(kGaussianDegree, segment[i]);
    for (int power = kGaussianDegree - 1; power >= 0; --power)
      for (int i = 0; i < 4; ++i)
        value[i] = _mm512_fmadd_ps(value[i], x[i], coefficient(power, segment[i]));
    for (int i = 0; i < 4; ++i) {
      const F q = _mm512_roundscale_ps(value[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      // q | (half & 0x80000000)
      value[i] = _mm512_castsi512_ps(
          _mm512_ternarylogic_epi32(_mm512_castps_si512(q), half[i], sign, 0xf8));
    }
    low[0] = value[0];
    low[1] = value[1];
    high[0] = value[2];
    high[1] = value[3];
  }
  // vpermt2ps reads the low five bits of each index only.
  static F coefficient(int power, U segment) {
    const float* table = kGaussianCoefficients[power];
    return _mm512_permutex2var_ps(_mm512_load_ps(table), segment, _mm512_load_ps(table + 16));
  }

  static F flip(F x, uint32_t bits) {
    const U v = _mm512_castps_si512(x);
    return _mm512_castsi512_ps(
        _mm512_mask_xor_epi32(v, static_cast<__mmask16>(bits), v,
                              _mm512_set1_epi32(static_cast<int>(0x80000000u))));
  }
  template <int h>
  static F butterfly(F v) {
    F other;
    if constexpr (h == 1) other = _mm512_permute_ps(v, 0xb1);
    if constexpr (h == 2) other = _mm512_permute_ps(v, 0x4e);
    if constexpr (h == 4) other = _mm512_shuffle_f32x4(v, v, 0xb1);
    if constexpr (h == 8) other = _mm512_shuffle_f32x4(v, v, 0x4e);
    constexpr __mmask16 upper =
        h == 1 ? 0xaaaa : h == 2 ? 0xcccc : h == 4 ? 0xf0f0 : 0xff00;
    return _mm512_mask_sub_ps(_mm512_add_ps(v, other), upper, other, v);
  }
  static F exchange(F x, int row) {
    return _mm512_permutexvar_ps(_mm512_xor_si512(iota_u(), _mm512_set1_epi32(row)), x);
  }
  static uint32_t above(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static uint32_t at_least(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static F select(uint32_t bits, F a, F b) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), b, a);
  }
  static U select_u(uint32_t bits, U a, U b) {
    return _mm512_mask_blend_epi32(static_cast<__mmask16>(bits), b, a);
  }
  static F gather(const float* x, U position) { return _mm512_i32gather_ps(position, x, 4); }
  static F permute(F x, U position) { return _mm512_permutexvar_ps(position, x); }
  static void keep_larger(F x, U at, F& best, U& best_at) {
    const __mmask16 larger = _mm512_cmp_ps_mask(x, best, _CMP_GT_OQ);
    best = _mm512_mask_mov_ps(best, larger, x);
    best_at = _mm512_mask_mov_epi32(best_at, larger, at);
  }
  static U advance(U position, U stride, U dim) {
    const U sum = _mm512_add_epi32(position, stride);
    return _mm512_min_epu32(sum, _mm512_sub_epi32(sum, dim));
  }
};

// The 16 sums of four numbers with all signs, for both ways of coarse scores.
inline Simd::F signed_sums(const float* x) {
  using F = Simd::F;
  const F sign0 = _mm512_setr_ps(1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1);
  const F sign1 = _mm512_setr_ps(1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1);
  const F sign2 = _mm512_setr_ps(1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1);
  const F sign3 = _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
  const F two = Simd::fma(Simd::set1(x[1]), sign1, Simd::mul(Simd::set1(x[0]), sign0));
  return Simd::fma(Simd::set1(x[3]), sign3, Simd::fma(Simd::set1(x[2]), sign2, two));
}

}  // namespace
