// AVX-512 (F, BW, DQ, VL): 16 lanes.

#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include <immintrin.h>

namespace ddcm {
namespace cpu {

#include "avx512.h"

#include "simd.h"
#include "coarse_avx512.h"
#include "coarse_simd.h"

const Kernels* avx512_kernels() {
  static constexpr Kernels kernels = make_kernels("avx512", coarse_sign_scores, listed_sign_scores);
  return &kernels;
}

}  // namespace cpu
}  // namespace ddcm

#else

namespace ddcm {
namespace cpu {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace cpu
}  // namespace ddcm

#endif
