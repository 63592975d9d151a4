// AVX-512 with VBMI and VNNI: as avx512.cpp, but other coarse scores.

#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && \
    defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

#include <immintrin.h>

namespace ddcm {
namespace cpu {

#include "avx512.h"

#include "simd.h"
#include "coarse_vnni.h"
#include "coarse_simd.h"

const Kernels* avx512vnni_kernels() {
  static constexpr Kernels kernels = make_kernels("avx512vnni", coarse_sign_scores, listed_sign_scores);
  return &kernels;
}

}  // namespace cpu
}  // namespace ddcm

#else

namespace ddcm {
namespace cpu {
const Kernels* avx512vnni_kernels() { return nullptr; }
}  // namespace cpu
}  // namespace ddcm

#endif
