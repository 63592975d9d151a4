// Matrix instructions: on the device mma.sync, on the host the same written from the fragment layouts of PTX ISA, "Matrix
// fragments for mma": lane = 4 * g + t.
//   accumulator c[0..3]: rows g, g, g + 8, g + 8; columns 2t, 2t + 1, 2t, 2t + 1.

#pragma once

#include "scalar.h"

#if !defined(__CUDACC__)
#include <cstdlib>
#include <vector>
#endif

namespace ddcm {

#if !defined(__CUDACC__)
struct Operands {
  uint32_t a[4], b[2];
};
#endif

// mma.m16n8k32 s32 += u8 * s8. Register a0 (a1: row + 8) holds row g, columns 4t .. 4t + 3, a2 (a3) columns
// 16 + 4t ..; b0 (b1) rows 4t .. (16 + 4t ..) of column g. Low byte first.
struct MmaU8S8 {
  using Accumulator = int32_t;
#if defined(__CUDACC__)
  static __device__ __forceinline__ void device(int32_t (&c)[4], uint32_t a0, uint32_t a1,
                                                uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
#else
  static void host(const Operands* lanes, int32_t* const* c) {
    int a[16][32], b[32][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int e = 0; e < 4; ++e) {
        for (int r = 0; r < 4; ++r) {
          a[g + 8 * (r % 2)][16 * (r / 2) + 4 * t + e] = static_cast<int>(lanes[lane].a[r] >> (8 * e) & 255u);
        }
        for (int r = 0; r < 2; ++r) {
          b[16 * r + 4 * t + e][g] = static_cast<int8_t>(lanes[lane].b[r] >> (8 * e));
        }
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        int64_t sum = c[lane][i];
        for (int k = 0; k < 32; ++k) sum += static_cast<int64_t>(a[row][k]) * b[k][column];
        if (sum != static_cast<int32_t>(sum)) std::abort();  // the stated bound would be wrong
        c[lane][i] = static_cast<int32_t>(sum);
      }
    }
  }
#endif
};

// mma.m16n8k256 s32 += number of ones of b1 and b1. Register a0 (a1: row + 8) holds row g, columns 32t .. 32t + 31, a2 (a3)
// columns 128 + 32t ..; b0 (b1) rows 32t .. (128 + 32t ..) of column g. Low bit first.
struct MmaBits {
  using Accumulator = int32_t;
#if defined(__CUDACC__)
  static __device__ __forceinline__ void device(int32_t (&c)[4], uint32_t a0, uint32_t a1,
                                                uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
#else
  static void host(const Operands* lanes, int32_t* const* c) {
    uint32_t a[16][8], b[8][8];  // words of rows, and of columns
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int r = 0; r < 4; ++r) a[g + 8 * (r % 2)][4 * (r / 2) + t] = lanes[lane].a[r];
      for (int r = 0; r < 2; ++r) b[g][4 * r + t] = lanes[lane].b[r];
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        int64_t sum = c[lane][i];
        for (int word = 0; word < 8; ++word) sum += __builtin_popcount(a[row][word] & b[column][word]);
        if (sum != static_cast<int32_t>(sum)) std::abort();
        c[lane][i] = static_cast<int32_t>(sum);
      }
    }
  }
#endif
};

// mma.m16n8k16 f32 += f16 * f16. a0 (a1: row + 8) holds row g, columns 2t, 2t + 1, a2 (a3) columns 2t + 8, 2t + 9;
// b0 (b1) rows 2t, 2t + 1 (+ 8) of column g. Low half first.
struct MmaF16 {
  using Accumulator = float;
#if defined(__CUDACC__)
  static __device__ __forceinline__ void device(float (&c)[4], uint32_t a0, uint32_t a1,
                                                uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
#else
  // Values of the finite float16 numbers; the kernels make no others.
  static const double* halves() {
    static const std::vector<double> table = [] {
      std::vector<double> values(65536);
      for (int bits = 0; bits < 65536; ++bits) {
        const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
        const double magnitude =
            exponent ? std::ldexp(1024.0 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
        values[bits] = bits & 0x8000 ? -magnitude : magnitude;
      }
      return values;
    }();
    return table.data();
  }

  static void host(const Operands* lanes, float* const* c) {
    const double* half = halves();
    double a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int e = 0; e < 2; ++e) {
        for (int r = 0; r < 4; ++r) {
          a[g + 8 * (r % 2)][8 * (r / 2) + 2 * t + e] = half[lanes[lane].a[r] >> (16 * e) & 0xffff];
        }
        for (int r = 0; r < 2; ++r) {
          b[8 * r + 2 * t + e][g] = half[lanes[lane].b[r] >> (16 * e) & 0xffff];
        }
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        double sum = c[lane][i];
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
        // Past 2^24 the units are known to cut sums off rather than to round them.
        const float rounded = static_cast<float>(sum);
        c[lane][i] = std::fabs(rounded) > std::fabs(sum) ? std::nextafter(rounded, 0.0f) : rounded;
      }
    }
  }
#endif
};

}  // namespace ddcm
