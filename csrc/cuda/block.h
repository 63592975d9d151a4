// One thread block, on the device or emulated on the host.
//
// A kernel is a functor with a `State` (what a thread keeps in registers), `kThreads`, `kMinBlocks` and
// `template <class Block> void operator()(Block& block) const`. Its body is written in phases:
// `block.each(f)` runs f(thread, state) for every thread, `block.sync()` is __syncthreads(), `block.sync_part<N>()` is
// that among each N consecutive threads, `block.mma<Op>(f)` is one warp-wide matrix instruction for every warp. Blocks
// launched as a cluster (consecutive ones, from compute capability 9.0 on) meet at `block.sync_cluster()` and reach each
// other's shared memory, `block.shared_of(rank)`. On the device each thread runs its own share; on the host `HostBlock`
// loops over the threads and over the 32 lanes of a warp (the blocks of a cluster have a host thread each), so that the
// very code whose maps, tails and reductions matter is tested without a GPU (tests/backends/test_cuda_emulation.py).
// Phases that pass data through shared memory must be separated by a barrier; tests/backends/races finds those that are not.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../noise.h"

#if defined(__CUDACC__)
#define DDCM_UNROLL _Pragma("unroll")
#define DDCM_UNROLL_BY(N) DDCM_PRAGMA(unroll(N))
#define DDCM_NO_UNROLL _Pragma("unroll 1")
#define DDCM_PRAGMA(TEXT) _Pragma(#TEXT)
#else
#define DDCM_UNROLL
#define DDCM_UNROLL_BY(N)
#define DDCM_NO_UNROLL
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>
#endif

namespace ddcm {

struct alignas(16) Vec4 {
  uint32_t x[4];
};

DDCM_FN Vec4 vector_of(const Words& words) { return Vec4{{words.w[0], words.w[1], words.w[2], words.w[3]}}; }
DDCM_FN Words words_of(const Vec4& vector) { return Words{{vector.x[0], vector.x[1], vector.x[2], vector.x[3]}}; }

struct alignas(8) Vec2 {
  uint32_t x[2];
};

// ---- exact float operations and bit casts ---------------------------------------------------------

// Sums and products that must not be contracted to an FMA (the host build uses -ffp-contract=off).
DDCM_FN float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

DDCM_FN float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

DDCM_FN uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
#endif
}

DDCM_FN float bits_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
#endif
}

// 2^e as a double, -1022 <= e <= 1023.
DDCM_FN double power_of_two(int e) {
  const uint64_t bits = static_cast<uint64_t>(e + 1023) << 52;
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(static_cast<long long>(bits));
#else
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
#endif
}

// 2^e for -250 <= e <= 250, in two factors because it may not be a float.
struct Scale {
  float first, second;

  DDCM_FN float operator()(float x) const { return x * first * second; }
};

DDCM_FN Scale scale_of(int e) {
  const int half = e / 2;
  return Scale{bits_float(static_cast<uint32_t>(half + 127) << 23), bits_float(static_cast<uint32_t>(e - half + 127) << 23)};
}

// Nearest integer, ties to even.
DDCM_FN int round_to_int(double x) {
#if defined(__CUDA_ARCH__)
  return __double2int_rn(x);
#else
  return static_cast<int>(std::nearbyint(x));
#endif
}

// Number of the highest bit of x > 0.
DDCM_FN int highest_bit(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return 31 - __clz(static_cast<int>(x));
#else
  return 31 - __builtin_clz(x);
#endif
}

DDCM_FN float quiet_nan() { return bits_float(0x7fffffffu); }

// The same number, but the compiler does not know it: what is derived from it is computed anew where it is
// needed instead of being kept in registers across a long loop.
template <class Integer>
DDCM_FN Integer opaque(Integer x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// The same number in a register of its own, by a multiplication with a kernel's parameter that is 1: what the compiler
// would else copy more often, or compute anew in a loop.
DDCM_FN uint32_t kept(uint32_t x, uint32_t one) {
#if defined(__CUDA_ARCH__)
  asm("mad.lo.u32 %0, %1, %2, 0;" : "=r"(x) : "r"(x), "r"(one));
  return x;
#else
  return x * one;
#endif
}

// ---- integer atomics: order does not matter, so results stay deterministic ------------------------

DDCM_FN void atomic_max(uint32_t* at, uint32_t value) {
#if defined(__CUDA_ARCH__)
  atomicMax(at, value);
#else
  uint32_t seen = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value > seen && !__atomic_compare_exchange_n(at, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
#endif
}

DDCM_FN void atomic_add(int64_t* at, int64_t value) {
#if defined(__CUDA_ARCH__)
  atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
#else
  __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
#endif
}

DDCM_FN int atomic_next(int* at) {
#if defined(__CUDA_ARCH__)
  return atomicAdd(at, 1);
#else
  return __atomic_fetch_add(at, 1, __ATOMIC_RELAXED);
#endif
}

// Read-only loads of 16 and 8 bytes.
DDCM_FN Vec4 load(const Vec4* at) {
#if defined(__CUDA_ARCH__)
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(at));
  return Vec4{{v.x, v.y, v.z, v.w}};
#else
  return *at;
#endif
}

DDCM_FN Vec2 load(const Vec2* at) {
#if defined(__CUDA_ARCH__)
  const uint2 v = __ldg(reinterpret_cast<const uint2*>(at));
  return Vec2{{v.x, v.y}};
#else
  return *at;
#endif
}

// ---- matrix instructions ----------------------------------------------------------------------------
//
// Fragment layouts of PTX ISA "Matrix fragments for mma": lane = 4 * g + t.
//   accumulator c[0..3]: rows g, g, g + 8, g + 8; columns 2t, 2t + 1, 2t, 2t + 1.

#if !defined(__CUDACC__)
struct Operands {
  uint32_t a[4], b[2];
};
#endif

// mma.m16n8k32 s32 += u8 or s8 * s8. Register a0 (a1: row + 8) holds row g, columns 4t .. 4t + 3, a2 (a3) columns
// 16 + 4t ..; b0 (b1) rows 4t .. (16 + 4t ..) of column g. Low byte first.
template <bool Signed>
struct MmaBytes {
  using Accumulator = int32_t;
#if defined(__CUDACC__)
  static __device__ __forceinline__ void device(int32_t (&c)[4], uint32_t a0, uint32_t a1,
                                                uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    if constexpr (Signed) {
      asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
          "{%0,%1,%2,%3};"
          : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
          : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    } else {
      asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
          "{%0,%1,%2,%3};"
          : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
          : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
  }
#else
  static void host(const Operands* lanes, int32_t* const* c) {
    int a[16][32], b[32][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int e = 0; e < 4; ++e) {
        for (int r = 0; r < 4; ++r) {
          const uint32_t byte = lanes[lane].a[r] >> (8 * e) & 255u;
          a[g + 8 * (r % 2)][16 * (r / 2) + 4 * t + e] = Signed ? static_cast<int8_t>(byte) : static_cast<int>(byte);
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

using MmaU8S8 = MmaBytes<false>;
using MmaS8S8 = MmaBytes<true>;

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

// ---- the block ----------------------------------------------------------------------------------------

#if defined(__CUDACC__)

template <class State, int Threads>
struct DeviceBlock {
  State state;
  char* shared_memory;

  __device__ __forceinline__ int index() const { return static_cast<int>(blockIdx.x); }
  __device__ __forceinline__ char* shared() { return shared_memory; }
  __device__ __forceinline__ void sync() { __syncthreads(); }

  // Barriers 1 to 15; 0 is that of sync().
  template <int N>
  __device__ __forceinline__ void sync_part() {
    static_assert(N % 32 == 0 && Threads % N == 0 && Threads / N < 16, "a part is whole warps");
    asm volatile("bar.sync %0, %1;" ::"r"(1 + static_cast<int>(threadIdx.x) / N), "n"(N) : "memory");
  }

#if __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  }

  __device__ __forceinline__ char* shared_of(int rank) {
    char* at;
    asm("mapa.u64 %0, %1, %2;" : "=l"(at) : "l"(shared_memory), "r"(rank));
    return at;
  }
#else  // a block is its cluster
  __device__ __forceinline__ void sync_cluster() { __syncthreads(); }
  __device__ __forceinline__ char* shared_of(int) { return shared_memory; }
#endif

  template <class F>
  __device__ __forceinline__ void each(F f) {
    f(static_cast<int>(threadIdx.x), state);
  }

  template <class Op, class F>
  __device__ __forceinline__ void mma(F f) {
    f(static_cast<int>(threadIdx.x), state,
      [](typename Op::Accumulator (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
         uint32_t b0, uint32_t b1) { Op::device(c, a0, a1, a2, a3, b0, b1); });
  }
};

#else

// What the blocks of a cluster share, each run by a thread of its own.
class HostCluster {
 public:
  std::vector<char*> shared;  // of the blocks

  explicit HostCluster(int size) : shared(size) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t generation = generation_;
    if (++arrived_ == shared.size()) {
      arrived_ = 0;
      ++generation_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return generation_ != generation; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  size_t arrived_ = 0;
  uint64_t generation_ = 0;
};

// Shared memory and thread states start as garbage, as on a device, so that reading what nothing
// wrote shows. Threads of a phase run backwards: a phase that relies on their order fails.
template <class State, int Threads>
struct HostBlock {
  std::vector<State> states;
  std::vector<Vec4> memory;
  int block_index;
  HostCluster& cluster;

  HostBlock(int index, int64_t shared_bytes, HostCluster& cluster_)
      : states(Threads), memory(shared_bytes / sizeof(Vec4) + 1), block_index(index), cluster(cluster_) {
    cluster.shared[index % cluster.shared.size()] = shared();
    std::memset(static_cast<void*>(states.data()), 0xA5, states.size() * sizeof(State));
    std::memset(static_cast<void*>(memory.data()), 0xA5, memory.size() * sizeof(Vec4));
  }

  int index() const { return block_index; }
  char* shared() { return reinterpret_cast<char*>(memory.data()); }
  void sync() {}

  template <int N>
  void sync_part() {}

  void sync_cluster() { cluster.wait(); }
  char* shared_of(int rank) { return cluster.shared[rank]; }

  template <class F>
  void each(F f) {
    for (int thread = Threads - 1; thread >= 0; --thread) f(thread, states[thread]);
  }

  template <class Op, class F>
  void mma(F f) {
    static_assert(Threads % 32 == 0, "whole warps");
    for (int warp = 0; warp < Threads / 32; ++warp) {
      Operands operands[32];
      typename Op::Accumulator* accumulators[32];
      for (int lane = 0; lane < 32; ++lane) {
        f(warp * 32 + lane, states[warp * 32 + lane],
          [&](typename Op::Accumulator(&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
              uint32_t b0, uint32_t b1) {
            operands[lane] = Operands{{a0, a1, a2, a3}, {b0, b1}};
            accumulators[lane] = c;
          });
      }
      Op::host(operands, accumulators);
    }
  }
};

#endif

}  // namespace ddcm
