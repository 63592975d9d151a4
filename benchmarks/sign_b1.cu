// Microbenchmark, used by no backend: the `sign` search's inner loop with one bit matrix products beside the byte
// products that csrc/cuda/sign_traits.h prepares. It measures rates only; its sums mean nothing.
//
// One bit: the Philox words are mma.m16n8k256's A fragments as they are, and the residual is 24 bit planes in 3
// column tiles: no operation on the noise at all, 6 products for every two calls. Bytes: 6 operations a word, 16 products for
// every two calls. Which is faster depends on the rate of the one bit product, which no document gives for sm_90.

#include <cuda_runtime.h>

#include "../csrc/cuda/sign_traits.h"

namespace ddcm {

static __device__ __forceinline__ void mma_b1(int32_t (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

constexpr int kRows = 8;   // atoms a lane: 4 row tiles of two
constexpr int kPlaneTiles = 3;

// A warp's 64 atoms against `steps` k steps of 512 coordinates. planes: steps * 8 vectors of 32 lanes.
template <bool OneBit>
__global__ void __launch_bounds__(256, 2)
    sign_rate_kernel(const __grid_constant__ RoundKeys keys, const Vec4* planes, int32_t* out, int steps, uint32_t one) {
  const int thread = threadIdx.x, warp = blockIdx.x * 8 + thread / 32;
  constexpr int kTiles = OneBit ? kPlaneTiles : 1, kVectors = OneBit ? kPlaneTiles : SignTraits::kVectors;
  AtomPart atom[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const AtomPart part = atom_part(keys, warp * 64 + thread % 32 / 4 + 8 * r, 1);
    atom[r] = AtomPart{kept(part.high, one), kept(part.low, one)};
  }
  int32_t sum[kRows / 2][kTiles][4] = {};
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const Vec4* from = planes + step * kVectors * 32 + thread % 32;
    const BlockPart part = block_part(keys, step * 4 + thread % 4, 1, kStreamSign);
    Words words[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) words[r] = philox_split(keys, atom[r], part);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const Vec4 b = load(from + v * 32);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int m = 0; m < kRows / 2; ++m) {
          const Words &upper = words[2 * m], &lower = words[2 * m + 1];
          if (OneBit) {
            mma_b1(sum[m][v % kTiles], upper.w[2 * half], lower.w[2 * half], upper.w[2 * half + 1],
                   lower.w[2 * half + 1], b.x[2 * half], b.x[2 * half + 1]);
          } else {
            const int product = 2 * v + half, word = SignTraits::word(product), form = SignTraits::form(product);
            const uint32_t a0 = SignTraits::fragment<false>(upper, word, form, one);
            const uint32_t a1 = SignTraits::fragment<false>(lower, word, form, one);
            const uint32_t a2 = SignTraits::fragment<false>(upper, word + 1, form, one);
            const uint32_t a3 = SignTraits::fragment<false>(lower, word + 1, form, one);
            if (half == 0) {
              MmaU8S8::device(sum[m][0], a0, a1, a2, a3, b.x[0], b.x[1]);
            } else {
              MmaS8S8::device(sum[m][0], a0, a1, a2, a3, b.x[2], b.x[3]);
            }
          }
        }
      }
    }
  }
  int32_t total = 0;
#pragma unroll
  for (int m = 0; m < kRows / 2; ++m) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) total += sum[m][t][0] ^ sum[m][t][1] ^ sum[m][t][2] ^ sum[m][t][3];
  }
  out[blockIdx.x * 256 + thread] = total;
}

}  // namespace ddcm

// one_bit = 0 or 1; out: blocks * 256 words.
extern "C" int sign_rate(int one_bit, const void* planes, int32_t* out, int blocks, int steps, void* stream) {
  const auto* vectors = static_cast<const ddcm::Vec4*>(planes);
  const auto keys = ddcm::make_round_keys(1);
  const auto queue = static_cast<cudaStream_t>(stream);
  if (one_bit) {
    ddcm::sign_rate_kernel<true><<<blocks, 256, 0, queue>>>(keys, vectors, out, steps, 1);
  } else {
    ddcm::sign_rate_kernel<false><<<blocks, 256, 0, queue>>>(keys, vectors, out, steps, 1);
  }
  return cudaGetLastError();
}
