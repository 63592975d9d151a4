// What a thread does alone: exact float operations, bit casts, atomics, wide loads; on the device or on the host.

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
#endif

namespace ddcm {

struct alignas(16) Vec4 {
  uint32_t x[4];
};

DDCM_FN Vec4 vector_of(const Words& words) { return Vec4{{words.w[0], words.w[1], words.w[2], words.w[3]}}; }

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

DDCM_FN uint64_t double_bits(double x) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint64_t>(__double_as_longlong(x));
#else
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  return bits;
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

// How many have come here before, in global memory. What they wrote before they came is seen by whoever comes after; of a
// block one thread comes, after a barrier.
DDCM_FN int arrive(int* at) {
#if defined(__CUDA_ARCH__)
  __threadfence();
  const int before = atomicAdd(at, 1);
  __threadfence();
  return before;
#else
  return __atomic_fetch_add(at, 1, __ATOMIC_ACQ_REL);
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

}  // namespace ddcm
