// Microbenchmark, used by no backend: how many instructions a second a multiprocessor takes of those that the search
// kernels live on. Eight independent chains a warp hide the latency; the sums mean nothing.

#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kChains = 8;

enum Which { kWide, kHigh, kLow, kDfma, kImma, kBmma, kHmma, kLop3 };

template <int which>
__global__ void __launch_bounds__(256) rate_kernel(int32_t* out, int steps, uint32_t seed) {
  uint32_t a[4];
  int32_t sum[kChains][4];
  uint64_t wide[kChains];
  double real[kChains];
  for (int i = 0; i < 4; ++i) a[i] = threadIdx.x * 2654435761u + seed * (i + 1);
  for (int c = 0; c < kChains; ++c) {
    wide[c] = a[0] + c;
    real[c] = a[0] + c;
    for (int i = 0; i < 4; ++i) sum[c][i] = static_cast<int32_t>(a[1] >> (c + i));
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) {
      int32_t(&s)[4] = sum[c];
      if (which == kWide) {
        asm volatile("mad.wide.u32 %0, %1, %2, %0;" : "+l"(wide[c]) : "r"(static_cast<uint32_t>(wide[c])), "r"(a[1]));
      } else if (which == kHigh) {
        asm volatile("mul.hi.u32 %0, %0, %1;" : "+r"(s[0]) : "r"(a[1]));
      } else if (which == kLow) {
        asm volatile("mad.lo.u32 %0, %0, %1, %2;" : "+r"(s[0]) : "r"(a[1]), "r"(a[2]));
      } else if (which == kDfma) {
        asm volatile("fma.rz.f64 %0, %0, %1, %2;" : "+d"(real[c]) : "d"(1.0 / 3), "d"(0.7));
      } else if (which == kImma) {
        asm volatile(
            "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%4,%5}, {%0,%1,%2,%3};"
            : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]));
      } else if (which == kBmma) {
        asm volatile(
            "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%4,%5}, "
            "{%0,%1,%2,%3};"
            : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]));
      } else if (which == kHmma) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%4,%5}, {%0,%1,%2,%3};"
            : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]));
      } else {
        asm volatile("lop3.b32 %0, %0, %1, %2, 0x6a;" : "+r"(s[0]) : "r"(a[0]), "r"(a[1]));
      }
    }
  }
  int32_t total = 0;
  for (int c = 0; c < kChains; ++c)
    total += sum[c][0] ^ sum[c][1] ^ sum[c][2] ^ sum[c][3] ^ static_cast<int32_t>(wide[c] >> 7) ^ static_cast<int32_t>(real[c]);
  out[blockIdx.x * 256 + threadIdx.x] = total;
}

}  // namespace

extern "C" int instructions_a_step() { return kChains; }

// which: a Which. Returns a CUDA error, 0 for none.
extern "C" int instruction_rate(int which, int32_t* out, int blocks, int steps, cudaStream_t stream) {
  switch (which) {
    case kWide: rate_kernel<kWide><<<blocks, 256, 0, stream>>>(out, steps, 1); break;
    case kHigh: rate_kernel<kHigh><<<blocks, 256, 0, stream>>>(out, steps, 1); break;
    case kLow: rate_kernel<kLow><<<blocks, 256, 0, stream>>>(out, steps, 1); break;
    case kDfma: rate_kernel<kDfma><<<blocks, 256, 0, stream>>>(out, steps, 1); break;
    case kImma: rate_kernel<kImma><<<blocks, 256, 0, stream>>>(out, steps, 1); break;
    case kBmma: rate_kernel<kBmma><<<blocks, 256, 0, stream>>>(out, steps, 1); break;
    case kHmma: rate_kernel<kHmma><<<blocks, 256, 0, stream>>>(out, steps, 1); break;
    default: rate_kernel<kLop3><<<blocks, 256, 0, stream>>>(out, steps, 1);
  }
  return static_cast<int>(cudaGetLastError());
}
